//! The records, the locks and the queues of the store, and the decisions on them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant, SystemTime};

use crate::trace;
use crate::{Claim, Error, ErrorKind, Holder, Json, Key, LockInfo, LockState, LockToken, RawRecord};
use crate::{RecordInfo, RecordVersion, Result, WaiterInfo, WriteOptions};

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) records: BTreeMap<Key, Record>,
    /// The acquisitions of each key's lock: one, or those that share it, in the order of their tokens.
    pub(super) locks: BTreeMap<Key, Vec<Lock>>,
    /// The newest token of all keys.
    pub(super) newest: u64,
    /// The number of writes: the version of the last one.
    pub(super) writes: u64,
    /// The number of writes and reads.
    pub(super) uses: u64,
    /// The acquisitions that wait for the lock of each key, in the order of their first attempts: their tickets, and when that
    /// was.
    pub(super) queues: BTreeMap<Key, VecDeque<(u64, Instant)>>,
    /// The number of waiters that there have been: the ticket of the last one.
    pub(super) tickets: u64,
    /// The watches of the whole store, by their numbers.
    pub(super) watches: BTreeMap<u64, Changed>,
    /// The number of watches of the whole store that there have been.
    pub(super) last_watch: u64,
    /// Notified when a lock is removed, when the end of its lease changes, when a waiter leaves its queue, and when a
    /// record changes.
    pub(super) changed: Arc<Condvar>,
}

/// The records that have changed since a watch looked last.
#[derive(Debug)]
pub(super) struct Changed {
    pub(super) prefix: String,
    pub(super) keys: BTreeSet<Key>,
}

#[derive(Debug)]
pub(super) struct Record {
    pub(super) raw: RawRecord,
    pub(super) modified: SystemTime,
    /// When it was last written or read, and the number of that use.
    pub(super) used: SystemTime,
    pub(super) use_number: u64,
    /// `None`: it never expires.
    pub(super) expires: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Lock {
    pub(super) holder: Holder,
    pub(super) token: LockToken,
    pub(super) acquired_at: SystemTime,
    pub(super) note: Option<String>,
    /// `None`: it is exclusive.
    pub(super) slots: Option<NonZeroU32>,
    /// `None`: until released.
    pub(super) lease: Option<Lease>,
}

/// The end of a lease, by the clock that decides and by the clock for people.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) end: Instant,
    pub(super) expires_at: SystemTime,
}

impl Lease {
    /// A lease that starts now. One that ends beyond the range of the clocks never expires.
    pub(super) fn starting_now(hold_timeout: Option<Duration>) -> Option<Self> {
        let hold_timeout = hold_timeout?;
        Some(Self {
            end: Instant::now().checked_add(hold_timeout)?,
            expires_at: SystemTime::now().checked_add(hold_timeout)?,
        })
    }
}

impl Lock {
    pub(super) fn is_live(&self, now: Instant) -> bool {
        self.lease.as_ref().is_none_or(|lease| now < lease.end)
    }

    pub(super) fn is_claimed_by(&self, claim: &Claim) -> bool {
        match claim {
            Claim::Holder(holder) => self.holder == *holder,
            Claim::Token(token) | Claim::Delegated(token) => self.token == *token,
        }
    }

    pub(super) fn info(&self, key: &Key, now: Instant) -> LockInfo {
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
    pub(super) fn time_left(&self) -> Option<Duration> {
        self.expires.map(|end| end.saturating_duration_since(Instant::now()))
    }

    pub(super) fn info(&self, key: &Key) -> RecordInfo {
        RecordInfo::new(key.clone(), self.raw.version, self.size(), self.modified)
            .with_time_left(self.time_left())
    }

    pub(super) fn size(&self) -> u64 {
        self.raw.json.as_str().len() as u64
    }
}

impl State {
    /// The record, unless it has expired.
    pub(super) fn record(&self, key: &Key) -> Option<&Record> {
        self.records.get(key).filter(|record| record.expires.is_none_or(|end| Instant::now() < end))
    }

