//! Changes of lock files. Those of named holders are told to the log, because such a lock outlives its process (I4).

use std::collections::BTreeSet;

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout;
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::log::{Appended, Frame, Kind, Unsynced};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::access::{Snapshot, snapshot};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::{Key, Result};

/// A change of a lock file that was made under the latch. If the log was not told, nothing of it has to be on the disk.
#[must_use = "the change may have to be synced when the latch is left"]
pub(super) struct LockChange<'a> {
    told: Option<Unsynced<'a>>,
    key: Key,
    /// The lock that there is now. `None`: there is none.
    after: Option<LockFile>,
}

impl<'a> LockChange<'a> {
    /// Makes a change from one lock to another one, or to none.
    ///
    /// If an acquisition of a named holder stays, the old file may be all that tells of it, and the new one is not synced.
    /// So the frame is, while the old one is still there: with relaxed durability only if no earlier frame of the lock
    /// will be there.
    pub(super) fn make<T>(
        core: &'a Core,
        latch: &Latch,
        key: &Key,
        (before, after): (Option<&LockFile>, Option<&LockFile>),
        context: Context<'_>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Self)> {
        let told = tell(core, latch, key, (before, after), context)?;
        let stays = |before: &LockFile| after.is_some_and(|after| has_named_of(after, before));
        let synced = match (&told, before.filter(|before| stays(before))) {
            (Some(told), Some(before)) if is_durable(core) || !told.follows_one_of(key, before.newest) => {
                told.sync(context)
            }
            (_, _) => Ok(()),
        };
        let made = synced.and_then(|()| change());
        let (made, told) = Appended::settle(told, made, context)?;
        match (&told, &core.log, after.filter(|after| after.has_named())) {
            (Some(told), _, Some(after)) if !is_durable(core) => told.remember_lock(key, after.newest),
            (Some(_), Some(log), None) => log.forget_lock(key),
            _ => {}
        }
        let after = after.filter(|_| told.is_some()).cloned();
        Ok((made, Self { told, key: key.clone(), after }))
    }

    /// Makes the change durable, if the store is, when the latch is left. If that fails, the change is taken back: the lock
    /// file is `before` again, or there is none. Waiters are notified of that.
    pub(super) fn sync(&self, core: &Core, before: Option<&LockFile>, context: Context<'_>) -> Result<()> {
        let Self { told, key, after } = self;
        let Some(told) = told.as_ref().filter(|_| is_durable(core)) else { return Ok(()) };
        let Err(error) = told.sync(context) else { return Ok(()) };
        let undo = || -> Result<bool> {
            let Some(_latch) = core.enter_within(key, &Limits::best_effort(), context)? else {
                return Ok(false);
            };
            let is_ours = match (snapshot(core, key, context)?, after) {
                (Snapshot::Lock(found), Some(after)) => has_same_tokens(&found.lock, after),
                (Snapshot::Absent | Snapshot::Blank, None) => true,
                _ => false,
            };
            Ok(is_ours && restore(core, key, before, context)? && told.withdraw(context)?)
        };
        let is_undone = undo().unwrap_or(false);
        core.events.freed(key, &core.layout);
        Err(if is_undone { error } else { error.with_unknown_outcome() })
    }
}

fn is_durable(core: &Core) -> bool {
    core.options.durability == Durability::Full
}

/// Brings an earlier state of the lock file back, and syncs it in its place, because the log cannot be trusted.
fn restore(core: &Core, key: &Key, before: Option<&LockFile>, context: Context<'_>) -> Result<bool> {
    let (layout, name) = (&core.layout, layout::lock_name(key));
    match before {
        Some(lock) => {
            let here = Owner::here(layout, context)?;
            Staged::new(layout, &here.name, &lock.to_text(), Durability::Relaxed, context)?
                .publish_lock(&name, context)?;
            publish::sync_file(layout, &name, context)?;
        }
        None => drop(publish::remove(layout, &name, context)?),
    }
    publish::sync_records(layout, Durability::Full, context)?;
    Ok(true)
}

fn tell<'a>(
    core: &'a Core,
    latch: &Latch,
    key: &Key,
    (before, after): (Option<&LockFile>, Option<&LockFile>),
    context: Context<'_>,
) -> Result<Option<Appended<'a>>> {
    let is_told = |lock: &&LockFile| lock.has_named();
    let (log, kind, lock) = match (&core.log, before.filter(is_told), after.filter(is_told)) {
        (Some(log), _, Some(after)) => (log, Kind::Locked, after),
        (Some(log), Some(before), None) => (log, Kind::Unlocked, before),
        (None, _, _) | (_, None, None) => return Ok(None),
    };
    let text = if kind == Kind::Locked { lock.to_text() } else { Vec::new() };
    let frame = Frame::new(kind, lock.newest.get(), key, &text);
    log.append(latch, &core.options, key, &frame, context).map(Some)
}

/// Whether an acquisition of a named holder is in both.
fn has_named_of(after: &LockFile, before: &LockFile) -> bool {
    let mut named = after.acquisitions().filter(|acquisition| !acquisition.holder.is_process_bound());
    named.any(|acquisition| before.acquisitions().any(|earlier| earlier.token == acquisition.token))
}

fn has_same_tokens(one: &LockFile, other: &LockFile) -> bool {
    let tokens = |lock: &LockFile| lock.acquisitions().map(|it| it.token).collect::<BTreeSet<_>>();
    one.newest == other.newest && tokens(one) == tokens(other)
}
