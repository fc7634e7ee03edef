//! How a record is written.

use std::time::Duration;

use super::WaitOptions;
use crate::{Cancellation, Claim, WaitObserver};

/// How a record is written: on which claim, and for how long.
///
/// The default writes for the calling thread's default holder, and the record never expires.
///
/// ```
/// use std::time::Duration;
/// use record_store::{MemoryRecordStore, RecordStoreExt, WriteOptions};
///
/// let store = MemoryRecordStore::new();
/// let for_an_hour = WriteOptions::new().time_to_live(Duration::from_secs(3600));
/// store.write_with("session-7", "signed in", for_an_hour)?;
/// assert!(store.exists("session-7")?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a record is written with them"]
pub struct WriteOptions {
    claim: Option<Claim>,
    time_to_live: Option<Duration>,
    wait: WaitOptions,
}

impl WriteOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes with this claim. The default is that of [`Holder::current`](crate::Holder::current). A
    /// [`LockGuard`](crate::LockGuard) always writes by its token.
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
        self
    }

    /// The record expires after this time: then it reads as absent and does not exist. Suspended time
    /// counts. Within one boot of Linux, a stepped wall clock does not matter. `None`: it never expires, and neither
    /// does a record whose end is beyond the year 9999. The next write without a time to live makes the
    /// record permanent.
    pub fn time_to_live(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.time_to_live = time.into();
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time. A write does not
    /// wait for another holder's lock, but for a process that is stopped in the middle of an operation on the
    /// key. `None`, the default, waits forever.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.wait = self.wait.cancellation(cancellation);
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.wait = self.wait.observer(observer);
        self
    }

    /// Waits with these options, in the place of the timeout, the cancellation and the observer. So a store that
    /// makes a call in several steps gives each step the rest of the time.
    pub fn wait(mut self, options: impl Into<WaitOptions>) -> Self {
        self.wait = options.into();
        self
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// The claim to write on: the one that was set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim, if one was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// How long the record lives. `None`: forever.
    #[must_use]
    pub fn get_time_to_live(&self) -> Option<Duration> {
        self.time_to_live
    }
}
