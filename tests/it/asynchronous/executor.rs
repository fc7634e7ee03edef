//! A waiting operation never blocks the executor, even if the blocking pool has only one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use record_store::asynchronous::current_holder;
use record_store::{LockOptions, ReadOptions, RecordChange};
use tempfile::tempdir;
use tokio::sync::Semaphore;

use super::{Store, long_timeout, open, single_threaded, wait_until_queued};
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
