//! Renewing a lease.

use std::time::Duration;

use super::lock_change::LockChange;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout;
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::access::{Access, Snapshot, access, is_owner_here, lost};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::lease::{Lease, Term};
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::{Claim, ErrorKind, Key, Result, WaitOptions};

pub(crate) fn renew(
    core: &Core,
    key: &Key,
    claim: &Claim,
    hold_timeout: Option<Duration>,
    options: &WaitOptions,
) -> Result<()> {
    let context = Context::new("renew", key);
    core.check_writable(context)?;
    let here = Owner::here(&core.layout, context)?;
    let limits = Limits::new(options);
    limits.check_cancelled(context)?;
    let latch = core.enter(key, &limits.for_latch(), context)?;
    loop {
        let lock = own_lock(core, &latch, key, claim, context)?;
        let lease = Lease::starting(&Reading::now(), hold_timeout);
        if let Some(change) = restart_lease(core, &latch, &lock, lease, &here, context)? {
            drop(latch);
            change.sync(core, Some(&lock), context)?;
            core.checkpoint_if_full();
            return Ok(());
        }
        // It has just expired. The next check returns the error.
    }
}

/// Gives a live lock a new lease, under the latch. `None`: the old one expired before the new one was
/// published. Other processes may have seen the key free in between, so the lock is removed.
pub(super) fn restart_lease<'a>(
    core: &'a Core,
    latch: &Latch,
    lock: &LockFile,
    lease: Lease,
    here: &Owner,
    context: Context<'_>,
) -> Result<Option<LockChange<'a>>> {
    let renewed = LockFile { lease, ..lock.clone() };
    let staged = stage_lock(core, &renewed, here, context)?;
    let mut is_published = false;
    let publish = || {
        // The sync of the frame takes long. Others that have seen the key free must not see it held again.
        is_published = lock.lease.term(&Reading::now()) != Term::Over;
        if is_published { staged.publish_lock(&layout::lock_name(&lock.key), context) } else { Ok(()) }
    };
    let change = LockChange::renew(core, latch, &renewed, context, publish)?;
    let now = Reading::now();
    let before = lock.lease.term(&now);
    if is_published && before != Term::Over {
        if let Some(end) = renewed.lease.deadline
            && renewed.lease.term(&now) < before
        {
            core.events.shortened(&lock.key, end);
        }
        return Ok(Some(change));
    }
    let remove = || publish::remove(&core.layout, &layout::lock_name(&lock.key), context);
    let (_, _unsynced) = LockChange::remove(core, latch, &renewed, context, remove)?;
    // A waiter may have seen the new lease.
    core.events.freed(&lock.key, &core.layout);
    Ok(None)
}

/// Stages a lock file, before the lock is told to the log. The file is not synced: the log is, where the lock has to survive
/// (I4).
pub(super) fn stage_lock<'a>(
    core: &'a Core,
    lock: &LockFile,
    here: &Owner,
    context: Context<'_>,
) -> Result<Staged<'a>> {
    Staged::new(&core.layout, &here.name, &lock.to_text(), Durability::Relaxed, context)
}

/// The live lock that the claim is about, under the latch; or the error that says why there is none.
pub(super) fn own_lock(
    core: &Core,
    latch: &Latch,
    key: &Key,
    claim: &Claim,
    context: Context<'_>,
) -> Result<LockFile> {
    let access = access(core, key, claim, context)?;
    if let Access::Free(Snapshot::Lock(found)) = &access
        && found.lock.is_claimed_by(claim, |owner| is_owner_here(core, owner))
    {
        // The claimant's own stale lock. Perhaps nobody else will ever use this key and remove it.
        let remove = || publish::remove(&core.layout, &layout::lock_name(key), context);
        // Told to the log without a sync: the lock would be live again after a restart with a clock that is behind.
        let (_, _unsynced) = LockChange::remove(core, latch, &found.lock, context, remove)?;
    }
    let path = || core.layout.lock_path(key);
    match (claim, access) {
        (_, Access::Mine(found)) => Ok(found.lock),
        (Claim::Token(token) | Claim::Delegated(token), _) => Err(lost(core, key, *token, context)),
        (Claim::Holder(_), Access::Free(_)) => Err(context.error(ErrorKind::NotLocked).with_path(path())),
        (Claim::Holder(holder), Access::Other(found)) => Err(context
            .error(ErrorKind::NotLockHolder)
            .with_claimant(holder.clone())
            .with_holder(found.lock.holder)
            .with_path(path())),
    }
}
