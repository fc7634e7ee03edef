//! Two handles of one store.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::{
    Acquired, BreakOptions, Claim, Evicted, EvictionPolicy, Expected, IsolationLevel, Json, Key, ListOptions,
    Listing, LockInfo, LockOptions, RawRecord, ReadOptions, RecordInfo, RecordStore, RecordVersion,
    RemoveOptions, Result, SeenRecords, StoreIdentity, WaitOptions, WriteOptions,
};

/// Two handles of one store as one: each call goes to the other one than the call before. So nothing that only one
/// handle remembers keeps the contract.
///
/// ```
/// # #[cfg(feature = "conformance")] {
/// use record_store::{FileSystemRecordStore, conformance};
///
/// let root = tempfile::tempdir()?;
/// let number = std::cell::Cell::new(0);
/// let open = || {
///     number.set(number.get() + 1);
///     let dir = root.path().join(number.get().to_string());
///     let handle = || FileSystemRecordStore::open(&dir).expect("a handle");
///     conformance::by_turns([handle(), handle()])
/// };
/// conformance::Suite::new(open).select(|check| check.name().starts_with("versions::")).run();
/// # }
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn by_turns<S: RecordStore>(handles: [S; 2]) -> ByTurns<S> {
    ByTurns { handles, calls: AtomicUsize::new(0) }
}

/// The store that [`by_turns`] returns.
#[derive(Debug)]
pub struct ByTurns<S> {
    handles: [S; 2],
    calls: AtomicUsize,
}

impl<S> ByTurns<S> {
    /// Both handles.
    pub fn handles(&self) -> &[S; 2] {
        &self.handles
    }

    fn next(&self) -> &S {
        &self.handles[self.calls.fetch_add(1, Ordering::Relaxed) % 2]
    }
}

macro_rules! delegate {
    ($($name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        impl<S: RecordStore> RecordStore for ByTurns<S> {
            fn identity_raw(&self) -> Option<StoreIdentity> {
                self.handles[0].identity_raw()
            }
            $(fn $name(&self, $($argument: $type),*) -> $output {
                self.next().$name($($argument),*)
            })*
        }
    };
}

delegate! {
    read_raw(key: &Key, options: ReadOptions) -> Result<Option<RawRecord>>;
    write_raw(key: &Key, result: &Json, options: WriteOptions) -> Result<()>;
    compare_and_swap_raw(key: &Key, expected: Expected<'_>, result: &Json, options: WriteOptions) -> Result<bool>;
    exists_raw(key: &Key) -> Result<bool>;
    remove_raw(key: &Key, options: RemoveOptions) -> Result<bool>;
    version_raw(key: &Key) -> Result<RecordVersion>;
    wait_for_change_raw(key: &Key, seen: RecordVersion, options: WaitOptions) -> Result<Option<RecordVersion>>;
    changes_raw(seen: &mut SeenRecords, options: WaitOptions) -> Result<bool>;
    keys_raw() -> Result<Listing<'_, Key>>;
    records_raw(options: ListOptions) -> Result<Listing<'_, RecordInfo>>;
    record_info_raw(key: &Key) -> Result<Option<RecordInfo>>;
    evict_raw(policy: EvictionPolicy) -> Result<Evicted>;
    supports_isolation_level_raw(level: IsolationLevel) -> bool;
    acquire_lock_raw(key: &Key, options: LockOptions) -> Result<Acquired>;
    renew_raw(key: &Key, claim: &Claim, hold_timeout: Option<Duration>, options: WaitOptions) -> Result<()>;
    release_lock_raw(key: &Key, claim: &Claim, options: WaitOptions) -> Result<()>;
    lock_info_raw(key: &Key) -> Result<Option<LockInfo>>;
    wait_for_lock_raw(key: &Key, options: WaitOptions) -> Result<bool>;
    break_lock_raw(key: &Key, options: BreakOptions) -> Result<bool>;
    locks_raw() -> Result<Listing<'_, LockInfo>>;
}
