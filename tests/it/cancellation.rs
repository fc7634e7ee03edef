//! Waits that are cancelled: they end at once, with no lock, and the line goes on without them.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use record_store::{Cancellation, Error, LockOptions, MemoryRecordStore, RecordStore, RecordStoreExt};
use tempfile::tempdir;

use crate::support::children::until_asleep;
use crate::support::{as_named, millis, names_in, open, storm};

type Store = std::sync::Arc<dyn RecordStore>;

fn with_each_store(check: impl Fn(&Store)) {
    let dir = tempdir().unwrap();
    let store: Store = std::sync::Arc::new(open(dir.path()));
    check(&store);
    assert_eq!(names_in(dir.path()), [".store"], "no lock file stays");
    let store: Store = std::sync::Arc::new(MemoryRecordStore::new());
    check(&store);
}

/// A thread that does this, seen asleep.
fn asleep<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (tell, tid) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_pid()).unwrap();
        work()
    });
    let tid = tid.recv().unwrap();
    until_asleep(std::process::id(), tid);
    // The first sleep of a wait is a short one.
    thread::sleep(millis(5));
    until_asleep(std::process::id(), tid);
    thread
}

/// A thread that waits for the lock of `k`, tells what came of it and when, and releases.
fn waits(store: &Store, name: &str, cancellation: &Cancellation) -> JoinHandle<(Result<(), Error>, Instant)> {
    let (store, options) = (store.clone(), as_named(name).cancellation(cancellation));
    asleep(move || {
        let outcome = store.lock("k", options).map(drop);
        (outcome, Instant::now())
    })
}

#[test]
fn who_is_cancelled_wakes_at_once_and_has_no_lock() {
    with_each_store(|store| {
        let _guard = store.lock("k", LockOptions::new()).unwrap();
        let mut times: Vec<_> = (0..7)
            .map(|_| {
                let cancellation = Cancellation::new();
                let waiter = waits(store, "waiter", &cancellation);
                let start = Instant::now();
                cancellation.cancel();
                let (outcome, end) = waiter.join().unwrap();
                let error = outcome.unwrap_err();
                assert!(matches!(&error, Error::Cancelled { operation: "acquire_lock", .. }), "{error}");
                assert!(error.is_cancelled() && error.key().unwrap().as_str() == "k");
                end - start
            })
            .collect();
        times.sort_unstable();
        assert!(times[times.len() / 2] < millis(100), "not by looking every 250 ms: {times:?}");
        assert!(!store.lock_info("k").unwrap().unwrap().is_held_by(&crate::support::named("waiter")));
    });
}

#[test]
fn who_is_cancelled_already_does_not_get_a_free_lock() {
    with_each_store(|store| {
        let cancellation = Cancellation::new();
        cancellation.cancel();
        let options = LockOptions::new().cancellation(&cancellation);
        assert!(store.lock("k", options.clone()).unwrap_err().is_cancelled());
        assert!(store.try_lock("k", options.clone()).unwrap_err().is_cancelled());
        assert!(store.lock_all(["a", "k"], options).unwrap_err().is_cancelled());
        assert!(!store.is_locked("k").unwrap());
    });
}

#[test]
fn one_cancellation_ends_many_waits_and_no_others() {
    with_each_store(|store| {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let cancellation = Cancellation::new();
        let cancelled: Vec<_> = (0..8).map(|name| waits(store, &format!("c{name}"), &cancellation)).collect();
        let other = waits(store, "other", &Cancellation::new());
        cancellation.cancel();
        for waiter in cancelled {
            assert!(waiter.join().unwrap().0.unwrap_err().is_cancelled());
        }
        assert!(!other.is_finished());
        guard.release().unwrap();
        other.join().unwrap().0.unwrap();
    });
}

#[test]
fn a_lock_freed_as_its_next_holder_is_cancelled_goes_to_the_one_after() {
    with_each_store(|store| {
        let mut times: Vec<_> = (0..storm(20))
            .map(|round| {
                let guard = store.lock("k", LockOptions::new()).unwrap();
                let cancellation = Cancellation::new();
                let first = waits(store, "first", &cancellation);
                let second = waits(store, "second", &Cancellation::new());
                cancellation.cancel();
                // It is called while it leaves, or has just left.
                thread::sleep(Duration::from_micros(round % 4 * 30));
                let start = Instant::now();
                guard.release().unwrap();
                let (outcome, end) = second.join().unwrap();
                outcome.unwrap();
                assert!(first.join().unwrap().0.unwrap_err().is_cancelled());
                assert!(!store.is_locked("k").unwrap());
                end.saturating_duration_since(start)
            })
            .collect();
        times.sort_unstable();
        assert!(times[times.len() * 3 / 4] < millis(100), "not by looking every 250 ms: {times:?}");
    });
}

#[test]
fn who_waits_behind_a_stopped_process_can_be_cancelled() {
    let dir = tempdir().unwrap();
    let store: Store = std::sync::Arc::new(open(dir.path()));
    store.lock("k", LockOptions::new()).unwrap().release().unwrap();
    // As one that is stopped in the middle of an operation.
    let latch = format!(".store/latches/{:02x}", crc32fast::hash(b"k") & 0xff);
    let latch = std::fs::File::open(dir.path().join(latch)).unwrap();
    rustix::fs::flock(&latch, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let cancellation = Cancellation::new();
    let waiter = waits(&store, "waiter", &cancellation);
    cancellation.cancel();
    assert!(waiter.join().unwrap().0.unwrap_err().is_cancelled());
}

#[test]
fn who_waits_for_anothers_computation_can_be_cancelled() {
    with_each_store(|store| {
        let _guard = store.lock("k", LockOptions::new()).unwrap();
        let cancellation = Cancellation::new();
        let options = as_named("waiter").cancellation(&cancellation);
        let waiter = asleep({
            let store = store.clone();
            move || store.get_or_compute("k", options, || Ok::<u32, Error>(1))
        });
        cancellation.cancel();
        assert!(waiter.join().unwrap().unwrap_err().is_cancelled());
    });
}
