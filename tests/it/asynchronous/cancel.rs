//! A dropped future leaves no lock, no waiter and no thread behind.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use record_store::asynchronous::AsyncRecordStore;
use record_store::{
    Acquired, Cancellation, Claim, Error, Json, Key, LockOptions, MemoryRecordStore, RawRecord, ReadOptions,
    RecordStore, Result, WaitOptions, WriteOptions,
};
use tempfile::tempdir;
use tokio::time::{sleep, timeout};

use super::{Store, long_timeout, multi_threaded, open, single_threaded, wait_until, wait_until_queued};
use crate::compute::{stale_options, stale_write};
use crate::support::{PATIENCE, as_named, millis, names_in, storm};

/// Polls the future at most this many times, then drops it, whatever its state is.
pub(super) async fn poll_then_drop<T>(times: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    let polls = poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    // The last poll may have reached an await that never completes.
    timeout(millis(15), polls).await.unwrap_or(None)
}

/// Checks that the same holder can acquire the lock, and that no late release takes it from the guard.
async fn assert_lock_is_usable(store: &Store, key: &str) {
    let guard = store.lock(key, long_timeout()).await.unwrap();
    // A late release on behalf of the dropped future would happen now.
    sleep(millis(2)).await;
    guard.write(&1).await.unwrap();
    guard.release().await.unwrap();
    assert!(!store.is_locked(key).await.unwrap());
}

/// Drops a future after each possible number of polls, until one future completes.
async fn drop_after_each_poll<T, F: Future<Output = T>>(store: &Store, make: impl Fn() -> F) {
    for times in 0..40 {
        for pause in [Duration::ZERO, Duration::from_micros(300)] {
            let done = poll_then_drop(times, make()).await.is_some();
            sleep(pause).await;
            assert_lock_is_usable(store, "k").await;
            if done {
                return;
            }
        }
    }
}

#[test]
fn every_operation_can_be_dropped_at_every_await() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let options = LockOptions::new;
            drop_after_each_poll(&store, || store.lock("k", options())).await;
            drop_after_each_poll(&store, || store.try_lock("k", options())).await;
            drop_after_each_poll(&store, || store.lock_all(["a", "k", "z"], options())).await;
            drop_after_each_poll(&store, async || store.lock("k", options()).await?.release().await).await;
            drop_after_each_poll(&store, || {
                store.update("k", options(), async |old: Option<u8>| old_or_one(old))
            })
            .await;
            drop_after_each_poll(&store, async || {
                store.remove("k").await?;
                store.get_or_compute("k", options(), async || old_or_one(None)).await
            })
            .await;
            drop_after_each_poll(&store, async || {
                store.write_with("k", &0, stale_write()).await?;
                store.get_or_compute("k", stale_options(), async || old_or_one(None)).await
            })
            .await;
            drop_after_each_poll(&store, async || {
                let guard = store.lock("k", options().hold_timeout(PATIENCE)).await?;
                guard.keep_alive(|_| ()).await?;
                guard.renew().await
            })
            .await;
            drop_after_each_poll(&store, || store.write("k", &2)).await;
            drop_after_each_poll(&store, || store.read::<u8>("k")).await;
        });
    }
    wait_until_no_lock_file(&single_threaded(), &store);
}

#[expect(clippy::unnecessary_wraps, reason = "a computation may fail")]
fn old_or_one(old: Option<u8>) -> Result<u8> {
    Ok(old.unwrap_or(1))
}

fn wait_until_no_lock_file(runtime: &tokio::runtime::Runtime, store: &Store) {
    let dir = store.inner().path();
    let no_lock_file = async || !names_in(dir).iter().any(|name| name.contains(".lock"));
    runtime.block_on(wait_until("all lock files to be removed", no_lock_file));
}

