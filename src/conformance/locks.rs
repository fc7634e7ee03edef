//! Locks: acquiring, acquiring again, releasing, querying.

use std::time::{Duration, Instant, SystemTime};

use super::PATIENCE;
use super::subject::Subject;
use super::support::{
    LEASE, SHORT_WAIT, assert_error, assert_error_of, assert_matches, assert_names, assert_waited,
    blocks_until, break_by, expired_lock, long_lease, named, one_attempt, one_read, remove_by, write_by,
};
use crate::{
    ErrorKind, Holder, Key, LockInfo, LockOptions, LockState, LockToken, ReadOptions, RecordStore,
    RecordStoreExt, WaitOptions, WriteOptions,
};

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
    a_bound_holder_is_a_holder_of_its_own_kind:
        "A holder that is bound to the process is another holder than the named one of the same name, is the same on every thread, and is the default holder if it has its name.",
    tokens_only_grow:
        "The tokens of a key only grow, across release, expiry, `break_lock` and removal.",
    lock_info_describes_the_lock:
        "`lock_info` returns the holder, the token, the times and the state of a lock.",
    a_lock_has_the_note_of_its_acquisition:
        "A lock has the note of its first acquisition, any text, also after a renewal, until it is released.",
    the_longest_lock_can_be_used:
        "A lock with the longest key, holder and note can be used like any other.",
    locks_lists_every_live_lock_once:
        "`locks` lists every live lock exactly once; the state of any other entry shows that it is not live.",
    an_expired_lock_is_listed_as_expired(subject):
        "`locks` lists a lock whose lease has ended, as expired, until the key is locked again.",
    break_lock_frees_the_key:
        "`break_lock` frees the key, wakes the waiters, and reports whether a lock existed.",
    break_lock_with_a_token_breaks_only_that_acquisition:
        "`break_lock` with a token breaks the lock of that acquisition, wakes the waiters, and leaves the lock of any other acquisition as it is.",
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
        let token = store.acquire_lock(key, LockOptions::new().holder(me.clone())).unwrap();
        assert!(store.is_lock_holder(key, &me).unwrap());
        assert_eq!(store.lock_info(key).unwrap().expect("a lock").token(), token);
    }
    assert!(store.exists("with").unwrap(), "a lock removed the record");
    assert!(!store.exists("without").unwrap(), "a lock created a record");
}

fn acquiring_again_keeps_the_token(store: &dyn RecordStore) {
    let (key, me) = (Key::new("key").unwrap(), named("me"));
    let first = store.acquire_lock_raw(&key, one_attempt(&me)).unwrap();
    assert!(!first.reentrant, "the first acquisition is reported as reentrant");
    let before = info_of(store);
    // No timeout: the holder must not wait for its own lock.
    let again = store.acquire_lock_raw(&key, LockOptions::new().holder(me.clone())).unwrap();
    assert!(again.reentrant, "the second acquisition is not reported as reentrant");
    assert_eq!(again.token, first.token);
    assert_eq!(info_of(store).acquired_at(), before.acquired_at());
    // Acquisitions are not counted: one release frees the key.
    store.release_lock("key", &me).unwrap();
    assert!(!store.is_locked("key").unwrap());
}

fn another_holder_cannot_acquire_a_live_lock(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    let before = info_of(store);
    let outcome = store.acquire_lock("key", one_attempt(&me));
    let error = assert_error_of(outcome, ErrorKind::LockTimeout, "acquire_lock");
    assert_names(&error, "key", &other);
    assert_eq!(info_of(store), before, "a refused acquisition changed the lock");
}

fn an_acquire_timeout_of_zero_does_not_wait(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("free", one_attempt(&me)).unwrap();
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let start = Instant::now();
    assert_error(store.acquire_lock("key", one_attempt(&me)), ErrorKind::LockTimeout);
    assert!(start.elapsed() < PATIENCE / 2, "the call waited");
}

