//! Locks: taking, taking again, giving back, looking.

use std::time::{Duration, Instant, SystemTime};

use super::PATIENCE;
use super::support::{A_WHILE, LEASE, assert_matches, at_once, expired, long, named, waits_until_freed};
use crate::{Error, Holder, Key, LockInfo, LockOptions, LockState, RecordStore, RecordStoreExt};

checks! { "locks":
    a_free_key_can_be_locked:
        "`acquire_lock` takes the lock of a free key, with or without a record.",
    the_same_holder_again:
        "Acquired again by the same holder, the lock keeps its token.",
    another_holder_is_kept_out:
        "A second holder does not get a live lock: `LockTimeout` names the holder, and nothing changes.",
    zero_timeout_tries_once:
        "An acquire timeout of zero tries once and returns at once.",
    acquire_timeout_is_kept:
        "An acquire timeout ends the wait with `LockTimeout`, not before its time.",
    a_release_lets_the_next_in:
        "Whoever waits for a lock gets it when it is released.",
    release_needs_the_holder:
        "A release by another than the holder is `NotLockHolder`, and nothing changes.",
    release_needs_a_lock:
        "A release of a key that is not locked is `NotLocked`.",
    who_is_lock_holder:
        "`is_locked` and `is_lock_holder` tell who holds a live lock.",
    a_name_is_no_process:
        "A named holder and a default holder of the same name are two holders.",
    a_named_holder_is_one_on_every_thread:
        "A named holder is the same on every thread.",
    tokens_only_grow:
        "The tokens of a key only grow: across release, expiry, breaking and removal.",
    lock_info_tells_what_is_known:
        "`lock_info` tells holder, token, times and state.",
    locks_lists_who_holds_what:
        "`locks` lists every live lock once; others in the list say that they no longer count.",
    a_broken_lock_is_free:
        "`break_lock` frees the key, wakes those who wait, and tells whether there was a lock.",
    looking_changes_nothing:
        "Asking about a lock changes nothing.",
    huge_timeouts:
        "The longest `Duration` is a timeout like any other.",
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
    assert!(store.exists("with").unwrap(), "a lock took the record away");
    assert!(!store.exists("without").unwrap(), "a lock made a record");
}

fn the_same_holder_again(store: &dyn RecordStore) {
    let (key, me) = (Key::new("key").unwrap(), named("me"));
    let first = store.acquire(&key, &me, &at_once(&me)).unwrap();
    assert!(!first.reentrant, "the first acquisition says that it is reentrant");
    let before = info_of(store);
    // Without a timeout: it must not wait for itself.
    let again = store.acquire(&key, &me, &LockOptions::new()).unwrap();
    assert!(again.reentrant, "the second acquisition does not say that it is reentrant");
    assert_eq!(again.token, first.token);
    assert_eq!(info_of(store).acquired_at(), before.acquired_at());
    // There is one lock, not a count of them.
    store.release_lock("key", &me).unwrap();
    assert!(!store.is_locked("key").unwrap());
}

fn another_holder_is_kept_out(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &at_once(&other)).unwrap();
    let before = info_of(store);
    match store.acquire_lock("key", &at_once(&me)) {
        Err(Error::LockTimeout { operation: "acquire_lock", key, holder, .. }) => {
            assert_eq!((key.as_str(), holder), ("key", Some(other)), "the error names another");
        }
        outcome => panic!("a second holder: {outcome:?}"),
    }
    assert_eq!(info_of(store), before, "a refused acquisition changed the lock");
}

fn zero_timeout_tries_once(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("free", &at_once(&me)).unwrap();
    store.acquire_lock("key", &long(&other)).unwrap();
    let start = Instant::now();
    assert_matches!(store.acquire_lock("key", &at_once(&me)), Err(Error::LockTimeout { .. }));
    assert!(start.elapsed() < PATIENCE / 2, "it waited");
}

fn acquire_timeout_is_kept(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &long(&other)).unwrap();
    let start = Instant::now();
    let outcome = store.acquire_lock("key", &at_once(&me).acquire_timeout(A_WHILE));
    let elapsed = start.elapsed();
    match outcome {
        Err(Error::LockTimeout { operation: "acquire_lock", holder, waited, .. }) => {
            assert_eq!(holder, Some(other), "the error names another");
            assert!(
                waited >= A_WHILE && waited <= elapsed,
                "the error says that it waited {waited:?} of {elapsed:?}"
            );
        }
        outcome => panic!("a second holder: {outcome:?}"),
    }
    assert!(elapsed >= A_WHILE, "gave up after {elapsed:?}, before its time");
    assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?}");
}

