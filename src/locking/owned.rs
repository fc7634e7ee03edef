//! Guards that own their store.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use super::lock_all::first_error;
use super::{LockGuard, LockGuards};
use crate::{Error, Key, LockOptions, RecordStore, Result, WaitOptions};

/// A [`LockGuard`] that owns its store: it can be kept in a struct or moved into a thread. Created by
/// [`RecordStoreExt::lock_owned`](crate::RecordStoreExt::lock_owned). It has all methods of a [`LockGuard`].
#[must_use = "the lock is released as soon as the guard is dropped"]
pub struct OwnedLockGuard<S: RecordStore + ?Sized + 'static> {
    guard: LockGuard<'static, S>,
    store: Arc<S>,
}

impl<S: RecordStore + ?Sized + 'static> OwnedLockGuard<S> {
    pub(crate) fn acquire(store: &Arc<S>, key: Key, options: LockOptions) -> Result<Self> {
        let guard = LockGuard::acquire_owned(store, key, options)?;
        Ok(Self { guard, store: Arc::clone(store) })
    }

    /// Renews the lease in the background for as long as the guard lives: see [`LockGuard::keep_alive`]. For any store:
    /// it need not be [`Clone`].
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::keep_alive`].
    pub fn keep_alive(&self, on_loss: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        self.guard.keep_alive_through(Arc::clone(&self.store), on_loss)
    }

    /// Releases the lock, and reports if it was lost before: see [`LockGuard::release`].
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::release`].
    pub fn release(self) -> Result<()> {
        self.guard.release()
    }

    /// [`release`](OwnedLockGuard::release) with a timeout or a cancellation: see [`LockGuard::release_with`].
    ///
    /// # Errors
    ///
    /// As for [`LockGuard::release_with`].
    pub fn release_with(self, options: impl Into<WaitOptions>) -> Result<()> {
        self.guard.release_with(options)
    }
}

impl<S: RecordStore + ?Sized + 'static> Deref for OwnedLockGuard<S> {
    type Target = LockGuard<'static, S>;

    fn deref(&self) -> &LockGuard<'static, S> {
        &self.guard
    }
}

impl<S: RecordStore + ?Sized + 'static> fmt::Debug for OwnedLockGuard<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

/// [`LockGuards`] that own their store. Created by
/// [`RecordStoreExt::lock_all_owned`](crate::RecordStoreExt::lock_all_owned). They have all methods of [`LockGuards`].
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct OwnedLockGuards<S: RecordStore + ?Sized + 'static> {
    guards: LockGuards<'static, S>,
    store: Arc<S>,
}

impl<S: RecordStore + ?Sized + 'static> OwnedLockGuards<S> {
    pub(crate) fn acquire(store: &Arc<S>, keys: Vec<Key>, options: &LockOptions) -> Result<Self> {
        let lock = |key, options| LockGuard::acquire_owned(store, key, options);
        Ok(Self { guards: LockGuards::acquire(keys, options, lock)?, store: Arc::clone(store) })
    }

    /// Renews all leases in the background for as long as the guards live: see [`LockGuards::keep_alive`]. For any
    /// store: it need not be [`Clone`].
    ///
    /// # Errors
    ///
    /// As for [`LockGuards::keep_alive`].
    pub fn keep_alive(&self, on_loss: impl Fn(Error) + Clone + Send + 'static) -> Result<()> {
        let keep = |guard: &LockGuard<'static, S>| {
            guard.keep_alive_through(Arc::clone(&self.store), on_loss.clone())
        };
        first_error(self.guards.iter().map(keep))
    }

    /// Releases all locks, and reports if one was lost before: see [`LockGuards::release`].
    ///
    /// # Errors
    ///
    /// As for [`LockGuards::release`].
    pub fn release(self) -> Result<()> {
        self.guards.release()
    }

    /// [`release`](OwnedLockGuards::release) with a timeout or a cancellation: see [`LockGuards::release_with`].
    ///
    /// # Errors
    ///
    /// As for [`LockGuards::release_with`].
    pub fn release_with(self, options: impl Into<WaitOptions>) -> Result<()> {
        self.guards.release_with(options)
    }
}

impl<S: RecordStore + ?Sized + 'static> Deref for OwnedLockGuards<S> {
    type Target = LockGuards<'static, S>;

    fn deref(&self) -> &LockGuards<'static, S> {
        &self.guards
    }
}

impl<S: RecordStore + ?Sized + 'static> IntoIterator for OwnedLockGuards<S> {
    type Item = OwnedLockGuard<S>;
    type IntoIter = std::vec::IntoIter<OwnedLockGuard<S>>;

    fn into_iter(self) -> Self::IntoIter {
        let Self { guards, store } = self;
        let owned = |guard| OwnedLockGuard { guard, store: Arc::clone(&store) };
        guards.into_guards().into_iter().map(owned).collect::<Vec<_>>().into_iter()
    }
}

impl<'a, S: RecordStore + ?Sized + 'static> IntoIterator for &'a OwnedLockGuards<S> {
    type Item = &'a LockGuard<'static, S>;
    type IntoIter = std::slice::Iter<'a, LockGuard<'static, S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.guards.iter()
    }
}

impl<S: RecordStore + ?Sized + 'static> fmt::Debug for OwnedLockGuards<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guards.fmt(f)
    }
}
