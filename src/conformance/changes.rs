//! Changes that depend on the current record: swaps, updates, results that are computed once.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::PATIENCE;
use super::support::{
    LEASE, assert_error, assert_matches, join, long_lease, named, wait_for_expiry, write_by,
};
use crate::{
    Claim, Error, ErrorKind, Expected, Json, Key, LockOptions, RecordStore, RecordStoreExt, Result,
    UpdateOptions, WriteOptions,
};

checks! { "changes":
    a_swap_needs_the_expected_result:
        "`compare_and_swap` writes only if the record's result is the expected one, and otherwise changes nothing.",
    a_swap_compares_numbers_exactly:
        "A swap compares numbers as they are written: two numbers are not equal because they become the same float.",
    write_if_absent_keeps_an_existing_record:
        "`write_if_absent` writes only if no record exists, and keeps an existing one.",
    a_swap_respects_locks:
        "A swap is `Locked` while another holder's lock is live; a swap with a lost token is `LockLost`.",
    one_of_many_concurrent_swaps_succeeds:
        "When several threads swap the same result concurrently, exactly one succeeds.",
    an_update_receives_the_old_result:
        "`update` passes the old result, or `None`, to its closure, writes the new result and returns it.",
    a_failed_update_changes_nothing:
        "If the closure of `update` fails or panics, the lock is released and the record stays.",
    an_update_that_outlasts_its_lease_is_refused:
        "An `update` that outlasts its lease is `LockLost`, the record stays, and the error has the result.",
    a_result_is_computed_once:
        "When several threads request a result concurrently, one of them computes it and all of them get it.",
    a_failed_computation_can_be_retried:
        "If the closure of `get_or_compute` fails or panics, nothing is stored, the lock is released, and the next caller computes.",
    a_computation_that_outlasts_its_lease_is_refused:
        "A computation that outlasts its lease is `LockLost`, stores nothing, and the error has the result.",
}

fn a_swap_needs_the_expected_result(store: &dyn RecordStore) {
    let swap =
        |expected: Option<&i64>, new| store.compare_and_swap("key", expected, &new, WriteOptions::new());
    assert_matches!(swap(Some(&1), 2), Ok(false));
    assert!(!store.exists("key").unwrap(), "a failed swap wrote");
    assert_matches!(swap(None, 1), Ok(true));
    assert_matches!(swap(None, 2), Ok(false));
    assert_matches!(swap(Some(&2), 3), Ok(false));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1, "a failed swap wrote");
    assert_matches!(swap(Some(&1), 2), Ok(true));
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
    assert!(!store.is_locked("key").unwrap(), "a swap left a lock behind");
}

fn a_swap_compares_numbers_exactly(store: &dyn RecordStore) {
    let numbers = [
        ("9007199254740993", "9007199254740992"),
        ("18446744073709551615", "18446744073709551614"),
        ("-9223372036854775808", "-9223372036854775807"),
        ("[9007199254740993]", "[9007199254740992]"),
        ("{\"a\":0.1}", "{\"a\":0.1000000000000000000001}"),
    ];
    let key = Key::new("key").unwrap();
    for (present, other) in numbers {
        let [present, other] = [present, other].map(|text| Json::parse(text).unwrap());
        store.write_raw(&key, &present, WriteOptions::new()).unwrap();
        let swap = |expected| {
            store.compare_and_swap_raw(&key, Expected::Value(expected), &present, WriteOptions::new())
        };
        let (wrong, right) = (swap(&other), swap(&present));
        assert!(
            matches!((&wrong, &right), (Ok(false), Ok(true))),
            "the result is {}: a swap of {} is {wrong:?}, and one of the result {right:?}",
            present.as_str(),
            other.as_str(),
        );
    }
}

fn write_if_absent_keeps_an_existing_record(store: &dyn RecordStore) {
    assert_matches!(store.write_if_absent("key", "first", WriteOptions::new()), Ok(true));
    assert_matches!(store.write_if_absent("key", "second", WriteOptions::new()), Ok(false));
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "first");
    store.remove("key").unwrap();
    assert_matches!(store.write_if_absent("key", "third", WriteOptions::new()), Ok(true));
}

