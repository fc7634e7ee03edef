//! Removing a record.

use rustix::fs::Stat;

use super::change::Change;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::old_file::{self, Was};
use crate::filesystem::disk::publish;
use crate::filesystem::log::{Appended, Frame, Kind};
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::filesystem::protocol::version_choice;
use crate::{Key, RemoveOptions, Result};

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
    let stat = old_file::stat(core, key, context)?;
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

/// Takes away the file in the place of the record. `stat`: what [`old_file::stat`] has just returned under the latch.
pub(super) fn take_away(
    core: &Core,
    key: &Key,
    latch: Latch,
    stat: Stat,
    here: Option<&Owner>,
    context: Context<'_>,
) -> Result<Was> {
    let told = tell(core, &latch, key, &stat, context)?;
    let remove = || old_file::remove(core, key, stat, here, context);
    let change = Change::make(core, key, told, false, context, remove)?;
    drop(latch);
    let was = change.finish(None, context)?;
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
    let chosen = version_choice::choose(core, key);
    let version = version_choice::give(core, latch, key, Some(stat), chosen, context)?;
    log.append(latch, &core.options, key, &Frame::new(Kind::Removed, version, key, &[]), context).map(Some)
}
