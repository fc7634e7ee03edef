//! Where the work is done: what is short, on the runtime's blocking pool; what may wait, on a thread
//! of its own.
//!
//! Nothing may wait in the pool. It is bounded, and the release that ends the wait needs it too.

use std::future::{Future, poll_fn};
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::per_process::PerProcess;
use crate::{Error, Key, Result};

/// So many threads of a process wait at once. Those beyond that look again from time to time.
const MOST_THREADS: usize = 64;

/// Between two looks of one who has no thread.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
pub(super) const LAST_PAUSE: Duration = Duration::from_millis(50);

/// A thread that waits for what it cannot be told to stop waiting for sees so often whether it still
/// has to.
const SLICE: Duration = Duration::from_millis(250);

/// A child has none of its parent's threads.
static THREADS: PerProcess<Threads> = PerProcess::new();

struct Threads(Arc<Semaphore>);

impl Default for Threads {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST_THREADS)))
    }
}

/// The right to one of the threads that wait.
pub(super) struct Permit(#[expect(dead_code, reason = "kept for its drop")] OwnedSemaphorePermit);

/// A permit, in the order in which they are asked for.
pub(super) async fn permit() -> Permit {
    let threads = Arc::clone(&THREADS.lock().0);
    match threads.acquire_owned().await {
        Ok(permit) => Permit(permit),
        // It is never closed.
        Err(_) => std::future::pending().await,
    }
}

/// A permit, if there is one.
pub(super) fn permit_now() -> Option<Permit> {
    let threads = Arc::clone(&THREADS.lock().0);
    threads.try_acquire_owned().ok().map(Permit)
}

/// Does what is short on the blocking pool.
pub(super) async fn short<T: Send + 'static>(
    operation: &'static str,
    key: Option<&Key>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime is shutting down.
            Err(error) => {
                Err(Error::Thread { operation, key: key.cloned(), source: io::Error::other(error) })
            }
        },
    }
}

/// The one who asked for some work on a thread, as the thread sees it.
pub(super) struct Asker<T>(oneshot::Sender<std::thread::Result<T>>);

impl<T> Asker<T> {
    /// Whether nobody wants the answer any more.
    pub(super) fn is_gone(&self) -> bool {
        self.0.is_closed()
    }
}

/// Does what may wait on a thread of its own. What nobody wants any more is dropped there.
///
/// `Err`: there is no thread to be had.
pub(super) async fn on_thread<T: Send + 'static>(
    work: impl FnOnce(&Asker<T>) -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let asker = Asker(sender);
    std::thread::Builder::new().name("record-store".into()).spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&asker)));
        drop(asker.0.send(outcome));
    })?;
    match receiver.await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(gone) => Err(io::Error::other(gone)),
    }
}

/// Something that is looked for again and again: `Break` once it is found, `Continue` with what there
/// is to say if it never is.
pub(super) struct Lookout<T> {
    pub(super) operation: &'static str,
    pub(super) key: Key,
    pub(super) start: Instant,
    pub(super) timeout: Option<Duration>,
    /// Ends a pause.
    pub(super) woken: Arc<Notify>,
    /// Looks without waiting.
    pub(super) look: Look<T>,
}

pub(super) type Look<T> = Arc<dyn Fn() -> ControlFlow<T, T> + Send + Sync>;

impl<T: Send + 'static> Lookout<T> {
    /// For the same thing, but looking elsewhere.
    pub(super) fn at(&self, look: impl Fn() -> ControlFlow<T, T> + Send + Sync + 'static) -> Self {
        let (key, woken) = (self.key.clone(), Arc::clone(&self.woken));
        Self { key, woken, look: Arc::new(look), ..*self }
    }

    /// What is left of the time.
    pub(super) fn left(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout.saturating_sub(self.start.elapsed()))
    }

    /// One look. When the time is up it is the last one.
    pub(super) async fn look(&self) -> Result<ControlFlow<T>> {
        let is_last = self.left().is_some_and(|left| left.is_zero());
        let look = Arc::clone(&self.look);
        Ok(match short(self.operation, Some(&self.key), move || Ok(look())).await? {
            ControlFlow::Continue(said) if is_last => ControlFlow::Break(said),
            ControlFlow::Continue(_) => ControlFlow::Continue(()),
            ControlFlow::Break(found) => ControlFlow::Break(found),
        })
    }

    /// Looks from time to time until it is one's turn.
    pub(super) async fn look_until<P>(
        &self,
        turn: impl Future<Output = P>,
        longest: Duration,
    ) -> Result<ControlFlow<T, P>> {
        let mut turn = pin!(turn);
        let mut pause = FIRST_PAUSE;
        loop {
            let nap = self.left().map_or(pause, |left| left.min(pause));
            if let Some(turn) = until(turn.as_mut(), &self.woken, nap).await {
                return Ok(ControlFlow::Continue(turn));
            }
            if let ControlFlow::Break(found) = self.look().await? {
                return Ok(ControlFlow::Break(found));
            }
            pause = (pause * 2).min(longest);
        }
    }
}

/// What comes of `future`, unless the time is up first, or one is woken.
pub(super) async fn until<T>(
    mut future: std::pin::Pin<&mut impl Future<Output = T>>,
    woken: &Notify,
    pause: Duration,
) -> Option<T> {
    let mut woken = pin!(woken.notified());
    let mut pause = pin!(tokio::time::sleep(pause));
    poll_fn(|context| {
        if let Poll::Ready(done) = future.as_mut().poll(context) {
            return Poll::Ready(Some(done));
        }
        let over = woken.as_mut().poll(context).is_ready() || pause.as_mut().poll(context).is_ready();
        if over { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// Waits for something of which nobody can be told to stop waiting: in slices. `look` waits no longer
/// than it is told to.
pub(super) async fn in_slices<T: Send + 'static>(
    operation: &'static str,
    key: &Key,
    timeout: Option<Duration>,
    look: impl Fn(Duration) -> ControlFlow<T, T> + Send + Sync + 'static,
) -> Result<T> {
    let look = Arc::new(look);
    let lookout = Lookout {
        operation,
        key: key.clone(),
        start: Instant::now(),
        timeout,
        woken: Arc::default(),
        look: Arc::new({
            let look = Arc::clone(&look);
            move || look(Duration::ZERO)
        }),
    };
    if let ControlFlow::Break(found) = lookout.look().await? {
        return Ok(found);
    }
    let permit = match lookout.look_until(permit(), LAST_PAUSE).await? {
        ControlFlow::Continue(permit) => permit,
        ControlFlow::Break(found) => return Ok(found),
    };
    let (start, timeout) = (lookout.start, lookout.timeout);
    let waits = move |asker: &Asker<T>| {
        let _permit = permit;
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            match look(left.map_or(SLICE, |left| left.min(SLICE))) {
                ControlFlow::Continue(_) if left.is_none_or(|left| left > SLICE) && !asker.is_gone() => {}
                ControlFlow::Continue(outcome) | ControlFlow::Break(outcome) => return outcome,
            }
        }
    };
    if let Ok(found) = on_thread(waits).await {
        return Ok(found);
    }
    match lookout.look_until(std::future::pending::<std::convert::Infallible>(), LAST_PAUSE).await? {
        ControlFlow::Break(found) => Ok(found),
        ControlFlow::Continue(never) => match never {},
    }
}
