//! Leases: how a lock ends by itself, and how its end is moved.

use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::waits_until_freed;
use super::support::{LEASE, assert_matches, at_once, expired, long, named, outlive, result_of, short};
use crate::{Claim, Error, LockInfo, LockOptions, LockState, RecordStore, RecordStoreExt};

checks! { "leases":
    a_lease_runs_out:
        "A lock with a hold timeout is free for the next holder when that time is over, and not before.",
    every_look_finds_a_live_lease:
        "Until the hold timeout is over, every look finds the lock live.",
    an_expired_lock_is_no_lock:
        "An expired lock is not a lock: nobody holds it, and nobody can release or renew it by name.",
    an_expired_lock_bars_nobody:
        "Under an expired lock every holder may read, write and remove.",
    a_lock_without_a_term_stays:
        "A lock without a hold timeout stays until it is released.",
    the_same_holder_starts_the_lease_anew:
        "Acquired again by the same holder, the lock has the new lease from now on.",
    an_expired_lock_is_not_reentered:
        "Once expired, the lock is a new one for its old holder too, with a new token.",
    renewal_moves_the_end:
        "`renew` starts the lease anew, by name or token, and changes nothing else.",
    a_renewed_lease_runs_out:
        "A renewed lease runs out when the new time is over, and not before, also for those who wait already.",
    renewal_needs_the_holder:
        "A renewal by another than the holder is `NotLockHolder`, of a free key `NotLocked`, and nothing changes.",
}

fn a_lease_runs_out(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let start = Instant::now();
    let first = store.acquire_lock("key", &short(&other)).unwrap();
    let second = store.acquire_lock("key", &at_once(&me).acquire_timeout(PATIENCE)).unwrap();
    let elapsed = start.elapsed();
    assert!(elapsed >= LEASE, "the next holder came after {elapsed:?} of {LEASE:?}");
    assert!(elapsed < PATIENCE / 2, "the next holder came late, after {elapsed:?}");
    assert!(second > first, "token {second} after {first}");
    assert!(store.is_lock_holder("key", &me).unwrap());
}

fn every_look_finds_a_live_lease(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let looks: [(&str, &dyn Fn() -> bool); 3] = [
        ("is_locked", &|| !store.is_locked("key").unwrap()),
        ("write", &|| store.write_as("key", &1, &me).is_ok()),
        ("acquire_lock", &|| store.acquire_lock("key", &at_once(&me)).is_ok()),
    ];
    for (method, finds_it_free) in looks {
        let start = Instant::now();
        store.acquire_lock("key", &short(&other)).unwrap();
        while !finds_it_free() {
            assert!(start.elapsed() < PATIENCE, "{method} finds the lock live after its lease");
            thread::sleep(LEASE / 100);
        }
        let elapsed = start.elapsed();
        assert!(elapsed >= LEASE, "{method} finds the key free after {elapsed:?} of {LEASE:?}");
    }
}

fn an_expired_lock_is_no_lock(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    expired(store, "key", &me);
    assert!(!store.is_locked("key").unwrap());
    assert!(!store.is_lock_holder("key", &me).unwrap());
    assert_eq!(store.lock_info("key").unwrap(), None);
    assert!(store.wait_for_lock("key", Some(Duration::ZERO)).unwrap());
    assert!(store.locks().unwrap().all(|info| info.unwrap().state() != LockState::Held));
    for holder in [&me, &other] {
        assert_matches!(store.renew("key", holder, None), Err(Error::NotLocked { operation: "renew", .. }));
        assert_matches!(store.release_lock("key", holder), Err(Error::NotLocked { .. }));
    }
    assert!(!store.is_locked("key").unwrap(), "a refused renewal brought the lock back");
}

fn an_expired_lock_bars_nobody(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    expired(store, "key", &other);
    assert_eq!(result_of(store, "key", &me), Some(1));
    store.write_as("key", &2, &me).unwrap();
    assert_eq!(result_of(store, "key", &other), Some(2));
    assert!(store.remove_as("key", &me).unwrap());
}

fn a_lock_without_a_term_stays(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &at_once(&other)).unwrap();
    expired(store, "another key", &other);
    assert!(store.is_lock_holder("key", &other).unwrap());
    assert_matches!(store.acquire_lock("key", &at_once(&me)), Err(Error::LockTimeout { .. }));
}

