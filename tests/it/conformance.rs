//! The conformance suite on every store of this crate, and on stores that break the contract.

use std::cell::Cell;

use record_store::{
    Durability, ErrorKind, EvictionPolicy, FileSystemOptions, FileSystemRecordStore, Holder, IsolationLevel,
    Json, Key, ListOptions, LockOptions, LockToken, MemoryRecordStore, RawRecord, ReadOptions, RecordStore,
    RecordStoreExt, RecordVersion, Result, WaitOptions, WriteOptions, conformance,
};

use crate::watchdog::watch_test;

/// Runs the suite. Each store gets its own directory.
fn on_files(open: impl Fn(std::path::PathBuf) -> Result<FileSystemRecordStore>) {
    watch_test();
    let root = tempfile::tempdir().unwrap();
    let number = Cell::new(0);
    conformance::run(|| {
        number.set(number.get() + 1);
        open(root.path().join(number.get().to_string())).unwrap()
    });
}

#[test]
fn memory_store() {
    watch_test();
    conformance::run(MemoryRecordStore::new);
}

#[test]
fn file_store() {
    on_files(FileSystemRecordStore::open);
}

#[test]
fn relaxed_file_store() {
    on_files(|path| FileSystemOptions::new().durability(Durability::Relaxed).open(path));
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
        ("keys", Minimal.keys().err()),
        ("records", Minimal.records(ListOptions::new()).err()),
        ("record_info", Minimal.record_info("key").err()),
        ("evict", Minimal.evict(&EvictionPolicy::new()).err()),
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
        ("break_lock", Minimal.break_lock_by_token("key", LockToken::new(1)).err()),
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
            "records::absent_is_none: A read of a key without a record is `Ok(None)`.\n    expected Ok(None), got"
        ),
        "{message}"
    );
}
