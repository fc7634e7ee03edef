//! Several locks at once.

use std::collections::BTreeSet;
use std::slice;
use std::time::Instant;

use super::{AsyncLockGuard, AsyncRecordStore};
use crate::{Error, IntoKey, LockGuard, LockGuards, LockOptions, RecordStore, Result, WaitOptions};

/// The held locks of several keys, created by [`AsyncRecordStore::lock_all`]. Dropping it releases them, as
/// dropping a [guard](AsyncLockGuard) does.
#[derive(Debug)]
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct AsyncLockGuards<S: RecordStore + ?Sized + 'static> {
    /// In the order of their keys.
    guards: Vec<AsyncLockGuard<S>>,
}

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::lock_all", "an acquisition")]
    pub async fn lock_all<K: IntoKey>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: LockOptions,
    ) -> Result<AsyncLockGuards<S>> {
        // In the order of the guards.
        let keys = keys.into_iter().map(IntoKey::into_key).collect::<Result<BTreeSet<_>>>()?;
        if keys.is_empty() {
            return Ok(AsyncLockGuards { guards: Vec::new() });
        }
        let (keys, blocking) = (keys.into_iter().collect(), self.blocking());
        let acquire =
            self.acquire("lock_all", keys, options, blocking, None, |_, locking, options| async move {
                let (store, of) = (&locking.store, &locking.acquisitions);
                let keys = of.iter().map(|acquisition| acquisition.key().clone()).collect();
                let lock = |key, options| LockGuard::acquire_owned(&store.store, key, options);
                let guards = LockGuards::acquire(keys, &options, lock)?.into_iter().zip(of);
                Ok(guards.map(|(guard, of)| AsyncLockGuard::new(store, guard, of)).collect())
            });
        Ok(AsyncLockGuards { guards: acquire.await? })
    }
}

impl<S: RecordStore + ?Sized + 'static> AsyncLockGuards<S> {
    /// The guard of this key. `None`: it is not among them.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&AsyncLockGuard<S>> {
        let at = self.guards.binary_search_by(|guard| guard.key().as_str().cmp(key)).ok()?;
        self.guards.get(at)
    }

    /// The guards, in the order of their keys.
    pub fn iter(&self) -> slice::Iter<'_, AsyncLockGuard<S>> {
        self.guards.iter()
    }

    /// Restarts all leases. Cancel safe: a change of each lease.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::renew`]; the others are renewed nevertheless.
    pub async fn renew(&self) -> Result<()> {
        self.renew_with(WaitOptions::new()).await
    }

    /// [`renew`](AsyncLockGuards::renew) with a timeout, which is that of all renewals together, or a cancellation.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::renew_with`]; the others are attempted nevertheless.
    pub async fn renew_with(&self, options: impl Into<WaitOptions>) -> Result<()> {
        let (options, start, mut outcome) = (options.into(), Instant::now(), Ok(()));
        for guard in self {
            outcome = outcome.and(guard.renew_with(options.since(start)).await);
        }
        outcome
    }

    /// Renews all leases in the background for as long as the guards live: see [`AsyncLockGuard::keep_alive`]. `on_loss` is
    /// called once for each lock that is lost. Cancel safe: a change of each lock.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::keep_alive`]; the others are kept alive nevertheless.
    pub async fn keep_alive(&self, on_loss: impl Fn(Error) + Clone + Send + 'static) -> Result<()> {
        let mut outcome = Ok(());
        for guard in self {
            outcome = outcome.and(guard.keep_alive(on_loss.clone()).await);
        }
        outcome
    }

    /// Releases all locks, and reports if one was lost before. Cancel safe: the locks are released in the
    /// background then.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::release`]; the others are released nevertheless.
    pub async fn release(self) -> Result<()> {
        self.release_with(WaitOptions::new()).await
    }

    /// [`release`](AsyncLockGuards::release) with a timeout, which is that of all releases together, or a cancellation.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::release_with`]; the others are attempted nevertheless.
    pub async fn release_with(self, options: impl Into<WaitOptions>) -> Result<()> {
        let (options, start, mut outcome) = (options.into(), Instant::now(), Ok(()));
        for guard in self.guards.into_iter().rev() {
            outcome = outcome.and(guard.release_with(options.since(start)).await);
        }
        outcome
    }
}

impl<S: RecordStore + ?Sized + 'static> IntoIterator for AsyncLockGuards<S> {
    type Item = AsyncLockGuard<S>;
    type IntoIter = std::vec::IntoIter<AsyncLockGuard<S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.guards.into_iter()
    }
}

impl<'a, S: RecordStore + ?Sized + 'static> IntoIterator for &'a AsyncLockGuards<S> {
    type Item = &'a AsyncLockGuard<S>;
    type IntoIter = slice::Iter<'a, AsyncLockGuard<S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
