//! Taking, renewing and giving back locks.

use std::time::{Duration, Instant};

use super::FileSystemRecordStore;
use super::clock::Reading;
use super::latch::Latch;
use super::layout::{self, Context};
use super::lease::{self, Lease, Term};
use super::list::Names;
use super::look::{Judged, Look, patiently};
use super::open::Durability;
use super::owner::Owner;
use super::publish::{self, Staged};
use super::sidecar::LockFile;
use super::wait::{Deadline, Manner, Place, Round, Turn, soon};
use crate::trace;
use crate::{Acquired, Claim, Error, Holder, Key, Listing, LockInfo, LockOptions, LockState, Result};

impl FileSystemRecordStore {
    pub(super) fn take_lock(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        let context = Context::new("acquire_lock", key);
        self.writable(context)?;
        let deadline = Deadline::after(options.get_acquire_timeout());
        let manner = Manner::InLine(options.get_cancellation());
        let taken = self.wait(key, manner, deadline, context, |place| {
            self.take_round(key, holder, options, place, deadline, context)
        });
        // Only who was in line can have been waited for.
        if taken.is_err() && options.get_acquire_timeout() != Some(Duration::ZERO) {
            self.clear_blank(key, context);
        }
        taken
    }

    /// One attempt to take the lock. Everything that decides is seen under the latch (I1).
    fn take_round(
        &self,
        key: &Key,
        holder: &Holder,
        options: &LockOptions,
        place: Option<&Place>,
        deadline: Deadline,
        context: Context<'_>,
    ) -> Result<Round<Acquired>> {
        let claim = Claim::Holder(holder.clone());
        // A look first: who has to wait anyway stands in nobody's way. Who was called need not look.
        if !place.is_some_and(Place::is_called)
            && let Judged::Other(found) = self.judge(key, &claim, context)?
        {
            return Ok(Round::Held(found));
        }
        let here = Owner::here(&self.layout, context)?;
        let by = deadline.for_latch();
        // Who may be cancelled does not wait in the kernel, where nothing would wake it.
        let a_try = options.get_cancellation().map(|_| soon());
        let Some(latch) = Latch::enter_by(&self.layout, key, by.into_iter().chain(a_try).min(), context)?
        else {
            let timed_out = by.is_some_and(|by| Instant::now() >= by);
            return if timed_out {
                Err(self.timed_out(key, None, deadline, context))
            } else {
                Ok(Round::Again)
            };
        };
        let judged = self.judge(key, &claim, context)?;
        let now = Reading::now();
        let lease = Lease::starting(&now, options.get_hold_timeout());
        match judged {
            Judged::Other(found) => Ok(Round::Held(found)),
            Judged::Mine(found) => Ok(if self.restart_lease(&found.lock, lease, &here, context)? {
                Round::Done(Acquired { token: found.lock.token, reentrant: true })
            } else {
                Round::Again
            }),
            Judged::Free(remains) => {
                if let Turn::Anothers(left) = self.events.turn(key, place, &self.layout) {
                    return Ok(Round::NotYet(left));
                }
                let token =
                    latch.next_token(&self.layout, self.events.last_token(key), remains.token(), context)?;
                let (key, holder, owner) = (key.clone(), holder.clone(), here.name.clone());
                let lock = LockFile { key, holder, token, acquired_at: now.wall, lease, owner };
                self.put_lock(&lock, &remains, &here, context)?;
                if let Look::Lock(last) = &remains {
                    trace::taken_over(&lock.key, token, &last.lock.holder, last.state);
                }
                Ok(Round::Done(Acquired { token, reentrant: false }))
            }
        }
    }

    /// Puts a new lock file in its place, under the latch, where a look found these remains.
    fn put_lock(&self, lock: &LockFile, remains: &Look, here: &Owner, context: Context<'_>) -> Result<()> {
        let (name, text) = (layout::lock_name(&lock.key), lock.to_text());
        if text.len() <= publish::MAX_CREATE_BYTES {
            match remains {
                Look::Absent => return publish::create(&self.layout, &name, &text, context),
                Look::Blank if publish::fill(&self.layout, &name, &text, context)? => return Ok(()),
                // In one step over what is left of the last one.
                Look::Blank | Look::Lock(_) => {}
            }
        }
        self.replace_lock(lock, here, context)
    }

