//! Guards: a lock as a value, released on drop.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use super::support::{
    LEASE, assert_error, assert_error_of, assert_matches, assert_names, join, long_lease, named, one_attempt,
    result_of, short_lease, wait_for_expiry,
};
use crate::{ErrorKind, Holder, LockGuard, LockOptions, RecordStore, RecordStoreExt, WaitOptions};

checks! { "guards":
    a_dropped_guard_releases:
        "Dropping a guard releases its lock.",
    a_guard_releases_on_panic:
        "A panic that drops a guard releases its lock.",
    a_guard_describes_its_lock_and_releases_it:
        "A guard reports its key, holder, token and remaining lease, and `release` releases the lock.",
    a_guard_reads_writes_removes_and_renews:
        "A guard reads, writes, removes and renews for its acquisition.",
    the_last_guard_releases:
        "If one holder has several guards for a key, the last one releases the lock.",
    a_failed_lock_is_an_error:
        "If `lock` cannot acquire the lock, it returns an error and no guard, and nothing changes.",
    try_lock_does_not_wait:
        "`try_lock` returns `Ok(None)` without a wait while another holder's lock is live, whatever the acquire timeout.",
    an_expired_guard_changes_nothing:
        "A guard whose lease has expired is refused with `LockLost`, and changes nothing.",
    a_guard_that_lost_its_lock_does_not_release_the_next:
        "A guard that lost its lock does not release the next holder's lock, whether it is dropped or released.",
    pointers_are_stores:
        "`&dyn`, `Box<dyn>`, `Arc<dyn>` and generic parameters work as stores.",
}

fn a_dropped_guard_releases(store: &dyn RecordStore) {
    {
        let _guard = store.lock("key", LockOptions::new()).unwrap();
        assert!(store.is_lock_holder("key", &Holder::current()).unwrap());
    }
    assert!(!store.is_locked("key").unwrap());
}

fn a_guard_releases_on_panic(store: &dyn RecordStore) {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let guard = store.lock("key", LockOptions::new()).unwrap();
        guard.write(&1).unwrap();
        // Panics without a message on the terminal.
        resume_unwind(Box::new("a panic under the lock"));
    }));
    assert!(outcome.is_err());
    assert!(!store.is_locked("key").unwrap());
    assert_eq!(result_of(store, "key", &named("me")), Some(1), "the write before the panic was lost");
}

fn a_guard_describes_its_lock_and_releases_it(store: &dyn RecordStore) {
    let me = named("me");
    let guard = store.lock("key", one_attempt(&me)).unwrap();
    assert_eq!((guard.key().as_str(), guard.holder()), ("key", &me));
    assert_eq!(guard.token(), store.lock_info("key").unwrap().expect("a lock").token());
    assert_eq!(guard.remaining().unwrap(), None);
    guard.release().unwrap();
    assert!(!store.is_locked("key").unwrap());

    let guard = store.lock("key", long_lease(&me)).unwrap();
    assert!(guard.remaining().unwrap().expect("a lease") > LEASE);
    guard.release().unwrap();
}

fn a_guard_reads_writes_removes_and_renews(store: &dyn RecordStore) {
    let guard = store.lock("key", long_lease(&named("me"))).unwrap();
    assert_matches!(guard.read::<i64>(), Ok(None));
    guard.write(&1).unwrap();
    let record = guard.read::<i64>().unwrap().unwrap();
    assert_eq!((record.key.as_str(), record.result), ("key", 1));
    assert_error(guard.write(&f64::NAN), ErrorKind::Encode);
    assert_error(guard.read::<String>(), ErrorKind::Decode);
    assert_eq!(guard.read::<i64>().unwrap().unwrap().result, 1, "the old record was changed");
    guard.renew().unwrap();
    assert!(guard.remove().unwrap());
    assert!(!guard.remove().unwrap());
    guard.release().unwrap();
    assert!(!store.exists("key").unwrap());
}

fn the_last_guard_releases(store: &dyn RecordStore) {
    let me = named("me");
    let outer = store.lock("key", one_attempt(&me)).unwrap();
    let dropped = store.lock("key", LockOptions::new().holder(me.clone())).unwrap();
    assert_eq!(dropped.token(), outer.token());
    drop(dropped);
    assert!(store.is_lock_holder("key", &me).unwrap(), "a guard that was dropped first released the lock");
    let released = store.try_lock("key", one_attempt(&me)).unwrap().expect("the holder's own lock");
    released.release().unwrap();
    assert!(store.is_lock_holder("key", &me).unwrap(), "a guard that was released first released the lock");
    outer.write(&1).unwrap();
    drop(outer);
    assert!(!store.is_locked("key").unwrap(), "the last guard did not release the lock");
}

