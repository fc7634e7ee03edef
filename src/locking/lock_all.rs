//! Several locks at once.

use std::fmt;
use std::time::{Duration, Instant};

use super::LockGuard;
use crate::{Key, LockOptions, RecordStore, Result};

/// The held locks of several keys, created by
/// [`RecordStoreExt::lock_all`](crate::RecordStoreExt::lock_all). Dropping it releases them, as dropping a
/// [guard](LockGuard) does.
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct LockGuards<'a, S: RecordStore + ?Sized> {
    /// In the order of their keys.
    guards: Vec<LockGuard<'a, S>>,
}

impl<'a, S: RecordStore + ?Sized> LockGuards<'a, S> {
    /// Acquires all locks with `lock`, which acquires one.
    pub(crate) fn acquire(
        mut keys: Vec<Key>,
        options: &LockOptions,
        lock: impl Fn(Key, LockOptions) -> Result<LockGuard<'a, S>>,
    ) -> Result<Self> {
        keys.sort_unstable();
        keys.dedup();
        let start = Instant::now();
        let mut guards = Self { guards: Vec::new() };
        while !guards.acquire_in_order(&keys, options, start, &lock)? {
            // A lease expired before the last lock was acquired: start again.
            guards.guards.clear();
        }
        Ok(guards)
    }

    /// One attempt. `false` if one of the locks was lost before the last one was acquired.
    fn acquire_in_order(
        &mut self,
        keys: &[Key],
        options: &LockOptions,
        start: Instant,
        lock: impl Fn(Key, LockOptions) -> Result<LockGuard<'a, S>>,
    ) -> Result<bool> {
        for key in keys {
            loop {
                let left = options.get_acquire_timeout().map(|time| time.saturating_sub(start.elapsed()));
                let renew_after = renew_interval(options).filter(|_| !self.guards.is_empty());
                let timeout = left.into_iter().chain(renew_after).min();
                match lock(key.clone(), options.clone().acquire_timeout(timeout)) {
                    Ok(guard) => break self.guards.push(guard),
                    // The locks that are held already have to be renewed in between.
                    Err(error) if error.is_timeout() && timeout != left => {}
                    Err(error) if error.is_timeout() => return Err(error.with_waited(start.elapsed())),
                    Err(error) => return Err(error),
                }
                if !self.are_renewed(options)? {
                    return Ok(false);
                }
            }
        }
        // The first lock may have waited for the last one for most of its lease.
        self.are_renewed(options)
    }

    /// `false` if one of the locks is lost.
    fn are_renewed(&self, options: &LockOptions) -> Result<bool> {
        if options.get_hold_timeout().is_none() {
            return Ok(true);
        }
        match self.renew() {
            Ok(()) => Ok(true),
            Err(error) if error.is_lock_lost() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The guard of this key. `None`: it is not among them.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&LockGuard<'a, S>> {
        let at = self.guards.binary_search_by(|guard| guard.key().as_str().cmp(key)).ok()?;
        self.guards.get(at)
    }

    /// The guards, in the order of their keys.
    pub fn iter(&self) -> std::slice::Iter<'_, LockGuard<'a, S>> {
        self.guards.iter()
    }

    /// Restarts all leases.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::renew`]; the others are renewed nevertheless.
    pub fn renew(&self) -> Result<()> {
        first_error(self.guards.iter().map(LockGuard::renew))
    }

    /// Releases all locks, and reports if one was lost before.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::release`]; the others are released nevertheless.
    pub fn release(self) -> Result<()> {
        first_error(self.guards.into_iter().rev().map(LockGuard::release))
    }

    #[cfg(feature = "tokio")]
    pub(crate) fn into_guards(self) -> Vec<LockGuard<'a, S>> {
        self.guards
    }
}

/// The time after which the held locks have to be renewed.
fn renew_interval(options: &LockOptions) -> Option<Duration> {
    options.get_hold_timeout().map(|hold_timeout| hold_timeout / 3)
}

fn first_error(outcomes: impl Iterator<Item = Result<()>>) -> Result<()> {
    outcomes.fold(Ok(()), Result::and)
}

impl<'s, 'a, S: RecordStore + ?Sized> IntoIterator for &'s LockGuards<'a, S> {
    type Item = &'s LockGuard<'a, S>;
    type IntoIter = std::slice::Iter<'s, LockGuard<'a, S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<S: RecordStore + ?Sized> fmt::Debug for LockGuards<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.guards).finish()
    }
}
