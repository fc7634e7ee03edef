//! Where blocking calls run: short ones on the runtime's blocking pool, waits on threads of their own.
//!
//! Nothing waits in the pool: it is bounded, and the release that ends a wait needs it too.

use std::future::pending;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
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

fn permits() -> Arc<Semaphore> {
    Arc::clone(PERMITS.lock().get_or_insert_with(|| Arc::new(Semaphore::new(MAX_THREADS))))
}

/// A thread for one blocking call. It is started first, so the call is not lost if that fails.
pub(super) struct Thread(mpsc::Sender<Run>);

/// A call that sends its outcome.
type Run = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Thread {
    /// Waits while there are too many threads, and forever if no further one can be started.
    pub(super) async fn wait() -> Self {
        // The semaphore is never closed.
        let permit = permits().acquire_owned().await.ok();
        match permit.and_then(Self::start) {
            Some(thread) => thread,
            None => pending().await,
        }
    }

    /// `None`: there are too many threads, or no further one can be started.
    pub(super) fn try_start() -> Option<Self> {
        permits().try_acquire_owned().ok().and_then(Self::start)
    }

    fn start(permit: OwnedSemaphorePermit) -> Option<Self> {
        let (sender, call) = mpsc::channel();
        let run = move || {
            if let Ok(call) = call.recv() {
                let _ = poll_once::<()>(call);
            }
            drop(permit);
        };
        thread::Builder::new().name("record-store".into()).spawn(run).ok().map(|_| Self(sender))
    }
}

/// The outcome of a call, or its panic, as a future.
pub(super) struct Outcome<T> {
    receiver: oneshot::Receiver<thread::Result<Result<T>>>,
    /// Those of the error if the call is never made.
    operation: &'static str,
    key: Option<Key>,
}

impl<T: Send + 'static> Outcome<T> {
    /// Runs a call on this thread or, without one, where the store runs its futures: to its end, also if nobody receives
    /// the outcome.
    pub(super) fn of(
        operation: &'static str,
        key: Option<&Key>,
        store: &dyn RecordStoreFutures,
        thread: Option<Thread>,
        call: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Self {
        let (sender, receiver) = oneshot::channel();
        let run = Box::pin(async move {
            // Nobody receives the outcome for a dropped future: a lock in it is released here.
            drop(sender.send(caught(call).await));
        });
        match thread {
            Some(Thread(thread)) => drop(thread.send(run)),
            None => store.spawn(run),
        }
        Self { receiver, operation, key: key.cloned() }
    }
}

impl<T> Future for Outcome<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<T>> {
        Poll::Ready(match ready!(Pin::new(&mut self.receiver).poll(context)) {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_never_sent) => {
                let error = Error::new(ErrorKind::Thread, self.operation);
                let error = error.with_source("the runtime is shutting down");
                Err(self.key.iter().fold(error, Error::with_key))
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
            let store = Blocking(Arc::new(MemoryRecordStore::new()));
            for thread in [None, Some(Thread::wait().await)] {
                let outcome = Outcome::of("read", None, &store, thread, panics());
                let panic = tokio::spawn(outcome).await.unwrap_err().into_panic();
                assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
            }
        });
    }
}
