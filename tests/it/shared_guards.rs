//! Guards of one holder that share a lock: the last one releases it, whichever was created first (I10).

use std::time::Duration;

use record_store::{
    FileSystemRecordStore, Holder, IsolationLevel, LockOptions, MemoryRecordStore, RecordStore,
    RecordStoreExt,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::children::{Child, Role, Stage};
use crate::support::{as_named, open, tempdir};

pub(crate) const ROLES: &[Role] = &[("release without descriptors", release_without_descriptors)];

/// Runs the check on a store in memory and on one in a directory.
fn on_both(check: impl Fn(&dyn RecordStore)) {
    check(&MemoryRecordStore::new());
    let dir = tempdir().unwrap();
    check(&open(dir.path()));
}

fn holders() -> [LockOptions; 2] {
    [LockOptions::new(), as_named("job")]
}

#[test]
fn the_last_guard_releases_in_whatever_order_they_end() {
    on_both(|store| {
        for options in holders() {
            for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
                let lock = || store.lock("k", options.clone()).unwrap();
                let mut guards = [lock(), lock(), lock()].map(Some);
                for (ended, at) in order.into_iter().enumerate() {
                    assert!(store.is_locked("k").unwrap(), "{order:?}: released after {ended} guards");
                    let guard = guards[at].take().unwrap();
                    guard.write(&at).unwrap();
                    if at == 0 { drop(guard) } else { guard.release().unwrap() }
                }
                assert!(!store.is_locked("k").unwrap(), "{order:?}: the last guard did not release");
            }
        }
    });
}

/// Prefect has the same bug: two lazy children of a serializable transaction share the lock of one key.

#[test]
fn each_guard_reports_that_its_lock_is_lost() {
    on_both(|store| {
        let options = as_named("job").hold_timeout(Duration::from_millis(20));
        let outer = store.lock("k", options.clone()).unwrap();
        let inner = store.lock("k", options).unwrap();
        let next = store.lock("k", as_named("next")).unwrap();
        assert!(inner.release().unwrap_err().is_lock_lost());
        assert!(outer.release().unwrap_err().is_lock_lost());
        next.release().unwrap();
    });
}

#[test]
fn lazy_children_of_one_key_commit_with_their_parent() {
    on_both(|store| {
        let parent = store.transaction("parent").unwrap().isolation_level(IsolationLevel::Serializable);
        let mut parent = parent.begin().unwrap();
        for number in [1, 2] {
            let mut child = parent.child("child").unwrap().overwrite(true).begin().unwrap();
            child.stage(&number).unwrap();
            child.finish().unwrap();
        }
        parent.stage(&0).unwrap();
        parent.commit().unwrap();
        assert_eq!(store.read::<u32>("child").unwrap().unwrap().result, 2);
        assert_eq!(store.read::<u32>("parent").unwrap().unwrap().result, 0);
        assert!(!store.is_locked("child").unwrap() && !store.is_locked("parent").unwrap());
    });
}

#[test]
fn an_explicit_acquisition_outlasts_the_guards() {
    on_both(|store| {
        for options in holders() {
            let holder = options.resolve_holder();
            let guard = store.lock("k", options.clone()).unwrap();
            let token = store.acquire_lock("k", options.clone()).unwrap();
            assert_eq!(token, guard.token());
            drop(guard);
            assert!(store.is_locked("k").unwrap(), "nobody released the explicit acquisition");
            store.lock("k", options.clone()).unwrap().release().unwrap();
            assert!(store.is_locked("k").unwrap(), "a guard released the explicit acquisition");
            store.release_lock("k", &holder).unwrap();
            assert!(!store.is_locked("k").unwrap());
            // From now on the guards release again.
            drop(store.lock("k", options).unwrap());
            assert!(!store.is_locked("k").unwrap());
        }
    });
}

#[test]
fn guards_of_two_stores_do_not_count_for_each_other() {
    let stores = [MemoryRecordStore::new(), MemoryRecordStore::new()];
    let [one, other] = stores.each_ref().map(|store| store.lock("k", LockOptions::new()).unwrap());
    assert_eq!(one.token(), other.token(), "the test needs equal tokens");
    drop(one);
    assert!(!stores[0].is_locked("k").unwrap());
    assert!(stores[1].is_locked("k").unwrap());
    drop(other);
    assert!(!stores[1].is_locked("k").unwrap());
}

#[test]
fn guards_of_one_holder_in_many_threads_leave_no_lock() {
    on_both(|store| {
        for _ in 0..20 {
            std::thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        for _ in 0..10 {
                            let guard = store.lock("k", as_named("job")).unwrap();
                            guard.write(&1).unwrap();
                            guard.release().unwrap();
                        }
                    });
                }
            });
            assert!(!store.is_locked("k").unwrap(), "no guard is left, but the lock is");
        }
    });
}

/// A release that failed for want of descriptors must not lock the key for the rest of the process.
#[test]
fn the_next_guard_makes_up_for_a_failed_release() {
    let dir = tempdir().unwrap();
    let mut child = Child::start("release without descriptors", &dir.path());
    child.expect("released");
    child.finish();
}

fn release_without_descriptors(stage: &Stage) {
    let dir: std::path::PathBuf = stage.argument();
    let store = FileSystemRecordStore::open(&dir).unwrap();
    for how in ["drop", "release", "panic"] {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let limit = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
        match how {
            "drop" => drop(guard),
            "release" => assert!(guard.release().is_err()),
            _ => {
                let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let _guard = guard;
                    std::panic::resume_unwind(Box::new("on purpose"));
                }));
                assert!(panicked.is_err());
            }
        }
        setrlimit(Resource::Nofile, limit).unwrap();
        assert!(store.is_locked("k").unwrap(), "{how}: the test needs a release that fails");
        assert!(store.lock_info("k").unwrap().unwrap().is_held_by(&Holder::current()));
        store.lock("k", LockOptions::new().acquire_timeout(Duration::ZERO)).unwrap().release().unwrap();
        assert!(!store.is_locked("k").unwrap(), "{how}: the key stayed locked");
    }
    stage.send("released");
}
