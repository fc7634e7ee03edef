//! `verify` finds every problem, reports no false ones, and changes nothing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use record_store::{
    Durability, ErrorKind, FileSystemOptions, FileSystemRecordStore, Finding, Holder, LockOptions, LockState,
    OpenMode, Problem, RecordStoreExt,
};
use tempfile::TempDir;

use crate::support::{SetOnDrop, as_named, millis, open, open_with, storm};
use crate::tree;

fn new_store() -> (TempDir, FileSystemRecordStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"));
    store.write("sound", &1).unwrap();
    store.write("long/".repeat(100), &1).unwrap();
    (dir, store)
}

fn findings(store: &FileSystemRecordStore) -> Vec<Finding> {
    store.verify().map(Result::unwrap).collect()
}

/// Returns the only finding, which must be about the file of this name.
#[track_caller]
fn only(store: &FileSystemRecordStore, name: &str) -> Problem {
    let mut found = findings(store);
    let finding = found.pop().expect("a finding");
    assert!(found.is_empty(), "{found:?}, {finding:?}");
    assert_eq!(finding.path, store.path().join(name));
    finding.problem
}

fn remove(path: &Path) {
    fs::remove_file(path).or_else(|_| fs::remove_dir(path)).unwrap();
}

#[test]
fn a_store_in_use_is_sound() {
    let (_dir, store) = new_store();
    let job = as_named("job").hold_timeout(Duration::from_hours(1));
    for key in ["sound", &"lock/".repeat(100)] {
        store.acquire_lock(key, job.clone()).unwrap();
    }
    store.acquire_lock("mine", LockOptions::new()).unwrap();
    let mut verification = store.verify();
    assert!(verification.by_ref().next().is_none());
    let checked = verification.checked();
    assert_eq!((checked.records, checked.locks), (2, 3));
    assert!(checked.files > 5, "{checked:?}");
}

#[test]
fn unsound_records_are_found() {
    let (_dir, store) = new_store();
    let sound = fs::read_to_string(store.path().join("sound.json")).unwrap();
    let hashed = format!("a%~{}.json", "0".repeat(64));
    for (name, text) in [
        ("bad.json", "{".to_owned()),
        ("empty.json", String::new()),
        ("bad.json", sound.replace("sound", "bad").replace(":1}", ":2}")),
        ("other.json", sound.clone()),
        ("nameless.json", "{\"key\":\"\",\"result\":1}".to_owned()),
        (&hashed, sound.clone()),
    ] {
        let path = store.path().join(name);
        fs::write(&path, &text).unwrap();
        let problem = only(&store, name);
        assert!(problem.is_damage() && matches!(problem, Problem::CorruptRecord(_)), "{text}: {problem:?}");
        let key = name.strip_suffix(".json").unwrap();
        // The finding contains the error that a read returns.
        if name != hashed {
            let refused = store.read::<u32>(key).unwrap_err().to_string();
            assert_eq!(problem.cause().unwrap().to_string(), refused.replacen("read", "verify", 1));
        }
        remove(&path);
    }
    fs::create_dir(store.path().join("dir.json")).unwrap();
    let cause = only(&store, "dir.json");
    let error = cause.cause().expect("an error");
    assert_eq!(error.kind(), ErrorKind::NotARegularFile, "{cause:?}");
    assert_eq!(error.detail(), Some("a directory"), "{cause:?}");
}

#[test]
fn a_record_over_the_size_limit_is_found() {
    let (_dir, store) = new_store();
    store.write("large", &"x".repeat(1_000)).unwrap();
    assert!(findings(&store).is_empty());
    let limited = FileSystemOptions::new().max_record_bytes(900).open(store.path()).unwrap();
    assert!(matches!(only(&limited, "large.json"), Problem::CorruptRecord(_)));
}

