//! The store in memory: the contract among the threads of one process, and the reference model for
//! every other store.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::value::RawValue;

use crate::same::same_json;
use crate::trace;
use crate::{
    Acquired, Cancellation, Claim, Error, Holder, IsolationLevel, Json, Key, Listing, LockInfo, LockOptions,
};
use crate::{LockState, LockToken, RecordStore, RecordVersion, Result, WriteOptions};

/// Records and locks in memory, shared by the threads of one process and gone with the last clone of
/// the store.
///
/// Behaves as the file store does, so it stands in for one in tests, and it is small enough to be
/// read whole: where the two disagree, this one says what the contract means.
///
/// ```
/// use std::thread;
/// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// thread::scope(|scope| {
///     for _ in 0..4 {
///         scope.spawn(|| {
///             let guard = store.lock("visits", LockOptions::new())?;
///             let visits: u64 = guard.read()?.map_or(0, |record| record.result);
///             guard.write(&(visits + 1))
///         });
///     }
/// });
/// assert_eq!(store.read::<u64>("visits")?.expect("written four times").result, 4);
/// # Ok::<(), record_store::Error>(())
/// ```
///
/// # Limitations
///
/// Leases follow [`Instant`], which on Linux does not count the time during which the machine is
/// suspended. A lease too long for the clocks to hold has no term. A lock whose lease ran out stays
/// listed in [`locks`](crate::RecordStoreExt::locks) until the next one of its key takes its place,
/// and a record whose time to live is over takes up memory until it is written again or removed.
#[derive(Clone, Debug, Default)]
pub struct MemoryRecordStore(Arc<Shared>);

/// What the clones of a handle have in common.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when a lock went, when its lease got another end, and when a record changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Key, Record>,
    locks: BTreeMap<Key, Lock>,
    /// The newest token of all keys.
    newest: u64,
    /// How many writes there were: the version of the last.
    writes: u64,
}

#[derive(Debug)]
struct Record {
    json: Json,
    version: u64,
    /// `None`: it lives for ever.
    ends: Option<Instant>,
}

#[derive(Debug)]
struct Lock {
    holder: Holder,
    token: LockToken,
    acquired_at: SystemTime,
    /// `None`: the lock has no term.
    lease: Option<Lease>,
}

/// The end of a lease, by the clock that decides and by the clock for people.
#[derive(Debug)]
struct Lease {
    end: Instant,
    expires_at: SystemTime,
}

impl Lease {
    /// A lease from now on. One that ends beyond what the clocks can hold has no term.
    fn starting_now(hold_timeout: Option<Duration>) -> Option<Self> {
        let hold_timeout = hold_timeout?;
        Some(Self {
            end: Instant::now().checked_add(hold_timeout)?,
            expires_at: SystemTime::now().checked_add(hold_timeout)?,
        })
    }
}

impl Lock {
    fn is_live(&self, now: Instant) -> bool {
        self.lease.as_ref().is_none_or(|lease| now < lease.end)
    }

    fn info(&self, key: &Key, now: Instant) -> LockInfo {
        let state = if self.is_live(now) { LockState::Held } else { LockState::Expired };
        let info = LockInfo::new(key.clone(), self.holder.clone(), self.token, self.acquired_at)
            .with_state(state)
            .with_owner(Some(true), true);
        match &self.lease {
            Some(lease) => info.with_expiry(lease.expires_at, lease.end.saturating_duration_since(now)),
            None => info,
        }
    }
}

impl State {
    /// The record, unless its time to live is over.
    fn record(&self, key: &Key) -> Option<&Record> {
        self.records.get(key).filter(|record| record.ends.is_none_or(|ends| Instant::now() < ends))
    }

    fn put(&mut self, key: &Key, result: &RawValue, options: &WriteOptions) {
        // A moment that the clock cannot hold never comes.
        let ends = options.get_time_to_live().and_then(|time| Instant::now().checked_add(time));
        self.writes += 1;
        self.records.insert(key.clone(), Record { json: result.to_owned(), version: self.writes, ends });
    }

    fn version(&self, key: &Key) -> RecordVersion {
        let versioned = |record: &Record| RecordVersion::new([record.version, 0, 0, 0]);
        self.record(key).map_or_else(RecordVersion::absent, versioned)
    }

