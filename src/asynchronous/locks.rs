//! The operations on locks.

use std::sync::Arc;
use std::time::Duration;

use super::blocking::Wait;
use super::{AsyncListing, AsyncLockGuard, AsyncLockGuards, AsyncRecordStore};
use crate::{Claim, Holder, IntoKey, LockInfo, LockOptions, LockToken, RecordStore, RecordStoreExt};
use crate::{Result, WaitOptions};

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::acquire_lock", "an acquisition")]
    pub async fn acquire_lock(&self, key: impl IntoKey, options: LockOptions) -> Result<LockToken> {
        Ok(self.lock(key, options).await?.into_token())
    }

    #[doc = same_as!("RecordStoreExt::release_lock", "a change")]
    pub async fn release_lock(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<()> {
        let claim = claim.into();
        self.short("release_lock", key, move |store, key| RecordStoreExt::release_lock(store, key, claim))
            .await
    }

    #[doc = same_as!("RecordStoreExt::renew", "a change")]
    pub async fn renew(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
        hold_timeout: impl Into<Option<Duration>>,
    ) -> Result<()> {
        let (claim, hold_timeout) = (claim.into(), hold_timeout.into());
        self.short("renew", key, move |store, key| {
            store.renew_raw(key, &claim, hold_timeout, WaitOptions::new())
        })
        .await
    }

    #[doc = same_as!("RecordStoreExt::lock", "an acquisition", "The guard owns its store. Tasks that wait \
        through clones of one store get the lock in the order of their requests.")]
    pub async fn lock(&self, key: impl IntoKey, options: LockOptions) -> Result<AsyncLockGuard<S>> {
        self.acquire(key.into_key()?, options).await
    }

    #[doc = same_as!("RecordStoreExt::try_lock", "an acquisition")]
    #[must_use = "the lock is released as soon as the guard is dropped, and `None` means that there is none"]
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

    #[doc = same_as!("RecordStoreExt::lock_all", "an acquisition")]
    pub async fn lock_all<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: LockOptions,
    ) -> Result<AsyncLockGuards<S>> {
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<_>>()?;
        AsyncLockGuards::acquire(self, keys, options).await
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
        let (store, key) = (Arc::clone(&self.store), key.into_key()?);
        let wait = Wait::new("wait_for_lock", Some(&key), &options.into());
        let call = move |options| Ok(store.wait_for_lock_raw(&key, options)?.then_some(()));
        Ok(wait.run_or_none(call).await?.is_some())
    }

    #[doc = same_as!("RecordStoreExt::lock_info", "a read")]
    pub async fn lock_info(&self, key: impl IntoKey) -> Result<Option<LockInfo>> {
        self.short("lock_info", key, S::lock_info_raw).await
    }

    #[doc = same_as!("RecordStoreExt::break_lock", "a change")]
    pub async fn break_lock(&self, key: impl IntoKey) -> Result<bool> {
        self.short("break_lock", key, |store, key| store.break_lock_raw(key, None, WaitOptions::new())).await
    }

    #[doc = same_as!("RecordStoreExt::break_lock_by_token", "a change")]
    pub async fn break_lock_by_token(&self, key: impl IntoKey, token: LockToken) -> Result<bool> {
        self.short("break_lock", key, move |store, key| {
            store.break_lock_raw(key, Some(token), WaitOptions::new())
        })
        .await
    }

    #[doc = same_as!("RecordStoreExt::locks", "a read")]
    pub async fn locks(&self) -> Result<AsyncListing<LockInfo>> {
        AsyncListing::begin("locks", &self.store, S::locks_raw).await
    }
}
