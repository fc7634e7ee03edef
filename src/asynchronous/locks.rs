//! The operations on locks.

use std::future::ready;
use std::time::Duration;

use super::listing::BATCH;
use super::wait::{Wait, or_none, timeout};
use super::{AsyncListing, AsyncLockGuard, AsyncRecordStore};
use crate::locking::holds;
use crate::{
    BreakOptions, Claim, Holder, IntoKey, LockInfo, LockOptions, LockToken, RecordStore, Result, WaitOptions,
};

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::acquire_lock", "an acquisition")]
    pub async fn acquire_lock(&self, key: impl IntoKey, options: LockOptions) -> Result<LockToken> {
        Ok(self.lock(key, options).await?.into_token())
    }

    #[doc = same_as!("RecordStoreExt::release_lock", "a change")]
    pub async fn release_lock(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<()> {
        self.release_lock_with(key, claim, WaitOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::release_lock_with", "a change")]
    pub async fn release_lock_with(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        options: impl Into<WaitOptions>,
    ) -> Result<()> {
        let (claim, identity) = (claim.into(), self.store.identity_raw());
        let options = options.into();
        let release = self.short("release_lock", key, move |store, key| async move {
            // Before the release: after it, another task may have the next lock.
            let known = identity.map(|store| holds::known(store, &key, &claim)).unwrap_or_default();
            store.release_lock(&key, &claim, options).await?;
            if let Some(store) = identity {
                holds::released_explicitly(store, &key, &known);
            }
            Ok(())
        });
        release.await
    }

    #[doc = same_as!("RecordStoreExt::renew", "a change")]
    pub async fn renew(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: impl Into<Option<Duration>>,
    ) -> Result<()> {
        self.renew_with(key, claim, hold_timeout, WaitOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::renew_with", "a change")]
    pub async fn renew_with(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: impl Into<Option<Duration>>,
        options: impl Into<WaitOptions>,
    ) -> Result<()> {
        let (claim, hold_timeout) = (claim.into(), hold_timeout.into());
        let options = options.into();
        let renew = self.short("renew", key, move |store, key| async move {
            store.renew(&key, &claim, hold_timeout, options).await
        });
        renew.await
    }

    #[doc = same_as!("RecordStoreExt::lock", "an acquisition", "The guard owns its store. Tasks get the lock \
        through clones of one store in the order of their requests. The first poll of a future is its request; if \
        its holder has just dropped a guard of this lock, the end of that guard's release is.")]
    pub async fn lock(&self, key: impl IntoKey, options: LockOptions) -> Result<AsyncLockGuard<S>> {
        const OPERATION: &str = "acquire_lock";
        let (keys, futures, queues) = (vec![key.into_key()?], self.futures(), Some(&self.queues));
        let lock =
            self.acquire(OPERATION, keys, options, futures, queues, |store, locking, options| async move {
                let (holder, key) = (locking.holder(), locking.key());
                // A task must not overtake those before it, unless its holder has the lock or the first turn.
                if !locking.store.queues.is_first(&(OPERATION, key.clone()), holder) {
                    // An error here is also found by the first task, and reported there.
                    let info = store.lock_info(key).await.ok().flatten();
                    if info.as_ref().is_none_or(|info| !info.is_held_by(holder)) {
                        let holder = info.map(|info| info.holder().clone());
                        return Err(timeout(OPERATION).with_key(key).with_holder(holder));
                    }
                }
                locking.lock(&*store, options).await
            });
        lock.await
    }

    #[doc = same_as!("RecordStoreExt::try_lock", "an acquisition")]
    #[must_use = "the lock is released as soon as the guard is dropped, and `None` means that there is none"]
    pub async fn try_lock(
        &self,
        key: impl IntoKey,
        options: LockOptions,
    ) -> Result<Option<AsyncLockGuard<S>>> {
        or_none(self.lock(key, options.acquire_timeout(Duration::ZERO)).await)
    }

    #[doc = same_as!("RecordStoreExt::is_locked", "a read")]
    pub async fn is_locked(&self, key: impl IntoKey) -> Result<bool> {
        Ok(self.lock_info(key).await?.is_some())
    }

    #[doc = same_as!("RecordStoreExt::is_lock_holder", "a read")]
    pub async fn is_lock_holder(&self, key: impl IntoKey, holder: &Holder) -> Result<bool> {
        Ok(self.lock_info(key).await?.is_some_and(|info| info.is_held_by(holder)))
    }

    #[doc = same_as!("RecordStoreExt::wait_for_lock", "a read")]
    pub async fn wait_for_lock(&self, key: impl IntoKey, options: impl Into<WaitOptions>) -> Result<bool> {
        const OPERATION: &str = "wait_for_lock";
        let key = key.into_key()?;
        let wait = Wait::new(OPERATION, Some(&key), &options.into(), self.futures());
        let free = wait.run(ready(()), key, |store, key, options| async move {
            let is_free = store.wait_for_lock(&key, options).await?;
            is_free.then_some(()).ok_or_else(|| timeout(OPERATION))
        });
        Ok(or_none(free.await)?.is_some())
    }

    #[doc = same_as!("RecordStoreExt::lock_info", "a read")]
    pub async fn lock_info(&self, key: impl IntoKey) -> Result<Option<LockInfo>> {
        self.short("lock_info", key, |store, key| async move { store.lock_info(&key).await }).await
    }

    #[doc = same_as!("RecordStoreExt::break_lock", "a change")]
    pub async fn break_lock(&self, key: impl IntoKey) -> Result<bool> {
        self.break_lock_with(key, BreakOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::break_lock_with", "a change")]
    pub async fn break_lock_with(&self, key: impl IntoKey, options: BreakOptions) -> Result<bool> {
        self.short("break_lock", key, |store, key| async move { store.break_lock(&key, options).await }).await
    }

    #[doc = same_as!("RecordStoreExt::locks", "a read")]
    pub async fn locks(&self) -> Result<AsyncListing<LockInfo>> {
        AsyncListing::begin("locks", self, BATCH, S::locks_raw).await
    }
}
