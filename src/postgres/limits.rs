//! When a call has to stop waiting.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::timer::{Timer, until};
use crate::waiting::WaitReports;
use crate::{Cancellation, Error, ErrorKind, Holder, Key, Result, WaitOptions};

/// The operation and its key, for errors to name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) operation: &'static str,
    pub(super) key: Option<&'a Key>,
}

impl<'a> Context<'a> {
    pub(super) fn new(operation: &'static str, key: &'a Key) -> Self {
        Self { operation, key: Some(key) }
    }

    /// An operation on the store as a whole.
    pub(super) fn whole(operation: &'static str) -> Self {
        Self { operation, key: None }
    }

    pub(super) fn error(self, kind: ErrorKind) -> Error {
        let error = Error::new(kind, self.operation);
        self.key.into_iter().fold(error, Error::with_key)
    }
}

/// A latch is held for one change and its commit. Even a call that may not wait, or has waited long enough, gives it this
/// long, so that a busy server does not look like a held lock.
const LATCH_GRACE: Duration = Duration::from_millis(100);

/// A call tries to enter a latch for so long, and looks at its cancellation in between. It is also
/// the limit of every session.
pub(super) const LATCH_SLICE: Duration = Duration::from_millis(250);

/// Even a call that may not wait, has waited long enough, or is cancelled, gives the network this long for one answer.
const ROUND_TRIP_GRACE: Duration = Duration::from_secs(1);

/// A sleeper checks again after this time: a death and the end of a lease notify nobody, and a notification may be
/// lost with its connection.
pub(super) const RECHECK_INTERVAL: Duration = Duration::from_millis(250);

/// A sleeper behind another one checks less often.
pub(super) const RECHECK_INTERVAL_BEHIND: Duration = Duration::from_millis(500);

/// The deadline and the cancellation of one call.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    start: Instant,
    /// `None`: never. A time beyond the range of the clock is never, too.
    deadline: Option<Instant>,
    cancellation: Option<Cancellation>,
    reports: Option<WaitReports>,
}

impl Limits {
    /// The limits of a call that begins now.
    pub(super) fn new(options: &WaitOptions) -> Self {
        let start = Instant::now();
        Self {
            start,
            deadline: options.get_timeout().and_then(|timeout| start.checked_add(timeout)),
            cancellation: options.get_cancellation().cloned(),
            reports: WaitReports::new(options, start),
        }
    }

    /// The limits of a call without options.
    pub(super) fn none() -> Self {
        Self::new(&WaitOptions::new())
    }

    pub(super) fn cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.as_ref()
    }

    /// `None`: nobody observes the call.
    pub(super) fn reports(&self) -> Option<&WaitReports> {
        self.reports.as_ref()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the caller does not want to wait at all, or has waited long enough.
    pub(super) fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// How long a statement that begins now may try to enter a latch. The last check of a wait begins at its deadline. It
    /// has to enter, too, although others may check at the same moment.
    pub(super) fn for_latch(&self) -> LatchLimit {
        LatchLimit(self.deadline.map(|deadline| deadline.max(Instant::now() + LATCH_GRACE)))
    }

    /// When a statement that begins now no longer waits for the network, whose patience is `patience` where the call has
    /// no deadline. The last look of a wait begins at its deadline, and gets an answer, too.
    pub(super) fn network_deadline(&self, patience: Duration) -> Option<Instant> {
        let now = Instant::now();
        let latest = now.checked_add(patience);
        let Some(deadline) = self.deadline else { return latest };
        let soonest = now + ROUND_TRIP_GRACE.min(patience);
        Some(deadline.max(soonest)).min(latest.or(Some(deadline)))
    }

    /// The output of a future that the server answers. `None`: there was no answer until the deadline, or until a moment
    /// after the cancellation. An answer that is on its way is worth that moment, because without it the outcome would
    /// not be known.
    pub(super) async fn answer<F: Future>(
        &self,
        deadline: Option<Instant>,
        future: Pin<&mut F>,
    ) -> Option<F::Output> {
        let cancelled = Arc::new(Notify::new());
        let _on_cancel = self.cancellation.as_ref().map(|cancellation| {
            let notify = Arc::clone(&cancelled);
            cancellation.on_cancel(move || notify.notify_one())
        });
        let end = async {
            if until(Timer::at(deadline), cancelled.notified()).await.is_some() {
                let soon = Instant::now().checked_add(ROUND_TRIP_GRACE);
                Timer::at(soon.into_iter().chain(deadline).min()).await;
            }
        };
        until(end, future).await
    }

    pub(super) fn check_cancelled(&self, context: Context<'_>) -> Result<()> {
        match &self.cancellation {
            Some(cancellation) if cancellation.is_cancelled() => Err(context.error(ErrorKind::Cancelled)),
            _ => Ok(()),
        }
    }

    /// The error of a call that reached its deadline while `holder` had the lock.
    pub(super) fn timed_out(&self, holder: Option<Holder>, context: Context<'_>) -> Error {
        context.error(ErrorKind::LockTimeout).with_holder(holder).with_waited(self.start.elapsed())
    }
}

/// When a statement gives up entering a latch. `None`: never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LatchLimit(Option<Instant>);

impl LatchLimit {
    pub(super) fn is_over(self) -> bool {
        self.0.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// How long the server may wait in one statement, in milliseconds. `None`: as long as in every session.
    pub(super) fn patience(self) -> Option<i32> {
        let left = self.0?.saturating_duration_since(Instant::now());
        // Zero would be no limit.
        (left < LATCH_SLICE).then(|| i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_check_of_a_wait_may_enter_a_latch_that_others_are_in() {
        let limits = Limits::new(&WaitOptions::new().timeout(Duration::ZERO));
        std::thread::sleep(LATCH_GRACE);
        assert!(limits.is_over());
        let now = Instant::now();
        let deadline = limits.for_latch().0.expect("a deadline");
        assert!(deadline >= now + LATCH_GRACE, "{:?} left", deadline.saturating_duration_since(now));
    }

    #[test]
    fn a_call_without_a_timeout_enters_again_and_again() {
        let limit = Limits::none().for_latch();
        assert_eq!((limit.is_over(), limit.patience()), (false, None));
        let limit = LatchLimit(Some(Instant::now()));
        assert_eq!((limit.is_over(), limit.patience()), (true, Some(1)));
    }
}
