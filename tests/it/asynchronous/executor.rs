//! A waiting operation never blocks the executor, even if the blocking pool has only one thread.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Instant;

use record_store::asynchronous::{AsyncRecordStore, current_holder};
use record_store::{
    Acquired, Cancellation, Claim, Error, ErrorKind, Json, Key, LockInfo, LockOptions, MemoryRecordStore,
    RawRecord, ReadOptions, RecordChange, RecordStore, Result, WaitOptions, WriteOptions,
};
use tempfile::tempdir;
use tokio::sync::Semaphore;

use super::{Store, long_timeout, multi_threaded, open, single_threaded, wait_until, wait_until_queued};
use crate::support::{PATIENCE, as_named, millis, storm};

/// Counts how often the executor runs this task.
async fn ticks(count: Arc<AtomicU32>) {
    loop {
        tokio::task::yield_now().await;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Runs an operation that waits while the lock of `k` is held. Checks that the executor continues,
/// and that the operation ends when the lock is released.
fn check_executor_continues<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    operation: impl FnOnce(Store) -> F,
    check: impl FnOnce(T),
) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        let waiter = tokio::spawn(operation(store.clone()));
        let count = Arc::new(AtomicU32::new(0));
        let ticks = tokio::spawn(ticks(Arc::clone(&count)));
        // Meanwhile other operations can use the pool's only thread.
        for number in 0..20 {
            store.write("other", &number).await.unwrap();
            tokio::time::sleep(millis(5)).await;
        }
        assert!(count.load(Ordering::Relaxed) > 100, "the executor was blocked");
        assert!(!waiter.is_finished());
        guard.write("done").await.unwrap();
        guard.release().await.unwrap();
        check(tokio::time::timeout(PATIENCE, waiter).await.expect("the operation ends").unwrap());
        ticks.abort();
    });
}

#[test]
fn the_executor_continues_while_a_task_waits_for_a_lock() {
    check_executor_continues(
        |store| async move { store.lock("k", LockOptions::new()).await.unwrap().release().await },
        |outcome| outcome.unwrap(),
    );
}

#[test]
fn the_executor_continues_while_a_read_waits() {
    check_executor_continues(
        |store| async move { store.read::<String>("k").await },
        |outcome| assert_eq!(outcome.unwrap().unwrap().result, "done"),
    );
}

#[test]
fn the_executor_continues_while_a_task_waits_until_a_key_is_free() {
    check_executor_continues(
        |store| async move { store.wait_for_lock("k", None).await },
        |free| assert!(free.unwrap()),
    );
}

#[test]
fn the_executor_continues_while_a_record_is_watched() {
    check_executor_continues(
        |store| async move { store.watch("k").await.unwrap().next(None).await },
        |change| assert_eq!(change.unwrap(), Some(RecordChange::Appeared)),
    );
}

#[test]
fn two_hundred_tasks_share_a_lock_through_one_pool_thread() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let tasks = storm(200);
    single_threaded().block_on(async {
        let first = store.lock("k", LockOptions::new()).await.unwrap();
        let counts: Vec<_> = (0..tasks)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    let guard = store.lock("k", long_timeout()).await.unwrap();
                    let count = guard.read::<u64>().await.unwrap().map_or(0, |record| record.result);
                    tokio::task::yield_now().await;
                    guard.write(&(count + 1)).await.unwrap();
                })
            })
            .collect();
        tokio::time::sleep(millis(50)).await;
        first.release().await.unwrap();
        for count in counts {
            count.await.unwrap();
        }
        assert_eq!(store.read::<u64>("k").await.unwrap().unwrap().result, tasks);
    });
}

