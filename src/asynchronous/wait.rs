//! The waits of futures: calls that end when the future is dropped.

use std::convert::Infallible;
use std::future::poll_fn;
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::blocking::{Outcome, Thread};
use super::pending::Acquisition;
use super::queue::Queues;
use super::{AsyncLockGuard, AsyncRecordStore, Futures, current_holder};
use crate::pauses::Pauses;
use crate::store::futures::{RecordStoreFuture, RecordStoreFutures};
use crate::{
    Cancellation, Error, ErrorKind, Holder, Key, LockGuard, LockOptions, OnCancel, RecordStore, Result,
    WaitOptions,
};

/// The first and the longest pause between the attempts of a call that has no thread yet, because all of them wait or none
/// can be started. No event says that it could go on: another process may release its lock, and only a thread can wait for
/// that. So it makes at most twenty short calls in a second.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(50)];

/// A queued task attempts this often: its holder may have got the lock in another way, through another store or in another
/// process of the same name, and nothing reports that. The tasks before it end their turns as events; so this pause is
/// neither a delay of the queue nor of a computed record, and costs a queued task four short calls in a second.
const QUEUED_PAUSE: Duration = Duration::from_millis(250);

/// A pending release is a short operation, unless a process is stopped inside one. So even an acquisition
/// with a timeout of zero waits this long for it.
const RELEASE_GRACE: Duration = Duration::from_millis(250);

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    /// Makes a call that acquires the locks of these keys, after the pending releases of the same holder. With
    /// queues, for one lock: as long as it is not the first in its queue, the call is only attempted.
    pub(super) async fn acquire<T: Send + 'static, F: Future<Output = Result<T>> + Send + 'static>(
        &self,
        operation: &'static str,
        keys: Vec<Key>,
        options: LockOptions,
        futures: Futures,
        queues: Option<&Queues>,
        call: impl Fn(Futures, Arc<Locking<S>>, LockOptions) -> F + Send + Sync,
    ) -> Result<T> {
        let holder = options.get_holder().cloned().unwrap_or_else(current_holder);
        let acquisitions: Vec<_> = keys.iter().map(|key| Acquisition::new(&holder, key)).collect();
        let mut wait = Wait::new(operation, keys.first(), options.get_wait(), futures);
        for acquisition in &acquisitions {
            let left = wait.left().max(RELEASE_GRACE.saturating_sub(wait.start.elapsed()));
            if wait.until(pin!(acquisition.earlier_are_released()), left).await?.is_none() {
                let error = timeout(operation).with_key(acquisition.key()).with_holder(holder);
                return Err(error.waiting_since(wait.start));
            }
        }
        wait.acquisitions.clone_from(&acquisitions);
        let turn = async { Some(queues?.enter((operation, keys[0].clone()), &holder).await) };
        let options = options.holder(holder.clone());
        let locking = Locking { store: self.clone(), acquisitions };
        let call = |store, locking, wait| call(store, locking, options.clone().wait(wait));
        wait.run(turn, locking, call).await
    }
}

/// The parts that all calls of an acquisition use.
pub(super) struct Locking<S: ?Sized> {
    pub(super) store: AsyncRecordStore<S>,
    /// In the order of the keys.
    pub(super) acquisitions: Vec<Arc<Acquisition>>,
}

impl<S: RecordStore + ?Sized + 'static> Locking<S> {
    /// The only key.
    pub(super) fn key(&self) -> &Key {
        self.acquisitions[0].key()
    }

    pub(super) fn holder(&self) -> &Holder {
        self.acquisitions[0].holder()
    }

    /// Acquires the lock of the only key.
    pub(super) async fn lock(
        &self,
        calls: &dyn RecordStoreFutures,
        options: LockOptions,
    ) -> Result<AsyncLockGuard<S>> {
        let guard =
            LockGuard::acquire_owned_by(calls, &self.store.store, self.key().clone(), options).await?;
        Ok(AsyncLockGuard::new(&self.store, guard, &self.acquisitions[0]))
    }
}

pub(super) fn timeout(operation: &'static str) -> Error {
    Error::new(ErrorKind::LockTimeout, operation)
}

/// `None` instead of a timeout.
pub(super) fn or_none<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.is_timeout() => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// One future's wait. If it is dropped, its calls end, and the locks that they acquire are given up.
pub(super) struct Wait {
    operation: &'static str,
    /// `None`: the calls are about the whole store.
    key: Option<Key>,
    start: Instant,
    /// The options for a call that begins at the start.
    options: WaitOptions,
    /// That of the options. Cancelled with the caller's own.
    cancellation: Cancellation,
    _chained: Option<OnCancel>,
    futures: Futures,
    /// Those of the locks that have not arrived yet.
    acquisitions: Vec<Arc<Acquisition>>,
}

