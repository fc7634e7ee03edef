//! Changes of lock files. Those of named holders are told to the log, because such a lock outlives its process (I4).

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
use crate::{Key, LockToken, Result};

/// A change of a lock file that was made under the latch. If the log was not told, nothing of it has to be on the disk.
#[must_use = "the change may have to be synced when the latch is left"]
pub(super) struct LockChange<'a> {
    told: Option<Unsynced<'a>>,
    key: Key,
    /// The token of the lock that there is now. `None`: there is none.
    token: Option<LockToken>,
}

impl<'a> LockChange<'a> {
    /// Publishes this lock.
    pub(super) fn publish(
        core: &'a Core,
        latch: &Latch,
        lock: &LockFile,
        context: Context<'_>,
        publish: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let text = || lock.to_text();
        Self::make(core, latch, lock, Kind::Locked, text, context, publish).map(|((), change)| change)
    }

    /// Publishes this lock in the place of the same one with another lease. The old file may be all that tells of the
    /// lock, and the new one is not synced. So the frame is, while the old one is still there: with relaxed durability
    /// only if no earlier frame of the lock will be there.
    pub(super) fn renew(
        core: &'a Core,
        latch: &Latch,
        lock: &LockFile,
        context: Context<'_>,
        publish: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let told = tell(core, latch, lock, Kind::Locked, || lock.to_text(), context)?;
        let synced = match &told {
            Some(told) if is_durable(core) || !told.follows_one_of(&lock.key, lock.token) => {
                told.sync(context)
            }
            Some(_) | None => Ok(()),
        };
        Self::made(core, lock, Kind::Locked, told, synced.and_then(|()| publish()), context)
            .map(|((), change)| change)
    }

    /// Removes this lock.
    pub(super) fn remove<T>(
        core: &'a Core,
        latch: &Latch,
        lock: &LockFile,
        context: Context<'_>,
        remove: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Self)> {
        Self::make(core, latch, lock, Kind::Unlocked, Vec::new, context, remove)
    }

    fn make<T>(
        core: &'a Core,
        latch: &Latch,
        lock: &LockFile,
        kind: Kind,
        text: impl FnOnce() -> Vec<u8>,
        context: Context<'_>,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Self)> {
        let told = tell(core, latch, lock, kind, text, context)?;
        Self::made(core, lock, kind, told, make(), context)
    }

    fn made<T>(
        core: &Core,
        lock: &LockFile,
        kind: Kind,
        told: Option<Appended<'a>>,
        made: Result<T>,
        context: Context<'_>,
    ) -> Result<(T, Self)> {
        let (made, told) = Appended::settle(told, made, context)?;
        let token = (kind == Kind::Locked).then_some(lock.token);
        match (&told, &core.log, token) {
            (Some(told), _, Some(token)) if !is_durable(core) => told.remember_lock(&lock.key, token),
            (Some(_), Some(log), None) => log.forget_lock(&lock.key),
            _ => {}
        }
        Ok((made, Self { told, key: lock.key.clone(), token }))
    }

    /// Makes the change durable, if the store is, when the latch is left. If that fails, the change is taken back: the lock
    /// file is `before` again, or there is none. Waiters are notified of that.
    pub(super) fn sync(&self, core: &Core, before: Option<&LockFile>, context: Context<'_>) -> Result<()> {
        let Self { told, key, token } = self;
        let Some(told) = told.as_ref().filter(|_| is_durable(core)) else { return Ok(()) };
        let Err(error) = told.sync(context) else { return Ok(()) };
        let undo = || -> Result<bool> {
            let Some(_latch) = core.enter_within(key, &Limits::best_effort(), context)? else {
                return Ok(false);
            };
            let is_ours = match (snapshot(core, key, context)?, token) {
                (Snapshot::Lock(found), Some(token)) => found.lock.token == *token,
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
    lock: &LockFile,
    kind: Kind,
    text: impl FnOnce() -> Vec<u8>,
    context: Context<'_>,
) -> Result<Option<Appended<'a>>> {
    let Some(log) = core.log.as_ref().filter(|_| !lock.holder.is_process_bound()) else { return Ok(None) };
    let text = text();
    let frame = Frame::new(kind, lock.token.get(), &lock.key, &text);
    log.append(latch, &core.options, &lock.key, &frame, context).map(Some)
}
