//! Cancellation: a cancelled wait ends without the lock, and the wait queue continues without it. The build without
//! re-checks proves that a cancellation wakes those who wait.

use std::thread;
use std::time::Duration;

use record_store::{
    BreakOptions, Cancellation, Claim, Error, ErrorKind, FileSystemOptions, IsolationLevel, Key, LockOptions,
    LockToken, MemoryRecordStore, OpenMode, ReadOptions, RecordStore, RecordStoreExt, RecordVersion,
    RemoveOptions, WaitOptions, WriteOptions,
};
use tempfile::tempdir;

use crate::support::children::{Sleeping, spawn_until_asleep};
use crate::support::{as_named, millis, named, names_in, open, storm};

type Store = std::sync::Arc<dyn RecordStore>;

fn with_each_store(check: impl Fn(&Store)) {
    let dir = tempdir().unwrap();
    let store: Store = std::sync::Arc::new(open(dir.path()));
    check(&store);
    assert_eq!(names_in(dir.path()), [".store"], "no lock file is left");
    let store: Store = std::sync::Arc::new(MemoryRecordStore::new());
    check(&store);
}

/// Starts a thread that waits for the lock of `k` and releases it.
fn start_waiter(store: &Store, name: &str, cancellation: &Cancellation) -> Sleeping<Result<(), Error>> {
    let (store, options) = (store.clone(), as_named(name).cancellation(cancellation));
    spawn_until_asleep(move || store.lock("k", options).map(drop))
}

#[test]
fn a_cancelled_waiter_wakes_without_the_lock() {
    with_each_store(|store| {
        let _guard = store.lock("k", LockOptions::new()).unwrap();
        for _ in 0..7 {
            let cancellation = Cancellation::new();
            let waiter = start_waiter(store, "waiter", &cancellation);
            cancellation.cancel();
            let error = waiter.join().unwrap_err();
            assert_eq!((error.kind(), error.operation()), (ErrorKind::Cancelled, "acquire_lock"));
            assert!(error.is_cancelled() && error.key().unwrap().as_str() == "k");
        }
        assert!(!store.lock_info("k").unwrap().unwrap().is_held_by(&crate::support::named("waiter")));
    });
}

/// An operation, and a call of it that waits while `k` is locked and has no record.
type Wait = (&'static str, fn(&dyn RecordStore, &Cancellation) -> Result<(), Error>);

/// The waits that need no lock: they also work in a store that is opened read-only.
const WAITS_WITHOUT_A_LOCK: [Wait; 3] = [
    ("read", |store, cancellation| {
        store.read_with::<u8>("k", ReadOptions::new().cancellation(cancellation)).map(drop)
    }),
    ("wait_for_lock", |store, cancellation| store.wait_for_lock("k", cancellation).map(drop)),
    ("watch", |store, cancellation| store.watch("k")?.next(cancellation).map(drop)),
];

/// Asserts that the wait ends with `Cancelled`.
fn assert_wakes(store: &Store, (operation, wait): Wait) {
    for _ in 0..7 {
        let cancellation = Cancellation::new();
        let waiter = spawn_until_asleep({
            let (store, cancellation) = (store.clone(), cancellation.clone());
            move || wait(&*store, &cancellation)
        });
        cancellation.cancel();
        let error = waiter.join().unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Cancelled, operation));
        assert_eq!(error.key().unwrap().as_str(), "k");
    }
}

#[test]
fn a_cancelled_reader_or_watcher_wakes() {
    with_each_store(|store| {
        let _other = store.lock("k", as_named("other")).unwrap();
        for wait in WAITS_WITHOUT_A_LOCK {
            assert_wakes(store, wait);
        }
    });
}

#[test]
fn a_cancelled_reader_or_watcher_of_a_read_only_store_wakes() {
    let dir = tempdir().unwrap();
    let writable = open(dir.path());
    let _other = writable.lock("k", as_named("other")).unwrap();
    let read_only = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
    let store: Store = std::sync::Arc::new(read_only);
    for wait in WAITS_WITHOUT_A_LOCK {
        assert_wakes(&store, wait);
    }
}

#[test]
fn a_cancelled_reader_or_watcher_does_not_affect_the_others() {
    with_each_store(|store| {
        let guard = store.lock("k", as_named("other")).unwrap();
        let (cancellation, never) = (Cancellation::new(), Cancellation::new());
        let start_all = |cancellation: &Cancellation| {
            WAITS_WITHOUT_A_LOCK.map(|(_, wait)| {
                let (store, cancellation) = (store.clone(), cancellation.clone());
                spawn_until_asleep(move || wait(&*store, &cancellation))
            })
        };
        let (cancelled, others) = (start_all(&cancellation), start_all(&never));
        cancellation.cancel();
        for waiter in cancelled {
            assert!(waiter.join().unwrap_err().is_cancelled());
        }
        thread::sleep(millis(20));
        assert!(others.iter().all(|waiter| !waiter.is_finished()));
        guard.write(&1).unwrap();
        guard.release().unwrap();
        for waiter in others {
            waiter.join().unwrap();
        }
        store.remove("k").unwrap();
    });
}

