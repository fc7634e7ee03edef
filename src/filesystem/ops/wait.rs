//! Waiting until a key is free: attempts, and sleep between them.

use std::time::{Duration, Instant};

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::protocol::access::{Found, info, is_unchanged};
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::{Limits, RECHECK_INTERVAL};
use crate::filesystem::wait_queue::{DeathReports, Waiter};
use crate::trace::Waiting;
use crate::waiting::Obstacle;
use crate::{Error, Holder, Key, OnCancel, Result};

/// After this many sleeps the whole state is checked, the owner of the lock included.
const SLEEPS_PER_CHECK: u32 = 4;

/// A wait shorter than this is not worth the cost of death reports. Their start is a check of its own, so a build for
/// tests, in which nothing is checked twice, starts them at once.
const SHORT_WAIT: Duration =
    if cfg!(record_store_no_recheck) { Duration::ZERO } else { Duration::from_millis(2) };

/// After this many attempts, each disturbed by a concurrent change, a call that may not wait gives up.
const MAX_ATTEMPTS: u32 = 1_000;

/// The purpose of the wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// For the lock itself, in the order of arrival.
    Waiter,
    /// To see the key free, at the same time as all other watchers.
    Watcher,
}

/// The outcome of one attempt.
pub(crate) enum Attempt<T> {
    Done(T),
    /// Done, and the next waiter may share the lock.
    Shared(T),
    /// Another holder's lock is live.
    Held(Box<Found>),
    /// The key is free, but it is another waiter's turn, which has this much time left to react.
    Yield(Duration),
    /// A concurrent change disturbed the attempt.
    Retry,
}

/// How far a waiting call is registered.
enum Stage {
    /// Not at all: most calls end with the first attempt.
    New,
    /// Other processes and the caller's cancellation notify it.
    Registered(Registration),
    /// The deaths of processes are reported as well, unless the system refuses.
    Reporting(Registration, Option<DeathReports>),
}

/// Fields are dropped in this order: no callback outlives the slot that it notifies.
#[derive(Default)]
struct Registration {
    _wakes: Option<OnCancel>,
    waiter: Option<Waiter>,
}

/// Repeats `attempt` until it is done, and sleeps while another holder or waiter is in the way.
pub(crate) fn wait<T>(
    core: &Core,
    key: &Key,
    role: Role,
    limits: &Limits,
    context: Context<'_>,
    attempt: impl FnMut(Option<&Waiter>) -> Result<Attempt<T>>,
) -> Result<T> {
    let mut waiting = None;
    let outcome = repeat(core, key, role, limits, context, attempt, &mut waiting);
    if let Some(waiting) = waiting {
        waiting.end(&outcome);
    }
    outcome
}

fn repeat<T>(
    core: &Core,
    key: &Key,
    role: Role,
    limits: &Limits,
    context: Context<'_>,
    mut attempt: impl FnMut(Option<&Waiter>) -> Result<Attempt<T>>,
    waiting: &mut Option<Waiting>,
) -> Result<T> {
    let mut stage = Stage::New;
    let mut attempts: u32 = 0;
    loop {
        attempts = attempts.saturating_add(1);
        stage.begin_check();
        let observed = core.events.observe(key, stage.waiter());
        // After the observation: a cancellation before it would not end the sleep.
        limits.check_cancelled(context)?;
        let (found, mut pause) = match attempt(stage.waiter())? {
            Attempt::Done(value) => {
                stage.complete();
                return Ok(value);
            }
            // The end of the registration notifies the next waiter.
            Attempt::Shared(value) => return Ok(value),
            Attempt::Retry if attempts > MAX_ATTEMPTS && limits.is_over() => {
                return Err(timed_out(core, key, None, limits, context));
            }
            Attempt::Retry => continue,
            Attempt::Yield(pause) => (None, pause),
            Attempt::Held(found) => {
                let left = match found.first_term() {
                    Term::Left(left) => left,
                    Term::Unlimited | Term::Over => RECHECK_INTERVAL * SLEEPS_PER_CHECK,
                };
                (Some(found), left)
            }
        };
        let holder = found.as_ref().map(|found| &found.lock.acquisition.holder);
        if limits.is_over() {
            return Err(timed_out(core, key, holder.cloned(), limits, context));
        }
        waiting.get_or_insert_with(|| Waiting::begin(context.operation, key, holder));
        if stage.advance(core, key, role, limits, context)? {
            continue;
        }
        let report_at = report(core, key, found.as_deref(), limits, context);
        let (version, sleeps) = match (&stage, found) {
            (Stage::Reporting(_, Some(_)), Some(found)) => (Some(found.version), SLEEPS_PER_CHECK),
            (Stage::Reporting(..), _) => (None, 1),
            (Stage::New | Stage::Registered(_), _) => {
                pause = pause.min(SHORT_WAIT.saturating_sub(limits.elapsed()));
                (None, 1)
            }
        };
        if let Some(waiter) = stage.waiter() {
            waiter.will_sleep(pause);
        }
        let max_sleep = core.events.max_sleep(limits.cancellation().is_some());
        // While deaths are reported, it is enough most of the time that the lock file is the same.
        for _ in 0..sleeps {
            let until_report = report_at.map(|at| at.saturating_duration_since(Instant::now()));
            let nap = limits.cap(until_report.into_iter().fold(pause.min(max_sleep), Duration::min));
            pause -= nap.min(pause);
            let is_woken = core.events.sleep(observed, nap, attempts);
            let is_due = report_at.is_some_and(|at| at <= Instant::now());
            let is_over = limits.is_over() || limits.is_cancelled() || is_due;
            let is_same = version.is_some_and(|version| is_unchanged(core, key, version));
            if is_woken || pause.is_zero() || is_over || !is_same {
                break;
            }
        }
    }
}

