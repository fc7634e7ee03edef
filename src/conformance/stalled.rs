//! A process that is stopped in the middle of a change of a key.

use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::subject::Subject;
use super::support::{
    LEASE, assert_error, assert_error_of, assert_matches, join, named, one_attempt, result_of, write_by,
};
use crate::{
    BreakOptions, Cancellation, ErrorKind, LockToken, RecordStore, RecordStoreExt, RemoveOptions, Result,
    WaitOptions, WriteOptions,
};

checks! { "stalled":
    a_change_that_cannot_be_made_ends_at_its_timeout(stalls):
        "While a process is stopped in the middle of a change, every other change of the key ends with `LockTimeout` at its timeout, not before and not long after, and changes nothing.",
    a_change_that_cannot_be_made_can_be_cancelled(stalls):
        "While a process is stopped in the middle of a change, every other change of the key waits, and returns `Cancelled` promptly if it is cancelled.",
    a_call_of_a_guard_ends_at_its_timeout(stalls):
        "While a process is stopped in the middle of a change, the changes of a guard, its renewal and its release end with `LockTimeout` at their timeouts. The lock stays, and its token releases it later.",
    a_change_goes_on_after_the_end_of_the_other_one(stalls):
        "A change without a timeout waits for a process that is stopped in the middle of another one, and is made then.",
    a_wait_ends_at_its_timeout(stalls):
        "While a process is stopped in the middle of a change, `wait_for_lock` returns `false` and a watch returns `None` at the timeout, because neither changes anything.",
    a_change_that_waits_past_the_lease_is_refused(stalls):
        "If a lease ends while its holder waits for a process that is stopped in the middle of a change, the holder's change is refused and changes nothing.",
}

type Change<'a> = (&'static str, &'a (dyn Fn(WaitOptions) -> Result<()> + Sync));

