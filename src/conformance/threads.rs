//! Threads against each other: one holder at a time, and nothing lost.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::{Done, assert_matches, at_once, join, named};
use crate::{Error, Holder, LockOptions, RecordStore, RecordStoreExt};

checks! { "threads":
    each_thread_is_a_holder:
        "The default holders of two threads are two holders, and keep each other out.",
    guarded_increments_add_up:
        "Increments under guards of many threads add up, with one holder at a time.",
    nobody_sees_what_is_under_way:
        "A read returns what was current while no other holder's lock was live, never what a holder had under way.",
    of_many_one_gets_it:
        "Of many who try at the same moment exactly one gets a free lock, or an expired one.",
    leases_that_run_out_never_overlap:
        "Under leases that keep running out, accepted writes still follow the order of the tokens.",
}

const THREADS: i64 = 4;

fn each_thread_is_a_holder(store: &dyn RecordStore) {
    let guard = store.lock("key", LockOptions::new()).unwrap();
    let elsewhere = || {
        assert_ne!(Holder::current(), *guard.holder());
        assert!(!store.is_lock_holder("key", &Holder::current()).unwrap());
        assert!(store.is_lock_holder("key", guard.holder()).unwrap());
        assert!(store.try_lock("key", LockOptions::new()).unwrap().is_none());
        assert_matches!(store.write("key", &1), Err(Error::Locked { .. }));
        assert_matches!(store.try_read::<i64>("key", Duration::ZERO), Err(Error::LockTimeout { .. }));
        assert_matches!(store.release_lock("key", Holder::current()), Err(Error::NotLockHolder { .. }));
    };
    thread::scope(|scope| join(scope.spawn(elsewhere)));
    guard.release().unwrap();
}

fn guarded_increments_add_up(store: &dyn RecordStore) {
    const ROUNDS: i64 = 10;
    let inside = AtomicI64::new(0);
    thread::scope(|scope| {
        let count = || {
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let guard = store.lock("key", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
                assert!(start.elapsed() < PATIENCE, "was not woken, but only came back by itself");
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders at once");
                let before = guard.read::<i64>().unwrap().map_or(0, |record| record.result);
                guard.write(&(before + 1)).unwrap();
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().unwrap();
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(count)).collect();
        threads.into_iter().for_each(join);
    });
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, THREADS * ROUNDS);
}

fn nobody_sees_what_is_under_way(store: &dyn RecordStore) {
    const ROUNDS: i64 = 20;
    let done = AtomicBool::new(false);
    store.write("key", &0).unwrap();
    thread::scope(|scope| {
        let read = || {
            let (mut last, mut is_last_look) = (0, false);
            while !is_last_look {
                is_last_look = done.load(Ordering::Acquire);
                let seen = store.read::<i64>("key").unwrap().expect("a record").result;
                assert!(seen >= 0, "seen under the lock of another");
                assert!(seen >= last, "{seen} after {last}");
                last = seen;
            }
            assert_eq!(last, ROUNDS, "not the newest record after the last release");
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

fn of_many_one_gets_it(store: &dyn RecordStore) {
    for round in 0..20 {
        let key = format!("key {round}");
        if round % 2 == 1 {
            // A lease of no length is over from the start.
            store.acquire_lock(&key, &at_once(&named("first")).hold_timeout(Duration::ZERO)).unwrap();
        }
        let together = Barrier::new(usize::try_from(THREADS).unwrap());
        let tries = || {
            together.wait();
            store.acquire_lock(&key, &at_once(&Holder::current()))
        };
        let winners = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(tries)).collect();
            let outcomes: Vec<_> = threads.into_iter().map(join).collect();
            for outcome in &outcomes {
                assert_matches!(outcome, Ok(_) | Err(Error::LockTimeout { .. }));
            }
            outcomes.iter().filter(|outcome| outcome.is_ok()).count()
        });
        assert_eq!(winners, 1, "winners of round {round}");
    }
}

fn leases_that_run_out_never_overlap(store: &dyn RecordStore) {
    const ROUNDS: usize = 30;
    let newest = AtomicU64::new(0);
    thread::scope(|scope| {
        let take_over = || {
            for round in 0..ROUNDS {
                let lease = Duration::from_millis(1);
                let options = LockOptions::new().hold_timeout(lease);
                let guard = store.lock("key", options).unwrap();
                let token = guard.token().get();
                newest.fetch_max(token, Ordering::SeqCst);
                if round % 2 == 0 {
                    // Oversleeps, so that another takes over before the write.
                    thread::sleep(2 * lease);
                }
                let newest_before = newest.load(Ordering::SeqCst);
                match guard.write(&token) {
                    // Accepted: no later acquisition can have been made before.
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
