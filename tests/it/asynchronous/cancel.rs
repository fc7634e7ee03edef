//! Futures that are dropped: no lock stays, no place in the line, and no thread.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use record_store::tokio::AsyncRecordStore;
use record_store::{
    Acquired, Cancellation, Claim, Error, Holder, Json, Key, LockOptions, MemoryRecordStore, RecordStore,
    Result, WriteOptions,
};
use tempfile::tempdir;
use tokio::time::{sleep, timeout};

use super::{Store, narrow, open, patient, until, until_in_line, wide};
use crate::support::{PATIENCE, as_named, millis, names_in, storm};

/// Polls so many times, then drops the future, whatever it is in the middle of.
async fn polled<T>(times: u32, future: impl Future<Output = T>) -> Option<T> {
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
    // The last await may be one that takes for ever.
    timeout(millis(15), polls).await.unwrap_or(None)
}

/// The same holder gets a lock that is really its own.
async fn gets_a_lock_that_stays(store: &Store, key: &str) {
    let guard = store.lock(key, patient()).await.unwrap();
    // What the dropped future left behind would go now.
    sleep(millis(2)).await;
    guard.write(&1).await.unwrap();
    guard.release().await.unwrap();
    assert!(!store.is_locked(key).await.unwrap());
}

/// Drops a future after every number of polls, until it is once done.
async fn dropped_everywhere<T, F: Future<Output = T>>(store: &Store, make: impl Fn() -> F) {
    for times in 0..40 {
        for pause in [Duration::ZERO, Duration::from_micros(300)] {
            let done = polled(times, make()).await.is_some();
            sleep(pause).await;
            gets_a_lock_that_stays(store, "k").await;
            if done {
                return;
            }
        }
    }
}

#[test]
fn every_await_of_every_operation_is_safe_to_be_the_last() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [narrow(), wide()] {
        runtime.block_on(async {
            let options = LockOptions::new;
            dropped_everywhere(&store, || store.lock("k", options())).await;
            dropped_everywhere(&store, || store.try_lock("k", options())).await;
            dropped_everywhere(&store, || store.lock_all(["a", "k", "z"], options())).await;
            dropped_everywhere(&store, async || store.lock("k", options()).await?.release().await).await;
            dropped_everywhere(&store, || {
                store.update("k", options(), async |old: Option<u8>| old_or_one(old))
            })
            .await;
            dropped_everywhere(&store, async || {
                store.remove("k").await?;
                store.get_or_compute("k", options(), async || old_or_one(None)).await
            })
            .await;
            dropped_everywhere(&store, async || {
                let mut guard = store.lock("k", options().hold_timeout(PATIENCE)).await?;
                guard.keep_alive(|_| ()).await?;
                guard.renew().await
            })
            .await;
            dropped_everywhere(&store, || store.write("k", &2)).await;
            dropped_everywhere(&store, || store.read::<u8>("k")).await;
        });
    }
    until_no_lock_file(&narrow(), &store);
}

#[expect(clippy::unnecessary_wraps, reason = "a computation may fail")]
fn old_or_one(old: Option<u8>) -> Result<u8> {
    Ok(old.unwrap_or(1))
}

fn until_no_lock_file(runtime: &tokio::runtime::Runtime, store: &Store) {
    let dir = store.inner().path();
    let no_lock = async || !names_in(dir).iter().any(|name| name.contains(".lock"));
    runtime.block_on(until("no lock file stays", no_lock));
}

#[test]
fn a_dropped_wait_leaves_no_lock_and_no_place() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [narrow(), wide()] {
        runtime.block_on(async {
            for times in 0..8 {
                let guard = store.lock("k", as_named("other")).await.unwrap();
                assert!(polled(times, store.lock("k", LockOptions::new())).await.is_none());
                assert!(polled(times, store.lock_all(["a", "k"], LockOptions::new())).await.is_none());
                let start = Instant::now();
                guard.release().await.unwrap();
                // Nobody is in line for it: else this would be another's turn.
                let waits = store.lock("k", as_named("next").acquire_timeout(PATIENCE)).await.unwrap();
                assert!(start.elapsed() < PATIENCE / 2);
                waits.release().await.unwrap();
                gets_a_lock_that_stays(&store, "k").await;
                gets_a_lock_that_stays(&store, "a").await;
            }
        });
    }
    until_no_lock_file(&narrow(), &store);
}

#[test]
fn tasks_aborted_at_random_moments_harm_nobody() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let rounds = storm(50);
    wide().block_on(async {
        let steady: Vec<_> = (0..4)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..rounds {
                        let guard = store.lock("k", patient()).await.unwrap();
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
        }
        for task in steady {
            task.await.unwrap();
        }
        until("the lock is free", async || !store.is_locked("k").await.unwrap()).await;
        assert_eq!(store.read::<u64>("k").await.unwrap().unwrap().result, rounds * 4);
        let guard = store.try_lock("k", as_named("next")).await.unwrap();
        guard.expect("free, and nobody waits").release().await.unwrap();
    });
    until_no_lock_file(&narrow(), &store);
}