/// Calls `body` with each change of the key, on the lock of `token` where it needs one.
fn for_each_change(store: &dyn RecordStore, token: LockToken, mut body: impl FnMut(Change<'_>)) {
    let key = crate::Key::new("key").unwrap();
    let json = crate::Json::parse("2").unwrap();
    let by = |wait| WriteOptions::new().claim(token).wait(wait);
    let version = store.version_raw(&key).unwrap();
    let changes: [Change<'_>; 7] = [
        ("write", &|wait| store.write_raw(&key, &json, by(wait))),
        ("compare_and_swap", &|wait| {
            let expected = crate::Expected::Version(version);
            store.compare_and_swap_raw(&key, expected, &json, by(wait)).map(drop)
        }),
        ("remove", &|wait| store.remove_raw(&key, RemoveOptions::new().claim(token).wait(wait)).map(drop)),
        ("acquire_lock", &|wait| {
            // Its own lock, for which it does not have to wait otherwise.
            store.acquire_lock_raw(&key, one_attempt(&named("me")).wait(wait)).map(drop)
        }),
        ("renew", &|wait| store.renew_raw(&key, &token.into(), Some(PATIENCE), wait)),
        ("release_lock", &|wait| store.release_lock_raw(&key, &token.into(), wait)),
        ("break_lock", &|wait| store.break_lock_raw(&key, BreakOptions::new().wait(wait)).map(drop)),
    ];
    changes.into_iter().for_each(&mut body);
}

/// Asserts that nothing has changed since the lock was acquired and the record had the result 1.
fn assert_unchanged(store: &dyn RecordStore, token: LockToken) {
    let info = store.lock_info("key").unwrap().expect("the lock was released");
    assert_eq!((info.token(), info.remaining()), (token, None), "the lock was changed");
    assert_eq!(result_of(store, "key", &named("me")), Some(1), "the record was changed");
}

fn a_change_that_cannot_be_made_ends_at_its_timeout(subject: &Subject) {
    let store = subject.store();
    let timeout = Duration::from_millis(200);
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", one_attempt(&named("me"))).unwrap();
    let stalled = subject.stall("key");
    for_each_change(store, token, |(name, change)| {
        let start = Instant::now();
        let outcome = change(WaitOptions::new().timeout(timeout));
        let elapsed = start.elapsed();
        assert!(
            outcome.is_err(),
            "{name} made a change beside another one: expected LockTimeout, got {outcome:?}"
        );
        let error = assert_error(outcome, ErrorKind::LockTimeout);
        assert!(!error.is_outcome_unknown(), "{name}: the outcome of a change that was not made: {error}");
        assert!(elapsed >= timeout, "{name} gave up after {elapsed:?} of {timeout:?}");
        assert!(elapsed < PATIENCE / 2, "{name} gave up late, after {elapsed:?} of {timeout:?}");
    });
    drop(stalled);
    assert_unchanged(store, token);
    store.write_with("key", &2, write_by(token)).unwrap();
    store.release_lock("key", token).unwrap();
}

fn a_change_that_cannot_be_made_can_be_cancelled(subject: &Subject) {
    let store = subject.store();
    store.write("key", &1).unwrap();
    let token = store.acquire_lock("key", one_attempt(&named("me"))).unwrap();
    let stalled = subject.stall("key");
    for_each_change(store, token, |(name, change)| {
        let cancellation = Cancellation::new();
        thread::scope(|scope| {
            let called = scope.spawn(|| change(WaitOptions::new().cancellation(&cancellation)));
            thread::sleep(Duration::from_millis(100));
            let is_early = called.is_finished();
            let start = Instant::now();
            cancellation.cancel();
            let outcome = join(called);
            assert!(!is_early, "{name} did not wait for the other change: {outcome:?}");
            assert_error(outcome, ErrorKind::Cancelled);
            let elapsed = start.elapsed();
            assert!(elapsed < PATIENCE / 2, "{name} returned {elapsed:?} after the cancellation");
        });
    });
    drop(stalled);
    assert_unchanged(store, token);
}

fn a_call_of_a_guard_ends_at_its_timeout(subject: &Subject) {
    let store = subject.store();
    let timeout = Duration::from_millis(200);
    let guard = store.lock("key", one_attempt(&named("me"))).unwrap();
    guard.write(&1).unwrap();
    let token = guard.token();
    let stalled = subject.stall("key");
    let start = Instant::now();
    let outcomes = [
        ("write", guard.write_with(&2, WriteOptions::new().timeout(timeout))),
        ("remove", guard.remove_with(RemoveOptions::new().timeout(timeout)).map(drop)),
        ("renew", guard.renew_with(timeout)),
        ("release_lock", guard.release_with(timeout)),
    ];
    let elapsed = start.elapsed();
    for (operation, outcome) in outcomes {
        assert_error_of(outcome, ErrorKind::LockTimeout, operation);
    }
    assert!(elapsed >= timeout * 4, "the calls gave up after {elapsed:?} of four times {timeout:?}");
    assert!(elapsed < PATIENCE / 2, "the calls gave up late, after {elapsed:?} of four times {timeout:?}");
    drop(stalled);
    assert_unchanged(store, token);
    store.release_lock("key", token).unwrap();
    assert!(!store.is_locked("key").unwrap(), "the token did not release the lock");
}

fn a_change_goes_on_after_the_end_of_the_other_one(subject: &Subject) {
    let store = subject.store();
    let token = store.acquire_lock("key", one_attempt(&named("me"))).unwrap();
    let stalled = subject.stall("key");
    thread::scope(|scope| {
        let writes = scope.spawn(|| store.write_with("key", &1, write_by(token)));
        thread::sleep(LEASE);
        assert!(!writes.is_finished(), "the write did not wait");
        drop(stalled);
        join(writes).unwrap();
    });
    assert_unchanged(store, token);
}

fn a_wait_ends_at_its_timeout(subject: &Subject) {
    let store = subject.store();
    store.write("key", &1).unwrap();
    store.acquire_lock("key", one_attempt(&named("me"))).unwrap();
    let mut changes = store.watch("key").unwrap();
    let _stalled = subject.stall("key");
    for timeout in [Duration::ZERO, Duration::from_millis(200)] {
        let start = Instant::now();
        assert_matches!(store.wait_for_lock("key", timeout), Ok(false));
        assert_matches!(changes.next(timeout), Ok(None));
        let elapsed = start.elapsed();
        assert!(elapsed >= timeout * 2, "gave up after {elapsed:?} of twice {timeout:?}");
        assert!(elapsed < PATIENCE / 2, "gave up late, after {elapsed:?} of twice {timeout:?}");
    }
}

fn a_change_that_waits_past_the_lease_is_refused(subject: &Subject) {
    // A store may enter again and again, and look at the clock each time: the lease ends in one of these waits.
    const LATE: Duration = Duration::from_millis(60);
    let store = subject.store();
    store.write("key", &1).unwrap();
    for (lease, changes_record) in [(400, true), (600, true), (400, false), (600, false)] {
        let lease = Duration::from_millis(lease);
        let token = store.acquire_lock("key", one_attempt(&named("me")).hold_timeout(lease)).unwrap();
        let start = Instant::now();
        let stalled = subject.stall("key");
        thread::scope(|scope| {
            let late = scope.spawn(|| {
                if changes_record {
                    store.write_with("key", &2, write_by(token))
                } else {
                    store.renew("key", token, PATIENCE)
                }
            });
            let end = start + lease + subject.granularity() + LATE;
            thread::sleep(end.saturating_duration_since(Instant::now()));
            drop(stalled);
            assert_error(join(late), ErrorKind::LockLost);
        });
        assert!(!store.is_locked("key").unwrap(), "a lock whose lease has ended was renewed");
        assert_eq!(result_of(store, "key", &named("me")), Some(1), "a late write was accepted");
    }
}