#[test]
fn a_dropped_wait_leaves_no_lock_and_no_waiter() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            for times in 0..8 {
                let guard = store.lock("k", as_named("other")).await.unwrap();
                assert!(poll_then_drop(times, store.lock("k", LockOptions::new())).await.is_none());
                assert!(
                    poll_then_drop(times, store.lock_all(["a", "k"], LockOptions::new())).await.is_none()
                );
                let start = Instant::now();
                guard.release().await.unwrap();
                // No abandoned waiter may be queued: it would come before this one.
                let next = store.lock("k", as_named("next").acquire_timeout(PATIENCE)).await.unwrap();
                assert!(start.elapsed() < PATIENCE / 2);
                next.release().await.unwrap();
                assert_lock_is_usable(&store, "k").await;
                assert_lock_is_usable(&store, "a").await;
            }
        });
    }
    wait_until_no_lock_file(&single_threaded(), &store);
}

#[test]
fn tasks_aborted_at_random_moments_do_not_disturb_others() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let rounds = storm(50);
    multi_threaded().block_on(async {
        let steady: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..rounds {
                        let guard = store.lock("k", long_timeout()).await.unwrap();
                        let count = guard.read::<u64>().await.unwrap().map_or(0, |record| record.result);
                        guard.write(&(count + 1)).await.unwrap();
                        guard.release().await.unwrap();
                    }
                })
            })
            .collect();
        let mut random = 0x2545_F491_4F6C_DD1D_u64;
        while steady.iter().any(|task| !task.is_finished()) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let aborted = tokio::spawn({
                let store = store.clone();
                async move { drop(store.lock("k", LockOptions::new()).await) }
            });
            sleep(Duration::from_micros(random % 3_000)).await;
            aborted.abort();
            assert!(!aborted.await.is_err_and(|error| error.is_panic()));
        }
        for task in steady {
            task.await.unwrap();
        }
        // The call of the last aborted task may be about to end.
        wait_until("the lock to be free and to have no waiter", async || {
            let guard = store.try_lock("k", as_named("next")).await.unwrap();
            let is_free = guard.is_some();
            if let Some(guard) = guard {
                guard.release().await.unwrap();
            }
            is_free
        })
        .await;
        assert!(!store.is_locked("k").await.unwrap());
        assert_eq!(store.read::<u64>("k").await.unwrap().unwrap().result, rounds * 4);
    });
    wait_until_no_lock_file(&single_threaded(), &store);
}

/// Counts in the record `k`, and checks that no other task does so at the same time.
async fn count(store: Store, rounds: u64, inside: Arc<AtomicUsize>) {
    for round in 0..rounds {
        // Sometimes the lock is an inner one.
        let outer = match round % 3 {
            0 => Some(store.lock_all(["a", "k"], long_timeout()).await.unwrap()),
            _ => None,
        };
        let guard = store.lock("k", long_timeout()).await.unwrap();
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
        let count = guard.read::<u64>().await.unwrap().map_or(0, |record| record.result);
        guard.write(&(count + 1)).await.unwrap();
        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
        // Otherwise the guards are dropped.
        if round % 2 == 0 {
            guard.release().await.unwrap();
            if let Some(outer) = outer {
                outer.release().await.unwrap();
            }
        }
    }
}

#[test]
fn aborted_acquisitions_of_every_kind_do_not_disturb_others() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let rounds = storm(20);
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let inside = Arc::default();
            let steady: Vec<_> =
                (0..4).map(|_| tokio::spawn(count(store.clone(), rounds, Arc::clone(&inside)))).collect();
            let mut random = 0x2545_F491_4F6C_DD1D_u64;
            while steady.iter().any(|task| !task.is_finished()) {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let store = store.clone();
                let aborted = tokio::spawn(async move {
                    match random % 5 {
                        0 => drop(store.lock("k", LockOptions::new()).await),
                        1 => {
                            let lease = LockOptions::new().hold_timeout(PATIENCE);
                            drop(store.lock_all(["a", "k", "z"], lease).await);
                        }
                        2 => {
                            let fails = async || Err::<u8, _>(Error::other("on purpose"));
                            drop(store.get_or_compute("computed", LockOptions::new(), fails).await);
                        }
                        3 => {
                            let fails = async || Err::<u8, _>(Error::other("on purpose"));
                            drop(store.write_with("stale", &0, stale_write()).await);
                            drop(store.get_or_compute("stale", stale_options(), fails).await);
                        }
                        // Tasks with one holder do not exclude each other.
                        _ => {
                            let guard = store.lock("shared", as_named("shared")).await.unwrap();
                            let _ = guard.write(&1).await;
                        }
                    }
                });
                sleep(Duration::from_micros(random % 3_000)).await;
                aborted.abort();
                assert!(!aborted.await.is_err_and(|error| error.is_panic()));
            }
            for task in steady {
                task.await.unwrap();
            }
            wait_until("all locks to be free", async || store.locks().await.unwrap().next().await.is_none())
                .await;
            assert_eq!(store.read::<u64>("k").await.unwrap().unwrap().result, rounds * 4);
            store.remove("k").await.unwrap();
        });
    }
    wait_until_no_lock_file(&single_threaded(), &store);
}

