//! The store in memory: the contract among the threads of one process, and the reference model for every
//! other store.

mod changes;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::ops::Bound;
use std::sync::{Arc, Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::eviction::{self, Candidate, Outcome};
use crate::process::PerProcess;
use crate::trace;
use crate::waiting::{Obstacle, WaitReports};
use crate::{Acquired, Claim, Error, ErrorKind, Expected, Holder, IsolationLevel, Json, Key, Listing};
use crate::{BreakOptions, Evicted, EvictionPolicy, ListOptions, RecordInfo};
use crate::{
    LockInfo, LockOptions, LockState, LockToken, RawRecord, ReadOptions, RecordStore, RecordVersion,
};
use crate::{RemoveOptions, Result, SeenRecords, StoreIdentity, WaitOptions, WaiterInfo, WriteOptions};

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

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<Key, Record>,
    /// The acquisitions of each key's lock: one, or those that share it, in the order of their tokens.
    locks: BTreeMap<Key, Vec<Lock>>,
    /// The newest token of all keys.
    newest: u64,
    /// The number of writes: the version of the last one.
    writes: u64,
    /// The number of writes and reads.
    uses: u64,
    /// The acquisitions that wait for the lock of each key, in the order of their first attempts: their tickets, and when that
    /// was.
    queues: BTreeMap<Key, VecDeque<(u64, Instant)>>,
    /// The number of waiters that there have been: the ticket of the last one.
    tickets: u64,
    /// The watches of the whole store, by their numbers.
    watches: BTreeMap<u64, changes::Changed>,
    /// The number of watches of the whole store that there have been.
    last_watch: u64,
    /// Notified when a lock is removed, when the end of its lease changes, when a waiter leaves its queue, and when a
    /// record changes.
    changed: Arc<Condvar>,
}

#[derive(Debug)]
struct Record {
    raw: RawRecord,
    modified: SystemTime,
    /// When it was last written or read, and the number of that use.
    used: SystemTime,
    use_number: u64,
    /// `None`: it never expires.
    expires: Option<Instant>,
}

#[derive(Debug)]
struct Lock {
    holder: Holder,
    token: LockToken,
    acquired_at: SystemTime,
    note: Option<String>,
    /// `None`: it is exclusive.
    slots: Option<NonZeroU32>,
    /// `None`: until released.
    lease: Option<Lease>,
}

/// The end of a lease, by the clock that decides and by the clock for people.
#[derive(Debug)]
struct Lease {
    end: Instant,
    expires_at: SystemTime,
}

impl Lease {
    /// A lease that starts now. One that ends beyond the range of the clocks never expires.
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

    fn is_claimed_by(&self, claim: &Claim) -> bool {
        match claim {
            Claim::Holder(holder) => self.holder == *holder,
            Claim::Token(token) | Claim::Delegated(token) => self.token == *token,
        }
    }

    fn info(&self, key: &Key, now: Instant) -> LockInfo {
        let state = if self.is_live(now) { LockState::Held } else { LockState::Expired };
        let info = LockInfo::new(key.clone(), self.holder.clone(), self.token, self.acquired_at)
            .with_state(state)
            .with_owner(Some(true), true)
            .with_note(self.note.as_deref())
            .with_slots(self.slots);
        match &self.lease {
            Some(lease) => info.with_expiry(lease.expires_at, lease.end.saturating_duration_since(now)),
            None => info,
        }
    }
}

impl Record {
    fn time_left(&self) -> Option<Duration> {
        self.expires.map(|end| end.saturating_duration_since(Instant::now()))
    }

    fn info(&self, key: &Key) -> RecordInfo {
        RecordInfo::new(key.clone(), self.raw.version, self.size(), self.modified)
            .with_time_left(self.time_left())
    }

    fn size(&self) -> u64 {
        self.raw.json.as_str().len() as u64
    }
}

impl State {
    /// The record, unless it has expired.
    fn record(&self, key: &Key) -> Option<&Record> {
        self.records.get(key).filter(|record| record.expires.is_none_or(|end| Instant::now() < end))
    }

