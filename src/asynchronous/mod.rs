//! The store's operations as futures, for programs on [Tokio](https://tokio.rs). Behind the feature `tokio`.
//!
//! An [`AsyncRecordStore`] wraps a store. Its methods have the names, the options and the meaning of those
//! of [`RecordStoreExt`](crate::RecordStoreExt). This page describes the differences.
//!
//! ```
//! use std::time::Duration;
//! use record_store::asynchronous::AsyncRecordStore;
//! use record_store::{LockOptions, MemoryRecordStore};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> record_store::Result<()> {
//! let store = AsyncRecordStore::new(MemoryRecordStore::new());
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
//! Short operations run on the runtime's [blocking pool](tokio::task::spawn_blocking). A call that has to
//! wait runs on a thread outside of the pool. So a release never queues behind the waiters that it will
//! wake, however small the pool is. The tasks that acquire one lock through clones of one store wait in a
//! queue, and only the first one needs a thread. At most 64 such threads exist; further calls retry, at least
//! every 50 ms. Evictions and the batches of listings run on these threads too, and on the pool if none is available.
//!
//! A store that has its operations as futures, such as the one on a PostgreSQL server, needs no threads for them, except
//! for listings, [`lock_all`](AsyncRecordStore::lock_all) and keep-alives.
//!
//! # Streams
//!
//! [`keys`](AsyncRecordStore::keys), [`records`](AsyncRecordStore::records) and [`locks`](AsyncRecordStore::locks) return
//! a [`Stream`](futures_core::Stream) of items. [`watch`](AsyncRecordStore::watch) and
//! [`changes`](AsyncRecordStore::changes) return one of changes. They have
//! the combinators of `StreamExt`, of the crate `futures` or `tokio-stream`; their own `next` methods need neither.
//! [`AsyncListing`], [`AsyncRecordWatch`] and [`AsyncStoreChanges`] describe how far a stream reads ahead, whether an error
//! ends it, and what a dropped one leaves behind.
//!
//! # Cancel safety
//!
//! A future may be dropped at any await. The effect depends on the kind of operation, which each method
//! names:
//!
//! * An **acquisition** leaves no lock and no waiter in a queue. A lock that is acquired at the same moment
//!   is released at once.
//! * A **read** has no effect.
//! * A **change** happens as a whole or not at all, perhaps shortly after the drop. The caller does not
//!   learn which.
//!
//! A dropped guard releases its lock in the background, so others may see the lock for another moment;
//! [`release`](AsyncLockGuard::release) waits for the release. A holder that drops a guard or an
//! acquisition and then acquires the same lock waits for that release first: it gets a new lock.
//!
//! A dropped [transaction](AsyncTransaction#drop) rolls back. Its hooks run, if they have to wait, in the background.
//!
//! A future that is neither polled nor dropped keeps its place in the queue, and perhaps the lock.
//!
//! # Holders
//!
//! The default holder is the task: [`current_holder`], in the task that first polls the method's future. A
//! guard keeps its holder when it is moved to another task. Two futures that are joined within one task
//! have the same holder, so they do not exclude each other: spawn them, or name their
//! [holders](crate::LockOptions::holder).
//!
//! # Errors
//!
//! Operations also fail with [`ErrorKind::Thread`](crate::ErrorKind::Thread) if the runtime is shutting down.
//!
//! # Limitations
//!
//! * The runtime must have time enabled, as `enable_all` and `#[tokio::main]` do. Without it, and outside
//!   of a runtime, the methods panic. Guards may be dropped anywhere.
//! * A process that is stopped inside an operation can block the changes of all keys that share its latch,
//!   and threads of the blocking pool with them, until it continues.

/// The documentation of a method that does what a blocking method does. `$differs`: the differences.
macro_rules! same_as {
    ($method:literal, $cancel_safe:literal $(, $differs:literal)?) => {
        concat!(
            "As [`", $method, "`](crate::", $method, "). ", $($differs, " ",)? "Cancel safe: ", $cancel_safe,
            ".\n\n# Errors\n\nThose of the blocking method, and ",
            "[`ErrorKind::Thread`](crate::ErrorKind::Thread).",
        )
    };
}

