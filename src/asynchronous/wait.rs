//! The waits of futures: calls that end when the future is dropped.

use std::convert::Infallible;
use std::future::{pending, poll_fn, ready};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::blocking::{Outcome, permits};
use super::pending::Acquisition;
use super::queue::Queues;
use super::{AsyncRecordStore, RecordStoreFuture, RecordStoreFutures, current_holder};
use crate::{Cancellation, Error, ErrorKind, Key, LockOptions, OnCancel, RecordStore, Result, WaitOptions};

/// The first and the longest pause between the attempts of a call that has no thread yet.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// A queued task attempts this often: its holder may have got the lock in another way.
const QUEUED_PAUSE: Duration = Duration::from_millis(250);

/// A pending release is a short operation, unless a process is stopped inside one. So even an acquisition
/// with a timeout of zero waits this long for it.
const RELEASE_GRACE: Duration = Duration::from_millis(250);

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    /// Makes a call that may have to wait. At the timeout, it fails with [`ErrorKind::LockTimeout`].
    pub(super) async fn wait<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &Key,
        options: &WaitOptions,
        call: impl Fn(&S, &Key, WaitOptions) -> Result<T> + Send + Sync + 'static,
        by_futures: impl Fn(Arc<dyn RecordStoreFutures>, Key, WaitOptions) -> RecordStoreFuture<'static, T>
        + Send
        + Sync
        + 'static,
    ) -> Result<T> {
        let (store, of) = (Arc::clone(&self.store), key.clone());
        let call = match store.futures_raw() {
            None => Call::Blocking(Arc::new(move |options, _| call(&store, &of, options))),
            Some(futures) => {
                let of_call = Arc::clone(&futures);
                let call = move |options, _| by_futures(Arc::clone(&of_call), of.clone(), options);
                Call::Futures(futures, Arc::new(call))
            }
        };
        Wait::new(operation, key, options).run(ready(()), &call).await
    }

    /// Makes a call that acquires the locks of these keys, after the pending releases of the same holder. With
    /// queues, for one lock: `call` is attempted with `false` as long as it is not the first in its queue.
    pub(super) async fn acquire<T: Send + 'static>(
        &self,
        operation: &'static str,
        keys: &[Key],
        options: LockOptions,
        queues: Option<&Queues>,
        call: impl Fn(&Self, &[Arc<Acquisition>], LockOptions, bool) -> Result<T> + Send + Sync + 'static,
        by_futures: Option<ByFutures<S, T>>,
    ) -> Result<T> {
        let mut wait = Wait::new(operation, &keys[0], options.get_wait());
        let holder = options.get_holder().cloned().unwrap_or_else(current_holder);
        let acquisitions: Vec<_> = keys.iter().map(|key| Acquisition::new(&holder, key)).collect();
        for acquisition in &acquisitions {
            let left = wait.left().max(RELEASE_GRACE.saturating_sub(wait.start.elapsed()));
            if wait.until(pin!(acquisition.earlier_are_released()), left).await?.is_none() {
                let error = timeout(operation, acquisition.key()).with_holder(holder);
                return Err(error.waiting_since(wait.start));
            }
        }
        wait.acquisitions.clone_from(&acquisitions);
        let (store, options) = (self.clone(), options.holder(holder.clone()));
        let call = match (by_futures, store.store.futures_raw()) {
            (Some(by_futures), Some(futures)) => {
                let of_call = Arc::clone(&futures);
                Call::Futures(
                    futures,
                    Arc::new(move |wait, is_first| {
                        let (futures, options) = (Arc::clone(&of_call), options.clone().wait(wait));
                        by_futures(store.clone(), futures, acquisitions.clone(), options, is_first)
                    }),
                )
            }
            _ => Call::Blocking(Arc::new(move |wait, is_first| {
                call(&store, &acquisitions, options.clone().wait(wait), is_first)
            })),
        };
        let Some(queues) = queues else { return wait.run(ready(()), &call).await };
        wait.run(queues.enter((operation, keys[0].clone()), &holder), &call).await
    }
}

pub(super) fn timeout(operation: &'static str, key: &Key) -> Error {
    Error::new(ErrorKind::LockTimeout, operation).with_key(key)
}

/// `None` instead of a timeout.
pub(super) fn or_none<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.is_timeout() => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// An acquisition by futures.
pub(super) type ByFutures<S, T> = fn(
    AsyncRecordStore<S>,
    Arc<dyn RecordStoreFutures>,
    Vec<Arc<Acquisition>>,
    LockOptions,
    bool,
) -> RecordStoreFuture<'static, T>;

/// A call that can be repeated. `true`: it is the first in its queue.
enum Call<T> {
    Blocking(Arc<dyn Fn(WaitOptions, bool) -> Result<T> + Send + Sync>),
    Futures(
        Arc<dyn RecordStoreFutures>,
        Arc<dyn Fn(WaitOptions, bool) -> RecordStoreFuture<'static, T> + Send + Sync>,
    ),
}

impl<T: Send + 'static> Call<T> {
    /// Begins a call that does not wait.
    fn attempt(&self, options: WaitOptions, is_first: bool) -> Outcome<T> {
        match self {
            Call::Blocking(call) => {
                let call = Arc::clone(call);
                Outcome::on_pool(move || call(options, is_first))
            }
            Call::Futures(futures, call) => Outcome::of_future(&**futures, call(options, is_first)),
        }
    }
}

