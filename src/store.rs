//! The contract, for those who write stores. Those who use them want `RecordStoreExt`.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

#[cfg(doc)]
use crate::RecordStoreExt;
use crate::record::Json;
use crate::{
    Acquired, Claim, Error, Holder, Key, LockInfo, LockOptions, RecordVersion, Result, WriteOptions,
};

/// How far apart the users of one record are kept. Prefect's `IsolationLevel`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IsolationLevel {
    /// A read sees only what was committed.
    ReadCommitted,
    /// One at a time: the record is locked from the first look to the last change.
    Serializable,
}

/// Items as a store finds them, one by one.
pub type Listing<'a, T> = Box<dyn Iterator<Item = Result<T>> + Send + 'a>;

/// What a record store does. Implement this to write one; use it through [`RecordStoreExt`].
///
/// The trait is object-safe and works the same through `&S`, `Box<S>` and `Arc<S>`. Its methods
/// speak JSON text and have names of their own, so that both traits can be in scope together. A
/// method that a store leaves out answers [`Error::Unsupported`] with the name under which users
/// know it, as Prefect's base class raises `NotImplementedError`. The feature `conformance` has
/// the whole contract as a test suite.
///
/// # The contract
///
/// A *lock* is live from its acquisition until it is released or broken, until its lease runs out
/// or, if its holder is bound to a process, until that process is gone. At no moment are two locks
/// of one key live. A [`Claim`] by holder is good while no other holder's lock is live; a claim by
/// token is good only while the lock of exactly that acquisition is live. An operation that returns
/// an error has changed nothing, unless the error says otherwise.
pub trait RecordStore: Debug + Send + Sync {
    /// Reads a result that was current at a moment within the call at which no other holder's lock
    /// was live. `Ok(None)`: there was no record.
    ///
    /// Waits while another holder's lock is live, also where there is no record yet: its holder may
    /// be about to write it. Changes nothing. See [`RecordStoreExt::read`].
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`] when the time is up, never a silent `None`. [`Error::LockLost`] if
    /// the claim is by token and not good. [`Error::CorruptRecord`], [`Error::KeyMismatch`],
    /// [`Error::Io`] and the like if there is a record that cannot be read.
    fn read_json(&self, key: &Key, claim: &Claim, timeout: Option<Duration>) -> Result<Option<Json>>;

    /// Makes `result` the record's result, in one step: at every moment a reader sees the old
    /// record or the new. See [`RecordStoreExt::write`].
    ///
    /// `options` give the time to live; the claim is `claim`.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another holder's lock is live, at once. [`Error::LockLost`] if the
    /// claim is by token and not good. [`Error::Unsupported`] for a time to live that the store
    /// cannot keep. [`Error::Io`] and the like.
    fn write_json(&self, key: &Key, result: &RawValue, claim: &Claim, options: &WriteOptions) -> Result<()>;

    /// [`RecordStore::write_json`] if the record's result is `expected`, or, with `None`, if there is
    /// no record: the look and the change are one step. `Ok(false)`: it is not, and nothing was
    /// changed. See [`RecordStoreExt::compare_and_swap`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::write_json`].
    fn swap_json(
        &self,
        key: &Key,
        expected: Option<&RawValue>,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<bool> {
        let _ = (key, expected, result, claim, options);
        Err(Error::Unsupported { method: "compare_and_swap" })
    }

    /// Whether there is a record: one look that ignores locks. See [`RecordStoreExt::exists`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if that cannot be told.
    fn record_exists(&self, key: &Key) -> Result<bool>;

    /// Removes the record, under the conditions of [`RecordStore::write_json`]. `Ok(false)`: there
    /// was none. See [`RecordStoreExt::remove`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::write_json`].
    fn remove_record(&self, key: &Key, claim: &Claim) -> Result<bool> {
        let _ = (key, claim);
        Err(Error::Unsupported { method: "remove" })
    }

    /// The state of the record as it is now, to be compared with a later one. Ignores locks. See
    /// [`RecordStoreExt::watch`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::record_exists`].
    fn record_version(&self, key: &Key) -> Result<RecordVersion> {
        let _ = key;
        Err(Error::Unsupported { method: "watch" })
    }

    /// Waits until the record is in another state than `seen`, and returns that; `Ok(None)` when
    /// the time is up first. Ignores locks. See [`RecordStoreExt::watch`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::record_exists`].
    fn wait_for_change(
        &self,
        key: &Key,
        seen: &RecordVersion,
        timeout: Option<Duration>,
    ) -> Result<Option<RecordVersion>> {
        let _ = (key, seen, timeout);
        Err(Error::Unsupported { method: "watch" })
    }

    /// Every key that has a record, in no order, as a stream: memory does not grow with the number
    /// of records. Records that come or go meanwhile may or may not be listed. See
    /// [`RecordStoreExt::keys`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the listing cannot begin; an item is an error if that one record cannot be
    /// told, and the listing goes on after it.
    fn all_keys(&self) -> Result<Listing<'_, Key>> {
        Err(Error::Unsupported { method: "keys" })
    }

    /// Whether transactions of this level can be had. See
    /// [`RecordStoreExt::supports_isolation_level`].
    fn supports_level(&self, level: IsolationLevel) -> bool {
        let _ = level;
        false
    }

    /// Takes the lock, or starts its lease anew if the same holder has it. See
    /// [`RecordStoreExt::acquire_lock`].
    ///
    /// `options` give the timeouts and the cancellation; the holder is `holder`.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`] when the time is up; it names the holder. [`Error::Cancelled`] as soon
    /// as it is cancelled: [`Cancellation::on_cancel`](crate::Cancellation::on_cancel) wakes one who
    /// waits.
    fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        let _ = (key, holder, options);
        Err(Error::Unsupported { method: "acquire_lock" })
    }

    /// Starts the lease of a live lock anew: it ends `hold_timeout` from now, or never. See
    /// [`RecordStoreExt::renew`].
    ///
    /// # Errors
    ///
    /// [`Error::NotLocked`] or [`Error::NotLockHolder`] for a claim by holder, [`Error::LockLost`]
    /// for a claim by token that is not good.
    fn renew_lease(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
        let _ = (key, claim, hold_timeout);
        Err(Error::Unsupported { method: "renew" })
    }

    /// Releases a live lock and wakes those who wait. See [`RecordStoreExt::release_lock`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::renew_lease`].
    fn release(&self, key: &Key, claim: &Claim) -> Result<()> {
        let _ = (key, claim);
        Err(Error::Unsupported { method: "release_lock" })
    }

    /// The key's live lock, if there is one. Changes nothing. See [`RecordStoreExt::lock_info`].
    ///
    /// # Errors
    ///
    /// [`Error::CorruptLock`] or [`Error::Io`] if that cannot be told.
    fn current_lock(&self, key: &Key) -> Result<Option<LockInfo>> {
        let _ = key;
        Err(Error::Unsupported { method: "lock_info" })
    }

    /// Waits until the key has no live lock, whoever's it is: `true`, or `false` when the time is
    /// up first. See [`RecordStoreExt::wait_for_lock`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::current_lock`].
    fn wait_until_free(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
        let _ = (key, timeout);
        Err(Error::Unsupported { method: "wait_for_lock" })
    }

    /// Takes the lock away from whoever has it. See [`RecordStoreExt::break_lock`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the operating system refuses.
    fn force_release(&self, key: &Key) -> Result<bool> {
        let _ = key;
        Err(Error::Unsupported { method: "break_lock" })
    }

    /// Every lock that the store knows of, in no order, as a stream. Locks that no longer count are
    /// among them, and say so in [`LockInfo::state`]. See [`RecordStoreExt::locks`].
    ///
    /// # Errors
    ///
    /// As for [`RecordStore::all_keys`].
    fn all_locks(&self) -> Result<Listing<'_, LockInfo>> {
        Err(Error::Unsupported { method: "locks" })
    }
}

