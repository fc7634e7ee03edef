//! Waiting: which calls wait for a lock, how long, and what they return.

use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::support::{
    LEASE, SHORT_WAIT, assert_error, assert_error_of, assert_matches, assert_names, assert_prompt,
    assert_waited, blocks_until, in_order_of_arrival, join, long_lease, named, one_attempt, one_read,
    read_by, remove_by, result_of, short_lease, write_by,
};
use super::{PATIENCE, WAKE};
use crate::{ErrorKind, Holder, Key, LockToken, ReadOptions, RecordStore, RecordStoreExt, WaitOptions};

checks! { "waiting":
    a_read_returns_what_the_holder_commits:
        "A read waits while another holder's lock is live, and returns the record that this holder committed.",
    a_read_waits_for_the_first_record:
        "A read waits for the lock even if no record exists yet.",
    a_read_after_a_wait_can_find_no_record:
        "A read that waited returns `None` if the holder wrote no record or removed it.",
    a_read_timeout_is_an_error:
        "A read that times out is `LockTimeout` and names the holder; it never returns `None` or a stale record.",
    the_lock_holder_reads_without_a_wait:
        "The holder of the lock reads without a wait: by name, as the default holder, and by token.",
    a_read_waits_until_the_lease_expires:
        "A read waits until the other holder's lease expires, and not longer.",
    wait_for_lock_of_a_free_key_is_true:
        "`wait_for_lock` returns `true` at once if the key was never locked or is free again.",
    wait_for_lock_is_true_after_a_release:
        "`wait_for_lock` returns `true` once the lock is released.",
    wait_for_lock_is_false_at_the_timeout:
        "`wait_for_lock` returns `false` at the timeout, and not before; a timeout of zero checks once.",
    wait_for_lock_is_true_when_the_lease_expires:
        "`wait_for_lock` returns `true` when the lease expires, and not before.",
    ignore_lock_reads_the_last_committed_state_at_once:
        "With `ignore_lock`, a read returns the last committed state at once, whoever holds the lock and whatever the claim is, and changes nothing.",
    a_long_wait_ends_as_a_short_one:
        "A wait of more than a second times out as a shorter one does.",
    one_release_wakes_all_waiters:
        "One release wakes every `wait_for_lock` and every read that waits for the key.",
    a_waiter_is_woken_promptly:
        "A release wakes acquisitions, reads and `wait_for_lock`, and a change wakes watches, within 100 ms.",
    a_waiter_is_woken_by_the_end_of_any_lease_before_its_own:
        "A waiter behind another one acquires the lock when that one's lease ends, although nobody releases it.",
    waiters_acquire_in_the_order_of_arrival:
        "Waiters acquire the lock in the order in which they began to wait, and a newcomer does not pass them.",
    the_waiters_of_a_lock_are_told_while_they_wait:
        "A store that tells the waiters of a lock tells those that wait to acquire it, in their order, and no others.",
}

fn a_read_returns_what_the_holder_commits(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let key = Key::new("key").unwrap();
    store.write(&key, &1).unwrap();
    for (round, timeout) in [(2, None), (3, Some(PATIENCE))] {
        store.acquire_lock(&key, long_lease(&other)).unwrap();
        let read = || store.read_raw(&key, read_by(&me).timeout(timeout));
        let record = blocks_until(read, || {
            store.write_with(&key, &-1, write_by(&other)).unwrap();
            store.write_with(&key, &round, write_by(&other)).unwrap();
            store.release_lock(&key, &other).unwrap();
        });
        assert_eq!(
            record.unwrap().expect("a record").json.as_str(),
            round.to_string(),
            "not the committed record"
        );
    }
}

fn a_read_waits_for_the_first_record(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let record = blocks_until(
        || store.read::<i64>("key"),
        || {
            store.write_with("key", &1, write_by(&other)).unwrap();
            store.release_lock("key", &other).unwrap();
        },
    );
    assert_eq!(record.unwrap().expect("the first record").result, 1);
}

fn a_read_after_a_wait_can_find_no_record(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let read = || store.read::<i64>("key");
    assert_matches!(blocks_until(read, || store.release_lock("key", &other).unwrap()), Ok(None));

    store.write("key", &1).unwrap();
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let removes = || {
        assert!(store.remove_with("key", remove_by(&other)).unwrap());
        store.release_lock("key", &other).unwrap();
    };
    assert_matches!(blocks_until(read, removes), Ok(None));
}

