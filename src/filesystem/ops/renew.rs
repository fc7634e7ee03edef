//! Renewing a lease.

use std::time::Duration;

use super::lock_change::LockChange;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout;
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::access::{Access, Found, Snapshot, access, is_claimed, lost};
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
        let found = own_lock(core, &latch, key, claim, context)?;
        let lease = Lease::starting(&Reading::now(), hold_timeout);
        if restart_lease(core, &latch, &found, lease, &here, context)? {
            drop(latch);
            core.checkpoint_if_full();
            return Ok(());
        }
        // It has just expired. The next check returns the error.
    }
}

/// Gives the acquisition in question, which is in force, a new lease, under the latch. `false`: the old one expired before
/// the new one was published. Other processes may have seen the key free in between, so the acquisition is removed.
pub(super) fn restart_lease(
    core: &Core,
    latch: &Latch,
    found: &Found,
    lease: Lease,
    here: &Owner,
    context: Context<'_>,
) -> Result<bool> {
    let Found { lock, .. } = found;
    let renewed = found.renewed(lease);
    let (old, new) = (&lock.acquisition.lease, &renewed.acquisition.lease);
    let staged = stage_lock(core, &renewed, here, context)?;
    let publish = || {
        // The sync of the frame takes long. Others that have seen the key free must not see it held again.
        if old.term(&Reading::now()) == Term::Over {
            return Ok(false);
        }
        staged.publish_lock(&layout::lock_name(&lock.key), context).map(|()| true)
    };
    let states = (Some(lock), Some(&renewed));
    // The lock stays, so its frame is synced before the file is published.
    let (is_published, _synced) = LockChange::make(core, latch, &lock.key, states, context, publish)?;
    let now = Reading::now();
    let before = old.term(&now);
    if is_published && before != Term::Over {
        if let Some(end) = new.deadline
            && new.term(&now) < before
        {
            core.events.shortened(&lock.key, end);
        }
        return Ok(true);
    }
    let _unsynced = remove_acquisition(core, latch, found, context)?;
    // A waiter may have seen the new lease.
    core.events.freed(&lock.key, &core.layout);
    Ok(false)
}

/// Removes the acquisition in question, under the latch: with the file, unless others share the lock.
pub(super) fn remove_acquisition<'a>(
    core: &'a Core,
    latch: &Latch,
    found: &Found,
    context: Context<'_>,
) -> Result<(bool, LockChange<'a>)> {
    let (key, name) = (&found.lock.key, layout::lock_name(&found.lock.key));
    let rest = found.without();
    let here = rest.as_ref().map(|_| Owner::here(&core.layout, context)).transpose()?;
    let staged = rest.as_ref().zip(here.as_deref());
    let staged = staged.map(|(rest, here)| stage_lock(core, rest, here, context)).transpose()?;
    let remove = || match staged {
        Some(staged) => staged.publish_lock(&name, context).map(|()| true),
        None => publish::remove(&core.layout, &name, context),
    };
    LockChange::make(core, latch, key, (Some(&found.lock), rest.as_ref()), context, remove)
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
) -> Result<Box<Found>> {
    let access = access(core, key, claim, context)?;
    if let Access::Free(Snapshot::Lock(found)) = &access
        && found.lock.acquisitions().any(|acquisition| is_claimed(core, acquisition, claim))
    {
        // The claimant's own stale lock. Perhaps nobody else will ever use this key and remove it.
        let remove = || publish::remove(&core.layout, &layout::lock_name(key), context);
        // Told to the log without a sync: the lock would be live again after a restart with a clock that is behind.
        let states = (Some(&found.lock), None);
        let (_, _unsynced) = LockChange::make(core, latch, key, states, context, remove)?;
    }
    let path = || core.layout.lock_path(key);
    match (claim, access) {
        (_, Access::Mine(found)) => Ok(found),
        (Claim::Token(token) | Claim::Delegated(token), _) => Err(lost(core, key, *token, context)),
        (Claim::Holder(_), Access::Free(_)) => Err(context.error(ErrorKind::NotLocked).with_path(path())),
        (Claim::Holder(holder), Access::Other(found)) => Err(context
            .error(ErrorKind::NotLockHolder)
            .with_claimant(holder.clone())
            .with_holder(found.lock.acquisition.holder)
            .with_path(path())),
    }
}
