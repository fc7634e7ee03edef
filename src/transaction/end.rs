//! The end of a transaction: a commit or a rollback, and how long its calls may wait.

use std::future::poll_fn;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::BoxError;
use crate::compute::Call;
use crate::locking::DROP_PATIENCE;
use crate::store::calls::caught;
use crate::{Cancellation, Error, ErrorKind, Key, Result, WaitOptions};

/// One end of a transaction. It is the end of its children, too: all of them share its time.
pub(crate) struct End {
    by: By,
    wait: WaitOptions,
    start: Instant,
}

/// How the end began.
#[derive(PartialEq, Eq)]
enum By {
    Call,
    /// By a drop, after which its rest runs in the background.
    Drop,
    /// By a drop after which nothing runs.
    LastDrop,
}

impl End {
    pub(super) fn called(wait: &WaitOptions) -> Self {
        Self { by: By::Call, wait: wait.clone(), start: Instant::now() }
    }

    pub(super) fn dropped() -> Self {
        Self { by: By::Drop, ..Self::called(&DROP_PATIENCE.into()) }
    }

    pub(super) fn dropped_at_last() -> Self {
        Self { by: By::LastDrop, ..Self::dropped() }
    }

    /// Whether no caller waits for it.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_drop(&self) -> bool {
        self.by != By::Call
    }

    /// The rest of the time.
    pub(super) fn wait(&self) -> WaitOptions {
        self.wait.since(self.start)
    }

    /// The rest of the time for a release. A cancellation ends its wait, but does not prevent it: otherwise the lock of a
    /// cancelled transaction would stay.
    pub(crate) fn wait_for_release(&self) -> WaitOptions {
        let wait = self.wait();
        if wait.get_cancellation().is_some_and(Cancellation::is_cancelled) {
            return Duration::ZERO.into();
        }
        wait
    }
}

/// The write or a hook of a transaction. It begins when its outcome is first requested, and goes on from there when that
/// is requested again: so nothing runs twice, if the future of an end is dropped and the next end takes over.
///
/// The mutex is never locked. It makes the transaction `Sync`, which a future of another crate need not be.
pub(super) struct Step<'s>(Mutex<Call<'s, Result<()>>>);

impl<'s> Step<'s> {
    pub(super) fn new(step: impl Future<Output = Result<()>> + Send + 's) -> Self {
        Self(Mutex::new(Box::pin(step)))
    }

    /// A hook. Its panic is an error. Otherwise the remaining hooks would not run, and a panic in a hook that `drop` runs
    /// during another panic would abort the process.
    pub(super) fn hook(
        operation: &'static str,
        key: &Key,
        hook: impl Future<Output = Result<(), BoxError>> + Send + 's,
    ) -> Self {
        let failed = Error::new(ErrorKind::Hook, operation).with_key(key);
        Self::new(async move {
            let panic = match caught(hook).await {
                Ok(outcome) => return outcome.map_err(|source| failed.with_source(source)),
                Err(panic) => panic,
            };
            let message = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(failed.with_source(format!("the hook panicked: {message}")))
        })
    }

    /// Waits for the outcome. `None`: the step has to wait, and nothing can wait for it.
    pub(super) async fn outcome(&mut self, end: &End) -> Option<Result<()>> {
        poll_fn(|context| self.poll(context, end)).await
    }

    pub(super) fn poll(&mut self, context: &mut Context<'_>, end: &End) -> Poll<Option<Result<()>>> {
        let step = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        match step.as_mut().poll(context) {
            Poll::Pending if end.by == By::LastDrop => Poll::Ready(None),
            polled => polled.map(Some),
        }
    }
}
