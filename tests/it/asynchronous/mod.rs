//! The asynchronous operations: they never block the executor, and their futures are safe to drop.

mod cancel;
mod changes;
mod executor;
mod glob_import;
mod guards;
mod operations;
mod spawn;
mod streams;
mod transactions;

use std::path::Path;
use std::time::Duration;

use record_store::asynchronous::{AsyncLockGuard, AsyncRecordStore};
use record_store::{Durability, FileSystemRecordStore, LockOptions};
use tokio::runtime::{Builder, Runtime};

use crate::support::{PATIENCE, open_with};
use crate::watchdog::watch_test;

type Store = AsyncRecordStore<FileSystemRecordStore>;
type Guard = AsyncLockGuard<FileSystemRecordStore>;

fn open(dir: &Path) -> Store {
    AsyncRecordStore::new(open_with(dir, Durability::Relaxed))
}

/// A runtime with one thread and a blocking pool of one thread.
fn single_threaded() -> Runtime {
    watch_test();
    Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap()
}

fn multi_threaded() -> Runtime {
    watch_test();
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Options for an acquisition that must succeed.
fn long_timeout() -> LockOptions {
    LockOptions::new().acquire_timeout(PATIENCE)
}

/// Waits until the condition holds. For effects of background work.
async fn wait_until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let polling = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("timed out waiting for: {what}"));
}

/// Waits until the tasks on a single-threaded runtime have made their first attempt. They run one
/// after the other in the order in which they were spawned, so they are queued in that order.
async fn wait_until_queued(store: &Store) {
    store.exists("k").await.unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}
