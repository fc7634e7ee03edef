//! Several locks at once.

use std::fmt;
use std::time::{Duration, Instant};

use crate::{Error, Key, LockGuard, LockOptions, RecordStore, Result};

/// The held locks of several keys, by
/// [`RecordStoreExt::lock_all`](crate::RecordStoreExt::lock_all). Dropped, they are released, as
/// [guards](LockGuard) are.
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct LockGuards<'a, S: RecordStore + ?Sized> {
    /// In the order of their keys.
    guards: Vec<LockGuard<'a, S>>,
}

impl<'a, S: RecordStore + ?Sized> LockGuards<'a, S> {
    pub(crate) fn acquire(store: &'a S, mut keys: Vec<Key>, options: &LockOptions) -> Result<Self> {
        keys.sort_unstable();
        keys.dedup();
        let mut attempt = Attempt { store, options, start: Instant::now(), guards: Vec::new() };
        while !attempt.succeeds(&keys)? {
            // A lease ran out before the last lock was there: from the beginning.
            attempt.guards.clear();
        }
        Ok(Self { guards: attempt.guards })
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

    /// Starts all leases anew.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::renew`]; the others are renewed all the same.
    pub fn renew(&self) -> Result<()> {
        first_error(self.guards.iter().map(LockGuard::renew))
    }

    /// Releases all locks, and says so if one was lost before.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::release`]; the others are released all the same.
    pub fn release(self) -> Result<()> {
        first_error(self.guards.into_iter().rev().map(LockGuard::release))
    }
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

/// On the way to all locks.
struct Attempt<'a, 'o, S: RecordStore + ?Sized> {
    store: &'a S,
    options: &'o LockOptions,
    start: Instant,
    guards: Vec<LockGuard<'a, S>>,
}

impl<'a, S: RecordStore + ?Sized> Attempt<'a, '_, S> {
    /// `false` if one of the locks was lost before the last was there.
    fn succeeds(&mut self, keys: &[Key]) -> Result<bool> {
        for key in keys {
            loop {
                let (timeout, is_last) = next_wait(self.options, self.start, !self.guards.is_empty());
                match self.lock(key, timeout) {
                    Ok(guard) => break self.guards.push(guard),
                    Err(error) if error.is_timeout() && !is_last => {}
                    Err(error) => return Err(error),
                }
                if !self.renewed()? {
                    return Ok(false);
                }
            }
        }
        // The first lock may have been waiting for the last one for most of its lease.
        self.renewed()
    }

    fn lock(&self, key: &Key, timeout: Option<Duration>) -> Result<LockGuard<'a, S>> {
        let options = timeout.map_or(self.options.clone(), |left| self.options.clone().acquire_timeout(left));
        LockGuard::acquire(self.store, key.clone(), &options)
    }

    /// `false` if one of the locks is lost.
    fn renewed(&self) -> Result<bool> {
        // A lock without a term needs none of this.
        if self.options.get_hold_timeout().is_none() {
            return Ok(true);
        }
        match first_error(self.guards.iter().map(LockGuard::renew)) {
            Ok(()) => Ok(true),
            Err(Error::LockLost { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// How long to wait for a lock before those that are held already have to be renewed, and whether the
/// time is up then.
pub(crate) fn next_wait(options: &LockOptions, start: Instant, holds_any: bool) -> (Option<Duration>, bool) {
    let left = options.get_acquire_timeout().map(|timeout| timeout.saturating_sub(start.elapsed()));
    let renew_after = options.get_hold_timeout().filter(|_| holds_any).map(|hold| hold / 3);
    match (left, renew_after) {
        (Some(left), Some(renew)) if renew < left => (Some(renew), false),
        (None, Some(renew)) => (Some(renew), false),
        (left, _) => (left, true),
    }
}
