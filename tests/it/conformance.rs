//! The conformance suite on every store of this crate, and on stores that break the contract.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use record_store::conformance::{self, Check, Suite};
use record_store::{
    Acquired, BreakOptions, ChangesOptions, Claim, Durability, ErrorKind, EvictionPolicy, Expected,
    FileSystemOptions, FileSystemRecordStore, Holder, IsolationLevel, Json, Key, ListOptions, Listing,
    LockInfo, LockOptions, LockState, LockToken, MemoryRecordStore, RawRecord, ReadOptions, RecordStore,
    RecordStoreExt, RecordVersion, RemoveOptions, Result, StoreIdentity, WaitOptions, WriteOptions,
};

use crate::support::latch_of;
use crate::watchdog::watch_test;

/// Makes stores, each in a directory of its own.
struct Directories {
    root: tempfile::TempDir,
    number: Cell<u32>,
}

impl Directories {
    fn new() -> Self {
        watch_test();
        Self { root: tempfile::tempdir().unwrap(), number: Cell::new(0) }
    }

    fn next(&self) -> PathBuf {
        self.number.set(self.number.get() + 1);
        self.root.path().join(self.number.get().to_string())
    }
}

const PLACE: &str = "RECORD_STORE_OF_THE_SUITE";

/// The program that is the other process of a check on the store in this directory, or at this URL.
pub(crate) fn program(place: impl AsRef<OsStr>) -> Command {
    let mut program = conformance::test_binary("conformance::other_process");
    program.env(PLACE, place);
    program
}

/// Not a test, but what [`program`] runs.
#[test]
fn other_process() {
    let Some(place) = std::env::var_os(PLACE) else { return };
    match place.to_str() {
        #[cfg(feature = "postgres")]
        Some(url) if url.starts_with("postgres:") => {
            let options = record_store::PostgresOptions::new();
            conformance::serve(&record_store::PostgresRecordStore::connect(url, options).unwrap())
        }
        _ => conformance::serve(&FileSystemRecordStore::open(place).unwrap()),
    }
}

/// Stops all changes of a key, as a process does that is stopped inside the latch.
fn stall(store: &FileSystemRecordStore, key: &Key) -> File {
    let latch = File::open(store.path().join(latch_of(key.as_str()))).unwrap();
    latch.lock().unwrap();
    latch
}

fn names<'a>(checks: impl IntoIterator<Item = &'a Check>) -> Vec<&'a str> {
    checks.into_iter().map(Check::name).collect()
}

#[test]
fn memory_store() {
    watch_test();
    let report = Suite::new(MemoryRecordStore::new).run();
    // There is no other process, and nobody can be stopped in the middle of a change.
    let (needy, others): (Vec<_>, Vec<_>) =
        conformance::checks().iter().partition(|check| check.needs().is_some());
    assert_eq!(names(report.skipped()), names(needy));
    assert_eq!(names(report.ran()), names(others));
}

#[test]
fn file_store() {
    let directories = Directories::new();
    let report = Suite::new(|| FileSystemRecordStore::open(directories.next()).unwrap())
        .other_process(|store| program(store.path()))
        .stall(stall)
        .run();
    assert_eq!(names(report.ran()), names(conformance::checks()));
}

#[test]
fn relaxed_file_store() {
    let directories = Directories::new();
    let open = || FileSystemOptions::new().durability(Durability::Relaxed).open(directories.next()).unwrap();
    Suite::new(open).stall(stall).run();
}

#[test]
fn two_handles_of_a_file_store() {
    let directories = Directories::new();
    conformance::run(|| {
        let directory = directories.next();
        conformance::by_turns([(); 2].map(|()| FileSystemRecordStore::open(&directory).unwrap()))
    });
}

/// A store whose leases, and times to live, end only on multiples of a unit after their beginning.
#[derive(Debug)]
struct InUnits(MemoryRecordStore);

const UNIT: Duration = Duration::from_millis(400);

fn in_units(time: Option<Duration>) -> Option<Duration> {
    // A lease of no length is one of a whole unit.
    let units = |time: Duration| u32::try_from(time.as_nanos().div_ceil(UNIT.as_nanos()).max(1)).ok();
    time.and_then(|time| UNIT.checked_mul(units(time)?))
}

impl RecordStore for InUnits {
    fn identity_raw(&self) -> Option<StoreIdentity> {
        self.0.identity_raw()
    }

    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.0.read_raw(key, options)
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        let time = in_units(options.get_time_to_live());
        self.0.write_raw(key, result, options.time_to_live(time))
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        let time = in_units(options.get_time_to_live());
        self.0.compare_and_swap_raw(key, expected, result, options.time_to_live(time))
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.0.exists_raw(key)
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        self.0.remove_raw(key, options)
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        self.0.keys_raw()
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        self.0.supports_isolation_level_raw(level)
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        self.0.version_raw(key)
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        self.0.wait_for_change_raw(key, seen, options)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let time = in_units(options.get_hold_timeout());
        self.0.acquire_lock_raw(key, options.hold_timeout(time))
    }

    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        self.0.renew_raw(key, claim, in_units(hold_timeout), options)
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.0.release_lock_raw(key, claim, options)
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.0.lock_info_raw(key)
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        self.0.wait_for_lock_raw(key, options)
    }

    fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
        self.0.break_lock_raw(key, options)
    }

    /// An engine that ends leases by itself knows only the live ones.
    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        let is_live =
            |info: &Result<LockInfo>| info.as_ref().is_ok_and(|info| info.state() == LockState::Held);
        Ok(Box::new(self.0.locks_raw()?.filter(is_live)))
    }
}

