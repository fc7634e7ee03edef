//! Leases: expiry and renewal.

use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::blocks_until;
use super::support::{
    LEASE, assert_error, assert_error_of, assert_names, expired_lock, long_lease, named, one_attempt,
    remove_by, result_of, short_lease, wait_for_expiry, write_by,
};
use crate::{Claim, ErrorKind, LockInfo, LockOptions, LockState, RecordStore, RecordStoreExt};

checks! { "leases":
    a_lease_expires:
        "A lock with a hold timeout becomes free for the next holder when its lease expires, and not before.",
    every_method_respects_a_live_lease:
        "Until the lease expires, every method treats the lock as live.",
    an_expired_lock_is_not_a_lock:
        "An expired lock is not a lock: it has no holder, and nobody can release or renew it by holder.",
    an_expired_lock_blocks_nobody:
        "While a lock is expired, every holder can read, write and remove the record.",
    a_lock_without_a_hold_timeout_does_not_expire:
        "A lock without a hold timeout does not expire; it stays until it is released.",
    acquiring_again_restarts_the_lease:
        "When the same holder acquires the lock again, a new lease starts at that moment and replaces the old one.",
    an_expired_lock_is_not_reentrant:
        "When the old holder acquires an expired lock, the lock is a new one with a new token.",
    renew_restarts_the_lease:
        "`renew`, by holder or by token, restarts the lease and changes nothing else.",
    a_renewed_lease_expires:
        "A renewed lease expires after its new hold timeout, and not before, also for calls that are already waiting.",
    renew_needs_the_holder:
        "A renewal by another holder is `NotLockHolder`, a renewal of a free key is `NotLocked`, and nothing changes.",
}

fn a_lease_expires(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let start = Instant::now();
    let first = store.acquire_lock("key", short_lease(&other)).unwrap();
    let second = store.acquire_lock("key", one_attempt(&me).acquire_timeout(PATIENCE)).unwrap();
    let elapsed = start.elapsed();
    assert!(elapsed >= LEASE, "the next holder acquired the lock after {elapsed:?} of {LEASE:?}");
    assert!(elapsed < PATIENCE / 2, "the next holder acquired the lock late, after {elapsed:?}");
    assert!(second > first, "token {second} after {first}");
    assert!(store.is_lock_holder("key", &me).unwrap());
}

fn every_method_respects_a_live_lease(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let methods: [(&str, &dyn Fn() -> bool); 3] = [
        ("is_locked", &|| !store.is_locked("key").unwrap()),
        ("write", &|| store.write_with("key", &1, write_by(&me)).is_ok()),
        ("acquire_lock", &|| store.acquire_lock("key", one_attempt(&me)).is_ok()),
    ];
    for (method, is_free) in methods {
        let start = Instant::now();
        store.acquire_lock("key", short_lease(&other)).unwrap();
        while !is_free() {
            assert!(start.elapsed() < PATIENCE, "{method} still treats the lock as live after its lease");
            thread::sleep(LEASE / 100);
        }
        let elapsed = start.elapsed();
        assert!(elapsed >= LEASE, "{method} treats the key as free after {elapsed:?} of {LEASE:?}");
    }
}

fn an_expired_lock_is_not_a_lock(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    expired_lock(store, "key", &me);
    assert!(!store.is_locked("key").unwrap());
    assert!(!store.is_lock_holder("key", &me).unwrap());
    assert_eq!(store.lock_info("key").unwrap(), None);
    assert!(store.wait_for_lock("key", Duration::ZERO).unwrap());
    assert!(store.locks().unwrap().all(|info| info.unwrap().state() != LockState::Held));
    for holder in [&me, &other] {
        assert_error_of(store.renew("key", holder, None), ErrorKind::NotLocked, "renew");
        assert_error(store.release_lock("key", holder), ErrorKind::NotLocked);
    }
    assert!(!store.is_locked("key").unwrap(), "a refused renewal revived the lock");
}

fn an_expired_lock_blocks_nobody(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    expired_lock(store, "key", &other);
    assert_eq!(result_of(store, "key", &me), Some(1));
    store.write_with("key", &2, write_by(&me)).unwrap();
    assert_eq!(result_of(store, "key", &other), Some(2));
    assert!(store.remove_with("key", remove_by(&me)).unwrap());
}