#[test]
fn a_transaction_that_waits_for_its_lock_can_be_cancelled() {
    with_each_store(|store| {
        let _guard = store.lock("k", LockOptions::new()).unwrap();
        let cancellation = Cancellation::new();
        let options = as_named("waiter").cancellation(&cancellation);
        let waiter = spawn_until_asleep({
            let store = store.clone();
            move || {
                let pending = store.transaction("k")?.isolation_level(IsolationLevel::Serializable);
                pending.lock_options(options).begin().map(drop)
            }
        });
        cancellation.cancel();
        let error: Error = waiter.join().unwrap_err();
        assert!(error.is_cancelled(), "{error}");
    });
}

#[test]
fn an_acquire_that_is_already_cancelled_does_not_get_a_free_lock() {
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

/// An operation, and a call of it with a claim. None of them has to wait, but for the lock of another holder.
type Call = (&'static str, fn(&dyn RecordStore, &Key, &Claim, &WaitOptions) -> Result<(), Error>);

fn write_within(claim: &Claim, wait: &WaitOptions) -> WriteOptions {
    WriteOptions::new().claim(claim.clone()).cancellation(wait.get_cancellation().unwrap())
}

fn read_within(wait: &WaitOptions) -> ReadOptions {
    ReadOptions::new().cancellation(wait.get_cancellation().unwrap())
}

/// All operations that can be cancelled.
const CALLS: [Call; 15] = [
    ("read", |store, key, claim, wait| {
        store.read_with::<u8>(key, read_within(wait).claim(claim.clone())).map(drop)
    }),
    ("read", |store, key, _, wait| store.read_with::<u8>(key, read_within(wait).ignore_lock()).map(drop)),
    ("write", |store, key, claim, wait| store.write_with(key, &2, write_within(claim, wait))),
    // With the value that is there, and with another one: without a cancellation the second call returns `false`.
    ("compare_and_swap", |store, key, claim, wait| {
        store.compare_and_swap(key, Some(&1), &2, write_within(claim, wait)).map(drop)
    }),
    ("compare_and_swap", |store, key, claim, wait| {
        store.compare_and_swap(key, Some(&7), &2, write_within(claim, wait)).map(drop)
    }),
    ("compare_and_swap", |store, key, claim, wait| {
        store.write_if_absent(key, &2, write_within(claim, wait)).map(drop)
    }),
    ("remove", |store, key, claim, wait| {
        let options = RemoveOptions::new().claim(claim.clone());
        store.remove_with(key, options.cancellation(wait.get_cancellation().unwrap())).map(drop)
    }),
    ("acquire_lock", |store, key, _, wait| {
        let options = as_named("me").hold_timeout(LEASE);
        store.acquire_lock(key, options.cancellation(wait.get_cancellation().unwrap())).map(drop)
    }),
    ("renew", |store, key, claim, wait| store.renew_raw(key, claim, Some(LEASE), wait.clone())),
    ("release_lock", |store, key, claim, wait| store.release_lock_raw(key, claim, wait.clone())),
    ("break_lock", |store, key, _, wait| {
        store.break_lock_raw(key, BreakOptions::new().wait(wait.clone())).map(drop)
    }),
    ("break_lock", |store, key, claim, wait| {
        let Claim::Token(token) = claim else {
            return store.break_lock_raw(key, BreakOptions::new().wait(wait.clone())).map(drop);
        };
        store.break_lock_raw(key, BreakOptions::new().token(*token).wait(wait.clone())).map(drop)
    }),
    ("wait_for_lock", |store, key, _, wait| store.wait_for_lock(key, wait.clone()).map(drop)),
    ("watch", |store, key, _, wait| store.watch(key)?.next(wait.clone()).map(drop)),
    // The version of no record.
    ("watch", |store, key, _, wait| {
        store.wait_for_change_raw(key, RecordVersion::new(7), wait.clone()).map(drop)
    }),
];

const LEASE: Duration = Duration::from_hours(1);

/// The record, and the lock: its token, and whether it has a lease.
type State = (Option<(u8, RecordVersion)>, Option<(LockToken, bool)>);

fn state(store: &dyn RecordStore, key: &Key) -> State {
    let record = store.read_with::<u8>(key, ReadOptions::new().ignore_lock()).unwrap();
    let lock = store.lock_info(key).unwrap();
    (
        record.map(|record| (record.result, record.version)),
        lock.map(|lock| (lock.token(), lock.expires_at().is_some())),
    )
}

#[test]
fn a_call_that_is_already_cancelled_changes_nothing() {
    with_each_store(|store| {
        for key in ["mine", "theirs", "free"] {
            store.write(key, &1).unwrap();
        }
        let mine = store.acquire_lock("mine", as_named("me")).unwrap();
        let theirs = store.acquire_lock("theirs", as_named("another")).unwrap();
        let cancellation = Cancellation::new();
        cancellation.cancel();
        for timeout in [None, Some(Duration::ZERO), Some(crate::support::PATIENCE)] {
            let wait = WaitOptions::new().timeout(timeout).cancellation(&cancellation);
            for claim in [Claim::from(named("me")), Claim::from(mine)] {
                for key in ["mine", "theirs", "free", "absent"].map(|key| Key::new(key).unwrap()) {
                    let before = state(&**store, &key);
                    for (number, (operation, call)) in CALLS.iter().enumerate() {
                        let what = format!("call {number}, {operation} of {key} by {claim:?}, {timeout:?}");
                        let error = call(&**store, &key, &claim, &wait).expect_err(&what);
                        assert_eq!(
                            (error.kind(), error.operation(), error.key()),
                            (ErrorKind::Cancelled, *operation, Some(&key)),
                            "{what}: {error:?}"
                        );
                        assert!(!error.is_outcome_unknown(), "{what}");
                        assert_eq!(state(&**store, &key), before, "{what}");
                    }
                }
            }
        }
        for (key, token) in [("mine", mine), ("theirs", theirs)] {
            store.release_lock(key, token).unwrap();
            store.remove(key).unwrap();
        }
        store.remove("free").unwrap();
    });
}

#[test]
fn one_cancellation_ends_all_its_waits_and_no_others() {
    with_each_store(|store| {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let cancellation = Cancellation::new();
        let cancelled: Vec<_> =
            (0..8).map(|name| start_waiter(store, &format!("c{name}"), &cancellation)).collect();
        let other = start_waiter(store, "other", &Cancellation::new());
        cancellation.cancel();
        for waiter in cancelled {
            assert!(waiter.join().unwrap_err().is_cancelled());
        }
        assert!(!other.is_finished());
        guard.release().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn a_lock_released_while_the_first_waiter_is_cancelled_goes_to_the_second() {
    with_each_store(|store| {
        for round in 0..storm(20) {
            let guard = store.lock("k", LockOptions::new()).unwrap();
            let cancellation = Cancellation::new();
            let first = start_waiter(store, "first", &cancellation);
            let second = start_waiter(store, "second", &Cancellation::new());
            cancellation.cancel();
            // The release notifies the first waiter while it leaves the queue, or just after.
            thread::sleep(Duration::from_micros(round % 4 * 30));
            guard.release().unwrap();
            second.join().unwrap();
            match first.join() {
                Err(error) => assert!(error.is_cancelled(), "{error}"),
                Ok(()) if cfg!(record_store_no_recheck) => panic!("it got the lock"),
                // It was looking again when it was cancelled.
                Ok(()) => {}
            }
            assert!(!store.is_locked("k").unwrap());
        }
    });
}

#[test]
fn a_call_that_waits_for_the_latch_of_a_stopped_process_can_be_cancelled() {
    let dir = tempdir().unwrap();
    let store: Store = std::sync::Arc::new(open(dir.path()));
    store.lock("k", LockOptions::new()).unwrap().release().unwrap();
    // This stands in for a process that is stopped while it holds the latch.
    let latch = format!(".store/latches/{:02x}", crc32fast::hash(b"k") & 0xff);
    let latch = std::fs::File::open(dir.path().join(latch)).unwrap();
    rustix::fs::flock(&latch, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let cancellation = Cancellation::new();
    let waiter = start_waiter(&store, "waiter", &cancellation);
    // The read must enter the latch to confirm that the record does not exist.
    let reader = spawn_until_asleep({
        let (store, options) = (store.clone(), ReadOptions::new().cancellation(&cancellation));
        move || store.read_with::<u8>("k", options)
    });
    cancellation.cancel();
    assert!(waiter.join().unwrap_err().is_cancelled());
    assert!(reader.join().unwrap_err().is_cancelled());
}

#[test]
fn a_waiter_for_another_computation_can_be_cancelled() {
    with_each_store(|store| {
        let _guard = store.lock("k", LockOptions::new()).unwrap();
        let cancellation = Cancellation::new();
        let options = as_named("waiter").cancellation(&cancellation);
        let waiter = spawn_until_asleep({
            let store = store.clone();
            move || store.get_or_compute("k", options, || Ok(1_u32))
        });
        cancellation.cancel();
        assert!(waiter.join().unwrap_err().is_cancelled());
    });
}
