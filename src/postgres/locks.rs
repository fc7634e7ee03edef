//! Locks: acquire, renew, release, break, describe, list.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::core::{Core, Repeat};
use super::limits::{Context, Limits, RECHECK_INTERVAL, RECHECK_INTERVAL_BEHIND};
use super::lock_errors::{not_own, unexpected};
use super::lock_info::{live_lock, lock_in};
use super::pages::Pages;
use super::parameters::{KeyId, Parameter, claim_parameters, holder_parameters, key_bytes, microseconds};
use super::schema::random;
use super::statements::Query;
use super::status::Status;
use super::waiting::{Wait, left, report, until_free};
use crate::trace::{self, WaitingFuture};
use crate::{
    Acquired, BreakOptions, Claim, ErrorKind, Holder, Key, Listing, LockInfo, LockOptions, LockState,
    LockToken, Result, WaitOptions,
};

pub(super) async fn acquire_lock(core: &Arc<Core>, key: &Key, options: LockOptions) -> Result<Acquired> {
    let limits = Limits::new(options.get_wait());
    let context = Context::new("acquire_lock", key);
    limits.check_cancelled(context)?;
    let holder = options.resolve_holder();
    let here = core.here();
    let unknown = here.owner.unknown.take(key, &holder);
    let nonce = unknown.unwrap_or_else(random);
    let acquired = acquire_as(core, context, &limits, &holder, nonce, &options).await;
    // An attempt that changed nothing leaves the outcome of the earlier one as unknown as it was.
    if let Err(error) = &acquired
        && (unknown.is_some() || error.is_outcome_unknown())
    {
        here.owner.unknown.remember(key, &holder, nonce);
    }
    acquired
}

async fn acquire_as(
    core: &Arc<Core>,
    context: Context<'_>,
    limits: &Limits,
    holder: &Holder,
    nonce: i64,
    options: &LockOptions,
) -> Result<Acquired> {
    let Some(key) = context.key else { return Err(core.error(context, ErrorKind::Unsupported)) };
    let id = KeyId::of(key);
    let mut wait = (!limits.is_over()).then(|| Wait::with_nonce(core, key, limits, nonce));
    let mut tracing = None;
    let outcome = loop {
        let waits = wait.is_some() && !limits.is_over();
        let [name, bound] = holder_parameters(holder);
        let parameters = [
            id.id(),
            key_bytes(key),
            id.latch(),
            name,
            bound,
            Parameter::Owner,
            Parameter::Long(Some(nonce)),
            microseconds(options.get_hold_timeout()),
            Parameter::Flag(waits),
            Parameter::Patience,
            Parameter::Bytes(options.get_note().map(str::as_bytes)),
            Parameter::Long(options.get_slots().map(|slots| i64::from(slots.get()))),
        ];
        if let Some(wait) = &mut wait {
            wait.is_queued |= waits;
        }
        let called = core.call_function(context, limits, Repeat::Yes, Query::AcquireLock, &parameters).await;
        let (status, row) = match called {
            Ok(answer) => answer,
            Err(error) => break Err(error),
        };
        match status {
            Status::Ok | Status::Again => {
                if let Some(wait) = &mut wait {
                    wait.is_queued = false;
                }
                break Ok(acquired(key, status, &row));
            }
            Status::Locked | Status::Behind => {
                let in_the_way = Core::holder_in(&row, 2, 3);
                if let Some(wait) = wait.as_mut().filter(|_| !waits) {
                    // The server has removed the waiter.
                    wait.is_queued = false;
                }
                let Some(wait) = wait.as_ref().filter(|_| waits) else {
                    break Err(limits.timed_out(in_the_way, context));
                };
                tracing
                    .get_or_insert_with(|| WaitingFuture::begin(context.operation, key, in_the_way.as_ref()));
                let is_first = row.get::<_, Option<bool>>(5).unwrap_or(true);
                let recheck = if is_first { RECHECK_INTERVAL } else { RECHECK_INTERVAL_BEHIND };
                let until_report = report(core, context, limits, in_the_way.as_ref()).await;
                wait.sleep(limits, recheck.min(until_report), left(row.get(4))).await;
            }
            Status::Shared => {
                if let Some(wait) = &mut wait {
                    wait.is_queued = false;
                }
                let token = LockToken::new(row.get::<_, i64>(1).cast_unsigned());
                break Err(context.error(ErrorKind::LockShared).with_token(token));
            }
            status => break Err(unexpected(core, context, status)),
        }
        if let Err(error) = limits.check_cancelled(context) {
            break Err(error);
        }
    };
    if let Some(tracing) = tracing {
        tracing.end(&outcome);
    }
    if let Some(wait) = wait {
        wait.end().await;
    }
    outcome
}

