//! The contract, for users of stores: typed methods on every [`RecordStore`].

use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::calls::block;
use crate::compute;
use crate::locking::holds;
use crate::{BreakOptions, ChangesOptions, Evicted, EvictionPolicy, ListOptions, RecordInfo};
use crate::{
    Claim, Error, Expected, Holder, IntoKey, IsolationLevel, Json, Key, Listing, LockGuard, LockGuards,
};
use crate::{
    LockInfo, LockOptions, LockToken, OwnedLockGuard, OwnedLockGuards, PendingTransaction, ReadOptions,
    RecordStore, RecordVersion, RecordWatch,
};
use crate::{
    RemoveOptions, Result, StoreChanges, TransactionRecord, UpdateOptions, WaitOptions, WriteOptions,
};

#[cfg(doc)]
use crate::ErrorKind;

/// The methods that programs call. Every [`RecordStore`] has them.
///
/// Methods without a holder act for the calling thread's default holder, [`Holder::current`].
///
/// ```
/// use record_store::{MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.write("greeting", "hello")?;
/// let record = store.read::<String>("greeting")?.expect("it was just written");
/// assert_eq!(record.result, "hello");
/// # Ok::<(), record_store::Error>(())
/// ```
pub trait RecordStoreExt: RecordStore {
    /// Reads the record. Prefect's `RecordStore.read`. `Ok(None)`: there is no record.
    ///
    /// Waits, forever if necessary, while another holder's lock is live, also if there is no record yet.
    /// Then it returns what that holder committed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Decode`] if the result is not an `R`; [`ErrorKind::CorruptRecord`],
    /// [`ErrorKind::KeyMismatch`], [`ErrorKind::CorruptLock`], [`ErrorKind::Io`] and similar if the
    /// record or its lock cannot be read. Reading changes nothing, whatever its outcome.
    fn read<R: DeserializeOwned>(&self, key: impl IntoKey) -> Result<Option<TransactionRecord<R>>> {
        self.read_with(key, ReadOptions::new())
    }

    /// [`read`](RecordStoreExt::read) with options: a claim, a timeout, a cancellation, or without regard
    /// to the lock.
    ///
    /// # Errors
    ///
    /// As for [`read`](RecordStoreExt::read). [`ErrorKind::LockTimeout`] if another's lock is still live
    /// at the timeout, [`ErrorKind::Cancelled`] if the wait is cancelled, [`ErrorKind::LockLost`] if the
    /// claim is by token and that lock is no longer live.
    fn read_with<R: DeserializeOwned>(
        &self,
        key: impl IntoKey,
        options: ReadOptions,
    ) -> Result<Option<TransactionRecord<R>>> {
        let key = key.into_key()?;
        let record = self.read_raw(&key, options)?;
        record.map(|record| record.decode("read", key)).transpose()
    }

