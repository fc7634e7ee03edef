//! The connections on which the calls of this process run, one call on each at a time.

use std::future::poll_fn;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::block_on::is_polled_by_caller;
use super::engine::OnEngine;
use super::failure::Failure;
use super::session::{self, Listener, MovedBy, NoListener, Session};
use super::timer::{Timer, until};
use super::url::Target;

/// The connections of one handle.
#[derive(Debug)]
pub(super) struct Pool {
    target: Arc<Target>,
    idle: Mutex<Vec<Session>>,
    permits: Arc<Semaphore>,
}

/// Whether the server is asked if it has closed an idle connection, before that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Closed,
    /// A query that changes nothing finds out by itself.
    Nothing,
}

/// A connection for one call. It goes back to the pool, unless it is discarded.
pub(super) struct Lease {
    session: Option<Session>,
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(target: Arc<Target>, connections: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(connections));
        Arc::new(Self { target, idle: Mutex::default(), permits })
    }

    /// A connection, a new one if none is idle.
    pub(super) async fn lease(
        self: &Arc<Self>,
        deadline: Option<Instant>,
        check: Check,
    ) -> Result<Lease, Failure> {
        let permit = until(Timer::at(deadline), Arc::clone(&self.permits).acquire_owned());
        // The semaphore is never closed.
        let Some(Ok(permit)) = permit.await else {
            let error = "all connections of this process are in use: see PostgresOptions::connections";
            return Err(Failure::Unreachable(error.into()));
        };
        let is_call = poll_fn(|context| Poll::Ready(is_polled_by_caller(context))).await;
        let moved_by = if is_call { MovedBy::Call } else { MovedBy::Engine };
        let session = match (self.take_idle(moved_by, check), moved_by) {
            (Some(session), _) => session,
            (None, MovedBy::Engine) => connect(&self.target, NoListener, deadline).await?,
            (None, MovedBy::Call) => {
                let target = Arc::clone(&self.target);
                let connect = Box::pin(session::connect(target, moved_by, NoListener, deadline));
                until(Timer::at(deadline), connect).await.unwrap_or_else(|| Err(Failure::unreachable()))?
            }
        };
        Ok(Lease { session: Some(session), pool: Arc::clone(self), _permit: permit })
    }

    /// An idle connection, unless it is known to be closed. If there is none, there is room for a new one: an idle one of
    /// the other kind makes way.
    fn take_idle(&self, moved_by: MovedBy, check: Check) -> Option<Session> {
        let mut idle = self.idle();
        while let Some(place) = idle.iter().rposition(|session| session.moved_by() == moved_by) {
            let session = idle.remove(place);
            let is_closed = match check {
                Check::Closed => session.is_closed(),
                Check::Nothing => session.has_ended(),
            };
            if !is_closed {
                return Some(session);
            }
        }
        let is_full = idle.len() > self.permits.available_permits();
        let surplus = is_full.then(|| idle.remove(0));
        drop(idle);
        drop(surplus);
        None
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, within the deadline. The engine moves the bytes.
pub(super) async fn connect(
    target: &Arc<Target>,
    listener: impl Listener,
    deadline: Option<Instant>,
) -> Result<Session, Failure> {
    let connect = session::connect(Arc::clone(target), MovedBy::Engine, listener, deadline);
    let task = OnEngine::spawn(connect).map_err(|error| Failure::Unreachable(error.into()))?;
    match until(Timer::at(deadline), task).await {
        Some(Ok(connected)) => connected,
        Some(Err(panicked)) => Err(Failure::Unreachable(panicked.into())),
        None => Err(Failure::unreachable()),
    }
}

impl Lease {
    /// Nobody knows what is on its way on the connection.
    pub(super) fn discard(mut self) {
        self.session = None;
    }
}

impl Drop for Lease {
    /// Gives the connection back. If a future was dropped, its query is still running, and the answer will be dropped:
    /// the next query waits for it.
    fn drop(&mut self) {
        // Whether the server has closed it is asked before it is used again, or found out then.
        if let Some(session) = self.session.take().filter(|session| !session.has_ended()) {
            self.pool.idle().push(session);
        }
    }
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        // Only `discard` and the drop take it.
        #[expect(clippy::unwrap_used, reason = "only what ends the lease takes it")]
        self.session.as_ref().unwrap()
    }
}
