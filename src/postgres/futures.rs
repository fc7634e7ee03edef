//! The operations as futures: those that the blocking methods wait for.

use std::pin::Pin;
use std::time::Duration;

use super::engine::engine;
use super::{PostgresRecordStore, evict, lock_info, locks, record_info, records, store_changes, watching};
use crate::store::futures::{RecordStoreFuture, RecordStoreFutures};
use crate::{
    Acquired, BreakOptions, Claim, Evicted, EvictionPolicy, Expected, Json, Key, LockInfo, LockOptions,
    RawRecord, ReadOptions, RecordInfo, RecordVersion, RemoveOptions, SeenRecords, WaitOptions, WriteOptions,
};

impl RecordStoreFutures for PostgresRecordStore {
    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // Without an engine there is no connection, so there is nothing to do either.
        if let Ok(engine) = engine() {
            engine.spawn(future);
        }
    }

    fn read<'a>(&'a self, key: &'a Key, options: ReadOptions) -> RecordStoreFuture<'a, Option<RawRecord>> {
        Box::pin(records::read(&self.0, key, options))
    }

    fn write<'a>(
        &'a self,
        key: &'a Key,
        result: &'a Json,
        options: WriteOptions,
    ) -> RecordStoreFuture<'a, ()> {
        Box::pin(records::write(&self.0, key, result, options))
    }

    fn compare_and_swap<'a>(
        &'a self,
        key: &'a Key,
        expected: Expected<'a>,
        result: &'a Json,
        options: WriteOptions,
    ) -> RecordStoreFuture<'a, bool> {
        Box::pin(records::compare_and_swap(&self.0, key, expected, result, options))
    }

    fn exists<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, bool> {
        Box::pin(records::exists(&self.0, key))
    }

    fn remove<'a>(&'a self, key: &'a Key, options: RemoveOptions) -> RecordStoreFuture<'a, bool> {
        Box::pin(records::remove(&self.0, key, options))
    }

    fn version<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, RecordVersion> {
        Box::pin(watching::version(&self.0, key))
    }

    fn wait_for_change<'a>(
        &'a self,
        key: &'a Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, Option<RecordVersion>> {
        Box::pin(watching::wait_for_change(&self.0, key, seen, options))
    }

    fn changes<'a>(&'a self, seen: &'a mut SeenRecords, options: WaitOptions) -> RecordStoreFuture<'a, bool> {
        Box::pin(store_changes::changes(&self.0, seen, options))
    }

    fn record_info<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, Option<RecordInfo>> {
        Box::pin(record_info::record_info(&self.0, key))
    }

    fn evict(&self, policy: EvictionPolicy) -> RecordStoreFuture<'_, Evicted> {
        Box::pin(async move { evict::evict(&self.0, &policy).await })
    }

    fn acquire_lock<'a>(&'a self, key: &'a Key, options: LockOptions) -> RecordStoreFuture<'a, Acquired> {
        Box::pin(locks::acquire_lock(&self.0, key, options))
    }

    fn renew<'a>(
        &'a self,
        key: &'a Key,
        claim: &'a Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, ()> {
        Box::pin(locks::renew(&self.0, key, claim, hold_timeout, options))
    }

    fn release_lock<'a>(
        &'a self,
        key: &'a Key,
        claim: &'a Claim,
        options: WaitOptions,
    ) -> RecordStoreFuture<'a, ()> {
        Box::pin(locks::release_lock(&self.0, key, claim, options))
    }

    fn lock_info<'a>(&'a self, key: &'a Key) -> RecordStoreFuture<'a, Option<LockInfo>> {
        Box::pin(lock_info::lock_info(&self.0, key))
    }

    fn wait_for_lock<'a>(&'a self, key: &'a Key, options: WaitOptions) -> RecordStoreFuture<'a, bool> {
        Box::pin(locks::wait_for_lock(&self.0, key, options))
    }

    fn break_lock<'a>(&'a self, key: &'a Key, options: BreakOptions) -> RecordStoreFuture<'a, bool> {
        Box::pin(locks::break_lock(&self.0, key, options))
    }
}