#[test]
fn waiters_behind_an_aborted_task_keep_their_order() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        for aborted in 0..3 {
            let guard = store.lock("k", LockOptions::new()).await.unwrap();
            let (sender, mut acquired) = tokio::sync::mpsc::unbounded_channel();
            let mut tasks = Vec::new();
            for number in 0..4 {
                let (store, sender) = (store.clone(), sender.clone());
                tasks.push(tokio::spawn(async move {
                    let guard = store.lock("k", long_timeout()).await.unwrap();
                    sender.send(number).unwrap();
                    guard.release().await.unwrap();
                }));
            }
            wait_until_queued(&store).await;
            tasks[aborted].abort();
            guard.release().await.unwrap();
            drop(sender);
            let mut order = Vec::new();
            while let Some(number) = acquired.recv().await {
                order.push(number);
            }
            let expected: Vec<_> = (0..4).filter(|number| *number != aborted).collect();
            assert_eq!(order, expected);
        }
    });
}

#[test]
fn a_cancellation_ends_a_wait_with_and_without_a_thread() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for is_first in [true, false] {
        single_threaded().block_on(async {
            let guard = store.lock("k", as_named("other")).await.unwrap();
            // The first waiter for a lock has a thread, the others are queued behind it.
            let first = (!is_first).then(|| {
                let store = store.clone();
                tokio::spawn(async move { store.lock("k", LockOptions::new()).await.map(drop) })
            });
            let shutdown = Cancellation::new();
            let options = || LockOptions::new().cancellation(&shutdown);
            let mut waiters = tokio::task::JoinSet::new();
            for _ in 0..5 {
                let (store, options) = (store.clone(), options());
                waiters.spawn(async move { store.lock("k", options).await.map(drop) });
            }
            let (waits, lock) = (store.clone(), options());
            waiters.spawn(async move {
                waits.get_or_compute("k", lock, async || old_or_one(None)).await.map(drop)
            });
            let (waits, lock) = (store.clone(), options());
            waiters.spawn(async move { waits.lock_all(["a", "k"], lock).await.map(drop) });
            let (waits, read) = (store.clone(), ReadOptions::new().cancellation(&shutdown));
            waiters.spawn(async move { waits.read_with::<u8>("k", read).await.map(drop) });
            let (waits, wait) = (store.clone(), WaitOptions::from(&shutdown));
            waiters.spawn(async move { waits.wait_for_lock("k", wait).await.map(drop) });
            let (waits, wait) = (store.clone(), WaitOptions::from(&shutdown));
            waiters.spawn(async move { waits.wait_for_record("k", wait).await.map(drop) });
            sleep(millis(100)).await;
            assert!(waiters.try_join_next().is_none());
            let start = Instant::now();
            shutdown.cancel();
            while let Some(outcome) = timeout(PATIENCE / 2, waiters.join_next()).await.expect("the waits end")
            {
                assert!(outcome.unwrap().unwrap_err().is_cancelled());
            }
            assert!(start.elapsed() < PATIENCE / 2);
            assert!(store.lock("free", options()).await.unwrap_err().is_cancelled());
            assert!(first.as_ref().is_none_or(|first| !first.is_finished()), "it is not cancelled");
            guard.release().await.unwrap();
            if let Some(first) = first {
                first.await.unwrap().unwrap();
            }
            assert_lock_is_usable(&store, "k").await;
            assert_lock_is_usable(&store, "a").await;
            store.remove("k").await.unwrap();
        });
    }
}

