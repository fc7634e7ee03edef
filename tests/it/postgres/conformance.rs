//! The conformance suite on a server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use record_store::{
    Acquired, Claim, Evicted, EvictionPolicy, Expected, IsolationLevel, Json, Key, ListOptions, Listing,
    LockInfo, LockOptions, LockToken, PostgresOptions, PostgresRecordStore, RawRecord, ReadOptions,
    RecordInfo, RecordStore, RecordVersion, RemoveOptions, Result, StoreIdentity, WaitOptions, WriteOptions,
    conformance,
};

use super::{new_url, open};

/// Two handles of one store, each with connections of its own. Every call goes to the other one.
#[derive(Debug)]
struct TwoHandles {
    handles: [PostgresRecordStore; 2],
    calls: AtomicUsize,
}

impl TwoHandles {
    fn open(url: &str) -> Self {
        Self { handles: [open(url), open(url)], calls: AtomicUsize::new(0) }
    }

    fn next(&self) -> &PostgresRecordStore {
        &self.handles[self.calls.fetch_add(1, Ordering::Relaxed) % 2]
    }
}

macro_rules! by_turns {
    ($($name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        impl RecordStore for TwoHandles {
            fn identity_raw(&self) -> Option<StoreIdentity> {
                self.handles[0].identity_raw()
            }
            $(fn $name(&self, $($argument: $type),*) -> $output {
                self.next().$name($($argument),*)
            })*
        }
    };
}

by_turns! {
    read_raw(key: &Key, options: ReadOptions) -> Result<Option<RawRecord>>;
    write_raw(key: &Key, result: &Json, options: WriteOptions) -> Result<()>;
    compare_and_swap_raw(key: &Key, expected: Expected<'_>, result: &Json, options: WriteOptions) -> Result<bool>;
    exists_raw(key: &Key) -> Result<bool>;
    remove_raw(key: &Key, options: RemoveOptions) -> Result<bool>;
    version_raw(key: &Key) -> Result<RecordVersion>;
    wait_for_change_raw(key: &Key, seen: RecordVersion, options: WaitOptions) -> Result<Option<RecordVersion>>;
    keys_raw() -> Result<Listing<'_, Key>>;
    supports_isolation_level_raw(level: IsolationLevel) -> bool;
    acquire_lock_raw(key: &Key, options: LockOptions) -> Result<Acquired>;
    renew_raw(key: &Key, claim: &Claim, hold_timeout: Option<Duration>, options: WaitOptions) -> Result<()>;
    release_lock_raw(key: &Key, claim: &Claim, options: WaitOptions) -> Result<()>;
    lock_info_raw(key: &Key) -> Result<Option<LockInfo>>;
    wait_for_lock_raw(key: &Key, options: WaitOptions) -> Result<bool>;
    break_lock_raw(key: &Key, token: Option<LockToken>, options: WaitOptions) -> Result<bool>;
    records_raw(options: ListOptions) -> Result<Listing<'_, RecordInfo>>;
    record_info_raw(key: &Key) -> Result<Option<RecordInfo>>;
    evict_raw(policy: &EvictionPolicy) -> Result<Evicted>;
    locks_raw() -> Result<Listing<'_, LockInfo>>;
}

#[test]
fn two_handles_keep_the_contract() {
    let Some(_) = new_url() else { return };
    for check in conformance::checks() {
        check.run(&TwoHandles::open(&new_url().unwrap()));
    }
}

#[test]
fn a_store_with_one_connection_keeps_the_contract() {
    let Some(_) = new_url() else { return };
    let options = PostgresOptions::new().connections(1);
    for check in conformance::checks() {
        check.run(&PostgresRecordStore::connect(&new_url().unwrap(), options.clone()).unwrap());
    }
}
