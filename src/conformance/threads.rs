//! Concurrent threads: one holder at a time, and no lost updates.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::subject::Subject;
use super::support::{Done, assert_error, join, named, one_attempt, one_read, wait_for_expiry};
use crate::{Error, ErrorKind, Holder, LockOptions, RecordStore, RecordStoreExt};

checks! { "threads":
    each_thread_is_a_separate_holder:
        "The default holders of two threads are different holders, and exclude each other.",
    guarded_increments_add_up:
        "Concurrent increments under guards add up, and at most one thread holds the lock at any time.",
    readers_see_no_uncommitted_result:
        "A read returns a result that was current while no other holder's lock was live, never one that a holder had not committed.",
    one_of_many_concurrent_attempts_succeeds(subject):
        "When many threads attempt to acquire a free or expired lock at the same moment, exactly one succeeds.",
    expiring_leases_never_overlap(subject):
        "While leases keep expiring, accepted writes still follow the order of the tokens.",
}

const THREADS: i64 = 4;

fn each_thread_is_a_separate_holder(store: &dyn RecordStore) {
    let guard = store.lock("key", LockOptions::new()).unwrap();
    let other_thread = || {
        assert_ne!(Holder::current(), *guard.holder());
        assert!(!store.is_lock_holder("key", &Holder::current()).unwrap());
        assert!(store.is_lock_holder("key", guard.holder()).unwrap());
        assert!(store.try_lock("key", LockOptions::new()).unwrap().is_none());
        assert_error(store.write("key", &1), ErrorKind::Locked);
        assert_error(store.read_with::<i64>("key", one_read()), ErrorKind::LockTimeout);
        assert_error(store.release_lock("key", Holder::current()), ErrorKind::NotLockHolder);
    };
    thread::scope(|scope| join(scope.spawn(other_thread)));
    guard.release().unwrap();
}

fn guarded_increments_add_up(store: &dyn RecordStore) {
    const ROUNDS: i64 = 10;
    let inside = AtomicI64::new(0);
    thread::scope(|scope| {
        let increment = || {
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let guard = store.lock("key", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
                assert!(start.elapsed() < PATIENCE, "the waiter was not woken by the release");
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders at once");
                let before = guard.read::<i64>().unwrap().map_or(0, |record| record.result);
                guard.write(&(before + 1)).unwrap();
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().unwrap();
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(increment)).collect();
        threads.into_iter().for_each(join);
    });
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, THREADS * ROUNDS);
}

fn readers_see_no_uncommitted_result(store: &dyn RecordStore) {
    const ROUNDS: i64 = 20;
    let done = AtomicBool::new(false);
    store.write("key", &0).unwrap();
    thread::scope(|scope| {
        let read = || {
            let (mut last, mut is_last_read) = (0, false);
            while !is_last_read {
                is_last_read = done.load(Ordering::Acquire);
                let seen = store.read::<i64>("key").unwrap().expect("a record").result;
                assert!(seen >= 0, "read an uncommitted result");
                assert!(seen >= last, "result {seen} after result {last}");
                last = seen;
            }
            assert_eq!(last, ROUNDS, "the reader missed the last result");
        };
        let write = || {
            let _done = Done(&done);
            for round in 1..=ROUNDS {
                let guard = store.lock("key", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
                guard.write(&-1).unwrap();
                thread::yield_now();
                guard.write(&round).unwrap();
                guard.release().unwrap();
            }
        };
        let threads = [scope.spawn(write), scope.spawn(read), scope.spawn(read)];
        threads.into_iter().for_each(join);
    });
}

fn one_of_many_concurrent_attempts_succeeds(subject: &Subject) {
    let store = subject.store();
    // Where leases take long, only a few.
    for round in 0..if subject.granularity().is_zero() { 20 } else { 4 } {
        let key = format!("key {round}");
        if round % 2 == 1 {
            // A lease of zero length is expired from the start.
            store.acquire_lock(&key, one_attempt(&named("first")).hold_timeout(Duration::ZERO)).unwrap();
            if !subject.granularity().is_zero() {
                wait_for_expiry(store, &key);
            }
        }
        let barrier = Barrier::new(usize::try_from(THREADS).unwrap());
        let attempt = || {
            barrier.wait();
            store.acquire_lock(&key, one_attempt(&Holder::current()))
        };
        let winners = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(attempt)).collect();
            let outcomes: Vec<_> = threads.into_iter().map(join).collect();
            for outcome in &outcomes {
                assert!(outcome.as_ref().err().is_none_or(Error::is_timeout), "{outcome:?}");
            }
            outcomes.iter().filter(|outcome| outcome.is_ok()).count()
        });
        assert_eq!(winners, 1, "winners of round {round}");
    }
}

fn expiring_leases_never_overlap(subject: &Subject) {
    let store = subject.store();
    let granularity = subject.granularity();
    // Where leases take long, only a few.
    let rounds = if granularity.is_zero() { 30 } else { 2 };
    let newest = AtomicU64::new(0);
    thread::scope(|scope| {
        let take_over = || {
            for round in 0..rounds {
                let lease = Duration::from_millis(1);
                let options = LockOptions::new().hold_timeout(lease);
                let guard = store.lock("key", options).unwrap();
                let token = guard.token().get();
                newest.fetch_max(token, Ordering::SeqCst);
                if round % 2 == 0 {
                    // Outlast the lease, so that another thread acquires the lock before the write.
                    thread::sleep(2 * lease + granularity);
                }
                let newest_before = newest.load(Ordering::SeqCst);
                match guard.write(&token) {
                    // The write was accepted, so no later acquisition can have preceded it.
                    Ok(()) => assert!(newest_before <= token, "token {token} wrote after {newest_before}"),
                    Err(error) => assert!(error.is_lock_lost(), "{error}"),
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(take_over)).collect();
        threads.into_iter().for_each(join);
    });
    assert!(newest.load(Ordering::SeqCst) > 0);
}
