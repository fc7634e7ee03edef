//! The contract, for those who use stores: typed methods on every one of them.

use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::compute;
use crate::record::encode;
use crate::{Claim, Error, Holder, IntoKey, IsolationLevel, Key, Listing, LockGuard, LockGuards, LockInfo};
use crate::{LockOptions, LockToken, PendingTransaction, RecordStore, RecordWatch, Result};
use crate::{TransactionRecord, UpdateOptions, WriteOptions};

/// What one does with a record store. Every [`RecordStore`] has these methods.
///
/// Methods without a holder act for the calling thread's default holder, [`Holder::current`].
///
/// ```
/// use record_store::{MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.write("greeting", "hello")?;
/// let record = store.read::<String>("greeting")?.expect("just written");
/// assert_eq!(record.result, "hello");
/// # Ok::<(), record_store::Error>(())
/// ```
pub trait RecordStoreExt: RecordStore {
    /// Reads the record. Prefect's `RecordStore.read`.
    ///
    /// Waits, for ever if need be, while another holder's lock is live, also where there is no
    /// record yet, and then returns what that holder committed. `Ok(None)`: there is no record.
    ///
    /// # Errors
    ///
    /// [`Error::Decode`] if the result is not an `R`; [`Error::CorruptRecord`],
    /// [`Error::KeyMismatch`], [`Error::CorruptLock`], [`Error::Io`] and the like if the record or
    /// its lock cannot be read. Reading changes nothing, whatever its outcome.
    fn read<R: DeserializeOwned>(&self, key: impl IntoKey) -> Result<Option<TransactionRecord<R>>> {
        read_result(self, key, &Claim::current(), None)
    }

    /// [`read`](RecordStoreExt::read) for the holder of a lock: by name, or by token.
    ///
    /// # Errors
    ///
    /// As for [`read`](RecordStoreExt::read), and [`Error::LockLost`] if the claim is by token and
    /// that lock is no longer live.
    fn read_as<R: DeserializeOwned>(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
    ) -> Result<Option<TransactionRecord<R>>> {
        read_result(self, key, &claim.into(), None)
    }

    /// [`read`](RecordStoreExt::read) that waits no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`read`](RecordStoreExt::read), and [`Error::LockTimeout`] if the key is still locked
    /// by another when the time is up. Zero looks once.
    fn try_read<R: DeserializeOwned>(
        &self,
        key: impl IntoKey,
        timeout: Duration,
    ) -> Result<Option<TransactionRecord<R>>> {
        read_result(self, key, &Claim::current(), Some(timeout))
    }

    /// Writes the record. Prefect's `RecordStore.write`.
    ///
    /// Does not take the lock and needs none, but is refused while another has it. To read, change
    /// and write, use [`lock`](RecordStoreExt::lock).
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another holder's lock is live; [`Error::Encode`] if JSON cannot hold
    /// the result, such as a float that is not finite; [`Error::RecordTooLarge`]; [`Error::Io`].
    /// The old record stays; see [`Error::Io`] for the one exception.
    fn write<R: Serialize + ?Sized>(&self, key: impl IntoKey, result: &R) -> Result<()> {
        write_result(self, &key.into_key()?, result, &Claim::current(), &WriteOptions::new())
    }

