//! The contract, for implementers of stores. `ext` has the methods for their users.

pub(crate) mod calls;
pub(crate) mod ext;
#[cfg(feature = "tokio")]
pub(crate) mod futures;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::changes::polling;
use crate::{
    Acquired, BreakOptions, Claim, Error, Evicted, EvictionPolicy, Json, Key, ListOptions, LockInfo,
    LockOptions, RawRecord, ReadOptions, RecordInfo, RecordVersion, RemoveOptions, Result, SeenRecords,
    WaitOptions, WriteOptions,
};
#[cfg(doc)]
use crate::{ErrorKind, RecordStoreExt};

/// How far concurrent users of one record are isolated from each other. Prefect's `IsolationLevel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IsolationLevel {
    /// A read sees only committed results.
    ReadCommitted,
    /// One at a time: the record is locked from the first read to the last change.
    Serializable,
}

/// Identifies a store within a process: handles of one store have the same identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoreIdentity {
    kind: &'static str,
    numbers: [u64; 2],
}

impl StoreIdentity {
    /// The identity of the store that these numbers distinguish from all others of its kind: for example the
    /// device and the inode number of a directory.
    #[must_use]
    pub const fn new(kind: &'static str, numbers: [u64; 2]) -> Self {
        Self { kind, numbers }
    }

    /// An identity that no other store of this process has.
    #[must_use]
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self::new("unique", [NEXT.fetch_add(1, Ordering::Relaxed), 0])
    }
}

/// The condition of a swap.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Expected<'a> {
    /// There is no record.
    Absent,
    /// The record's result [is](Json::is_same_value) this one.
    Value(&'a Json),
    /// The record has this version or, with [`RecordVersion::ABSENT`], there is no record.
    Version(RecordVersion),
}

impl Expected<'_> {
    /// Whether the record, or its absence, is the expected one.
    #[must_use]
    pub fn matches(&self, record: Option<&RawRecord>) -> bool {
        match (*self, record) {
            (Expected::Absent, record) => record.is_none(),
            (Expected::Value(json), record) => record.is_some_and(|record| record.json.is_same_value(json)),
            (Expected::Version(version), Some(record)) => record.version == version,
            (Expected::Version(version), None) => version.is_absent(),
        }
    }
}

/// A stream of items, one by one.
pub type Listing<'a, T> = Box<dyn Iterator<Item = Result<T>> + Send + 'a>;

/// The operations of a record store. Implement this trait to write a store; use a store through
/// [`RecordStoreExt`].
///
/// The trait is object-safe and works the same through `&S`, `Box<S>` and `Arc<S>`.
///
/// Each method is named after the operation of [`RecordStoreExt`] that calls it, with the suffix `_raw`:
/// it takes a checked key and complete options, and exchanges results as [`Json`]. So both traits can be
/// in scope together. A method that a store does not implement returns [`ErrorKind::Unsupported`] with the
/// operation's name, as Prefect's base class raises `NotImplementedError`. The feature `conformance`
/// provides the whole contract as a test suite.
///
/// # Names of operations
///
/// [`Error::operation`] is part of the contract, because programs and people read it. Every error of a method names the
/// method without its suffix: `read`, `write`, `compare_and_swap`, `exists`, `remove`, `keys`, `records`, `record_info`,
/// `changes`, `evict`, `acquire_lock`, `renew`, `release_lock`, `lock_info`, `wait_for_lock`, `break_lock`, `locks`. Two have another
/// name, that of the operation which they are parts of: `version_raw` and `wait_for_change_raw` are `watch`.
///
/// # The contract
///
/// A *lock* is live from its acquisition until it is released or broken, until its lease expires or, if
/// its holder is bound to a process, until that process is gone. At no moment are two locks of one key
/// live. A [`Claim`] by holder is valid while no other holder's lock is live. A claim by token is valid
/// only while the lock of exactly that acquisition is live: [`Claim::Token`] in the process that made it,
/// [`Claim::Delegated`] in every process.
///
/// An operation that returns an error has changed nothing, unless
/// [`is_outcome_unknown`](Error::is_outcome_unknown) says otherwise.
///
/// Every method that can block takes [`WaitOptions`], alone or inside of other options: it returns when the
/// timeout is over, with [`ErrorKind::LockTimeout`] unless the method says otherwise, and as soon as it is
/// cancelled, with [`ErrorKind::Cancelled`]. A change does not wait for another holder's lock, but it may have to
/// wait for a process that is stopped in the middle of a change. [`Cancellation::on_cancel`] is how a store
/// wakes a thread that sleeps, and [`WaitReports`] how it tells the observer in the options whom a call waits for.
///
/// Acquisitions that wait get the lock in the order in which they began to wait, and a new one does not pass them. If
/// one of them is dead or stopped, the next one has its turn.
///
/// [`Cancellation::on_cancel`]: crate::Cancellation::on_cancel
/// [`WaitReports`]: crate::WaitReports
pub trait RecordStore: Debug + Send + Sync {
    /// The identity of the store. With it the guards of this process know which of them share a lock, so that the
    /// last one releases it. `None`, the default: only the guard that acquired a lock first releases it.
    fn identity_raw(&self) -> Option<StoreIdentity> {
        None
    }

