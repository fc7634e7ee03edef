//! Sleeping until the server notifies.
//!
//! A notification is only a hint: the call asks the server again. It also asks at the end of a lease or a time to live, and
//! now and then, because deaths notify nobody and a notification is lost with its connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::core::{Core, Repeat};
use super::engine::engine;
use super::limits::{Context, Limits, RECHECK_INTERVAL};
use super::lock_errors::unexpected;
use super::lock_info::live_lock;
use super::owner::Registered;
use super::parameters::{KeyId, Parameter, holder_parameters};
use super::schema::random;
use super::statements::Query;
use super::status::Status;
use super::timer::{Timer, until};
use crate::trace::WaitingFuture;
use crate::waiting::Obstacle;
use crate::{Holder, Key, OnCancel, Result};

/// A call that gives up waits this long for its waiter to be removed.
const LEAVE_PATIENCE: Duration = Duration::from_millis(500);

/// A call that may have to sleep, from its first sleep to its end.
pub(super) struct Wait<'a> {
    core: &'a Arc<Core>,
    key: &'a Key,
    pub(super) nonce: i64,
    registered: Registered,
    /// Whether the server may have a waiter of this nonce.
    pub(super) is_queued: bool,
    _on_cancel: Option<OnCancel>,
}

impl<'a> Wait<'a> {
    pub(super) fn new(core: &'a Arc<Core>, key: &'a Key, limits: &Limits) -> Self {
        Self::with_nonce(core, key, limits, random())
    }

    pub(super) fn with_nonce(core: &'a Arc<Core>, key: &'a Key, limits: &Limits, nonce: i64) -> Self {
        let registered = core.here().owner.register(nonce);
        let on_cancel = limits.cancellation().map(|cancellation| {
            let notify = Arc::clone(&registered.notify);
            cancellation.on_cancel(move || notify.notify_one())
        });
        Self { core, key, nonce, registered, is_queued: false, _on_cancel: on_cancel }
    }

    /// Leaves the queue before the call returns, so that the next call does not find an abandoned waiter ahead. If that
    /// takes long, it goes on in the background.
    pub(super) async fn end(mut self) {
        if self.is_queued {
            let leave = leave(Arc::clone(self.core), self.key.clone(), self.nonce);
            let timer = Timer::at(Instant::now().checked_add(LEAVE_PATIENCE));
            self.is_queued = until(timer, leave).await.is_none();
        }
    }

    /// Sleeps until something may have happened, at most until `event`.
    pub(super) async fn sleep(&self, limits: &Limits, recheck: Duration, event: Option<Duration>) {
        let now = Instant::now();
        let pause = event.map_or(recheck, |event| event.min(recheck));
        let latest = now + pause;
        let at = limits.deadline().map_or(latest, |deadline| deadline.min(latest));
        until(Timer::at(at), self.registered.notify.notified()).await;
    }
}

impl Drop for Wait<'_> {
    /// A waiter that gave up leaves its queue, in the background: otherwise the others would wait for it.
    fn drop(&mut self) {
        if self.is_queued
            && let Ok(engine) = engine()
        {
            let leave = leave(Arc::clone(self.core), self.key.clone(), self.nonce);
            engine.spawn(leave);
        }
    }
}

/// Leaves the queue. If that fails, the waiter is passed over after a second.
async fn leave(core: Arc<Core>, key: Key, nonce: i64) {
    let id = KeyId::of(&key);
    let parameters = [id.id(), id.latch(), Parameter::Long(Some(nonce)), Parameter::Patience];
    let context = Context::new("leave", &key);
    let _ = core.call(context, &Limits::none(), Repeat::Yes, Query::Leave, &parameters).await;
}

/// Registers, looks again, and sleeps if a lock of another holder than `own` is still in the way. `true`: there is none.
pub(super) async fn until_free(
    core: &Arc<Core>,
    context: Context<'_>,
    limits: &Limits,
    wait: &mut Wait<'_>,
    own: Option<&Holder>,
) -> Result<bool> {
    let id = KeyId::of(wait.key);
    let [holder, bound] = own.map_or([Parameter::Bytes(None), Parameter::Flag(false)], holder_parameters);
    let parameters = [
        id.id(),
        id.latch(),
        holder,
        bound,
        Parameter::Owner,
        Parameter::Long(Some(wait.nonce)),
        Parameter::Patience,
    ];
    wait.is_queued = true;
    let (status, row) =
        core.call_function(context, limits, Repeat::Yes, Query::WaitForLock, &parameters).await?;
    match status {
        Status::Ok => {
            wait.is_queued = false;
            Ok(true)
        }
        Status::Locked => {
            let holder = Core::holder_in(&row, 1, 2);
            if !limits.is_over() {
                let tracing = WaitingFuture::begin(context.operation, wait.key, holder.as_ref());
                let until_report = report(core, context, limits, holder.as_ref()).await;
                wait.sleep(limits, RECHECK_INTERVAL.min(until_report), left(row.get(3))).await;
                tracing.end(&Ok(()));
            }
            Ok(false)
        }
        status => Err(unexpected(core, context, status)),
    }
}

/// Reports the lock that is in the way, if it is time: that takes a round trip. Returns how long it is until then.
pub(super) async fn report(
    core: &Arc<Core>,
    context: Context<'_>,
    limits: &Limits,
    holder: Option<&Holder>,
) -> Duration {
    let (Some(reports), Some(key), Some(holder)) = (limits.reports(), context.key, holder) else {
        return Duration::MAX;
    };
    // The answer to a call that has to wait does not have the token.
    let obstacle = Obstacle::lock(key, holder, None);
    let Some(at) = reports.due_at(&obstacle) else { return Duration::MAX };
    let left = at.saturating_duration_since(Instant::now());
    if left.is_zero() {
        let lock = live_lock(core, context, limits).await.ok().flatten();
        let Some(lock) = lock.filter(|lock| lock.holder() == holder) else { return RECHECK_INTERVAL };
        reports.report(context.operation, obstacle, Some(lock));
        return Duration::MAX;
    }
    left
}

/// The rest of a lease in microseconds, as a length of time. It has to be over when the call wakes.
pub(super) fn left(microseconds: Option<i64>) -> Option<Duration> {
    let left = Duration::from_micros(u64::try_from(microseconds?).unwrap_or(0));
    Some(left + Duration::from_micros(100))
}
