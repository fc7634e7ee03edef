//! Acquiring a lock.

use super::lock_change::LockChange;
use super::renew::{restart_lease, stage_lock};
use super::wait::{Attempt, Role, timed_out, wait};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout;
use crate::filesystem::disk::lock_file::{Acquisition, LockFile};
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::protocol::access::{Access, Found, Snapshot, access, shared, snapshot};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::lease::Lease;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::numbers;
use crate::filesystem::protocol::owner::Owner;
use crate::filesystem::wait_queue::{Turn, Waiter};
use crate::trace;
use crate::{Acquired, Claim, Holder, Key, LockOptions, LockToken, Result};

pub(crate) fn acquire_lock(core: &Core, key: &Key, options: &LockOptions) -> Result<Acquired> {
    let context = Context::new("acquire_lock", key);
    core.check_writable(context)?;
    let limits = Limits::new(options.get_wait());
    let request = Request { core, key, holder: options.resolve_holder(), options, limits: &limits, context };
    let acquired = wait(core, key, Role::Waiter, &limits, context, |waiter| request.attempt(waiter));
    core.checkpoint_if_full();
    // Only a call that was in the queue can be the one that a blank file was left for.
    if acquired.is_err() && options.get_acquire_timeout().is_none_or(|timeout| !timeout.is_zero()) {
        remove_blank(core, key, context);
    }
    acquired
}

struct Request<'a> {
    core: &'a Core,
    key: &'a Key,
    holder: Holder,
    options: &'a LockOptions,
    limits: &'a Limits,
    context: Context<'a>,
}

impl Request<'_> {
    /// One attempt. Everything that decides is checked under the latch (I1).
    fn attempt(&self, waiter: Option<&Waiter>) -> Result<Attempt<Acquired>> {
        let Self { core, key, options, limits, context, .. } = *self;
        let claim = Claim::Holder(self.holder.clone());
        let may_join = |found: &Found| found.has_room(options.get_slots());
        // Checked first without the latch: a call that has to wait anyway does not block others. A notified
        // waiter skips the check.
        if !waiter.is_some_and(Waiter::is_notified)
            && let Access::Other(found) = access(core, key, &claim, context)?
            && !may_join(&found)
        {
            return Ok(Attempt::Held(found));
        }
        let here = Owner::here(&core.layout, context)?;
        let Some(latch) = core.enter_within(key, &limits.for_latch(), context)? else {
            limits.check_cancelled(context)?;
            return Err(timed_out(core, key, None, limits, context));
        };
        match access(core, key, &claim, context)? {
            Access::Other(found) if may_join(&found) => self.join(found, latch, waiter, &here),
            Access::Other(found) => Ok(Attempt::Held(found)),
            Access::Mine(found) => self.acquire_again(&found, &latch, &here),
            Access::Free(last) => self.acquire_free(&last, latch, waiter, &here),
        }
    }

    fn acquire_free(
        &self,
        last: &Snapshot,
        latch: Latch,
        waiter: Option<&Waiter>,
        here: &Owner,
    ) -> Result<Attempt<Acquired>> {
        let Self { core, key, context, .. } = *self;
        if let Turn::Other(left) = core.events.turn(key, waiter, &core.layout) {
            return Ok(Attempt::Yield(left));
        }
        self.wait_until_durable()?;
        let lock = LockFile::new(key.clone(), self.next(&latch, last.token(), here)?);
        let staged = match creation(core, &lock, last) {
            Creation::InPlace => None,
            Creation::Staged => Some(stage_lock(core, &lock, here, context)?),
        };
        let before = match last {
            Snapshot::Lock(last) => Some(&last.lock),
            Snapshot::Absent | Snapshot::Blank | Snapshot::Unfinished => None,
        };
        let publish = || publish_lock(core, &lock, last, staged, here, context);
        let ((), change) = LockChange::make(core, &latch, key, (before, Some(&lock)), context, publish)?;
        drop(latch);
        // If it is not synced, the stale lock of a named holder would be live again after a restart with a clock that is
        // behind.
        if lock.has_named() {
            change.sync(core, None, context)?;
        }
        if let Snapshot::Lock(last) = last {
            trace::taken_over(key, lock.newest, &last.lock.acquisition.holder, last.state);
        }
        Ok(self.acquired(&lock, lock.newest, waiter))
    }

    /// Shares the lock with those that share it already.
    fn join(
        &self,
        found: Box<Found>,
        latch: Latch,
        waiter: Option<&Waiter>,
        here: &Owner,
    ) -> Result<Attempt<Acquired>> {
        let Self { core, key, context, .. } = *self;
        // A waiter for an exclusive lock may be the first one. It was notified, so one that is stopped is skipped.
        if let Turn::Other(_) = core.events.turn(key, waiter, &core.layout) {
            return Ok(Attempt::Held(found));
        }
        self.wait_until_durable()?;
        let newcomer = self.next(&latch, found.lock.newest, here)?;
        let token = newcomer.token;
        let Some(lock) = found.with(newcomer) else { return Ok(Attempt::Held(found)) };
        let staged = stage_lock(core, &lock, here, context)?;
        let publish = || staged.publish_lock(&layout::lock_name(key), context);
        let states = (Some(&found.lock), Some(&lock));
        let ((), change) = LockChange::make(core, &latch, key, states, context, publish)?;
        drop(latch);
        if !self.holder.is_process_bound() {
            change.sync(core, Some(&found.lock), context)?;
        }
        Ok(self.acquired(&lock, token, waiter))
    }

    /// The holder has the lock already: it restarts the lease.
    fn acquire_again(&self, found: &Found, latch: &Latch, here: &Owner) -> Result<Attempt<Acquired>> {
        let Self { core, key, options, context, .. } = *self;
        if found.lock.is_shared() && options.get_slots().is_none() {
            return Err(shared(core, key, found, context));
        }
        let lease = Lease::starting(&Reading::now(), options.get_hold_timeout());
        if !restart_lease(core, latch, found, lease, here, context)? {
            return Ok(Attempt::Retry);
        }
        Ok(Attempt::Done(Acquired::reentrant(found.lock.acquisition.token)))
    }

    /// Nothing is told to the log of a lock that is bound to a process. After a power loss the lock that was released before it
    /// must not be there again, with a smaller token.
    fn wait_until_durable(&self) -> Result<()> {
        if self.holder.is_process_bound() {
            self.core.wait_until_durable(self.key, self.context)?;
        }
        Ok(())
    }

    /// The next acquisition of the key. Its token exceeds the last one.
    fn next(&self, latch: &Latch, last: LockToken, here: &Owner) -> Result<Acquisition> {
        let Self { core, key, options, context, .. } = *self;
        let now = Reading::now();
        let token = numbers::next_token(core, latch, key, last, context)?;
        Ok(Acquisition {
            holder: self.holder.clone(),
            token,
            acquired_at: now.wall,
            lease: Lease::starting(&now, options.get_hold_timeout()),
            owner: here.name.clone(),
            note: options.get_note().map(str::to_owned),
            slots: options.get_slots(),
        })
    }

    fn acquired(&self, lock: &LockFile, token: LockToken, waiter: Option<&Waiter>) -> Attempt<Acquired> {
        let own = lock.acquisitions().find(|acquisition| acquisition.token == token);
        if let Some(end) = own.and_then(|own| own.lease.deadline) {
            self.core.events.leased(self.key, end, waiter);
        }
        let acquired = Acquired::new(token);
        if lock.has_room() { Attempt::Shared(acquired) } else { Attempt::Done(acquired) }
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
