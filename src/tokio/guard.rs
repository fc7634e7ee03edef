//! The guard: a held lock as a value.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::blocking::short;
use super::held::Held;
use crate::keep_alive::KeepAlive;
use crate::record::encode;
use crate::{
    Claim, Error, Holder, Json, Key, LockToken, RecordStore, Result, TransactionRecord, WriteOptions,
};

/// A held lock, by [`AsyncRecordStore::lock`](super::AsyncRecordStore::lock). What a
/// [`LockGuard`](crate::LockGuard) is to a thread, this is to a task: what is done through it is
/// fenced, and only the outermost guard of a holder releases.
///
/// It owns what it needs, so it may be moved to another task, and stays with its holder there. Dropped,
/// it releases the lock in the background, on panic, when the task is aborted and when the runtime
/// shuts down too; [`release`](AsyncLockGuard::release) waits for it and says so if the lock was lost
/// before. In a forked child the guard is worth nothing.
///
/// ```
/// use record_store::tokio::AsyncRecordStore;
/// use record_store::{LockOptions, MemoryRecordStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> record_store::Result<()> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// let guard = store.lock("visits", LockOptions::new()).await?;
/// let visits: u64 = guard.read().await?.map_or(0, |record| record.result);
/// guard.write(&(visits + 1)).await?;
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct AsyncLockGuard<S: RecordStore + Clone + 'static> {
    held: Held<S>,
    hold_timeout: Option<Duration>,
}

impl<S: RecordStore + Clone + 'static> AsyncLockGuard<S> {
    pub(super) fn new(held: Held<S>, hold_timeout: Option<Duration>) -> Self {
        Self { held, hold_timeout }
    }

    /// The locked record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.held.key
    }

    /// Who holds the lock.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.held.holder
    }

    /// The fencing token of this acquisition.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.held.token
    }

    /// Reads the record. `Ok(None)`: there is none. Does not wait.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::read`](crate::LockGuard::read), and [`Error::Thread`] if the runtime is
    /// shutting down.
    pub async fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        let json = self.on_store("read", |store, key, claim| store.read_json(key, claim, None)).await?;
        json.map(|json| TransactionRecord::decode("read", self.key().clone(), &json)).transpose()
    }

    /// Writes the record, fenced by this acquisition's token.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::write`](crate::LockGuard::write), and [`Error::Thread`] if the runtime is
    /// shutting down.
    pub async fn write<R: Serialize + ?Sized>(&self, result: &R) -> Result<()> {
        self.write_with(result, WriteOptions::new()).await
    }

    /// [`write`](AsyncLockGuard::write) with options: a time to live.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`write`](AsyncLockGuard::write).
    pub async fn write_with<R: Serialize + ?Sized>(&self, result: &R, options: WriteOptions) -> Result<()> {
        let json = encode("write", self.key(), result)?;
        self.write_json(json, options).await
    }

    pub(super) async fn write_json(&self, json: Json, options: WriteOptions) -> Result<()> {
        self.on_store("write", move |store, key, claim| store.write_json(key, &json, claim, &options)).await
    }

    /// Removes the record, fenced by this acquisition's token. `false`: there was none.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::remove`](crate::LockGuard::remove), and [`Error::Thread`] if the runtime is
    /// shutting down.
    pub async fn remove(&self) -> Result<bool> {
        self.on_store("remove", S::remove_record).await
    }

    /// Starts the lease anew, with the hold timeout with which the lock was taken.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::renew`](crate::LockGuard::renew), and [`Error::Thread`] if the runtime is
    /// shutting down.
    pub async fn renew(&self) -> Result<()> {
        let hold_timeout = self.hold_timeout;
        self.on_store("renew", move |store, key, claim| store.renew_lease(key, claim, hold_timeout)).await
    }

    /// What is left of the lease. `Ok(None)`: it has no term.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::remaining`](crate::LockGuard::remaining), and [`Error::Thread`] if the
    /// runtime is shutting down.
    pub async fn remaining(&self) -> Result<Option<Duration>> {
        match self.on_store("remaining", |store, key, _| store.current_lock(key)).await? {
            Some(info) if info.token() == self.token() => Ok(info.remaining()),
            _ => Err(self.held.lost("remaining")),
        }
    }

    /// Whether this acquisition's lock is still live. The answer is about a moment that is over when
    /// it arrives; only what is done through the guard is fenced.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::is_held`](crate::LockGuard::is_held), and [`Error::Thread`] if the runtime
    /// is shutting down.
    pub async fn is_held(&self) -> Result<bool> {
        match self.remaining().await {
            Ok(_) => Ok(true),
            Err(error) if error.is_lock_lost() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renews the lease in the background for as long as the guard lives, as
    /// [`LockGuard::keep_alive`](crate::LockGuard::keep_alive) does: on a thread of its own, which also
    /// calls `on_loss`. An executor that is blocked does not lose the lock.
    ///
    /// Cancel safe: dropped, nothing runs in the background, unless it did before.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::keep_alive`](crate::LockGuard::keep_alive).
    pub async fn keep_alive(&mut self, on_loss: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        let claim = self.held.claim("renew")?;
        let Some(hold_timeout) = self.hold_timeout else { return Ok(()) };
        // One at a time, and the end of the last one is waited for elsewhere.
        let last = self.held.keep_alive.take();
        let (store, key) = (self.held.store.clone(), self.key().clone());
        let started = short("keep_alive", Some(self.key()), move || {
            drop(last);
            store.renew_lease(&key, &claim, Some(hold_timeout))?;
            let of = key.clone();
            let renew = move || store.renew_lease(&of, &claim, Some(hold_timeout));
            let thread = |source| Error::Thread { operation: "keep_alive", key: Some(key), source };
            KeepAlive::start(hold_timeout, renew, on_loss).map_err(thread)
        });
        self.held.keep_alive = Some(started.await?);
        Ok(())
    }

    /// Releases the lock, and says so if it was lost before. An inner guard leaves the lock to the
    /// outermost one.
    ///
    /// Cancel safe: dropped, it is released in the background.
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::release`](crate::LockGuard::release), and [`Error::Thread`] if the runtime
    /// is shutting down; it is released all the same then.
    pub async fn release(self) -> Result<()> {
        self.held.release().await
    }

    /// Does something short by this acquisition's token.
    async fn on_store<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(&S, &Key, &Claim) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let claim = self.held.claim(operation)?;
        let (store, key) = (self.held.store.clone(), self.held.key.clone());
        short(operation, Some(self.key()), move || work(&store, &key, &claim)).await
    }
}

impl<S: RecordStore + Clone + 'static> fmt::Debug for AsyncLockGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncLockGuard")
            .field("key", self.key())
            .field("holder", self.holder())
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}