/// One future's wait. If it is dropped, its calls end, and the locks that they acquire are given up.
struct Wait {
    operation: &'static str,
    key: Key,
    start: Instant,
    /// The options for a call that begins at the start.
    options: WaitOptions,
    /// That of the options. Cancelled with the caller's own.
    cancellation: Cancellation,
    _chained: Option<OnCancel>,
    /// Those of the locks that have not arrived yet.
    acquisitions: Vec<Arc<Acquisition>>,
}

impl Wait {
    fn new(operation: &'static str, key: &Key, options: &WaitOptions) -> Self {
        let cancellation = Cancellation::new();
        let chained = options.get_cancellation().map(|callers| {
            let cancellation = cancellation.clone();
            callers.on_cancel(move || cancellation.cancel())
        });
        let start = Instant::now();
        Self {
            operation,
            key: key.clone(),
            start,
            options: options.of_call(start).cancellation(&cancellation),
            cancellation,
            _chained: chained,
            acquisitions: Vec::new(),
        }
    }

    async fn run<T: Send + 'static, R>(mut self, turn: impl Future<Output = R>, call: &Call<T>) -> Result<T> {
        let ControlFlow::Break(outcome) = self.wait_and_call(turn, call).await;
        if outcome.is_ok() {
            self.acquisitions.clear();
        }
        // The call knows only of its own wait.
        outcome.map_err(|error| error.waiting_since(self.start))
    }

    /// Waits for its turn, attempts, and if the call would have to wait, calls on a thread.
    async fn wait_and_call<T: Send + 'static, R>(
        &self,
        turn: impl Future<Output = R>,
        call: &Call<T>,
    ) -> ControlFlow<Result<T>, Infallible> {
        let _turn = self.attempt_until(turn, call, false, [QUEUED_PAUSE; 2]).await?;
        let call_on_thread = match call {
            Call::Blocking(call) => call,
            Call::Futures(..) => {
                let mut outcome = call.attempt(self.options.since(self.start), true);
                return ControlFlow::Break(outcome.receive(self.operation, Some(&self.key)).await);
            }
        };
        self.attempt(call, true).await?;
        let started = async {
            // The semaphore is never closed.
            let Ok(permit) = permits().acquire_owned().await else { return pending().await };
            let (call, options) = (Arc::clone(call_on_thread), self.options.since(self.start));
            match Outcome::on_thread(permit, move || call(options, true)) {
                Some(outcome) => outcome,
                None => pending().await,
            }
        };
        let mut outcome = self.attempt_until(started, call, true, PAUSES).await?;
        ControlFlow::Break(outcome.receive(self.operation, Some(&self.key)).await)
    }

    /// Waits until `ready`. If it is not ready at once, attempts then and after each pause.
    async fn attempt_until<T: Send + 'static, R>(
        &self,
        ready: impl Future<Output = R>,
        call: &Call<T>,
        is_first: bool,
        [first, longest]: [Duration; 2],
    ) -> ControlFlow<Result<T>, R> {
        let (mut ready, mut pause) = (pin!(ready), Duration::ZERO);
        loop {
            match self.until(ready.as_mut(), pause.min(self.left())).await {
                Ok(Some(ready)) => return ControlFlow::Continue(ready),
                Ok(None) => self.attempt(call, is_first).await?,
                Err(error) => return ControlFlow::Break(Err(error)),
            }
            pause = (pause * 2).clamp(first, longest);
        }
    }

    /// One attempt, on the blocking pool. `Continue`: the call would have to wait.
    async fn attempt<T: Send + 'static>(&self, call: &Call<T>, is_first: bool) -> ControlFlow<Result<T>> {
        let is_last = self.left().is_zero();
        let mut outcome = call.attempt(self.options.clone().timeout(Duration::ZERO), is_first);
        match outcome.receive(self.operation, Some(&self.key)).await {
            Err(error) if error.is_timeout() && !is_last => ControlFlow::Continue(()),
            outcome => ControlFlow::Break(outcome),
        }
    }

    /// `None`: it is not ready after the pause. Fails as soon as the caller cancels.
    async fn until<R>(
        &self,
        mut ready: Pin<&mut impl Future<Output = R>>,
        pause: Duration,
    ) -> Result<Option<R>> {
        let (mut paused, mut on_cancel) = (pin!(tokio::time::sleep(pause)), None);
        let output = poll_fn(|context| {
            if let Poll::Ready(output) = ready.as_mut().poll(context) {
                return Poll::Ready(Some(output));
            }
            let waker = context.waker().clone();
            on_cancel = Some(self.cancellation.on_cancel(move || waker.wake()));
            // A timer may take a millisecond for no pause at all.
            if pause.is_zero() || self.cancellation.is_cancelled() {
                return Poll::Ready(None);
            }
            paused.as_mut().poll(context).map(|()| None)
        });
        let output = output.await;
        self.cancellation.check(self.operation, &self.key).map(|()| output)
    }

    fn left(&self) -> Duration {
        self.options.since(self.start).get_timeout().unwrap_or(Duration::MAX)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.acquisitions.iter().for_each(|acquisition| acquisition.give_up());
        self.cancellation.cancel();
    }
}
