//! Removing a record.

use rustix::fs::Stat;

use super::change::{Change, New};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::old_file::{self, InPlace, MAX_ATTEMPTS, Old, Was, too_busy};
use crate::filesystem::disk::record_file::Proof;
use crate::filesystem::disk::{layout, publish, record_file};
use crate::filesystem::log::{Appended, Frame, Kind};
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::numbers;
use crate::filesystem::protocol::owner::Owner;
use crate::{Key, RemoveOptions, Result, trace};

/// `false`: there was no record.
pub(crate) fn remove(core: &Core, key: &Key, options: &RemoveOptions) -> Result<bool> {
    let context = Context::new("remove", key);
    core.check_writable(context)?;
    let claim = options.resolve_claim();
    let limits = Limits::new(options.get_wait());
    limits.check_cancelled(context)?;
    let here = Owner::here(&core.layout, context).ok();
    let latch = core.enter(key, &limits.for_latch(), context)?;
    admit(core, key, &claim, context)?;
    // Read before the file is taken away: a record that expires later was removed.
    let now = Reading::now();
    let stat = record_file::stat_to_replace(core, key, context)?;
    let Some(stat) = stat else {
        drop(latch);
        // Another process may not have synced its removal yet, and after this call the record must stay absent.
        core.wait_until_durable(key, context)?;
        if core.log.is_none() {
            publish::sync_records(&core.layout, core.options.durability, context)?;
        }
        return Ok(false);
    };
    Ok(match take_away(core, key, latch, stat, here.as_deref(), context)? {
        Was::Nothing => false,
        Was::Record(proof) => proof.expiry.is_none_or(|expiry| expiry.term(&now) != Term::Over),
        Was::Damaged => true,
    })
}

/// Takes away the file in the place of the record. `stat`: what [`record_file::stat_to_replace`] has just returned under the latch.
pub(super) fn take_away(
    core: &Core,
    key: &Key,
    latch: Latch,
    stat: Stat,
    here: Option<&Owner>,
    context: Context<'_>,
) -> Result<Was> {
    let told = tell(core, &latch, key, &stat, context)?;
    let displaced = displace(core, key, stat, here, context);
    let change = Change::settle(core, key, New::NONE, told, displaced, context)?;
    drop(latch);
    let was = change.finish(context)?;
    core.checkpoint_if_full();
    Ok(was)
}

/// Appends the frame that tells the removal, under the latch. It has a version of its own, so that a recovery knows which
/// records it removes.
fn tell<'a>(
    core: &'a Core,
    latch: &Latch,
    key: &Key,
    stat: &Stat,
    context: Context<'_>,
) -> Result<Option<Appended<'a>>> {
    let Some(log) = &core.log else { return Ok(None) };
    let chosen = numbers::choose_version(core, key);
    let version = numbers::give_version(core, latch, key, Some(stat), chosen, context)?;
    log.append(latch, &core.options, key, &Frame::new(Kind::Removed, version, key, &[]), context).map(Some)
}

/// Takes away the file in the place of a record, under the latch. `here` is this process's owner, if it has one: on a full
/// disk it may have none, and no file can be displaced, but a record can still be removed.
fn displace(core: &Core, key: &Key, stat: Stat, here: Option<&Owner>, context: Context<'_>) -> Result<Old> {
    let name = layout::record_name(key);
    if let Some(here) = here
        && let Ok(displaced) = publish::displace(&core.layout, &here.name, &name)
    {
        let displaced = displaced.map(|displaced| Old::displaced(core, displaced, &stat, context));
        return Ok(displaced.unwrap_or(Old::Examined(Was::Nothing)));
    }
    for _ in 0..MAX_ATTEMPTS {
        let was = match old_file::examine(core, &name, context)? {
            InPlace::Nothing => Was::Nothing,
            InPlace::Record(proof, stat) => {
                if !publish::remove_examined(&core.layout, &name, &stat, context)? {
                    continue;
                }
                Was::Record(proof)
            }
            InPlace::Other(found) => {
                record_file::stat_to_replace(core, key, context)?;
                old_file::set_aside(core, &name, &found, context).map(|()| Was::Damaged)?
            }
        };
        return Ok(Old::Examined(was));
    }
    Err(too_busy(core, &name, context))
}

/// Removes an expired record, under the latch. `false`: there is none.
///
/// Another program knows no latch. If it puts a file there after the record was read, that file stays.
pub(super) fn remove_expired(
    core: &Core,
    name: &str,
    here: Option<&Owner>,
    context: Context<'_>,
) -> Result<bool> {
    let layout = &core.layout;
    let expired = match old_file::examine(core, name, context) {
        Ok(InPlace::Record(Proof { expiry: Some(expiry), .. }, stat))
            if expiry.term(&Reading::now()) == Term::Over =>
        {
            stat
        }
        _ => return Ok(false),
    };
    let Some(here) = here else { return publish::remove_examined(layout, name, &expired, context) };
    let displaced = match publish::displace(layout, &here.name, name) {
        Ok(Some(displaced)) => displaced.name,
        Ok(None) => return Ok(false),
        Err(_) => return publish::remove_examined(layout, name, &expired, context),
    };
    let stat = layout::stat(&layout.private, &displaced);
    if matches!(stat, Ok(Some(stat)) if layout::is_same(&stat, &expired)) {
        let removed = publish::remove_staged(layout, &displaced, context).map(|()| true);
        return removed.inspect_err(|_| {
            publish::put_back(layout, &displaced, name);
        });
    }
    if !publish::put_back(layout, &displaced, name) {
        let kept = publish::set_aside(layout, (&layout.private, &displaced), name, core.options.durability);
        let path = kept.map_err(|errno| context.io("move aside", &layout.private_path(&displaced), errno))?;
        trace::set_aside(&path, &record_file::corrupt(REPLACED, context));
    }
    Ok(false)
}

const REPLACED: &str = "another program has put it in the place of an expired record";
