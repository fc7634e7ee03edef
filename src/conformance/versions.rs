//! The versions of records, and writes that depend on them.

use std::collections::HashSet;
use std::thread;

use super::support::{assert_error, assert_matches, join, long_lease, named, write_by};
use crate::{
    Claim, ErrorKind, Key, LockOptions, RecordStore, RecordStoreExt, RecordVersion, WaitOptions, WriteOptions,
};

checks! { "versions":
    a_read_returns_the_version:
        "A read returns the version of the record, the same one until the next write, and the same one as a watch sees.",
    each_write_gives_another_version:
        "Every write gives the record another version, in whatever way and also of the same result.",
    a_version_never_comes_back:
        "If a record is removed and written again, it has a version that it never had.",
    write_if_version_needs_the_present_version:
        "`write_if_version` writes only if the record has that version, and otherwise changes nothing.",
    write_if_version_of_an_absent_record_needs_its_absence:
        "With the version of an absent record, `write_if_version` writes only if there is no record.",
    write_if_version_respects_locks:
        "`write_if_version` is `Locked` while another holder's lock is live, and `LockLost` with a lost token.",
    one_of_many_concurrent_writes_of_a_version_succeeds:
        "When several threads replace the same version concurrently, exactly one succeeds.",
}

/// The version that a read returns.
fn version(store: &dyn RecordStore) -> RecordVersion {
    store.read::<i64>("key").unwrap().expect("a record").version
}

fn write_if(store: &dyn RecordStore, version: RecordVersion, result: i64) -> crate::Result<bool> {
    store.write_if_version("key", version, &result, WriteOptions::new())
}

fn a_read_returns_the_version(store: &dyn RecordStore) {
    let key = Key::new("key").unwrap();
    assert_eq!(store.version_raw(&key).unwrap(), RecordVersion::ABSENT);
    store.write("key", &1).unwrap();
    let read = version(store);
    assert!(!read.is_absent() && read.number().is_some(), "the version of a record is that of an absent one");
    store.write("other", &1).unwrap();
    let guard = store.lock("key", LockOptions::new()).unwrap();
    assert_eq!(guard.read::<i64>().unwrap().unwrap().version, read, "the version changed without a write");
    guard.release().unwrap();
    assert_eq!(version(store), read, "the version changed without a write");
    assert_eq!(store.version_raw(&key).unwrap(), read, "a watch sees another version");
    store.write("key", &2).unwrap();
    let next = store.wait_for_change_raw(&key, read, WaitOptions::new()).unwrap();
    assert_eq!(next, Some(version(store)), "a watch sees another version");
}

fn each_write_gives_another_version(store: &dyn RecordStore) {
    let mut seen = HashSet::new();
    let mut is_new = || assert!(seen.insert(version(store)), "a write did not change the version");
    for _ in 0..10 {
        store.write("key", &1).unwrap();
        is_new();
    }
    assert_matches!(store.compare_and_swap("key", Some(&1), &1, WriteOptions::new()), Ok(true));
    is_new();
    assert_matches!(write_if(store, version(store), 1), Ok(true));
    is_new();
    store.lock("key", LockOptions::new()).unwrap().write(&1).unwrap();
    is_new();
    store.update("key", LockOptions::new(), |old: Option<i64>| Ok(old.unwrap_or(1))).unwrap();
    is_new();
}

fn a_version_never_comes_back(store: &dyn RecordStore) {
    let mut seen = HashSet::new();
    for _ in 0..10 {
        store.write("key", &1).unwrap();
        let version = version(store);
        assert!(seen.insert(version), "a version came back");
        assert!(store.remove("key").unwrap());
        assert_matches!(write_if(store, version, 2), Ok(false));
        assert!(!store.exists("key").unwrap(), "a failed write wrote");
    }
}

fn write_if_version_needs_the_present_version(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let old = version(store);
    assert_matches!(write_if(store, old, 2), Ok(true));
    let new = version(store);
    assert_matches!(write_if(store, old, 3), Ok(false));
    assert_eq!(version(store), new, "a failed write changed the version");
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2, "a failed write wrote");
    // A result that the record had before is not its version.
    store.write("key", &1).unwrap();
    assert_matches!(write_if(store, old, 3), Ok(false));
    assert_matches!(write_if(store, new, 3), Ok(false));
    assert_matches!(write_if(store, version(store), 3), Ok(true));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 3);
    assert!(!store.is_locked("key").unwrap(), "a write left a lock behind");
}

fn write_if_version_of_an_absent_record_needs_its_absence(store: &dyn RecordStore) {
    assert_matches!(write_if(store, RecordVersion::ABSENT, 1), Ok(true));
    assert_matches!(write_if(store, RecordVersion::ABSENT, 2), Ok(false));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1, "a failed write wrote");
    assert!(store.remove("key").unwrap());
    assert_matches!(write_if(store, RecordVersion::ABSENT, 3), Ok(true));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 3);
}

fn write_if_version_respects_locks(store: &dyn RecordStore) {
    let other = named("other");
    store.write("key", &1).unwrap();
    let seen = version(store);
    let token = store.acquire_lock("key", long_lease(&other)).unwrap();
    for version in [seen, RecordVersion::ABSENT] {
        assert_error(write_if(store, version, 2), ErrorKind::Locked);
    }
    let by = |claim: Claim, version| store.write_if_version("key", version, &2, write_by(claim));
    assert_matches!(by(token.into(), seen), Ok(true));
    store.release_lock("key", &other).unwrap();
    assert_error(by(token.into(), version(store)), ErrorKind::LockLost);
}

fn one_of_many_concurrent_writes_of_a_version_succeeds(store: &dyn RecordStore) {
    let mut seen = RecordVersion::ABSENT;
    for round in 0..20 {
        let written: usize = thread::scope(|scope| {
            let writes: Vec<_> = (0..4).map(|_| scope.spawn(move || write_if(store, seen, round))).collect();
            writes.into_iter().map(|write| usize::from(join(write).unwrap())).sum()
        });
        assert_eq!(written, 1, "number of successful writes of the same version");
        seen = version(store);
    }
}