    /// The operations as futures, if the store has them. Others run on threads.
    #[cfg(feature = "tokio")]
    #[doc(hidden)]
    fn futures_raw(&self) -> Option<Arc<dyn futures::RecordStoreFutures>> {
        None
    }

    /// Reads a record that was current at a moment within the call at which no other holder's lock was
    /// live. `Ok(None)`: there was no record. See [`RecordStoreExt::read_with`].
    ///
    /// Waits while another holder's lock is live, also if there is no record yet: its holder may be
    /// about to write it. With [`ReadOptions::ignore_lock`] it returns the last committed state at
    /// once. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockTimeout`] at the timeout, never a silent `None`. [`ErrorKind::Cancelled`].
    /// [`ErrorKind::LockLost`] if the claim is by token and not valid. [`ErrorKind::CorruptRecord`],
    /// [`ErrorKind::KeyMismatch`], [`ErrorKind::Io`] and similar if the record cannot be read.
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>>;

    /// Writes the record's result atomically: at every moment a reader sees the old record or the new
    /// one. Every write gives the record a version that it never had. See [`RecordStoreExt::write_with`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Locked`], at once, while another holder's lock is live. [`ErrorKind::LockLost`] if
    /// the claim is by token and not valid. [`ErrorKind::Unsupported`] for a time to live that the store
    /// cannot keep. [`ErrorKind::Io`] and similar.
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()>;

