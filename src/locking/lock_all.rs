//! Several locks at once.

use std::fmt;
use std::time::{Duration, Instant};

use super::LockGuard;
use super::guard::DROP_PATIENCE;
use crate::{Error, ErrorKind, Key, LockOptions, RecordStore, Result, WaitOptions};

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
        let options = &options.clone().wait(options.get_wait().of_call(start));
        let mut acquisition = Acquisition { options, start, guards: Vec::new() };
        let mut futile = 0;
        loop {
            let Err(lost) = acquisition.attempt(&keys, &lock)? else {
                return Ok(Self { guards: std::mem::take(&mut acquisition.guards) });
            };
            // A lease expired before the last lock was acquired: start again.
            release_all(&mut acquisition.guards);
            if acquisition.left().is_some_and(|left| left.is_zero()) {
                let error =
                    Error::new(ErrorKind::LockTimeout, "lock_all").with_waited(acquisition.start.elapsed());
                return Err(lost.error.key().cloned().iter().fold(error, Error::with_key));
            }
            futile = if lost.has_waited { 0 } else { futile + 1 };
            if futile == MAX_FUTILE_ATTEMPTS {
                return Err(lost.error);
            }
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
        self.renew_with(WaitOptions::new())
    }

    /// [`renew`](LockGuards::renew) with a timeout, which is that of all renewals together, or a cancellation.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::renew_with`]; the others are attempted nevertheless.
    pub fn renew_with(&self, options: impl Into<WaitOptions>) -> Result<()> {
        let (options, start) = (options.into(), Instant::now());
        first_error(self.guards.iter().map(|guard| guard.renew_with(options.since(start))))
    }

    /// Releases all locks, and reports if one was lost before.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::release`]; the others are released nevertheless.
    pub fn release(self) -> Result<()> {
        self.release_with(WaitOptions::new())
    }

    /// [`release`](LockGuards::release) with a timeout, which is that of all releases together, or a cancellation.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::release_with`]; the others are attempted nevertheless.
    pub fn release_with(self, options: impl Into<WaitOptions>) -> Result<()> {
        let (options, start) = (options.into(), Instant::now());
        let guards = self.into_guards().into_iter().rev();
        first_error(guards.map(|guard| guard.release_with(options.since(start))))
    }

    pub(crate) fn into_guards(mut self) -> Vec<LockGuard<'a, S>> {
        std::mem::take(&mut self.guards)
    }
}

/// The leases are too short if they expire this often although no lock had to be waited for.
const MAX_FUTILE_ATTEMPTS: u32 = 10;

/// The acquisition of several locks.
struct Acquisition<'a, 'o, S: RecordStore + ?Sized> {
    options: &'o LockOptions,
    start: Instant,
    /// Those that are acquired, in the order of their keys.
    guards: Vec<LockGuard<'a, S>>,
}

/// A lock was lost before the last one was acquired.
struct Lost {
    error: Error,
    has_waited: bool,
}

impl<'a, S: RecordStore + ?Sized> Acquisition<'a, '_, S> {
    fn left(&self) -> Option<Duration> {
        self.wait().get_timeout()
    }

    /// The rest of the acquire timeout, and the cancellation.
    fn wait(&self) -> WaitOptions {
        self.options.get_wait().since(self.start)
    }

    /// Acquires the locks in the order of the keys, and renews those that are acquired in between.
    fn attempt(
        &mut self,
        keys: &[Key],
        lock: impl Fn(Key, LockOptions) -> Result<LockGuard<'a, S>>,
    ) -> Result<Result<(), Lost>> {
        let interval = self.options.get_hold_timeout().map(|hold_timeout| hold_timeout / 3);
        let mut renewed = Instant::now();
        let mut has_waited = false;
        for key in keys {
            loop {
                if interval.is_some_and(|interval| renewed.elapsed() >= interval) {
                    renewed = Instant::now();
                    if let Some(error) = self.renew()? {
                        return Ok(Err(Lost { error, has_waited }));
                    }
                }
                let left = self.left();
                let until_renewal = interval.filter(|_| !self.guards.is_empty());
                let timeout = left.into_iter().chain(until_renewal).min();
                match lock(key.clone(), self.options.clone().acquire_timeout(timeout)) {
                    Ok(guard) => break self.guards.push(guard),
                    Err(error) if error.is_timeout() && timeout != left => has_waited = true,
                    Err(error) => return Err(error.waiting_since(self.start)),
                }
            }
        }
        // The first lock may have waited for the last one for most of its lease.
        Ok(self.renew()?.map_or(Ok(()), |error| Err(Lost { error, has_waited })))
    }

    /// Renews the acquired locks. `Some`: one of them is lost.
    fn renew(&self) -> Result<Option<Error>> {
        if self.options.get_hold_timeout().is_none() {
            return Ok(None);
        }
        match first_error(self.guards.iter().map(|guard| guard.renew_with(self.wait()))) {
            Ok(()) => Ok(None),
            Err(error) if error.is_lock_lost() => Ok(Some(error)),
            Err(error) => Err(error),
        }
    }
}

impl<S: RecordStore + ?Sized> Drop for Acquisition<'_, '_, S> {
    fn drop(&mut self) {
        release_all(&mut self.guards);
    }
}

impl<S: RecordStore + ?Sized> Drop for LockGuards<'_, S> {
    fn drop(&mut self) {
        release_all(&mut self.guards);
    }
}

/// Drops the guards. All of them together wait no longer for a stopped process than one guard does.
fn release_all<S: RecordStore + ?Sized>(guards: &mut Vec<LockGuard<'_, S>>) {
    let start = Instant::now();
    while let Some(guard) = guards.pop() {
        // A drop cannot report an error.
        let _ = guard.release_within(DROP_PATIENCE.saturating_sub(start.elapsed()).into());
    }
}

pub(super) fn first_error(outcomes: impl Iterator<Item = Result<()>>) -> Result<()> {
    outcomes.fold(Ok(()), Result::and)
}

impl<S: RecordStore + Clone + 'static> LockGuards<'_, S> {
    /// Renews all leases in the background for as long as the guards live: see [`LockGuard::keep_alive`].
    /// `on_loss` is called once for each lock that is lost.
    ///
    /// # Errors
    ///
    /// The first of [`LockGuard::keep_alive`]; the others are kept alive nevertheless.
    pub fn keep_alive(&self, on_loss: impl Fn(Error) + Clone + Send + 'static) -> Result<()> {
        first_error(self.guards.iter().map(|guard| guard.keep_alive(on_loss.clone())))
    }
}

impl<'a, S: RecordStore + ?Sized> IntoIterator for LockGuards<'a, S> {
    type Item = LockGuard<'a, S>;
    type IntoIter = std::vec::IntoIter<LockGuard<'a, S>>;

    fn into_iter(self) -> Self::IntoIter {
        self.into_guards().into_iter()
    }
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