    fn live(&self, key: &Key, now: Instant) -> Option<&Lock> {
        self.locks.get(key).filter(|lock| lock.is_live(now))
    }

    /// Whether a record may be read or changed on this claim.
    fn check(&self, operation: &'static str, key: &Key, claim: &Claim) -> Result<()> {
        let live = self.live(key, Instant::now());
        match claim {
            Claim::Token(token) => match live {
                Some(lock) if lock.token == *token => Ok(()),
                _ => Err(lost(operation, key, *token)),
            },
            Claim::Holder(holder) => match live {
                Some(lock) if lock.holder != *holder => Err(Error::Locked {
                    operation,
                    key: key.clone(),
                    holder: lock.holder.clone(),
                    path: None,
                }),
                _ => Ok(()),
            },
        }
    }

    /// The live lock, if the claim is to that lock itself.
    fn own_lock(&mut self, operation: &'static str, key: &Key, claim: &Claim) -> Result<&mut Lock> {
        let now = Instant::now();
        let live = self.locks.get_mut(key).filter(|lock| lock.is_live(now));
        match (claim, live) {
            (Claim::Token(token), Some(lock)) if lock.token == *token => Ok(lock),
            (Claim::Token(token), _) => Err(lost(operation, key, *token)),
            (Claim::Holder(holder), Some(lock)) if lock.holder == *holder => Ok(lock),
            (Claim::Holder(holder), Some(lock)) => Err(Error::NotLockHolder {
                operation,
                key: key.clone(),
                holder: holder.clone(),
                current: lock.holder.clone(),
                path: None,
            }),
            (Claim::Holder(_), None) => Err(Error::NotLocked { operation, key: key.clone(), path: None }),
        }
    }
}

fn lost(operation: &'static str, key: &Key, token: LockToken) -> Error {
    trace::lost(Error::LockLost { operation, key: key.clone(), token, path: None })
}

/// A wait that ended before the lock did.
enum Blocked {
    TimedOut { holder: Holder, waited: Duration },
    Cancelled,
}

impl Blocked {
    fn into_error(self, operation: &'static str, key: &Key) -> Error {
        let key = key.clone();
        match self {
            Blocked::TimedOut { holder, waited } => {
                Error::LockTimeout { operation, key, holder: Some(holder), waited, path: None }
            }
            Blocked::Cancelled => Error::Cancelled { operation, key },
        }
    }
}

