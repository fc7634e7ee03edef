//! Stores whose operations are futures themselves: they need no threads.

use std::pin::Pin;
use std::time::Duration;

use crate::{
    Acquired, Claim, Expected, Json, Key, LockInfo, LockOptions, LockToken, RawRecord, ReadOptions,
    RecordVersion, RemoveOptions, Result, WaitOptions, WriteOptions,
};

/// The outcome of an operation, as a future.
pub type RecordStoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The operations of [`RecordStore`](crate::RecordStore) as futures, with the same meaning.
///
/// A future of a change may be dropped at any time: the change happens as a whole or not at all. A future of
/// `acquire_lock` is never dropped before its end, but cancelled.
pub trait RecordStoreFutures: Send + Sync {
    /// Runs a future to its end, independent of the caller's runtime.
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>);
    /// See [`RecordStore::read_raw`](crate::RecordStore::read_raw).
    fn read<'a>(&'a self, key: &'a Key, options: ReadOptions) -> RecordStoreFuture<'a, Option<RawRecord>>;
    /// See [`RecordStore::write_raw`](crate::RecordStore::write_raw).
    fn write<'a>(
        &'a self,
        key: &'a Key,
        result: &'a Json,
        options: WriteOptions,
    ) -> RecordStoreFuture<'a, ()>;
    /// See [`RecordStore::compare_and_swap_raw`](crate::RecordStore::compare_and_swap_raw).
    fn compare_and_swap<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected<'a>,
        result: &'a Json,
        options: WriteOptions,
    ) -> RecordStoreFuture<'a, bool>;
    /// See [`RecordStore::exists_raw`](crate::RecordStore::exists_raw).
    fn exists<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, bool>;
    /// See [`RecordStore::remove_raw`](crate::RecordStore::remove_raw).
    fn remove<'a>(&'a self, key: &'a Key, options: RemoveOptions) -> RecordStoreFuture<'a, bool>;
    /// See [`RecordStore::version_raw`](crate::RecordStore::version_raw).
    fn version<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, RecordVersion>;
    /// See [`RecordStore::wait_for_change_raw`](crate::RecordStore::wait_for_change_raw).
    fn wait_for_change<'a>(
        &'a self,
        key: &'a Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, Option<RecordVersion>>;
    /// See [`RecordStore::acquire_lock_raw`](crate::RecordStore::acquire_lock_raw).
    fn acquire_lock<'a>(&'a self, key: &'a Key, options: LockOptions) -> RecordStoreFuture<'a, Acquired>;
    /// See [`RecordStore::renew_raw`](crate::RecordStore::renew_raw).
    fn renew<'a>(
        &'a self,
        key: &'a Key,
        claim: &'a Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, ()>;
    /// See [`RecordStore::release_lock_raw`](crate::RecordStore::release_lock_raw).
    fn release_lock<'a>(
        &'a self,
        key: &'a Key,
        claim: &'a Claim,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, ()>;
    /// See [`RecordStore::lock_info_raw`](crate::RecordStore::lock_info_raw).
    fn lock_info<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, Option<LockInfo>>;
    /// See [`RecordStore::wait_for_lock_raw`](crate::RecordStore::wait_for_lock_raw).
    fn wait_for_lock<'a>(&'a self, key: &'a Key, options: WaitOptions) -> RecordStoreFuture<'a, bool>;
    /// See [`RecordStore::break_lock_raw`](crate::RecordStore::break_lock_raw).
    fn break_lock<'a>(
        &'a self,
        key: &'a Key,
        token: Option<LockToken>,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, bool>;
}
