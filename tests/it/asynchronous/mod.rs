//! The operations as futures: never in the executor's way, and safe to drop.

mod cancel;
mod executor;
mod guards;
mod operations;

use std::path::Path;
use std::time::Duration;

use record_store::tokio::{AsyncLockGuard, AsyncRecordStore};
use record_store::{Durability, FileSystemRecordStore, LockOptions};
use tokio::runtime::{Builder, Runtime};

use crate::support::{PATIENCE, open_with};

type Store = AsyncRecordStore<FileSystemRecordStore>;
type Guard = AsyncLockGuard<FileSystemRecordStore>;

fn open(dir: &Path) -> Store {
    AsyncRecordStore::new(open_with(dir, Durability::Relaxed))
}

/// A runtime of one thread, with a blocking pool of one.
fn narrow() -> Runtime {
    Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap()
}

fn wide() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn patient() -> LockOptions {
    LockOptions::new().acquire_timeout(PATIENCE)
}

/// Until it is so: for what others do in the background.
async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let waits = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Until the tasks that were spawned on a narrow runtime have had their first look: they were made in
/// order, one by one, and so they stand in line.
async fn until_in_line(store: &Store) {
    store.exists("k").await.unwrap();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}
