//! How long a call may wait, and what ends the wait early.

use std::time::{Duration, Instant};

use crate::waiting::Observed;
use crate::{Cancellation, WaitObserver};

/// How long a call may wait, and what ends the wait early.
///
/// The default waits forever. A [`Duration`] alone is a timeout:
///
/// ```
/// use std::time::Duration;
/// use record_store::{Cancellation, MemoryRecordStore, RecordStoreExt, WaitOptions};
///
/// let store = MemoryRecordStore::new();
/// assert!(store.wait_for_lock("report", Duration::from_secs(1))?);
/// let shutdown = Cancellation::new();
/// let options = WaitOptions::new().timeout(Duration::from_secs(1)).cancellation(&shutdown);
/// assert!(store.wait_for_lock("report", options)?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until an operation is called with them"]
pub struct WaitOptions {
    timeout: Option<Duration>,
    cancellation: Option<Cancellation>,
    observed: Option<Observed>,
}

impl WaitOptions {
    /// Waits forever.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives up after this time. Zero makes one attempt and does not wait for another holder, but up to 40 ms for a
    /// process in the middle of an operation. `None` waits forever.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.cancellation = Some(cancellation.clone());
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.observed = observer.into().map(Observed::new);
        self
    }

    /// The longest wait. `None`: forever.
    #[must_use]
    pub fn get_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The cancellation, if one was set.
    #[must_use]
    pub fn get_cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.as_ref()
    }

    /// The observer, if one was set.
    #[must_use]
    pub fn get_observer(&self) -> Option<&WaitObserver> {
        self.observed.as_ref().map(Observed::observer)
    }
}

impl WaitOptions {
    /// These options for the steps of a call that began at `start`: to the observer, they are one call.
    pub(crate) fn of_call(&self, start: Instant) -> Self {
        let observed = self.observed.as_ref().map(|observed| observed.of_call(start));
        Self { observed, ..self.clone() }
    }

    pub(crate) fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }

    /// The rest of these options for a call that began at `start`.
    pub(crate) fn since(&self, start: Instant) -> Self {
        self.of_call(start).timeout(self.timeout.map(|timeout| timeout.saturating_sub(start.elapsed())))
    }
}

impl From<Duration> for WaitOptions {
    fn from(timeout: Duration) -> Self {
        Self::new().timeout(timeout)
    }
}

impl From<Option<Duration>> for WaitOptions {
    fn from(timeout: Option<Duration>) -> Self {
        Self::new().timeout(timeout)
    }
}

impl From<&Cancellation> for WaitOptions {
    fn from(cancellation: &Cancellation) -> Self {
        Self::new().cancellation(cancellation)
    }
}
