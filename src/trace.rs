//! What the feature `tracing` tells. Without it these functions are empty, and cost nothing.
//! The table of what is told is in the guide, under `observing`.

use crate::filesystem::Swept;
use crate::{Error, Holder, Key, LockState, LockToken, Result};

#[cfg(feature = "tracing")]
const TARGET: &str = "record_store";

/// A call that waits for another holder's lock.
pub(crate) struct Waiting {
    #[cfg(feature = "tracing")]
    start: std::time::Instant,
    #[cfg(feature = "tracing")]
    _span: tracing::span::EnteredSpan,
}

impl Waiting {
    pub(crate) fn begin(operation: &'static str, key: &Key, holder: Option<&Holder>) -> Self {
        #[cfg(feature = "tracing")]
        {
            let holder = holder.map(Holder::name);
            let span =
                tracing::debug_span!(target: TARGET, "wait", operation, key = key.as_str(), holder).entered();
            Self { start: std::time::Instant::now(), _span: span }
        }
        #[cfg(not(feature = "tracing"))]
        {
            let _ = (operation, key, holder);
            Self {}
        }
    }

    pub(crate) fn end<T>(self, outcome: &Result<T>) {
        #[cfg(feature = "tracing")]
        {
            let waited = self.start.elapsed();
            match outcome {
                Ok(_) => tracing::debug!(target: TARGET, ?waited, "the wait is over"),
                Err(error) => tracing::debug!(target: TARGET, ?waited, %error, "gave up"),
            }
        }
        #[cfg(not(feature = "tracing"))]
        let _ = (self, outcome);
    }
}

pub(crate) fn taken_over(key: &Key, token: LockToken, from: &Holder, state: LockState) {
    #[cfg(feature = "tracing")]
    {
        let (key, token, holder) = (key.as_str(), token.get(), from.name());
        if state == LockState::Abandoned {
            tracing::info!(target: TARGET, key, token, holder, "took over the lock of a dead owner");
        } else {
            tracing::info!(target: TARGET, key, token, holder, "took over a lock whose lease ran out");
        }
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (key, token, from, state);
}

pub(crate) fn swept(swept: &Swept) {
    #[cfg(feature = "tracing")]
    if *swept != Swept::default() {
        let Swept { owners, staged, locks, records } = swept;
        tracing::debug!(target: TARGET, owners, staged, locks, records, "cleared away what was left behind");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = swept;
}

/// Tells of an error that says a lock is lost, and passes it on.
pub(crate) fn lost(error: Error) -> Error {
    #[cfg(feature = "tracing")]
    if let Error::LockLost { operation, key, token, .. } = &error {
        let (key, token) = (key.as_str(), token.get());
        tracing::warn!(target: TARGET, operation, key, token, "the lock is lost");
    }
    error
}
