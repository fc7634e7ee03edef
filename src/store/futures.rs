//! The operations of a store as futures: its own, which need no threads, or those that block.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::calls::{Calls, poll_once};
use crate::{
    Acquired, BreakOptions, Claim, Evicted, EvictionPolicy, Expected, Json, Key, LockInfo, LockOptions,
    RawRecord, ReadOptions, RecordInfo, RecordStore, RecordVersion, RemoveOptions, Result, SeenRecords,
    WaitOptions, WriteOptions,
};

/// The outcome of an operation, as a future.
pub(crate) type RecordStoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The operations of any store, as futures that block the thread that polls them: one poll makes them ready.
pub(crate) struct Blocking<S: ?Sized>(pub(crate) Arc<S>);

/// Declares each operation, and that it blocks in `Blocking`.
macro_rules! operations {
    ($($name:ident = $blocking:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        /// The operations of [`RecordStore`](crate::RecordStore) as futures, with the same meaning.
        ///
        /// A future of a change may be dropped at any time: the change happens as a whole or not at all. `evict` is a
        /// change of each record. A future of `acquire_lock` is never dropped before its end, but cancelled.
        pub trait RecordStoreFutures: Send + Sync {
            /// Runs a future to its end, independent of the caller's runtime.
            fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>);

            /// Whether the futures block the thread that polls them.
            fn blocks(&self) -> bool {
                false
            }

            $(
                #[doc = concat!("See [`RecordStore::", stringify!($blocking), "`](crate::RecordStore::",
                    stringify!($blocking), ").")]
                #[allow(clippy::elidable_lifetime_names, reason = "the arguments of some operations have it")]
                fn $name<'a>(&'a self $(, $argument: $type)*) -> RecordStoreFuture<'a, $output>;
            )*
        }

        impl<S: RecordStore + ?Sized + 'static> RecordStoreFutures for Blocking<S> {
            /// On the blocking pool of the caller's runtime.
            fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
                tokio::task::spawn_blocking(move || poll_once(future));
            }

            fn blocks(&self) -> bool {
                true
            }

            $(
                #[allow(clippy::elidable_lifetime_names, reason = "the arguments of some operations have it")]
                fn $name<'a>(&'a self $(, $argument: $type)*) -> RecordStoreFuture<'a, $output> {
                    Box::pin(async move { self.0.$blocking($($argument),*) })
                }
            )*
        }
    };
}

operations! {
    read = read_raw(key: &'a Key, options: ReadOptions) -> Option<RawRecord>;
    write = write_raw(key: &'a Key, result: &'a Json, options: WriteOptions) -> ();
    compare_and_swap = compare_and_swap_raw(
        key: &'a Key, expected: Expected<'a>, result: &'a Json, options: WriteOptions) -> bool;
    exists = exists_raw(key: &'a Key) -> bool;
    remove = remove_raw(key: &'a Key, options: RemoveOptions) -> bool;
    version = version_raw(key: &'a Key) -> RecordVersion;
    wait_for_change =
        wait_for_change_raw(key: &'a Key, seen: RecordVersion, options: WaitOptions) -> Option<RecordVersion>;
    changes = changes_raw(seen: &'a mut SeenRecords, options: WaitOptions) -> bool;
    record_info = record_info_raw(key: &'a Key) -> Option<RecordInfo>;
    evict = evict_raw(policy: EvictionPolicy) -> Evicted;
    acquire_lock = acquire_lock_raw(key: &'a Key, options: LockOptions) -> Acquired;
    renew = renew_raw(
        key: &'a Key, claim: &'a Claim, hold_timeout: Option<Duration>, options: WaitOptions) -> ();
    release_lock = release_lock_raw(key: &'a Key, claim: &'a Claim, options: WaitOptions) -> ();
    lock_info = lock_info_raw(key: &'a Key) -> Option<LockInfo>;
    wait_for_lock = wait_for_lock_raw(key: &'a Key, options: WaitOptions) -> bool;
    break_lock = break_lock_raw(key: &'a Key, options: BreakOptions) -> bool;
}

impl Calls for dyn RecordStoreFutures + '_ {
    async fn acquire_lock(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        RecordStoreFutures::acquire_lock(self, key, options).await
    }

    async fn release_lock(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        RecordStoreFutures::release_lock(self, key, claim, options).await
    }

    async fn lock_info(&self, key: &Key) -> Result<Option<LockInfo>> {
        RecordStoreFutures::lock_info(self, key).await
    }

    async fn wait(&self, wait: impl FnOnce() + Send + 'static) {
        if self.blocks() {
            return wait();
        }
        // It may be waiting for the runtime that polls this future.
        let _ = tokio::task::spawn_blocking(wait).await;
    }
}