    /// [`write`](RecordStoreExt::write) for the holder of a lock: by name, or by token.
    ///
    /// # Errors
    ///
    /// As for [`write`](RecordStoreExt::write), and [`Error::LockLost`] if the claim is by token
    /// and that lock is no longer live.
    fn write_as<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        claim: impl Into<Claim>,
    ) -> Result<()> {
        write_result(self, &key.into_key()?, result, &claim.into(), &WriteOptions::new())
    }

    /// [`write`](RecordStoreExt::write) with options: a time to live, or another claim. Not in
    /// Prefect.
    ///
    /// # Errors
    ///
    /// As for [`write_as`](RecordStoreExt::write_as).
    fn write_with<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<()> {
        write_result(self, &key.into_key()?, result, &options.resolve_claim(), &options)
    }

    /// Writes the record if there is none: `Ok(false)` if there is one, which stays as it is. The
    /// look and the change are one step, whoever else tries; no lock is taken. Not in Prefect.
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
    /// As for [`write_as`](RecordStoreExt::write_as): [`Error::Locked`] too while another holder's
    /// lock is live, for that holder may be about to write.
    fn write_if_absent<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        compute::swap::<R, _>(self, &key.into_key()?, None, result, &options)
    }

    /// Writes `new` if the record's result is `expected` (with `None`: if there is no record):
    /// `Ok(false)` if it is not, and then it stays as it is. The look and the change are one step,
    /// whoever else tries; no lock is taken, so nobody waits for the caller's work. Not in Prefect.
    ///
    /// Results are the same if their JSON is, whatever the order of its fields and the space between
    /// them. Numbers are compared as they are written: `1` is not `1.0`.
    ///
    /// ```
    /// use record_store::{MemoryRecordStore, RecordStoreExt, WriteOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.write("visits", &1)?;
    /// loop {
    ///     let seen: Option<u64> = store.read("visits")?.map(|record| record.result);
    ///     let next = seen.map_or(1, |visits| visits + 1);
    ///     if store.compare_and_swap("visits", seen.as_ref(), &next, WriteOptions::new())? {
    ///         break;
    ///     }
    /// }
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`write_as`](RecordStoreExt::write_as), and [`Error::CorruptRecord`] and the like if
    /// the record cannot be read.
    fn compare_and_swap<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        expected: Option<&R>,
        new: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        compute::swap(self, &key.into_key()?, expected, new, &options)
    }

    /// The record's result, computed by `f` if there is none. Of all who ask for a key at once,
    /// exactly one runs `f`, under the lock; the others wait and get its result. Not in Prefect.
    ///
    /// An error or panic of `f` frees the key and stores nothing: the next who asks tries. So it is
    /// if the process of `f` dies. The result is written by the token of the lock: a computation that
    /// outlasts its lease stores nothing, and is [`Error::LockLost`]. Without a hold timeout there is
    /// no lease to outlast.
    ///
    /// `options` are [`LockOptions`], or [`UpdateOptions`] to give the result a time to live. The
    /// acquire timeout is for the wait, not for `f`.
    ///
    /// ```
    /// use record_store::{Error, LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let mut computed = 0;
    /// for _ in 0..3 {
    ///     let result = store.get_or_compute("20!", LockOptions::new(), || {
    ///         computed += 1;
    ///         Ok::<u64, Error>((1..=20).product())
    ///     })?;
    ///     assert_eq!(result, 2_432_902_008_176_640_000);
    /// }
    /// assert_eq!(computed, 1);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Whatever `f` returns; and, as its type, [`Error::LockTimeout`] when the time is up,
    /// [`Error::LockLost`], and the errors of [`read`](RecordStoreExt::read) and
    /// [`write`](RecordStoreExt::write).
    fn get_or_compute<R, E>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce() -> Result<R, E>,
    ) -> Result<R, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
    {
        compute::get_or_compute(self, &key.into_key()?, &options.into(), f)
    }

    /// Reads the record, lets `f` make the next result of it, and writes that, all under the lock.
    /// Returns what was written. Not in Prefect.
    ///
    /// An error or panic of `f` frees the key and leaves the record as it was. The result is written
    /// by the token of the lock: if the lease ran out meanwhile nothing is, and the outcome is
    /// [`Error::LockLost`].
    ///
    /// ```
    /// use record_store::{Error, LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let count = |old: Option<u64>| Ok::<u64, Error>(old.unwrap_or(0) + 1);
    /// assert_eq!(store.update("visits", LockOptions::new(), count)?, 1);
    /// assert_eq!(store.update("visits", LockOptions::new(), count)?, 2);
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`get_or_compute`](RecordStoreExt::get_or_compute).
    fn update<R, E>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce(Option<R>) -> Result<R, E>,
    ) -> Result<R, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
    {
        compute::update(self, key.into_key()?, &options.into(), f)
    }

    /// Prepares a transaction on the record; [`begin`](PendingTransaction::begin) begins it.
    /// Prefect's `prefect.transactions.transaction`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`].
    fn transaction(&self, key: impl IntoKey) -> Result<PendingTransaction<'_, '_, Self>> {
        Ok(PendingTransaction::new(self, key.into_key()?))
    }

    /// Begins to watch the record: [`RecordWatch::next`] waits for its next change after now. Ignores
    /// locks, and needs none. Not in Prefect.
    ///
    /// # Errors
    ///
    /// As for [`exists`](RecordStoreExt::exists).
    fn watch(&self, key: impl IntoKey) -> Result<RecordWatch<'_, Self>> {
        RecordWatch::begin(self, key.into_key()?)
    }

    /// Waits until the record appears or changes: `true`, or `false` when the time is up first. Not
    /// in Prefect.
    ///
    /// What counts is what happens after the call began. Who acts on what was seen before begins to
    /// [`watch`](RecordStoreExt::watch) first, then looks, then waits.
    ///
    /// # Errors
    ///
    /// As for [`exists`](RecordStoreExt::exists).
    fn wait_for_record(&self, key: impl IntoKey, timeout: Option<Duration>) -> Result<bool> {
        self.watch(key)?.wait_for_record(timeout)
    }

    /// Removes the record. `Ok(false)`: there was none. Not in Prefect.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another holder's lock is live, [`Error::Io`] if the operating
    /// system refuses.
    fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_record(&key.into_key()?, &Claim::current())
    }

    /// [`remove`](RecordStoreExt::remove) for the holder of a lock: by name, or by token.
    ///
    /// # Errors
    ///
    /// As for [`remove`](RecordStoreExt::remove), and [`Error::LockLost`] if the claim is by token
    /// and that lock is no longer live.
    fn remove_as(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<bool> {
        self.remove_record(&key.into_key()?, &claim.into())
    }

    /// Whether there is a record: one look that ignores locks. Prefect's `RecordStore.exists`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if that cannot be told, [`Error::InvalidKey`].
    fn exists(&self, key: impl IntoKey) -> Result<bool> {
        self.record_exists(&key.into_key()?)
    }

    /// Takes the lock and returns its token. Prefect's `RecordStore.acquire_lock`.
    ///
    /// Waits while another holder's lock is live, at most for the options' acquire timeout. Where
    /// the same holder has the lock already, the call succeeds at once with the same token, and the
    /// lease starts anew. Whoever acquires must [release](RecordStoreExt::release_lock);
    /// [`lock`](RecordStoreExt::lock) does both.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`] when the time is up; it names the holder. [`Error::Cancelled`] if the
    /// options have a [`Cancellation`](crate::Cancellation) that is.
    fn acquire_lock(&self, key: impl IntoKey, options: &LockOptions) -> Result<LockToken> {
        let holder = options.resolve_holder();
        Ok(self.acquire(&key.into_key()?, &holder, options)?.token)
    }

    /// Releases the lock. Prefect's `RecordStore.release_lock`.
    ///
    /// ```
    /// use record_store::{Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// store.acquire_lock("report", &LockOptions::new())?;
    /// store.release_lock("report", Holder::current())?;
    /// # Ok::<(), record_store::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// For a claim by holder: [`Error::NotLocked`], or [`Error::NotLockHolder`] if another has the
    /// lock. For a claim by token: [`Error::LockLost`]. No lock that counts is changed then.
    fn release_lock(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<()> {
        self.release(&key.into_key()?, &claim.into())
    }

    /// Starts the lease of a held lock anew: it ends `hold_timeout` from now, or, with `None`, when
    /// it is released. Not in Prefect.
    ///
    /// # Errors
    ///
    /// As for [`release_lock`](RecordStoreExt::release_lock).
    fn renew(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: Option<Duration>,
    ) -> Result<()> {
        self.renew_lease(&key.into_key()?, &claim.into(), hold_timeout)
    }

    /// Takes the lock and returns the guard that holds it. Prefect's context manager
    /// `RecordStore.lock`, except that a lock that cannot be had is an error.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`] when the time is up; it names the holder. [`Error::Cancelled`] if the
    /// options have a [`Cancellation`](crate::Cancellation) that is.
    fn lock(&self, key: impl IntoKey, options: LockOptions) -> Result<LockGuard<'_, Self>> {
        LockGuard::acquire(self, key.into_key()?, &options)
    }

    /// [`lock`](RecordStoreExt::lock) that does not wait: `Ok(None)` if the lock cannot be had at
    /// once, because another has it or because it is the turn of another who has waited for it. The
    /// options' acquire timeout does not matter.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and the like, but no [`Error::LockTimeout`].
    fn try_lock(&self, key: impl IntoKey, options: LockOptions) -> Result<Option<LockGuard<'_, Self>>> {
        match self.lock(key, options.acquire_timeout(Duration::ZERO)) {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the locks of several keys: all, or none when the time is up. Not in Prefect.
    ///
    /// They are taken one by one in the order of the keys, whatever order they are given in, so
    /// those who take several never wait for each other in a circle. Until all are there, the leases
    /// of those that are get renewed; then all begin anew.
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
    /// [`Error::LockTimeout`] when the time is up; it names the key that is missing, and its holder.
    /// No lock is held then.
    fn lock_all<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: LockOptions,
    ) -> Result<LockGuards<'_, Self>> {
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<_>>()?;
        LockGuards::acquire(self, keys, &options)
    }

    /// Whether the key has a live lock, whoever's it is. Prefect's `RecordStore.is_locked`. The
    /// answer is about a moment that is over when it arrives.
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

    /// Waits until the key has no live lock: `true`, or `false` when the time is up first. Prefect's
    /// `RecordStore.wait_for_lock`. `None` waits for ever; zero looks once. Takes no lock.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](RecordStoreExt::lock_info).
    fn wait_for_lock(&self, key: impl IntoKey, timeout: Option<Duration>) -> Result<bool> {
        self.wait_until_free(&key.into_key()?, timeout)
    }

    /// The key's live lock: who holds it, since when and until when. `Ok(None)`: it has none. Not
    /// in Prefect. Never writes.
    ///
    /// # Errors
    ///
    /// [`Error::CorruptLock`], [`Error::KeyMismatch`], [`Error::Io`] and the like if that cannot be
    /// told.
    fn lock_info(&self, key: impl IntoKey) -> Result<Option<LockInfo>> {
        self.current_lock(&key.into_key()?)
    }

    /// Takes the lock away from whoever has it, be it live, dead or beyond understanding; `false`
    /// if there was none. Not in Prefect.
    ///
    /// For people and for repair: the holder may still be at work. What it does by its token from
    /// now on is refused with [`Error::LockLost`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the operating system refuses.
    fn break_lock(&self, key: impl IntoKey) -> Result<bool> {
        self.force_release(&key.into_key()?)
    }

    /// Every key that has a record, in no order. Not in Prefect.
    ///
    /// A stream: memory does not grow with the number of records. Records that come or go meanwhile
    /// may or may not be listed.
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
    /// [`Error::Io`] if the listing cannot begin. An item is an error if that one record cannot be
    /// told; the listing goes on after it.
    fn keys(&self) -> Result<Listing<'_, Key>> {
        self.all_keys()
    }

    /// Every lock that the store knows of, in no order: who holds what, since when, until when. Not
    /// in Prefect.
    ///
    /// Locks that no longer count are among them, and say so in [`LockInfo::state`].
    ///
    /// # Errors
    ///
    /// As for [`keys`](RecordStoreExt::keys).
    fn locks(&self) -> Result<Listing<'_, LockInfo>> {
        self.all_locks()
    }

    /// Whether transactions of this level can be had. Prefect's
    /// `RecordStore.supports_isolation_level`.
    fn supports_isolation_level(&self, level: IsolationLevel) -> bool {
        self.supports_level(level)
    }
}

impl<S: RecordStore + ?Sized> RecordStoreExt for S {}

fn read_result<R: DeserializeOwned, S: RecordStore + ?Sized>(
    store: &S,
    key: impl IntoKey,
    claim: &Claim,
    timeout: Option<Duration>,
) -> Result<Option<TransactionRecord<R>>> {
    let key = key.into_key()?;
    match store.read_json(&key, claim, timeout)? {
        Some(json) => TransactionRecord::decode("read", key, &json).map(Some),
        None => Ok(None),
    }
}

fn write_result<R: Serialize + ?Sized, S: RecordStore + ?Sized>(
    store: &S,
    key: &Key,
    result: &R,
    claim: &Claim,
    options: &WriteOptions,
) -> Result<()> {
    store.write_json(key, &encode("write", key, result)?, claim, options)
}
