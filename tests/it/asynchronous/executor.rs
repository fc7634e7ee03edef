//! The executor goes on while others wait, however small its pool is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use record_store::{LockOptions, RecordChange};
use tempfile::tempdir;

use super::{Store, narrow, open, patient, until_in_line};
use crate::support::{PATIENCE, as_named, millis, storm};

/// Counts while the executor has time.
async fn ticks(count: Arc<AtomicU32>) {
    loop {
        tokio::task::yield_now().await;
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Something waits while this store's lock of `k` is held; the executor goes on, and it ends when
/// the lock is released.
fn goes_on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    waits: impl FnOnce(Store) -> F,
    check: impl FnOnce(T),
) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        let waiter = tokio::spawn(waits(store.clone()));
        let count = Arc::new(AtomicU32::new(0));
        let ticks = tokio::spawn(ticks(Arc::clone(&count)));
        // The pool of one thread is free for others meanwhile.
        for number in 0..20 {
            store.write("other", &number).await.unwrap();
            tokio::time::sleep(millis(5)).await;
        }
        assert!(count.load(Ordering::Relaxed) > 100, "the executor stood still");
        assert!(!waiter.is_finished());
        guard.write("done").await.unwrap();
        guard.release().await.unwrap();
        check(tokio::time::timeout(PATIENCE, waiter).await.expect("it ends").unwrap());
        ticks.abort();
    });
}

#[test]
fn while_a_lock_is_waited_for() {
    goes_on(
        |store| async move { store.lock("k", LockOptions::new()).await.unwrap().release().await },
        |outcome| outcome.unwrap(),
    );
}

#[test]
fn while_a_read_waits() {
    goes_on(
        |store| async move { store.read::<String>("k").await },
        |outcome| assert_eq!(outcome.unwrap().unwrap().result, "done"),
    );
}

#[test]
fn while_a_free_key_is_waited_for() {
    goes_on(|store| async move { store.wait_for_lock("k", None).await }, |free| assert!(free.unwrap()));
}

#[test]
fn while_a_record_is_watched() {
    goes_on(
        |store| async move { store.watch("k").await.unwrap().next(None).await },
        |change| assert_eq!(change.unwrap(), Some(RecordChange::Appeared)),
    );
}

#[test]
fn two_hundred_tasks_take_turns_through_a_pool_of_one() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let tasks = storm(200);
    narrow().block_on(async {
        let first = store.lock("k", LockOptions::new()).await.unwrap();
        let counts: Vec<_> = (0..tasks)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    let guard = store.lock("k", patient()).await.unwrap();
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
fn more_wait_for_different_locks_than_there_are_threads() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let keys: Vec<_> = (0..80).map(|number| format!("k{number}")).collect();
        let guards = store.lock_all(&keys, LockOptions::new()).await.unwrap();
        let waiters: Vec<_> = keys
            .iter()
            .map(|key| {
                let (store, key) = (store.clone(), key.clone());
                tokio::spawn(async move { store.lock(key, patient()).await.map(drop) })
            })
            .collect();
        tokio::time::sleep(millis(100)).await;
        // These need threads too, and get none.
        let late = store.clone();
        let late = tokio::spawn(async move { late.try_read::<u8>("k7", millis(80)).await });
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
fn timeouts_hold() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let _guard = store.lock("k", LockOptions::new()).await.unwrap();
        let time = millis(60);
        let late = |start: Instant| assert!(start.elapsed() >= time && start.elapsed() < PATIENCE / 2);
        let start = Instant::now();
        let error = store.lock("k", as_named("other").acquire_timeout(time)).await.unwrap_err();
        late(start);
        let record_store::Error::LockTimeout { waited, holder, .. } = error else { panic!("{error}") };
        assert!(waited >= time && holder == Some(record_store::tokio::current_holder()));
        let start = Instant::now();
        let spawned = tokio::spawn({
            let store = store.clone();
            async move { store.try_read::<u8>("k", time).await }
        });
        assert!(spawned.await.unwrap().unwrap_err().is_timeout());
        late(start);
        let start = Instant::now();
        assert!(!store.wait_for_lock("k", Some(time)).await.unwrap());
        late(start);
        let start = Instant::now();
        assert!(!store.wait_for_record("k", Some(time)).await.unwrap());
        late(start);
    });
}

#[test]
fn tasks_are_served_in_the_order_in_which_they_asked() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        let (tell, mut served) = tokio::sync::mpsc::unbounded_channel();
        for number in 0..5 {
            let (store, tell) = (store.clone(), tell.clone());
            tokio::spawn(async move {
                let guard = store.lock("k", patient()).await.unwrap();
                tell.send(number).unwrap();
                guard.release().await.unwrap();
            });
        }
        until_in_line(&store).await;
        guard.release().await.unwrap();
        for number in 0..5 {
            assert_eq!(served.recv().await, Some(number));
        }
    });
}
