//! Waiting for a key to become free: asleep in the kernel, woken by whoever frees it, in the order
//! of arrival.
//!
//! On Linux the processes of a store share a small mapped file. Who waits for a lock has a *place*
//! in it and is *called* when it is its turn; who only watches, a lock or a record, sleeps on a counter. Whatever a
//! sleeper learns by being woken is a hint, and so is not to be woken: it looks at the lock file
//! again, at the latest after a while. So a place may be lost, stale or garbage, and the worst that
//! follows is a turn taken late.
//!
//! A killed process wakes nobody. So whoever waits for long has the kernel report the end of every
//! process that has a stake in the store.

// Linux can be told to do without as well, so that the other way is tested.
#[cfg(not(all(target_os = "linux", not(record_store_elsewhere))))]
mod elsewhere;
#[cfg(all(target_os = "linux", not(record_store_elsewhere)))]
mod linux;

use std::time::{Duration, Instant};

use super::FileSystemRecordStore;
use super::layout::Context;
use super::lease::Term;
use super::look::Found;
use crate::trace::Waiting;
use crate::{Cancellation, Error, Holder, Key, Result};

#[cfg(not(all(target_os = "linux", not(record_store_elsewhere))))]
pub(super) use elsewhere::{Events, Place, Turn};
#[cfg(all(target_os = "linux", not(record_store_elsewhere)))]
pub(super) use linux::{Events, Place, Turn};

/// A sleeper looks again after this time, in case that nobody woke it who should have.
pub(super) const RECHECK: Duration = Duration::from_millis(250);

/// After so many times it looks at everything again, its owner included.
const NAPS: u32 = 4;

/// A wait as short as this is not worth the cost of having deaths reported.
const SHORT_WAIT: Duration = Duration::from_millis(2);

/// So often even a call that may not wait looks again, if what it read was changed meanwhile.
const MANY_ROUNDS: u32 = 1_000;

/// A latch is held for microseconds. A call that may not wait at all still gives it this long: only
/// a stopped process takes longer, and a busy machine must not pass for a held lock.
const LATCH_GRACE: Duration = Duration::from_millis(40);

/// When a wait has to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    start: Instant,
    end: Option<Instant>,
}

impl Deadline {
    /// `None`: never. So is a time too far away to be computed.
    pub(super) fn after(timeout: Option<Duration>) -> Self {
        let start = Instant::now();
        Self { start, end: timeout.and_then(|timeout| start.checked_add(timeout)) }
    }

    pub(super) fn passed(&self) -> bool {
        self.end.is_some_and(|end| Instant::now() >= end)
    }

    /// Until when to try to enter a latch.
    pub(super) fn for_latch(&self) -> Option<Instant> {
        self.end.map(|end| end.max(self.start + LATCH_GRACE))
    }

    /// The time left, if it is the shorter one.
    pub(super) fn cap(&self, pause: Duration) -> Duration {
        self.end.map_or(pause, |end| pause.min(end.saturating_duration_since(Instant::now())))
    }
}

/// Until when one tries to enter a latch for what had better be done, but can be left.
pub(super) fn soon() -> Instant {
    Instant::now() + LATCH_GRACE
}

/// How one waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner<'a> {
    /// For the lock itself, in turn, unless this is cancelled.
    InLine(Option<&'a Cancellation>),
    /// To see the key free, beside all others.
    Watching,
}

/// One round of a wait.
pub(super) enum Round<T> {
    Done(T),
    /// Another holder's lock is live.
    Held(Box<Found>),
    /// The key is free, but it is the turn of another, who has so much time to come.
    NotYet(Duration),
    /// What was read is no longer current.
    Again,
}

impl FileSystemRecordStore {
    /// Does rounds until one is done, asleep while there is nothing to be done.
    pub(super) fn wait<T>(
        &self,
        key: &Key,
        manner: Manner<'_>,
        deadline: Deadline,
        context: Context<'_>,
        round: impl FnMut(Option<&Place>) -> Result<Round<T>>,
    ) -> Result<T> {
        let mut waiting = None;
        let outcome = self.rounds(key, manner, deadline, context, round, &mut waiting);
        if let Some(waiting) = waiting {
            waiting.end(&outcome);
        }
        outcome
    }

    fn rounds<T>(
        &self,
        key: &Key,
        manner: Manner<'_>,
        deadline: Deadline,
        context: Context<'_>,
        mut round: impl FnMut(Option<&Place>) -> Result<Round<T>>,
        waiting: &mut Option<Waiting>,
    ) -> Result<T> {
        let mut place = None;
        let mut in_line = manner == Manner::Watching;
        let cancellation = if let Manner::InLine(cancellation) = manner { cancellation } else { None };
        let (mut report, mut _alarm) = (None, None);
        for rounds in 0.. {
            let seen = self.events.observe(key, place.as_ref());
            // Not before the word was noted: an alarm in between would be slept through.
            cancellation.map_or(Ok(()), |it| it.check(context.operation, key))?;
            let mut found_before = None;
            let (holder, mut pause) = match round(place.as_ref())? {
                Round::Done(done) => {
                    if let Some(place) = place {
                        place.leave_served();
                    }
                    return Ok(done);
                }
                // What keeps changing for so long does not hold still for us.
                Round::Again if rounds >= MANY_ROUNDS && deadline.passed() => {
                    return Err(self.timed_out(key, None, deadline, context));
                }
                Round::Again => continue,
                Round::NotYet(pause) => (None, pause),
                Round::Held(found) => {
                    let left = if let Term::Left(left) = found.term { left } else { RECHECK * NAPS };
                    found_before = Some(found.version);
                    (Some(found.lock.holder), left)
                }
            };
            if deadline.passed() {
                return Err(self.timed_out(key, holder, deadline, context));
            }
            waiting.get_or_insert_with(|| Waiting::begin(context.operation, key, holder.as_ref()));
            if !in_line {
                // Who frees the key from now on knows of this wait. Who did so before did not: look
                // again.
                place = self.events.join(key, &self.layout, context)?;
                _alarm = cancellation.map(|it| it.on_cancel(self.events.alarm(key, place.as_ref())));
                in_line = true;
                continue;
            }
            if report.is_none() {
                let early = SHORT_WAIT.saturating_sub(deadline.start.elapsed());
                if early.is_zero() {
                    // From now on. A holder may have died just before: look again.
                    report = Some(self.events.report_deaths(key, &self.layout));
                    continue;
                }
                pause = pause.min(early);
            }
            let Some(version) = found_before.filter(|_| matches!(report, Some(Some(_)))) else {
                self.events.sleep(seen, deadline.cap(pause.min(RECHECK)), rounds);
                continue;
            };
            // Deaths are reported, so most of the time it is enough to see that the file is the same.
            for _ in 0..NAPS {
                let nap = deadline.cap(pause.min(RECHECK));
                pause -= nap;
                let woken = self.events.sleep(seen, nap, rounds);
                if woken || pause.is_zero() || deadline.passed() || !self.is_unchanged(key, version) {
                    break;
                }
            }
        }
        // The rounds of a wait are not counted out.
        Err(self.timed_out(key, None, deadline, context))
    }

    pub(super) fn timed_out(
        &self,
        key: &Key,
        holder: Option<Holder>,
        deadline: Deadline,
        context: Context<'_>,
    ) -> Error {
        Error::LockTimeout {
            operation: context.operation,
            key: key.clone(),
            holder,
            waited: deadline.start.elapsed(),
            path: Some(self.layout.lock_path(key)),
        }
    }
}
