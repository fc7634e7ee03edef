//! Taking a lock.

use std::convert::Infallible;
use std::future::pending;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::blocking::{LAST_PAUSE, Lookout, on_thread, permit, until};
use super::held::Held;
use super::leaving::{self, Attempt};
use super::{AsyncRecordStore, current_holder};
use crate::{Cancellation, Error, Holder, Key, LockOptions, RecordStore, Result};

/// One who is not first in line looks so often whether the lock has become its holder's by another
/// way.
const IN_LINE: Duration = Duration::from_millis(250);

/// What a holder gave up is gone soon, unless a process is stopped in the middle of an operation: also
/// who may not wait gives it this long.
const GRACE: Duration = Duration::from_millis(40);

const OPERATION: &str = "acquire_lock";

impl<S: RecordStore + Clone + 'static> AsyncRecordStore<S> {
    pub(super) async fn acquire(&self, key: &Key, options: &LockOptions) -> Result<Held<S>> {
        let start = Instant::now();
        let holder = options.get_holder().cloned().unwrap_or_else(current_holder);
        let mut wish = Wish::new(key, &holder);
        let woken = Arc::new(Notify::new());
        let _chained = options.get_cancellation().map(|theirs| {
            let (ours, woken) = (wish.cancellation.clone(), Arc::clone(&woken));
            theirs.on_cancel(move || {
                ours.cancel();
                woken.notify_one();
            })
        });
        let options = options.clone().cancellation(&wish.cancellation);
        let timeout = options.get_acquire_timeout();
        let ask = Arc::new(Ask {
            store: self.store.clone(),
            key: key.clone(),
            holder: holder.clone(),
            options,
            attempt: Arc::clone(&wish.attempt),
        });
        let look = {
            let ask = Arc::clone(&ask);
            Arc::new(move || ask.lock(Some(Duration::ZERO)))
        };
        let lookout = Lookout { operation: OPERATION, key: key.clone(), start, timeout, woken, look };
        let outcome = match wish.wait_for_the_past(&lookout.woken, lookout.timeout).await {
            Ok(()) => self.take_in_turn(&lookout, ask).await,
            Err(error) => Err(error),
        };
        wish.is_open = false;
        outcome.map(Held::arrived).map_err(|error| waited_since(start, error))
    }

    /// Tries at once, then from time to time until it is the first in line and has a thread, and then
    /// waits there.
    async fn take_in_turn(&self, lookout: &Lookout<Result<Held<S>>>, ask: Arc<Ask<S>>) -> Result<Held<S>> {
        // Who is not the first may not take the lock, even if it happens to be free.
        let inner = lookout.at({
            let ask = Arc::clone(&ask);
            move || ask.inner_lock()
        });
        let awaited = self.lines.is_awaited(&lookout.key);
        if let ControlFlow::Break(outcome) = if awaited { &inner } else { lookout }.look().await? {
            return outcome;
        }
        let first = match inner.look_until(self.lines.enter(&lookout.key), IN_LINE).await? {
            ControlFlow::Continue(first) => first,
            ControlFlow::Break(outcome) => return outcome,
        };
        drop(inner);
        let permit = match lookout.look_until(permit(), LAST_PAUSE).await? {
            ControlFlow::Continue(permit) => permit,
            ControlFlow::Break(outcome) => return outcome,
        };
        let left = lookout.left();
        let waits = move |_: &_| {
            let _kept = (first, permit);
            let (ControlFlow::Continue(outcome) | ControlFlow::Break(outcome)) = ask.lock(left);
            outcome
        };
        if let Ok(outcome) = on_thread(waits).await {
            return outcome;
        }
        match lookout.look_until(pending::<Infallible>(), LAST_PAUSE).await? {
            ControlFlow::Break(outcome) => outcome,
            ControlFlow::Continue(never) => match never {},
        }
    }
}

/// What is asked of the store.
struct Ask<S> {
    store: S,
    key: Key,
    holder: Holder,
    options: LockOptions,
    attempt: Arc<Attempt>,
}

impl<S: RecordStore + Clone + 'static> Ask<S> {
    /// The lock, waiting no longer than this. `Continue`: it was not enough.
    fn lock(&self, timeout: Option<Duration>) -> ControlFlow<Result<Held<S>>, Result<Held<S>>> {
        let (store, key, holder) = (&self.store, &self.key, &self.holder);
        let options = self.options.clone();
        let options = timeout.map_or(options.clone(), |timeout| options.acquire_timeout(timeout));
        match store.acquire(key, holder, &options) {
            Ok(acquired) => ControlFlow::Break(Ok(Held::new(store, key, holder, acquired, &self.attempt))),
            Err(error) if error.is_timeout() => ControlFlow::Continue(Err(error)),
            Err(error) => ControlFlow::Break(Err(error)),
        }
    }

    /// The lock, if the holder has it already.
    fn inner_lock(&self) -> ControlFlow<Result<Held<S>>, Result<Held<S>>> {
        if let Some(cancellation) = self.options.get_cancellation()
            && let Err(cancelled) = cancellation.check(OPERATION, &self.key)
        {
            return ControlFlow::Break(Err(cancelled));
        }
        // What keeps this from being told is told to the first in line.
        let current = self.store.current_lock(&self.key).ok().flatten();
        if current.as_ref().is_some_and(|current| current.is_held_by(&self.holder)) {
            return self.lock(Some(Duration::ZERO));
        }
        let holder = current.map(|current| current.holder().clone());
        ControlFlow::Continue(Err(timed_out(&self.key, holder)))
    }
}

fn timed_out(key: &Key, holder: Option<Holder>) -> Error {
    Error::LockTimeout { operation: OPERATION, key: key.clone(), holder, waited: Duration::ZERO, path: None }
}

/// A future's wish for a lock. Dropped while it is open, it calls off whoever is after the lock.
struct Wish<'a> {
    key: &'a Key,
    holder: &'a Holder,
    attempt: Arc<Attempt>,
    cancellation: Cancellation,
    is_open: bool,
}

impl<'a> Wish<'a> {
    fn new(key: &'a Key, holder: &'a Holder) -> Self {
        Self { key, holder, attempt: Arc::default(), cancellation: Cancellation::new(), is_open: true }
    }

    /// Waits until this holder's earlier locks are released that it gave up.
    async fn wait_for_the_past(&self, woken: &Notify, timeout: Option<Duration>) -> Result<()> {
        let (start, timeout) = (Instant::now(), timeout.map(|timeout| timeout.max(GRACE)));
        let mut gone = pin!(leaving::gone(self.holder, self.key));
        loop {
            let left = timeout.map_or(Duration::MAX, |timeout| timeout.saturating_sub(start.elapsed()));
            if until(gone.as_mut(), woken, left).await.is_some() {
                return Ok(());
            }
            self.cancellation.check(OPERATION, self.key)?;
            if timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
                return Err(timed_out(self.key, Some(self.holder.clone())));
            }
        }
    }
}

impl Drop for Wish<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.attempt.give_up(self.holder, self.key);
            self.cancellation.cancel();
        }
    }
}

/// The last of several waits only knows of itself.
pub(super) fn waited_since(start: Instant, error: Error) -> Error {
    match error {
        Error::LockTimeout { operation, key, holder, path, .. } => {
            Error::LockTimeout { operation, key, holder, waited: start.elapsed(), path }
        }
        other => other,
    }
}