#[test]
fn unsound_and_stale_locks_are_found() {
    let (_dir, store) = new_store();
    let path = store.path().join("k.lock");
    for text in ["not a lock", "{}", "{\"key\":\"k\"}\0"] {
        fs::write(&path, text).unwrap();
        let problem = only(&store, "k.lock");
        assert!(problem.is_damage() && matches!(problem, Problem::CorruptLock(_)), "{text}: {problem:?}");
    }
    for text in ["", "\0\0\0"] {
        fs::write(&path, text).unwrap();
        let problem = only(&store, "k.lock");
        assert!(!problem.is_damage() && matches!(problem, Problem::BlankLock), "{problem:?}");
    }
    remove(&path);

    store.acquire_lock("k", LockOptions::new()).unwrap();
    let held = fs::read_to_string(&path).unwrap();
    fs::copy(&path, store.path().join("other.lock")).unwrap();
    let misnamed = only(&store, "other.lock");
    let Problem::CorruptLock(error) = misnamed else { panic!("{misnamed:?}") };
    assert_eq!(error.kind(), ErrorKind::KeyMismatch, "{error:?}");
    remove(&store.path().join("other.lock"));

    let owner = held.split("\"owner\":\"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(&path, held.replace(owner, "1-deaddeaddeaddead")).unwrap();
    assert!(matches!(only(&store, "k.lock"), Problem::StaleLock(LockState::Abandoned)));
    store.break_lock("k").unwrap();
    store.acquire_lock("k", as_named("job").hold_timeout(Duration::ZERO)).unwrap();
    let late = only(&store, "k.lock");
    assert!(!late.is_damage() && matches!(late, Problem::StaleLock(LockState::Expired)), "{late:?}");
    store.sweep().unwrap();
    assert!(findings(&store).is_empty());
}

#[test]
fn unknown_files_are_found() {
    let (_dir, store) = new_store();
    for name in [
        "notes",
        "%zz.json",
        "%2f.lock",
        ".hidden",
        ".store/core",
        ".store/latches/0F",
        ".store/latches/+1",
        ".store/latches/100",
        ".store/owners/a.b",
        ".store/log/notes",
        ".store/log/16",
        ".store/staged/a",
        ".store/staged/.a",
    ] {
        let path = store.path().join(name);
        fs::write(&path, "").unwrap();
        let problem = only(&store, name);
        assert!(!problem.is_damage() && matches!(problem, Problem::Foreign), "{name}: {problem:?}");
        remove(&path);
        symlink("/nowhere", &path).unwrap();
        assert!(matches!(only(&store, name), Problem::Foreign), "{name}");
        remove(&path);
    }
}

#[test]
fn leftovers_of_dead_processes_are_found() {
    let (_dir, store) = new_store();
    let staged = store.path().join(".store/staged/1-deaddeaddeaddead.0");
    fs::write(&staged, "{").unwrap();
    let left = only(&store, ".store/staged/1-deaddeaddeaddead.0");
    assert!(!left.is_damage() && matches!(left, Problem::OrphanedStagedFile), "{left:?}");
    remove(&staged);
    fs::write(store.path().join(".store/owners/1-deaddeaddeaddead"), "").unwrap();
    let left = only(&store, ".store/owners/1-deaddeaddeaddead");
    assert!(!left.is_damage() && matches!(left, Problem::OrphanedOwner), "{left:?}");
}

#[test]
fn links_in_place_of_private_files_and_an_unsound_format_are_found() {
    for name in ["latches/00", "owners/1-deaddeaddeaddead", "events", "staged", "format.json"] {
        let (_dir, store) = new_store();
        let path = store.path().join(".store").join(name);
        // The store is open already, so it does not read these files again.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        symlink("/nowhere", &path).unwrap();
        let problem = only(&store, &format!(".store/{name}"));
        assert!(problem.is_damage(), "{name}");
        assert!(
            matches!(problem, Problem::WrongType { found: "a symbolic link", .. }),
            "{name}: {problem:?}"
        );
    }
    let (_dir, store) = new_store();
    fs::write(store.path().join(".store/format.json"), "{\"version\":3}").unwrap();
    let newer = only(&store, ".store/format.json");
    let Problem::CorruptFormat(error) = newer else { panic!("{newer:?}") };
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error:?}");
    assert!(error.detail().is_some_and(|detail| detail.starts_with("version 3,")), "{error:?}");
}

#[test]
fn verify_changes_nothing() {
    let (_dir, store) = new_store();
    store.acquire_lock("late", as_named("job").hold_timeout(Duration::ZERO)).unwrap();
    fs::write(store.path().join("bad.json"), "").unwrap();
    fs::write(store.path().join(".store/owners/1-deaddeaddeaddead"), "").unwrap();
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(store.path()).unwrap();
    let before = tree::snapshot(store.path());
    for store in [&store, &reader] {
        assert_eq!(findings(store).len(), 3);
    }
    tree::assert_unchanged(store.path(), &before, "verify");
}

#[test]
fn a_concurrent_change_is_never_reported_as_damage() {
    let (_dir, store) = new_store();
    let relaxed = open_with(store.path(), Durability::Relaxed);
    let (done, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let keys = ["a".to_owned(), "b".to_owned(), "hashed/".repeat(100)];
    std::thread::scope(|scope| {
        for name in ["one", "two", "three"] {
            let (relaxed, done, changes, keys) = (&relaxed, &done, &changes, &keys);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for key in keys {
                        let options = LockOptions::new().holder(Holder::named(name).unwrap());
                        let guard = relaxed.lock(key, options.hold_timeout(millis(60_000))).unwrap();
                        guard.write(&name.repeat(50)).unwrap();
                        guard.renew().unwrap();
                        if name == "two" {
                            guard.remove().unwrap();
                        }
                        changes.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let _stop = SetOnDrop(&done);
        let (mut rounds, mut seen) = (0, 0);
        while rounds < storm(100) || seen == 0 || changes.load(Ordering::Relaxed) < storm(100) {
            rounds += 1;
            for finding in findings(&store) {
                // A release leaves a blank lock file for the next waiter, which may be slow.
                assert!(matches!(finding.problem, Problem::BlankLock), "{finding:?}");
            }
            seen += store.locks().unwrap().count();
        }
    });
}
