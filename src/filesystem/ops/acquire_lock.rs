//! Acquiring a lock.

use super::lock_change::LockChange;
use super::renew::{restart_lease, stage_lock};
use super::wait::{Attempt, Role, timed_out, wait};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout;
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::protocol::access::{Access, Snapshot, access, snapshot};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::lease::Lease;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::filesystem::wait_queue::{Turn, Waiter};
use crate::trace;
use crate::{Acquired, Claim, Holder, Key, LockOptions, LockToken, Result};

pub(crate) fn acquire_lock(core: &Core, key: &Key, options: &LockOptions) -> Result<Acquired> {
    let context = Context::new("acquire_lock", key);
    core.check_writable(context)?;
    let holder = options.resolve_holder();
    let limits = Limits::new(options.get_wait());
    let acquired = wait(core, key, Role::Waiter, &limits, context, |waiter| {
        attempt(core, key, &holder, options, waiter, &limits, context)
    });
    core.checkpoint_if_full();
    // Only a call that was in the queue can be the one that a blank file was left for.
    if acquired.is_err() && options.get_acquire_timeout().is_none_or(|timeout| !timeout.is_zero()) {
        remove_blank(core, key, context);
    }
    acquired
}

/// One attempt. Everything that decides is checked under the latch (I1).
fn attempt(
    core: &Core,
    key: &Key,
    holder: &Holder,
    options: &LockOptions,
    waiter: Option<&Waiter>,
    limits: &Limits,
    context: Context<'_>,
) -> Result<Attempt<Acquired>> {
    let claim = Claim::Holder(holder.clone());
    // Checked first without the latch: a call that has to wait anyway does not block others. A notified
    // waiter skips the check.
    if !waiter.is_some_and(Waiter::is_notified)
        && let Access::Other(found) = access(core, key, &claim, context)?
    {
        return Ok(Attempt::Held(found));
    }
    let here = Owner::here(&core.layout, context)?;
    let Some(latch) = core.enter_within(key, &limits.for_latch(), context)? else {
        limits.check_cancelled(context)?;
        return Err(timed_out(core, key, None, limits, context));
    };
    let access = access(core, key, &claim, context)?;
    let now = Reading::now();
    let lease = Lease::starting(&now, options.get_hold_timeout());
    match access {
        Access::Other(found) => Ok(Attempt::Held(found)),
        Access::Mine(found) => {
            let Some(change) = restart_lease(core, &latch, &found.lock, lease, &here, context)? else {
                return Ok(Attempt::Retry);
            };
            drop(latch);
            change.sync(core, Some(&found.lock), context)?;
            Ok(Attempt::Done(Acquired::reentrant(found.lock.token)))
        }
        Access::Free(last) => {
            if let Turn::Other(left) = core.events.turn(key, waiter, &core.layout) {
                return Ok(Attempt::Yield(left));
            }
            if holder.is_process_bound() {
                // Nothing is told to the log of this lock. After a power loss the lock that was released before it must not
                // be there again, with a smaller token.
                core.wait_until_durable(key, context)?;
            }
            let last_here = core.last_token(key, context)?;
            let floor = last.token().max(LockToken::new(core.number_floor()));
            let token = latch.next_token(&core.layout, last_here, floor, context)?;
            core.reserve_number(&latch, key, token.get(), context)?;
            let lock = LockFile {
                key: key.clone(),
                holder: holder.clone(),
                token,
                acquired_at: now.wall,
                lease,
                owner: here.name.clone(),
                note: options.get_note().map(str::to_owned),
            };
            let staged = match creation(core, &lock, &last) {
                Creation::InPlace => None,
                Creation::Staged => Some(stage_lock(core, &lock, &here, context)?),
            };
            let publish = || publish_lock(core, &lock, &last, staged, &here, context);
            match &last {
                // Told to the log without a sync: the stale lock of a named holder would be live again after a restart
                // with a clock that is behind.
                Snapshot::Lock(last) if lock.holder.is_process_bound() => {
                    let ((), _unsynced) = LockChange::remove(core, &latch, &last.lock, context, publish)?;
                    drop(latch);
                }
                _ => {
                    let change = LockChange::publish(core, &latch, &lock, context, publish)?;
                    drop(latch);
                    change.sync(core, None, context)?;
                }
            }
            if let Snapshot::Lock(last) = &last {
                trace::taken_over(key, token, &last.lock.holder, last.state);
            }
            if let Some(end) = lock.lease.deadline {
                core.events.leased(key, end, waiter);
            }
            Ok(Attempt::Done(Acquired::new(token)))
        }
    }
}

/// How a lock file comes into being.
enum Creation {
    /// By one write, which is complete or absent.
    InPlace,
    /// Published or replaced atomically.
    Staged,
}

fn creation(core: &Core, lock: &LockFile, last: &Snapshot) -> Creation {
    match last {
        _ if lock.to_text().len() > publish::MAX_CREATE_BYTES => Creation::Staged,
        // A file that needs more than its creation must not be visible before.
        Snapshot::Absent if core.layout.permissions.are_usual() => Creation::InPlace,
        Snapshot::Blank => Creation::InPlace,
        Snapshot::Absent | Snapshot::Unfinished | Snapshot::Lock(_) => Creation::Staged,
    }
}

/// Publishes a new lock file, under the latch, in the place of what the snapshot found.
fn publish_lock(
    core: &Core,
    lock: &LockFile,
    last: &Snapshot,
    staged: Option<Staged<'_>>,
    here: &Owner,
    context: Context<'_>,
) -> Result<()> {
    let name = layout::lock_name(&lock.key);
    if let Some(staged) = staged {
        return staged.publish_lock(&name, context);
    }
    let text = lock.to_text();
    match last {
        Snapshot::Absent => publish::create(&core.layout, &name, &text, context),
        _ if publish::fill(&core.layout, &name, &text, context)? => Ok(()),
        _ => stage_lock(core, lock, here, context)?.publish_lock(&name, context),
    }
}

/// Removes a lock file that was left blank for a waiter, if nobody waits any more. Best effort: a blank file
/// is not a lock.
fn remove_blank(core: &Core, key: &Key, context: Context<'_>) {
    let is_blank = || matches!(snapshot(core, key, context), Ok(Snapshot::Blank));
    if is_blank()
        && let Ok(Some(_latch)) = core.enter_within(key, &Limits::best_effort(), context)
        && is_blank()
        && !core.events.is_awaited(key)
    {
        let _ = publish::remove(&core.layout, &layout::lock_name(key), context);
    }
}