fn a_release_lets_the_next_in(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    for timeout in [None, Some(PATIENCE)] {
        let first = store.acquire_lock("key", &long(&other)).unwrap();
        let mut options = LockOptions::new().holder(me.clone());
        if let Some(timeout) = timeout {
            options = options.acquire_timeout(timeout);
        }
        let frees = || store.release_lock("key", &other).unwrap();
        let second = waits_until_freed(|| store.acquire_lock("key", &options), frees).unwrap();
        assert!(second > first, "token {second} after {first}");
        assert!(store.is_lock_holder("key", &me).unwrap());
        store.release_lock("key", &me).unwrap();
    }
}

fn release_needs_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &at_once(&other)).unwrap();
    let before = info_of(store);
    match store.release_lock("key", &me) {
        Err(Error::NotLockHolder { operation: "release_lock", key, holder, current, .. }) => {
            assert_eq!((key.as_str(), holder, current), ("key", me, other), "the error names others");
        }
        outcome => panic!("a release by another: {outcome:?}"),
    }
    assert_eq!(info_of(store), before, "a refused release changed the lock");
}

fn release_needs_a_lock(store: &dyn RecordStore) {
    let me = named("me");
    assert_matches!(store.release_lock("key", &me), Err(Error::NotLocked { operation: "release_lock", .. }));
    store.acquire_lock("key", &at_once(&me)).unwrap();
    store.release_lock("key", &me).unwrap();
    assert_matches!(store.release_lock("key", &me), Err(Error::NotLocked { operation: "release_lock", .. }));
    assert!(!store.is_locked("key").unwrap());
}

fn who_is_lock_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let answers = || {
        let holds = |holder| store.is_lock_holder("key", holder).unwrap();
        (store.is_locked("key").unwrap(), holds(&me), holds(&other))
    };
    assert_eq!(answers(), (false, false, false), "of a free key");
    store.acquire_lock("key", &at_once(&me)).unwrap();
    assert_eq!(answers(), (true, true, false), "of a locked key");
    store.release_lock("key", &me).unwrap();
    assert_eq!(answers(), (false, false, false), "of a released key");
    store.acquire_lock("key", &at_once(&Holder::current())).unwrap();
    assert_eq!(answers(), (true, false, false), "of a key locked by default");
    assert!(store.is_lock_holder("key", &Holder::current()).unwrap());
}

fn a_name_is_no_process(store: &dyn RecordStore) {
    let me = Holder::current();
    let namesake = named(me.name());
    store.acquire_lock("key", &at_once(&me)).unwrap();
    assert_matches!(store.acquire_lock("key", &at_once(&namesake)), Err(Error::LockTimeout { .. }));
    assert!(!store.is_lock_holder("key", &namesake).unwrap());
    assert_matches!(store.write_as("key", &1, &namesake), Err(Error::Locked { .. }));
    assert_matches!(store.release_lock("key", &namesake), Err(Error::NotLockHolder { .. }));
    store.release_lock("key", &me).unwrap();
}

fn a_named_holder_is_one_on_every_thread(store: &dyn RecordStore) {
    let job = named("job");
    let token = store.acquire_lock("key", &at_once(&job)).unwrap();
    std::thread::scope(|scope| {
        let elsewhere = scope.spawn(|| {
            assert_eq!(store.acquire_lock("key", &at_once(&job)).unwrap(), token);
            store.write_as("key", &1, &job).unwrap();
            store.release_lock("key", &job).unwrap();
        });
        super::support::join(elsewhere);
    });
    assert!(!store.is_locked("key").unwrap());
}

