//! Acquiring a lock.

use super::renew::{replace_lock, restart_lease};
use super::wait::{Attempt, Role, timed_out, wait};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::lock_file::LockFile;
use crate::filesystem::disk::{layout, publish};
use crate::filesystem::protocol::access::{Access, Snapshot, access, snapshot};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::lease::Lease;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::filesystem::wait_queue::{Turn, Waiter};
use crate::trace;
use crate::{Acquired, Claim, Holder, Key, LockOptions, Result};

pub(crate) fn acquire_lock(core: &Core, key: &Key, options: &LockOptions) -> Result<Acquired> {
    let context = Context::new("acquire_lock", key);
    core.check_writable(context)?;
    let holder = options.resolve_holder();
    let limits = Limits::new(options.get_wait());
    let acquired = wait(core, key, Role::Waiter, &limits, context, |waiter| {
        attempt(core, key, &holder, options, waiter, &limits, context)
    });
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
    let Some(latch) = Latch::enter_within(&core.layout, key, &limits.for_latch(), context)? else {
        limits.check_cancelled(context)?;
        return Err(timed_out(core, key, None, limits, context));
    };
    let access = access(core, key, &claim, context)?;
    let now = Reading::now();
    let lease = Lease::starting(&now, options.get_hold_timeout());
    match access {
        Access::Other(found) => Ok(Attempt::Held(found)),
        Access::Mine(found) => Ok(if restart_lease(core, &found.lock, lease, &here, context)? {
            Attempt::Done(Acquired::reentrant(found.lock.token))
        } else {
            Attempt::Retry
        }),
        Access::Free(last) => {
            if let Turn::Other(left) = core.events.turn(key, waiter, &core.layout) {
                return Ok(Attempt::Yield(left));
            }
            let last_here = core.events.last_token(key, context)?;
            let token = latch.next_token(&core.layout, last_here, last.token(), context)?;
            let lock = LockFile {
                key: key.clone(),
                holder: holder.clone(),
                token,
                acquired_at: now.wall,
                lease,
                owner: here.name.clone(),
            };
            publish_lock(core, &lock, &last, &here, context)?;
            if let Snapshot::Lock(last) = &last {
                trace::taken_over(key, token, &last.lock.holder, last.state);
            }
            Ok(Attempt::Done(Acquired::new(token)))
        }
    }
}

/// Publishes a new lock file, under the latch, in the place of what the snapshot found.
fn publish_lock(
    core: &Core,
    lock: &LockFile,
    last: &Snapshot,
    here: &Owner,
    context: Context<'_>,
) -> Result<()> {
    let (name, text) = (layout::lock_name(&lock.key), lock.to_text());
    if text.len() <= publish::MAX_CREATE_BYTES {
        match last {
            // A file that needs more than its creation must not be visible before.
            Snapshot::Absent if core.layout.permissions.are_usual() => {
                return publish::create(&core.layout, &name, &text, context);
            }
            Snapshot::Blank if publish::fill(&core.layout, &name, &text, context)? => return Ok(()),
            // Published or replaced atomically.
            Snapshot::Absent | Snapshot::Blank | Snapshot::Lock(_) => {}
        }
    }
    replace_lock(core, lock, here, context)
}

/// Removes a lock file that was left blank for a waiter, if nobody waits any more. Best effort: a blank file
/// is not a lock.
fn remove_blank(core: &Core, key: &Key, context: Context<'_>) {
    let is_blank = || matches!(snapshot(core, key, context), Ok(Snapshot::Blank));
    if is_blank()
        && let Ok(Some(_latch)) = Latch::enter_within(&core.layout, key, &Limits::best_effort(), context)
        && is_blank()
        && !core.events.is_awaited(key)
    {
        let _ = publish::remove(&core.layout, &layout::lock_name(key), context);
    }
}
