//! Evicting the oldest records.

use rustix::fs::Stat;

use super::remove::take_away;
use crate::eviction::{self, Candidate, Outcome};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, Opened};
use crate::filesystem::disk::names::{Entry, Names};
use crate::filesystem::disk::old_file::Was;
use crate::filesystem::disk::{last_read, record_file, record_head};
use crate::filesystem::protocol::access::{Snapshot, snapshot};
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::{Evicted, EvictionPolicy, Key, LockState, Result};

pub(crate) fn evict(core: &Core, policy: &EvictionPolicy) -> Result<Evicted> {
    let context = Context::whole("evict");
    if !policy.is_dry_run() {
        core.check_writable(context)?;
    }
    let candidates = candidates(core, policy, context)?;
    evict_candidates(core, policy, candidates)
}

/// A record as it was listed.
pub(super) type Found = (Entry, Stat);

/// All records.
pub(super) fn candidates(
    core: &Core,
    policy: &EvictionPolicy,
    context: Context<'static>,
) -> Result<Vec<Candidate<Found>>> {
    let used = if policy.is_least_recently_read() { last_read::used } else { layout::modified };
    let mut candidates = Vec::new();
    for entry in Names::records(&core.layout, context)? {
        // A file of another kind is not evicted.
        let Ok(entry) = entry else { continue };
        let name = entry.record_name();
        let stat = layout::stat(&core.layout.dir, &name)
            .map_err(|errno| context.io("stat the record", &core.layout.root().join(&name), errno))?;
        if let Some(stat) = stat
            && layout::irregular(&stat).is_none()
        {
            candidates.push(Candidate {
                used: used(&stat),
                size: layout::size(&stat),
                record: (entry, stat),
            });
        }
    }
    core.check_exists(context)?;
    Ok(candidates)
}

pub(super) fn evict_candidates(
    core: &Core,
    policy: &EvictionPolicy,
    candidates: Vec<Candidate<Found>>,
) -> Result<Evicted> {
    eviction::evict(policy, candidates, |(entry, stat)| evict_one(core, entry, stat, policy.is_dry_run()))
}

/// Removes the record, unless it is locked or not the file that was found.
fn evict_one(core: &Core, entry: &Entry, found: &Stat, is_dry_run: bool) -> Result<Outcome> {
    let key = match entry {
        Entry::Literal(key) => key.clone(),
        Entry::Hashed(name) => match record_file::key_inside(core, name, Context::whole("evict")) {
            Ok(Some(key)) => key,
            Ok(None) => return Ok(Outcome::Gone),
            // One without a key is no record.
            Err(_) => return Ok(Outcome::Kept),
        },
    };
    let context = Context::new("evict", &key);
    // Checked first without the latch: a locked record is the usual reason to leave one.
    let opened = match record_file::open(core, &key, context) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(Outcome::Gone),
        Err(_) => return Ok(Outcome::Kept),
    };
    if is_locked(core, &key, context) || !is_ours(core, &opened) || !is_unchanged(&opened.stat, found) {
        return Ok(Outcome::Kept);
    }
    drop(opened);
    if is_dry_run {
        return Ok(Outcome::Evicted);
    }
    let here = Owner::here(&core.layout, context).ok();
    let Some(latch) = core.enter_within(&key, &Limits::best_effort(), context)? else {
        return Ok(Outcome::Kept);
    };
    let stat = match record_file::stat_to_replace(core, &key, context) {
        Ok(Some(stat)) if is_unchanged(&stat, found) && !is_locked(core, &key, context) => stat,
        Ok(None) => return Ok(Outcome::Gone),
        Ok(Some(_)) | Err(_) => return Ok(Outcome::Kept),
    };
    Ok(match take_away(core, &key, latch, stat, here.as_deref(), context)? {
        Was::Record(_) => Outcome::Evicted,
        Was::Nothing => Outcome::Gone,
        Was::Damaged => Outcome::Kept,
    })
}

/// Also if that cannot be determined.
fn is_locked(core: &Core, key: &Key, context: Context<'_>) -> bool {
    match snapshot(core, key, context) {
        Ok(Snapshot::Lock(found)) => found.state == LockState::Held,
        Ok(Snapshot::Absent | Snapshot::Blank | Snapshot::Unfinished) => false,
        Err(_) => true,
    }
}

/// Whether this library has written the file. A record that was written by hand is kept (I12), and
/// so is a damaged file: it would only be moved.
fn is_ours(core: &Core, opened: &Opened) -> bool {
    record_head::read(opened, core.options.max_record_bytes).is_some_and(|head| head.version.is_some())
}

/// Every write publishes another file.
fn is_unchanged(now: &Stat, found: &Stat) -> bool {
    layout::is_same(now, found) && layout::modified(now) == layout::modified(found)
}