fn a_read_timeout_is_an_error(store: &dyn RecordStore) {
    let other = named("other");
    store.write("with", &1).unwrap();
    for key in ["with", "without"] {
        store.acquire_lock(key, long_lease(&other)).unwrap();
        for timeout in [Duration::ZERO, SHORT_WAIT] {
            let start = Instant::now();
            let outcome = store.read_with::<i64>(key, ReadOptions::new().timeout(timeout));
            let elapsed = start.elapsed();
            let error = assert_error_of(outcome, ErrorKind::LockTimeout, "read");
            assert_names(&error, key, &other);
            assert_waited(&error, timeout, elapsed);
            assert!(elapsed >= timeout, "gave up after {elapsed:?} of {timeout:?}");
            assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?} of {timeout:?}");
        }
        store.release_lock(key, &other).unwrap();
    }
    assert_eq!(store.read_with::<i64>("with", one_read()).unwrap().unwrap().result, 1);
    assert_matches!(store.read_with::<i64>("without", one_read()), Ok(None));
}

fn the_lock_holder_reads_without_a_wait(store: &dyn RecordStore) {
    for holder in [named("me"), Holder::current()] {
        let token = store.acquire_lock("key", long_lease(&holder)).unwrap();
        store.write_with("key", &1, write_by(&holder)).unwrap();
        assert_eq!(store.read_with::<i64>("key", read_by(&holder)).unwrap().unwrap().result, 1);
        assert_eq!(store.read_with::<i64>("key", read_by(token)).unwrap().unwrap().result, 1);
        if holder.is_process_bound() {
            assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
        }
        let unknown = LockToken::new(token.get() + 1);
        assert_error(store.read_with::<i64>("key", read_by(unknown)), ErrorKind::LockLost);
        store.release_lock("key", &holder).unwrap();
    }
}

fn a_read_waits_until_the_lease_expires(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    let start = Instant::now();
    store.acquire_lock("key", short_lease(&other)).unwrap();
    assert_eq!(result_of(store, "key", &me), Some(1));
    let elapsed = start.elapsed();
    assert!(elapsed >= LEASE, "returned early, after {elapsed:?} of {LEASE:?}");
    assert!(elapsed < PATIENCE / 2, "returned late, after {elapsed:?}");
}

fn wait_for_lock_of_a_free_key_is_true(store: &dyn RecordStore) {
    let me = named("me");
    for locked_before in [false, true] {
        for timeout in [None, Some(Duration::ZERO), Some(PATIENCE)] {
            let start = Instant::now();
            assert!(store.wait_for_lock("key", timeout).unwrap());
            assert!(start.elapsed() < PATIENCE / 2, "the call waited for a free key");
        }
        if !locked_before {
            store.acquire_lock("key", one_attempt(&me)).unwrap();
            store.release_lock("key", &me).unwrap();
        }
    }
    assert!(!store.is_locked("key").unwrap(), "the wait acquired the lock");
}

fn wait_for_lock_is_true_after_a_release(store: &dyn RecordStore) {
    let other = named("other");
    for timeout in [None, Some(PATIENCE)] {
        store.acquire_lock("key", long_lease(&other)).unwrap();
        let waits = || store.wait_for_lock("key", timeout);
        assert!(blocks_until(waits, || store.release_lock("key", &other).unwrap()).unwrap());
        assert!(!store.is_locked("key").unwrap(), "the wait acquired the lock");
    }
}

fn wait_for_lock_is_false_at_the_timeout(store: &dyn RecordStore) {
    // The caller's own lock is treated like any other.
    for holder in [named("other"), Holder::current()] {
        store.acquire_lock("key", long_lease(&holder)).unwrap();
        for timeout in [Duration::ZERO, SHORT_WAIT] {
            let start = Instant::now();
            assert!(!store.wait_for_lock("key", timeout).unwrap());
            let elapsed = start.elapsed();
            assert!(elapsed >= timeout, "gave up after {elapsed:?} of {timeout:?}");
            assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?} of {timeout:?}");
        }
        store.release_lock("key", &holder).unwrap();
    }
}

fn wait_for_lock_is_true_when_the_lease_expires(store: &dyn RecordStore) {
    for timeout in [None, Some(PATIENCE)] {
        let start = Instant::now();
        store.acquire_lock("key", short_lease(&named("other"))).unwrap();
        assert!(store.wait_for_lock("key", timeout).unwrap());
        let elapsed = start.elapsed();
        assert!(elapsed >= LEASE, "returned early, after {elapsed:?} of {LEASE:?}");
        assert!(elapsed < PATIENCE / 2, "returned late, after {elapsed:?}");
    }
}

