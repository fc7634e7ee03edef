//! Cancellation: a cancelled call returns `Cancelled` promptly, and gets and changes nothing.

use std::thread;
use std::time::Instant;

use super::PATIENCE;
use super::support::{
    LEASE, SHORT_WAIT, assert_error, assert_error_of, assert_matches, blocks_until, join, long_lease, named,
    one_attempt, read_by, result_of, write_by,
};
use crate::{
    Cancellation, Error, ErrorKind, IsolationLevel, Key, LockOptions, ReadOptions, RecordChange, RecordStore,
    RecordStoreExt, Result, WaitOptions, WriteOptions,
};

checks! { "cancellation":
    a_call_that_is_already_cancelled_fails_at_once:
        "A call with a cancelled `Cancellation` returns `Cancelled` at once, even if it would not have to wait, and changes nothing.",
    a_cancelled_acquisition_gets_no_lock:
        "A waiting `acquire_lock` that is cancelled returns `Cancelled` promptly, and never gets the lock.",
    a_cancelled_read_returns_promptly:
        "A waiting read that is cancelled returns `Cancelled` promptly.",
    a_cancelled_wait_for_lock_returns_promptly:
        "A `wait_for_lock` that is cancelled returns `Cancelled` promptly, and never `false`.",
    a_cancelled_watch_returns_promptly_and_can_be_used_again:
        "A waiting watch that is cancelled returns `Cancelled` promptly, and reports the next change when it is used again.",
    every_operation_that_waits_can_be_cancelled:
        "`lock`, `lock_all`, `get_or_compute`, `update` and the begin of a serializable transaction are cancelled promptly while they wait for a lock, and leave no lock behind.",
    one_cancellation_ends_all_its_waits_and_no_others:
        "One `Cancellation` ends every wait that uses it, and no other wait.",
    a_cancellation_does_not_affect_held_locks:
        "A lock that is already held is not affected when the `Cancellation` of its acquisition is cancelled.",
}

fn cancelled() -> Cancellation {
    let cancellation = Cancellation::new();
    cancellation.cancel();
    cancellation
}

/// Asserts that the call was cancelled, and that the error names its operation and the key.
fn assert_cancelled<T: std::fmt::Debug>(outcome: Result<T>, operation: &str, key: &str) {
    let error = assert_error_of(outcome, ErrorKind::Cancelled, operation);
    assert_eq!(error.key().map(Key::as_str), Some(key), "the error names another key");
    assert!(!error.is_outcome_unknown(), "{error}");
}

fn a_call_that_is_already_cancelled_fails_at_once(store: &dyn RecordStore) {
    let (me, other, cancellation) = (named("me"), named("other"), cancelled());
    store.write("free", &1).unwrap();
    store.write("locked", &1).unwrap();
    store.acquire_lock("locked", long_lease(&other)).unwrap();
    let token = store.acquire_lock("mine", long_lease(&me)).unwrap();
    let start = Instant::now();
    for timeout in [None, Some(std::time::Duration::ZERO), Some(PATIENCE)] {
        let wait = WaitOptions::new().timeout(timeout).cancellation(&cancellation);
        let read = ReadOptions::new().timeout(timeout).cancellation(&cancellation);
        for key in ["free", "locked", "no record"] {
            assert_cancelled(store.read_with::<i64>(key, read.clone().claim(&me)), "read", key);
            assert_cancelled(store.read_with::<i64>(key, read.clone().ignore_lock()), "read", key);
            assert_cancelled(store.wait_for_lock(key, wait.clone()), "wait_for_lock", key);
            let options = LockOptions::new().holder(me.clone());
            let options = options.acquire_timeout(timeout).cancellation(&cancellation);
            assert_cancelled(store.acquire_lock(key, options.clone()), "acquire_lock", key);
            assert_cancelled(store.try_lock(key, options), "acquire_lock", key);
            assert_cancelled(store.wait_for_record(key, wait.clone()), "watch", key);
        }
        // The holder of the lock would not have to wait.
        assert_cancelled(store.read_with::<i64>("mine", read.clone().claim(&me)), "read", "mine");
        assert_cancelled(store.read_with::<i64>("mine", read.claim(token)), "read", "mine");
        // The change has already happened.
        let mut watch = store.watch("changed").unwrap();
        store.write("changed", &1).unwrap();
        assert_cancelled(watch.next(wait), "watch", "changed");
        assert_matches!(watch.next(PATIENCE), Ok(Some(RecordChange::Appeared)));
        store.remove("changed").unwrap();
    }
    let options = LockOptions::new().cancellation(&cancellation);
    assert_error(store.lock_all(["free", "no record"], options.clone()), ErrorKind::Cancelled);
    assert_error(store.get_or_compute("no record", options, || Ok(1)), ErrorKind::Cancelled);
    assert!(start.elapsed() < PATIENCE / 2, "a cancelled call waited");
    for key in ["free", "no record"] {
        assert!(!store.is_locked(key).unwrap(), "a cancelled call acquired the lock of {key:?}");
    }
    assert!(!store.exists("no record").unwrap(), "a cancelled computation was stored");
    assert!(store.is_lock_holder("locked", &other).unwrap());
    // Calls without the cancellation work as before.
    assert_eq!(result_of(store, "free", &me), Some(1));
    store.write_with("mine", &1, write_by(token)).unwrap();
}