fn an_acquire_timeout_is_respected(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let start = Instant::now();
    let outcome = store.acquire_lock("key", one_attempt(&me).acquire_timeout(SHORT_WAIT));
    let elapsed = start.elapsed();
    let error = assert_error_of(outcome, ErrorKind::LockTimeout, "acquire_lock");
    assert_names(&error, "key", &other);
    assert_waited(&error, SHORT_WAIT, elapsed);
    assert!(elapsed >= SHORT_WAIT, "gave up early, after {elapsed:?}");
    assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?}");
}

fn a_release_wakes_a_waiter(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    for timeout in [None, Some(PATIENCE)] {
        let first = store.acquire_lock("key", long_lease(&other)).unwrap();
        let options = LockOptions::new().holder(me.clone()).acquire_timeout(timeout);
        let releases = || store.release_lock("key", &other).unwrap();
        let second = blocks_until(|| store.acquire_lock("key", options.clone()), releases).unwrap();
        assert!(second > first, "token {second} after {first}");
        assert!(store.is_lock_holder("key", &me).unwrap());
        store.release_lock("key", &me).unwrap();
    }
}

fn release_needs_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    let before = info_of(store);
    let outcome = store.release_lock("key", &me);
    let error = assert_error_of(outcome, ErrorKind::NotLockHolder, "release_lock");
    assert_names(&error, "key", &other);
    assert_eq!(error.claimant(), Some(&me), "the error names another claimant");
    assert_eq!(info_of(store), before, "a refused release changed the lock");
}

fn release_needs_a_lock(store: &dyn RecordStore) {
    let me = named("me");
    assert_error_of(store.release_lock("key", &me), ErrorKind::NotLocked, "release_lock");
    store.acquire_lock("key", one_attempt(&me)).unwrap();
    store.release_lock("key", &me).unwrap();
    assert_error_of(store.release_lock("key", &me), ErrorKind::NotLocked, "release_lock");
    assert!(!store.is_locked("key").unwrap());
}

fn is_lock_holder_identifies_the_holder(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let answers = || {
        let holds = |holder| store.is_lock_holder("key", holder).unwrap();
        (store.is_locked("key").unwrap(), holds(&me), holds(&other))
    };
    assert_eq!(answers(), (false, false, false), "free key");
    store.acquire_lock("key", one_attempt(&me)).unwrap();
    assert_eq!(answers(), (true, true, false), "locked key");
    store.release_lock("key", &me).unwrap();
    assert_eq!(answers(), (false, false, false), "released key");
    store.acquire_lock("key", one_attempt(&Holder::current())).unwrap();
    assert_eq!(answers(), (true, false, false), "key locked by the default holder");
    assert!(store.is_lock_holder("key", &Holder::current()).unwrap());
}

fn a_named_holder_is_not_a_default_holder(store: &dyn RecordStore) {
    let me = Holder::current();
    let namesake = named(me.name());
    store.acquire_lock("key", one_attempt(&me)).unwrap();
    assert_error(store.acquire_lock("key", one_attempt(&namesake)), ErrorKind::LockTimeout);
    assert!(!store.is_lock_holder("key", &namesake).unwrap());
    assert_error(store.write_with("key", &1, write_by(&namesake)), ErrorKind::Locked);
    assert_error(store.release_lock("key", &namesake), ErrorKind::NotLockHolder);
    store.release_lock("key", &me).unwrap();
}

fn a_named_holder_is_the_same_on_every_thread(store: &dyn RecordStore) {
    let job = named("job");
    let token = store.acquire_lock("key", one_attempt(&job)).unwrap();
    std::thread::scope(|scope| {
        let other_thread = scope.spawn(|| {
            assert_eq!(store.acquire_lock("key", one_attempt(&job)).unwrap(), token);
            store.write_with("key", &1, write_by(&job)).unwrap();
            store.release_lock("key", &job).unwrap();
        });
        super::support::join(other_thread);
    });
    assert!(!store.is_locked("key").unwrap());
}