fn the_same_holder_starts_the_lease_anew(store: &dyn RecordStore) {
    let me = named("me");
    // A longer lease: the old end passes, and the lock is still there.
    store.acquire_lock("longer", &short(&me)).unwrap();
    store.acquire_lock("longer", &at_once(&me)).unwrap();
    assert_eq!(info_of(store, "longer").remaining(), None, "the old term is still there");
    expired(store, "meanwhile", &me);
    assert!(store.is_lock_holder("longer", &me).unwrap(), "the old lease ran out");

    // A shorter one: the new end counts, not the old.
    let token = store.acquire_lock("shorter", &at_once(&me)).unwrap();
    let start = Instant::now();
    assert_eq!(store.acquire_lock("shorter", &short(&me)).unwrap(), token);
    outlive(store, "shorter");
    assert!(start.elapsed() >= LEASE, "the lease was over after {:?} of {LEASE:?}", start.elapsed());
}

fn an_expired_lock_is_not_reentered(store: &dyn RecordStore) {
    let me = named("me");
    let key = crate::Key::new("key").unwrap();
    let old = expired(store, "key", &me);
    let new = store.acquire(&key, &me, &at_once(&me)).unwrap();
    assert!(!new.reentrant, "it says that the lock was held");
    assert!(new.token > old, "token {} after {old}", new.token);
}

fn renewal_moves_the_end(store: &dyn RecordStore) {
    let (me, hour) = (named("me"), Duration::from_hours(1));
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", &long(&me)).unwrap();
    let before = info_of(store, "key");
    for claim in [Claim::from(&me), Claim::from(token)] {
        let renew = |hold_timeout| store.renew("key", claim.clone(), hold_timeout);
        renew(Some(hour)).unwrap();
        let info = info_of(store, "key");
        let remaining = info.remaining().expect("a term");
        assert!(remaining <= hour && remaining + PATIENCE > hour, "{remaining:?} of an hour remain");
        assert!(info.expires_at() > before.expires_at(), "the wall clock's end has not moved");
        assert_eq!((info.token(), info.acquired_at()), (token, before.acquired_at()));
        assert_eq!(info.holder(), &me);

        renew(None).unwrap();
        let info = info_of(store, "key");
        assert_eq!((info.remaining(), info.expires_at()), (None, None), "renewed without a term");
        assert_eq!((info.token(), info.acquired_at()), (token, before.acquired_at()));
    }
    assert_eq!(result_of(store, "key", &me), Some(1));
}

fn a_renewed_lease_runs_out(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let renews = || store.renew("key", &other, Some(LEASE)).unwrap();
    let acquires_again = || {
        store.acquire_lock("key", &short(&other)).unwrap();
    };
    let shortens: [&dyn Fn(); 2] = [&renews, &acquires_again];
    for shorten in shortens {
        store.acquire_lock("key", &long(&other)).unwrap();
        let waits = || {
            store.acquire_lock("key", &LockOptions::new().holder(me.clone())).unwrap();
            Instant::now()
        };
        let mut start = Instant::now();
        let end = waits_until_freed(waits, || {
            start = Instant::now();
            shorten();
        });
        let elapsed = end - start;
        assert!(elapsed >= LEASE, "the next holder came after {elapsed:?} of {LEASE:?}");
        store.release_lock("key", &me).unwrap();
    }
}

fn renewal_needs_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert_matches!(store.renew("key", &me, None), Err(Error::NotLocked { operation: "renew", .. }));
    assert!(!store.is_locked("key").unwrap(), "a refused renewal made a lock");
    store.acquire_lock("key", &at_once(&other)).unwrap();
    let before = info_of(store, "key");
    match store.renew("key", &me, Some(LEASE)) {
        Err(Error::NotLockHolder { operation: "renew", key, holder, current, .. }) => {
            assert_eq!((key.as_str(), holder, current), ("key", me, other), "the error names others");
        }
        outcome => panic!("a renewal by another: {outcome:?}"),
    }
    assert_eq!(info_of(store, "key"), before, "a refused renewal changed the lock");
}

fn info_of(store: &dyn RecordStore, key: &str) -> LockInfo {
    store.lock_info(key).unwrap().expect("a live lock")
}