/// A store that counts its calls in progress, and sometimes returns a lock late.
#[derive(Clone, Debug, Default)]
struct Counting {
    store: MemoryRecordStore,
    in_progress: Arc<AtomicUsize>,
    /// Whether a wait for a lock goes on after its cancellation.
    ignores_cancellation: bool,
    /// While this is set, no acquisition returns.
    returns_late: Arc<AtomicBool>,
}

impl Counting {
    fn counted<T>(&self, work: impl FnOnce(&MemoryRecordStore) -> T) -> T {
        self.in_progress.fetch_add(1, Ordering::SeqCst);
        let outcome = work(&self.store);
        self.in_progress.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    fn in_progress(&self) -> usize {
        self.in_progress.load(Ordering::SeqCst)
    }
}

impl RecordStore for Counting {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.counted(|store| store.read_raw(key, options))
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.store.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.store.exists_raw(key)
    }
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let options =
            if self.ignores_cancellation { options.cancellation(&Cancellation::new()) } else { options };
        let acquired = self.counted(|store| store.acquire_lock_raw(key, options));
        std::thread::sleep(Duration::from_millis(1));
        while self.returns_late.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_micros(100));
        }
        acquired
    }
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.store.release_lock_raw(key, claim, options)
    }
    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        self.counted(|store| store.wait_for_lock_raw(key, options))
    }
}

#[test]
fn a_dropped_wait_gives_up_its_thread() {
    let counting = Counting::default();
    let store = AsyncRecordStore::new(counting.clone());
    single_threaded().block_on(async {
        let guard = store.lock("k", as_named("other")).await.unwrap();
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let waits = store.clone();
            waiters.spawn(async move { waits.lock("k", LockOptions::new()).await.map(drop) });
            let waits = store.clone();
            waiters.spawn(async move { waits.read::<u8>("k").await.map(drop) });
            let waits = store.clone();
            waiters.spawn(async move { waits.wait_for_lock("k", None).await.map(drop) });
        }
        wait_until("9 calls to be in progress", async || counting.in_progress() == 9).await;
        for _ in 0..80 {
            let waits = store.clone();
            waiters.spawn(async move { waits.read::<u8>("k").await.map(drop) });
        }
        sleep(millis(100)).await;
        assert!(counting.in_progress() <= 65, "more than 64 threads, and that of the pool");
        waiters.shutdown().await;
        let start = Instant::now();
        wait_until("all calls to end", async || counting.in_progress() == 0).await;
        assert!(start.elapsed() < PATIENCE / 2);
        guard.release().await.unwrap();
    });
}

#[test]
fn a_lock_acquired_too_late_is_released_before_its_holder_acquires_another() {
    let counting = Counting { ignores_cancellation: true, ..Counting::default() };
    let store = AsyncRecordStore::new(counting.clone());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let is_usable = async || {
                let guard = store.lock("k", LockOptions::new()).await.unwrap();
                sleep(millis(3)).await;
                guard.write(&1).await.unwrap_or_else(|error: Error| panic!("the lock was released: {error}"));
                guard.release().await.unwrap();
            };
            for _ in 0..storm(50) {
                // The future is dropped when the lock is acquired but the thread has not returned it yet.
                counting.returns_late.store(true, Ordering::SeqCst);
                assert!(poll_then_drop(1, store.lock("k", LockOptions::new())).await.is_none());
                let returns_late = Arc::clone(&counting.returns_late);
                let returns = std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(1));
                    returns_late.store(false, Ordering::SeqCst);
                });
                is_usable().await;
                returns.join().unwrap();
            }
            for _ in 0..storm(5) {
                // The call of the dropped future goes on, and acquires the lock when it becomes free.
                let other = store.lock("k", as_named("other")).await.unwrap();
                {
                    let mut waits = pin!(store.lock("k", LockOptions::new()));
                    while counting.in_progress() == 0 {
                        assert!(timeout(millis(15), waits.as_mut()).await.is_err());
                    }
                }
                other.release().await.unwrap();
                is_usable().await;
            }
        });
    }
}
