//! The spans and events of the feature `tracing`. Without it these functions are empty and cost nothing.
//! The guide lists them on its page `observing`.

use std::path::Path;

use crate::{Error, Evicted, Holder, Key, LockState, LockToken, Recovery, Result};

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

/// [`Waiting`] of a future, which may go on on another thread: its span is entered only at its end.
#[cfg(feature = "postgres")]
pub(crate) struct WaitingFuture {
    #[cfg(feature = "tracing")]
    start: std::time::Instant,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

#[cfg(feature = "postgres")]
impl WaitingFuture {
    pub(crate) fn begin(operation: &'static str, key: &Key, holder: Option<&Holder>) -> Self {
        #[cfg(feature = "tracing")]
        {
            let holder = holder.map(Holder::name);
            let span = tracing::debug_span!(target: TARGET, "wait", operation, key = key.as_str(), holder);
            Self { start: std::time::Instant::now(), span }
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
            self.span.in_scope(|| match outcome {
                Ok(_) => tracing::debug!(target: TARGET, ?waited, "the wait is over"),
                Err(error) => tracing::debug!(target: TARGET, ?waited, %error, "gave up"),
            });
        }
        #[cfg(not(feature = "tracing"))]
        let _ = (self, outcome);
    }
}

/// A recovery after a power loss has changed files.
pub(crate) fn recovered(recovery: &Recovery) {
    #[cfg(feature = "tracing")]
    {
        let Recovery { records, removed, locks, .. } = recovery;
        tracing::info!(target: TARGET, records, removed, locks, "recovered from the commit log");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = recovery;
}

/// A lock was acquired in the place of an expired or abandoned one.
pub(crate) fn taken_over(key: &Key, token: LockToken, from: &Holder, state: LockState) {
    #[cfg(feature = "tracing")]
    {
        let (key, token, holder) = (key.as_str(), token.get(), from.name());
        if state == LockState::Abandoned {
            tracing::info!(target: TARGET, key, token, holder, "took over the lock of a dead owner");
        } else {
            tracing::info!(target: TARGET, key, token, holder, "took over an expired lock");
        }
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (key, token, from, state);
}

/// A sweep removed this many files.
pub(crate) fn swept(owners: u64, staged: u64, locks: u64, records: u64) {
    #[cfg(feature = "tracing")]
    if owners + staged + locks + records > 0 {
        tracing::debug!(target: TARGET, owners, staged, locks, records, "removed leftover files");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (owners, staged, locks, records);
}

/// The store in this directory was upgraded from an earlier format version.
pub(crate) fn upgraded(path: &Path, from: u64, to: u64) {
    #[cfg(feature = "tracing")]
    {
        let path = path.display();
        tracing::info!(target: TARGET, %path, from, to, "upgraded the store");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (path, from, to);
}

/// A file that is no record or lock was moved to this path. `reason` says what is wrong with it.
pub(crate) fn set_aside(path: &Path, reason: &Error) {
    #[cfg(feature = "tracing")]
    {
        let (operation, key, path) = (reason.operation(), reason.key().map(Key::as_str), path.display());
        tracing::warn!(target: TARGET, operation, key, %path, %reason, "moved a damaged file aside");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = (path, reason);
}

/// A displaced file stays under its staged name. The sweep after the end of this process is the next attempt.
pub(crate) fn unsettled(error: &Error) {
    #[cfg(feature = "tracing")]
    {
        let (operation, key) = (error.operation(), error.key().map(Key::as_str));
        tracing::warn!(target: TARGET, operation, key, %error, "a displaced file stays in the staging directory");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = error;
}

/// An eviction in the background has removed records.
pub(crate) fn evicted(evicted: &Evicted) {
    #[cfg(feature = "tracing")]
    if evicted.records > 0 {
        let Evicted { records, bytes, kept, records_left, bytes_left, .. } = evicted;
        tracing::debug!(target: TARGET, records, bytes, kept, records_left, bytes_left, "evicted records");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = evicted;
}

/// An eviction in the background has failed. It is tried again later.
pub(crate) fn eviction_failed(error: &Error) {
    #[cfg(feature = "tracing")]
    {
        let (operation, key) = (error.operation(), error.key().map(Key::as_str));
        tracing::warn!(target: TARGET, operation, key, %error, "could not evict records");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = error;
}

/// A record cannot be read, so it is computed again.
pub(crate) fn recomputes(reason: &Error) {
    #[cfg(feature = "tracing")]
    {
        let (operation, key) = (reason.operation(), reason.key().map(Key::as_str));
        tracing::warn!(target: TARGET, operation, key, %reason, "computing a damaged record again");
    }
    #[cfg(not(feature = "tracing"))]
    let _ = reason;
}

/// Reports an error that says that a lock is lost, and returns it.
pub(crate) fn lost(error: Error) -> Error {
    #[cfg(feature = "tracing")]
    {
        let (operation, key) = (error.operation(), error.key().map(Key::as_str));
        let token = error.token().map(LockToken::get);
        tracing::warn!(target: TARGET, operation, key, token, "the lock is lost");
    }
    error
}