fn a_swap_respects_locks(store: &dyn RecordStore) {
    let other = named("other");
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", long_lease(&other)).unwrap();
    for expected in [Some(&1), Some(&2), None] {
        let outcome = store.compare_and_swap("key", expected, &3, WriteOptions::new());
        assert_error(outcome, ErrorKind::Locked);
    }
    let by = |claim: Claim| store.compare_and_swap("key", Some(&1), &2, write_by(claim));
    assert_matches!(by(token.into()), Ok(true));
    store.release_lock("key", &other).unwrap();
    assert_error(by(token.into()), ErrorKind::LockLost);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}

fn one_of_many_concurrent_swaps_succeeds(store: &dyn RecordStore) {
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
        assert_eq!(swapped, 1, "number of successful swaps of the same result");
    }
}

fn an_update_receives_the_old_result(store: &dyn RecordStore) {
    let update = |old: Option<i64>| Ok(old.map_or(1, |old| old * 10));
    assert_eq!(store.update("key", LockOptions::new(), update).unwrap(), 1);
    assert_eq!(store.update("key", LockOptions::new(), update).unwrap(), 10);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 10);
    assert!(!store.is_locked("key").unwrap(), "an update left a lock behind");
}

/// The error type of a caller's closure.
#[derive(Debug)]
enum Failure {
    Closure,
    Store(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

fn a_failed_update_changes_nothing(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let fails = store.try_update("key", LockOptions::new(), |_: Option<i64>| Err(Failure::Closure));
    assert_matches!(fails, Err(Failure::Closure));
    let panics =
        || store.update("key", LockOptions::new(), |_: Option<i64>| -> Result<_> { panic!("on purpose") });
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err(), "the panic was swallowed");
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
    assert!(!store.is_locked("key").unwrap(), "the lock was not released");
}

fn an_update_that_outlasts_its_lease_is_refused(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let outcome = store.try_update("key", LockOptions::new().hold_timeout(LEASE), |_: Option<i64>| {
        wait_for_expiry(store, "key");
        Ok::<_, Failure>(2)
    });
    assert_refused_with_result(outcome, 2);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
}

/// The lock was lost, and the error has the result.
fn assert_refused_with_result(outcome: Result<i64, Failure>, result: i64) {
    let Err(Failure::Store(error)) = outcome else { panic!("{outcome:?}") };
    assert!(error.is_lock_lost(), "{error:?}");
    let unstored = error.unstored().expect("the error has the result that was not stored");
    assert_eq!(unstored.decode::<i64>().unwrap(), result);
}

fn a_result_is_computed_once(store: &dyn RecordStore) {
    let computed = AtomicUsize::new(0);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..6)
            .map(|_| {
                scope.spawn(|| {
                    store.get_or_compute("key", LockOptions::new().acquire_timeout(PATIENCE), || {
                        thread::sleep(LEASE / 3);
                        Ok(computed.fetch_add(1, Ordering::SeqCst) + 1)
                    })
                })
            })
            .collect();
        for caller in callers {
            assert_matches!(join(caller), Ok(1));
        }
    });
    assert_eq!(computed.into_inner(), 1, "number of computations");
    assert!(!store.is_locked("key").unwrap(), "the lock was not released");
}

fn a_failed_computation_can_be_retried(store: &dyn RecordStore) {
    let attempts = Cell::new(0);
    let compute = |fail: bool| {
        store.get_or_try_compute("key", LockOptions::new(), || {
            attempts.set(attempts.get() + 1);
            if fail { Err(Failure::Closure) } else { Ok(attempts.get()) }
        })
    };
    assert_matches!(compute(true), Err(Failure::Closure));
    let panics =
        || store.get_or_compute("key", LockOptions::new(), || -> Result<i64> { panic!("on purpose") });
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err(), "the panic was swallowed");
    assert!(!store.exists("key").unwrap(), "a failure was stored");
    assert!(!store.is_locked("key").unwrap(), "the lock was not released");
    assert_matches!(compute(false), Ok(2));
    assert_matches!(compute(true), Ok(2));
}

fn a_computation_that_outlasts_its_lease_is_refused(store: &dyn RecordStore) {
    let options = UpdateOptions::from(LockOptions::new().hold_timeout(LEASE));
    let outcome = store.get_or_try_compute("key", options, || {
        wait_for_expiry(store, "key");
        Ok::<_, Failure>(1)
    });
    assert_refused_with_result(outcome, 1);
    assert!(!store.exists("key").unwrap(), "a late result was stored");
}
