//! Locks: acquiring, acquiring again, releasing, querying.

use std::time::{Duration, Instant, SystemTime};

use super::PATIENCE;
use super::support::{
    LEASE, SHORT_WAIT, assert_matches, blocks_until, expired_lock, long_lease, named, one_attempt,
};
use crate::{Error, Holder, Key, LockInfo, LockOptions, LockState, RecordStore, RecordStoreExt};

checks! { "locks":
    a_free_key_can_be_locked:
        "`acquire_lock` acquires the lock of a free key, whether or not a record exists.",
    acquiring_again_keeps_the_token:
        "When the same holder acquires the lock again, the lock keeps its token.",
    another_holder_cannot_acquire_a_live_lock:
        "Another holder cannot acquire a live lock: `LockTimeout` names the current holder, and nothing changes.",
    an_acquire_timeout_of_zero_does_not_wait:
        "With an acquire timeout of zero, `acquire_lock` makes one attempt and returns at once.",
    an_acquire_timeout_is_respected:
        "An acquire timeout ends the wait with `LockTimeout`, and not before it has passed.",
    a_release_wakes_a_waiter:
        "When a lock is released, a waiter is woken and acquires it.",
    release_needs_the_holder:
        "A release by another holder is `NotLockHolder`, and nothing changes.",
    release_needs_a_lock:
        "A release of a key that is not locked is `NotLocked`.",
    is_lock_holder_identifies_the_holder:
        "`is_locked` reports whether a lock is live, and `is_lock_holder` whether the given holder has it.",
    a_named_holder_is_not_a_default_holder:
        "A named holder and a default holder with the same name are different holders.",
    a_named_holder_is_the_same_on_every_thread:
        "A named holder is the same holder on every thread.",
    tokens_only_grow:
        "The tokens of a key only grow, across release, expiry, `break_lock` and removal.",
    lock_info_describes_the_lock:
        "`lock_info` returns the holder, the token, the times and the state of a lock.",
    locks_lists_every_live_lock_once:
        "`locks` lists every live lock exactly once; the state of any other entry shows that it is not live.",
    break_lock_frees_the_key:
        "`break_lock` frees the key, wakes the waiters, and reports whether a lock existed.",
    queries_change_nothing:
        "Querying a lock changes nothing.",
    the_longest_timeouts_work:
        "The longest `Duration` works like any other timeout.",
}

fn a_free_key_can_be_locked(store: &dyn RecordStore) {
    let me = named("me");
    store.write("with", &1).unwrap();
    for key in ["with", "without"] {
        assert!(!store.is_locked(key).unwrap());
        let token = store.acquire_lock(key, &LockOptions::new().holder(me.clone())).unwrap();
        assert!(store.is_lock_holder(key, &me).unwrap());
        assert_eq!(store.lock_info(key).unwrap().expect("a lock").token(), token);
    }
    assert!(store.exists("with").unwrap(), "a lock removed the record");
    assert!(!store.exists("without").unwrap(), "a lock created a record");
}

fn acquiring_again_keeps_the_token(store: &dyn RecordStore) {
    let (key, me) = (Key::new("key").unwrap(), named("me"));
    let first = store.acquire(&key, &me, &one_attempt(&me)).unwrap();
    assert!(!first.reentrant, "the first acquisition is reported as reentrant");
    let before = info_of(store);
    // No timeout: the holder must not wait for its own lock.
    let again = store.acquire(&key, &me, &LockOptions::new()).unwrap();
    assert!(again.reentrant, "the second acquisition is not reported as reentrant");
    assert_eq!(again.token, first.token);
    assert_eq!(info_of(store).acquired_at(), before.acquired_at());
    // Acquisitions are not counted: one release frees the key.
    store.release_lock("key", &me).unwrap();
    assert!(!store.is_locked("key").unwrap());
}