/// Reports the lock that is in the way, if it is time. Otherwise returns when it will be.
fn report(
    core: &Core,
    key: &Key,
    found: Option<&Found>,
    limits: &Limits,
    context: Context<'_>,
) -> Option<Instant> {
    let (reports, found) = (limits.reports()?, found?);
    let held = &found.lock.acquisition;
    let obstacle = Obstacle::lock(key, &held.holder, Some(held.token));
    let at = reports.due_at(&obstacle)?;
    if at > Instant::now() {
        return Some(at);
    }
    reports.report(context.operation, obstacle, Some(info(core, found)));
    None
}

impl Stage {
    fn waiter(&self) -> Option<&Waiter> {
        match self {
            Stage::New => None,
            Stage::Registered(registration) | Stage::Reporting(registration, _) => {
                registration.waiter.as_ref()
            }
        }
    }

    fn begin_check(&self) {
        if let Stage::Reporting(_, Some(reports)) = self {
            reports.begin_check();
        }
    }

    /// Registers further as the wait goes on. `true`: the registration covers only later events, so the
    /// caller has to check again for earlier ones.
    fn advance(
        &mut self,
        core: &Core,
        key: &Key,
        role: Role,
        limits: &Limits,
        context: Context<'_>,
    ) -> Result<bool> {
        match self {
            Stage::New => {
                let waiter = match role {
                    Role::Waiter => core.events.enqueue(key, &core.layout, context)?,
                    Role::Watcher => None,
                };
                let wakes = limits
                    .cancellation()
                    .map(|cancellation| cancellation.on_cancel(core.events.alarm(key, waiter.as_ref())));
                *self = Stage::Registered(Registration { _wakes: wakes, waiter });
                // A watcher's word was observed already.
                Ok(role == Role::Waiter)
            }
            Stage::Registered(registration) if limits.elapsed() >= SHORT_WAIT => {
                let reports = DeathReports::start(&core.events, key, &core.layout);
                *self = Stage::Reporting(std::mem::take(registration), reports);
                Ok(true)
            }
            Stage::Registered(_) | Stage::Reporting(..) => Ok(false),
        }
    }

    /// Ends the wait of a call that got what it waited for.
    fn complete(self) {
        if let Stage::Registered(registration) | Stage::Reporting(registration, _) = self
            && let Some(waiter) = registration.waiter
        {
            waiter.complete();
        }
    }
}

/// The error of a call that reached its deadline while `holder` had the lock.
pub(crate) fn timed_out(
    core: &Core,
    key: &Key,
    holder: Option<Holder>,
    limits: &Limits,
    context: Context<'_>,
) -> Error {
    limits.timed_out(holder, context).with_path(core.layout.lock_path(key))
}

// The other systems have no queue.
#[cfg(all(test, target_os = "linux", not(record_store_elsewhere)))]
mod tests {
    use super::*;
    use crate::{FileSystemRecordStore, WaitOptions};

    /// The next one would look at a key that is held again.
    #[test]
    fn a_waiter_that_gets_the_lock_wakes_nobody_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let context = Context::new("test", &key);
        let mut second = None;
        let attempt = |first: Option<&Waiter>| {
            let Some(first) = first else { return Ok(Attempt::Yield(Duration::ZERO)) };
            second = core.events.enqueue(&key, &core.layout, context)?;
            core.events.observe(&key, second.as_ref());
            core.events.freed(&key, &core.layout);
            core.events.observe(&key, Some(first));
            Ok(Attempt::Done(first.is_notified()))
        };
        let limits = Limits::new(&WaitOptions::new());
        assert!(wait(core, &key, Role::Waiter, &limits, context, attempt).unwrap(), "it is its turn");
        let second = second.unwrap();
        core.events.observe(&key, Some(&second));
        assert!(!second.is_notified());
    }
}