fn ignore_lock_reads_the_last_committed_state_at_once(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("with", &1).unwrap();
    let lost = store.acquire_lock("with", one_attempt(&me)).unwrap();
    store.release_lock("with", lost).unwrap();
    for key in ["with", "without"] {
        store.acquire_lock(key, long_lease(&other)).unwrap();
    }
    let before = store.lock_info("with").unwrap().expect("a live lock");
    let start = Instant::now();
    for written in [1, 2] {
        let options = ReadOptions::new().ignore_lock();
        for options in [
            options.clone().timeout(Duration::ZERO),
            options.clone().timeout(PATIENCE).claim(&me),
            options.clone().claim(&other),
            options.clone().claim(lost),
            options,
        ] {
            let record = store.read_with::<i64>("with", options.clone()).unwrap().expect("a record");
            assert_eq!(record.result, written, "not the last committed state");
            assert_matches!(store.read_with::<i64>("without", options), Ok(None));
        }
        store.write_with("with", &2, write_by(&other)).unwrap();
    }
    assert!(start.elapsed() < PATIENCE / 2, "the read waited");
    let after = store.lock_info("with").unwrap().expect("a live lock");
    assert_eq!((after.holder(), after.token()), (before.holder(), before.token()), "the lock was changed");
}

/// A store may give its engine a second for an answer. The last look of a wait begins when the time is over.
fn a_long_wait_ends_as_a_short_one(store: &dyn RecordStore) {
    const LONG_WAIT: Duration = Duration::from_millis(1_200);
    store.acquire_lock("key", long_lease(&named("other"))).unwrap();
    thread::scope(|scope| {
        let acquire = || store.acquire_lock("key", one_attempt(&named("me")).acquire_timeout(LONG_WAIT));
        let read = || store.read_with::<i64>("key", ReadOptions::new().timeout(LONG_WAIT));
        let start = Instant::now();
        let acquired = scope.spawn(acquire);
        let read = scope.spawn(read);
        let is_free = scope.spawn(|| store.wait_for_lock("key", LONG_WAIT));
        let change = scope.spawn(|| store.watch("key")?.next(LONG_WAIT));
        assert_error_of(join(acquired), ErrorKind::LockTimeout, "acquire_lock");
        assert_error_of(join(read), ErrorKind::LockTimeout, "read");
        assert_matches!(join(is_free), Ok(false));
        assert_matches!(join(change), Ok(None));
        assert!(start.elapsed() >= LONG_WAIT, "gave up after {:?} of {LONG_WAIT:?}", start.elapsed());
    });
}

fn one_release_wakes_all_waiters(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let wait_together = || {
        std::thread::scope(|scope| {
            let waits = || assert!(store.wait_for_lock("key", WaitOptions::new()).unwrap());
            let reads = || assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
            let waiters = [scope.spawn(waits), scope.spawn(waits), scope.spawn(reads), scope.spawn(reads)];
            waiters.into_iter().for_each(join);
        });
    };
    blocks_until(wait_together, || {
        store.write_with("key", &1, write_by(&other)).unwrap();
        store.release_lock("key", &other).unwrap();
    });
}

fn a_waiter_is_woken_promptly(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let acquires = || {
        let token = store.acquire_lock("key", long_lease(&me).acquire_timeout(PATIENCE)).unwrap();
        let woken = Instant::now();
        store.release_lock("key", token).unwrap();
        woken
    };
    let reads = || {
        store.read_with::<i64>("key", read_by(&me).timeout(PATIENCE)).unwrap();
        Instant::now()
    };
    let waits = || {
        assert!(store.wait_for_lock("key", PATIENCE).unwrap());
        Instant::now()
    };
    let watches = || {
        assert!(store.wait_for_record("key", PATIENCE).unwrap(), "the change was not noticed");
        Instant::now()
    };
    let calls: [(&str, bool, &(dyn Fn() -> Instant + Sync)); 4] = [
        ("acquire_lock", false, &acquires),
        ("read", false, &reads),
        ("wait_for_lock", false, &waits),
        ("a watch", true, &watches),
    ];
    for (name, is_watch, call) in calls {
        let event = if is_watch { "a write" } else { "a release" };
        assert_prompt(WAKE, 3, &format!("{name}, after {event},"), || {
            store.acquire_lock("key", long_lease(&other)).unwrap();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(call);
                // Long enough for it to sleep, also on a busy machine, and no longer than it may be late.
                std::thread::sleep(WAKE);
                if is_watch {
                    store.write_with("key", &1, write_by(&other)).unwrap();
                } else {
                    store.release_lock("key", &other).unwrap();
                }
                let changed = Instant::now();
                let woken = join(waiter);
                if is_watch {
                    store.release_lock("key", &other).unwrap();
                }
                woken.saturating_duration_since(changed)
            })
        });
    }
}