/// A call that can be repeated.
type Call<'a, T> = dyn Fn(WaitOptions) -> RecordStoreFuture<'static, T> + Send + Sync + 'a;

impl Wait {
    pub(super) fn new(
        operation: &'static str,
        key: Option<&Key>,
        options: &WaitOptions,
        futures: Futures,
    ) -> Self {
        let cancellation = Cancellation::new();
        let chained = options.get_cancellation().map(|callers| {
            let cancellation = cancellation.clone();
            callers.on_cancel(move || cancellation.cancel())
        });
        let start = Instant::now();
        Self {
            operation,
            key: key.cloned(),
            start,
            options: options.of_call(start).cancellation(&cancellation),
            cancellation,
            _chained: chained,
            futures,
            acquisitions: Vec::new(),
        }
    }

    /// Makes a call about this value, after its turn has come. The call may be repeated, but never runs twice at once. At
    /// the timeout, it fails with [`ErrorKind::LockTimeout`].
    pub(super) async fn run<R, V, T, F>(
        mut self,
        turn: impl Future<Output = R>,
        value: V,
        call: impl Fn(Futures, Arc<V>, WaitOptions) -> F + Send + Sync,
    ) -> Result<T>
    where
        V: Send + Sync,
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let value = Arc::new(value);
        let call = |options| -> RecordStoreFuture<'static, T> {
            Box::pin(call(Arc::clone(&self.futures), Arc::clone(&value), options))
        };
        let ControlFlow::Break(outcome) = self.wait_and_call(turn, &call).await;
        if outcome.is_ok() {
            self.acquisitions.clear();
        }
        // The call knows only of its own wait.
        outcome.map_err(|error| error.waiting_since(self.start))
    }

    /// Waits for its turn and calls. A call that blocks is attempted first, and if it would have to wait, it gets a
    /// thread.
    async fn wait_and_call<R, T: Send + 'static>(
        &self,
        turn: impl Future<Output = R>,
        call: &Call<'_, T>,
    ) -> ControlFlow<Result<T>, Infallible> {
        let _turn = self.attempt_until(turn, [QUEUED_PAUSE; 2], call).await?;
        let mut thread = None;
        if self.futures.blocks() {
            self.attempt(call).await?;
            thread = Some(self.attempt_until(Thread::wait(), PAUSES, call).await?);
        }
        let call = call(self.rest());
        ControlFlow::Break(Outcome::of(self.operation, self.key.as_ref(), &*self.futures, thread, call).await)
    }

    /// Waits until `ready`. If it is not ready at once, attempts then and after each pause.
    async fn attempt_until<R, T: Send + 'static>(
        &self,
        ready: impl Future<Output = R>,
        pauses: [Duration; 2],
        call: &Call<'_, T>,
    ) -> ControlFlow<Result<T>, R> {
        let (mut ready, mut pause, mut pauses) = (pin!(ready), Duration::ZERO, Pauses::new(pauses));
        loop {
            match self.until(ready.as_mut(), pause.min(self.left())).await {
                Ok(Some(ready)) => return ControlFlow::Continue(ready),
                Ok(None) => self.attempt(call).await?,
                Err(error) => return ControlFlow::Break(Err(error)),
            }
            pause = pauses.take();
        }
    }

    /// Calls without a wait. `Continue`: the call would have to wait.
    async fn attempt<T: Send + 'static>(&self, call: &Call<'_, T>) -> ControlFlow<Result<T>> {
        let is_last = self.left().is_zero();
        let call = call(self.options.clone().timeout(Duration::ZERO));
        match Outcome::of(self.operation, self.key.as_ref(), &*self.futures, None, call).await {
            Err(error) if error.is_timeout() && !is_last => ControlFlow::Continue(()),
            outcome => ControlFlow::Break(outcome),
        }
    }

    /// `None`: it is not ready after the pause. Fails as soon as the caller cancels.
    pub(super) async fn until<R>(
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
        self.cancellation.check(self.operation, self.key.as_ref()).map(|()| output)
    }

    pub(super) fn left(&self) -> Duration {
        self.rest().get_timeout().unwrap_or(Duration::MAX)
    }

    /// The options of a call that begins now, with all the time that is left.
    pub(super) fn rest(&self) -> WaitOptions {
        self.options.since(self.start)
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.acquisitions.iter().for_each(|acquisition| acquisition.give_up());
        self.cancellation.cancel();
    }
}
