//! What checks have in common.

use std::fmt::Debug;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::PATIENCE;
use crate::{Claim, Holder, Key, LockOptions, LockToken, RecordStore, RecordStoreExt};

/// A lease that runs out while the check waits for it.
pub(super) const LEASE: Duration = Duration::from_millis(150);

/// How long a check looks on to see that somebody waits.
pub(super) const A_WHILE: Duration = Duration::from_millis(60);

pub(super) fn named(name: &str) -> Holder {
    Holder::named(name).expect("a name for a holder")
}

/// One try, no wait, no term.
pub(super) fn at_once(holder: &Holder) -> LockOptions {
    LockOptions::new().holder(holder.clone()).acquire_timeout(Duration::ZERO)
}

/// For locks that others wait for: a store that misses the release fails instead of hanging.
pub(super) fn long(holder: &Holder) -> LockOptions {
    at_once(holder).hold_timeout(PATIENCE)
}

/// A lease that runs out soon.
pub(super) fn short(holder: &Holder) -> LockOptions {
    at_once(holder).hold_timeout(LEASE)
}

/// Waits until the lock of the key is over, and sees that this comes in time.
pub(super) fn outlive(store: &dyn RecordStore, key: &str) {
    assert!(store.wait_for_lock(key, Some(PATIENCE)).expect("a wait"), "the lease does not run out");
}

/// Takes a lock and lets its lease run out. Returns the token that is worth nothing now.
pub(super) fn expired(store: &dyn RecordStore, key: &str, holder: &Holder) -> LockToken {
    let token = store.acquire_lock(key, &short(holder)).expect("a lock on a free key");
    outlive(store, key);
    token
}

/// The record's result as this holder reads it. Fails, rather than hangs, where it is locked.
pub(super) fn result_of(store: &dyn RecordStore, key: &str, holder: &Holder) -> Option<i64> {
    let key = Key::new(key).expect("a key");
    let json = store.read_json(&key, &Claim::from(holder), Some(PATIENCE)).expect("a read")?;
    Some(json.get().parse().expect("a number"))
}

/// Runs `waits` on a thread of its own, sees that it does not return for a while, then runs
/// `frees` and returns what `waits` came back with.
pub(super) fn waits_until_freed<T: Debug + Send>(
    waits: impl FnOnce() -> T + Send,
    frees: impl FnOnce(),
) -> T {
    thread::scope(|scope| {
        let (started, is_started) = mpsc::channel();
        let (done, is_done) = mpsc::channel();
        let waiter = scope.spawn(move || {
            let _ = started.send(());
            let outcome = waits();
            let _ = done.send(());
            outcome
        });
        is_started.recv().expect("the thread started");
        let early = is_done.recv_timeout(A_WHILE) != Err(mpsc::RecvTimeoutError::Timeout);
        assert!(!early, "returned while the lock was live: {:?}", join(waiter));
        let start = Instant::now();
        frees();
        let outcome = join(waiter);
        assert!(start.elapsed() < PATIENCE / 2, "was not woken, but only came back by itself");
        outcome
    })
}

/// Joins, and goes on with the thread's panic if it had one.
pub(super) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Says that a thread is done, also where it ended by a panic, so that nobody waits for it in vain.
pub(super) struct Done<'a>(pub(super) &'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Asserts that a value matches a pattern, and shows the value where it does not.
macro_rules! assert_matches {
    ($value:expr, $pattern:pat $(if $guard:expr)? $(,)?) => {
        match $value {
            $pattern $(if $guard)? => {}
            ref other => panic!("expected {}, got {other:?}", stringify!($pattern $(if $guard)?)),
        }
    };
}
pub(super) use assert_matches;
