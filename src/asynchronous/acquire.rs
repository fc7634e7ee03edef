//! The acquisition of locks by a future.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::blocking::{Call, Wait};
use super::pending::{PendingRelease, released};
use super::queue::Queues;
use super::{AsyncLockGuard, AsyncRecordStore, current_holder};
use crate::{Error, ErrorKind, Holder, Key, LockGuard, LockOptions, RecordStore, Result};

/// A queued task attempts this often: its holder may have got the lock in another way.
const QUEUED_PAUSE: Duration = Duration::from_millis(250);

/// A pending release is a short operation, unless a process is stopped inside one. So even an acquisition
/// with a timeout of zero waits this long for it.
const RELEASE_GRACE: Duration = Duration::from_millis(250);

const OPERATION: &str = "acquire_lock";

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    pub(super) async fn acquire(&self, key: Key, options: LockOptions) -> Result<AsyncLockGuard<S>> {
        let (pending, options) = PendingAcquire::begin(OPERATION, vec![key.clone()], options).await?;
        let (store, of, holder) = (Arc::clone(&self.store), key.clone(), pending.holder.clone());
        let acquire = pending.call(move |timeout| {
            let options = options.clone().acquire_timeout(timeout);
            Ok(AsyncLockGuard::new(&store, LockGuard::acquire_owned(&store, of.clone(), options)?))
        });
        // A task that is not the first must not overtake the others, except as the lock's holder.
        let (store, attempt) = (Arc::clone(&self.store), Arc::clone(&acquire));
        let reenter: Call<_> = Arc::new(move |timeout| {
            // An error here is also found by the first task, and reported there.
            let info = store.lock_info_raw(&key).ok().flatten();
            if info.as_ref().is_some_and(|info| info.is_held_by(&holder)) {
                return attempt(timeout);
            }
            let holder = info.map(|info| info.holder().clone());
            Err(Error::new(ErrorKind::LockTimeout, OPERATION).with_key(&key).with_holder(holder))
        });
        pending.in_turn(&self.queues, &reenter, &acquire).await
    }
}

/// An acquisition that is under way. If it is dropped before the lock arrives, the holder has given up the
/// lock.
pub(super) struct PendingAcquire {
    pub(super) wait: Wait,
    holder: Holder,
    keys: Vec<Key>,
    given_up: GivenUp,
    has_arrived: bool,
}

/// Set when the future is dropped. The calls and their values share it, so the release is pending until the
/// last of them is gone.
type GivenUp = Arc<OnceLock<PendingRelease>>;

/// The value of a call. It is dropped first, which releases the locks in it.
type Carried<T> = (T, GivenUp);

impl PendingAcquire {
    /// Waits for the pending releases of the same holder. Returns the options for the calls.
    pub(super) async fn begin(
        operation: &'static str,
        keys: Vec<Key>,
        options: LockOptions,
    ) -> Result<(Self, LockOptions)> {
        let wait = Wait::new(operation, keys.first(), options.get_wait());
        let holder = options.get_holder().cloned().unwrap_or_else(current_holder);
        for key in &keys {
            let left = wait.left(RELEASE_GRACE).unwrap_or(Duration::MAX);
            if wait.until(pin!(released(&holder, key)), left).await?.is_none() {
                let error = wait.error(ErrorKind::LockTimeout).with_key(key).with_holder(holder);
                return wait.with_waited(Err(error));
            }
        }
        let options = options.holder(holder.clone()).cancellation(&wait.cancellation);
        Ok((Self { wait, holder, keys, given_up: GivenUp::default(), has_arrived: false }, options))
    }

    /// A call that acquires the locks.
    pub(super) fn call<T>(
        &self,
        call: impl Fn(Option<Duration>) -> Result<T> + Send + Sync + 'static,
    ) -> Call<Carried<T>> {
        let given_up = Arc::clone(&self.given_up);
        Arc::new(move |timeout| Ok((call(timeout)?, Arc::clone(&given_up))))
    }

    /// For one key: attempts at once, then queues. The first in the queue makes `call`, the others attempt
    /// `meanwhile`.
    pub(super) async fn in_turn<T: Send + 'static>(
        self,
        queues: &Queues,
        meanwhile: &Call<Carried<T>>,
        call: &Call<Carried<T>>,
    ) -> Result<T> {
        let awaited = (self.wait.operation, self.keys[0].clone());
        let first = if queues.contains(&awaited) { meanwhile } else { call };
        if let Some(carried) = self.wait.attempt(first).await? {
            return Ok(self.arrived(carried));
        }
        let turn = queues.enter(awaited);
        let carried = match self.wait.attempt_until(turn, meanwhile, [QUEUED_PAUSE; 2]).await? {
            ControlFlow::Continue(_turn) => self.wait.run_on_thread(call).await?,
            ControlFlow::Break(carried) => carried,
        };
        Ok(self.arrived(carried))
    }

    pub(super) fn arrived<T>(mut self, (value, _): Carried<T>) -> T {
        self.has_arrived = true;
        value
    }
}

impl Drop for PendingAcquire {
    fn drop(&mut self) {
        if !self.has_arrived {
            self.given_up.get_or_init(|| PendingRelease::begin(&self.holder, &self.keys));
        }
    }
}