mod blocking;
mod changes;
mod compute;
mod guard;
mod listing;
mod lock_all;
mod locks;
mod pending;
mod queue;
mod records;
mod transaction;
mod wait;
mod watch;

use std::fmt;
use std::sync::Arc;

use crate::process::thread_id;
use crate::store::futures::{Blocking, RecordStoreFuture, RecordStoreFutures};
use crate::{Holder, IntoKey, IsolationLevel, Key, RecordStore, Result};

use blocking::{Outcome, Thread};
pub use changes::AsyncStoreChanges;
pub use guard::AsyncLockGuard;
pub use listing::AsyncListing;
pub use lock_all::AsyncLockGuards;
use queue::Queues;
pub use transaction::{AsyncPendingTransaction, AsyncTransaction};
pub use watch::AsyncRecordWatch;

/// The operations of a store. Shared by the calls that are still running.
type Futures = Arc<dyn RecordStoreFutures>;

/// A record store whose operations are futures. See the [module](self).
///
/// Clones are cheap and share the store and the wait queues: give one to each task.
/// `Arc<dyn RecordStore>` is a store too, and every `Arc` of a store [converts](From) into this.
pub struct AsyncRecordStore<S: ?Sized> {
    store: Arc<S>,
    queues: Queues,
}

impl<S: RecordStore + 'static> AsyncRecordStore<S> {
    /// Wraps a store.
    pub fn new(store: S) -> Self {
        Arc::new(store).into()
    }
}

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    /// The wrapped store. Its methods block: call them inside
    /// [`spawn_blocking`](tokio::task::spawn_blocking).
    #[must_use]
    pub fn inner(&self) -> &S {
        &self.store
    }

    /// As [`RecordStoreExt::supports_isolation_level`](crate::RecordStoreExt::supports_isolation_level).
    #[must_use]
    pub fn supports_isolation_level(&self, level: IsolationLevel) -> bool {
        self.store.supports_isolation_level_raw(level)
    }

    /// The operations of the store as futures or, if it has none, as calls that block.
    fn futures(&self) -> Futures {
        self.store.futures_raw().unwrap_or_else(|| self.blocking())
    }

    /// The operations of the store as calls that block.
    fn blocking(&self) -> Futures {
        Arc::new(Blocking(Arc::clone(&self.store)))
    }

    /// Makes a short call, on the blocking pool if it blocks.
    async fn short<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        operation: &'static str,
        key: impl IntoKey,
        call: impl FnOnce(Futures, Key) -> F,
    ) -> Result<T> {
        let key = key.into_key()?;
        let of = key.clone();
        self.call(operation, Some(&key), || None, |store| call(store, of)).await
    }

    /// Makes a call that does not wait. If it blocks, it runs on this thread or, without one, on the pool.
    async fn call<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        operation: &'static str,
        key: Option<&Key>,
        thread: impl FnOnce() -> Option<Thread>,
        call: impl FnOnce(Futures) -> F,
    ) -> Result<T> {
        let futures = self.futures();
        let call: RecordStoreFuture<'static, T> = Box::pin(call(Arc::clone(&futures)));
        if !futures.blocks() {
            return call.await;
        }
        Outcome::of(operation, key, &*futures, thread(), call).await
    }
}

impl<S: ?Sized> From<Arc<S>> for AsyncRecordStore<S> {
    fn from(store: Arc<S>) -> Self {
        Self { store, queues: Queues::default() }
    }
}

impl<S: ?Sized> Clone for AsyncRecordStore<S> {
    fn clone(&self) -> Self {
        Self { store: Arc::clone(&self.store), queues: self.queues.clone() }
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for AsyncRecordStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncRecordStore").field(&self.store).finish()
    }
}

/// The default holder of the calling task: `host:pid:task:<id>`. Outside of a task, as in the future of
/// [`block_on`](tokio::runtime::Runtime::block_on) itself: `host:pid:<thread id>:block_on`.
///
/// It is bound to the process, as [`Holder::current`] is: its locks are free when the process is gone. The
/// end of the task frees no lock, but guards that are dropped with the task do.
///
/// ```
/// use record_store::asynchronous::current_holder;
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