    /// [`RecordStore::write_raw`] if the record is [as expected](Expected::matches). The comparison and the
    /// change are one atomic step. `Ok(false)`: the record is different, and nothing was changed. See
    /// [`RecordStoreExt::write_if_version`], [`RecordStoreExt::compare_and_swap`] and
    /// [`RecordStoreExt::write_if_absent`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::write_raw`].
    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        let _ = (expected, result, options);
        Err(unsupported("compare_and_swap", Some(key)))
    }

    /// Whether there is a record, regardless of locks. See [`RecordStoreExt::exists`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] and similar if that cannot be determined.
    fn exists_raw(&self, key: &Key) -> Result<bool>;

    /// Removes the record, under the conditions of [`RecordStore::write_raw`]. `Ok(false)`: there was
    /// none. See [`RecordStoreExt::remove`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::write_raw`].
    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        let _ = options;
        Err(unsupported("remove", Some(key)))
    }

    /// The present version of the record, to compare it with a later one. Ignores locks. See
    /// [`RecordStoreExt::watch`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::exists_raw`].
    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        Err(unsupported("watch", Some(key)))
    }

    /// Waits until the record has another version than `seen`, and returns that version. `Ok(None)` at
    /// the timeout. Ignores locks. See [`RecordStoreExt::watch`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`RecordStore::exists_raw`].
    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        let _ = (seen, options);
        Err(unsupported("watch", Some(key)))
    }

    /// Waits until a record has another version than the one that [`SeenRecords`] knows and has reported, and notes
    /// that there. `Ok(false)` at the timeout. Ignores locks. See [`RecordStoreExt::changes`].
    ///
    /// The first call with a new `SeenRecords` notes the present versions, however long that takes, and returns
    /// `Ok(false)`. The default lists all [records](RecordStore::records_raw) from time to time, at least 100 ms apart,
    /// and so seldom that it takes at most a twentieth of the time.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`RecordStore::records_raw`] and [`RecordStore::exists_raw`]. What was noted
    /// before stays noted.
    fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
        polling::changes(self, seen, &options)
    }

    /// Every key that has a record, in no order, as a stream: memory use does not grow with the number
    /// of records. Records that are created or removed meanwhile may or may not be listed. See
    /// [`RecordStoreExt::keys`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the listing cannot begin. An item is an error if that one record cannot be
    /// identified; the listing continues after it.
    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        Err(unsupported("keys", None))
    }

    /// A description of every record that the options select, in no order, as a stream. Ignores locks. See
    /// [`RecordStoreExt::records`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::keys_raw`]. An item is also an error if that one record cannot be read.
    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        let _ = options;
        Err(unsupported("records", None))
    }

    /// A description of the record, without its result. Ignores locks. `Ok(None)`: there is none. See
    /// [`RecordStoreExt::record_info`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::read_raw`], but it waits for no lock.
    fn record_info_raw(&self, key: &Key) -> Result<Option<RecordInfo>> {
        Err(unsupported("record_info", Some(key)))
    }

    /// Removes the oldest records until the policy is kept, but none that is locked, and none that changes meanwhile.
    /// See [`RecordStoreExt::evict`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] for an order that the store does not know; [`ErrorKind::Io`] and similar; what was removed before stays removed.
    fn evict_raw(&self, policy: EvictionPolicy) -> Result<Evicted> {
        let _ = policy;
        Err(unsupported("evict", None))
    }

    /// Whether transactions of this level are possible. See
    /// [`RecordStoreExt::supports_isolation_level`].
    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        let _ = level;
        false
    }

    /// Acquires the lock, or restarts its lease if the same holder has it already. See
    /// [`RecordStoreExt::acquire_lock`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::LockTimeout`] at the timeout; the error names the holder. [`ErrorKind::Cancelled`]
    /// as soon as it is cancelled. [`ErrorKind::LockShared`] for an exclusive lock, if the holder shares it.
    /// [`ErrorKind::Unsupported`] for a [shared](LockOptions::shared) lock that the store does not know.
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let _ = options;
        Err(unsupported("acquire_lock", Some(key)))
    }

    /// Restarts the lease of a live lock: it ends `hold_timeout` from now, or never. See
    /// [`RecordStoreExt::renew`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotLocked`] or [`ErrorKind::NotLockHolder`] for a claim by holder,
    /// [`ErrorKind::LockLost`] for a claim by token that is not valid. [`ErrorKind::LockTimeout`] and
    /// [`ErrorKind::Cancelled`]. The lock is as before then, unless [`Error::is_outcome_unknown`].
    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        let _ = (claim, hold_timeout, options);
        Err(unsupported("renew", Some(key)))
    }

    /// Releases a live lock and wakes the waiters. See [`RecordStoreExt::release_lock`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::renew_raw`].
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        let _ = (claim, options);
        Err(unsupported("release_lock", Some(key)))
    }

    /// The key's live lock, if there is one. Changes nothing. See [`RecordStoreExt::lock_info`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::CorruptLock`] or [`ErrorKind::Io`] if that cannot be determined.
    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        Err(unsupported("lock_info", Some(key)))
    }

    /// Waits until the key has no live lock of any holder. `Ok(false)` at the timeout. See
    /// [`RecordStoreExt::wait_for_lock`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`RecordStore::lock_info_raw`].
    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        let _ = options;
        Err(unsupported("wait_for_lock", Some(key)))
    }

    /// Removes the lock of any holder, live or not; with a token, only the lock of that acquisition.
    /// `Ok(false)`: there was none. See [`RecordStoreExt::break_lock_with`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`] if the operating system refuses, [`ErrorKind::LockTimeout`], [`ErrorKind::Cancelled`]. With a
    /// token also as for [`RecordStore::lock_info_raw`].
    fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
        let _ = options;
        Err(unsupported("break_lock", Some(key)))
    }

    /// Every lock that the store knows of, in no order, as a stream. Expired and abandoned locks are
    /// among them; [`LockInfo::state`] says so. See [`RecordStoreExt::locks`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::keys_raw`].
    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        Err(unsupported("locks", None))
    }
}