    /// Puts a lock file in the place of another, under the latch. It need not survive a power
    /// loss, which ends every process that could hold it.
    fn replace_lock(&self, lock: &LockFile, here: &Owner, context: Context<'_>) -> Result<()> {
        Staged::new(&self.layout, here, &lock.to_text(), Durability::Relaxed, context)?
            .publish(&layout::lock_name(&lock.key), context)
    }

    pub(super) fn renew_lock(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
        let context = Context::new("renew", key);
        self.writable(context)?;
        let here = Owner::here(&self.layout, context)?;
        let _latch = Latch::enter(&self.layout, key, context)?;
        loop {
            let lock = self.own_lock(key, claim, context)?;
            let lease = Lease::starting(&Reading::now(), hold_timeout);
            if self.restart_lease(&lock, lease, &here, context)? {
                return Ok(());
            }
            // It ran out just now. The next look says so.
        }
    }

    /// Gives a live lock a new lease, under the latch. `false` if the old one ran out before the new
    /// one was there: others may have seen the key free in between, so the lock is gone.
    fn restart_lease(
        &self,
        lock: &LockFile,
        lease: Lease,
        here: &Owner,
        context: Context<'_>,
    ) -> Result<bool> {
        self.replace_lock(&LockFile { lease, ..lock.clone() }, here, context)?;
        if lock.lease.term(&Reading::now()) != Term::Over {
            return Ok(true);
        }
        publish::remove(&self.layout, &layout::lock_name(&lock.key), context)?;
        Ok(false)
    }

    pub(super) fn give_back_lock(&self, key: &Key, claim: &Claim) -> Result<()> {
        let context = Context::new("release_lock", key);
        self.writable(context)?;
        let latch = Latch::enter(&self.layout, key, context)?;
        self.own_lock(key, claim, context)?;
        let name = layout::lock_name(key);
        // For one who waits the file is left, but blank: to write it anew is much cheaper than to
        // make a new one.
        if !(self.events.is_awaited(key) && publish::blank(&self.layout, &name)) {
            publish::remove(&self.layout, &name, context)?;
        }
        // First the latch: those who are woken would only have to wait for it.
        drop(latch);
        self.events.freed(key, &self.layout);
        Ok(())
    }

    /// Removes the lock file if it was left blank for one who waited, and nobody waits any more. What
    /// fails here is only untidy: a blank file is no lock.
    fn clear_blank(&self, key: &Key, context: Context<'_>) {
        let blank = || matches!(self.look(key, context), Ok(Look::Blank));
        if blank()
            && let Ok(Some(_latch)) = Latch::enter_by(&self.layout, key, Some(soon()), context)
            && blank()
            && !self.events.is_awaited(key)
        {
            let _ = publish::remove(&self.layout, &layout::lock_name(key), context);
        }
    }

    /// The live lock that a claim is good for, under the latch; or the error that says why there is
    /// none.
    fn own_lock(&self, key: &Key, claim: &Claim, context: Context<'_>) -> Result<LockFile> {
        let judged = self.judge(key, claim, context)?;
        if let Judged::Free(Look::Lock(found)) = &judged
            && lease::is_claimants(&found.lock, claim, |owner| self.is_owner_here(owner))
        {
            // The claimant's own, but it ran out. It counts for nothing, and nobody else may come
            // for this key to clear it away.
            publish::remove(&self.layout, &layout::lock_name(key), context)?;
        }
        let path = Some(self.layout.lock_path(key));
        let (operation, key) = (context.operation, key.clone());
        match (claim, judged) {
            (_, Judged::Mine(found)) => Ok(found.lock),
            (Claim::Token(token), _) => {
                Err(trace::lost(Error::LockLost { operation, key, token: *token, path }))
            }
            (Claim::Holder(_), Judged::Free(_)) => Err(Error::NotLocked { operation, key, path }),
            (Claim::Holder(holder), Judged::Other(found)) => Err(Error::NotLockHolder {
                operation,
                key,
                holder: holder.clone(),
                current: found.lock.holder,
                path,
            }),
        }
    }

