//! A store that is removed while it is open, and perhaps made anew. Every operation says so: none reports that there is
//! no record, and none touches the new store.

use std::fs;
use std::path::Path;
use std::time::Duration;

use record_store::{
    ChangesOptions, Claim, Error, ErrorKind, EvictionPolicy, FileSystemOptions, FileSystemRecordStore,
    ListOptions, LockOptions, LockState, OpenMode, ReadOptions, RecordStoreExt, WaitOptions, WriteOptions,
};
use tempfile::tempdir;

use crate::support::{PATIENCE, as_named, named, open};
use crate::tree;

fn remove(dir: &Path) {
    fs::remove_dir_all(dir).unwrap();
}

/// The error of every operation.
fn errors(store: &FileSystemRecordStore) -> Vec<(&'static str, Option<Error>)> {
    let write = WriteOptions::new;
    let job = || named("job");
    vec![
        ("read", store.read::<u8>("k").err()),
        ("read that ignores the lock", store.read_with::<u8>("k", ReadOptions::new().ignore_lock()).err()),
        ("exists", store.exists("k").err()),
        ("write", store.write("k", &1).err()),
        ("write_if_absent", store.write_if_absent("k", &1, write()).err()),
        ("compare_and_swap", store.compare_and_swap("k", Some(&1), &2, write()).err()),
        ("remove", store.remove("k").err()),
        ("keys", store.keys().and_then(|mut keys| keys.next().transpose()).err()),
        ("records", store.records(ListOptions::new()).and_then(|mut all| all.next().transpose()).err()),
        ("record_info", store.record_info("k").err()),
        ("evict", store.evict(EvictionPolicy::new().max_records(0)).err()),
        ("locks", store.locks().and_then(|mut locks| locks.next().transpose()).err()),
        ("acquire_lock", store.acquire_lock("k", LockOptions::new()).err()),
        ("try_lock", store.try_lock("k", LockOptions::new()).err()),
        ("renew", store.renew("k", job(), None).err()),
        ("release_lock", store.release_lock("k", job()).err()),
        ("break_lock", store.break_lock("k").err()),
        ("is_locked", store.is_locked("k").err()),
        ("is_lock_holder", store.is_lock_holder("k", &job()).err()),
        ("lock_info", store.lock_info("k").err()),
        ("wait_for_lock", store.wait_for_lock("k", Duration::ZERO).err()),
        ("wait_for_record", store.wait_for_record("k", Duration::ZERO).err()),
        ("watch", store.watch("k").map(drop).err()),
        ("changes", store.changes(ChangesOptions::new()).map(drop).err()),
        ("get_or_compute", store.get_or_compute("k", LockOptions::new(), || Ok(1)).err()),
        ("update", store.update("k", LockOptions::new(), |_: Option<u8>| Ok(1)).err()),
        ("sweep", store.sweep().err()),
        ("verify", store.verify().next().transpose().err()),
        ("damaged", store.damaged().err()),
        ("clear_damaged", store.clear_damaged().err()),
        ("share_owner", store.share_owner().err()),
    ]
}

#[track_caller]
fn assert_removed(error: Option<Error>, path: &Path, what: &str) {
    let error = error.unwrap_or_else(|| panic!("{what}: no error"));
    assert_eq!((error.kind(), error.path()), (ErrorKind::StoreRemoved, Some(path)), "{what}: {error:?}");
    assert!(error.to_string().ends_with("; open it again"), "{error}");
}

#[test]
fn every_operation_on_a_removed_store_says_so() {
    for used in [false, true] {
        for made_anew in [false, true] {
            let parent = tempdir().unwrap();
            let dir = parent.path().join("records");
            let store = open(&dir);
            if used {
                store.lock("k", LockOptions::new()).unwrap().write(&1).unwrap();
                assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 1);
            }
            let guard = store.lock("guarded", as_named("other")).unwrap();
            remove(&dir);
            let new = made_anew.then(|| open(&dir));
            if let Some(new) = &new {
                new.write("k", &7).unwrap();
            }
            let before = tree::snapshot(parent.path());
            for (what, error) in errors(&store) {
                assert_removed(error, &dir, &format!("{what}, used: {used}, made anew: {made_anew}"));
            }
            assert_removed(guard.write(&1).err(), &dir, "write of a guard");
            assert!(guard.read::<u8>().unwrap_err().is_lock_lost());
            drop(guard);
            tree::assert_unchanged(parent.path(), &before, "the new store");
            // As the error says.
            let again = open(&dir);
            assert_eq!(again.read::<u8>("k").unwrap().map(|record| record.result), made_anew.then_some(7));
        }
    }
}

