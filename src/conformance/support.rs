//! Helpers for the checks.

use std::fmt::Debug;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::PATIENCE;
use crate::{
    BreakOptions, Claim, Error, ErrorKind, Holder, Key, LockOptions, LockToken, ReadOptions, RecordStore,
    RecordStoreExt, RemoveOptions, Result, WriteOptions,
};

/// A lease that is short enough for a check to wait until it expires.
pub(super) const LEASE: Duration = Duration::from_millis(150);

/// How long a check observes that a call still blocks. Also a timeout that is meant to pass.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(60);

pub(super) fn named(name: &str) -> Holder {
    Holder::named(name).expect("a valid holder name")
}

/// Options for one attempt without a wait, and for a lock without a lease.
pub(super) fn one_attempt(holder: &Holder) -> LockOptions {
    LockOptions::new().holder(holder.clone()).acquire_timeout(Duration::ZERO)
}

/// Options for a lock that other calls wait for. With the lease, a store that does not wake them fails the
/// check instead of hanging.
pub(super) fn long_lease(holder: &Holder) -> LockOptions {
    one_attempt(holder).hold_timeout(PATIENCE)
}

/// Options for a lock whose lease expires during the check.
pub(super) fn short_lease(holder: &Holder) -> LockOptions {
    one_attempt(holder).hold_timeout(LEASE)
}

/// Options for a read on this claim.
pub(super) fn read_by(claim: impl Into<Claim>) -> ReadOptions {
    ReadOptions::new().claim(claim)
}

/// Options for a read that makes one attempt without a wait.
pub(super) fn one_read() -> ReadOptions {
    ReadOptions::new().timeout(Duration::ZERO)
}

/// Options for a write on this claim.
pub(super) fn write_by(claim: impl Into<Claim>) -> WriteOptions {
    WriteOptions::new().claim(claim)
}

/// Options that break the lock of this acquisition.
pub(super) fn break_by(token: LockToken) -> BreakOptions {
    BreakOptions::new().token(token)
}

/// Options for a removal on this claim.
pub(super) fn remove_by(claim: impl Into<Claim>) -> RemoveOptions {
    RemoveOptions::new().claim(claim)
}

/// Waits until the lock of the key has expired. Fails if this takes too long.
pub(super) fn wait_for_expiry(store: &dyn RecordStore, key: &str) {
    assert!(store.wait_for_lock(key, PATIENCE).expect("a wait"), "the lease does not expire");
}

/// Acquires a lock and lets its lease expire. Returns the token, which is no longer valid.
pub(super) fn expired_lock(store: &dyn RecordStore, key: &str, holder: &Holder) -> LockToken {
    let token = store.acquire_lock(key, short_lease(holder)).expect("a lock on a free key");
    wait_for_expiry(store, key);
    token
}

/// Reads the record's result as this holder. Fails instead of hanging if another holder's lock stays live.
pub(super) fn result_of(store: &dyn RecordStore, key: &str, holder: &Holder) -> Option<i64> {
    let key = Key::new(key).expect("a key");
    let record = store.read_raw(&key, read_by(holder).timeout(PATIENCE)).expect("a read")?;
    Some(record.json.as_str().parse().expect("a number"))
}

/// Runs `blocked` on a new thread, checks that it blocks, runs `unblock`, and returns the result of
/// `blocked`.
pub(super) fn blocks_until<T: Debug + Send>(blocked: impl FnOnce() -> T + Send, unblock: impl FnOnce()) -> T {
    thread::scope(|scope| {
        let (started, is_started) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let waiter = scope.spawn(move || {
            let _ = started.send(());
            let outcome = blocked();
            let _ = done.send(());
            outcome
        });
        is_started.recv().expect("the thread started");
        let early = is_done.recv_timeout(SHORT_WAIT) != Err(mpsc::RecvTimeoutError::Timeout);
        assert!(!early, "returned while the lock was live: {:?}", join(waiter));
        let start = Instant::now();
        unblock();
        let outcome = join(waiter);
        assert!(start.elapsed() < PATIENCE / 2, "the call was not woken by the change, it returned later");
        outcome
    })
}

/// Asserts that what `round` measures is mostly within `bound`. A busy machine delays some rounds, a store that only looks
/// from time to time delays nearly all: so `enough` of four times as many rounds have to be in time.
pub(super) fn assert_prompt(bound: Duration, enough: usize, what: &str, mut round: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    while times.iter().filter(|time| **time <= bound).count() < enough {
        assert!(
            times.len() < enough * 4,
            "{what} took {times:?}; expected at most {bound:?} in {enough} of {} rounds",
            enough * 4
        );
        times.push(round());
    }
}

/// Asserts that `round` observes the order that it expects: it returns both. Its argument is the time between two
/// arrivals. It becomes longer, because on a busy machine the later of two may be earlier in the queue.
pub(super) fn in_order_of_arrival(mut round: impl FnMut(Duration) -> (Vec<String>, Vec<String>)) {
    let mut in_order = 0;
    let mut gap = SHORT_WAIT;
    let mut failures = Vec::new();
    // Some rounds may be in order by chance.
    while in_order < 3 {
        let (observed, expected) = round(gap);
        if observed == expected {
            in_order += 1;
        } else {
            failures.push(observed);
            assert!(failures.len() < 5, "acquired in the orders {failures:?}; expected {expected:?}");
            gap = gap * 3 / 2;
        }
    }
}

/// Joins the thread, and propagates its panic.
pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Sets a flag when the thread ends, also by a panic, so that other threads do not wait for it forever.
pub(super) struct Done<'a>(pub(super) &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asserts that the outcome is an error of this kind, and returns the error.
pub(super) fn assert_error<T: Debug>(outcome: Result<T>, kind: ErrorKind) -> Error {
    match outcome {
        Err(error) if error.kind() == kind => error,
        outcome => panic!("expected {kind:?}, got {outcome:?}"),
    }
}

/// [`assert_error`] for an error that names this operation.
pub(super) fn assert_error_of<T: Debug>(outcome: Result<T>, kind: ErrorKind, operation: &str) -> Error {
    let error = assert_error(outcome, kind);
    assert_eq!(error.operation(), operation, "the error names another operation");
    error
}

/// Asserts that the error names this key and this holder.
pub(super) fn assert_names(error: &Error, key: &str, holder: &Holder) {
    assert_eq!(
        (error.key().map(Key::as_str), error.holder()),
        (Some(key), Some(holder)),
        "the error names another key or holder"
    );
}

/// Asserts that the error reports a wait that is not shorter than the timeout and not longer than the call.
pub(super) fn assert_waited(error: &Error, timeout: Duration, elapsed: Duration) {
    let waited = error.waited().expect("the error reports no wait");
    assert!(
        waited >= timeout && waited <= elapsed,
        "the error reports a wait of {waited:?}, the call took {elapsed:?}"
    );
}

/// Asserts that a value matches a pattern. The message shows the value.
macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)? $(, $context:literal)? $(,)?) => {
        match $value {
            $pattern $(if $guard)? => {}
            ref other => panic!(
                concat!("expected {}, got {:?}" $(, ", ", $context)?),
                stringify!($pattern $(if $guard)?),
                other
            ),
        }
    };
}
pub(super) use assert_matches;
