//! Where blocking calls run: short ones on the runtime's blocking pool, waits on threads of their own.
//!
//! Nothing waits in the pool: it is bounded, and the release that ends a wait needs it too.

use std::future::poll_fn;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::process::PerProcess;
use crate::store::calls::{caught, poll_once};
use crate::store::futures::RecordStoreFutures;
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
    /// Runs a call where the store runs its futures: to its end, also if nobody receives the outcome.
    pub(super) fn spawned(
        store: &dyn RecordStoreFutures,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        let (call, outcome) = Self::of(call);
        store.spawn(Box::pin(call));
        outcome
    }

    /// Runs a blocking call on a thread of its own. `None`: no thread can be started.
    pub(super) fn on_thread(
        permit: OwnedSemaphorePermit,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Option<Self> {
        let (call, outcome) = Self::of(call);
        let run = move || {
            let _ = poll_once(call);
            drop(permit);
        };
        thread::Builder::new().name("record-store".into()).spawn(run).ok().map(|_| outcome)
    }

    /// Runs a long blocking call on a thread of its own or, if none is available, on the pool.
    pub(super) fn long<F: Future<Output = Result<T>> + Send + 'static>(
        store: &dyn RecordStoreFutures,
        call: impl Fn() -> F,
    ) -> Self {
        let permit = permits().try_acquire_owned().ok();
        let on_thread = permit.and_then(|permit| Self::on_thread(permit, call()));
        on_thread.unwrap_or_else(|| Self::spawned(store, call()))
    }

    fn of(
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> (impl Future<Output = ()> + Send + 'static, Self) {
        let (sender, receiver) = oneshot::channel();
        let run = async move {
            // Nobody receives the outcome for a dropped future: a lock in it is released here.
            drop(sender.send(caught(call).await));
        };
        (run, Self(receiver))
    }

    /// The outcome of the call. Operation and key are those of the error if it is never made.
    pub(super) async fn receive(&mut self, operation: &'static str, key: Option<&Key>) -> Result<T> {
        poll_fn(|context| self.poll(context, operation, key)).await
    }

    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        operation: &'static str,
        key: Option<&Key>,
    ) -> Poll<Result<T>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll(context)) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_never_sent) => {
                let error =
                    Error::new(ErrorKind::Thread, operation).with_source("the runtime is shutting down");
                Err(key.into_iter().fold(error, Error::with_key))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryRecordStore;
    use crate::store::futures::Blocking;

    #[test]
    fn a_panic_in_a_call_reaches_its_caller() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let panics = async || -> Result<()> { resume_unwind(Box::new("on purpose")) };
        runtime.block_on(async {
            let on_pool = Outcome::spawned(&Blocking(Arc::new(MemoryRecordStore::new())), panics());
            let permit = permits().acquire_owned().await.unwrap();
            let on_thread = Outcome::on_thread(permit, panics()).unwrap();
            for mut outcome in [on_pool, on_thread] {
                let caller = tokio::spawn(async move { outcome.receive("read", None).await });
                let panic = caller.await.unwrap_err().into_panic();
                assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
            }
        });
    }
}