    fn put(&mut self, key: &Key, result: &Json, options: &WriteOptions) {
        let expires = options.get_time_to_live().and_then(|time| Instant::now().checked_add(time));
        self.writes += 1;
        let raw = RawRecord::new(result.clone(), RecordVersion::new(self.writes));
        self.uses += 1;
        let (modified, use_number) = (SystemTime::now(), self.uses);
        let record = Record { raw, modified, used: modified, use_number, expires };
        self.records.insert(key.clone(), record);
        self.note_change(key);
    }

    /// Reads the record, unless it has expired.
    fn read(&mut self, key: &Key) -> Option<RawRecord> {
        let read = self.record(key).map(|record| record.raw.clone().with_time_left(record.time_left()))?;
        self.uses += 1;
        if let Some(record) = self.records.get_mut(key) {
            (record.used, record.use_number) = (SystemTime::now(), self.uses);
        }
        Some(read)
    }

    fn version(&self, key: &Key) -> RecordVersion {
        self.record(key).map_or(RecordVersion::ABSENT, |record| record.raw.version)
    }

    /// The acquisitions that are in force.
    fn live(&self, key: &Key, now: Instant) -> impl Iterator<Item = &Lock> {
        self.locks.get(key).into_iter().flatten().filter(move |lock| lock.is_live(now))
    }

    /// An acquisition that is in the way of a holder, if it wants the lock for itself, or to share it.
    fn in_the_way(&self, key: &Key, slots: Option<NonZeroU32>, now: Instant) -> Option<&Lock> {
        let first = self.live(key, now).next()?;
        let of_held = self.live(key, now).map(|lock| lock.slots.map_or(0, NonZeroU32::get));
        let least = of_held.fold(slots.map_or(0, NonZeroU32::get), u32::min);
        (self.live(key, now).count() >= least as usize).then_some(first)
    }

    /// When the first lease ends: then there is room for another holder, or no lock.
    fn first_end(&self, key: &Key, now: Instant) -> Option<Instant> {
        self.live(key, now).filter_map(|lock| lock.lease.as_ref().map(|lease| lease.end)).min()
    }

    /// Removes acquisitions of the key.
    fn remove_locks(&mut self, key: &Key, is_meant: impl Fn(&Lock) -> bool) -> bool {
        let Some(locks) = self.locks.get_mut(key) else { return false };
        let count = locks.len();
        locks.retain(|lock| !is_meant(lock));
        let is_removed = locks.len() < count;
        if locks.is_empty() {
            self.locks.remove(key);
        }
        is_removed
    }

    /// Whether an acquisition is the next one. Without a ticket it is behind all that wait.
    fn is_next(&self, key: &Key, ticket: Option<u64>) -> bool {
        let first = |queue: &VecDeque<(u64, Instant)>| queue.front().map(|(ticket, _)| *ticket);
        self.queues.get(key).is_none_or(|queue| first(queue) == ticket)
    }

    fn enqueue(&mut self, key: &Key) -> u64 {
        self.tickets += 1;
        self.queues.entry(key.clone()).or_default().push_back((self.tickets, Instant::now()));
        self.tickets
    }

