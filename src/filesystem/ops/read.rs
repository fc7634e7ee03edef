//! Reading a record, and checking whether it exists.

use rustix::fs::Stat;

use super::wait::{Attempt, Role, timed_out, wait};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, Opened};
use crate::filesystem::disk::{expiry, record_file};
use crate::filesystem::protocol::access::{Access, Snapshot, access, lost};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::{Latch, ReadLatch};
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::Limits;
use crate::{Claim, Key, RawRecord, ReadOptions, Result};

pub(crate) fn read(core: &Core, key: &Key, options: &ReadOptions) -> Result<Option<RawRecord>> {
    let context = Context::new("read", key);
    let limits = Limits::new(options.get_wait());
    if options.ignores_lock() {
        limits.check_cancelled(context)?;
        let record = record_file::current(core, key, context)?;
        if record.is_none() {
            core.check_exists(context)?;
        }
        core.wait_until_durable(key, context)?;
        return Ok(record);
    }
    let claim = options.resolve_claim();
    let record =
        wait(core, key, Role::Watcher, &limits, context, |_| attempt(core, key, &claim, &limits, context))?;
    core.wait_until_durable(key, context)?;
    Ok(record)
}

/// One optimistic attempt (I5): open the record, check the lock, then check that the record is still the
/// current one.
fn attempt(
    core: &Core,
    key: &Key,
    claim: &Claim,
    limits: &Limits,
    context: Context<'_>,
) -> Result<Attempt<Option<RawRecord>>> {
    let record = record_file::open(core, key, context)?;
    let before = Reading::now();
    let is_lock_stale = match (claim, access(core, key, claim, context)?) {
        (_, Access::Mine(_)) => false,
        (Claim::Holder(_), Access::Free(snapshot)) => matches!(snapshot, Snapshot::Lock(_)),
        (Claim::Token(token) | Claim::Delegated(token), _) => return Err(lost(core, key, *token, context)),
        // Those who share a lock change nothing.
        (Claim::Holder(_), Access::Other(found)) if found.lock.is_shared() => false,
        (Claim::Holder(_), Access::Other(found)) => return Ok(Attempt::Held(found)),
    };
    let mut latch = None;
    if is_lock_stale || record.is_none() {
        latch = recheck_under_latch(core, key, claim, limits, context)?;
        if latch.is_none() {
            return Ok(Attempt::Retry);
        }
        if matches!(latch, Some(ReadLatch::NeverUsed)) {
            core.check_exists(context)?;
        }
    }
    // If the name still refers to the open file, it did so since the open, and so at the check of the lock.
    if !is_current(core, key, record.as_ref(), context)? {
        return Ok(Attempt::Retry);
    }
    drop(latch);
    let Some(opened) = record else { return Ok(Attempt::Done(None)) };
    let (record, expiry) = record_file::read(core, key, &opened, context)?;
    core.note_read(&opened);
    let Some(expiry) = expiry else { return Ok(Attempt::Done(Some(record))) };
    if expiry.term(&before) == Term::Over {
        return Ok(Attempt::Done(None));
    }
    Ok(match expiry.term(&Reading::now()) {
        // It expired during this attempt, before or after the check of the lock.
        Term::Over => Attempt::Retry,
        term => Attempt::Done(Some(record.with_time_left(term.left()))),
    })
}

/// Checks the claim again under the latch, in the two cases in which the check without it is not enough.
/// `None`: the claim is not valid.
///
/// If there is no record: a holder may have removed it and be about to write it again, so that its absence
/// before and its absence after the check of the lock are two different ones. If the lock is stale: a change
/// by its holder that was admitted just before the lease expired may still be running, and would take effect
/// after this read.
fn recheck_under_latch(
    core: &Core,
    key: &Key,
    claim: &Claim,
    limits: &Limits,
    context: Context<'_>,
) -> Result<Option<ReadLatch>> {
    let Some(latch) = Latch::enter_to_read(&core.layout, key, &limits.for_latch(), context)? else {
        limits.check_cancelled(context)?;
        return Err(timed_out(core, key, None, limits, context));
    };
    let is_valid = match (claim, access(core, key, claim, context)?) {
        (_, Access::Mine(_)) | (Claim::Holder(_), Access::Free(_)) => true,
        (Claim::Holder(_), Access::Other(found)) => found.lock.is_shared(),
        (Claim::Token(_) | Claim::Delegated(_), _) => false,
    };
    Ok(is_valid.then_some(latch))
}

/// Whether the record is still the open file, or still absent.
fn is_current(core: &Core, key: &Key, record: Option<&Opened>, context: Context<'_>) -> Result<bool> {
    let current = record_file::stat(core, key, context)?;
    let identity = |stat: &Stat| (stat.st_ino, stat.st_dev);
    Ok(current.as_ref().map(identity) == record.map(|record| identity(&record.stat)))
}

pub(crate) fn exists(core: &Core, key: &Key) -> Result<bool> {
    let context = Context::new("exists", key);
    let stat = record_file::stat(core, key, context)?;
    if let Some(found) = stat.as_ref().and_then(layout::irregular) {
        return Err(record_file::irregular(core, key, found, context));
    }
    if stat.is_none() {
        core.check_exists(context)?;
    }
    let is_expired =
        || expiry::has_any(&core.layout) && record_file::is_expired(core, &layout::record_name(key));
    let exists = stat.is_some() && !is_expired();
    core.wait_until_durable(key, context)?;
    Ok(exists)
}
