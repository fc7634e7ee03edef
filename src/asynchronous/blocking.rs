//! Where blocking calls run: short ones on the runtime's blocking pool, waits on threads of their own.
//!
//! Nothing waits in the pool: it is bounded, and the release that ends a wait needs it too.

use std::future::{pending, poll_fn};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::process::PerProcess;
use crate::{Cancellation, Error, ErrorKind, Key, OnCancel, Result, WaitOptions};

/// The number of threads of a process that wait at the same time.
const MAX_THREADS: usize = 64;

/// The first and the longest pause between the attempts of a call that has no thread yet.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// One for each of these threads. A child has none of its parent's threads.
static PERMITS: PerProcess<Option<Arc<Semaphore>>> = PerProcess::new();

pub(super) fn permits() -> Arc<Semaphore> {
    Arc::clone(PERMITS.lock().get_or_insert_with(|| Arc::new(Semaphore::new(MAX_THREADS))))
}

/// Runs `work` on a thread of its own. `false`: no thread can be started.
pub(super) fn start_thread(permit: OwnedSemaphorePermit, work: impl FnOnce() + Send + 'static) -> bool {
    let run = move || {
        let _permit = permit;
        work();
    };
    std::thread::Builder::new().name("record-store".into()).spawn(run).is_ok()
}

/// Runs a short operation on the blocking pool.
pub(super) async fn short<T: Send + 'static>(
    operation: &'static str,
    key: Option<&Key>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(failure) => match failure.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(shutdown) => Err(error(ErrorKind::Thread, operation, key).with_source(shutdown)),
        },
    }
}

fn error(kind: ErrorKind, operation: &'static str, key: Option<&Key>) -> Error {
    let error = Error::new(kind, operation);
    match key {
        Some(key) => error.with_key(key),
        None => error,
    }
}

/// A blocking call that waits at most for this time, then fails with [`ErrorKind::LockTimeout`].
pub(super) type Call<T> = Arc<dyn Fn(Option<Duration>) -> Result<T> + Send + Sync>;

/// One future's wait: its deadline, and the cancellation of the calls that it makes.
pub(super) struct Wait {
    pub(super) operation: &'static str,
    key: Option<Key>,
    start: Instant,
    timeout: Option<Duration>,
    /// For the options of the calls. Cancelled with the caller's own, and when this is dropped.
    pub(super) cancellation: Cancellation,
    /// Notified when the caller's cancellation is cancelled.
    cancelled: Arc<Notify>,
    _chained: Option<OnCancel>,
}

impl Wait {
    pub(super) fn new(operation: &'static str, key: Option<&Key>, options: &WaitOptions) -> Self {
        let (cancellation, cancelled) = (Cancellation::new(), Arc::new(Notify::new()));
        let chained = options.get_cancellation().map(|callers| {
            let (cancellation, cancelled) = (cancellation.clone(), Arc::clone(&cancelled));
            callers.on_cancel(move || {
                cancellation.cancel();
                cancelled.notify_one();
            })
        });
        let (start, timeout) = (Instant::now(), options.get_timeout());
        Self { operation, key: key.cloned(), start, timeout, cancellation, cancelled, _chained: chained }
    }