    /// The end of a wait. Those behind it look again: it may be their turn, or they wait for another lock than before.
    fn leave_queue(&mut self, key: &Key, ticket: u64) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.retain(|(other, _)| *other != ticket);
            if queue.is_empty() {
                self.queues.remove(key);
            }
        }
        self.changed.notify_all();
    }

    /// The description of the key's lock, with those that wait for it. `None`: there is none, in force or not.
    fn describe(&self, key: &Key, now: Instant) -> Option<LockInfo> {
        let locks = self.locks.get(key)?;
        let first = locks.iter().find(|lock| lock.is_live(now)).or(locks.first())?;
        let sharers = locks.iter().filter(|lock| lock.token != first.token);
        let waiter =
            |(_, since): &(u64, Instant)| WaiterInfo::of_this_process(now.saturating_duration_since(*since));
        let queue = self.queues.get(key).into_iter().flatten();
        Some(
            first
                .info(key, now)
                .with_sharers(sharers.map(|lock| lock.info(key, now)).collect())
                .with_waiters(queue.map(waiter).collect::<Vec<_>>()),
        )
    }

    /// Whether a record may be changed on this claim.
    fn admit(&self, operation: &'static str, key: &Key, claim: &Claim) -> Result<()> {
        let now = Instant::now();
        match (self.live(key, now).find(|lock| lock.is_claimed_by(claim)), claim) {
            (Some(lock), _) if lock.slots.is_some() => {
                Err(Error::new(ErrorKind::LockShared, operation).with_key(key).with_token(lock.token))
            }
            (Some(_), _) => Ok(()),
            (None, Claim::Token(token) | Claim::Delegated(token)) => Err(lost(operation, key, *token)),
            (None, Claim::Holder(_)) => match self.live(key, now).next() {
                None => Ok(()),
                Some(lock) => {
                    let error = Error::new(ErrorKind::Locked, operation).with_key(key);
                    Err(error.with_holder(lock.holder.clone()))
                }
            },
        }
    }

    /// The acquisition that the claim is about, which is in force.
    fn own_lock(&mut self, operation: &'static str, key: &Key, claim: &Claim) -> Result<&mut Lock> {
        let now = Instant::now();
        let error = |kind| Error::new(kind, operation).with_key(key);
        let holder = self.live(key, now).next().map(|lock| lock.holder.clone());
        let mut live = self.locks.get_mut(key).into_iter().flatten().filter(|lock| lock.is_live(now));
        match (live.find(|lock| lock.is_claimed_by(claim)), claim, holder) {
            (Some(lock), _, _) => Ok(lock),
            (None, Claim::Token(token) | Claim::Delegated(token), _) => Err(lost(operation, key, *token)),
            (None, Claim::Holder(claimant), Some(holder)) => {
                let error = error(ErrorKind::NotLockHolder).with_claimant(claimant.clone());
                Err(error.with_holder(holder))
            }
            (None, Claim::Holder(_), None) => Err(error(ErrorKind::NotLocked)),
        }
    }
}

fn lost(operation: &'static str, key: &Key, token: LockToken) -> Error {
    trace::lost(Error::new(ErrorKind::LockLost, operation).with_key(key).with_token(token))
}

