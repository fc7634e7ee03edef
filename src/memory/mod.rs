//! The store in memory: the contract among the threads of one process, and the reference model for every
//! other store.

mod changes;
mod state;
mod wait;

use std::ops::Bound;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use self::state::{Lease, Lock, Record, State};
use self::wait::check_cancelled;
use crate::WriteOptions;
use crate::eviction::{self, Candidate, Outcome};
use crate::process::PerProcess;
use crate::{
    Acquired, BreakOptions, Claim, Error, ErrorKind, Evicted, EvictionPolicy, Expected, IsolationLevel,
};
use crate::{
    Json, Key, ListOptions, Listing, LockInfo, LockOptions, LockState, LockToken, RawRecord, ReadOptions,
};
use crate::{
    RecordInfo, RecordStore, RecordVersion, RemoveOptions, Result, SeenRecords, StoreIdentity, WaitOptions,
};

/// Records and locks in memory, shared by the threads of one process, and gone with the last clone of the
/// store.
///
/// It behaves as the file store does, so it can replace one in tests. It is also the reference: where the
/// two disagree, this one defines the contract.
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
/// assert_eq!(store.read::<u64>("visits")?.expect("it was written four times").result, 4);
/// # Ok::<(), record_store::Error>(())
/// ```
///
/// Threads that wait for a lock acquire it in the order in which they began to wait.
///
/// # Limitations
///
/// Leases follow [`Instant`], which on Linux does not count the time during which the machine is
/// suspended. A lease that is too long for the clocks never expires. An expired lock stays listed in
/// [`locks`](crate::RecordStoreExt::locks) until the next lock of its key replaces it, and an expired
/// record occupies memory until it is written again or removed.
///
/// A forked child has an empty store of its own: it sees neither the records nor the locks of its parent.
#[derive(Clone, Debug, Default)]
pub struct MemoryRecordStore(Arc<Shared>);

/// The state that the clones of a handle share. A forked child has a state of its own: it could wait forever
/// for the mutex of its parent's.
#[derive(Debug)]
struct Shared {
    state: PerProcess<State>,
    identity: StoreIdentity,
}

impl Default for Shared {
    fn default() -> Self {
        Self { state: PerProcess::new(), identity: StoreIdentity::unique() }
    }
}

impl MemoryRecordStore {
    /// A store without records.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Every change of the state is complete before any call that could panic, so the state behind a
    /// poisoned mutex is consistent.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }

    /// A listing that finds one item at a time: it copies no map, and a slow reader blocks nobody.
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

impl RecordStore for MemoryRecordStore {
    fn identity_raw(&self) -> Option<StoreIdentity> {
        Some(self.0.identity)
    }

    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        let mut state = match options.resolve_claim() {
            _ if options.ignores_lock() => {
                check_cancelled("read", key, options.get_wait())?;
                self.state()
            }
            Claim::Holder(holder) => {
                self.wait_while_locked("read", key, Some(&holder), options.get_wait())?
            }
            claim @ (Claim::Token(_) | Claim::Delegated(_)) => {
                check_cancelled("read", key, options.get_wait())?;
                let mut state = self.state();
                state.own_lock("read", key, &claim)?;
                state
            }
        };
        Ok(state.read(key))
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        check_cancelled("write", key, options.get_wait())?;
        let mut state = self.state();
        state.admit("write", key, &options.resolve_claim())?;
        state.put(key, result, &options);
        state.changed.notify_all();
        Ok(())
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        check_cancelled("compare_and_swap", key, options.get_wait())?;
        let mut state = self.state();
        state.admit("compare_and_swap", key, &options.resolve_claim())?;
        let is_expected = expected.matches(state.record(key).map(|record| &record.raw));
        if is_expected {
            state.put(key, result, &options);
            state.changed.notify_all();
        }
        Ok(is_expected)
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        Ok(self.state().record(key).is_some())
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        check_cancelled("remove", key, options.get_wait())?;
        let mut state = self.state();
        state.admit("remove", key, &options.resolve_claim())?;
        let existed = state.record(key).is_some();
        state.records.remove(key);
        state.note_change(key);
        state.changed.notify_all();
        Ok(existed)
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        Ok(self.state().version(key))
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        let attempt = |state: &mut State, _| match state.version(key) {
            version if version != seen => Ok(version),
            _ => Err(state.record(key).and_then(|record| record.expires)),
        };
        let changed = self.wait("watch", key, &options, attempt, |_, _| None)?;
        Ok(changed.map(|(_, version)| version))
    }

    fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
        changes::changes(self, seen, &options)
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        Ok(self.listing(|state, after| {
            let mut later = state.records.range::<Key, _>((after, Bound::Unbounded));
            let (key, _) = later.find(|(key, _)| state.record(key).is_some())?;
            Some((key.clone(), key.clone()))
        }))
    }

    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        Ok(self.listing(move |state, after| {
            let is_selected = |key: &Key| key.as_str().starts_with(options.get_prefix());
            let mut later = state.records.range::<Key, _>((after, Bound::Unbounded));
            let (key, record) = later.find(|(key, _)| is_selected(key) && state.record(key).is_some())?;
            let (info, is_asked) = (record.info(key), options.reads_results());
            let info = if is_asked { info.with_result(record.raw.json.clone()) } else { info };
            Some((key.clone(), info))
        }))
    }

    fn record_info_raw(&self, key: &Key) -> Result<Option<RecordInfo>> {
        Ok(self.state().record(key).map(|record| record.info(key)))
    }

    fn evict_raw(&self, policy: EvictionPolicy) -> Result<Evicted> {
        let (mut state, counts_reads) = (self.state(), policy.is_least_recently_read());
        let candidate = |(key, record): (&Key, &Record)| Candidate {
            used: if counts_reads { record.used } else { record.modified },
            size: record.size(),
            record: key.clone(),
        };
        // In the order of their writes or uses, also within one tick of the clock.
        let mut records: Vec<_> = state.records.iter().collect();
        let number = |record: &Record| {
            if counts_reads { Some(record.use_number) } else { record.raw.version.number() }
        };
        records.sort_by_key(|(_, record)| number(record));
        let candidates = records.into_iter().map(candidate).collect();
        let evicted = eviction::evict(&policy, candidates, |key| {
            if state.live(key, Instant::now()).next().is_some() {
                return Ok(Outcome::Kept);
            }
            if !policy.is_dry_run() {
                state.records.remove(key);
                state.note_change(key);
            }
            Ok(Outcome::Evicted)
        });
        state.changed.notify_all();
        evicted
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        matches!(level, IsolationLevel::ReadCommitted | IsolationLevel::Serializable)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let (holder, slots) = (options.resolve_holder(), options.get_slots());
        let (mut state, now) = self.wait_for_turn(key, &holder, slots, options.get_wait())?;
        let lease = Lease::starting_now(options.get_hold_timeout());
        let locks = state.locks.entry(key.clone()).or_default();
        if let Some(lock) = locks.iter_mut().find(|lock| lock.is_live(now) && lock.holder == holder) {
            if lock.slots.is_some() && slots.is_none() {
                let error = Error::new(ErrorKind::LockShared, "acquire_lock").with_key(key);
                return Err(error.with_token(lock.token));
            }
            lock.lease = lease;
            let token = lock.token;
            state.changed.notify_all();
            return Ok(Acquired::reentrant(token));
        }
        locks.retain(|lock| lock.is_live(now));
        state.newest += 1;
        let token = LockToken::new(state.newest);
        let (acquired_at, note) = (SystemTime::now(), options.get_note().map(str::to_owned));
        let lock = Lock { holder, token, acquired_at, note, slots, lease };
        state.locks.entry(key.clone()).or_default().push(lock);
        Ok(Acquired::new(token))
    }

    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        check_cancelled("renew", key, &options)?;
        let mut state = self.state();
        state.own_lock("renew", key, claim)?.lease = Lease::starting_now(hold_timeout);
        // The new end may be earlier than the one that the waiters sleep until.
        state.changed.notify_all();
        Ok(())
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        check_cancelled("release_lock", key, &options)?;
        let mut state = self.state();
        let token = state.own_lock("release_lock", key, claim)?.token;
        state.remove_locks(key, |lock| lock.token == token);
        state.changed.notify_all();
        Ok(())
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        let state = self.state();
        let now = Instant::now();
        Ok(state.describe(key, now).filter(|lock| lock.state() == LockState::Held))
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        match self.wait_while_locked("wait_for_lock", key, None, &options) {
            Ok(_) => Ok(true),
            Err(error) if error.is_timeout() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
        check_cancelled("break_lock", key, options.get_wait())?;
        let mut state = self.state();
        let is_meant = |lock: &Lock| options.get_token().is_none_or(|token| lock.token == token);
        let broken = state.remove_locks(key, is_meant);
        state.changed.notify_all();
        Ok(broken)
    }

    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        Ok(self.listing(|state, after| {
            let (key, _) = state.locks.range::<Key, _>((after, Bound::Unbounded)).next()?;
            Some((key.clone(), state.describe(key, Instant::now())?))
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Holder, RecordStoreExt};

    #[test]
    fn a_poisoned_mutex_is_usable() {
        let store = MemoryRecordStore::new();
        store.write("key", &1).unwrap();
        std::thread::scope(|scope| {
            let poisons = || {
                let _state = store.state();
                std::panic::resume_unwind(Box::new("poison"));
            };
            assert!(scope.spawn(poisons).join().is_err());
        });
        assert_eq!(store.read::<u8>("key").unwrap().unwrap().result, 1);
        let _guard = store.lock("key", LockOptions::new()).unwrap();
        let other = Holder::named("other").unwrap();
        let short = Duration::from_millis(1);
        let waited = store.acquire_lock("key", LockOptions::new().holder(other).acquire_timeout(short));
        assert!(waited.unwrap_err().is_timeout());
    }

    #[test]
    fn a_store_forgets_the_watches_that_have_ended() {
        let store = MemoryRecordStore::new();
        let mut ended = store.changes(crate::ChangesOptions::new()).unwrap();
        let _other = store.changes(crate::ChangesOptions::new()).unwrap();
        assert!(ended.next(Duration::ZERO).unwrap().is_none());
        assert_eq!(store.state().watches.len(), 2);
        drop(ended);
        assert_eq!(store.state().watches.len(), 1);
    }

    /// The lease ends at any moment of the second call.
    #[test]
    fn a_holder_whose_share_has_just_ended_does_not_get_the_lock_alone() {
        let store = MemoryRecordStore::new();
        let options =
            |name| LockOptions::new().holder(Holder::named(name).unwrap()).acquire_timeout(Duration::ZERO);
        let _other = store.lock("key", options("other").shared()).unwrap();
        let (mut shared, mut ended) = (0, 0);
        for round in 0..30_000 {
            let lease = Duration::from_nanos(round * 7 % 50_000);
            store.acquire_lock("key", options("me").hold_timeout(lease).shared()).unwrap();
            match store.acquire_lock("key", options("me")).unwrap_err().kind() {
                ErrorKind::LockShared => shared += 1,
                ErrorKind::LockTimeout => ended += 1,
                kind => panic!("{kind:?}"),
            }
        }
        assert!(shared > 0 && ended > 0, "the lease never ended in between");
    }

    #[test]
    fn a_record_that_was_read_is_evicted_after_those_that_were_not() {
        let store = MemoryRecordStore::new();
        for key in ["first", "second", "third"] {
            store.write(key, &1).unwrap();
        }
        assert!(store.read::<u8>("first").unwrap().is_some());
        let policy = EvictionPolicy::new().max_records(2);
        assert_eq!(store.evict(policy.clone().least_recently_read(true)).unwrap().records, 1);
        assert!(store.exists("first").unwrap() && !store.exists("second").unwrap());
        assert_eq!(store.evict(policy.max_records(1)).unwrap().records, 1);
        assert!(store.exists("third").unwrap(), "by the time of the write, the first one is older");
    }

    #[test]
    fn tokens_start_at_one() {
        let store = MemoryRecordStore::new();
        assert_eq!(store.acquire_lock("key", LockOptions::new()).unwrap().get(), 1);
    }

    #[test]
    fn an_expired_lock_is_listed_as_expired_and_can_be_broken() {
        let store = MemoryRecordStore::new();
        store.acquire_lock("key", LockOptions::new().hold_timeout(Duration::ZERO)).unwrap();
        let listed: Vec<_> = store.locks().unwrap().map(Result::unwrap).collect();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].state(), LockState::Expired);
        assert_eq!(listed[0].remaining(), Some(Duration::ZERO));
        assert!(store.break_lock("key").unwrap());
        assert!(!store.break_lock("key").unwrap());
    }

    #[test]
    fn a_listing_continues_while_the_store_changes() {
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
