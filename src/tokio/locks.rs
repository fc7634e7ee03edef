//! Taking locks and asking about them.

use std::ops::ControlFlow;
use std::time::Duration;

use super::blocking::{in_slices, short};
use super::{AsyncListing, AsyncLockGuard, AsyncLockGuards, AsyncRecordStore};
use crate::{Claim, Holder, IntoKey, LockInfo, LockOptions, LockToken, RecordStore, Result};

impl<S: RecordStore + Clone + 'static> AsyncRecordStore<S> {
    /// Takes the lock and returns its token, as
    /// [`RecordStoreExt::acquire_lock`](crate::RecordStoreExt::acquire_lock) does. Whoever acquires must
    /// [release](AsyncRecordStore::release_lock); [`lock`](AsyncRecordStore::lock) does both, also
    /// when its task is aborted in between.
    ///
    /// Cancel safe: an acquisition.
    ///
    /// # Errors
    ///
    /// As for [`lock`](AsyncRecordStore::lock).
    pub async fn acquire_lock(&self, key: impl IntoKey, options: &LockOptions) -> Result<LockToken> {
        Ok(self.acquire(&key.into_key()?, options).await?.keep())
    }

    /// Releases the lock.
    ///
    /// ```
    /// use record_store::tokio::{AsyncRecordStore, current_holder};
    /// use record_store::{LockOptions, MemoryRecordStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> record_store::Result<()> {
    /// let store = AsyncRecordStore::new(MemoryRecordStore::new());
    /// store.acquire_lock("report", &LockOptions::new()).await?;
    /// store.release_lock("report", current_holder()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::release_lock`](crate::RecordStoreExt::release_lock), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn release_lock(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<()> {
        let (store, key, claim) = (self.store.clone(), key.into_key()?, claim.into());
        short("release_lock", Some(&key.clone()), move || store.release(&key, &claim)).await
    }

    /// Starts the lease of a held lock anew: it ends `hold_timeout` from now, or, with `None`, when it
    /// is released.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`release_lock`](AsyncRecordStore::release_lock).
    pub async fn renew(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: Option<Duration>,
    ) -> Result<()> {
        let (store, key, claim) = (self.store.clone(), key.into_key()?, claim.into());
        short("renew", Some(&key.clone()), move || store.renew_lease(&key, &claim, hold_timeout)).await
    }

    /// Takes the lock and returns the guard that holds it, as
    /// [`RecordStoreExt::lock`](crate::RecordStoreExt::lock) does. The guard owns what it needs, and
    /// may be moved to another task.
    ///
    /// Tasks that wait through clones of one store are served in the order in which they asked.
    ///
    /// Cancel safe: an acquisition.
    ///
    /// # Errors
    ///
    /// [`Error::LockTimeout`](crate::Error::LockTimeout) when the time is up; it names the holder.
    /// [`Error::Cancelled`](crate::Error::Cancelled) if the options have a
    /// [`Cancellation`](crate::Cancellation) that is. [`Error::Thread`](crate::Error::Thread) if the
    /// runtime is shutting down.
    pub async fn lock(&self, key: impl IntoKey, options: LockOptions) -> Result<AsyncLockGuard<S>> {
        let held = self.acquire(&key.into_key()?, &options).await?;
        Ok(AsyncLockGuard::new(held, options.get_hold_timeout()))
    }

    /// [`lock`](AsyncRecordStore::lock) that does not wait: `Ok(None)` if the lock cannot be had at
    /// once.
    ///
    /// Cancel safe: an acquisition.
    ///
    /// # Errors
    ///
    /// As for [`lock`](AsyncRecordStore::lock), but no
    /// [`Error::LockTimeout`](crate::Error::LockTimeout).
    pub async fn try_lock(
        &self,
        key: impl IntoKey,
        options: LockOptions,
    ) -> Result<Option<AsyncLockGuard<S>>> {
        match self.lock(key, options.acquire_timeout(Duration::ZERO)).await {
            Ok(guard) => Ok(Some(guard)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the locks of several keys: all, or none when the time is up. As
    /// [`RecordStoreExt::lock_all`](crate::RecordStoreExt::lock_all) does: one by one in the order of
    /// the keys.
    ///
    /// ```
    /// use record_store::tokio::AsyncRecordStore;
    /// use record_store::{LockOptions, MemoryRecordStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> record_store::Result<()> {
    /// let store = AsyncRecordStore::new(MemoryRecordStore::new());
    /// let guards = store.lock_all(["to", "from"], LockOptions::new()).await?;
    /// guards.get("from").expect("it is locked").write(&90).await?;
    /// guards.get("to").expect("it is locked").write(&110).await?;
    /// guards.release().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe: an acquisition.
    ///
    /// # Errors
    ///
    /// As for [`lock`](AsyncRecordStore::lock). No lock is held then.
    pub async fn lock_all<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: LockOptions,
    ) -> Result<AsyncLockGuards<S>> {
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<_>>()?;
        AsyncLockGuards::acquire(self, keys, &options).await
    }

    /// Whether the key has a live lock, whoever's it is.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](AsyncRecordStore::lock_info).
    pub async fn is_locked(&self, key: impl IntoKey) -> Result<bool> {
        Ok(self.lock_info(key).await?.is_some())
    }

    /// Whether this holder has the key's live lock.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](AsyncRecordStore::lock_info).
    pub async fn is_lock_holder(&self, key: impl IntoKey, holder: &Holder) -> Result<bool> {
        Ok(self.lock_info(key).await?.is_some_and(|info| info.is_held_by(holder)))
    }

    /// Waits until the key has no live lock: `true`, or `false` when the time is up first. `None`
    /// waits for ever; zero looks once. Takes no lock.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`lock_info`](AsyncRecordStore::lock_info).
    pub async fn wait_for_lock(&self, key: impl IntoKey, timeout: Option<Duration>) -> Result<bool> {
        let (store, key) = (self.store.clone(), key.into_key()?);
        let of = key.clone();
        let look = move |timeout| match store.wait_until_free(&of, Some(timeout)) {
            Ok(false) => ControlFlow::Continue(Ok(false)),
            outcome => ControlFlow::Break(outcome),
        };
        in_slices("wait_for_lock", &key, timeout, look).await?
    }

    /// The key's live lock: who holds it, since when and until when. `Ok(None)`: it has none.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::lock_info`](crate::RecordStoreExt::lock_info), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn lock_info(&self, key: impl IntoKey) -> Result<Option<LockInfo>> {
        let (store, key) = (self.store.clone(), key.into_key()?);
        short("lock_info", Some(&key.clone()), move || store.current_lock(&key)).await
    }

    /// Takes the lock away from whoever has it: see
    /// [`RecordStoreExt::break_lock`](crate::RecordStoreExt::break_lock).
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::break_lock`](crate::RecordStoreExt::break_lock), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn break_lock(&self, key: impl IntoKey) -> Result<bool> {
        let (store, key) = (self.store.clone(), key.into_key()?);
        short("break_lock", Some(&key.clone()), move || store.force_release(&key)).await
    }

    /// Every lock that the store knows of, in no order: see
    /// [`RecordStoreExt::locks`](crate::RecordStoreExt::locks).
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`keys`](AsyncRecordStore::keys).
    pub async fn locks(&self) -> Result<AsyncListing<LockInfo>> {
        AsyncListing::begin("locks", self.store.clone(), |store| store.all_locks()).await
    }
}