fn check_cancelled(operation: &'static str, key: &Key, options: &WaitOptions) -> Result<()> {
    options.get_cancellation().map_or(Ok(()), |cancellation| cancellation.check(operation, Some(key)))
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

    /// Sleeps between calls of `attempt` until it returns a value. While it cannot, it returns whose lock
    /// it waits for, if any, and when it has to be called again at the latest. `Ok(None)` at the timeout.
    /// `in_the_way` describes the lock that is waited for.
    fn wait<T>(
        &self,
        operation: &'static str,
        key: &Key,
        options: &WaitOptions,
        mut attempt: impl FnMut(&mut State, Instant) -> Result<T, Option<Instant>>,
        in_the_way: impl Fn(&State, Instant) -> Option<LockInfo>,
    ) -> Result<Option<(MutexGuard<'_, State>, T)>> {
        let start = Instant::now();
        let reports = WaitReports::new(options, start);
        let _wakes = options.get_cancellation().map(|it| it.on_cancel(self.alarm()));
        // A deadline beyond the range of the clock is never reached.
        let deadline = options.get_timeout().and_then(|timeout| start.checked_add(timeout));
        let mut state = self.state();
        loop {
            check_cancelled(operation, key, options)?;
            let now = Instant::now();
            let next_event = match attempt(&mut state, now) {
                Ok(value) => return Ok(Some((state, value))),
                Err(next_event) => next_event,
            };
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(None);
            }
            let mut report_at = None;
            if let Some(reports) = &reports
                && let Some(lock) = in_the_way(&state, now)
            {
                let obstacle = Obstacle::lock(key, lock.holder(), Some(lock.token()));
                report_at = reports.due_at(&obstacle);
                if report_at.is_some_and(|at| at <= now) {
                    // The observer may use the store.
                    drop(state);
                    reports.report(operation, obstacle, Some(lock));
                    state = self.state();
                    continue;
                }
            }
            let changed = Arc::clone(&state.changed);
            state = match deadline.into_iter().chain(next_event).chain(report_at).min() {
                None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let pause = until.saturating_duration_since(now);
                    changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Waits while a lock is live, or, if it is not for a holder's read, while another holder has an exclusive one.
    fn wait_while_locked(
        &self,
        operation: &'static str,
        key: &Key,
        reader: Option<&Holder>,
        options: &WaitOptions,
    ) -> Result<MutexGuard<'_, State>> {
        let start = Instant::now();
        let mut holder = None;
        let is_in_the_way =
            |lock: &&Lock| reader.is_none_or(|reader| lock.slots.is_none() && lock.holder != *reader);
        let free = |state: &mut State, now| {
            let Some(lock) = state.live(key, now).find(is_in_the_way) else {
                return Ok(());
            };
            holder = Some(lock.holder.clone());
            Err(state.first_end(key, now))
        };
        let in_the_way = |state: &State, now| state.live(key, now).next().map(|lock| lock.info(key, now));
        match self.wait(operation, key, options, free, in_the_way)? {
            Some((state, ())) => Ok(state),
            None => Err(Error::new(ErrorKind::LockTimeout, operation)
                .with_key(key)
                .with_holder(holder)
                .with_waited(start.elapsed())),
        }
    }

    /// Waits until the holder has the lock, or may acquire it: no lock of another holder is in the way, and no other
    /// acquisition has waited for longer. Returns the moment at which that is so: a little later, the holder's own lease may
    /// be over, while others share the lock.
    fn wait_for_turn(
        &self,
        key: &Key,
        own: &Holder,
        slots: Option<NonZeroU32>,
        options: &WaitOptions,
    ) -> Result<(MutexGuard<'_, State>, Instant)> {
        let (start, mut holder) = (Instant::now(), None);
        let mut waiter = Waiter { store: self, key, ticket: None };
        let waits = options.get_timeout() != Some(Duration::ZERO);
        let is_turn = |state: &mut State, now| {
            let obstacle = state.in_the_way(key, slots, now);
            let has_it = state.live(key, now).any(|lock| lock.holder == *own);
            if has_it || obstacle.is_none() && state.is_next(key, waiter.ticket) {
                return Ok(now);
            }
            holder = obstacle.map(|lock| lock.holder.clone());
            let next_event = state.first_end(key, now);
            if waits && waiter.ticket.is_none() {
                waiter.ticket = Some(state.enqueue(key));
            }
            Err(next_event)
        };
        let in_the_way =
            |state: &State, now| state.in_the_way(key, slots, now).map(|lock| lock.info(key, now));
        let Some((mut state, now)) = self.wait("acquire_lock", key, options, is_turn, in_the_way)? else {
            return Err(Error::new(ErrorKind::LockTimeout, "acquire_lock")
                .with_key(key)
                .with_holder(holder)
                .with_waited(start.elapsed()));
        };
        if let Some(ticket) = waiter.ticket.take() {
            state.leave_queue(key, ticket);
        }
        Ok((state, now))
    }

    /// Wakes the sleepers. It locks the mutex so that none of them is between its check and its sleep.
    fn alarm(&self) -> impl FnOnce() + Send + use<> {
        let store = self.clone();
        move || store.state().changed.notify_all()
    }
}

/// An acquisition, which has a ticket once it waits. It leaves the queue however it ends.
struct Waiter<'a> {
    store: &'a MemoryRecordStore,
    key: &'a Key,
    ticket: Option<u64>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.store.state().leave_queue(self.key, ticket);
        }
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

impl MemoryRecordStore {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RecordStoreExt;

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
    fn a_lease_beyond_the_clocks_never_expires() {
        assert!(Lease::starting_now(Some(Duration::MAX)).is_none());
        // No length may panic, whatever the range of the clocks is.
        for bits in 0..64 {
            let _ = Lease::starting_now(Some(Duration::from_secs(1 << bits)));
        }
        // Within the range of a clock that starts at boot, but beyond the wall clock.
        let between = Duration::from_secs(i64::MAX.unsigned_abs() - 1_000_000_000);
        assert!(Lease::starting_now(Some(between)).is_none());
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
