//! When a call has to stop waiting.

use std::time::{Duration, Instant};

use crate::filesystem::context::Context;
use crate::waiting::WaitReports;
use crate::{Cancellation, Error, ErrorKind, Holder, Result, WaitOptions};

/// A latch is held for microseconds. Even a call that may not wait gives it this long: only a stopped
/// process takes longer, and a busy machine must not look like a held lock.
const LATCH_GRACE: Duration = Duration::from_millis(40);

/// A sleeper checks again after this time, in case that a notification was lost. A build for tests does without, so
/// that a lost notification is noticed.
#[cfg(not(record_store_no_recheck))]
pub(crate) const RECHECK_INTERVAL: Duration = Duration::from_millis(250);
#[cfg(record_store_no_recheck)]
pub(crate) const RECHECK_INTERVAL: Duration = Duration::from_secs(u32::MAX as u64);

/// The deadline, the cancellation and the observer of one call.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    start: Instant,
    /// `None`: never. A time beyond the range of the clock is never, too.
    deadline: Option<Instant>,
    cancellation: Option<Cancellation>,
    reports: Option<WaitReports>,
}

impl Limits {
    /// The limits of a call that begins now.
    pub(crate) fn new(options: &WaitOptions) -> Self {
        let start = Instant::now();
        Self {
            start,
            deadline: options.get_timeout().and_then(|timeout| start.checked_add(timeout)),
            cancellation: options.get_cancellation().cloned(),
            reports: WaitReports::new(options, start),
        }
    }

    /// The limits of a step that is useful but can be omitted.
    pub(crate) fn best_effort() -> Self {
        Self::new(&LATCH_GRACE.into())
    }

    /// These limits, extended for entering a latch.
    pub(crate) fn for_latch(&self) -> Self {
        let deadline = self.deadline.map(|deadline| deadline.max(self.start + LATCH_GRACE));
        Self { deadline, ..self.clone() }
    }

    pub(crate) fn cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.as_ref()
    }

    /// `None`: nobody observes the call.
    pub(crate) fn reports(&self) -> Option<&WaitReports> {
        self.reports.as_ref()
    }

    /// Whether nothing can happen to the call while it blocks.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.deadline.is_none() && self.cancellation.is_none() && self.reports.is_none()
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancellation.as_ref().is_some_and(Cancellation::is_cancelled)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The pause, shortened to the time that is left.
    pub(crate) fn cap(&self, pause: Duration) -> Duration {
        self.deadline.map_or(pause, |deadline| pause.min(deadline.saturating_duration_since(Instant::now())))
    }

    pub(crate) fn check_cancelled(&self, context: Context<'_>) -> Result<()> {
        if self.is_cancelled() { Err(context.error(ErrorKind::Cancelled)) } else { Ok(()) }
    }

    /// The error of a call that reached its deadline while `holder` had the lock.
    pub(crate) fn timed_out(&self, holder: Option<Holder>, context: Context<'_>) -> Error {
        context.error(ErrorKind::LockTimeout).with_holder(holder).with_waited(self.elapsed())
    }
}
