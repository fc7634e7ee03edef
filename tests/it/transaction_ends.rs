//! How long the end of a transaction waits for a process that is stopped in the middle of an operation on its key.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use record_store::{
    Cancellation, FileSystemRecordStore, IsolationLevel, LockOptions, MemoryRecordStore, ReadOptions,
    RecordStoreExt, Result, Transaction, WaitOptions,
};

use crate::support::{PATIENCE, as_named, latch_of, millis, open, tempdir};

/// Holds the latch of the key, as a process that is stopped does.
fn stop_in_latch(dir: &Path, key: &str) -> File {
    let latch = File::open(dir.join(latch_of(key))).unwrap();
    latch.lock().unwrap();
    latch
}

fn begin<'s>(
    store: &'s FileSystemRecordStore,
    key: &str,
    end_wait: impl Into<WaitOptions>,
    hooks: &Arc<Mutex<u32>>,
) -> Transaction<'s, 's> {
    let pending = store.transaction(key).unwrap().isolation_level(IsolationLevel::Serializable);
    let pending = pending.lock_options(as_named("me")).end_wait(end_wait);
    let mut transaction = pending.begin().unwrap();
    let hooks = Arc::clone(hooks);
    transaction.on_rollback(move |_| {
        *hooks.lock().unwrap() += 1;
        Ok(())
    });
    transaction.stage(&1).unwrap();
    transaction
}

/// Checks that the lock is still there, and that the next guard of the holder makes up for the release.
fn assert_next_guard_releases(store: &FileSystemRecordStore, key: &str) {
    assert!(store.is_locked(key).unwrap());
    store.lock(key, as_named("me")).unwrap().release().unwrap();
    assert!(!store.is_locked(key).unwrap());
}

type End = fn(Transaction<'_, '_>) -> Result<()>;

#[test]
fn an_end_returns_by_its_timeout() {
    let (dir, timeout, hooks) = (tempdir().unwrap(), millis(50), Arc::default());
    let store = open(dir.path());
    let ends: [(End, bool); 3] = [
        (|transaction| transaction.commit(), true),
        (|transaction| transaction.rollback(), false),
        (|transaction| transaction.finish().map(drop), true),
    ];
    for (number, (end, fails)) in (1..).zip(ends) {
        let transaction = begin(&store, "k", timeout, &hooks);
        let stopped = stop_in_latch(dir.path(), "k");
        let start = Instant::now();
        let ended = end(transaction);
        let elapsed = start.elapsed();
        assert!(elapsed >= timeout && elapsed < PATIENCE / 2, "{elapsed:?}");
        assert_eq!(ended.is_err(), fails);
        if let Err(error) = ended {
            assert!(error.is_timeout() && error.unstored().is_some(), "{error}");
        }
        assert_eq!(*hooks.lock().unwrap(), number, "the rollback hook did not run once");
        drop(stopped);
        assert_next_guard_releases(&store, "k");
        assert!(!store.exists("k").unwrap());
    }
}

/// All of them have one latch, and each waits for it.
#[test]
fn the_end_of_a_family_waits_no_longer_than_that_of_one() {
    let (dir, timeout, hooks) = (tempdir().unwrap(), millis(300), Arc::default());
    let store = open(dir.path());
    let latch = latch_of("0");
    let keys: Vec<_> =
        (0..).map(|number: u32| number.to_string()).filter(|key| latch_of(key) == latch).take(8).collect();
    for is_dropped in [false, true] {
        let mut parent = begin(&store, "0", timeout, &hooks);
        for key in keys.iter().filter(|key| *key != "0") {
            let child = parent.child(key.as_str()).unwrap();
            child.run(|child| child.stage(&1)).unwrap();
        }
        let stopped = stop_in_latch(dir.path(), "0");
        let start = Instant::now();
        if is_dropped {
            drop(parent);
            // A drop waits for a second, whatever the options say.
            assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
        } else {
            parent.rollback().unwrap();
            assert!(start.elapsed() >= timeout, "{:?}", start.elapsed());
        }
        // Eight seconds, if each waited by itself; and each makes one more attempt, of 40 ms.
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        drop(stopped);
        for key in &keys {
            assert_next_guard_releases(&store, key);
        }
    }
}

#[test]
fn a_cancelled_end_rolls_back_and_releases_the_lock() {
    let (dir, hooks) = (tempdir().unwrap(), Arc::default());
    let store = open(dir.path());
    let cancellation = Cancellation::new();
    let transaction = begin(&store, "k", &cancellation, &hooks);
    cancellation.cancel();
    assert!(transaction.commit().unwrap_err().is_cancelled());
    assert_eq!(*hooks.lock().unwrap(), 1);
    assert!(!store.exists("k").unwrap() && !store.is_locked("k").unwrap());

    // In the middle of its wait.
    let cancellation = Cancellation::new();
    let transaction = begin(&store, "k", &cancellation, &hooks);
    let _stopped = stop_in_latch(dir.path(), "k");
    std::thread::scope(|scope| {
        let start = Instant::now();
        let commit = scope.spawn(|| transaction.commit());
        std::thread::sleep(millis(50));
        assert!(!commit.is_finished());
        cancellation.cancel();
        assert!(commit.join().unwrap().unwrap_err().is_cancelled());
        assert!(start.elapsed() < PATIENCE / 2);
    });
    assert_eq!(*hooks.lock().unwrap(), 2);
}

#[test]
fn a_child_ends_within_the_time_of_its_parent_and_a_closure_within_its_own() {
    let (dir, timeout, hooks) = (tempdir().unwrap(), millis(50), Arc::default());
    let store = open(dir.path());
    let stop = || stop_in_latch(dir.path(), "child");
    {
        let mut parent = begin(&store, "parent", timeout, &hooks);
        parent.child("child").unwrap().end_wait(PATIENCE).run(|child| child.stage(&1)).unwrap();
        let _stopped = stop();
        assert!(parent.commit().unwrap_err().is_timeout());
    }
    let pending = store.transaction("child").unwrap().end_wait(timeout);
    let mut stopped = None;
    let run = pending.run(|transaction| {
        stopped = Some(stop());
        transaction.stage(&1)
    });
    assert!(run.unwrap_err().is_timeout());
    drop(stopped);
    assert!(!store.exists("child").unwrap());
}

#[test]
fn a_read_in_a_transaction_returns_by_its_timeout() {
    let store = MemoryRecordStore::new();
    let transaction = store.transaction("k").unwrap().begin().unwrap();
    let _guard = store.lock("k", as_named("other")).unwrap();
    let options = ReadOptions::new().timeout(millis(20));
    assert!(transaction.read_with::<u8>(options).unwrap_err().is_timeout());
    let mine = store.transaction("mine").unwrap().isolation_level(IsolationLevel::Serializable);
    let mine = mine.lock_options(LockOptions::new()).begin().unwrap();
    assert!(mine.read_with::<u8>(ReadOptions::new().timeout(millis(20))).unwrap().is_none());
}
