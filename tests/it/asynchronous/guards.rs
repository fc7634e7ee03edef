//! Guards: whose they are, and what becomes of them.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Instant;

use record_store::tokio::{AsyncRecordStore, current_holder};
use record_store::{Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
use tempfile::tempdir;

use super::{Guard, narrow, open, patient, until, wide};
use crate::support::{PATIENCE, as_named, millis, names_in, storm};

#[test]
fn two_tasks_of_one_thread_exclude_each_other() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let tasks: Vec<_> = (0..2)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move {
                    for _ in 0..storm(20) {
                        let guard = store.lock("k", patient()).await.unwrap();
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
fn the_holder_is_the_task() {
    let runtime = wide();
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
fn a_holder_that_has_the_lock_gets_an_inner_guard() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let outer = store.lock("k", LockOptions::new()).await.unwrap();
        let inner = store.try_lock("k", LockOptions::new()).await.unwrap().expect("it is the holder");
        assert_eq!(inner.token(), outer.token());
        inner.release().await.unwrap();
        assert!(outer.is_held().await.unwrap());
        // Moved to another task, it stays with its holder.
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
fn a_dropped_guard_releases_also_in_a_task_that_panics_or_is_aborted() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    wide().block_on(async {
        let free = async || !store.is_locked("k").await.unwrap();
        drop(store.lock("k", LockOptions::new()).await.unwrap());
        until("a drop releases", free).await;
        let task = tokio::spawn({
            let store = store.clone();
            async move {
                let _guard = store.lock("k", LockOptions::new()).await.unwrap();
                std::panic::resume_unwind(Box::new("with the guard"));
            }
        });
        assert!(task.await.unwrap_err().is_panic());
        until("a panic releases", free).await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let task = tokio::spawn({
            let store = store.clone();
            async move {
                let _guard = store.lock("k", LockOptions::new()).await.unwrap();
                tell.send(()).unwrap();
                std::future::pending::<()>().await;
            }
        });
        told.await.unwrap();
        task.abort();
        until("an abort releases", free).await;
    });
    assert_eq!(names_in(dir.path()), [".store"], "no lock file stays");
}

#[test]
fn a_runtime_that_ends_releases() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [narrow, wide] {
        for busy in [false, true] {
            let runtime = runtime();
            let (tell, told) = channel();
            let lock = store.clone();
            runtime.spawn(async move {
                let _guard = lock.lock("k", LockOptions::new()).await.unwrap();
                tell.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            runtime.block_on(until("it has the lock", async || told.try_recv().is_ok()));
            if busy {
                // What is dropped now cannot begin in the pool.
                runtime.spawn_blocking(|| std::thread::sleep(millis(20)));
            }
            drop(runtime);
            assert!(!store.inner().is_locked("k").unwrap());
        }
    }
}

#[test]
fn a_guard_dropped_outside_of_a_runtime_releases() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = narrow().block_on(store.lock("k", LockOptions::new())).unwrap();
    assert!(store.inner().is_locked("k").unwrap());
    drop(guard);
    assert!(!store.inner().is_locked("k").unwrap());
}

#[test]
fn who_drops_a_guard_and_asks_again_gets_another_lock() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [narrow(), wide()] {
        runtime.block_on(async {
            for _ in 0..storm(100) {
                let first = store.lock("k", LockOptions::new()).await.unwrap();
                let token = first.token();
                drop(first);
                let second =
                    store.try_lock("k", LockOptions::new()).await.unwrap().expect("nobody else asks");
                assert!(second.token() > token);
                second.write("it is mine").await.unwrap();
                second.release().await.unwrap();
            }
        });
    }
}

#[test]
fn a_lost_lock_is_lost() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    narrow().block_on(async {
        let guard = store.lock("k", LockOptions::new()).await.unwrap();
        assert!(store.break_lock("k").await.unwrap());
        assert!(guard.read::<u8>().await.unwrap_err().is_lock_lost());
        assert!(guard.write(&1).await.unwrap_err().is_lock_lost());
        assert!(guard.renew().await.unwrap_err().is_lock_lost());
        assert!(guard.remove().await.unwrap_err().is_lock_lost());
        assert!(guard.remaining().await.unwrap_err().is_lock_lost());
        assert!(!guard.is_held().await.unwrap());
        // Another's lock stays.
        let other = store.lock("k", as_named("other")).await.unwrap();
        assert!(guard.release().await.unwrap_err().is_lock_lost());
        assert!(other.is_held().await.unwrap());
    });
}

#[test]
fn a_lease_is_kept_alive() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    narrow().block_on(async {
        let lease = millis(400);
        let mut guard = store.lock("k", LockOptions::new().hold_timeout(lease)).await.unwrap();
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).await.unwrap();
        let start = Instant::now();
        while start.elapsed() < lease * 2 {
            // The executor is blocked, but not the lock.
            std::thread::sleep(millis(50));
        }
        // A machine that stands still for so long loses the lease, and says so.
        if losses.try_recv().is_err() {
            assert!(guard.remaining().await.unwrap() <= Some(lease));
        }
        drop(guard);
        until("released", async || !store.is_locked("k").await.unwrap()).await;
    });
}

#[test]
fn a_lease_is_kept_no_longer_than_its_guard() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    narrow().block_on(async {
        for released in [true, false] {
            let (lost, is_lost) = channel();
            let mut guard = store.lock("k", LockOptions::new().hold_timeout(millis(900))).await.unwrap();
            guard.keep_alive(move |error| lost.send(error).unwrap()).await.unwrap();
            if released {
                guard.release().await.unwrap();
            } else {
                drop(guard);
            }
            // Whoever still renewed would find the lock lost. Who does not lets go of the sender.
            let told = is_lost.recv_timeout(PATIENCE);
            assert!(matches!(told, Err(RecvTimeoutError::Disconnected)), "{told:?}");
        }
    });
}
