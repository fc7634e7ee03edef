//! The thread of this process that moves the bytes of all connections, and how a caller waits for a future.
//!
//! A blocking call polls its future on the calling thread, without a runtime: so it neither needs one nor disturbs
//! the one that it is called in. Only the connections themselves live on the thread of the engine. It is started by
//! the first store and ends with the process, because nothing else may shut a runtime down: that would block, and a
//! panic follows if it happens inside of another runtime. A forked child has an engine of its own.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::time::Sleep;

use crate::process::{PerProcess, ProcessId};

static ENGINE: PerProcess<Option<Local<Handle>>> = PerProcess::new();

/// The engine of this process. Fails if no thread can be started.
pub(super) fn engine() -> io::Result<Handle> {
    let mut engine = ENGINE.lock();
    if let Some(engine) = engine.as_ref().and_then(Local::get) {
        return Ok(engine.clone());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let run = move || runtime.block_on(pending::<()>());
    thread::Builder::new().name("record-store".into()).spawn(run)?;
    *engine = Some(Local::new(handle.clone()));
    Ok(handle)
}

/// A value that a forked child must neither use nor drop: it would write to the connections of its parent, or wait
/// for a mutex that a thread of the parent holds.
#[derive(Debug)]
pub(super) struct Local<T> {
    value: Option<T>,
    process: ProcessId,
}

impl<T> Local<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Some(value), process: ProcessId::current() }
    }

    /// `None`: this is a forked child.
    pub(super) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.process.is_here())
    }
}

impl<T> Drop for Local<T> {
    fn drop(&mut self) {
        if !self.process.is_here() {
            std::mem::forget(self.value.take());
        }
    }
}

std::thread_local! {
    static POLLED_BY: Cell<PolledBy> = const { Cell::new(PolledBy::Runtime) };
}

/// The poller of the futures of this thread.
#[derive(Clone, Copy)]
enum PolledBy {
    Runtime,
    /// [`block_on`], and when it has to poll again.
    Caller(Option<Instant>),
}

/// Waits for the future on the calling thread.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut context = Context::from_waker(&waker);
    // Inside of a task, Tokio's parts would return `Pending` for ever once the task has used up its budget.
    let mut future = pin!(tokio::task::unconstrained(future));
    loop {
        let outer = Outer(POLLED_BY.replace(PolledBy::Caller(None)));
        let polled = future.as_mut().poll(&mut context);
        let here = POLLED_BY.get();
        drop(outer);
        match (polled, here) {
            (Poll::Ready(output), _) => return output,
            (Poll::Pending, PolledBy::Caller(next)) => alarm.wait(next),
            (Poll::Pending, PolledBy::Runtime) => alarm.wait(None),
        }
    }
}

/// Restores the earlier poller of the futures of this thread when it is dropped, also in a panic.
struct Outer(PolledBy);

impl Drop for Outer {
    fn drop(&mut self) {
        POLLED_BY.set(self.0);
    }
}

/// Wakes a thread that sleeps. The thread may be ending, so it is not parked.
#[derive(Default)]
struct Alarm {
    rings: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    fn wait(&self, until: Option<Instant>) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rings {
            rings = match until {
                None => self.changed.wait(rings).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let pause = until.saturating_duration_since(Instant::now());
                    if pause.is_zero() {
                        break;
                    }
                    self.changed.wait_timeout(rings, pause).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        *rings = false;
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }
}

/// Is ready at a time. In a blocking call it costs nothing; otherwise it is a timer of the engine.
#[derive(Debug)]
pub(super) struct Timer {
    /// `None`: never.
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    pub(super) fn at(at: impl Into<Option<Instant>>) -> Self {
        Self { at: at.into(), sleep: None }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        if Instant::now() >= at {
            return Poll::Ready(());
        }
        if let PolledBy::Caller(next) = POLLED_BY.get() {
            POLLED_BY.set(PolledBy::Caller(Some(next.map_or(at, |next| next.min(at)))));
            return Poll::Pending;
        }
        if self.sleep.is_none() {
            // Without an engine there is no connection to wait for either.
            let Ok(engine) = engine() else { return Poll::Pending };
            let _engine = engine.enter();
            self.sleep = Some(Box::pin(tokio::time::sleep_until(at.into())));
        }
        self.sleep.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(context))
    }
}

/// The output of the future, or `None` if `end`, such as a timer, is ready first.
pub(super) async fn until<F: Future>(end: impl Future<Output = ()>, future: F) -> Option<F::Output> {
    let (mut end, mut future) = (pin!(end), pin!(future));
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => end.as_mut().poll(context).map(|()| None),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_timer_wakes_a_blocked_thread_and_a_task() {
        let pause = Duration::from_millis(20);
        let waits = async || {
            let start = Instant::now();
            assert!(until(Timer::at(start + pause), pending::<()>()).await.is_none());
            assert!(start.elapsed() >= pause);
            assert_eq!(until(Timer::at(None), async { 7 }).await, Some(7));
        };
        block_on(waits());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(waits());
    }

    #[test]
    fn a_blocking_call_inside_of_a_task_does_not_wait_for_the_budget_of_the_task() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            for _ in 0..1_000 {
                block_on(async {
                    let (sender, receiver) = tokio::sync::oneshot::channel();
                    thread::spawn(move || sender.send(()));
                    receiver.await.unwrap();
                });
            }
        });
    }
}
