//! The guard: a held lock as a value.

use std::fmt;
use std::future::ready;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::holds::{self, Arrival, Entered};
use super::keep_alive::KeepAlive;
use crate::compute::{Call, Held};
use crate::process::ProcessId;
use crate::store::calls::{Calls, block};
use crate::trace;
use crate::{
    Acquired, Claim, Error, ErrorKind, Holder, Json, Key, LockInfo, LockOptions, LockToken, RawRecord,
    ReadOptions, RecordStore,
};
use crate::{RemoveOptions, Result, StoreIdentity, TransactionRecord, WaitOptions, WriteOptions};

/// A held lock. Nobody else changes the record until the guard is dropped or its lease expires. Through the guard of a
/// [shared](LockOptions::shared) lock, it can only be read: a change is [`ErrorKind::LockShared`].
///
/// Created by [`RecordStoreExt::lock`](crate::RecordStoreExt::lock), or by
/// [`lock_owned`](crate::RecordStoreExt::lock_owned) as an [`OwnedLockGuard`](crate::OwnedLockGuard). Reads,
/// writes and removals through the guard are *fenced*: they succeed only while exactly this acquisition's
/// lock is live. A holder that outlasts its lease changes nothing and gets [`ErrorKind::LockLost`].
///
/// Dropping the guard releases the lock, also during a panic, and reports nothing; use
/// [`release`](LockGuard::release) to learn that the lock was lost. If the holder had the lock already, the
/// new guard shares the lock and its token, and the last of these guards releases it. A lock that the caller
/// acquired by [`acquire_lock`](crate::RecordStoreExt::acquire_lock) stays until the caller releases it. In a
/// forked child the guard is useless: every operation is [`ErrorKind::LockLost`].
///
/// # Pitfalls
///
/// * `let _ = store.lock(…)?` drops the guard, and so the lock, at once. Name it: `let _guard = …`.
/// * `std::process::exit` runs no destructors. The kernel then frees a lock that is bound to the process;
///   the lock of a named holder stays until its lease expires.
///
/// ```
/// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// let guard = store.lock("visits", LockOptions::new())?;
/// let visits: u64 = guard.read()?.map_or(0, |record| record.result);
/// guard.write(&(visits + 1))?;
/// guard.release()?;
/// # Ok::<(), record_store::Error>(())
/// ```
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct LockGuard<'a, S: RecordStore + ?Sized> {
    store: StoreRef<'a, S>,
    key: Key,
    holder: Holder,
    token: LockToken,
    hold_timeout: Option<Duration>,
    /// The process that acquired the lock: a forked child has a copy of the guard, but not the lock.
    process: ProcessId,
    /// The guards of this process share the lock. `None`: the store has no identity, so they cannot be counted.
    counted_in: Option<StoreIdentity>,
    /// The guard has been released, or must not release a lock that it shares.
    is_done: AtomicBool,
    keep_alive: Mutex<Option<KeepAlive>>,
}

/// A drop waits this long for a process that is stopped in the middle of an operation on the key.
pub(crate) const DROP_PATIENCE: Duration = Duration::from_secs(1);

/// The guard's store.
enum StoreRef<'a, S: ?Sized> {
    Borrowed(&'a S),
    Owned(Arc<S>),
}

impl<S: ?Sized> Deref for StoreRef<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        match self {
            StoreRef::Borrowed(store) => store,
            StoreRef::Owned(store) => store,
        }
    }
}

impl<S: RecordStore + ?Sized + 'static> LockGuard<'static, S> {
    pub(crate) fn acquire_owned(store: &Arc<S>, key: Key, options: LockOptions) -> Result<Self> {
        block("acquire_lock", Self::acquire_owned_by(&**store, store, key, options))
    }

    pub(crate) async fn acquire_owned_by(
        calls: &(impl Calls + ?Sized),
        store: &Arc<S>,
        key: Key,
        options: LockOptions,
    ) -> Result<Self> {
        Self::acquire_by(calls, StoreRef::Owned(Arc::clone(store)), key, options).await
    }
}

impl<'a, S: RecordStore + ?Sized> LockGuard<'a, S> {
    pub(crate) fn acquire(store: &'a S, key: Key, options: LockOptions) -> Result<Self> {
        block("acquire_lock", Self::acquire_by(store, StoreRef::Borrowed(store), key, options))
    }