macro_rules! delegate {
    ($($pointer:ty),*) => {$(
        impl<S: RecordStore + ?Sized> RecordStore for $pointer {
            fn read_json(&self, key: &Key, claim: &Claim, timeout: Option<Duration>) -> Result<Option<Json>> {
                (**self).read_json(key, claim, timeout)
            }
            fn write_json(
                &self,
                key: &Key,
                result: &RawValue,
                claim: &Claim,
                options: &WriteOptions,
            ) -> Result<()> {
                (**self).write_json(key, result, claim, options)
            }
            fn swap_json(
                &self,
                key: &Key,
                expected: Option<&RawValue>,
                result: &RawValue,
                claim: &Claim,
                options: &WriteOptions,
            ) -> Result<bool> {
                (**self).swap_json(key, expected, result, claim, options)
            }
            fn record_version(&self, key: &Key) -> Result<RecordVersion> {
                (**self).record_version(key)
            }
            fn wait_for_change(
                &self,
                key: &Key,
                seen: &RecordVersion,
                timeout: Option<Duration>,
            ) -> Result<Option<RecordVersion>> {
                (**self).wait_for_change(key, seen, timeout)
            }
            fn record_exists(&self, key: &Key) -> Result<bool> {
                (**self).record_exists(key)
            }
            fn remove_record(&self, key: &Key, claim: &Claim) -> Result<bool> {
                (**self).remove_record(key, claim)
            }
            fn all_keys(&self) -> Result<Listing<'_, Key>> {
                (**self).all_keys()
            }
            fn supports_level(&self, level: IsolationLevel) -> bool {
                (**self).supports_level(level)
            }
            fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
                (**self).acquire(key, holder, options)
            }
            fn renew_lease(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
                (**self).renew_lease(key, claim, hold_timeout)
            }
            fn release(&self, key: &Key, claim: &Claim) -> Result<()> {
                (**self).release(key, claim)
            }
            fn current_lock(&self, key: &Key) -> Result<Option<LockInfo>> {
                (**self).current_lock(key)
            }
            fn wait_until_free(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
                (**self).wait_until_free(key, timeout)
            }
            fn force_release(&self, key: &Key) -> Result<bool> {
                (**self).force_release(key)
            }
            fn all_locks(&self) -> Result<Listing<'_, LockInfo>> {
                (**self).all_locks()
            }
        }
    )*};
}

delegate!(&S, Box<S>, Arc<S>);
