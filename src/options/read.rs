//! How a record is read.

use std::time::Duration;

use super::WaitOptions;
use crate::{Cancellation, Claim, WaitObserver};

/// How a record is read: on which claim, waiting how long, or without regard to its lock.
///
/// The default reads for the calling thread's default holder, and waits forever while another holder's
/// lock is live.
///
/// ```
/// use std::time::Duration;
/// use record_store::{Holder, LockOptions, MemoryRecordStore, ReadOptions, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.write("report", "draft")?;
/// let _guard = store.lock("report", LockOptions::new().holder(Holder::named("editor")?))?;
/// // A plain read would wait for the editor. This one makes one attempt:
/// let once = ReadOptions::new().timeout(Duration::ZERO);
/// assert!(store.read_with::<String>("report", once).unwrap_err().is_timeout());
/// // This one does not care about the lock:
/// let record = store.read_with::<String>("report", ReadOptions::new().ignore_lock())?;
/// assert_eq!(record.expect("it was written").result, "draft");
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a record is read with them"]
pub struct ReadOptions {
    claim: Option<Claim>,
    wait: WaitOptions,
    ignore_lock: bool,
}

impl ReadOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads with this claim. The default is that of [`Holder::current`](crate::Holder::current).
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time. Zero
    /// makes one attempt and does not wait; `None` waits forever.
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

    /// Returns the last committed state at once, whoever holds the lock and whatever the claim is: for
    /// dashboards and monitoring. The holder may be about to replace that state.
    pub fn ignore_lock(mut self) -> Self {
        self.ignore_lock = true;
        self
    }

    /// The claim to read on: the one that was set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim, if one was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// Whether the lock is ignored.
    #[must_use]
    pub fn ignores_lock(&self) -> bool {
        self.ignore_lock
    }
}
