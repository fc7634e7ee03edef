//! Several locks at once.

use std::slice;
use std::sync::Arc;

use super::acquire::PendingAcquire;
use super::{AsyncLockGuard, AsyncRecordStore};
use crate::{Key, LockGuard, LockGuards, LockOptions, RecordStore, Result};

/// The held locks of several keys, created by [`AsyncRecordStore::lock_all`]. Dropping it releases them, as
/// dropping a [guard](AsyncLockGuard) does.
#[derive(Debug)]
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct AsyncLockGuards<S: RecordStore + ?Sized + 'static> {
    /// In the order of their keys.
    guards: Vec<AsyncLockGuard<S>>,
}

impl<S: RecordStore + ?Sized + 'static> AsyncLockGuards<S> {
    pub(super) async fn acquire(
        store: &AsyncRecordStore<S>,
        keys: Vec<Key>,
        options: LockOptions,
    ) -> Result<Self> {
        let (pending, options) = PendingAcquire::begin("lock_all", keys.clone(), options).await?;
        let store = Arc::clone(&store.store);
        let call = pending.call(move |timeout| {
            let options = options.clone().acquire_timeout(timeout);
            let lock = |key, options| LockGuard::acquire_owned(&store, key, options);
            let guards = LockGuards::acquire(keys.clone(), &options, lock)?.into_guards();
            Ok(guards.into_iter().map(|guard| AsyncLockGuard::new(&store, guard)).collect())
        });
        let carried = pending.wait.run(call).await?;
        Ok(Self { guards: pending.arrived(carried) })
    }

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
        let mut outcome = Ok(());
        for guard in self {
            outcome = outcome.and(guard.renew().await);
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
        let mut outcome = Ok(());
        for guard in self.guards.into_iter().rev() {
            outcome = outcome.and(guard.release().await);
        }
        outcome
    }
}

impl<'a, S: RecordStore + ?Sized + 'static> IntoIterator for &'a AsyncLockGuards<S> {
    type Item = &'a AsyncLockGuard<S>;
    type IntoIter = slice::Iter<'a, AsyncLockGuard<S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