    pub(super) fn break_lock_of(&self, key: &Key) -> Result<bool> {
        let context = Context::new("break_lock", key);
        self.writable(context)?;
        let latch = Latch::enter(&self.layout, key, context)?;
        let removed = publish::remove(&self.layout, &layout::lock_name(key), context)?;
        drop(latch);
        self.events.freed(key, &self.layout);
        Ok(removed)
    }

    pub(super) fn live_lock(&self, key: &Key) -> Result<Option<LockInfo>> {
        match self.look(key, Context::new("lock_info", key))? {
            Look::Lock(found) if found.state == LockState::Held => Ok(Some(self.info(*found))),
            _ => Ok(None),
        }
    }

    pub(super) fn wait_for_no_lock(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
        let context = Context::new("wait_for_lock", key);
        let deadline = Deadline::after(timeout);
        let waited =
            self.wait(key, Manner::Watching, deadline, context, |_| match self.look(key, context)? {
                Look::Lock(found) if found.state == LockState::Held => Ok(Round::Held(found)),
                _ => Ok(Round::Done(())),
            });
        match waited {
            Ok(()) => Ok(true),
            Err(error) if error.is_timeout() => Ok(false),
            Err(error) => Err(error),
        }
    }

    pub(super) fn list_locks(&self) -> Result<Listing<'_, LockInfo>> {
        let names = Names::locks(&self.layout, Context::whole("locks"))?;
        Ok(Box::new(names.filter_map(|entry| match entry {
            Ok(entry) => {
                let (name, key) = entry.into_lock();
                let context = Context { operation: "locks", key: key.as_ref() };
                patiently(|| self.lock_inside(&name, context)).transpose()
            }
            Err(error) => Some(Err(error)),
        })))
    }

    /// Clears away the lock files that count for nothing: so many.
    pub(super) fn sweep_locks(&self, context: Context<'static>) -> Result<usize> {
        let mut swept = 0;
        for entry in Names::locks(&self.layout, context)? {
            let (name, key) = entry?.into_lock();
            // A name that is a hash is not told apart from a live lock without the key inside. What
            // cannot be understood is left for people to see.
            let inside = || Some(self.lock_inside(&name, context).ok()??.key().clone());
            if let Some(key) = key.or_else(inside)
                && layout::lock_name(&key) == name
                && self.is_dead_lock(&key, context)
            {
                let _latch = Latch::enter(&self.layout, &key, context)?;
                if self.is_dead_lock(&key, context) {
                    swept += usize::from(publish::remove(&self.layout, &name, context)?);
                }
            }
        }
        Ok(swept)
    }

    /// Whether there is a lock file that counts for nothing.
    fn is_dead_lock(&self, key: &Key, context: Context<'_>) -> bool {
        match self.look(key, context) {
            Ok(Look::Lock(found)) => found.state != LockState::Held,
            Ok(Look::Blank) => !self.events.is_awaited(key),
            Ok(Look::Absent) | Err(_) => false,
        }
    }

    /// The lock in a file of the listing. `None` if it is gone meanwhile, or was never finished.
    fn lock_inside(&self, name: &str, context: Context<'_>) -> Result<Option<LockInfo>> {
        let path = || self.layout.root().join(name);
        let now = Reading::now();
        let opened = layout::open_existing(&self.layout.dir, name)
            .map_err(|refusal| context.refused(refusal, "open the lock", path()))?;
        let Some(opened) = opened else { return Ok(None) };
        match self.read_lock(&opened, &now, context, path)? {
            Look::Lock(found) if layout::lock_name(&found.lock.key) != name => Err(match context.key {
                Some(key) => Error::KeyMismatch {
                    operation: context.operation,
                    key: key.clone(),
                    found: found.lock.key,
                    path: path(),
                },
                None => Error::CorruptLock {
                    operation: context.operation,
                    key: None,
                    reason: "the file is not named for the key inside".into(),
                    path: path(),
                    source: None,
                },
            }),
            Look::Lock(found) => Ok(Some(self.info(*found))),
            Look::Absent | Look::Blank => Ok(None),
        }
    }
}