#[test]
fn more_tasks_than_threads_can_wait_for_different_locks() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let keys: Vec<_> = (0..80).map(|number| format!("k{number}")).collect();
        let guards = store.lock_all(&keys, LockOptions::new()).await.unwrap();
        let waiters: Vec<_> = keys
            .iter()
            .map(|key| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move { store.lock(key, long_timeout()).await.map(drop) })
            })
            .collect();
        tokio::time::sleep(millis(100)).await;
        // These need threads too, but none is free.
        let (late, options) = (store.clone(), ReadOptions::new().timeout(millis(80)));
        let late = tokio::spawn(async move { late.read_with::<u8>("k7", options).await });
        assert!(late.await.unwrap().unwrap_err().is_timeout());
        let (mut locks, mut listed) = (store.locks().await.unwrap(), 0);
        while let Some(lock) = locks.next().await {
            lock.unwrap();
            listed += 1;
        }
        assert_eq!(listed, keys.len());
        let start = Instant::now();
        let late = as_named("late").acquire_timeout(millis(80));
        assert!(store.lock("k8", late).await.unwrap_err().is_timeout());
        assert!(start.elapsed() >= millis(80) && start.elapsed() < PATIENCE / 2);
        guards.release().await.unwrap();
        for waiter in waiters {
            waiter.await.unwrap().unwrap();
        }
    });
}

#[test]
fn timeouts_are_respected() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let _guard = store.lock("k", LockOptions::new()).await.unwrap();
        let time = millis(60);
        let late = |start: Instant| assert!(start.elapsed() >= time && start.elapsed() < PATIENCE / 2);
        let start = Instant::now();
        let error = store.lock("k", as_named("other").acquire_timeout(time)).await.unwrap_err();
        late(start);
        assert!(error.is_timeout(), "{error}");
        assert!(error.waited().unwrap() >= time && error.holder() == Some(&current_holder()));
        let start = Instant::now();
        let spawned = tokio::spawn({
            let store = store.clone();
            async move { store.read_with::<u8>("k", ReadOptions::new().timeout(time)).await }
        });
        assert!(spawned.await.unwrap().unwrap_err().is_timeout());
        late(start);
        let start = Instant::now();
        assert!(!store.wait_for_lock("k", time).await.unwrap());
        late(start);
        let start = Instant::now();
        assert!(!store.wait_for_record("k", time).await.unwrap());
        late(start);
    });
}

#[test]
fn tasks_acquire_the_lock_in_the_order_of_their_requests() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        let (sender, mut acquired) = tokio::sync::mpsc::unbounded_channel();
        // Closed when the tasks may release the lock.
        let gate = Arc::new(Semaphore::new(0));
        for number in 0..5 {
            let (store, sender, gate) = (store.clone(), sender.clone(), Arc::clone(&gate));
            tokio::spawn(async move {
                let guard = store.lock("k", long_timeout()).await.unwrap();
                sender.send(number).unwrap();
                let _closed = gate.acquire().await;
                guard.release().await.unwrap();
            });
        }
        wait_until_queued(&store).await;
        guard.release().await.unwrap();
        assert!(store.try_lock("k", as_named("newcomer")).await.unwrap().is_none(), "it overtook the tasks");
        gate.close();
        for number in 0..5 {
            assert_eq!(acquired.recv().await, Some(number));
        }
    });
}

#[test]
fn a_task_whose_first_attempt_has_failed_is_not_overtaken() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let guard = store.lock("k", as_named("other")).await.unwrap();
        // Keeps the pool's only thread.
        let (open_gate, gate) = channel::<()>();
        tokio::task::spawn_blocking(move || gate.recv_timeout(PATIENCE));
        let (sender, mut acquired) = tokio::sync::mpsc::unbounded_channel();
        let lock = async |number| {
            let (store, sender) = (store.clone(), sender.clone());
            tokio::spawn(async move {
                let guard = store.lock("k", long_timeout()).await.unwrap();
                sender.send(number).unwrap();
                guard.release().await.unwrap();
            });
            tokio::task::yield_now().await;
        };
        lock(1).await;
        let release = tokio::spawn(guard.release());
        tokio::task::yield_now().await;
        lock(2).await;
        // Now the first attempt fails, the lock is released, and the second task may attempt, while no task runs.
        let (sender, all_done) = channel();
        tokio::task::spawn_blocking(move || sender.send(()));
        drop(open_gate);
        all_done.recv_timeout(PATIENCE).unwrap();
        release.await.unwrap().unwrap();
        assert_eq!((acquired.recv().await, acquired.recv().await), (Some(1), Some(2)));
    });
}