fn unsupported(operation: &'static str, key: Option<&Key>) -> Error {
    let error = Error::new(crate::ErrorKind::Unsupported, operation);
    match key {
        Some(key) => error.with_key(key),
        None => error,
    }
}

macro_rules! delegate {
    ($($pointer:ty),*) => {$(
        impl<S: RecordStore + ?Sized> RecordStore for $pointer {
            fn identity_raw(&self) -> Option<StoreIdentity> {
                (**self).identity_raw()
            }
            #[cfg(feature = "tokio")]
            fn futures_raw(&self) -> Option<Arc<dyn futures::RecordStoreFutures>> {
                (**self).futures_raw()
            }
            fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
                (**self).read_raw(key, options)
            }
            fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
                (**self).write_raw(key, result, options)
            }
            fn compare_and_swap_raw(
                &self,
                key: &Key,
                expected: Expected<'_>,
                result: &Json,
                options: WriteOptions,
            ) -> Result<bool> {
                (**self).compare_and_swap_raw(key, expected, result, options)
            }
            fn exists_raw(&self, key: &Key) -> Result<bool> {
                (**self).exists_raw(key)
            }
            fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
                (**self).remove_raw(key, options)
            }
            fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
                (**self).version_raw(key)
            }
            fn wait_for_change_raw(
                &self,
                key: &Key,
                seen: RecordVersion,
                options: WaitOptions,
            ) -> Result<Option<RecordVersion>> {
                (**self).wait_for_change_raw(key, seen, options)
            }
            fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
                (**self).changes_raw(seen, options)
            }
            fn keys_raw(&self) -> Result<Listing<'_, Key>> {
                (**self).keys_raw()
            }
            fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
                (**self).records_raw(options)
            }
            fn record_info_raw(&self, key: &Key) -> Result<Option<RecordInfo>> {
                (**self).record_info_raw(key)
            }
            fn evict_raw(&self, policy: EvictionPolicy) -> Result<Evicted> {
                (**self).evict_raw(policy)
            }
            fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
                (**self).supports_isolation_level_raw(level)
            }
            fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
                (**self).acquire_lock_raw(key, options)
            }
            fn renew_raw(
                &self,
                key: &Key,
                claim: &Claim,
                hold_timeout: Option<Duration>,
                options: WaitOptions,
            ) -> Result<()> {
                (**self).renew_raw(key, claim, hold_timeout, options)
            }
            fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
                (**self).release_lock_raw(key, claim, options)
            }
            fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
                (**self).lock_info_raw(key)
            }
            fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
                (**self).wait_for_lock_raw(key, options)
            }
            fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
                (**self).break_lock_raw(key, options)
            }
            fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
                (**self).locks_raw()
            }
        }
    )*};
}

delegate!(&S, Box<S>, Arc<S>);
