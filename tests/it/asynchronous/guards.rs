//! Guards: which holder they belong to, and what happens when they are dropped or lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

use record_store::asynchronous::{AsyncRecordStore, current_holder};
use record_store::{
    Acquired, BreakOptions, Cancellation, Claim, ErrorKind, Holder, Json, Key, LockInfo, LockOptions,
    MemoryRecordStore, RawRecord, ReadOptions, RecordStore, RecordStoreExt, RemoveOptions, Result,
    WaitOptions, WriteOptions,
};
use tempfile::tempdir;
use tokio::sync::Semaphore;

use super::{Guard, long_timeout, multi_threaded, open, single_threaded, wait_until, wait_until_queued};
use crate::support::{PATIENCE, as_named, latch_of, millis, names_in, storm};

#[test]
fn two_tasks_of_one_thread_exclude_each_other() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..storm(20) {
                        let guard = store.lock("k", long_timeout()).await.unwrap();
                        let count = guard.read::<u64>().await.unwrap().map_or(0, |record| record.result);
                        tokio::task::yield_now().await;
                        guard.write(&(count + 1)).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(store.read::<u64>("k").await.unwrap().unwrap().result, storm(20) * 2);
    });
}

#[test]
fn tasks_share_a_lock_and_a_writer_waits_for_all() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let first = store.lock("k", long_timeout().shared()).await.unwrap();
        let reader = tokio::spawn({
            let store = store.clone();
            async move { store.lock("k", long_timeout().shared()).await.unwrap() }
        });
        // A task of its own is another holder.
        let second = reader.await.unwrap();
        assert_ne!(first.token(), second.token());
        let info = store.lock_info("k").await.unwrap().unwrap();
        assert_eq!(info.holders().count(), 2);
        assert_eq!(first.write(&1).await.unwrap_err().kind(), ErrorKind::LockShared);
        let writer = tokio::spawn({
            let store = store.clone();
            async move { store.lock("k", long_timeout()).await.unwrap().write(&1).await }
        });
        first.release().await.unwrap();
        assert!(!writer.is_finished());
        drop(second);
        writer.await.unwrap().unwrap();
    });
}

#[test]
fn the_default_holder_is_the_current_task() {
    let runtime = multi_threaded();
    let here = runtime.block_on(async { current_holder() });
    assert!(here.is_process_bound() && here.name().ends_with(":block_on"), "{here}");
    let pid = std::process::id().to_string();
    runtime.block_on(async {
        let holders = || async {
            tokio::task::yield_now().await;
            (current_holder(), tokio::task::try_id())
        };
        let (there, id) = tokio::spawn(holders()).await.unwrap();
        assert!(there.name().ends_with(&format!(":{pid}:task:{}", id.unwrap())), "{there}");
        assert_ne!(there, tokio::spawn(holders()).await.unwrap().0);
        assert_ne!(there, Holder::current());
    });
}

#[test]
fn a_holder_that_has_the_lock_can_lock_again() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let outer = store.lock("k", LockOptions::new()).await.unwrap();
        let inner = store.try_lock("k", LockOptions::new()).await.unwrap().expect("the same holder");
        assert_eq!(inner.token(), outer.token());
        inner.release().await.unwrap();
        assert!(outer.is_held().await.unwrap());
        // A guard that moves to another task keeps its holder.
        let moved = tokio::spawn(async move {
            outer.write("moved").await.unwrap();
            outer
        });
        let outer: Guard = moved.await.unwrap();
        assert!(store.is_lock_holder("k", outer.holder()).await.unwrap());
        outer.release().await.unwrap();
        assert!(!store.is_locked("k").await.unwrap());
    });
}