fn acquired(key: &Key, status: Status, row: &Row) -> Acquired {
    let token = LockToken::new(row.get::<_, i64>(1).cast_unsigned());
    if status == Status::Again {
        return Acquired::reentrant(token);
    }
    if let (Some(stale), Some(from)) = (row.get::<_, Option<i32>>(6), Core::holder_in(row, 2, 3)) {
        let state = if stale == 1 { LockState::Expired } else { LockState::Abandoned };
        trace::taken_over(key, token, &from, state);
    }
    Acquired::new(token)
}

pub(super) async fn renew(
    core: &Arc<Core>,
    key: &Key,
    claim: &Claim,
    hold_timeout: Option<Duration>,
    options: WaitOptions,
) -> Result<()> {
    let (limits, context) = (Limits::new(&options), Context::new("renew", key));
    let id = KeyId::of(key);
    let [holder, bound, owner, token] = claim_parameters(claim);
    let hold = microseconds(hold_timeout);
    let parameters = [id.id(), id.latch(), holder, bound, owner, token, hold, Parameter::Patience];
    let (status, row) = core.call_function(context, &limits, Repeat::Yes, Query::Renew, &parameters).await?;
    match status {
        Status::Ok => Ok(()),
        status => Err(not_own(core, context, status, claim, Core::holder_in(&row, 1, 2))),
    }
}

pub(super) async fn release_lock(
    core: &Arc<Core>,
    key: &Key,
    claim: &Claim,
    options: WaitOptions,
) -> Result<()> {
    let (limits, context) = (Limits::new(&options), Context::new("release_lock", key));
    let id = KeyId::of(key);
    let [holder, bound, owner, token] = claim_parameters(claim);
    let parameters = [id.id(), id.latch(), holder, bound, owner, token, Parameter::Patience];
    let (status, row) =
        core.call_function(context, &limits, Repeat::No, Query::ReleaseLock, &parameters).await?;
    match status {
        Status::Ok => Ok(()),
        status => Err(not_own(core, context, status, claim, Core::holder_in(&row, 1, 2))),
    }
}

pub(super) async fn break_lock(core: &Arc<Core>, key: &Key, options: BreakOptions) -> Result<bool> {
    let (limits, context) = (Limits::new(options.get_wait()), Context::new("break_lock", key));
    let id = KeyId::of(key);
    let token = options.get_token().map(|token| i64::try_from(token.get()).unwrap_or(-1));
    let parameters = [id.id(), id.latch(), Parameter::Long(token), Parameter::Patience];
    let rows = core.call(context, &limits, Repeat::No, Query::BreakLock, &parameters).await?;
    Ok(rows.first().is_some_and(|row| row.get(0)))
}

pub(super) async fn wait_for_lock(core: &Arc<Core>, key: &Key, options: WaitOptions) -> Result<bool> {
    let (limits, context) = (Limits::new(&options), Context::new("wait_for_lock", key));
    limits.check_cancelled(context)?;
    if live_lock(core, context, &limits).await?.is_none() {
        return Ok(true);
    }
    let mut wait = Wait::new(core, key, &limits);
    loop {
        match until_free(core, context, &limits, &mut wait, None).await {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            // The latch could not be entered in time.
            Err(error) if error.kind() == ErrorKind::LockTimeout => {}
            Err(error) => return Err(error),
        }
        limits.check_cancelled(context)?;
        if limits.is_over() {
            // It may have become free during the last sleep. This check needs no latch.
            return Ok(live_lock(core, context, &limits).await?.is_none());
        }
    }
}

pub(super) fn locks(core: &Arc<Core>) -> Result<Listing<'_, LockInfo>> {
    const ID: usize = 9;
    let context = Context::whole("locks");
    let own = core.here().owner.present();
    let mut rows = Pages::new(core, Query::Locks, ID).begin(context.operation)?.peekable();
    Ok(Box::new(std::iter::from_fn(move || {
        let mut of_key = match rows.next()? {
            Ok(row) => vec![row],
            Err(error) => return Some(Err(error)),
        };
        let id = |row: &Row| row.get::<_, Vec<u8>>(ID);
        let first = id(&of_key[0]);
        let is_next = |row: &Result<Row>| row.as_ref().is_ok_and(|row| id(row) == first);
        of_key.extend(std::iter::from_fn(|| rows.next_if(is_next)?.ok()));
        lock_in(core, context, &of_key, own).transpose()
    })))
}
