//! The guard: a held lock as a value.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::AsyncRecordStore;
use super::blocking::Outcome;
use super::pending::Acquisition;
use crate::{Error, Holder, Json, Key, LockGuard, LockToken, RecordStore, Result};
use crate::{ReadOptions, RemoveOptions, TransactionRecord, WaitOptions, WriteOptions};

/// A held lock. Created by [`AsyncRecordStore::lock`](super::AsyncRecordStore::lock). It is to a task what a
/// [`LockGuard`] is to a thread: its operations are fenced, and the last guard of a holder releases.
///
/// It owns its store, so it can be moved to another task; it keeps its holder there. Dropping it releases
/// the lock in the background, also during a panic, when the task is aborted, and when the runtime shuts
/// down. [`release`](AsyncLockGuard::release) waits for the release, and reports if the lock was lost. In a
/// forked child the guard is useless: every operation is
/// [`ErrorKind::LockLost`](crate::ErrorKind::LockLost).
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct AsyncLockGuard<S: RecordStore + ?Sized + 'static> {
    /// Shared with the operations that run on the pool.
    held: Arc<Held<S>>,
}

struct Held<S: RecordStore + ?Sized + 'static> {
    guard: LockGuard<'static, S>,
    store: AsyncRecordStore<S>,
    /// Dropped after the guard, so the release is pending until it is done.
    acquisition: Arc<Acquisition>,
}

