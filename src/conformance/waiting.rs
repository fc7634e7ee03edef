//! Waiting: who waits for a lock, until when, and what he finds then.

use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::waits_until_freed;
use super::support::{A_WHILE, LEASE, assert_matches, at_once, join, long, named, result_of, short};
use crate::{Claim, Error, Holder, Key, LockToken, RecordStore, RecordStoreExt};

checks! { "waiting":
    a_read_returns_what_the_holder_commits:
        "A read waits while another holder's lock is live, and returns what that holder committed.",
    a_read_waits_for_a_first_record:
        "A read waits also where there is no record yet.",
    a_read_finds_what_the_holder_left:
        "A read that waited finds no record where the holder wrote none, or removed it.",
    a_read_in_time_or_not_at_all:
        "A read whose time is up is `LockTimeout` naming the holder, never `None` and never a stale record.",
    holders_read_their_record:
        "The holder of the lock reads without waiting, by name, by default and by token.",
    a_read_waits_for_the_end_of_a_lease:
        "A read waits for the end of a lease, and not longer.",
    a_wait_for_a_free_key_is_true:
        "`wait_for_lock` of a key that was never locked, or is no longer, is `true` at once.",
    a_wait_in_time_is_true:
        "`wait_for_lock` is `true` once the lock is released.",
    a_wait_that_is_over_is_false:
        "`wait_for_lock` is `false` at the timeout, not before; a zero timeout looks once.",
    a_wait_sees_the_end_of_a_lease:
        "`wait_for_lock` is `true` when the lease runs out, and not before.",
    all_who_wait_are_woken:
        "Everyone who waits is woken by one release.",
}

fn a_read_returns_what_the_holder_commits(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let key = Key::new("key").unwrap();
    store.write(&key, &1).unwrap();
    for (round, timeout) in [(2, None), (3, Some(PATIENCE))] {
        store.acquire_lock(&key, &long(&other)).unwrap();
        let read = || store.read_json(&key, &Claim::from(&me), timeout);
        let json = waits_until_freed(read, || {
            store.write_as(&key, &-1, &other).unwrap();
            store.write_as(&key, &round, &other).unwrap();
            store.release_lock(&key, &other).unwrap();
        });
        assert_eq!(json.unwrap().expect("a record").get(), round.to_string(), "not what was committed");
    }
}

fn a_read_waits_for_a_first_record(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", &long(&other)).unwrap();
    let record = waits_until_freed(
        || store.read::<i64>("key"),
        || {
            store.write_as("key", &1, &other).unwrap();
            store.release_lock("key", &other).unwrap();
        },
    );
    assert_eq!(record.unwrap().expect("the first record").result, 1);
}

fn a_read_finds_what_the_holder_left(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", &long(&other)).unwrap();
    let read = || store.read::<i64>("key");
    assert_matches!(waits_until_freed(read, || store.release_lock("key", &other).unwrap()), Ok(None));

    store.write("key", &1).unwrap();
    store.acquire_lock("key", &long(&other)).unwrap();
    let frees = || {
        assert!(store.remove_as("key", &other).unwrap());
        store.release_lock("key", &other).unwrap();
    };
    assert_matches!(waits_until_freed(read, frees), Ok(None));
}

fn a_read_in_time_or_not_at_all(store: &dyn RecordStore) {
    let other = named("other");
    store.write("with", &1).unwrap();
    for key in ["with", "without"] {
        store.acquire_lock(key, &long(&other)).unwrap();
        for timeout in [Duration::ZERO, A_WHILE] {
            let start = Instant::now();
            let outcome = store.try_read::<i64>(key, timeout);
            let elapsed = start.elapsed();
            match outcome {
                Err(Error::LockTimeout { operation: "read", key: of, holder, waited, .. }) => {
                    assert_eq!((of.as_str(), holder), (key, Some(other.clone())), "the error names others");
                    assert!(waited >= timeout && waited <= elapsed, "waited {waited:?} of {elapsed:?}");
                }
                outcome => panic!("a read of a locked key: {outcome:?}"),
            }
            assert!(elapsed >= timeout, "gave up after {elapsed:?} of {timeout:?}");
            assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?} of {timeout:?}");
        }
        store.release_lock(key, &other).unwrap();
    }
    assert_eq!(store.try_read::<i64>("with", Duration::ZERO).unwrap().unwrap().result, 1);
    assert_matches!(store.try_read::<i64>("without", Duration::ZERO), Ok(None));
}