#[test]
fn a_holder_that_has_the_lock_can_lock_again_while_many_tasks_wait() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let outer = store.lock("k", LockOptions::new()).await.unwrap();
        let lock = async |store: super::Store| store.lock("k", long_timeout()).await?.release().await;
        let waiters: Vec<_> = (0..100).map(|_| tokio::spawn(lock(store.clone()))).collect();
        wait_until_queued(&store).await;
        let again = async {
            let inner = store.lock("k", LockOptions::new()).await.unwrap();
            assert_eq!(inner.token(), outer.token());
            drop(inner);
            let inner = store.try_lock("k", LockOptions::new()).await.unwrap().expect("the same holder");
            assert_eq!(inner.token(), outer.token());
            let count = async |old: Option<u8>| Ok(old.unwrap_or(0) + 1);
            assert_eq!(store.update("k", LockOptions::new(), count).await.unwrap(), 1);
            store.remove("k").await.unwrap();
            let computed = store.get_or_compute("k", LockOptions::new(), async || Ok(7_u8)).await;
            assert_eq!(computed.unwrap(), 7);
            store.lock_all(["j", "k"], LockOptions::new()).await.unwrap().release().await.unwrap();
            inner.release().await.unwrap();
            assert!(outer.is_held().await.unwrap());
        };
        tokio::time::timeout(PATIENCE / 2, again).await.expect("the waiters do not block their holder");
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        outer.release().await.unwrap();
        for waiter in waiters {
            waiter.await.unwrap().unwrap();
        }
        // Two futures of one task, with another task between them in the queue: the second does not wait for
        // that task, which waits for the first.
        let other = store.lock("k", as_named("other")).await.unwrap();
        let requested = Arc::new(Semaphore::new(0));
        let joined = tokio::spawn({
            let (store, requested) = (store.clone(), Arc::clone(&requested));
            async move {
                let second = async {
                    let _closed = requested.acquire().await;
                    store.lock("k", long_timeout()).await.unwrap()
                };
                let (first, second) = tokio::join!(store.lock("k", long_timeout()), second);
                assert_eq!(first.unwrap().token(), second.token());
            }
        });
        wait_until_queued(&store).await;
        let between = tokio::spawn(lock(store.clone()));
        wait_until_queued(&store).await;
        requested.close();
        wait_until_queued(&store).await;
        other.release().await.unwrap();
        tokio::time::timeout(PATIENCE / 2, joined).await.expect("there is no deadlock").unwrap();
        between.await.unwrap().unwrap();
    });
}

/// A store whose releases are stuck until the gate is open.
#[derive(Debug, Default)]
struct Gated {
    store: MemoryRecordStore,
    is_open: AtomicBool,
}

impl RecordStore for Gated {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.store.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.store.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.store.exists_raw(key)
    }
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        self.store.acquire_lock_raw(key, options)
    }
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        let start = Instant::now();
        while !self.is_open.load(Ordering::SeqCst) && start.elapsed() < PATIENCE {
            std::thread::sleep(millis(1));
        }
        self.store.release_lock_raw(key, claim, options)
    }
    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.store.lock_info_raw(key)
    }
}

#[test]
fn a_drop_and_the_acquisitions_after_it_are_not_blocked_by_a_release_that_is_stuck() {
    let store = AsyncRecordStore::new(Gated::default());
    single_threaded().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        let token = guard.token();
        let start = Instant::now();
        drop(guard);
        assert!(store.try_lock("k", LockOptions::new()).await.unwrap().is_none());
        let time = millis(100);
        let error = store.lock("k", LockOptions::new().acquire_timeout(time)).await.unwrap_err();
        assert!(error.is_timeout() && error.waited().unwrap() >= time, "{error}");
        assert_eq!(error.holder(), Some(&current_holder()));
        let late = LockOptions::new().acquire_timeout(millis(10));
        let error = store.lock_all(["a", "k"], late).await.unwrap_err();
        assert!(error.is_timeout() && error.key().unwrap().as_str() == "k", "{error}");
        assert!(start.elapsed() < PATIENCE / 2);
        store.inner().is_open.store(true, Ordering::SeqCst);
        let again = store.lock("k", LockOptions::new()).await.unwrap();
        assert!(again.token() > token);
        again.release().await.unwrap();
    });
}

