//! How a record is removed.

use std::time::Duration;

use super::WaitOptions;
use crate::{Cancellation, Claim, WaitObserver};

/// How a record is removed: on which claim. The default is that of the calling thread's default holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a record is removed with them"]
pub struct RemoveOptions {
    claim: Option<Claim>,
    wait: WaitOptions,
}

impl RemoveOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes with this claim. The default is that of [`Holder::current`](crate::Holder::current).
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
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

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// The claim to remove on: the one that was set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim, if one was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }
}