fn a_failed_lock_is_an_error(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let held = store.lock("key", long_lease(&other)).unwrap();
    let error = assert_error_of(store.lock("key", one_attempt(&me)), ErrorKind::LockTimeout, "acquire_lock");
    assert_names(&error, "key", &other);
    assert!(store.is_lock_holder("key", &other).unwrap());
    held.release().unwrap();
}

fn try_lock_does_not_wait(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let held = store.lock("key", long_lease(&other)).unwrap();
    let start = std::time::Instant::now();
    for options in [LockOptions::new(), LockOptions::new().holder(me).acquire_timeout(super::PATIENCE)] {
        assert!(store.try_lock("key", options).unwrap().is_none());
    }
    assert!(start.elapsed() < super::PATIENCE / 2, "`try_lock` waited");
    assert!(store.is_lock_holder("key", &other).unwrap());
    drop(held);
    let guard = store.try_lock("key", LockOptions::new()).unwrap().expect("a free key");
    assert_eq!(guard.holder(), &Holder::current());
}

fn assert_lost(guard: &LockGuard<'_, dyn RecordStore + '_>) {
    assert_error_of(guard.read::<i64>(), ErrorKind::LockLost, "read");
    assert_error_of(guard.write(&-1), ErrorKind::LockLost, "write");
    assert_error_of(guard.remove(), ErrorKind::LockLost, "remove");
    assert_error_of(guard.renew(), ErrorKind::LockLost, "renew");
    assert_error(guard.remaining(), ErrorKind::LockLost);
}

fn an_expired_guard_changes_nothing(store: &dyn RecordStore) {
    let me = named("me");
    store.write("key", &1).unwrap();
    let expired = store.lock("key", short_lease(&me)).unwrap();
    wait_for_expiry(store, "key");
    assert_lost(&expired);
    assert_error_of(expired.release(), ErrorKind::LockLost, "release_lock");
    assert_eq!(result_of(store, "key", &me), Some(1), "a refused operation changed the record");
    assert!(!store.is_locked("key").unwrap());
}

fn a_guard_that_lost_its_lock_does_not_release_the_next(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    for broken in [false, true] {
        for next in [&other, &me] {
            let lost_guard = || {
                let guard = store.lock("key", short_lease(&me)).unwrap();
                if broken {
                    store.break_lock("key").unwrap();
                } else {
                    wait_for_expiry(store, "key");
                }
                guard
            };
            let lost = [lost_guard(), lost_guard()];
            // Even if the next holder is the same one, its lock is a new one.
            let held = store.lock("key", one_attempt(next)).unwrap();
            held.write(&1).unwrap();
            for guard in &lost {
                assert_lost(guard);
            }
            let [dropped, released] = lost;
            drop(dropped);
            assert_error(released.release(), ErrorKind::LockLost);
            assert_eq!(held.read::<i64>().unwrap().unwrap().result, 1);
            held.release().unwrap();
        }
    }
}

fn pointers_are_stores(store: &dyn RecordStore) {
    fn exercise(store: impl RecordStore) {
        let guard = store.lock("key", LockOptions::new()).unwrap();
        let before = guard.read::<i64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(before + 1)).unwrap();
        guard.renew().unwrap();
        let holder = Holder::current();
        assert!(store.is_lock_holder("key", &holder).unwrap());
        assert_eq!(store.locks().unwrap().count(), 1);
        guard.release().unwrap();
        assert!(store.exists("key").unwrap());
        assert!(!store.break_lock("key").unwrap());
        assert!(store.wait_for_lock("key", WaitOptions::new()).unwrap());
        assert_eq!(store.keys().unwrap().count(), 1);
        assert!(store.supports_isolation_level(crate::IsolationLevel::Serializable));
        store.write("gone", &1).unwrap();
        assert!(store.remove("gone").unwrap());
    }
    let boxed: Box<dyn RecordStore + '_> = Box::new(store);
    let shared: Arc<dyn RecordStore + '_> = Arc::new(store);
    exercise(store);
    exercise(&boxed);
    exercise(boxed);
    exercise(Arc::clone(&shared));
    std::thread::scope(|scope| join(scope.spawn(|| exercise(shared))));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 5);
}