    pub(super) fn put(&mut self, key: &Key, result: &Json, options: &WriteOptions) {
        let expires = options.get_time_to_live().and_then(|time| Instant::now().checked_add(time));
        self.writes += 1;
        let raw = RawRecord::new(result.clone(), RecordVersion::new(self.writes));
        self.uses += 1;
        let (modified, use_number) = (SystemTime::now(), self.uses);
        let record = Record { raw, modified, used: modified, use_number, expires };
        self.records.insert(key.clone(), record);
        self.note_change(key);
    }

    /// A record was written or removed.
    pub(super) fn note_change(&mut self, key: &Key) {
        for changed in self.watches.values_mut() {
            if key.as_str().starts_with(&changed.prefix) {
                changed.keys.insert(key.clone());
            }
        }
    }

    /// Reads the record, unless it has expired.
    pub(super) fn read(&mut self, key: &Key) -> Option<RawRecord> {
        let read = self.record(key).map(|record| record.raw.clone().with_time_left(record.time_left()))?;
        self.uses += 1;
        if let Some(record) = self.records.get_mut(key) {
            (record.used, record.use_number) = (SystemTime::now(), self.uses);
        }
        Some(read)
    }

    pub(super) fn version(&self, key: &Key) -> RecordVersion {
        self.record(key).map_or(RecordVersion::ABSENT, |record| record.raw.version)
    }

    /// The acquisitions that are in force.
    pub(super) fn live(&self, key: &Key, now: Instant) -> impl Iterator<Item = &Lock> {
        self.locks.get(key).into_iter().flatten().filter(move |lock| lock.is_live(now))
    }

    /// An acquisition that is in the way of a holder, if it wants the lock for itself, or to share it.
    pub(super) fn in_the_way(&self, key: &Key, slots: Option<NonZeroU32>, now: Instant) -> Option<&Lock> {
        let first = self.live(key, now).next()?;
        let of_held = self.live(key, now).map(|lock| lock.slots.map_or(0, NonZeroU32::get));
        let least = of_held.fold(slots.map_or(0, NonZeroU32::get), u32::min);
        (self.live(key, now).count() >= least as usize).then_some(first)
    }

    /// When the first lease ends: then there is room for another holder, or no lock.
    pub(super) fn first_end(&self, key: &Key, now: Instant) -> Option<Instant> {
        self.live(key, now).filter_map(|lock| lock.lease.as_ref().map(|lease| lease.end)).min()
    }

    /// Removes acquisitions of the key.
    pub(super) fn remove_locks(&mut self, key: &Key, is_meant: impl Fn(&Lock) -> bool) -> bool {
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
    pub(super) fn is_next(&self, key: &Key, ticket: Option<u64>) -> bool {
        let first = |queue: &VecDeque<(u64, Instant)>| queue.front().map(|(ticket, _)| *ticket);
        self.queues.get(key).is_none_or(|queue| first(queue) == ticket)
    }

    pub(super) fn enqueue(&mut self, key: &Key) -> u64 {
        self.tickets += 1;
        self.queues.entry(key.clone()).or_default().push_back((self.tickets, Instant::now()));
        self.tickets
    }

    /// The end of a wait. Those behind it look again: it may be their turn, or they wait for another lock than before.
    pub(super) fn leave_queue(&mut self, key: &Key, ticket: u64) {
        if let Some(queue) = self.queues.get_mut(key) {
            queue.retain(|(other, _)| *other != ticket);
            if queue.is_empty() {
                self.queues.remove(key);
            }
        }
        self.changed.notify_all();
    }

    /// The description of the key's lock, with those that wait for it. `None`: there is none, in force or not.
    pub(super) fn describe(&self, key: &Key, now: Instant) -> Option<LockInfo> {
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
    pub(super) fn admit(&self, operation: &'static str, key: &Key, claim: &Claim) -> Result<()> {
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
    pub(super) fn own_lock(
        &mut self,
        operation: &'static str,
        key: &Key,
        claim: &Claim,
    ) -> Result<&mut Lock> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