fn a_waiter_is_woken_by_the_end_of_any_lease_before_its_own(store: &dyn RecordStore) {
    let (first, next, last) = (named("first"), named("next"), named("last"));
    store.acquire_lock("key", long_lease(&first)).unwrap();
    std::thread::scope(|scope| {
        let forgets = scope.spawn(|| store.acquire_lock("key", short_lease(&next).acquire_timeout(PATIENCE)));
        std::thread::sleep(SHORT_WAIT);
        let waits = scope.spawn(|| store.acquire_lock("key", one_attempt(&last).acquire_timeout(PATIENCE)));
        std::thread::sleep(SHORT_WAIT);
        store.release_lock("key", &first).unwrap();
        let start = Instant::now();
        join(forgets).expect("the lock that was released");
        join(waits).expect("the lock whose lease has ended");
        let elapsed = start.elapsed();
        assert!(elapsed < PATIENCE / 2, "the waiter behind another one was woken late, after {elapsed:?}");
    });
}

fn waiters_acquire_in_the_order_of_arrival(store: &dyn RecordStore) {
    const WAITERS: usize = 4;
    let (first, newcomer) = (named("first"), named("newcomer"));
    in_order_of_arrival(|gap| {
        let mut order = Vec::new();
        store.acquire_lock("key", long_lease(&first)).unwrap();
        std::thread::scope(|scope| {
            let (acquired, is_acquired) = channel();
            let (mut waiters, mut releases) = (Vec::new(), Vec::new());
            for number in 0..WAITERS {
                let (acquired, (release, may_release)) = (acquired.clone(), channel::<()>());
                releases.push(release);
                waiters.push(scope.spawn(move || {
                    let me = named(&format!("waiter {number}"));
                    store.acquire_lock("key", long_lease(&me).acquire_timeout(PATIENCE)).unwrap();
                    let _ = acquired.send(number);
                    let _ = may_release.recv();
                    store.release_lock("key", &me).unwrap();
                }));
                std::thread::sleep(gap);
            }
            drop(acquired);
            store.release_lock("key", &first).unwrap();
            let mut waiting = WAITERS;
            while waiting > 0 {
                // Each of those that wait came earlier.
                if let Ok(token) = store.acquire_lock("key", one_attempt(&newcomer)) {
                    order.push("a newcomer".to_owned());
                    store.release_lock("key", token).unwrap();
                }
                match is_acquired.try_recv() {
                    Ok(number) => {
                        waiting -= 1;
                        order.push(format!("waiter {number}"));
                        let _ = releases[number].send(());
                    }
                    Err(TryRecvError::Empty) => std::thread::yield_now(),
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            drop(releases);
            waiters.into_iter().for_each(join);
        });
        (order, (0..WAITERS).map(|number| format!("waiter {number}")).collect())
    });
}

fn the_waiters_of_a_lock_are_told_while_they_wait(store: &dyn RecordStore) {
    let (holder, others) = (named("holder"), ["waiter 0", "waiter 1"].map(named));
    store.acquire_lock("other", long_lease(&holder)).unwrap();
    let token = store.acquire_lock("key", long_lease(&holder)).unwrap();
    let told = |key: &str| store.lock_info(key).unwrap().expect("a held lock").waiters().map(<[_]>::to_vec);
    let listed = || {
        let mut locks = store.locks().unwrap().map(Result::unwrap);
        let lock = locks.find(|lock| lock.key().as_str() == "key").expect("a held lock");
        lock.waiters().map(<[_]>::len)
    };
    let Some(none) = told("key") else { return };
    assert_eq!(none, [], "waiters of a lock for which nobody waits");
    let end = Instant::now() + PATIENCE;
    let has_waiters = |count| {
        while told("key").is_none_or(|waiters| waiters.len() != count) {
            assert!(Instant::now() < end, "not {count} waiters: {:?}", told("key"));
            thread::sleep(Duration::from_millis(1));
        }
    };
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (count, waiter) in (1..).zip(&others) {
            threads.push(scope.spawn(move || {
                let token = store.acquire_lock("key", long_lease(waiter).acquire_timeout(PATIENCE)).unwrap();
                store.release_lock("key", token).unwrap();
            }));
            has_waiters(count);
        }
        let waiters = told("key").expect("waiters, as before");
        assert!(waiters[0].waited() >= waiters[1].waited(), "not in their order: {waiters:?}");
        assert_eq!(listed(), Some(2), "the listing tells other waiters");
        assert_eq!(told("other"), Some(Vec::new()), "waiters of another lock");
        store.release_lock("key", token).unwrap();
        threads.into_iter().for_each(join);
    });
    store.acquire_lock("key", long_lease(&holder)).unwrap();
    assert_eq!(told("key"), Some(Vec::new()), "waiters that have left");
}