fn a_bound_holder_is_a_holder_of_its_own_kind(store: &dyn RecordStore) {
    let bound = Holder::bound("job").unwrap();
    let namesake = named("job");
    let token = store.acquire_lock("key", one_attempt(&bound)).unwrap();
    let info = info_of(store);
    assert_eq!(info.holder(), &bound, "`lock_info` reports another holder");
    assert!(store.is_lock_holder("key", &bound).unwrap());
    assert!(!store.is_lock_holder("key", &namesake).unwrap(), "mistaken for the named holder");
    assert_error(store.acquire_lock("key", one_attempt(&namesake)), ErrorKind::LockTimeout);
    let error = assert_error(store.write_with("key", &1, write_by(&namesake)), ErrorKind::Locked);
    assert_names(&error, "key", &bound);
    assert_error(store.release_lock("key", &namesake), ErrorKind::NotLockHolder);
    std::thread::scope(|scope| {
        let other_thread = scope.spawn(|| {
            assert_eq!(store.acquire_lock("key", one_attempt(&bound)).unwrap(), token);
            store.write_with("key", &1, write_by(&bound)).unwrap();
            store.release_lock("key", &bound).unwrap();
        });
        super::support::join(other_thread);
    });
    store.acquire_lock("key", one_attempt(&namesake)).unwrap();
    assert!(!store.is_lock_holder("key", &bound).unwrap(), "mistaken for the bound holder");
    assert_error(store.acquire_lock("key", one_attempt(&bound)), ErrorKind::LockTimeout);
    store.release_lock("key", &namesake).unwrap();

    let me = Holder::current();
    let token = store.acquire_lock("key", one_attempt(&me)).unwrap();
    let again = Holder::bound(me.name()).unwrap();
    assert_eq!(store.acquire_lock("key", one_attempt(&again)).unwrap(), token);
    store.release_lock("key", &again).unwrap();
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
        tokens.push(store.acquire_lock("key", one_attempt(holder)).unwrap());
        match round % 3 {
            0 => store.release_lock("key", holder).unwrap(),
            1 => assert!(store.break_lock("key").unwrap()),
            _ => {
                store.write_with("key", &round, write_by(holder)).unwrap();
                store.remove_with("key", remove_by(holder)).unwrap();
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
    let token = store.acquire_lock("key", one_attempt(&me)).unwrap();
    let info = info_of(store);
    assert_eq!((info.key().as_str(), info.holder(), info.token()), ("key", &me, token));
    assert_eq!((info.expires_at(), info.remaining()), (None, None), "a lock without a hold timeout");
    assert_eq!(info.state(), LockState::Held);
    assert_ne!(info.owner_alive(), Some(false), "this process is alive");
    assert_close(info.acquired_at(), SystemTime::now());

    store.acquire_lock("key", one_attempt(&me).hold_timeout(hour)).unwrap();
    let info = info_of(store);
    let remaining = info.remaining().expect("a lease");
    assert!(remaining <= hour && remaining + PATIENCE > hour, "{remaining:?} of an hour remain");
    assert_close(info.expires_at().expect("a lease"), SystemTime::now() + hour);

    store.release_lock("key", &me).unwrap();
    assert_eq!(store.lock_info("key").unwrap(), None);
}

fn a_lock_has_the_note_of_its_acquisition(store: &dyn RecordStore) {
    let (me, note) = (named("me"), "builds \0\n\u{202e}\"x\"");
    let token = store.acquire_lock("key", long_lease(&me).note(note)).unwrap();
    assert_eq!(info_of(store).note(), Some(note));
    store.acquire_lock("key", long_lease(&me).note("another")).unwrap();
    store.renew("key", token, Duration::from_hours(1)).unwrap();
    assert_eq!(info_of(store).note(), Some(note), "the same acquisition");
    let listed: Vec<_> = store.locks().unwrap().map(|lock| lock.unwrap().note().map(str::to_owned)).collect();
    assert_eq!(listed, [Some(note.to_owned())]);
    store.release_lock("key", &me).unwrap();
    let long = "ä".repeat(10_000);
    store.acquire_lock("key", one_attempt(&me).note(&long)).unwrap();
    assert_eq!(info_of(store).note(), Some(&long[..1_000]), "cut off");
    store.release_lock("key", &me).unwrap();
    store.acquire_lock("key", one_attempt(&me)).unwrap();
    assert_eq!(info_of(store).note(), None, "that of an earlier lock");
    store.release_lock("key", &me).unwrap();
}

/// Control characters have the longest form in JSON.
fn the_longest_lock_can_be_used(store: &dyn RecordStore) {
    let controls = |count| "\u{1}".repeat(count);
    let (key, holder) = (controls(Key::MAX_CHARS), named(&controls(Holder::MAX_BYTES)));
    let token = store.acquire_lock(&*key, long_lease(&holder).note(&controls(1_000))).unwrap();
    store.write_with(&*key, &1, WriteOptions::new().claim(token)).unwrap();
    store.renew(&*key, token, Duration::from_hours(1)).unwrap();
    assert!(store.is_lock_holder(&*key, &holder).unwrap());
    store.release_lock(&*key, token).unwrap();
    assert!(!store.is_locked(&*key).unwrap());
}

fn locks_lists_every_live_lock_once(store: &dyn RecordStore) {
    assert_eq!(store.locks().unwrap().count(), 0);
    let (me, other) = (named("me"), named("other"));
    store.write("only a record", &1).unwrap();
    expired_lock(store, "expired", &me);
    for (key, holder) in [("a", &me), ("b", &other), ("c", &me)] {
        store.acquire_lock(key, one_attempt(holder)).unwrap();
    }
    store.release_lock("c", &me).unwrap();
    let (live, others): (Vec<LockInfo>, Vec<LockInfo>) =
        store.locks().unwrap().map(|info| info.unwrap()).partition(|info| info.state() == LockState::Held);
    let mut live: Vec<_> = live.iter().map(|info| (info.key().as_str(), info.holder())).collect();
    live.sort_by_key(|(key, _)| *key);
    assert_eq!(live, [("a", &me), ("b", &other)]);
    assert!(others.iter().all(|info| info.key().as_str() == "expired"), "{others:?}");
}

fn an_expired_lock_is_listed_as_expired(subject: &Subject) {
    let (store, me, other) = (subject.store(), named("me"), named("other"));
    let listed = || {
        let locks = store.locks().unwrap().map(|info| info.unwrap());
        locks.map(|info| (info.holder().clone(), info.token(), info.state())).collect::<Vec<_>>()
    };
    let old = expired_lock(store, "key", &me);
    let expired = vec![(me.clone(), old, LockState::Expired)];
    // An engine that ends leases by itself has forgotten it.
    let may_forget = !subject.granularity().is_zero();
    let before = listed();
    assert!(before == expired || may_forget && before.is_empty(), "expected {expired:?}, got {before:?}");
    let new = store.acquire_lock("key", one_attempt(&other)).unwrap();
    assert_eq!(listed(), [(other, new, LockState::Held)]);
}

fn break_lock_frees_the_key(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.break_lock("key").unwrap(), "the key was never locked");
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let acquires = || store.acquire_lock("key", LockOptions::new().holder(me.clone()));
    blocks_until(acquires, || assert!(store.break_lock("key").unwrap(), "the key was locked")).unwrap();
    assert!(store.is_lock_holder("key", &me).unwrap());
    assert!(store.break_lock("key").unwrap());
    assert!(!store.is_locked("key").unwrap());
    assert!(!store.break_lock("key").unwrap(), "the lock was already broken");
}

fn break_lock_with_a_token_breaks_only_that_acquisition(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.break_lock_with("key", break_by(LockToken::new(1))).unwrap(), "the key was never locked");
    let old = store.acquire_lock("key", one_attempt(&other)).unwrap();
    assert!(store.break_lock("key").unwrap());
    assert!(!store.break_lock_with("key", break_by(old)).unwrap(), "that lock was already broken");
    let new = store.acquire_lock("key", long_lease(&other)).unwrap();
    let before = info_of(store);
    for unrelated in [old, LockToken::new(new.get() + 1), LockToken::new(0)] {
        assert!(!store.break_lock_with("key", break_by(unrelated)).unwrap(), "no such lock is left");
    }
    let same = |info: &LockInfo| (info.token(), info.holder().clone(), info.expires_at());
    assert_eq!(same(&info_of(store)), same(&before), "the lock of another acquisition was changed");
    store.write_with("key", &1, write_by(new)).unwrap();

    // The same acquisition, after its holder acquired the lock again.
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let acquires = || store.acquire_lock("key", LockOptions::new().holder(me.clone()));
    let breaks = || assert!(store.break_lock_with("key", break_by(new)).unwrap(), "the key was locked");
    let newest = blocks_until(acquires, breaks).unwrap();
    assert!(!store.break_lock_with("key", break_by(new)).unwrap(), "that lock was already broken");
    assert!(store.is_lock_holder("key", &me).unwrap());
    assert_error(store.write_with("key", &2, write_by(new)), ErrorKind::LockLost);
    assert!(store.break_lock_with("key", break_by(newest)).unwrap());
    assert!(!store.is_locked("key").unwrap());

    // A store may or may not still keep a lock that is no longer live. In either case the key is free.
    let expired = expired_lock(store, "key", &other);
    store.break_lock_with("key", break_by(expired)).unwrap();
    assert!(!store.break_lock_with("key", break_by(expired)).unwrap(), "that lock was already broken");
    assert!(!store.is_locked("key").unwrap());
}