#[test]
fn those_behind_an_aborted_task_keep_their_order() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        for aborted in 0..3 {
            let guard = store.lock("k", LockOptions::new()).await.unwrap();
            let (tell, mut served) = tokio::sync::mpsc::unbounded_channel();
            let mut tasks = Vec::new();
            for number in 0..4 {
                let (store, tell) = (store.clone(), tell.clone());
                tasks.push(tokio::spawn(async move {
                    let guard = store.lock("k", patient()).await.unwrap();
                    tell.send(number).unwrap();
                    guard.release().await.unwrap();
                }));
            }
            until_in_line(&store).await;
            tasks[aborted].abort();
            guard.release().await.unwrap();
            drop(tell);
            let mut order = Vec::new();
            while let Some(number) = served.recv().await {
                order.push(number);
            }
            let expected: Vec<_> = (0..4).filter(|number| *number != aborted).collect();
            assert_eq!(order, expected);
        }
    });
}

#[test]
fn a_cancellation_ends_a_wait_wherever_it_is() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let guard = store.lock("k", as_named("other")).await.unwrap();
        let shutdown = Cancellation::new();
        let options = || LockOptions::new().cancellation(&shutdown);
        // One has the thread, the others stand behind it.
        let mut waiters = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let (store, options) = (store.clone(), options());
            waiters.spawn(async move { store.lock("k", options).await.map(drop) });
        }
        let (computes, compute) = (store.clone(), options());
        waiters.spawn(async move {
            computes.get_or_compute("k", compute, async || old_or_one(None)).await.map(drop)
        });
        sleep(millis(100)).await;
        assert!(waiters.try_join_next().is_none());
        let start = Instant::now();
        shutdown.cancel();
        while let Some(outcome) = waiters.join_next().await {
            assert!(outcome.unwrap().unwrap_err().is_cancelled());
        }
        assert!(start.elapsed() < PATIENCE / 2);
        assert!(store.lock("free", options()).await.unwrap_err().is_cancelled());
        guard.release().await.unwrap();
        gets_a_lock_that_stays(&store, "k").await;
    });
}

/// A store that knows how many are inside of it.
#[derive(Clone, Debug, Default)]
struct Counting {
    store: MemoryRecordStore,
    inside: Arc<AtomicUsize>,
}

impl Counting {
    fn counted<T>(&self, work: impl FnOnce(&MemoryRecordStore) -> T) -> T {
        self.inside.fetch_add(1, Ordering::SeqCst);
        let outcome = work(&self.store);
        self.inside.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

impl RecordStore for Counting {
    fn read_json(&self, key: &Key, claim: &Claim, timeout: Option<Duration>) -> Result<Option<Json>> {
        self.counted(|store| store.read_json(key, claim, timeout))
    }
    fn write_json(
        &self,
        key: &Key,
        result: &serde_json::value::RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<()> {
        self.store.write_json(key, result, claim, options)
    }
    fn record_exists(&self, key: &Key) -> Result<bool> {
        self.store.record_exists(key)
    }
    fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        // As one that knows nothing of cancellations, but has a slow moment.
        let acquired = self.counted(|store| store.acquire(key, holder, options));
        std::thread::sleep(Duration::from_millis(1));
        acquired
    }
    fn release(&self, key: &Key, claim: &Claim) -> Result<()> {
        self.store.release(key, claim)
    }
    fn wait_until_free(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
        self.counted(|store| store.wait_until_free(key, timeout))
    }
}

#[test]
fn no_thread_stays_with_a_dropped_wait() {
    let counting = Counting::default();
    let store = AsyncRecordStore::new(counting.clone());
    narrow().block_on(async {
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
        until("they wait", async || counting.inside.load(Ordering::SeqCst) == 9).await;
        waiters.shutdown().await;
        let start = Instant::now();
        until("they are gone", async || counting.inside.load(Ordering::SeqCst) == 0).await;
        assert!(start.elapsed() < PATIENCE / 2);
        guard.release().await.unwrap();
    });
}

#[test]
fn a_lock_that_comes_too_late_is_released_before_its_holder_gets_another() {
    let store = AsyncRecordStore::new(Counting::default());
    for runtime in [narrow(), wide()] {
        runtime.block_on(async {
            for _ in 0..storm(50) {
                // The lock is there, and the thread on its way back, when nobody wants it any more.
                assert!(polled(1, store.lock("k", LockOptions::new())).await.is_none());
                let guard = store.lock("k", LockOptions::new()).await.unwrap();
                sleep(millis(3)).await;
                guard.write(&1).await.unwrap_or_else(|error: Error| panic!("not its own: {error}"));
                guard.release().await.unwrap();
            }
        });
    }
}
