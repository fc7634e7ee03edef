//! The waits: for a change of the state, until no lock is in the way, and for the turn of an acquisition.

use std::num::NonZeroU32;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::MemoryRecordStore;
use super::state::{Lock, State};
use crate::waiting::{Obstacle, WaitReports};
use crate::{Error, ErrorKind, Holder, Key, LockInfo, Result, WaitOptions};

impl MemoryRecordStore {
    /// Sleeps between calls of `attempt` until it returns a value. While it cannot, it returns whose lock
    /// it waits for, if any, and when it has to be called again at the latest. `Ok(None)` at the timeout.
    /// `in_the_way` describes the lock that is waited for.
    pub(super) fn wait<T>(
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
    pub(super) fn wait_while_locked(
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
    pub(super) fn wait_for_turn(
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
    pub(super) fn alarm(&self) -> impl FnOnce() + Send + use<> {
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

pub(super) fn check_cancelled(operation: &'static str, key: &Key, options: &WaitOptions) -> Result<()> {
    options.get_cancellation().map_or(Ok(()), |cancellation| cancellation.check(operation, Some(key)))
}