fn a_cancelled_acquisition_gets_no_lock(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    for timeout in [None, Some(PATIENCE * 2)] {
        let held = store.acquire_lock("key", long_lease(&other)).unwrap();
        let cancellation = Cancellation::new();
        let options = LockOptions::new().holder(me.clone());
        let options = options.acquire_timeout(timeout).cancellation(&cancellation);
        let acquires = || store.acquire_lock("key", options.clone());
        assert_cancelled(blocks_until(acquires, || cancellation.cancel()), "acquire_lock", "key");
        assert_eq!(store.lock_info("key").unwrap().expect("a live lock").token(), held);
        store.release_lock("key", held).unwrap();
        assert!(!store.is_locked("key").unwrap(), "the cancelled call got the lock");
    }
    // The next one in the queue has its turn.
    store.lock("key", one_attempt(&other)).unwrap().release().unwrap();
}

fn a_cancelled_read_returns_promptly(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("with", &1).unwrap();
    for key in ["with", "without"] {
        store.acquire_lock(key, long_lease(&other)).unwrap();
        for timeout in [None, Some(PATIENCE * 2)] {
            let cancellation = Cancellation::new();
            let options = read_by(&me).timeout(timeout).cancellation(&cancellation);
            let reads = || store.read_with::<i64>(key, options.clone());
            assert_cancelled(blocks_until(reads, || cancellation.cancel()), "read", key);
        }
        store.release_lock(key, &other).unwrap();
    }
    assert_eq!(result_of(store, "with", &me), Some(1));
}

fn a_cancelled_wait_for_lock_returns_promptly(store: &dyn RecordStore) {
    let other = named("other");
    for timeout in [None, Some(PATIENCE * 2)] {
        store.acquire_lock("key", long_lease(&other)).unwrap();
        let cancellation = Cancellation::new();
        let options = WaitOptions::new().timeout(timeout).cancellation(&cancellation);
        let waits = || store.wait_for_lock("key", options.clone());
        assert_cancelled(blocks_until(waits, || cancellation.cancel()), "wait_for_lock", "key");
        assert!(store.is_lock_holder("key", &other).unwrap(), "the cancelled call changed the lock");
        store.release_lock("key", &other).unwrap();
    }
}

fn a_cancelled_watch_returns_promptly_and_can_be_used_again(store: &dyn RecordStore) {
    // The expiry of the record is a change that ends the wait of a store that ignores the cancellation.
    store.write_with("with", &1, WriteOptions::new().time_to_live(PATIENCE)).unwrap();
    for (key, timeout) in [("with", None), ("with", Some(PATIENCE)), ("without", Some(PATIENCE))] {
        let mut watch = store.watch(key).unwrap();
        let cancellation = Cancellation::new();
        let options = WaitOptions::new().timeout(timeout).cancellation(&cancellation);
        let waits = || watch.next(options.clone());
        assert_cancelled(blocks_until(waits, || cancellation.cancel()), "watch", key);

        let cancellation = Cancellation::new();
        let options = WaitOptions::new().timeout(timeout.unwrap_or(PATIENCE)).cancellation(&cancellation);
        let waits = || store.wait_for_record(key, options.clone());
        assert_cancelled(blocks_until(waits, || cancellation.cancel()), "watch", key);

        let change = blocks_until(
            || watch.next(PATIENCE),
            || store.write_with(key, &2, WriteOptions::new().time_to_live(PATIENCE)).unwrap(),
        );
        assert_matches!(change, Ok(Some(RecordChange::Appeared | RecordChange::Changed)));
    }
}