#[test]
fn a_dropped_guard_releases_its_lock_also_after_a_panic_or_an_abort() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    multi_threaded().block_on(async {
        let free = async || !store.is_locked("k").await.unwrap();
        drop(store.lock("k", LockOptions::new()).await.unwrap());
        wait_until("the drop to release the lock", free).await;
        let task = tokio::spawn({
            let store = store.clone();
            async move {
                let _guard = store.lock("k", LockOptions::new()).await.unwrap();
                std::panic::resume_unwind(Box::new("with the guard"));
            }
        });
        assert!(task.await.unwrap_err().is_panic());
        wait_until("the panic to release the lock", free).await;
        let (sender, locked) = tokio::sync::oneshot::channel();
        let task = tokio::spawn({
            let store = store.clone();
            async move {
                let _guard = store.lock("k", LockOptions::new()).await.unwrap();
                sender.send(()).unwrap();
                std::future::pending::<()>().await;
            }
        });
        locked.await.unwrap();
        task.abort();
        wait_until("the abort to release the lock", free).await;
    });
    assert_eq!(names_in(dir.path()), [".store"], "a lock file is left");
}

#[test]
fn a_runtime_that_shuts_down_releases_the_locks_of_its_tasks() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [single_threaded, multi_threaded] {
        for busy in [false, true] {
            let runtime = runtime();
            let (sender, locked) = channel();
            let lock = store.clone();
            runtime.spawn(async move {
                let _guard = lock.lock("k", LockOptions::new()).await.unwrap();
                sender.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            runtime.block_on(wait_until("the task to acquire the lock", async || locked.try_recv().is_ok()));
            if busy {
                // The pool is busy, so the release on drop cannot start there.
                runtime.spawn_blocking(|| std::thread::sleep(millis(20)));
            }
            drop(runtime);
            assert!(!store.inner().is_locked("k").unwrap());
        }
    }
}

#[test]
fn a_guard_dropped_outside_of_a_runtime_releases_its_lock() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = single_threaded().block_on(store.lock("k", LockOptions::new())).unwrap();
    assert!(store.inner().is_locked("k").unwrap());
    drop(guard);
    assert!(!store.inner().is_locked("k").unwrap());
}

#[test]
fn a_lock_after_a_dropped_guard_is_a_new_acquisition() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            for _ in 0..storm(100) {
                let first = store.lock("k", LockOptions::new()).await.unwrap();
                let token = first.token();
                drop(first);
                let second = store
                    .try_lock("k", LockOptions::new())
                    .await
                    .unwrap()
                    .expect("no other holder requests the lock");
                assert!(second.token() > token);
                second.write("it is mine").await.unwrap();
                second.release().await.unwrap();
            }
        });
    }
}

#[test]
fn every_operation_of_a_guard_reports_that_its_lock_is_lost() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    single_threaded().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        assert!(store.break_lock("k").await.unwrap());
        assert!(guard.read::<u8>().await.unwrap_err().is_lock_lost());
        let refused = guard.write(&1).await.unwrap_err();
        assert!(refused.is_lock_lost());
        assert_eq!(refused.unstored().map(Json::as_str), Some("1"));
        assert!(guard.renew().await.unwrap_err().is_lock_lost());
        assert!(guard.remove().await.unwrap_err().is_lock_lost());
        assert!(guard.remaining().await.unwrap_err().is_lock_lost());
        assert!(!guard.is_held().await.unwrap());
        // The lock of another holder stays.
        let other = store.lock("k", as_named("other")).await.unwrap();
        assert!(guard.release().await.unwrap_err().is_lock_lost());
        assert!(other.is_held().await.unwrap());
    });
}

#[test]
fn keep_alive_renews_the_lease_while_the_executor_is_blocked() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    single_threaded().block_on(async {
        let lease = millis(400);
        let guard = store.lock("k", LockOptions::new().hold_timeout(lease)).await.unwrap();
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).await.unwrap();
        let start = Instant::now();
        while start.elapsed() < lease * 2 {
            // This blocks the executor, but not the renewal.
            std::thread::sleep(millis(50));
        }
        // A machine that stalls for longer than the lease loses the lock, and reports that.
        if losses.try_recv().is_err() {
            assert!(guard.remaining().await.unwrap() <= Some(lease));
        }
        drop(guard);
        wait_until("the lock to be released", async || !store.is_locked("k").await.unwrap()).await;
    });
}