fn tokens_only_grow(store: &dyn RecordStore) {
    let holders = [named("one"), named("two")];
    let mut tokens = Vec::new();
    for round in 0..8 {
        let holder = &holders[round % 2];
        if round == 4 {
            tokens.push(expired(store, "key", &named("three")));
        }
        tokens.push(store.acquire_lock("key", &at_once(holder)).unwrap());
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

fn lock_info_tells_what_is_known(store: &dyn RecordStore) {
    // Wall clocks may be kept in whole seconds.
    let about = |one: SystemTime, two: SystemTime| {
        let apart = one.duration_since(two).unwrap_or_else(|error| error.duration());
        assert!(apart < PATIENCE, "{one:?} and {two:?} are {apart:?} apart");
    };
    assert_eq!(store.lock_info("key").unwrap(), None);
    let (me, hour) = (named("me"), Duration::from_hours(1));
    let token = store.acquire_lock("key", &at_once(&me)).unwrap();
    let info = info_of(store);
    assert_eq!((info.key().as_str(), info.holder(), info.token()), ("key", &me, token));
    assert_eq!((info.expires_at(), info.remaining()), (None, None), "a lock without a term");
    assert_eq!(info.state(), LockState::Held);
    assert_ne!(info.owner_alive(), Some(false), "this process is alive");
    about(info.acquired_at(), SystemTime::now());

    store.acquire_lock("key", &at_once(&me).hold_timeout(hour)).unwrap();
    let info = info_of(store);
    let remaining = info.remaining().expect("a term");
    assert!(remaining <= hour && remaining + PATIENCE > hour, "{remaining:?} of an hour remain");
    about(info.expires_at().expect("a term"), SystemTime::now() + hour);

    store.release_lock("key", &me).unwrap();
    assert_eq!(store.lock_info("key").unwrap(), None);
}

fn locks_lists_who_holds_what(store: &dyn RecordStore) {
    assert_eq!(store.locks().unwrap().count(), 0);
    let (me, other) = (named("me"), named("other"));
    store.write("only a record", &1).unwrap();
    expired(store, "expired", &me);
    for (key, holder) in [("a", &me), ("b", &other), ("c", &me)] {
        store.acquire_lock(key, &at_once(holder)).unwrap();
    }
    store.release_lock("c", &me).unwrap();
    let (live, over): (Vec<LockInfo>, Vec<LockInfo>) =
        store.locks().unwrap().map(|info| info.unwrap()).partition(|info| info.state() == LockState::Held);
    let mut live: Vec<_> = live.iter().map(|info| (info.key().as_str(), info.holder())).collect();
    live.sort_by_key(|(key, _)| *key);
    assert_eq!(live, [("a", &me), ("b", &other)]);
    assert!(over.iter().all(|info| info.key().as_str() == "expired"), "{over:?}");
}

fn a_broken_lock_is_free(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.break_lock("key").unwrap(), "there was none");
    store.acquire_lock("key", &long(&other)).unwrap();
    let acquires = || store.acquire_lock("key", &LockOptions::new().holder(me.clone()));
    waits_until_freed(acquires, || assert!(store.break_lock("key").unwrap(), "there was one")).unwrap();
    assert!(store.is_lock_holder("key", &me).unwrap());
    assert!(store.break_lock("key").unwrap());
    assert!(!store.is_locked("key").unwrap());
    assert!(!store.break_lock("key").unwrap(), "there was none any more");
}

fn looking_changes_nothing(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", &at_once(&other)).unwrap();
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

fn huge_timeouts(store: &dyn RecordStore) {
    let (me, other, ever) = (named("me"), named("other"), Duration::MAX);
    let options = LockOptions::new().holder(other.clone()).acquire_timeout(ever).hold_timeout(ever);
    let token = store.acquire_lock("key", &options).unwrap();
    assert!(store.is_lock_holder("key", &other).unwrap(), "a huge lease is over at once");
    store.renew("key", token, Some(ever)).unwrap();
    assert!(store.is_lock_holder("key", &other).unwrap(), "a huge lease is over at once");
    // The last is within reach of a clock that starts at boot, and beyond the wall clock.
    for seconds in [1 << 32, 1 << 53, i64::MAX.unsigned_abs() - 1_000_000_000] {
        store.renew("key", token, Some(Duration::from_secs(seconds))).unwrap();
        let info = info_of(store);
        assert!(info.remaining().is_none_or(|left| left > LEASE), "{info:?} is almost over");
    }
    assert_matches!(store.acquire_lock("key", &at_once(&me)), Err(Error::LockTimeout { .. }));
    // From here on the lease is what saves this check from a store that does not wake.
    store.renew("key", token, Some(PATIENCE)).unwrap();
    let acquires = || store.acquire_lock("key", &options.clone().holder(me.clone()));
    waits_until_freed(acquires, || store.release_lock("key", &other).unwrap()).unwrap();
    store.renew("key", &me, Some(PATIENCE)).unwrap();
    let waits = || store.wait_for_lock("key", Some(ever));
    assert!(waits_until_freed(waits, || store.release_lock("key", &me).unwrap()).unwrap());
    assert_matches!(store.try_read::<i64>("key", ever), Ok(None));
}

fn info_of(store: &dyn RecordStore) -> LockInfo {
    store.lock_info("key").unwrap().expect("a live lock")
}