fn holders_read_their_record(store: &dyn RecordStore) {
    for holder in [named("me"), Holder::current()] {
        let token = store.acquire_lock("key", &long(&holder)).unwrap();
        store.write_as("key", &1, &holder).unwrap();
        assert_eq!(store.read_as::<i64>("key", &holder).unwrap().unwrap().result, 1);
        assert_eq!(store.read_as::<i64>("key", token).unwrap().unwrap().result, 1);
        if holder.is_process_bound() {
            assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
        }
        assert_matches!(
            store.read_as::<i64>("key", LockToken::new(token.get() + 1)),
            Err(Error::LockLost { .. })
        );
        store.release_lock("key", &holder).unwrap();
    }
}

fn a_read_waits_for_the_end_of_a_lease(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    let start = Instant::now();
    store.acquire_lock("key", &short(&other)).unwrap();
    assert_eq!(result_of(store, "key", &me), Some(1));
    let elapsed = start.elapsed();
    assert!(elapsed >= LEASE, "read after {elapsed:?} of {LEASE:?}");
    assert!(elapsed < PATIENCE / 2, "read late, after {elapsed:?}");
}

fn a_wait_for_a_free_key_is_true(store: &dyn RecordStore) {
    let me = named("me");
    for locked_before in [false, true] {
        for timeout in [None, Some(Duration::ZERO), Some(PATIENCE)] {
            let start = Instant::now();
            assert!(store.wait_for_lock("key", timeout).unwrap());
            assert!(start.elapsed() < PATIENCE / 2, "waited for a free key");
        }
        if !locked_before {
            store.acquire_lock("key", &at_once(&me)).unwrap();
            store.release_lock("key", &me).unwrap();
        }
    }
    assert!(!store.is_locked("key").unwrap(), "the wait took the lock");
}

fn a_wait_in_time_is_true(store: &dyn RecordStore) {
    let other = named("other");
    for timeout in [None, Some(PATIENCE)] {
        store.acquire_lock("key", &long(&other)).unwrap();
        let waits = || store.wait_for_lock("key", timeout);
        assert!(waits_until_freed(waits, || store.release_lock("key", &other).unwrap()).unwrap());
        assert!(!store.is_locked("key").unwrap(), "the wait took the lock");
    }
}

fn a_wait_that_is_over_is_false(store: &dyn RecordStore) {
    // One's own lock counts like any other.
    for holder in [named("other"), Holder::current()] {
        store.acquire_lock("key", &long(&holder)).unwrap();
        for timeout in [Duration::ZERO, A_WHILE] {
            let start = Instant::now();
            assert!(!store.wait_for_lock("key", Some(timeout)).unwrap());
            let elapsed = start.elapsed();
            assert!(elapsed >= timeout, "gave up after {elapsed:?} of {timeout:?}");
            assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?} of {timeout:?}");
        }
        store.release_lock("key", &holder).unwrap();
    }
}

fn a_wait_sees_the_end_of_a_lease(store: &dyn RecordStore) {
    for timeout in [None, Some(PATIENCE)] {
        let start = Instant::now();
        store.acquire_lock("key", &short(&named("other"))).unwrap();
        assert!(store.wait_for_lock("key", timeout).unwrap());
        let elapsed = start.elapsed();
        assert!(elapsed >= LEASE, "free after {elapsed:?} of {LEASE:?}");
        assert!(elapsed < PATIENCE / 2, "free late, after {elapsed:?}");
    }
}

fn all_who_wait_are_woken(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", &long(&other)).unwrap();
    let wait_together = || {
        std::thread::scope(|scope| {
            let waits = || assert!(store.wait_for_lock("key", None).unwrap());
            let reads = || assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
            let waiters = [scope.spawn(waits), scope.spawn(waits), scope.spawn(reads), scope.spawn(reads)];
            waiters.into_iter().for_each(join);
        });
    };
    waits_until_freed(wait_together, || {
        store.write_as("key", &1, &other).unwrap();
        store.release_lock("key", &other).unwrap();
    });
}