fn another_holder_cannot_acquire_a_live_lock(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &one_attempt(&other)).unwrap();
    let before = info_of(store);
    match store.acquire_lock("key", &one_attempt(&me)) {
        Err(Error::LockTimeout { operation: "acquire_lock", key, holder, .. }) => {
            assert_eq!((key.as_str(), holder), ("key", Some(other)), "the error names another holder");
        }
        outcome => panic!("a second holder: {outcome:?}"),
    }
    assert_eq!(info_of(store), before, "a refused acquisition changed the lock");
}

fn an_acquire_timeout_of_zero_does_not_wait(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("free", &one_attempt(&me)).unwrap();
    store.acquire_lock("key", &long_lease(&other)).unwrap();
    let start = Instant::now();
    assert_matches!(store.acquire_lock("key", &one_attempt(&me)), Err(Error::LockTimeout { .. }));
    assert!(start.elapsed() < PATIENCE / 2, "the call waited");
}

fn an_acquire_timeout_is_respected(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &long_lease(&other)).unwrap();
    let start = Instant::now();
    let outcome = store.acquire_lock("key", &one_attempt(&me).acquire_timeout(SHORT_WAIT));
    let elapsed = start.elapsed();
    match outcome {
        Err(Error::LockTimeout { operation: "acquire_lock", holder, waited, .. }) => {
            assert_eq!(holder, Some(other), "the error names another holder");
            assert!(
                waited >= SHORT_WAIT && waited <= elapsed,
                "the error reports a wait of {waited:?}, the call took {elapsed:?}"
            );
        }
        outcome => panic!("a second holder: {outcome:?}"),
    }
    assert!(elapsed >= SHORT_WAIT, "gave up early, after {elapsed:?}");
    assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?}");
}

fn a_release_wakes_a_waiter(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    for timeout in [None, Some(PATIENCE)] {
        let first = store.acquire_lock("key", &long_lease(&other)).unwrap();
        let mut options = LockOptions::new().holder(me.clone());
        if let Some(timeout) = timeout {
            options = options.acquire_timeout(timeout);
        }
        let releases = || store.release_lock("key", &other).unwrap();
        let second = blocks_until(|| store.acquire_lock("key", &options), releases).unwrap();
        assert!(second > first, "token {second} after {first}");
        assert!(store.is_lock_holder("key", &me).unwrap());
        store.release_lock("key", &me).unwrap();
    }
}

fn release_needs_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &one_attempt(&other)).unwrap();
    let before = info_of(store);
    match store.release_lock("key", &me) {
        Err(Error::NotLockHolder { operation: "release_lock", key, holder, current, .. }) => {
            assert_eq!(
                (key.as_str(), holder, current),
                ("key", me, other),
                "the error names another key or holder"
            );
        }
        outcome => panic!("a release by another holder: {outcome:?}"),
    }
    assert_eq!(info_of(store), before, "a refused release changed the lock");
}

fn release_needs_a_lock(store: &dyn RecordStore) {
    let me = named("me");
    assert_matches!(store.release_lock("key", &me), Err(Error::NotLocked { operation: "release_lock", .. }));
    store.acquire_lock("key", &one_attempt(&me)).unwrap();
    store.release_lock("key", &me).unwrap();
    assert_matches!(store.release_lock("key", &me), Err(Error::NotLocked { operation: "release_lock", .. }));
    assert!(!store.is_locked("key").unwrap());
}

fn is_lock_holder_identifies_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let answers = || {
        let holds = |holder| store.is_lock_holder("key", holder).unwrap();
        (store.is_locked("key").unwrap(), holds(&me), holds(&other))
    };
    assert_eq!(answers(), (false, false, false), "free key");
    store.acquire_lock("key", &one_attempt(&me)).unwrap();
    assert_eq!(answers(), (true, true, false), "locked key");
    store.release_lock("key", &me).unwrap();
    assert_eq!(answers(), (false, false, false), "released key");
    store.acquire_lock("key", &one_attempt(&Holder::current())).unwrap();
    assert_eq!(answers(), (true, false, false), "key locked by the default holder");
    assert!(store.is_lock_holder("key", &Holder::current()).unwrap());
}