#[test]
fn keep_alive_renews_the_leases_of_several_locks() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    single_threaded().block_on(async {
        let guards = store.lock_all(["a", "b"], LockOptions::new().hold_timeout(millis(400))).await.unwrap();
        let (lost, losses) = channel();
        guards.keep_alive(move |error| lost.send(error).unwrap()).await.unwrap();
        for key in ["a", "b"] {
            assert!(store.break_lock(key).await.unwrap());
        }
        for _ in 0..2 {
            assert!(losses.recv().unwrap().is_lock_lost());
        }
        let keys: Vec<_> = guards.into_iter().map(|guard| guard.key().to_string()).collect();
        assert_eq!(keys, ["a", "b"]);
    });
}

#[test]
fn keep_alive_ends_with_its_guard() {
    let store: Arc<dyn RecordStore> = Arc::new(MemoryRecordStore::new());
    let store = AsyncRecordStore::from(store);
    single_threaded().block_on(async {
        for released in [true, false] {
            let (lost, losses) = channel();
            let guard = store.lock("k", LockOptions::new().hold_timeout(millis(900))).await.unwrap();
            guard.keep_alive(move |error| lost.send(error).unwrap()).await.unwrap();
            if released {
                guard.release().await.unwrap();
            } else {
                drop(guard);
            }
            // A further renewal would report a lost lock. When the renewals end, the sender is dropped.
            let outcome = losses.recv_timeout(PATIENCE);
            assert!(matches!(outcome, Err(RecvTimeoutError::Disconnected)), "{outcome:?}");
        }
    });
}

/// The latch of the key is held, as by a process that is stopped in the middle of an operation.
#[test]
fn a_release_and_a_renewal_return_by_their_timeout() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let guard = store.lock("k", as_named("me")).await.unwrap();
            guard.write(&1).await.unwrap();
            let (token, timeout) = (guard.token(), millis(50));
            let latch = std::fs::File::open(dir.path().join(latch_of("k"))).unwrap();
            latch.lock().unwrap();
            let start = Instant::now();
            assert!(guard.renew_with(timeout).await.unwrap_err().is_timeout());
            let remove = RemoveOptions::new().timeout(timeout);
            assert!(guard.remove_with(remove).await.unwrap_err().is_timeout());
            assert!(store.renew_with("k", token, PATIENCE, timeout).await.unwrap_err().is_timeout());
            assert!(guard.release_with(timeout).await.unwrap_err().is_timeout());
            assert!(store.release_lock_with("k", token, timeout).await.unwrap_err().is_timeout());
            let any = BreakOptions::new().timeout(timeout);
            assert!(store.break_lock_with("k", any).await.unwrap_err().is_timeout());
            assert!(
                start.elapsed() >= timeout * 6 && start.elapsed() < PATIENCE / 2,
                "{:?}",
                start.elapsed()
            );
            let cancellation = Cancellation::new();
            cancellation.cancel();
            let cancelled = store.release_lock_with("k", token, &cancellation).await;
            assert!(cancelled.unwrap_err().is_cancelled());
            drop(latch);
            let info = store.lock_info("k").await.unwrap().expect("the lock stays");
            assert_eq!((info.token(), info.remaining()), (token, None));
            store.release_lock("k", token).await.unwrap();

            let guards = store.lock_all(["free", "k"], as_named("me")).await.unwrap();
            let latch = std::fs::File::open(dir.path().join(latch_of("k"))).unwrap();
            latch.lock().unwrap();
            assert!(guards.renew_with(timeout).await.unwrap_err().is_timeout());
            assert!(guards.release_with(timeout).await.unwrap_err().is_timeout());
            drop(latch);
            assert!(!store.is_locked("free").await.unwrap() && store.is_locked("k").await.unwrap());
            // The next guard of the holder makes up for the release that failed.
            store.lock("k", as_named("me")).await.unwrap().release().await.unwrap();
            assert!(!store.is_locked("k").await.unwrap());
        });
    }
}