fn queries_change_nothing(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    let before = info_of(store);
    let _ = store.is_locked("key").unwrap();
    let _ = store.is_lock_holder("key", &me).unwrap();
    let _ = store.locks().unwrap().count();
    let _ = store.exists("key").unwrap();
    assert!(!store.wait_for_lock("key", Duration::ZERO).unwrap());
    assert_error(store.read_with::<i64>("key", one_read()), ErrorKind::LockTimeout);
    assert_eq!(info_of(store), before);
    for key in ["key", "free"] {
        assert!(!store.exists(key).unwrap());
    }
    assert!(store.wait_for_lock("free", WaitOptions::new()).unwrap());
    assert_eq!(store.lock_info("free").unwrap(), None);
}

fn the_longest_timeouts_work(store: &dyn RecordStore) {
    let (me, other, longest) = (named("me"), named("other"), Duration::MAX);
    let options = LockOptions::new().holder(other.clone()).acquire_timeout(longest).hold_timeout(longest);
    let token = store.acquire_lock("key", options.clone()).unwrap();
    assert!(store.is_lock_holder("key", &other).unwrap(), "the longest lease expired at once");
    store.renew("key", token, longest).unwrap();
    assert!(store.is_lock_holder("key", &other).unwrap(), "the longest lease expired at once");
    // A clock that starts at boot can represent the last expiry time; the wall clock cannot.
    for seconds in [1 << 32, 1 << 53, i64::MAX.unsigned_abs() - 1_000_000_000] {
        store.renew("key", token, Duration::from_secs(seconds)).unwrap();
        let info = info_of(store);
        assert!(info.remaining().is_none_or(|left| left > LEASE), "{info:?} is about to expire");
    }
    assert_error(store.acquire_lock("key", one_attempt(&me)), ErrorKind::LockTimeout);
    // From here on, a lease keeps this check from hanging on a store that does not wake waiters.
    store.renew("key", token, PATIENCE).unwrap();
    let acquires = || store.acquire_lock("key", options.clone().holder(me.clone()));
    blocks_until(acquires, || store.release_lock("key", &other).unwrap()).unwrap();
    store.renew("key", &me, PATIENCE).unwrap();
    let waits = || store.wait_for_lock("key", longest);
    assert!(blocks_until(waits, || store.release_lock("key", &me).unwrap()).unwrap());
    assert_matches!(store.read_with::<i64>("key", ReadOptions::new().timeout(longest)), Ok(None));
}

fn info_of(store: &dyn RecordStore) -> LockInfo {
    store.lock_info("key").unwrap().expect("a live lock")
}