/// Each check on its own thread, because they sleep.
fn failures_in_units(granularity: Duration) -> Vec<&'static str> {
    watch_test();
    let groups =
        ["leases::", "locks::", "fencing::", "threads::", "guards::", "waiting::", "lock_all::", "expiry::"];
    let is_in_time = |check: &Check| groups.iter().any(|group| check.name().starts_with(group));
    std::thread::scope(|scope| {
        let run = |check: &'static Check| {
            let suite = Suite::new(|| InUnits(MemoryRecordStore::new()))
                .lease_granularity(granularity)
                .select(|other| other.name() == check.name());
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| suite.run())).is_err()
        };
        let checks = conformance::checks().iter().filter(|check| is_in_time(check));
        let runs: Vec<_> = checks.map(|check| (check.name(), scope.spawn(move || run(check)))).collect();
        runs.into_iter().filter_map(|(name, run)| run.join().unwrap().then_some(name)).collect()
    })
}

#[test]
fn a_store_says_how_exact_its_leases_are() {
    assert_eq!(failures_in_units(UNIT), [""; 0]);
    let failures = failures_in_units(Duration::ZERO);
    for check in
        ["locks::an_expired_lock_is_listed_as_expired", "threads::one_of_many_concurrent_attempts_succeeds"]
    {
        assert!(failures.contains(&check), "{failures:?}");
    }
}

#[test]
fn each_check_has_a_unique_name_and_a_sentence() {
    let checks = conformance::checks();
    let names: std::collections::BTreeSet<_> = checks.iter().map(conformance::Check::name).collect();
    assert_eq!(names.len(), checks.len());
    for check in checks {
        assert!(check.sentence().ends_with('.'), "{check}");
    }
}

/// A store that implements only the required methods, and breaks the contract with them.
#[derive(Debug)]
struct Minimal;

impl RecordStore for Minimal {
    fn read_raw(&self, _: &Key, _: ReadOptions) -> Result<Option<RawRecord>> {
        Ok(Some(RawRecord::new(Json::parse("1")?, RecordVersion::new(1))))
    }

    fn write_raw(&self, _: &Key, _: &Json, _: WriteOptions) -> Result<()> {
        Ok(())
    }

    fn exists_raw(&self, _: &Key) -> Result<bool> {
        Ok(true)
    }
}

#[test]
fn a_method_that_a_store_leaves_out_is_unsupported_by_name() {
    let me = Holder::current();
    let refused = [
        ("remove", Minimal.remove("key").err()),
        ("compare_and_swap", Minimal.compare_and_swap("key", Some(&1), &2, WriteOptions::new()).err()),
        ("compare_and_swap", Minimal.write_if_absent("key", &1, WriteOptions::new()).err()),
        (
            "compare_and_swap",
            Minimal.write_if_version("key", RecordVersion::new(1), &2, WriteOptions::new()).err(),
        ),
        ("watch", Minimal.watch("key").err()),
        ("watch", Minimal.wait_for_record("key", WaitOptions::new()).err()),
        ("changes", Minimal.changes(ChangesOptions::new()).err()),
        ("keys", Minimal.keys().err()),
        ("records", Minimal.records(ListOptions::new()).err()),
        ("record_info", Minimal.record_info("key").err()),
        ("evict", Minimal.evict(EvictionPolicy::new()).err()),
        ("acquire_lock", Minimal.acquire_lock("key", LockOptions::new()).err()),
        ("acquire_lock", Minimal.lock("key", LockOptions::new()).err()),
        ("acquire_lock", Minimal.try_lock("key", LockOptions::new()).err()),
        ("renew", Minimal.renew("key", &me, None).err()),
        ("release_lock", Minimal.release_lock("key", &me).err()),
        ("lock_info", Minimal.lock_info("key").err()),
        ("lock_info", Minimal.is_locked("key").err()),
        ("lock_info", Minimal.is_lock_holder("key", &me).err()),
        ("wait_for_lock", Minimal.wait_for_lock("key", WaitOptions::new()).err()),
        ("break_lock", Minimal.break_lock("key").err()),
        ("break_lock", Minimal.break_lock_with("key", BreakOptions::new().token(LockToken::new(1))).err()),
        ("locks", Minimal.locks().err()),
    ];
    for (name, error) in refused {
        let error = error.expect(name);
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Unsupported, name));
    }
    assert!(!Minimal.supports_isolation_level(IsolationLevel::ReadCommitted));
    assert_eq!(Minimal.read::<i64>("key").unwrap().unwrap().result, 1);
}

#[test]
fn a_failure_names_the_check_its_sentence_and_the_actual_value() {
    let payload = std::panic::catch_unwind(|| conformance::run(|| Minimal)).unwrap_err();
    let message = payload.downcast_ref::<String>().unwrap();
    assert!(message.contains("checks failed:"), "{message}");
    assert!(
        message.contains(
            "records::absent_is_none\n    expected: A read of a key without a record is `Ok(None)`.\n    \
            observed: expected Ok(None), got"
        ),
        "{message}"
    );
}