impl MemoryRecordStore {
    /// A store without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every change of the state is complete before anything could panic, so a poisoned mutex says
    /// nothing about the state.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while a lock of the key is live, other than this holder's own.
    fn wait_while_locked(
        &self,
        key: &Key,
        own: Option<&Holder>,
        timeout: Option<Duration>,
        cancellation: Option<&Cancellation>,
    ) -> Result<MutexGuard<'_, State>, Blocked> {
        let start = Instant::now();
        let _alarm = cancellation.map(|it| it.on_cancel(self.alarm()));
        // A deadline beyond what the clock can hold never comes.
        let deadline = timeout.and_then(|timeout| start.checked_add(timeout));
        let mut state = self.state();
        loop {
            if cancellation.is_some_and(Cancellation::is_cancelled) {
                return Err(Blocked::Cancelled);
            }
            let now = Instant::now();
            let Some(lock) = state.live(key, now).filter(|lock| own != Some(&lock.holder)) else {
                return Ok(state);
            };
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(Blocked::TimedOut { holder: lock.holder.clone(), waited: now - start });
            }
            let lease_end = lock.lease.as_ref().map(|lease| lease.end);
            state = self.sleep(state, now, deadline.into_iter().chain(lease_end).min());
        }
    }

    /// What wakes those who sleep. Not between a look and the sleep after it: so it takes the mutex.
    fn alarm(&self) -> impl FnOnce() + Send + use<> {
        let store = self.clone();
        move || {
            drop(store.state());
            store.0.changed.notify_all();
        }
    }

    /// Sleeps until something changed, or until the time has come.
    fn sleep<'a>(
        &self,
        state: MutexGuard<'a, State>,
        now: Instant,
        until: Option<Instant>,
    ) -> MutexGuard<'a, State> {
        let Some(until) = until else {
            return self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        let pause = until.saturating_duration_since(now);
        self.0.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl RecordStore for MemoryRecordStore {
    fn read_json(&self, key: &Key, claim: &Claim, timeout: Option<Duration>) -> Result<Option<Json>> {
        let state = match claim {
            Claim::Holder(holder) => self
                .wait_while_locked(key, Some(holder), timeout, None)
                .map_err(|blocked| blocked.into_error("read", key))?,
            Claim::Token(_) => {
                let state = self.state();
                state.check("read", key, claim)?;
                state
            }
        };
        Ok(state.record(key).map(|record| record.json.clone()))
    }

    fn write_json(&self, key: &Key, result: &RawValue, claim: &Claim, options: &WriteOptions) -> Result<()> {
        let mut state = self.state();
        state.check("write", key, claim)?;
        state.put(key, result, options);
        self.0.changed.notify_all();
        Ok(())
    }

    fn swap_json(
        &self,
        key: &Key,
        expected: Option<&RawValue>,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<bool> {
        let mut state = self.state();
        state.check("compare_and_swap", key, claim)?;
        let is_expected = match (state.record(key), expected) {
            (Some(record), Some(expected)) => same_json(&record.json, expected),
            (record, expected) => record.is_none() && expected.is_none(),
        };
        if is_expected {
            state.put(key, result, options);
            self.0.changed.notify_all();
        }
        Ok(is_expected)
    }

    fn record_exists(&self, key: &Key) -> Result<bool> {
        Ok(self.state().record(key).is_some())
    }

    fn remove_record(&self, key: &Key, claim: &Claim) -> Result<bool> {
        let mut state = self.state();
        state.check("remove", key, claim)?;
        let was_there = state.record(key).is_some();
        state.records.remove(key);
        self.0.changed.notify_all();
        Ok(was_there)
    }

    fn record_version(&self, key: &Key) -> Result<RecordVersion> {
        Ok(self.state().version(key))
    }

    fn wait_for_change(
        &self,
        key: &Key,
        seen: &RecordVersion,
        timeout: Option<Duration>,
    ) -> Result<Option<RecordVersion>> {
        // A deadline beyond what the clock can hold never comes.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state();
        loop {
            let version = state.version(key);
            if version != *seen {
                return Ok(Some(version));
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            let ends = state.record(key).and_then(|record| record.ends);
            state = self.sleep(state, now, deadline.into_iter().chain(ends).min());
        }
    }

    fn all_keys(&self) -> Result<Listing<'_, Key>> {
        Ok(self.listing(|state, after| {
            let mut later = state.records.range((after, Bound::Unbounded));
            let (key, _) = later.find(|(key, _)| state.record(key).is_some())?;
            Some((key.clone(), key.clone()))
        }))
    }

    fn supports_level(&self, level: IsolationLevel) -> bool {
        matches!(level, IsolationLevel::ReadCommitted | IsolationLevel::Serializable)
    }

    fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        let mut state = self
            .wait_while_locked(key, Some(holder), options.get_acquire_timeout(), options.get_cancellation())
            .map_err(|blocked| blocked.into_error("acquire_lock", key))?;
        let now = Instant::now();
        let lease = Lease::starting_now(options.get_hold_timeout());
        if let Some(lock) =
            state.locks.get_mut(key).filter(|lock| lock.is_live(now) && lock.holder == *holder)
        {
            lock.lease = lease;
            let token = lock.token;
            self.0.changed.notify_all();
            return Ok(Acquired { token, reentrant: true });
        }
        state.newest += 1;
        let token = LockToken::new(state.newest);
        let lock = Lock { holder: holder.clone(), token, acquired_at: SystemTime::now(), lease };
        state.locks.insert(key.clone(), lock);
        Ok(Acquired { token, reentrant: false })
    }

    fn renew_lease(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
        self.state().own_lock("renew", key, claim)?.lease = Lease::starting_now(hold_timeout);
        // The new end may come before the old one, for which those who wait would sleep on.
        self.0.changed.notify_all();
        Ok(())
    }

    fn release(&self, key: &Key, claim: &Claim) -> Result<()> {
        let mut state = self.state();
        state.own_lock("release_lock", key, claim)?;
        state.locks.remove(key);
        self.0.changed.notify_all();
        Ok(())
    }

    fn current_lock(&self, key: &Key) -> Result<Option<LockInfo>> {
        let state = self.state();
        let now = Instant::now();
        Ok(state.live(key, now).map(|lock| lock.info(key, now)))
    }

    fn wait_until_free(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
        Ok(self.wait_while_locked(key, None, timeout, None).is_ok())
    }

    fn force_release(&self, key: &Key) -> Result<bool> {
        let broken = self.state().locks.remove(key).is_some();
        self.0.changed.notify_all();
        Ok(broken)
    }

    fn all_locks(&self) -> Result<Listing<'_, LockInfo>> {
        Ok(self.listing(|state, after| {
            let (key, lock) = state.locks.range((after, Bound::Unbounded)).next()?;
            Some((key.clone(), lock.info(key, Instant::now())))
        }))
    }
}