fn a_named_holder_is_not_a_default_holder(store: &dyn RecordStore) {
    let me = Holder::current();
    let namesake = named(me.name());
    store.acquire_lock("key", &one_attempt(&me)).unwrap();
    assert_matches!(store.acquire_lock("key", &one_attempt(&namesake)), Err(Error::LockTimeout { .. }));
    assert!(!store.is_lock_holder("key", &namesake).unwrap());
    assert_matches!(store.write_as("key", &1, &namesake), Err(Error::Locked { .. }));
    assert_matches!(store.release_lock("key", &namesake), Err(Error::NotLockHolder { .. }));
    store.release_lock("key", &me).unwrap();
}

fn a_named_holder_is_the_same_on_every_thread(store: &dyn RecordStore) {
    let job = named("job");
    let token = store.acquire_lock("key", &one_attempt(&job)).unwrap();
    std::thread::scope(|scope| {
        let other_thread = scope.spawn(|| {
            assert_eq!(store.acquire_lock("key", &one_attempt(&job)).unwrap(), token);
            store.write_as("key", &1, &job).unwrap();
            store.release_lock("key", &job).unwrap();
        });
        super::support::join(other_thread);
    });
    assert!(!store.is_locked("key").unwrap());
}

fn tokens_only_grow(store: &dyn RecordStore) {
    let holders = [named("one"), named("two")];
    let mut tokens = Vec::new();
    for round in 0..8 {
        let holder = &holders[round % 2];
        if round == 4 {
            tokens.push(expired_lock(store, "key", &named("three")));
        }
        tokens.push(store.acquire_lock("key", &one_attempt(holder)).unwrap());
        match round % 3 {
            0 => store.release_lock("key", holder).unwrap(),
            1 => assert!(store.break_lock("key").unwrap()),
            _ => {
                store.write_as("key", &round, holder).unwrap();
                store.remove_as("key", holder).unwrap();
                store.release_lock("key", holder).unwrap();
            }
        }
    }
    assert!(tokens.is_sorted_by(|a, b| a < b), "tokens {tokens:?}");
}

fn lock_info_describes_the_lock(store: &dyn RecordStore) {
    // A store may keep wall clock times in whole seconds.
    let assert_close = |one: SystemTime, two: SystemTime| {
        let difference = one.duration_since(two).unwrap_or_else(|error| error.duration());
        assert!(difference < PATIENCE, "{one:?} and {two:?} differ by {difference:?}");
    };
    assert_eq!(store.lock_info("key").unwrap(), None);
    let (me, hour) = (named("me"), Duration::from_hours(1));
    let token = store.acquire_lock("key", &one_attempt(&me)).unwrap();
    let info = info_of(store);
    assert_eq!((info.key().as_str(), info.holder(), info.token()), ("key", &me, token));
    assert_eq!((info.expires_at(), info.remaining()), (None, None), "a lock without a hold timeout");
    assert_eq!(info.state(), LockState::Held);
    assert_ne!(info.owner_alive(), Some(false), "this process is alive");
    assert_close(info.acquired_at(), SystemTime::now());

    store.acquire_lock("key", &one_attempt(&me).hold_timeout(hour)).unwrap();
    let info = info_of(store);
    let remaining = info.remaining().expect("a lease");
    assert!(remaining <= hour && remaining + PATIENCE > hour, "{remaining:?} of an hour remain");
    assert_close(info.expires_at().expect("a lease"), SystemTime::now() + hour);

    store.release_lock("key", &me).unwrap();
    assert_eq!(store.lock_info("key").unwrap(), None);
}