fn a_lock_without_a_hold_timeout_does_not_expire(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    expired_lock(store, "another key", &other);
    assert!(store.is_lock_holder("key", &other).unwrap());
    assert_error(store.acquire_lock("key", one_attempt(&me)), ErrorKind::LockTimeout);
}

fn acquiring_again_restarts_the_lease(store: &dyn RecordStore) {
    let me = named("me");
    // A longer lease: the lock outlives the old lease.
    store.acquire_lock("longer", short_lease(&me)).unwrap();
    store.acquire_lock("longer", one_attempt(&me)).unwrap();
    assert_eq!(info_of(store, "longer").remaining(), None, "the old lease still applies");
    expired_lock(store, "meanwhile", &me);
    assert!(store.is_lock_holder("longer", &me).unwrap(), "the lock expired with the old lease");

    // A shorter lease: the lock expires with the new lease.
    let token = store.acquire_lock("shorter", one_attempt(&me)).unwrap();
    let start = Instant::now();
    assert_eq!(store.acquire_lock("shorter", short_lease(&me)).unwrap(), token);
    wait_for_expiry(store, "shorter");
    assert!(start.elapsed() >= LEASE, "the lease expired after {:?} of {LEASE:?}", start.elapsed());
}

fn an_expired_lock_is_not_reentrant(store: &dyn RecordStore) {
    let me = named("me");
    let key = crate::Key::new("key").unwrap();
    let old = expired_lock(store, "key", &me);
    let new = store.acquire_lock_raw(&key, one_attempt(&me)).unwrap();
    assert!(!new.reentrant, "the store reports that the lock was already held");
    assert!(new.token > old, "token {} after {old}", new.token);
}

fn renew_restarts_the_lease(store: &dyn RecordStore) {
    let (me, hour) = (named("me"), Duration::from_hours(1));
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", long_lease(&me)).unwrap();
    let before = info_of(store, "key");
    for claim in [Claim::from(&me), Claim::from(token)] {
        let renew = |hold_timeout| store.renew("key", claim.clone(), hold_timeout);
        renew(Some(hour)).unwrap();
        let info = info_of(store, "key");
        let remaining = info.remaining().expect("a lease");
        assert!(remaining <= hour && remaining + PATIENCE > hour, "{remaining:?} of an hour remain");
        assert!(info.expires_at() > before.expires_at(), "the wall clock time of expiry has not moved");
        assert_eq!((info.token(), info.acquired_at()), (token, before.acquired_at()));
        assert_eq!(info.holder(), &me);

        renew(None).unwrap();
        let info = info_of(store, "key");
        assert_eq!((info.remaining(), info.expires_at()), (None, None), "renewed without a hold timeout");
        assert_eq!((info.token(), info.acquired_at()), (token, before.acquired_at()));
    }
    assert_eq!(result_of(store, "key", &me), Some(1));
}

fn a_renewed_lease_expires(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let renews = || store.renew("key", &other, LEASE).unwrap();
    let acquires_again = || {
        store.acquire_lock("key", short_lease(&other)).unwrap();
    };
    let shortens: [&dyn Fn(); 2] = [&renews, &acquires_again];
    for shorten in shortens {
        store.acquire_lock("key", long_lease(&other)).unwrap();
        let acquires = || {
            store.acquire_lock("key", LockOptions::new().holder(me.clone())).unwrap();
            Instant::now()
        };
        let mut start = Instant::now();
        let end = blocks_until(acquires, || {
            start = Instant::now();
            shorten();
        });
        let elapsed = end - start;
        assert!(elapsed >= LEASE, "the next holder acquired the lock after {elapsed:?} of {LEASE:?}");
        store.release_lock("key", &me).unwrap();
    }
}

fn renew_needs_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert_error_of(store.renew("key", &me, None), ErrorKind::NotLocked, "renew");
    assert!(!store.is_locked("key").unwrap(), "a refused renewal created a lock");
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    let before = info_of(store, "key");
    let error = assert_error_of(store.renew("key", &me, LEASE), ErrorKind::NotLockHolder, "renew");
    assert_names(&error, "key", &other);
    assert_eq!(error.claimant(), Some(&me), "the error names another claimant");
    assert_eq!(info_of(store, "key"), before, "a refused renewal changed the lock");
}

fn info_of(store: &dyn RecordStore, key: &str) -> LockInfo {
    store.lock_info(key).unwrap().expect("a live lock")
}