impl MemoryRecordStore {
    /// A listing that looks for one item at a time: it copies no map, and nobody waits for whoever
    /// reads it.
    fn listing<'a, T: 'a>(
        &'a self,
        next: impl Fn(&State, Bound<&Key>) -> Option<(Key, T)> + Send + 'a,
    ) -> Listing<'a, T> {
        let mut last: Option<Key> = None;
        Box::new(std::iter::from_fn(move || {
            let after = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let (key, item) = next(&self.state(), after)?;
            last = Some(key);
            Some(Ok(item))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordStoreExt;

    #[test]
    fn a_poisoned_mutex_is_no_obstacle() {
        let store = MemoryRecordStore::new();
        store.write("key", &1).unwrap();
        std::thread::scope(|scope| {
            let poisons = || {
                let _state = store.state();
                std::panic::resume_unwind(Box::new("poison"));
            };
            assert!(scope.spawn(poisons).join().is_err());
        });
        assert!(store.0.state.is_poisoned());
        assert_eq!(store.read::<u8>("key").unwrap().unwrap().result, 1);
        let _guard = store.lock("key", LockOptions::new()).unwrap();
        let other = Holder::named("other").unwrap();
        let short = Duration::from_millis(1);
        let waited = store.acquire_lock("key", &LockOptions::new().holder(other).acquire_timeout(short));
        assert!(waited.unwrap_err().is_timeout());
    }

    #[test]
    fn tokens_start_at_one() {
        let store = MemoryRecordStore::new();
        assert_eq!(store.acquire_lock("key", &LockOptions::new()).unwrap().get(), 1);
    }

    #[test]
    fn a_lease_beyond_the_clocks_has_no_term() {
        assert!(Lease::starting_now(Some(Duration::MAX)).is_none());
        // Whatever the clocks hold, no length may panic on the way there.
        for bits in 0..64 {
            let _ = Lease::starting_now(Some(Duration::from_secs(1 << bits)));
        }
        // Within reach of a clock that starts at boot, and beyond the wall clock.
        let between = Duration::from_secs(i64::MAX.unsigned_abs() - 1_000_000_000);
        assert!(Lease::starting_now(Some(between)).is_none());
    }

    #[test]
    fn an_expired_lock_is_listed_as_such_and_can_be_broken() {
        let store = MemoryRecordStore::new();
        store.acquire_lock("key", &LockOptions::new().hold_timeout(Duration::ZERO)).unwrap();
        let listed: Vec<_> = store.locks().unwrap().map(Result::unwrap).collect();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state(), LockState::Expired);
        assert_eq!(listed[0].remaining(), Some(Duration::ZERO));
        assert!(store.break_lock("key").unwrap());
        assert!(!store.break_lock("key").unwrap());
    }

    #[test]
    fn a_listing_goes_on_while_the_store_changes() {
        let store = MemoryRecordStore::new();
        for key in ["a", "b", "c"] {
            store.write(key, &1).unwrap();
        }
        let mut keys = store.keys().unwrap();
        assert_eq!(keys.next().unwrap().unwrap().as_str(), "a");
        store.remove("a").unwrap();
        store.remove("b").unwrap();
        store.write("d", &1).unwrap();
        let rest: Vec<_> = keys.map(|key| key.unwrap().to_string()).collect();
        assert_eq!(rest, ["c", "d"]);
    }
}
