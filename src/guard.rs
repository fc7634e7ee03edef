//! The guard: a held lock as a value.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::WriteOptions;
use crate::keep_alive::KeepAlive;
use crate::record::encode;
use crate::trace;
use crate::{Claim, Error, Holder, Key, LockOptions, LockToken, RecordStore, Result, TransactionRecord};

/// A held lock. The record is this holder's alone until the guard is dropped or its lease runs out.
///
/// Made by [`RecordStoreExt::lock`](crate::RecordStoreExt::lock). Reads, writes and removals
/// through the guard are *fenced*: they succeed only while exactly this acquisition's lock is live,
/// so a holder that overslept its lease changes nothing and gets [`Error::LockLost`].
///
/// Dropping the guard releases the lock, on panic too, and quietly: if the lock is lost already,
/// nothing happens. Use [`release`](LockGuard::release) to learn of it. A guard that the same
/// holder took while it held the lock already is an inner guard: it shares the token, and only the
/// outermost guard releases. In a forked child the guard is worth nothing: all it does is
/// [`Error::LockLost`].
///
/// # Pitfalls
///
/// * `let _ = store.lock(…)?` drops the guard, and so the lock, at once. Name it: `let _guard = …`.
/// * `std::process::exit` runs no destructors. A lock under the default holder is then freed by the
///   kernel; a named one stays until its lease runs out.
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
    store: &'a S,
    key: Key,
    holder: Holder,
    token: LockToken,
    hold_timeout: Option<Duration>,
    /// The process that took the lock: a forked child has a copy of the guard, but not the lock.
    process: u32,
    /// An inner guard leaves the lock to the outermost one.
    releases: bool,
    keep_alive: Option<KeepAlive>,
}

impl<'a, S: RecordStore + ?Sized> LockGuard<'a, S> {
    pub(crate) fn acquire(store: &'a S, key: Key, options: &LockOptions) -> Result<Self> {
        let holder = options.resolve_holder();
        let acquired = store.acquire(&key, &holder, options)?;
        Ok(Self {
            store,
            key,
            holder,
            token: acquired.token,
            hold_timeout: options.get_hold_timeout(),
            process: std::process::id(),
            releases: !acquired.reentrant,
            keep_alive: None,
        })
    }

