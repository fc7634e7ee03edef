//! Changes that depend on what is there: swaps, updates, results computed once.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::PATIENCE;
use super::support::{LEASE, assert_matches, join, long, named, outlive};
use crate::{Claim, Error, LockOptions, RecordStore, RecordStoreExt, UpdateOptions, WriteOptions};

checks! { "swaps":
    a_swap_needs_what_is_expected:
        "`compare_and_swap` writes if the result is the expected one, and otherwise changes nothing.",
    a_record_is_written_once:
        "`write_if_absent` writes where there is no record, and leaves one that is there.",
    a_swap_is_refused_by_a_lock:
        "A swap while another holder's lock is live is `Locked`; one by a lost token is `LockLost`.",
    of_many_swaps_one_succeeds:
        "Of several threads that swap the same result, exactly one succeeds each time.",
    an_update_sees_the_old_result:
        "`update` hands over the old result, or `None`, writes the new one and returns it.",
    a_failed_update_changes_nothing:
        "An error or panic within `update` frees the key and leaves the record.",
    a_late_update_is_lost:
        "An `update` that outlasts its lease is `LockLost`, and leaves the record.",
    a_result_is_computed_once:
        "Of several threads that want a result, one computes it and all get it.",
    a_failed_computation_lets_the_next_try:
        "An error or panic within `get_or_compute` frees the key, stores nothing, and the next one tries.",
    a_late_computation_is_lost:
        "A computation that outlasts its lease is `LockLost`, and stores nothing.",
}

fn a_swap_needs_what_is_expected(store: &dyn RecordStore) {
    let swap =
        |expected: Option<&i64>, new| store.compare_and_swap("key", expected, &new, WriteOptions::new());
    assert_matches!(swap(Some(&1), 2), Ok(false));
    assert!(!store.exists("key").unwrap(), "a swap that failed wrote");
    assert_matches!(swap(None, 1), Ok(true));
    assert_matches!(swap(None, 2), Ok(false));
    assert_matches!(swap(Some(&2), 3), Ok(false));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1, "a swap that failed wrote");
    assert_matches!(swap(Some(&1), 2), Ok(true));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
    assert!(!store.is_locked("key").unwrap(), "a swap left a lock");
}

fn a_record_is_written_once(store: &dyn RecordStore) {
    assert_matches!(store.write_if_absent("key", "first", WriteOptions::new()), Ok(true));
    assert_matches!(store.write_if_absent("key", "second", WriteOptions::new()), Ok(false));
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "first");
    store.remove("key").unwrap();
    assert_matches!(store.write_if_absent("key", "third", WriteOptions::new()), Ok(true));
}

fn a_swap_is_refused_by_a_lock(store: &dyn RecordStore) {
    let other = named("other");
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", &long(&other)).unwrap();
    for expected in [Some(&1), Some(&2), None] {
        let outcome = store.compare_and_swap("key", expected, &3, WriteOptions::new());
        assert_matches!(outcome, Err(Error::Locked { .. }));
    }
    let by = |claim: Claim| store.compare_and_swap("key", Some(&1), &2, WriteOptions::new().claim(claim));
    assert_matches!(by(token.into()), Ok(true));
    store.release_lock("key", &other).unwrap();
    assert_matches!(by(token.into()), Err(Error::LockLost { .. }));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}

fn of_many_swaps_one_succeeds(store: &dyn RecordStore) {
    for round in 0..20 {
        let before = (round > 0).then_some(round);
        let swapped: usize = thread::scope(|scope| {
            let swaps: Vec<_> = (0..4)
                .map(|_| {
                    let swap = move || {
                        store.compare_and_swap("key", before.as_ref(), &(round + 1), WriteOptions::new())
                    };
                    scope.spawn(swap)
                })
                .collect();
            swaps.into_iter().map(|swap| usize::from(join(swap).unwrap())).sum()
        });
        assert_eq!(swapped, 1, "so many swapped the same result");
    }
}

fn an_update_sees_the_old_result(store: &dyn RecordStore) {
    let update = |old: Option<i64>| Ok::<_, Error>(old.map_or(1, |old| old * 10));
    assert_eq!(store.update("key", LockOptions::new(), update).unwrap(), 1);
    assert_eq!(store.update("key", LockOptions::new(), update).unwrap(), 10);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 10);
    assert!(!store.is_locked("key").unwrap(), "an update left a lock");
}

/// What a caller's closure may fail with.
#[derive(Debug)]
enum Failure {
    Mine,
    Stores(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Stores(error)
    }
}

fn a_failed_update_changes_nothing(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let fails = store.update("key", LockOptions::new(), |_: Option<i64>| Err(Failure::Mine));
    assert_matches!(fails, Err(Failure::Mine));
    let panics = || {
        store.update("key", LockOptions::new(), |_: Option<i64>| -> Result<_, Error> { panic!("on purpose") })
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err(), "the panic was swallowed");
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
    assert!(!store.is_locked("key").unwrap(), "the key is not free");
}

fn a_late_update_is_lost(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let late = store.update("key", LockOptions::new().hold_timeout(LEASE), |_: Option<i64>| {
        outlive(store, "key");
        Ok::<_, Failure>(2)
    });
    assert_matches!(late, Err(Failure::Stores(Error::LockLost { .. })));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
}

fn a_result_is_computed_once(store: &dyn RecordStore) {
    let computed = AtomicUsize::new(0);
    thread::scope(|scope| {
        let wants: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    store.get_or_compute("key", LockOptions::new().acquire_timeout(PATIENCE), || {
                        thread::sleep(LEASE / 3);
                        Ok::<_, Error>(computed.fetch_add(1, Ordering::SeqCst) + 1)
                    })
                })
            })
            .collect();
        for want in wants {
            assert_matches!(join(want), Ok(1));
        }
    });
    assert_eq!(computed.into_inner(), 1, "computed so many times");
    assert!(!store.is_locked("key").unwrap(), "the key is not free");
}

fn a_failed_computation_lets_the_next_try(store: &dyn RecordStore) {
    let tries = Cell::new(0);
    let want = |fail: bool| {
        store.get_or_compute("key", LockOptions::new(), || {
            tries.set(tries.get() + 1);
            if fail { Err(Failure::Mine) } else { Ok(tries.get()) }
        })
    };
    assert_matches!(want(true), Err(Failure::Mine));
    let panics =
        || store.get_or_compute("key", LockOptions::new(), || -> Result<i64, Error> { panic!("so") });
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err(), "the panic was swallowed");
    assert!(!store.exists("key").unwrap(), "a failure was stored");
    assert!(!store.is_locked("key").unwrap(), "the key is not free");
    assert_matches!(want(false), Ok(2));
    assert_matches!(want(true), Ok(2));
}

fn a_late_computation_is_lost(store: &dyn RecordStore) {
    let options = UpdateOptions::from(LockOptions::new().hold_timeout(LEASE));
    let late = store.get_or_compute("key", options, || {
        outlive(store, "key");
        Ok::<_, Failure>(1)
    });
    assert_matches!(late, Err(Failure::Stores(Error::LockLost { .. })));
    assert!(!store.exists("key").unwrap(), "a late result was stored");
}
