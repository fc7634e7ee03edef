//! Several locks at once.

use std::fmt;
use std::time::Instant;

use super::acquire::waited_since;
use super::{AsyncLockGuard, AsyncRecordStore};
use crate::lock_all::next_wait;
use crate::{Error, Key, LockOptions, RecordStore, Result};

/// The held locks of several keys, by [`AsyncRecordStore::lock_all`]. Dropped, they are released, as
/// [guards](AsyncLockGuard) are.
#[must_use = "the locks are released as soon as the guards are dropped"]
pub struct AsyncLockGuards<S: RecordStore + Clone + 'static> {
    /// In the order of their keys.
    guards: Vec<AsyncLockGuard<S>>,
}

impl<S: RecordStore + Clone + 'static> AsyncLockGuards<S> {
    pub(super) async fn acquire(
        store: &AsyncRecordStore<S>,
        mut keys: Vec<Key>,
        options: &LockOptions,
    ) -> Result<Self> {
        keys.sort_unstable();
        keys.dedup();
        let start = Instant::now();
        loop {
            if let Some(guards) = attempt(store, &keys, options, start).await? {
                return Ok(Self { guards });
            }
            // A lease ran out before the last lock was there: from the beginning.
        }
    }

    /// The guard of this key. `None`: it is not among them.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&AsyncLockGuard<S>> {
        let at = self.guards.binary_search_by(|guard| guard.key().as_str().cmp(key)).ok()?;
        self.guards.get(at)
    }

    /// The guards, in the order of their keys.
    pub fn iter(&self) -> std::slice::Iter<'_, AsyncLockGuard<S>> {
        self.guards.iter()
    }

    /// Starts all leases anew.
    ///
    /// Cancel safe: a change, of each lease.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::renew`]; the others are renewed all the same.
    pub async fn renew(&self) -> Result<()> {
        renew_all(&self.guards).await
    }

    /// Releases all locks, and says so if one was lost before.
    ///
    /// Cancel safe: dropped, they are released in the background.
    ///
    /// # Errors
    ///
    /// The first of [`AsyncLockGuard::release`]; the others are released all the same.
    pub async fn release(self) -> Result<()> {
        let mut outcome = Ok(());
        for guard in self.guards.into_iter().rev() {
            outcome = outcome.and(guard.release().await);
        }
        outcome
    }
}

/// `None` if one of the locks was lost before the last was there.
async fn attempt<S: RecordStore + Clone + 'static>(
    store: &AsyncRecordStore<S>,
    keys: &[Key],
    options: &LockOptions,
    start: Instant,
) -> Result<Option<Vec<AsyncLockGuard<S>>>> {
    let mut guards = Vec::new();
    for key in keys {
        loop {
            let (timeout, is_last) = next_wait(options, start, !guards.is_empty());
            let options = timeout.map_or(options.clone(), |left| options.clone().acquire_timeout(left));
            match store.lock(key, options).await {
                Ok(guard) => break guards.push(guard),
                Err(error) if error.is_timeout() && !is_last => {}
                Err(error) => return Err(waited_since(start, error)),
            }
            if !are_renewed(&guards).await? {
                return Ok(None);
            }
        }
    }
    // The first lock may have been waiting for the last one for most of its lease.
    let all = options.get_hold_timeout().is_none() || are_renewed(&guards).await?;
    Ok(all.then_some(guards))
}

/// `false` if one of the locks is lost.
async fn are_renewed<S: RecordStore + Clone + 'static>(guards: &[AsyncLockGuard<S>]) -> Result<bool> {
    match renew_all(guards).await {
        Ok(()) => Ok(true),
        Err(Error::LockLost { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

async fn renew_all<S: RecordStore + Clone + 'static>(guards: &[AsyncLockGuard<S>]) -> Result<()> {
    let mut outcome = Ok(());
    for guard in guards {
        outcome = outcome.and(guard.renew().await);
    }
    outcome
}

impl<'a, S: RecordStore + Clone + 'static> IntoIterator for &'a AsyncLockGuards<S> {
    type Item = &'a AsyncLockGuard<S>;
    type IntoIter = std::slice::Iter<'a, AsyncLockGuard<S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<S: RecordStore + Clone + 'static> fmt::Debug for AsyncLockGuards<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.guards).finish()
    }
}