    /// The locked record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Who holds the lock.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The fencing token of this acquisition.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.token
    }

    /// Reads the record. `Ok(None)`: there is none.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock is no longer live; [`Error::Decode`],
    /// [`Error::CorruptRecord`], [`Error::Io`] and the like as for
    /// [`RecordStoreExt::read`](crate::RecordStoreExt::read).
    pub fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        let claim = self.claim("read")?;
        self.store
            .read_json(&self.key, &claim, None)?
            .map(|json| TransactionRecord::decode("read", self.key.clone(), &json))
            .transpose()
    }

    /// Writes the record, fenced by this acquisition's token.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock is no longer live, [`Error::Encode`] if JSON
    /// cannot hold the result, [`Error::Io`] if the operating system refuses. The old record stays;
    /// see [`Error::Io`] for the one exception. The lock stays as it is.
    pub fn write<R: Serialize + ?Sized>(&self, result: &R) -> Result<()> {
        self.write_with(result, WriteOptions::new())
    }

    /// [`write`](LockGuard::write) with options: a time to live.
    ///
    /// # Errors
    ///
    /// As for [`write`](LockGuard::write).
    #[expect(clippy::needless_pass_by_value, reason = "as by all that take options")]
    pub fn write_with<R: Serialize + ?Sized>(&self, result: &R, options: WriteOptions) -> Result<()> {
        self.write_json(&encode("write", &self.key, result)?, &options)
    }

    pub(crate) fn write_json(&self, result: &RawValue, options: &WriteOptions) -> Result<()> {
        let claim = self.claim("write")?;
        self.store.write_json(&self.key, result, &claim, options)
    }

    /// Removes the record, fenced by this acquisition's token. `false`: there was none.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock is no longer live, [`Error::Io`] if the
    /// operating system refuses. The lock stays as it is.
    pub fn remove(&self) -> Result<bool> {
        let claim = self.claim("remove")?;
        self.store.remove_record(&self.key, &claim)
    }

    /// Starts the lease anew, with the hold timeout with which the lock was taken.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock is no longer live: a lease that ran out
    /// cannot be had back, even if nobody took the lock since.
    pub fn renew(&self) -> Result<()> {
        let claim = self.claim("renew")?;
        self.store.renew_lease(&self.key, &claim, self.hold_timeout)
    }

    /// What is left of the lease. `Ok(None)`: it has no term.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock is no longer live.
    pub fn remaining(&self) -> Result<Option<Duration>> {
        self.claim("remaining")?;
        match self.store.current_lock(&self.key)? {
            Some(info) if info.token() == self.token => Ok(info.remaining()),
            _ => Err(self.lost("remaining")),
        }
    }

    /// Whether this acquisition's lock is still live. The answer is about a moment that is over when
    /// it arrives; only what is done through the guard is fenced.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptLock`], [`Error::Io`] and the like if that cannot be told.
    pub fn is_held(&self) -> Result<bool> {
        match self.remaining() {
            Ok(_) => Ok(true),
            Err(error) if error.is_lock_lost() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Releases the lock, and says so if it was lost before. An inner guard leaves the lock to the
    /// outermost one.
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock was no longer live: what was done under it
    /// may have overlapped with another holder. [`Error::Io`] if the operating system refuses; the
    /// lock then stays until its lease runs out or the process ends.
    pub fn release(mut self) -> Result<()> {
        let claim = self.claim("release_lock")?;
        self.keep_alive = None;
        if std::mem::take(&mut self.releases) {
            self.store.release(&self.key, &claim)?;
        }
        Ok(())
    }

    /// The claim by token, for the process that has it.
    fn claim(&self, operation: &'static str) -> Result<Claim> {
        if self.process == std::process::id() {
            Ok(Claim::Token(self.token))
        } else {
            Err(self.lost(operation))
        }
    }

    fn lost(&self, operation: &'static str) -> Error {
        trace::lost(Error::LockLost { operation, key: self.key.clone(), token: self.token, path: None })
    }
}

impl<S: RecordStore + Clone + 'static> LockGuard<'_, S> {
    /// Renews the lease in the background for as long as the guard lives: the way to run long work
    /// under a short lease. A process that hangs or is stopped then loses the lock after the hold
    /// timeout, and one that works keeps it.
    ///
    /// Every third of the hold timeout a thread of its own renews. If it finds the lock lost, it
    /// calls `on_loss` once with the reason and ends; so it does if the lease ran out because it
    /// could not be renewed. Whoever holds a lock without a hold timeout needs none of this: then
    /// the call does nothing.
    ///
    /// For stores that can be cloned: [`FileSystemRecordStore`](crate::FileSystemRecordStore),
    /// [`MemoryRecordStore`](crate::MemoryRecordStore), `Arc<dyn RecordStore>`.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicBool, Ordering};
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let mut guard = store.lock("report", LockOptions::new().hold_timeout(Duration::from_secs(3)))?;
    /// let lost = Arc::new(AtomicBool::new(false));
    /// let flag = Arc::clone(&lost);
    /// guard.keep_alive(move |_reason| flag.store(true, Ordering::Relaxed))?;
    /// // Work for hours, and look at `lost` from time to time.
    /// guard.write("done")?;
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::LockLost`] if this acquisition's lock is no longer live, or what kept it from being
    /// renewed; [`Error::Thread`]. Nothing runs in the background then.
    pub fn keep_alive(&mut self, on_loss: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        let claim = self.claim("renew")?;
        let Some(hold_timeout) = self.hold_timeout else { return Ok(()) };
        self.renew()?;
        let (store, key) = (self.store.clone(), self.key.clone());
        let renew = move || store.renew_lease(&key, &claim, Some(hold_timeout));
        // One at a time.
        self.keep_alive = None;
        let started = KeepAlive::start(hold_timeout, renew, on_loss).map_err(|source| Error::Thread {
            operation: "keep_alive",
            key: Some(self.key.clone()),
            source,
        })?;
        self.keep_alive = Some(started);
        Ok(())
    }
}

impl<S: RecordStore + ?Sized> Drop for LockGuard<'_, S> {
    fn drop(&mut self) {
        let Ok(claim) = self.claim("release_lock") else {
            // The thread that keeps the lock alive is the parent's: there is none to wait for.
            std::mem::forget(self.keep_alive.take());
            return;
        };
        // Before the release, or it would take that for a loss.
        self.keep_alive = None;
        if self.releases {
            // A drop has nobody to tell. What can go wrong leaves the lock to its lease and to the
            // end of the process; `release` reports it.
            let _ = self.store.release(&self.key, &claim);
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