fn locks_lists_every_live_lock_once(store: &dyn RecordStore) {
    assert_eq!(store.locks().unwrap().count(), 0);
    let (me, other) = (named("me"), named("other"));
    store.write("only a record", &1).unwrap();
    expired_lock(store, "expired", &me);
    for (key, holder) in [("a", &me), ("b", &other), ("c", &me)] {
        store.acquire_lock(key, &one_attempt(holder)).unwrap();
    }
    store.release_lock("c", &me).unwrap();
    let (live, others): (Vec<LockInfo>, Vec<LockInfo>) =
        store.locks().unwrap().map(|info| info.unwrap()).partition(|info| info.state() == LockState::Held);
    let mut live: Vec<_> = live.iter().map(|info| (info.key().as_str(), info.holder())).collect();
    live.sort_by_key(|(key, _)| *key);
    assert_eq!(live, [("a", &me), ("b", &other)]);
    assert!(others.iter().all(|info| info.key().as_str() == "expired"), "{others:?}");
}

fn break_lock_frees_the_key(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.break_lock("key").unwrap(), "the key was never locked");
    store.acquire_lock("key", &long_lease(&other)).unwrap();
    let acquires = || store.acquire_lock("key", &LockOptions::new().holder(me.clone()));
    blocks_until(acquires, || assert!(store.break_lock("key").unwrap(), "the key was locked")).unwrap();
    assert!(store.is_lock_holder("key", &me).unwrap());
    assert!(store.break_lock("key").unwrap());
    assert!(!store.is_locked("key").unwrap());
    assert!(!store.break_lock("key").unwrap(), "the lock was already broken");
}

fn queries_change_nothing(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &one_attempt(&other)).unwrap();
    let before = info_of(store);
    let _ = store.is_locked("key").unwrap();
    let _ = store.is_lock_holder("key", &me).unwrap();
    let _ = store.locks().unwrap().count();
    let _ = store.exists("key").unwrap();
    assert!(!store.wait_for_lock("key", Some(Duration::ZERO)).unwrap());
    assert_matches!(store.try_read::<i64>("key", Duration::ZERO), Err(Error::LockTimeout { .. }));
    assert_eq!(info_of(store), before);
    for key in ["key", "free"] {
        assert!(!store.exists(key).unwrap());
    }
    assert!(store.wait_for_lock("free", None).unwrap());
    assert_eq!(store.lock_info("free").unwrap(), None);
}

fn the_longest_timeouts_work(store: &dyn RecordStore) {
    let (me, other, longest) = (named("me"), named("other"), Duration::MAX);
    let options = LockOptions::new().holder(other.clone()).acquire_timeout(longest).hold_timeout(longest);
    let token = store.acquire_lock("key", &options).unwrap();
    assert!(store.is_lock_holder("key", &other).unwrap(), "the longest lease expired at once");
    store.renew("key", token, Some(longest)).unwrap();
    assert!(store.is_lock_holder("key", &other).unwrap(), "the longest lease expired at once");
    // A clock that starts at boot can represent the last expiry time; the wall clock cannot.
    for seconds in [1 << 32, 1 << 53, i64::MAX.unsigned_abs() - 1_000_000_000] {
        store.renew("key", token, Some(Duration::from_secs(seconds))).unwrap();
        let info = info_of(store);
        assert!(info.remaining().is_none_or(|left| left > LEASE), "{info:?} is about to expire");
    }
    assert_matches!(store.acquire_lock("key", &one_attempt(&me)), Err(Error::LockTimeout { .. }));
    // From here on, a lease keeps this check from hanging on a store that does not wake waiters.
    store.renew("key", token, Some(PATIENCE)).unwrap();
    let acquires = || store.acquire_lock("key", &options.clone().holder(me.clone()));
    blocks_until(acquires, || store.release_lock("key", &other).unwrap()).unwrap();
    store.renew("key", &me, Some(PATIENCE)).unwrap();
    let waits = || store.wait_for_lock("key", Some(longest));
    assert!(blocks_until(waits, || store.release_lock("key", &me).unwrap()).unwrap());
    assert_matches!(store.try_read::<i64>("key", longest), Ok(None));
}

fn info_of(store: &dyn RecordStore) -> LockInfo {
    store.lock_info("key").unwrap().expect("a live lock")
}
