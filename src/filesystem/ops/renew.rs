//! Renewing a lease.

use std::time::Duration;

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
    let _latch = Latch::enter(&core.layout, key, &limits.for_latch(), context)?;
    loop {
        let lock = own_lock(core, key, claim, context)?;
        let lease = Lease::starting(&Reading::now(), hold_timeout);
        if restart_lease(core, &lock, lease, &here, context)? {
            return Ok(());
        }
        // It has just expired. The next check returns the error.
    }
}

/// Gives a live lock a new lease, under the latch. `false`: the old one expired before the new one was
/// published. Other processes may have seen the key free in between, so the lock is removed.
pub(super) fn restart_lease(
    core: &Core,
    lock: &LockFile,
    lease: Lease,
    here: &Owner,
    context: Context<'_>,
) -> Result<bool> {
    replace_lock(core, &LockFile { lease, ..lock.clone() }, here, context)?;
    if lock.lease.term(&Reading::now()) != Term::Over {
        return Ok(true);
    }
    publish::remove(&core.layout, &layout::lock_name(&lock.key), context)?;
    // A waiter may have seen the new lease.
    core.events.freed(&lock.key, &core.layout);
    Ok(false)
}

/// Replaces a lock file, under the latch. Locks are not synced (I4).
pub(super) fn replace_lock(core: &Core, lock: &LockFile, here: &Owner, context: Context<'_>) -> Result<()> {
    Staged::new(&core.layout, &here.name, &lock.to_text(), Durability::Relaxed, context)?
        .publish_lock(&layout::lock_name(&lock.key), context)
}

/// The live lock that the claim is about, under the latch; or the error that says why there is none.
pub(super) fn own_lock(core: &Core, key: &Key, claim: &Claim, context: Context<'_>) -> Result<LockFile> {
    let access = access(core, key, claim, context)?;
    if let Access::Free(Snapshot::Lock(found)) = &access
        && found.lock.is_claimed_by(claim, |owner| is_owner_here(core, owner))
    {
        // The claimant's own stale lock. Perhaps nobody else will ever use this key and remove it.
        publish::remove(&core.layout, &layout::lock_name(key), context)?;
    }
    let path = || core.layout.lock_path(key);
    match (claim, access) {
        (_, Access::Mine(found)) => Ok(found.lock),
        (Claim::Token(token), _) => Err(lost(core, key, *token, context)),
        (Claim::Holder(_), Access::Free(_)) => Err(context.error(ErrorKind::NotLocked).with_path(path())),
        (Claim::Holder(holder), Access::Other(found)) => Err(context
            .error(ErrorKind::NotLockHolder)
            .with_claimant(holder.clone())
            .with_holder(found.lock.holder)
            .with_path(path())),
    }
}