#[test]
fn a_reader_of_a_removed_store_says_so() {
    let parent = tempdir().unwrap();
    let dir = parent.path().join("records");
    open(&dir).write("k", &1).unwrap();
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&dir).unwrap();
    assert!(reader.read::<u8>("none").unwrap().is_none());
    remove(&dir);
    assert_removed(reader.read::<u8>("k").err(), &dir, "read");
    assert_removed(reader.exists("k").err(), &dir, "exists");
    assert_removed(reader.lock_info("k").err(), &dir, "lock_info");
}

/// Somebody removes only the private directory, and makes the directory with the records a store again. The locks and
/// records are still there, but the owner files and latches of the handle are not.
#[test]
fn a_store_whose_private_directory_was_replaced_is_a_removed_one() {
    for adopted in [false, true] {
        let parent = tempdir().unwrap();
        let dir = parent.path().join("records");
        let store = open(&dir);
        store.write("record", &1).unwrap();
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let stale = store.lock_info("k").unwrap().unwrap();
        remove(&dir.join(".store"));
        if adopted {
            FileSystemOptions::new().mode(OpenMode::Adopt).open(&dir).unwrap();
        }
        let before = tree::snapshot(parent.path());
        for (what, error) in
            errors(&store).into_iter().filter(|(what, _)| !["keys", "records"].contains(what))
        {
            assert_removed(error, &dir, &format!("{what}, adopted: {adopted}"));
        }
        let other = named("other");
        for (what, error) in [
            ("lock_info", store.lock_info("k").err()),
            ("is_locked", store.is_locked("k").err()),
            ("is_lock_holder", store.is_lock_holder("k", &other).err()),
            ("wait_for_lock", store.wait_for_lock("k", PATIENCE).err()),
            ("locks", store.locks().unwrap().find_map(Result::err)),
        ] {
            assert_removed(error, &dir, &format!("{what}, adopted: {adopted}"));
        }
        // The record is there, and no further call is spent to find out whether the store is.
        assert!(store.exists("record").unwrap());
        assert_eq!(store.keys().unwrap().count(), 1);
        assert_eq!(stale.state(), LockState::Held);
        tree::assert_unchanged(parent.path(), &before, "the adopted store");
        drop(guard);
    }
}

/// An empty store is not a removed one.
#[test]
fn an_empty_store_is_empty() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
    for store in [&store, &reader] {
        assert!(store.read::<u8>("k").unwrap().is_none());
        assert!(!store.exists("k").unwrap());
        assert_eq!(store.keys().unwrap().count(), 0);
        assert_eq!(store.locks().unwrap().count(), 0);
        assert_eq!(store.lock_info("k").unwrap(), None);
        assert!(store.wait_for_lock("k", Duration::ZERO).unwrap());
        assert!(!store.wait_for_record("k", Duration::ZERO).unwrap());
        assert!(store.damaged().unwrap().is_empty());
    }
    assert!(!store.compare_and_swap("k", Some(&1), &2, WriteOptions::new()).unwrap());
    assert!(!store.remove("k").unwrap());
    let error = store.release_lock("k", Claim::current()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotLocked);
}

#[test]
fn waiters_for_a_store_that_is_removed_get_an_error() {
    let parent = tempdir().unwrap();
    let dir = parent.path().join("records");
    let store = open(&dir);
    store.acquire_lock("k", as_named("job")).unwrap();
    let wait = || WaitOptions::new().timeout(PATIENCE);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| store.wait_for_record("absent", wait()).err());
        let reader = scope.spawn(|| store.read::<u8>("k").err());
        let waiter = scope.spawn(|| store.acquire_lock("k", LockOptions::new()).err());
        // Whether they wait already makes no difference. The private directory first: as long as that is there,
        // the store is one without a lock and without a record. Of that, the file of the format first: as long as it is
        // there, what is missing is the error.
        std::fs::remove_file(dir.join(".store/format.json")).unwrap();
        remove(&dir.join(".store"));
        remove(&dir);
        for (what, waiting) in [("watcher", watcher), ("reader", reader), ("waiter", waiter)] {
            assert_removed(waiting.join().unwrap(), &dir, what);
        }
    });
}