    /// Writes the record. Prefect's `RecordStore.write`.
    ///
    /// Needs no lock and acquires none, but is refused while another holder's lock is live. To read,
    /// change and write, use [`update`](RecordStoreExt::update) or [`lock`](RecordStoreExt::lock).
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Locked`] while another holder's lock is live; [`ErrorKind::Encode`] if JSON cannot
    /// represent the result, such as a float that is not finite; [`ErrorKind::RecordTooLarge`];
    /// [`ErrorKind::Io`]. The old record stays, unless [`Error::is_outcome_unknown`].
    fn write<R: Serialize + ?Sized>(&self, key: impl IntoKey, result: &R) -> Result<()> {
        let key = key.into_key()?;
        self.write_raw(&key, &Json::encode_result("write", &key, result)?, WriteOptions::new())
    }

    /// [`write`](RecordStoreExt::write) with options: a claim, by holder or by token, a time to live, a timeout or a
    /// cancellation. Not in Prefect.
    ///
    /// # Errors
    ///
    /// As for [`write`](RecordStoreExt::write), and [`ErrorKind::LockLost`] if the claim is by token and
    /// that lock is no longer live, [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]: the old record stays.
    fn write_with<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<()> {
        let key = key.into_key()?;
        self.write_raw(&key, &Json::encode_result("write", &key, result)?, options)
    }

    /// Writes the record if there is none. `Ok(false)`: there is one, and it stays as it is. The check and
    /// the change are one atomic step; no lock is acquired. Not in Prefect.
    ///
    /// ```
    /// use record_store::{MemoryRecordStore, RecordStoreExt, WriteOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// assert!(store.write_if_absent("leader", "a", WriteOptions::new())?);
    /// assert!(!store.write_if_absent("leader", "b", WriteOptions::new())?);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`write_with`](RecordStoreExt::write_with). [`ErrorKind::Locked`] also if there is no record
    /// yet, because the holder of the lock may be about to write it.
    #[must_use = "`false` means that nothing was written"]
    fn write_if_absent<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        self.compare_and_swap(key, None, result, options)
    }

    /// Writes the record if its present version is `version`, which a [`read`](RecordStoreExt::read) returned.
    /// `Ok(false)`: it was written or removed since, and stays as it is. With [`RecordVersion::ABSENT`], it
    /// writes if there is no record. The comparison and the change are one atomic step. No lock is acquired, so
    /// nobody waits for the caller's work. Not in Prefect.
    ///
    /// ```
    /// use record_store::{MemoryRecordStore, RecordStoreExt, RecordVersion, WriteOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.write("visits", &1)?;
    /// loop {
    ///     let seen = store.read::<u64>("visits")?;
    ///     let version = seen.as_ref().map_or(RecordVersion::ABSENT, |record| record.version);
    ///     let next = seen.map_or(1, |record| record.result + 1);
    ///     if store.write_if_version("visits", version, &next, WriteOptions::new())? {
    ///         break;
    ///     }
    /// }
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`write_with`](RecordStoreExt::write_with), and [`ErrorKind::CorruptRecord`] and similar if
    /// the record cannot be read.
    #[must_use = "`false` means that nothing was written"]
    fn write_if_version<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        version: RecordVersion,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        let key = key.into_key()?;
        let result = Json::encode_result("compare_and_swap", &key, result)?;
        self.compare_and_swap_raw(&key, Expected::Version(version), &result, options)
    }

    /// Writes `new` if the record's result is `expected` or, with `None`, if there is no record.
    /// `Ok(false)`: it is different, and stays as it is. Otherwise as
    /// [`write_if_version`](RecordStoreExt::write_if_version), which is the better choice for a result that was
    /// read. Not in Prefect.
    ///
    /// Results are compared as JSON: see [`Json::is_same_value`]. So the comparison fails, every time, for a
    /// result that was read as an `R` and does not encode to the stored text again: a field that was added with
    /// `#[serde(default)]`, a field of a newer program that `R` does not have, a `HashSet` in another order. A
    /// loop that repeats until such a swap succeeds never ends.
    ///
    /// ```
    /// use record_store::{MemoryRecordStore, RecordStoreExt, WriteOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.write("state", "ready")?;
    /// assert!(store.compare_and_swap("state", Some("ready"), "running", WriteOptions::new())?);
    /// assert!(!store.compare_and_swap("state", Some("ready"), "running", WriteOptions::new())?);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`write_if_version`](RecordStoreExt::write_if_version).
    #[must_use = "`false` means that nothing was written"]
    fn compare_and_swap<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        expected: Option<&R>,
        new: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        const OPERATION: &str = "compare_and_swap";
        let key = key.into_key()?;
        let expected = expected.map(|value| Json::encode_result(OPERATION, &key, value)).transpose()?;
        let new = Json::encode_result(OPERATION, &key, new)?;
        let expected = expected.as_ref().map_or(Expected::Absent, Expected::Value);
        self.compare_and_swap_raw(&key, expected, &new, options)
    }

    /// Returns the record's result, computed by `f` if there is none. Of all concurrent callers for a
    /// key, one at a time runs `f`, under the lock; the others wait and get its result. Not in Prefect.
    ///
    /// A damaged record, or another file in its place, counts as none, unless
    /// [`UpdateOptions::corrupt_records`](crate::UpdateOptions::corrupt_records) makes it an error.
    ///
    /// An error or a panic of `f` releases the lock and stores nothing: the next caller computes. The same
    /// happens if the process of `f` dies. The result is written with the token of the lock. So a
    /// computation that outlasts its lease stores nothing, and the outcome is [`ErrorKind::LockLost`].
    /// Without a hold timeout there is no lease. If the result cannot be stored, the error
    /// [has it](crate::Error::unstored).
    ///
    /// `options` are [`LockOptions`], or [`UpdateOptions`] to give the result a time to live. The acquire
    /// timeout and the cancellation end the wait, not `f`. With [`stale_for`](UpdateOptions::stale_for), no caller waits
    /// for the successor of a result: one computes it, and the others get the old one meanwhile.
    ///
    /// For closures with an error type of their own there is
    /// [`get_or_try_compute`](RecordStoreExt::get_or_try_compute).
    ///
    /// ```
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let mut computed = 0;
    /// for _ in 0..3 {
    ///     let factorial: u64 = store.get_or_compute("20!", LockOptions::new(), || {
    ///         computed += 1;
    ///         Ok((1..=20).product())
    ///     })?;
    ///     assert_eq!(factorial, 2_432_902_008_176_640_000);
    /// }
    /// assert_eq!(computed, 1);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The error of `f`; [`ErrorKind::LockTimeout`], [`ErrorKind::Cancelled`], [`ErrorKind::LockLost`],
    /// and the errors of [`read`](RecordStoreExt::read) and [`write`](RecordStoreExt::write).
    fn get_or_compute<R: Serialize + DeserializeOwned>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        self.get_or_try_compute(key, options, f)
    }

    /// [`get_or_compute`](RecordStoreExt::get_or_compute) for an `f` with an error type of its own.
    ///
    /// # Errors
    ///
    /// As for [`get_or_compute`](RecordStoreExt::get_or_compute), as an `E`.
    fn get_or_try_compute<R, E>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
    {
        let (key, options) = (key.into_key()?, options.into());
        let read = |options| ready(self.read_raw(&key, options));
        let lock = |options| ready(LockGuard::acquire(self, key.clone(), options));
        let found = compute::find(&options, read, lock);
        block(compute::GET_OR_COMPUTE, compute::get_or_compute(&key, &options, found, || ready(f())))
    }

    /// Reads the record, lets `f` compute the next result from it, and writes that, all under the lock.
    /// Returns what was written. Not in Prefect.
    ///
    /// An error or a panic of `f` releases the lock and leaves the record as it was. The result is written
    /// with the token of the lock: if the lease expired meanwhile, nothing is written, and the outcome is
    /// [`ErrorKind::LockLost`]. If the result cannot be written, the error [has it](crate::Error::unstored).
    ///
    /// For closures with an error type of their own there is [`try_update`](RecordStoreExt::try_update).
    ///
    /// ```
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let count = |old: Option<u64>| Ok(old.unwrap_or(0) + 1);
    /// assert_eq!(store.update("visits", LockOptions::new(), count)?, 1);
    /// assert_eq!(store.update("visits", LockOptions::new(), count)?, 2);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get_or_compute`](RecordStoreExt::get_or_compute).
    fn update<R: Serialize + DeserializeOwned>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce(Option<R>) -> Result<R>,
    ) -> Result<R> {
        self.try_update(key, options, f)
    }

    /// [`update`](RecordStoreExt::update) for an `f` with an error type of its own.
    ///
    /// # Errors
    ///
    /// As for [`update`](RecordStoreExt::update), as an `E`.
    fn try_update<R, E>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce(Option<R>) -> Result<R, E>,
    ) -> Result<R, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
    {
        let (key, options) = (key.into_key()?, options.into());
        let lock = async { LockGuard::acquire(self, key.clone(), options.get_lock().clone()) };
        block("update", compute::update(&key, &options, lock, |old| ready(f(old))))
    }

    /// Prepares a transaction on the record; [`begin`](PendingTransaction::begin) begins it.
    /// Prefect's `prefect.transactions.transaction`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`].
    fn transaction(&self, key: impl IntoKey) -> Result<PendingTransaction<'_, '_>> {
        Ok(PendingTransaction::new(self, key.into_key()?))
    }

    /// Begins to watch the record: [`RecordWatch::next`] waits for its next change from now on. Ignores
    /// locks, and needs none. Not in Prefect.
    ///
    /// # Errors
    ///
    /// As for [`exists`](RecordStoreExt::exists).
    fn watch(&self, key: impl IntoKey) -> Result<RecordWatch<'_, Self>> {
        RecordWatch::begin(self, key.into_key()?)
    }

    /// Waits until the record appears or changes. `Ok(false)` at the timeout. Not in Prefect.
    ///
    /// Only changes after the call began count. To react to an earlier state, begin to
    /// [`watch`](RecordStoreExt::watch) first, then read, then wait.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`exists`](RecordStoreExt::exists).
    fn wait_for_record(&self, key: impl IntoKey, options: impl Into<WaitOptions>) -> Result<bool> {
        self.watch(key)?.wait_for_record(&options.into())
    }

    /// Begins to watch all records, or those whose key has a prefix: [`StoreChanges::next`] waits for the next change
    /// from now on. Ignores locks, and needs none. Not in Prefect.
    ///
    /// Every change after this call is reported, whatever makes it: this process or another one, an edit by hand, the end
    /// of a time to live, an eviction. The call lists the store once, and the watch remembers the version of each record:
    /// see [`StoreChanges`] for what that costs.
    ///
    /// ```
    /// use record_store::{ChangesOptions, MemoryRecordStore, RecordChange, RecordStoreExt, WaitOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// let mut changes = store.changes(ChangesOptions::new())?;
    /// store.write("status", "building")?;
    /// let change = changes.next(WaitOptions::new())?.expect("there is no timeout");
    /// assert_eq!((change.key.as_str(), change.change), ("status", RecordChange::Appeared));
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`records`](RecordStoreExt::records). A record that cannot be read does not keep the watch from the others.
    fn changes(&self, options: ChangesOptions) -> Result<StoreChanges<'_, Self>> {
        StoreChanges::begin(self, options)
    }

    /// Removes the record. `Ok(false)`: there was none. Not in Prefect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Locked`] while another holder's lock is live, [`ErrorKind::Io`] if the operating
    /// system refuses. The record stays, unless [`Error::is_outcome_unknown`].
    fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_with(key, RemoveOptions::new())
    }

    /// [`remove`](RecordStoreExt::remove) with options: a claim, by holder or by token, a timeout or a cancellation.
    ///
    /// # Errors
    ///
    /// As for [`remove`](RecordStoreExt::remove), and [`ErrorKind::LockLost`] if the claim is by token
    /// and that lock is no longer live, [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]: the record stays.
    fn remove_with(&self, key: impl IntoKey, options: RemoveOptions) -> Result<bool> {
        self.remove_raw(&key.into_key()?, options)
    }

    /// Whether there is a record, regardless of locks. Prefect's `RecordStore.exists`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if that cannot be determined, [`ErrorKind::InvalidKey`].
    fn exists(&self, key: impl IntoKey) -> Result<bool> {
        self.exists_raw(&key.into_key()?)
    }

    /// Acquires the lock and returns its token. Prefect's `RecordStore.acquire_lock`.
    ///
    /// Waits while another holder's lock is live, at most for the options' acquire timeout. If the same
    /// holder has the lock already, the call succeeds at once with the same token, and the lease is
    /// restarted. The caller must [release](RecordStoreExt::release_lock) the lock;
    /// [`lock`](RecordStoreExt::lock) does both.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockTimeout`] at the timeout; the error names the holder. [`ErrorKind::Cancelled`] if
    /// the wait is cancelled. The caller does not have the lock then. [`ErrorKind::LockShared`] if the holder
    /// [shares](LockOptions::shared) the lock and now asks for it alone: it keeps what it has.
    /// [`ErrorKind::Unsupported`] if the store has no shared locks.
    fn acquire_lock(&self, key: impl IntoKey, options: LockOptions) -> Result<LockToken> {
        Ok(LockGuard::acquire(self, key.into_key()?, options)?.leave_locked())
    }

    /// Releases the lock. Prefect's `RecordStore.release_lock`.
    ///
    /// ```
    /// use record_store::{Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.acquire_lock("report", LockOptions::new())?;
    /// store.release_lock("report", Holder::current())?;
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// For a claim by holder: [`ErrorKind::NotLocked`], or [`ErrorKind::NotLockHolder`] if another has
    /// the lock. For a claim by token: [`ErrorKind::LockLost`]. [`ErrorKind::Io`] and similar. The lock stays as it was
    /// then, unless [`Error::is_outcome_unknown`].
    fn release_lock(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<()> {
        self.release_lock_with(key, claim, WaitOptions::new())
    }

    /// [`release_lock`](RecordStoreExt::release_lock) with a timeout or a cancellation, because a process that is stopped
    /// in the middle of an operation on the key can delay a release.
    ///
    /// # Errors
    ///
    /// As for [`release_lock`](RecordStoreExt::release_lock), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]:
    /// the lock is held as before then, and the release can be repeated.
    fn release_lock_with(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        options: impl Into<WaitOptions>,
    ) -> Result<()> {
        let (key, claim) = (key.into_key()?, claim.into());
        let store = self.identity_raw();
        // Before the release: after it, another thread may have the next lock.
        let known = store.map(|store| holds::known(store, &key, &claim)).unwrap_or_default();
        self.release_lock_raw(&key, &claim, options.into())?;
        if let Some(store) = store {
            holds::released_explicitly(store, &key, &known);
        }
        Ok(())
    }

    /// Restarts the lease of a held lock: it ends `hold_timeout` from now or, with `None`, when the lock
    /// is released. Not in Prefect.
    ///
    /// # Errors
    ///
    /// As for [`release_lock`](RecordStoreExt::release_lock). The lease runs on as before then.
    fn renew(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: impl Into<Option<Duration>>,
    ) -> Result<()> {
        self.renew_with(key, claim, hold_timeout, WaitOptions::new())
    }

    /// [`renew`](RecordStoreExt::renew) with a timeout or a cancellation, because a process that is stopped in the middle
    /// of an operation on the key can delay a renewal.
    ///
    /// # Errors
    ///
    /// As for [`renew`](RecordStoreExt::renew), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]: the lease runs
    /// on as before then, and the renewal can be repeated until it ends.
    fn renew_with(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: impl Into<Option<Duration>>,
        options: impl Into<WaitOptions>,
    ) -> Result<()> {
        self.renew_raw(&key.into_key()?, &claim.into(), hold_timeout.into(), options.into())
    }

    /// Acquires the lock and returns the guard that holds it. Prefect's context manager
    /// `RecordStore.lock`, except that a lock that cannot be acquired is an error.
    ///
    /// # Errors
    ///
    /// As for [`acquire_lock`](RecordStoreExt::acquire_lock).
    fn lock(&self, key: impl IntoKey, options: LockOptions) -> Result<LockGuard<'_, Self>> {
        LockGuard::acquire(self, key.into_key()?, options)
    }

    /// [`lock`](RecordStoreExt::lock) with a guard that owns its store: it can be kept in a struct or
    /// moved into a thread.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use record_store::{LockOptions, MemoryRecordStore, OwnedLockGuard, RecordStoreExt};
    ///
    /// struct Job {
    ///     guard: OwnedLockGuard<MemoryRecordStore>,
    /// }
    ///
    /// let store = Arc::new(MemoryRecordStore::new());
    /// let job = Job { guard: store.lock_owned("report", LockOptions::new())? };
    /// std::thread::spawn(move || job.guard.write("done")).join().expect("it does not panic")?;
    /// assert!(!store.is_locked("report")?);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`acquire_lock`](RecordStoreExt::acquire_lock).
    fn lock_owned(self: &Arc<Self>, key: impl IntoKey, options: LockOptions) -> Result<OwnedLockGuard<Self>> {
        OwnedLockGuard::acquire(self, key.into_key()?, options)
    }

    /// [`lock`](RecordStoreExt::lock) that does not wait. `Ok(None)`: another holder has the lock, or
    /// another waiter's turn comes first. The options' acquire timeout is ignored.
    ///
    /// # Errors
    ///
    /// As for [`acquire_lock`](RecordStoreExt::acquire_lock), but never [`ErrorKind::LockTimeout`].
    #[must_use = "the lock is released as soon as the guard is dropped, and `None` means that there is none"]
    fn try_lock(&self, key: impl IntoKey, options: LockOptions) -> Result<Option<LockGuard<'_, Self>>> {
        none_at_timeout(self.lock(key, options.acquire_timeout(Duration::ZERO)))
    }

    /// [`try_lock`](RecordStoreExt::try_lock) with a guard that owns its store, as
    /// [`lock_owned`](RecordStoreExt::lock_owned) returns it.
    ///
    /// # Errors
    ///
    /// As for [`try_lock`](RecordStoreExt::try_lock).
    #[must_use = "the lock is released as soon as the guard is dropped, and `None` means that there is none"]
    fn try_lock_owned(
        self: &Arc<Self>,
        key: impl IntoKey,
        options: LockOptions,
    ) -> Result<Option<OwnedLockGuard<Self>>> {
        none_at_timeout(self.lock_owned(key, options.acquire_timeout(Duration::ZERO)))
    }

    /// Acquires the locks of several keys: all of them, or none at the timeout. Not in Prefect.
    ///
    /// They are acquired one by one in the order of the keys, in whatever order the caller names them.
    /// So concurrent callers never deadlock. Until all are acquired, the leases of the acquired ones are
    /// renewed; then all leases are restarted.
    ///
    /// ```
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let guards = store.lock_all(["to", "from"], LockOptions::new())?;
    /// guards.get("from").expect("it is locked").write(&90)?;
    /// guards.get("to").expect("it is locked").write(&110)?;
    /// guards.release()?;
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockTimeout`] at the timeout; the error names the missing key and its holder.
    /// [`ErrorKind::Cancelled`]. [`ErrorKind::LockLost`] if the leases are so short that they expire before all
    /// locks are acquired, although nobody is in the way. No lock is held then.
    fn lock_all<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: LockOptions,
    ) -> Result<LockGuards<'_, Self>> {
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<_>>()?;
        LockGuards::acquire(keys, &options, |key, options| LockGuard::acquire(self, key, options))
    }

    /// [`lock_all`](RecordStoreExt::lock_all) with guards that own their store: they can be kept in a struct or moved
    /// into a thread.
    ///
    /// # Errors
    ///
    /// As for [`lock_all`](RecordStoreExt::lock_all).
    fn lock_all_owned<K: IntoKey>(
        self: &Arc<Self>,
        keys: impl IntoIterator<Item = K>,
        options: LockOptions,
    ) -> Result<OwnedLockGuards<Self>> {
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<_>>()?;
        OwnedLockGuards::acquire(self, keys, &options)
    }

    /// Whether the key has a live lock of any holder. Prefect's `RecordStore.is_locked`. The answer may be
    /// outdated when it arrives.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](RecordStoreExt::lock_info).
    fn is_locked(&self, key: impl IntoKey) -> Result<bool> {
        Ok(self.lock_info(key)?.is_some())
    }

    /// Whether this holder has the key's live lock. Prefect's `RecordStore.is_lock_holder`.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](RecordStoreExt::lock_info).
    fn is_lock_holder(&self, key: impl IntoKey, holder: &Holder) -> Result<bool> {
        Ok(self.lock_info(key)?.is_some_and(|info| info.is_held_by(holder)))
    }

    /// Waits until the key has no live lock. `Ok(false)` at the timeout. Prefect's
    /// `RecordStore.wait_for_lock`. [`WaitOptions::new`] waits forever; a timeout of zero checks once.
    /// Acquires no lock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`lock_info`](RecordStoreExt::lock_info).
    fn wait_for_lock(&self, key: impl IntoKey, options: impl Into<WaitOptions>) -> Result<bool> {
        self.wait_for_lock_raw(&key.into_key()?, options.into())
    }

    /// The key's live lock: who holds it, since when and until when. `Ok(None)`: it has none. Not in
    /// Prefect. Never writes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CorruptLock`], [`ErrorKind::KeyMismatch`], [`ErrorKind::Io`] and similar if that
    /// cannot be determined.
    fn lock_info(&self, key: impl IntoKey) -> Result<Option<LockInfo>> {
        self.lock_info_raw(&key.into_key()?)
    }

    /// Removes the lock of any holder, be it live, stale or corrupt. `Ok(false)`: there was none. A file store
    /// moves a file that is no lock [aside](crate::FileSystemRecordStore::damaged). Not in Prefect.
    ///
    /// For people and for repair: the holder may still be at work. Its later changes by token are refused
    /// with [`ErrorKind::LockLost`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the operating system refuses. The lock stays then, unless [`Error::is_outcome_unknown`].
    fn break_lock(&self, key: impl IntoKey) -> Result<bool> {
        self.break_lock_with(key, BreakOptions::new())
    }

    /// [`break_lock`](RecordStoreExt::break_lock) with options: for the lock of exactly one acquisition, with a timeout or
    /// a cancellation. A process that is stopped in the middle of an operation on the key can delay the call.
    ///
    /// With a [token](BreakOptions::token), `Ok(false)` means: that lock is gone, and if there is another one now, it
    /// stays.
    ///
    /// # Errors
    ///
    /// As for [`break_lock`](RecordStoreExt::break_lock), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]: the
    /// lock is as before then. With a token, also as for [`lock_info`](RecordStoreExt::lock_info).
    fn break_lock_with(&self, key: impl IntoKey, options: BreakOptions) -> Result<bool> {
        self.break_lock_raw(&key.into_key()?, options)
    }

    /// Every key that has a record, in no order. Not in Prefect.
    ///
    /// A stream: memory use does not grow with the number of records. Records that are created or removed
    /// meanwhile may or may not be listed.
    ///
    /// ```
    /// use record_store::{MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.write("greeting", "hello")?;
    /// for key in store.keys()? {
    ///     println!("{}", key?);
    /// }
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the listing cannot begin. An item is an error if that one record cannot be
    /// identified; the listing continues after it.
    fn keys(&self) -> Result<Listing<'_, Key>> {
        self.keys_raw()
    }

    /// A description of every record that the options select, in no order: key, size, version, age, time to live and, if
    /// asked for, the result. Not in Prefect.
    ///
    /// A stream, as [`keys`](RecordStoreExt::keys) is. Locks do not matter: each record is its last committed state.
    /// A record that has expired is not listed.
    ///
    /// ```
    /// use record_store::{ListOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.write("greeting", "hello")?;
    /// for record in store.records(ListOptions::new())? {
    ///     let record = record?;
    ///     println!("{} has {} bytes", record.key(), record.size());
    /// }
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`keys`](RecordStoreExt::keys). An item is also an error if that one record cannot be read.
    fn records(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        self.records_raw(options)
    }

    /// A description of the record without its result: size, version, age and time to live. `None`: there is no record.
    /// Locks do not matter. Not in Prefect.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CorruptRecord`], [`ErrorKind::Io`] and similar if the record cannot be read.
    fn record_info(&self, key: impl IntoKey) -> Result<Option<RecordInfo>> {
        self.record_info_raw(&key.into_key()?)
    }

    /// Removes the records that were written the longest time ago, until the store is as small as the policy says, or those
    /// that were [read](EvictionPolicy::least_recently_read) the longest time ago. Not in Prefect.
    ///
    /// A record that is locked is kept, whoever has the lock, and so is one that is written meanwhile, and one that was
    /// written by hand: younger ones go in its place. A concurrent read finds the record or finds none, and is no error.
    /// Expired records that were not swept yet count, too. Several processes may evict at the same time. The whole
    /// directory is listed: call it now and then, not after each write.
    ///
    /// See [`EvictionPolicy`] for an example.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for an order that the store does not know; [`ErrorKind::Io`] and similar; what was removed before stays removed.
    fn evict(&self, policy: EvictionPolicy) -> Result<Evicted> {
        self.evict_raw(policy)
    }

    /// Every lock that the store knows of, in no order: who holds it, since when, until when. Not in
    /// Prefect.
    ///
    /// Expired and abandoned locks are among them; [`LockInfo::state`] says so.
    ///
    /// # Errors
    ///
    /// As for [`keys`](RecordStoreExt::keys).
    fn locks(&self) -> Result<Listing<'_, LockInfo>> {
        self.locks_raw()
    }

    /// Whether transactions of this level are possible. Prefect's
    /// `RecordStore.supports_isolation_level`.
    fn supports_isolation_level(&self, level: IsolationLevel) -> bool {
        self.supports_isolation_level_raw(level)
    }
}

impl<S: RecordStore + ?Sized> RecordStoreExt for S {}

fn none_at_timeout<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.is_timeout() => Ok(None),
        outcome => outcome.map(Some),
    }
}
