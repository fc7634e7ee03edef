//! Which lock of a key is broken.

use std::time::Duration;

use super::WaitOptions;
use crate::{Cancellation, LockToken, WaitObserver};

/// Which lock of a key is broken, and how long the call waits. The default breaks any lock.
///
/// ```
/// use std::time::Duration;
/// use record_store::{BreakOptions, LockOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.acquire_lock("report", LockOptions::new())?;
/// let seen = store.lock_info("report")?.expect("it was just locked");
/// // Only the lock that was seen, not one that somebody acquires in between.
/// let options = BreakOptions::new().token(seen.token()).timeout(Duration::from_secs(5));
/// assert!(store.break_lock_with("report", options)?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a lock is broken with them"]
pub struct BreakOptions {
    token: Option<LockToken>,
    wait: WaitOptions,
}

impl BreakOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks only the lock of this acquisition. With the token of the [`LockInfo`](crate::LockInfo) on which the
    /// decision was based, a lock that was acquired since then is never broken. `None`, the default, breaks any lock.
    pub fn token(mut self, token: impl Into<Option<LockToken>>) -> Self {
        self.token = token.into();
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time: see
    /// [`WriteOptions::timeout`](crate::WriteOptions::timeout).
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

    /// The acquisition whose lock is broken. `None`: any.
    #[must_use]
    pub fn get_token(&self) -> Option<LockToken> {
        self.token
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }
}
