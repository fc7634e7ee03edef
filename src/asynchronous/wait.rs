//! The waits of futures: calls that end when the future is dropped.

use std::convert::Infallible;
use std::future::{poll_fn, ready};
use std::ops::ControlFlow;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, OwnedMutexGuard};

use super::blocking::{Outcome, Thread};
use super::pending::Acquisition;
use super::queue::Queues;
use super::{AsyncLockGuard, AsyncRecordStore, Futures, current_holder};
use crate::pauses::Pauses;
use crate::store::futures::{RecordStoreFuture, RecordStoreFutures};
use crate::{
    Cancellation, Error, ErrorKind, Key, LockGuard, LockOptions, OnCancel, RecordStore, Result, WaitOptions,
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
    /// Makes a call that may have to wait. At the timeout, it fails with [`ErrorKind::LockTimeout`].
    pub(super) async fn wait<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &Key,
        options: &WaitOptions,
        call: impl for<'a> Fn(&'a dyn RecordStoreFutures, &'a Key, WaitOptions) -> RecordStoreFuture<'a, T>
        + Send
        + Sync
        + 'static,
    ) -> Result<T> {
        let store = self.futures();
        let of = Arc::new((Arc::clone(&store), key.clone(), call));
        let call = move |options| -> RecordStoreFuture<'static, T> {
            let of = Arc::clone(&of);
            Box::pin(async move {
                let (store, key, call) = &*of;
                call(&**store, key, options).await
            })
        };
        Wait::new(operation, Some(key), options, store, Box::new(call)).run(ready(())).await
    }

    /// [`wait`](Self::wait) for a call about the whole store that changes a value. A call of a dropped future may still
    /// use the value: it is cancelled, and ends soon.
    pub(super) async fn wait_with<V: Send + 'static, T: Send + 'static>(
        &self,
        operation: &'static str,
        value: &Arc<Mutex<V>>,
        options: &WaitOptions,
        call: impl for<'a> Fn(&'a dyn RecordStoreFutures, &'a mut V, WaitOptions) -> RecordStoreFuture<'a, T>
        + Send
        + Sync
        + 'static,
    ) -> Result<T> {
        let store = self.futures();
        let held: Arc<Mutex<Option<OwnedMutexGuard<V>>>> = Arc::new(Mutex::new(None));
        let of = Arc::new((Arc::clone(&store), Arc::clone(&held), call));
        let call = move |options| -> RecordStoreFuture<'static, T> {
            let of = Arc::clone(&of);
            Box::pin(async move {
                let (store, held, call) = &*of;
                let mut held = held.lock().await;
                let Some(value) = held.as_mut() else { return Err(timeout(operation, None)) };
                let outcome = call(&**store, value, options).await;
                // Unless the call is repeated, the value is free before anybody learns of the outcome.
                if !outcome.as_ref().is_err_and(Error::is_timeout) {
                    *held = None;
                }
                outcome
            })
        };
        let wait = Wait::new(operation, None, options, store, Box::new(call));
        let Some(value) = wait.until(pin!(Arc::clone(value).lock_owned()), wait.left()).await? else {
            return Err(timeout(operation, None));
        };
        *held.lock().await = Some(value);
        wait.run(ready(())).await
    }

    /// Makes a call that acquires the locks of these keys, after the pending releases of the same holder. With
    /// queues, for one lock: as long as it is not the first in its queue, the call is only attempted.
    pub(super) async fn acquire<T: Send + 'static>(
        &self,
        operation: &'static str,
        keys: &[Key],
        options: LockOptions,
        futures: Futures,
        queues: Option<&Queues>,
        call: impl Fn(Arc<Locking<S>>, LockOptions) -> RecordStoreFuture<'static, T> + Send + Sync + 'static,
    ) -> Result<T> {
        let holder = options.get_holder().cloned().unwrap_or_else(current_holder);
        let acquisitions: Vec<_> = keys.iter().map(|key| Acquisition::new(&holder, key)).collect();
        let (wait, options) = (options.get_wait().clone(), options.holder(holder.clone()));
        let (store, of) = (self.clone(), acquisitions.clone());
        let locking = Arc::new(Locking { store, futures: Arc::clone(&futures), acquisitions: of });
        let call = move |wait| call(Arc::clone(&locking), options.clone().wait(wait));
        let mut wait = Wait::new(operation, Some(&keys[0]), &wait, futures, Box::new(call));
        for acquisition in &acquisitions {
            let left = wait.left().max(RELEASE_GRACE.saturating_sub(wait.start.elapsed()));
            if wait.until(pin!(acquisition.earlier_are_released()), left).await?.is_none() {
                let error = timeout(operation, Some(acquisition.key())).with_holder(holder);
                return Err(error.waiting_since(wait.start));
            }
        }
        wait.acquisitions = acquisitions;
        let Some(queues) = queues else { return wait.run(ready(())).await };
        wait.run(queues.enter((operation, keys[0].clone()), &holder)).await
    }
}

