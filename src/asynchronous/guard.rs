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
use crate::compute::{Call, Held as Computes};
use crate::{Claim, Error, Holder, Json, Key, LockGuard, LockToken, RawRecord, ReadOptions, RecordStore};
use crate::{RemoveOptions, Result, TransactionRecord, WaitOptions, WriteOptions};

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
    /// Shared with the calls that are still running.
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
        self.read_raw(options).await?.map(|record| record.decode("read", self.key().clone())).transpose()
    }

    async fn read_raw(&self, options: ReadOptions) -> Result<Option<RawRecord>> {
        let claim = self.claim("read")?;
        self.held.store.read_raw(self.key(), options.claim(claim)).await
    }

    #[doc = same_as!("LockGuard::write", "a change")]
    pub async fn write<R: Serialize + ?Sized>(&self, result: &R) -> Result<()> {
        self.write_with(result, WriteOptions::new()).await
    }

    #[doc = same_as!("LockGuard::write_with", "a change")]
    pub async fn write_with<R: Serialize + ?Sized>(&self, result: &R, options: WriteOptions) -> Result<()> {
        self.write_json(&Arc::new(Json::encode_result("write", self.key(), result)?), options).await
    }

    async fn write_json(&self, result: &Arc<Json>, options: WriteOptions) -> Result<()> {
        let write = async {
            let claim = self.claim("write")?;
            self.held.store.write_json(self.key(), Arc::clone(result), options.claim(claim)).await
        };
        // Also if no thread could run it.
        write.await.map_err(|error| error.with_unstored(Json::clone(result)))
    }

    #[doc = same_as!("LockGuard::remove", "a change")]
    pub async fn remove(&self) -> Result<bool> {
        self.remove_with(RemoveOptions::new()).await
    }

    #[doc = same_as!("LockGuard::remove_with", "a change")]
    pub async fn remove_with(&self, options: RemoveOptions) -> Result<bool> {
        let claim = self.claim("remove")?;
        self.held.store.remove_with(self.key(), options.claim(claim)).await
    }

    #[doc = same_as!("LockGuard::renew", "a change")]
    pub async fn renew(&self) -> Result<()> {
        self.renew_with(WaitOptions::new()).await
    }

    #[doc = same_as!("LockGuard::renew_with", "a change")]
    pub async fn renew_with(&self, options: impl Into<WaitOptions>) -> Result<()> {
        let claim = self.claim("renew")?;
        self.held.store.renew_with(self.key(), claim, self.held.guard.hold_timeout(), options).await
    }

    #[doc = same_as!("LockGuard::remaining", "a read")]
    pub async fn remaining(&self) -> Result<Option<Duration>> {
        self.claim("remaining")?;
        let info = self.held.store.lock_info(self.key()).await?;
        Ok(self.held.guard.own("remaining", info)?.remaining())
    }

    #[doc = same_as!("LockGuard::is_held", "a read")]
    pub async fn is_held(&self) -> Result<bool> {
        match self.remaining().await {
            Ok(_) => Ok(true),
            Err(error) if error.is_lock_lost() => Ok(false),
            Err(error) => Err(error),
        }
    }

    #[doc = same_as!("LockGuard::keep_alive", "a change, which the end of the guard undoes", "A thread of its \
        own renews, and calls `on_loss`: an executor that is blocked does not lose the lock.")]
    pub async fn keep_alive(&self, on_loss: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        // A forked child's pool has no threads.
        self.claim("keep_alive")?;
        let held = Arc::clone(&self.held);
        let call = async move { held.guard.keep_alive_through(Arc::clone(&held.store.store), on_loss) };
        Outcome::of("keep_alive", Some(self.key()), &*self.held.store.blocking(), None, call).await
    }

    #[doc = same_as!("LockGuard::release", "the lock is released in the background then")]
    pub async fn release(self) -> Result<()> {
        self.release_with(WaitOptions::new()).await
    }

    #[doc = same_as!("LockGuard::release_with", "the lock is released in the background then, within the timeout")]
    pub async fn release_with(self, options: impl Into<WaitOptions>) -> Result<()> {
        self.claim("release_lock")?;
        self.give_up();
        let (held, store, options) = (Arc::clone(&self.held), self.held.store.futures(), options.into());
        let calls = Arc::clone(&store);
        let release = async move { held.guard.release_and_report(&*calls, options).await };
        Outcome::of("release_lock", Some(self.key()), &*store, None, release).await
    }

    pub(super) fn claim(&self, operation: &'static str) -> Result<Claim> {
        self.held.guard.claim(operation)
    }

    /// The same holder's next acquisition waits until this guard is gone.
    pub(super) fn give_up(&self) {
        self.held.acquisition.give_up();
    }

    /// Leaves the lock to be released by its token or its holder.
    pub(super) fn into_token(self) -> LockToken {
        self.held.guard.leave_locked()
    }
}

impl<S: RecordStore + ?Sized + 'static> Computes for AsyncLockGuard<S> {
    fn token(&self) -> LockToken {
        self.token()
    }

    fn read(&self, options: ReadOptions) -> Call<'_, Result<Option<RawRecord>>> {
        Box::pin(self.read_raw(options))
    }

    fn write<'a>(&'a self, result: &'a Arc<Json>, options: WriteOptions) -> Call<'a, Result<()>> {
        Box::pin(self.write_json(result, options))
    }

    fn end<'a>(self) -> Call<'a, ()> {
        Box::pin(async move { drop(self.release().await) })
    }
}

impl<S: RecordStore + ?Sized + 'static> Drop for AsyncLockGuard<S> {
    fn drop(&mut self) {
        if !self.held.guard.needs_release() {
            return;
        }
        self.give_up();
        let (held, store) = (Arc::clone(&self.held), self.held.store.futures());
        // Outside of a runtime, and when it is shutting down, the last handle releases as it is dropped.
        if store.blocks() && Handle::try_current().is_err() {
            return;
        }
        let calls = Arc::clone(&store);
        let release = async move { held.guard.release_by(&*calls, WaitOptions::new()).await };
        drop(Outcome::of("release_lock", Some(self.key()), &*store, None, release));
    }
}

impl<S: RecordStore + ?Sized + 'static> fmt::Debug for AsyncLockGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AsyncLockGuard").field(&self.held.guard).finish()
    }
}