type Call<'a> = &'a (dyn Fn(LockOptions) -> Result<()> + Sync);

fn every_operation_that_waits_can_be_cancelled(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let computes = |old: Option<i64>| -> Result<i64> { panic!("computed without the lock, from {old:?}") };
    let calls: [(&str, Call<'_>); 5] = [
        ("lock", &|options| store.lock("key", options).map(drop)),
        // It has the lock of the first key when it is cancelled.
        ("lock_all", &|options| store.lock_all(["a", "key"], options).map(drop)),
        ("get_or_compute", &|options| store.get_or_compute("key", options, || computes(None)).map(drop)),
        ("update", &|options| store.update("key", options, computes).map(drop)),
        ("a transaction", &|options| {
            let transaction = store.transaction("key")?.isolation_level(IsolationLevel::Serializable);
            transaction.lock_options(options).begin().map(drop)
        }),
    ];
    for (name, call) in calls {
        for timeout in [None, Some(PATIENCE * 2)] {
            let cancellation = Cancellation::new();
            let options = LockOptions::new().acquire_timeout(timeout).cancellation(&cancellation);
            let outcome = blocks_until(|| call(options), || cancellation.cancel());
            assert!(
                outcome.as_ref().is_err_and(Error::is_cancelled),
                "{name} was cancelled: expected `Cancelled`, got {outcome:?}"
            );
            assert!(!store.is_locked("a").unwrap(), "{name} was cancelled and left a lock behind");
        }
    }
    assert!(store.is_lock_holder("key", &other).unwrap());
    store.release_lock("key", &other).unwrap();
    assert!(!store.is_locked("key").unwrap(), "a cancelled call got the lock");
    assert!(!store.exists("key").unwrap());
}

fn one_cancellation_ends_all_its_waits_and_no_others(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let (cancellation, unrelated) = (Cancellation::new(), Cancellation::new());
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let others = || {
        let unaffected = || store.read_with::<i64>("key", read_by(&me).cancellation(&unrelated));
        let cancels = || {
            let wait = WaitOptions::new().timeout(PATIENCE).cancellation(&cancellation);
            let acquires = || {
                let options = LockOptions::new().holder(me.clone()).hold_timeout(LEASE);
                let options = options.cancellation(&cancellation);
                assert_cancelled(store.acquire_lock("key", options), "acquire_lock", "key");
            };
            let reads = || {
                let options = read_by(&me).cancellation(&cancellation);
                assert_cancelled(store.read_with::<i64>("key", options), "read", "key");
            };
            let waits = || {
                assert_cancelled(store.wait_for_lock("key", wait.clone()), "wait_for_lock", "key");
            };
            let watches = || {
                assert_cancelled(store.wait_for_record("key", wait.clone()), "watch", "key");
            };
            let all_wait = || {
                thread::scope(|scope| {
                    let waiters = [
                        scope.spawn(acquires),
                        scope.spawn(acquires),
                        scope.spawn(reads),
                        scope.spawn(waits),
                        scope.spawn(watches),
                    ];
                    waiters.into_iter().for_each(join);
                });
            };
            blocks_until(all_wait, || cancellation.cancel());
            // An unaffected wait goes on until the release.
            thread::sleep(SHORT_WAIT);
            store.write_with("key", &1, write_by(&other)).unwrap();
            store.release_lock("key", &other).unwrap();
        };
        blocks_until(unaffected, cancels)
    };
    assert_eq!(others().unwrap().expect("the record that the holder wrote").result, 1);
}

fn a_cancellation_does_not_affect_held_locks(store: &dyn RecordStore) {
    let (me, cancellation) = (named("me"), Cancellation::new());
    let guard = store.lock("key", one_attempt(&me).cancellation(&cancellation)).unwrap();
    cancellation.cancel();
    assert!(guard.is_held().unwrap(), "the lock was released");
    guard.write(&1).unwrap();
    guard.renew().unwrap();
    guard.release().unwrap();
    assert_eq!(result_of(store, "key", &me), Some(1));
}