/// A store that records its calls for locks.
#[derive(Clone, Debug, Default)]
struct Recorded {
    store: MemoryRecordStore,
    calls: Arc<Mutex<Vec<&'static str>>>,
    /// No acquisition proceeds before there have been so many.
    meeting: usize,
    /// Reads wait until they are cancelled, as they do for a process that is stopped in the middle of an operation.
    stuck_reads: bool,
}

impl Recorded {
    fn calls(&self) -> Vec<&'static str> {
        self.calls.lock().unwrap().clone()
    }

    fn call(&self, name: &'static str) -> &MemoryRecordStore {
        self.calls.lock().unwrap().push(name);
        &self.store
    }
}

impl RecordStore for Recorded {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        if !self.stuck_reads {
            return self.store.read_raw(key, options);
        }
        let (start, wait) = (Instant::now(), options.get_wait());
        let is_cancelled = || wait.get_cancellation().is_some_and(Cancellation::is_cancelled);
        while start.elapsed() < wait.get_timeout().unwrap_or(PATIENCE) && !is_cancelled() {
            std::thread::sleep(millis(1));
        }
        self.call(if is_cancelled() { "cancelled read" } else { "read" });
        Err(Error::new(ErrorKind::LockTimeout, "read").with_key(key))
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.store.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.store.exists_raw(key)
    }
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let store = self.call("acquire_lock");
        let start = Instant::now();
        while self.calls().len() < self.meeting && start.elapsed() < PATIENCE {
            std::thread::sleep(millis(1));
        }
        store.acquire_lock_raw(key, options)
    }
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.call("release_lock").release_lock_raw(key, claim, options)
    }
    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.call("lock_info").lock_info_raw(key)
    }
}

#[test]
fn an_uncontended_acquisition_is_one_call_of_the_store() {
    let recorded = Recorded::default();
    let store = AsyncRecordStore::new(recorded.clone());
    single_threaded().block_on(async {
        store.lock("k", LockOptions::new()).await.unwrap().release().await.unwrap();
    });
    assert_eq!(recorded.calls(), ["acquire_lock", "release_lock"]);
}

#[test]
fn two_futures_of_one_task_do_not_exclude_each_other() {
    let store = AsyncRecordStore::new(Recorded { meeting: 2, ..Recorded::default() });
    multi_threaded().block_on(async {
        let lock = || store.try_lock("k", LockOptions::new());
        // The second one is requested while the first one is being acquired.
        let (first, second) = tokio::join!(lock(), lock());
        assert_eq!(first.unwrap().unwrap().token(), second.unwrap().expect("the same holder").token());
    });
}

#[test]
fn one_task_can_acquire_any_number_of_locks_at_once() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    single_threaded().block_on(async {
        let lock = |number| Box::pin(store.try_lock(format!("k{number}"), LockOptions::new()));
        let (mut locks, mut guards): (Vec<_>, _) = ((0..300).map(lock).collect(), Vec::new());
        poll_fn(|context| {
            locks.retain_mut(|lock| match lock.as_mut().poll(context) {
                Poll::Ready(guard) => {
                    guards.push(guard.unwrap().expect("nobody else requests it"));
                    false
                }
                Poll::Pending => true,
            });
            if locks.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    });
}

#[test]
fn a_read_through_a_guard_that_is_stuck_does_not_keep_the_pools_only_thread() {
    let recorded = Recorded { stuck_reads: true, ..Recorded::default() };
    let store = AsyncRecordStore::new(recorded.clone());
    single_threaded().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        let read = async { guard.read::<u8>().await.map(drop) };
        let write = async {
            wait_until("the first attempt to fail", async || recorded.calls().contains(&"read")).await;
            store.write("other", &1).await
        };
        let mut read = pin!(read);
        tokio::select! {
            _ = &mut read => panic!("the read is stuck"),
            written = write => written.unwrap(),
        }
    });
    single_threaded().block_on(wait_until("the dropped read to be cancelled", async || {
        recorded.calls().contains(&"cancelled read")
    }));
}