/// The store and the locks of a call that acquires them.
pub(super) struct Locking<S: ?Sized> {
    pub(super) store: AsyncRecordStore<S>,
    pub(super) futures: Futures,
    pub(super) acquisitions: Vec<Arc<Acquisition>>,
}

impl<S: RecordStore + ?Sized + 'static> Locking<S> {
    pub(super) fn key(&self) -> &Key {
        self.acquisitions[0].key()
    }

    /// Acquires the lock of the only key.
    pub(super) async fn lock(&self, options: LockOptions) -> Result<AsyncLockGuard<S>> {
        let (calls, store, key) = (&*self.futures, &self.store.store, self.key().clone());
        let guard = LockGuard::acquire_owned_by(calls, store, key, options).await?;
        Ok(AsyncLockGuard::new(&self.store, guard, &self.acquisitions[0]))
    }
}

pub(super) fn timeout(operation: &'static str, key: Option<&Key>) -> Error {
    key.into_iter().fold(Error::new(ErrorKind::LockTimeout, operation), Error::with_key)
}

/// `None` instead of a timeout.
pub(super) fn or_none<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Err(error) if error.is_timeout() => Ok(None),
        outcome => outcome.map(Some),
    }
}

/// A call that can be repeated.
type Call<T> = Box<dyn Fn(WaitOptions) -> RecordStoreFuture<'static, T> + Send + Sync>;

/// One future's wait. If it is dropped, its calls end, and the locks that they acquire are given up.
struct Wait<T> {
    operation: &'static str,
    /// `None`: the call is about the whole store.
    key: Option<Key>,
    start: Instant,
    /// The options for a call that begins at the start.
    options: WaitOptions,
    /// That of the options. Cancelled with the caller's own.
    cancellation: Cancellation,
    _chained: Option<OnCancel>,
    futures: Futures,
    call: Call<T>,
    /// Those of the locks that have not arrived yet.
    acquisitions: Vec<Arc<Acquisition>>,
}

impl<T: Send + 'static> Wait<T> {
    fn new(
        operation: &'static str,
        key: Option<&Key>,
        options: &WaitOptions,
        futures: Futures,
        call: Call<T>,
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
            call,
            acquisitions: Vec::new(),
        }
    }

    async fn run<R>(mut self, turn: impl Future<Output = R>) -> Result<T> {
        let ControlFlow::Break(outcome) = self.wait_and_call(turn).await;
        if outcome.is_ok() {
            self.acquisitions.clear();
        }
        // The call knows only of its own wait.
        outcome.map_err(|error| error.waiting_since(self.start))
    }

    /// Waits for its turn and calls. A call that blocks is attempted first, and if it would have to wait, it gets a
    /// thread.
    async fn wait_and_call<R>(&self, turn: impl Future<Output = R>) -> ControlFlow<Result<T>, Infallible> {
        let _turn = self.attempt_until(turn, [QUEUED_PAUSE; 2]).await?;
        let mut thread = None;
        if self.futures.blocks() {
            self.attempt().await?;
            thread = Some(self.attempt_until(Thread::wait(), PAUSES).await?);
        }
        // With all the time that is left.
        let call = (self.call)(self.options.since(self.start));
        ControlFlow::Break(Outcome::of(self.operation, self.key.as_ref(), &*self.futures, thread, call).await)
    }

    /// Waits until `ready`. If it is not ready at once, attempts then and after each pause.
    async fn attempt_until<R>(
        &self,
        ready: impl Future<Output = R>,
        pauses: [Duration; 2],
    ) -> ControlFlow<Result<T>, R> {
        let (mut ready, mut pause, mut pauses) = (pin!(ready), Duration::ZERO, Pauses::new(pauses));
        loop {
            match self.until(ready.as_mut(), pause.min(self.left())).await {
                Ok(Some(ready)) => return ControlFlow::Continue(ready),
                Ok(None) => self.attempt().await?,
                Err(error) => return ControlFlow::Break(Err(error)),
            }
            pause = pauses.take();
        }
    }

    /// Calls without a wait. `Continue`: the call would have to wait.
    async fn attempt(&self) -> ControlFlow<Result<T>> {
        let is_last = self.left().is_zero();
        let call = (self.call)(self.options.clone().timeout(Duration::ZERO));
        match Outcome::of(self.operation, self.key.as_ref(), &*self.futures, None, call).await {
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
        self.cancellation.check(self.operation, self.key.as_ref()).map(|()| output)
    }

    fn left(&self) -> Duration {
        self.options.since(self.start).get_timeout().unwrap_or(Duration::MAX)
    }
}

impl<T> Drop for Wait<T> {
    fn drop(&mut self) {
        self.acquisitions.iter().for_each(|acquisition| acquisition.give_up());
        self.cancellation.cancel();
    }
}
