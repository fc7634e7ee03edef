//! Where blocking calls run: short ones on the runtime's blocking pool, waits on threads of their own.
//!
//! Nothing waits in the pool: it is bounded, and the release that ends a wait needs it too.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::{RecordStoreFuture, RecordStoreFutures};
use crate::process::PerProcess;
use crate::{Error, ErrorKind, Key, Result};

/// The number of threads of a process that wait at the same time.
const MAX_THREADS: usize = 64;

/// One for each of these threads. A child has none of its parent's threads.
static PERMITS: PerProcess<Option<Arc<Semaphore>>> = PerProcess::new();

pub(super) fn permits() -> Arc<Semaphore> {
    Arc::clone(PERMITS.lock().get_or_insert_with(|| Arc::new(Semaphore::new(MAX_THREADS))))
}

/// Receives what a call returns, or its panic.
pub(super) struct Outcome<T>(oneshot::Receiver<thread::Result<Result<T>>>);

impl<T: Send + 'static> Outcome<T> {
    /// Calls on the blocking pool.
    pub(super) fn on_pool(call: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        let (call, outcome) = Self::of(call);
        tokio::task::spawn_blocking(call);
        outcome
    }

    /// Calls on a thread of its own. `None`: no thread can be started.
    pub(super) fn on_thread(
        permit: OwnedSemaphorePermit,
        call: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Option<Self> {
        let (call, outcome) = Self::of(call);
        let run = move || {
            call();
            drop(permit);
        };
        thread::Builder::new().name("record-store".into()).spawn(run).ok().map(|_| outcome)
    }

    /// Runs a future to its end, also if nobody receives the outcome.
    pub(super) fn of_future(futures: &dyn RecordStoreFutures, call: RecordStoreFuture<'static, T>) -> Self {
        let (sender, receiver) = oneshot::channel();
        futures.spawn(Box::pin(async move { drop(sender.send(Ok(call.await))) }));
        Self(receiver)
    }

    fn of(call: impl FnOnce() -> Result<T> + Send + 'static) -> (impl FnOnce() + Send + 'static, Self) {
        let (sender, receiver) = oneshot::channel();
        // Nobody receives the outcome for a dropped future: a lock in it is released here.
        (move || drop(sender.send(catch_unwind(AssertUnwindSafe(call)))), Self(receiver))
    }

    /// The outcome of the call. Operation and key are those of the error if it is never made.
    pub(super) async fn receive(&mut self, operation: &'static str, key: Option<&Key>) -> Result<T> {
        match (&mut self.0).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_never_sent) => {
                let error =
                    Error::new(ErrorKind::Thread, operation).with_source("the runtime is shutting down");
                Err(key.into_iter().fold(error, Error::with_key))
            }
        }
    }
}