    /// The rest of the time, but no deadline earlier than `minimum` after the start.
    pub(super) fn left(&self, minimum: Duration) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.max(minimum).saturating_sub(self.start.elapsed()))
    }

    /// Attempts at once, then waits on a thread.
    pub(super) async fn run<T: Send + 'static>(&self, call: Call<T>) -> Result<T> {
        match self.attempt(&call).await? {
            Some(value) => Ok(value),
            None => self.run_on_thread(&call).await,
        }
    }

    /// [`run`](Wait::run) for a call that reports its timeout as `None`.
    pub(super) async fn run_or_none<T: Send + 'static>(
        &self,
        call: impl Fn(WaitOptions) -> Result<Option<T>> + Send + Sync + 'static,
    ) -> Result<Option<T>> {
        let (options, operation) = (WaitOptions::new().cancellation(&self.cancellation), self.operation);
        let call = move |timeout| {
            let found = call(options.clone().timeout(timeout))?;
            found.ok_or_else(|| Error::new(ErrorKind::LockTimeout, operation))
        };
        match self.run(Arc::new(call)).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One attempt, on the blocking pool. `None`: the call would have to wait.
    pub(super) async fn attempt<T: Send + 'static>(&self, call: &Call<T>) -> Result<Option<T>> {
        self.check()?;
        let is_last = self.left(Duration::ZERO).is_some_and(|left| left.is_zero());
        let call = Arc::clone(call);
        match short(self.operation, self.key.as_ref(), move || call(Some(Duration::ZERO))).await {
            Err(error) if error.is_timeout() && !is_last => Ok(None),
            outcome => self.with_waited(outcome).map(Some),
        }
    }

    /// Waits until `ready`, and attempts after each pause. `Break`: an attempt succeeded first.
    pub(super) async fn attempt_until<T: Send + 'static, R>(
        &self,
        ready: impl Future<Output = R>,
        call: &Call<T>,
        [mut pause, longest]: [Duration; 2],
    ) -> Result<ControlFlow<T, R>> {
        let mut ready = pin!(ready);
        loop {
            let left = self.left(Duration::ZERO).unwrap_or(pause);
            if let Some(ready) = self.until(ready.as_mut(), pause.min(left)).await? {
                return Ok(ControlFlow::Continue(ready));
            }
            if let Some(value) = self.attempt(call).await? {
                return Ok(ControlFlow::Break(value));
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// Calls on a thread. Attempts from time to time as long as there is none.
    pub(super) async fn run_on_thread<T: Send + 'static>(&self, call: &Call<T>) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let started = async {
            // The semaphore is never closed.
            let Ok(permit) = permits().acquire_owned().await else { return pending().await };
            let (call, timeout) = (Arc::clone(call), self.left(Duration::ZERO));
            // Nobody receives the outcome of a dropped future: a lock in it is released here.
            let work = move || drop(sender.send(catch_unwind(AssertUnwindSafe(|| call(timeout)))));
            if !start_thread(permit, work) {
                pending::<()>().await;
            }
        };
        if let ControlFlow::Break(value) = self.attempt_until(started, call, PAUSES).await? {
            return Ok(value);
        }
        match receiver.await {
            Ok(Ok(outcome)) => self.with_waited(outcome),
            Ok(Err(panic)) => resume_unwind(panic),
            Err(gone) => Err(self.error(ErrorKind::Thread).with_source(gone)),
        }
    }

    /// `None` after the pause. Fails as soon as the caller cancels.
    pub(super) async fn until<R>(
        &self,
        mut future: Pin<&mut impl Future<Output = R>>,
        pause: Duration,
    ) -> Result<Option<R>> {
        let mut cancelled = pin!(self.cancelled.notified());
        let first = poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => cancelled.as_mut().poll(context).map(|()| None),
        });
        let output = tokio::time::timeout(pause, first).await.ok().flatten();
        self.check().map(|()| output)
    }

    fn check(&self) -> Result<()> {
        if self.cancellation.is_cancelled() {
            return Err(self.error(ErrorKind::Cancelled));
        }
        Ok(())
    }

    pub(super) fn error(&self, kind: ErrorKind) -> Error {
        error(kind, self.operation, self.key.as_ref())
    }

    /// A call knows only of its own wait.
    pub(super) fn with_waited<T>(&self, outcome: Result<T>) -> Result<T> {
        match outcome {
            Err(error) if error.is_timeout() => Err(error.with_waited(self.start.elapsed())),
            outcome => outcome,
        }
    }
}

/// Ends the calls of a dropped future.
impl Drop for Wait {
    fn drop(&mut self) {
        self.cancellation.cancel();
    }
}