impl<S: RecordStore + ?Sized + 'static> AsyncLockGuard<S> {
    pub(super) fn new(
        store: &AsyncRecordStore<S>,
        guard: LockGuard<'static, S>,
        acquisition: &Arc<Acquisition>,
    ) -> Self {
        let (store, acquisition) = (store.clone(), Arc::clone(acquisition));
        Self { held: Arc::new(Held { guard, store, acquisition }) }
    }

    /// The locked record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        self.held.guard.key()
    }

    /// The holder of the lock.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        self.held.guard.holder()
    }

    /// The fencing token of this acquisition.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.held.guard.token()
    }

    #[doc = same_as!("LockGuard::read", "a read")]
    pub async fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        self.read_with(ReadOptions::new()).await
    }

    #[doc = same_as!("LockGuard::read_with", "a read")]
    pub async fn read_with<R: DeserializeOwned>(
        &self,
        options: ReadOptions,
    ) -> Result<Option<TransactionRecord<R>>> {
        let claim = self.held.guard.claim("read")?;
        self.held.store.read_with(self.key(), options.claim(claim)).await
    }

    #[doc = same_as!("LockGuard::write", "a change")]
    pub async fn write<R: Serialize + ?Sized>(&self, result: &R) -> Result<()> {
        self.write_with(result, WriteOptions::new()).await
    }

    #[doc = same_as!("LockGuard::write_with", "a change")]
    pub async fn write_with<R: Serialize + ?Sized>(&self, result: &R, options: WriteOptions) -> Result<()> {
        self.write_raw(Json::encode_result("write", self.key(), result)?, options).await
    }

    pub(super) async fn write_raw(&self, result: Json, options: WriteOptions) -> Result<()> {
        let result = Arc::new(result);
        let shared = Arc::clone(&result);
        let written = match self.held.store.store.futures_raw() {
            None => self.short("write", move |guard| guard.write_raw(&shared, options)).await,
            Some(futures) => match self.held.guard.claim("write") {
                Ok(claim) => futures.write(self.key(), &shared, options.claim(claim)).await,
                Err(lost) => Err(lost),
            },
        };
        // Also if no thread could run it.
        written.map_err(|error| error.with_unstored(Json::clone(&result)))
    }

    #[doc = same_as!("LockGuard::remove", "a change")]
    pub async fn remove(&self) -> Result<bool> {
        if let Some(futures) = self.held.store.store.futures_raw() {
            let claim = self.held.guard.claim("remove")?;
            return futures.remove(self.key(), RemoveOptions::new().claim(claim)).await;
        }
        self.short("remove", LockGuard::remove).await
    }

    #[doc = same_as!("LockGuard::renew", "a change")]
    pub async fn renew(&self) -> Result<()> {
        if let Some(futures) = self.held.store.store.futures_raw() {
            let claim = self.held.guard.claim("renew")?;
            let hold_timeout = self.held.guard.hold_timeout();
            return futures.renew(self.key(), &claim, hold_timeout, WaitOptions::new()).await;
        }
        self.short("renew", LockGuard::renew).await
    }

    #[doc = same_as!("LockGuard::remaining", "a read")]
    pub async fn remaining(&self) -> Result<Option<Duration>> {
        if let Some(futures) = self.held.store.store.futures_raw() {
            return Ok(self.held.guard.info_by_futures(&*futures, "remaining").await?.remaining());
        }
        self.short("remaining", LockGuard::remaining).await
    }

    #[doc = same_as!("LockGuard::is_held", "a read")]
    pub async fn is_held(&self) -> Result<bool> {
        if let Some(futures) = self.held.store.store.futures_raw() {
            return match self.held.guard.info_by_futures(&*futures, "is_held").await {
                Ok(_) => Ok(true),
                Err(error) if error.is_lock_lost() => Ok(false),
                Err(error) => Err(error),
            };
        }
        self.short("is_held", LockGuard::is_held).await
    }

    #[doc = same_as!("LockGuard::keep_alive", "a change, which the end of the guard undoes", "A thread of its \
        own renews, and calls `on_loss`: an executor that is blocked does not lose the lock.")]
    pub async fn keep_alive(&self, on_loss: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        let store = Arc::clone(&self.held.store.store);
        self.short("keep_alive", move |guard| guard.keep_alive_through(store, on_loss)).await
    }

    #[doc = same_as!("LockGuard::release", "the lock is released in the background then")]
    pub async fn release(self) -> Result<()> {
        self.held.acquisition.give_up();
        if let Some(futures) = self.held.store.store.futures_raw() {
            // To its end, also if this future is dropped.
            let held = Arc::clone(&self.held);
            let by = Arc::clone(&futures);
            let release = async move { held.guard.release_and_report_by_futures(&*by).await };
            let mut outcome = Outcome::of_future(&*futures, Box::pin(release));
            return outcome.receive("release_lock", Some(self.key())).await;
        }
        self.short("release_lock", LockGuard::release_and_report).await
    }

    /// Leaves the lock to be released by its token or its holder.
    pub(super) fn into_token(self) -> LockToken {
        self.held.guard.leave_locked()
    }

    /// Runs a short operation on the blocking pool. In a forked child, whose pool has no threads, it fails
    /// before that.
    async fn short<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&LockGuard<'static, S>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.held.guard.claim(operation)?;
        let held = Arc::clone(&self.held);
        let mut outcome = Outcome::on_pool(move || work(&held.guard));
        outcome.receive(operation, Some(self.key())).await
    }
}

impl<S: RecordStore + ?Sized + 'static> Drop for AsyncLockGuard<S> {
    fn drop(&mut self) {
        if !self.held.guard.needs_release() {
            return;
        }
        self.held.acquisition.give_up();
        if let Some(futures) = self.held.store.store.futures_raw() {
            let (held, by) = (Arc::clone(&self.held), Arc::clone(&futures));
            futures.spawn(Box::pin(async move {
                let _ = held.guard.release_by_futures(&*by, WaitOptions::new()).await;
            }));
            return;
        }
        // Outside of a runtime, and when it is shutting down, the last handle releases as it is dropped.
        if let Ok(runtime) = Handle::try_current() {
            let held = Arc::clone(&self.held);
            runtime.spawn_blocking(move || drop(held.guard.release_within(WaitOptions::new())));
        }
    }
}

impl<S: RecordStore + ?Sized + 'static> fmt::Debug for AsyncLockGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncLockGuard").field(&self.held.guard).finish()
    }
}
