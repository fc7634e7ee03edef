//! The store's operations as futures, for programs on [Tokio](https://tokio.rs). Behind the
//! feature `tokio`.
//!
//! An [`AsyncRecordStore`] wraps a store. Its methods are those of
//! [`RecordStoreExt`](crate::RecordStoreExt) and mean the same; what is told here is what differs.
//!
//! ```
//! use std::time::Duration;
//! use record_store::LockOptions;
//! use record_store::FileSystemRecordStore;
//! use record_store::tokio::AsyncRecordStore;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("records");
//! let store = AsyncRecordStore::new(FileSystemRecordStore::open(&path)?);
//! let options = LockOptions::new().acquire_timeout(Duration::from_secs(5));
//! let guard = store.lock("visits", options).await?;
//! let visits: u64 = guard.read().await?.map_or(0, |record| record.result);
//! guard.write(&(visits + 1)).await?;
//! guard.release().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The executor is never blocked
//!
//! What is short is done by [`spawn_blocking`](tokio::task::spawn_blocking). What has to wait does so
//! on a thread outside of that pool, so that a release never stands behind those who wait for it, in
//! however small a pool. All tasks that wait for one lock through clones of one store need one thread,
//! and there are at most 64; what is beyond that looks again every few milliseconds.
//!
//! # Cancel safety
//!
//! A future may be dropped at any await. Each method says what that means, and it is one of three
//! things:
//!
//! * An **acquisition** that is dropped leaves no lock and no place in the line. If the lock came in
//!   the same moment, it is released at once.
//! * A **question**, such as a read, had no effect anyway.
//! * A **change**, such as a write, happens as a whole or not at all, but if its future is dropped
//!   before it is done nobody is told which. It may also happen shortly afterwards.
//!
//! A guard that is dropped releases its lock in the background. So it may be a moment before others
//! see the lock free; [`release`](AsyncLockGuard::release) waits for that. Who gave up a lock, by a
//! drop of either kind, and asks for it again waits until it was released: the new lock is another one.
//!
//! # Holders
//!
//! The default holder is the task: [`current_holder`]. What counts is the task in which a method's
//! future is first polled, and a guard stays with its holder when it is moved to another task. Two
//! futures joined within one task share their holder, so they do not exclude each other: spawn them,
//! or name their [holders](crate::LockOptions::holder).
//!
//! # Limitations
//!
//! * The runtime must have time enabled (`enable_all`, as `#[tokio::main]` has): the methods panic
//!   without, and outside of a runtime. Guards may be dropped anywhere.
//! * A process that is stopped in the middle of an operation may hold up, for as long as it is
//!   stopped, changes of the keys of one of 256 latches, and with them threads of the blocking pool.
//! * There are no asynchronous transactions. Run a synchronous one inside
//!   [`spawn_blocking`](tokio::task::spawn_blocking), with [`inner`](AsyncRecordStore::inner); its
//!   default holder is that thread.

mod acquire;
mod blocking;
mod compute;
mod guard;
mod held;
mod leaving;
mod lines;
mod listing;
mod lock_all;
mod locks;
mod records;
mod watch;

use crate::holder::thread_id;
use crate::{Claim, Holder, IsolationLevel, RecordStore};

pub use guard::AsyncLockGuard;
use lines::Lines;
pub use listing::AsyncListing;
pub use lock_all::AsyncLockGuards;
pub use watch::AsyncRecordWatch;

/// A record store whose operations are futures. See the [module](self) for what that means.
///
/// Wraps any store that can be cloned: [`FileSystemRecordStore`](crate::FileSystemRecordStore),
/// [`MemoryRecordStore`](crate::MemoryRecordStore), `Arc<dyn RecordStore>`. A clone costs next to
/// nothing, and is what goes into another task.
///
/// ```
/// use record_store::MemoryRecordStore;
/// use record_store::tokio::AsyncRecordStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// let writes = tokio::spawn({
///     let store = store.clone();
///     async move { store.write("greeting", "hello").await }
/// });
/// writes.await??;
/// assert_eq!(store.read::<String>("greeting").await?.expect("just written").result, "hello");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct AsyncRecordStore<S> {
    store: S,
    lines: Lines,
}

impl<S: RecordStore + Clone + 'static> AsyncRecordStore<S> {
    /// Wraps a store.
    pub fn new(store: S) -> Self {
        Self { store, lines: Lines::default() }
    }

    /// The store inside. Its methods block: they belong into
    /// [`spawn_blocking`](tokio::task::spawn_blocking).
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// Whether transactions of this level can be had.
    pub fn supports_isolation_level(&self, level: IsolationLevel) -> bool {
        self.store.supports_level(level)
    }
}

impl<S: RecordStore> std::fmt::Debug for AsyncRecordStore<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AsyncRecordStore").field(&self.store).finish()
    }
}

/// The default holder of the calling task: `host:pid:task:<id>`. Outside of a task, as in the future
/// of [`block_on`](tokio::runtime::Runtime::block_on) itself: `host:pid:<thread id>:block_on`.
///
/// Bound to the process, as [`Holder::current`] is: the lock is free when the process is gone. It is
/// not free when the task is gone, but guards that are dropped with the task release it.
///
/// ```
/// use record_store::tokio::current_holder;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let here = current_holder();
/// let there = tokio::spawn(async { current_holder() }).await?;
/// assert_ne!(here, there);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub fn current_holder() -> Holder {
    match tokio::task::try_id() {
        Some(id) => Holder::of_process(&format!("task:{id}")),
        None => Holder::of_process(&format!("{}:block_on", thread_id())),
    }
}

fn current_claim() -> Claim {
    Claim::Holder(current_holder())
}