    async fn acquire_by(
        calls: &(impl Calls + ?Sized),
        store: StoreRef<'a, S>,
        key: Key,
        options: LockOptions,
    ) -> Result<Self> {
        let counting = Counting::begin(&*store, &key, options);
        let acquired = loop {
            // The store knows only of its own wait.
            let acquired = calls.acquire_lock(&key, counting.options()).await;
            let acquired = acquired.map_err(|error| error.waiting_since(counting.start))?;
            if counting.count(&key, &acquired)? {
                break acquired;
            }
            calls.wait(|| thread::sleep(COUNTING_PAUSE)).await;
        };
        let counted_in = store.identity_raw();
        Ok(Self {
            store,
            key,
            holder: counting.options.resolve_holder(),
            token: acquired.token,
            hold_timeout: counting.options.get_hold_timeout(),
            process: ProcessId::current(),
            counted_in,
            is_done: AtomicBool::new(counted_in.is_none() && acquired.reentrant),
            keep_alive: Mutex::new(None),
        })
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn hold_timeout(&self) -> Option<Duration> {
        self.hold_timeout
    }

    /// The locked record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The holder of the lock.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The fencing token of this acquisition.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.token
    }

    /// Reads the record. `Ok(None)`: there is none. There is no lock to wait for, but a file store may wait for a
    /// process that is stopped in the middle of an operation: [`read_with`](LockGuard::read_with) sets a limit.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock is no longer live; [`ErrorKind::Decode`],
    /// [`ErrorKind::CorruptRecord`], [`ErrorKind::Io`] and similar as for
    /// [`RecordStoreExt::read`](crate::RecordStoreExt::read).
    pub fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        self.read_with(ReadOptions::new())
    }

    /// [`read`](LockGuard::read) with options: a timeout or a cancellation. The claim is that of the guard.
    ///
    /// # Errors
    ///
    /// As for [`read`](LockGuard::read), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`].
    pub fn read_with<R: DeserializeOwned>(
        &self,
        options: ReadOptions,
    ) -> Result<Option<TransactionRecord<R>>> {
        self.read_raw(options)?.map(|record| record.decode("read", self.key.clone())).transpose()
    }

    pub(crate) fn read_raw(&self, options: ReadOptions) -> Result<Option<RawRecord>> {
        let claim = self.claim("read")?;
        self.store.read_raw(&self.key, options.claim(claim))
    }

    /// Writes the record, fenced by this acquisition's token.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock is no longer live, [`ErrorKind::Encode`] if JSON
    /// cannot represent the result, [`ErrorKind::Io`] if the operating system refuses. The old record
    /// stays, unless [`Error::is_outcome_unknown`]. The lock stays as it is. The error
    /// [has the result](Error::unstored).
    pub fn write<R: Serialize + ?Sized>(&self, result: &R) -> Result<()> {
        self.write_with(result, WriteOptions::new())
    }

    /// [`write`](LockGuard::write) with options: a time to live, a timeout or a cancellation. The claim is that of the
    /// guard.
    ///
    /// # Errors
    ///
    /// As for [`write`](LockGuard::write), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`].
    pub fn write_with<R: Serialize + ?Sized>(&self, result: &R, options: WriteOptions) -> Result<()> {
        self.write_raw(&Json::encode_result("write", &self.key, result)?, options)
    }

    pub(crate) fn write_raw(&self, result: &Json, options: WriteOptions) -> Result<()> {
        let written = self
            .claim("write")
            .and_then(|claim| self.store.write_raw(&self.key, result, options.claim(claim)));
        // The caller may have computed it under this lock and have no other copy (I14).
        written.map_err(|error| error.with_unstored(result.clone()))
    }

    /// Removes the record, fenced by this acquisition's token. `Ok(false)`: there was none.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock is no longer live, [`ErrorKind::Io`] if the
    /// operating system refuses. The lock stays as it is.
    pub fn remove(&self) -> Result<bool> {
        self.remove_with(RemoveOptions::new())
    }

    /// [`remove`](LockGuard::remove) with options: a timeout or a cancellation. The claim is that of the guard.
    ///
    /// # Errors
    ///
    /// As for [`remove`](LockGuard::remove), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`].
    pub fn remove_with(&self, options: RemoveOptions) -> Result<bool> {
        let claim = self.claim("remove")?;
        self.store.remove_raw(&self.key, options.claim(claim))
    }

    /// Restarts the lease, with the hold timeout with which the lock was acquired.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock is no longer live: an expired lease cannot be
    /// renewed, even if nobody acquired the lock since. [`ErrorKind::Io`] and similar: the lease runs on as before.
    pub fn renew(&self) -> Result<()> {
        self.renew_with(WaitOptions::new())
    }

    /// [`renew`](LockGuard::renew) with a timeout or a cancellation, because a process that is stopped in the middle of an
    /// operation on the key can delay a renewal.
    ///
    /// # Errors
    ///
    /// As for [`renew`](LockGuard::renew), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]: the lease runs on
    /// as before then, and the renewal can be repeated until it ends.
    pub fn renew_with(&self, options: impl Into<WaitOptions>) -> Result<()> {
        let claim = self.claim("renew")?;
        self.store.renew_raw(&self.key, &claim, self.hold_timeout, options.into())
    }

    /// The rest of the lease. `Ok(None)`: it has no lease.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock is no longer live.
    pub fn remaining(&self) -> Result<Option<Duration>> {
        block("remaining", self.info("remaining", &*self.store)).map(|info| info.remaining())
    }

    async fn info(&self, operation: &'static str, calls: &(impl Calls + ?Sized)) -> Result<LockInfo> {
        self.claim(operation)?;
        self.own(operation, calls.lock_info(&self.key).await?)
    }

    /// The key's live lock, if it is that of this acquisition.
    pub(crate) fn own(&self, operation: &'static str, live: Option<LockInfo>) -> Result<LockInfo> {
        live.and_then(|info| info.held_with(self.token).cloned()).ok_or_else(|| self.lost(operation))
    }

    /// Whether this acquisition's lock is still live. The answer may be outdated when it arrives; only
    /// the changes through the guard are fenced.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CorruptLock`], [`ErrorKind::Io`] and similar if that cannot be determined.
    pub fn is_held(&self) -> Result<bool> {
        match self.remaining() {
            Ok(_) => Ok(true),
            Err(error) if error.is_lock_lost() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Releases the lock, and reports if it was lost before. While other guards share the lock, it leaves the
    /// lock to the last one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock was no longer live: the work that was done under
    /// it may have overlapped with another holder's. [`ErrorKind::Io`] if the operating system refuses; the
    /// lock then stays until its lease expires or the process ends.
    pub fn release(self) -> Result<()> {
        self.release_with(WaitOptions::new())
    }

    /// [`release`](LockGuard::release) with a timeout or a cancellation, because a process that is stopped in the middle of
    /// an operation on the key can delay a release.
    ///
    /// # Errors
    ///
    /// As for [`release`](LockGuard::release), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]. The guard is
    /// gone then, but the lock is not released: it stays until its lease expires or the process ends. A
    /// [`release_lock`](crate::RecordStoreExt::release_lock) with the [token](LockGuard::token) releases it earlier, and
    /// so does the next guard of the holder.
    pub fn release_with(self, options: impl Into<WaitOptions>) -> Result<()> {
        block("release_lock", self.release_and_report(&*self.store, options.into()))
    }

    pub(crate) async fn release_and_report(
        &self,
        calls: &(impl Calls + ?Sized),
        options: WaitOptions,
    ) -> Result<()> {
        let checked = if self.is_last() { Ok(()) } else { self.info("release_lock", calls).await.map(drop) };
        let released = self.release_by(calls, options).await;
        match checked {
            // Such a store can only be asked by a change.
            Err(error) if error.kind() == ErrorKind::Unsupported => released,
            checked => checked.and(released),
        }
    }

    /// Whether its release reports a loss. For the others it is checked before, as long as they count: afterwards the last
    /// one may release the lock.
    fn is_last(&self) -> bool {
        match self.counted_in {
            Some(store) => holds::is_only(store, &self.key, self.token),
            None => !self.is_done.load(Ordering::Acquire),
        }
    }

    pub(crate) fn release_within(&self, options: WaitOptions) -> Result<()> {
        block("release_lock", self.release_by(&*self.store, options))
    }

    /// Releases the lock while operations through the guard may still be running. Later ones are refused.
    pub(crate) async fn release_by(&self, calls: &(impl Calls + ?Sized), options: WaitOptions) -> Result<()> {
        let claim = self.claim("release_lock")?;
        let is_done = self.is_done.swap(true, Ordering::AcqRel);
        // Stopped before the release, which it would report as a loss.
        if let Some(keep_alive) = self.take_keep_alive() {
            calls.wait(|| drop(keep_alive)).await;
        }
        if is_done {
            return Ok(());
        }
        let release = calls.release_lock(&self.key, &claim, options);
        let Some(store) = self.counted_in else { return release.await };
        let Some(last) = holds::leave(store, &self.key, self.token) else { return Ok(()) };
        let released = release.await;
        last.end(released.as_ref().map_or_else(Error::is_lock_lost, |()| true));
        released
    }

    /// Leaves the lock to be released by its token or its holder.
    pub(crate) fn leave_locked(&self) -> LockToken {
        if !self.is_done.swap(true, Ordering::AcqRel)
            && let Some(store) = self.counted_in
        {
            holds::make_explicit(store, &self.key, self.token);
        }
        self.token
    }

    /// Whether its drop has something to do in this process: a release, or the end of a keep-alive.
    #[cfg(feature = "tokio")]
    pub(crate) fn needs_release(&self) -> bool {
        // The process first: in a forked child the mutex may have been inherited locked.
        self.process.is_here()
            && (!self.is_done.load(Ordering::Acquire)
                || self.keep_alive.lock().unwrap_or_else(PoisonError::into_inner).is_some())
    }

    fn take_keep_alive(&self) -> Option<KeepAlive> {
        self.keep_alive.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The claim by token, if this is the process that acquired the lock.
    pub(crate) fn claim(&self, operation: &'static str) -> Result<Claim> {
        if self.process.is_here() { Ok(Claim::Token(self.token)) } else { Err(self.lost(operation)) }
    }

    fn lost(&self, operation: &'static str) -> Error {
        let error = Error::new(ErrorKind::LockLost, operation).with_key(&self.key).with_token(self.token);
        trace::lost(error)
    }

    /// [`keep_alive`](LockGuard::keep_alive) through this handle on the guard's store.
    pub(crate) fn keep_alive_through(
        &self,
        store: impl RecordStore + 'static,
        on_loss: impl FnOnce(Error) + Send + 'static,
    ) -> Result<()> {
        let claim = self.claim("renew")?;
        let Some(hold_timeout) = self.hold_timeout else { return Ok(()) };
        self.renew()?;
        let key = self.key.clone();
        let renew = move |wait| store.renew_raw(&key, &claim, Some(hold_timeout), wait);
        let started = KeepAlive::start(hold_timeout, renew, on_loss).map_err(|source| {
            Error::new(ErrorKind::Thread, "keep_alive").with_key(&self.key).with_source(source)
        })?;
        let mut keep_alive = self.keep_alive.lock().unwrap_or_else(PoisonError::into_inner);
        // A release marks the guard first and then stops what it finds here.
        let (ended, outcome) = if self.is_done.load(Ordering::Acquire) && self.counted_in.is_some() {
            (Some(started), Err(self.lost("renew")))
        } else {
            (keep_alive.replace(started), Ok(()))
        };
        drop(keep_alive);
        // Joined without the mutex.
        drop(ended);
        outcome
    }
}

/// The pause before a lock is acquired once more.
const COUNTING_PAUSE: Duration = Duration::from_millis(1);

/// The acquisition of a lock whose guard has to be counted.
struct Counting {
    start: Instant,
    options: LockOptions,
    /// `None`: the store has no identity.
    arrival: Option<Arrival>,
}

impl Counting {
    fn begin<S: RecordStore + ?Sized>(store: &S, key: &Key, options: LockOptions) -> Self {
        let holder = options.resolve_holder();
        let arrival = store.identity_raw().map(|store| Arrival::begin(store, key));
        Self { start: Instant::now(), options: options.holder(holder), arrival }
    }

    /// The options of an acquisition. Without a count there is only one.
    fn options(&self) -> LockOptions {
        let options = self.options.clone();
        if self.arrival.is_none() {
            return options;
        }
        options.wait(self.options.get_wait().since(self.start))
    }

    /// Counts the guard. `false`: another thread is just releasing the same lock for the same holder. After the end of
    /// that, it has to be acquired again.
    fn count(&self, key: &Key, acquired: &Acquired) -> Result<bool> {
        let (holder, is_shared) = (self.options.resolve_holder(), self.options.get_slots().is_some());
        let enter = |arrival: &Arrival| arrival.enter(acquired, &holder, is_shared);
        if self.arrival.as_ref().is_none_or(|arrival| enter(arrival) == Entered::Counted) {
            return Ok(true);
        }
        let timeout = self.options.get_acquire_timeout();
        if timeout.is_some_and(|timeout| self.start.elapsed() >= timeout.max(COUNTING_PAUSE * 40)) {
            let error = Error::new(ErrorKind::LockTimeout, "acquire_lock").with_key(key);
            return Err(error.with_holder(holder).with_waited(self.start.elapsed()));
        }
        Ok(false)
    }
}

impl<S: RecordStore + Clone + 'static> LockGuard<'_, S> {
    /// Renews the lease in the background for as long as the guard lives: long work can then run under a
    /// short lease. A process that hangs or is stopped loses the lock after the hold timeout; one that
    /// works keeps it.
    ///
    /// A thread renews every third of the hold timeout. If it finds the lock lost, or if the lease expired
    /// because it could not be renewed, it calls `on_loss` once with the reason and ends. Without a hold
    /// timeout there is no lease to renew, and the call does nothing.
    ///
    /// For stores that can be cloned: [`FileSystemRecordStore`](crate::FileSystemRecordStore),
    /// [`MemoryRecordStore`](crate::MemoryRecordStore), `Arc<dyn RecordStore>`. For others there is
    /// [`OwnedLockGuard::keep_alive`](crate::OwnedLockGuard::keep_alive).
    ///
    /// ```
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::sync::Arc;
    /// use std::time::{Duration, Instant};
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let guard = store.lock("report", LockOptions::new().hold_timeout(Duration::from_secs(3)))?;
    /// let lost = Arc::new(AtomicBool::new(false));
    /// let flag = Arc::clone(&lost);
    /// guard.keep_alive(move |_reason| flag.store(true, Ordering::Relaxed))?;
    /// // Work for hours, and check `lost` from time to time.
    /// guard.write("done")?;
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockLost`] if this acquisition's lock is no longer live, or the error of its renewal;
    /// [`ErrorKind::Thread`]. Nothing new runs in the background then, but an earlier call stays in effect.
    pub fn keep_alive(&self, on_loss: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        self.keep_alive_through(S::clone(&self.store), on_loss)
    }
}

impl<S: RecordStore + ?Sized> Held for LockGuard<'_, S> {
    fn token(&self) -> LockToken {
        self.token
    }

    fn read(&self, options: ReadOptions) -> Call<'_, Result<Option<RawRecord>>> {
        Box::pin(ready(self.read_raw(options)))
    }

    fn write<'a>(&'a self, result: &'a Arc<Json>, options: WriteOptions) -> Call<'a, Result<()>> {
        Box::pin(ready(self.write_raw(result, options)))
    }

    fn end<'a>(self) -> Call<'a, ()>
    where
        Self: 'a,
    {
        drop(self);
        Box::pin(ready(()))
    }
}

impl<S: RecordStore + ?Sized> Drop for LockGuard<'_, S> {
    fn drop(&mut self) {
        if self.process.is_here() {
            // A drop cannot report an error. The lock then stays until its lease expires or the process
            // ends; `release` reports it.
            let _ = self.release_within(DROP_PATIENCE.into());
        } else {
            // The thread of the keep-alive exists only in the parent: joining it would hang.
            // Another thread may have held the mutex at the fork, so it must not be locked here.
            let keep_alive = self.keep_alive.get_mut().unwrap_or_else(PoisonError::into_inner);
            std::mem::forget(keep_alive.take());
        }
    }
}

impl<S: RecordStore + ?Sized> fmt::Debug for LockGuard<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("key", &self.key)
            .field("holder", &self.holder)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
