//! Records: read, write, swap, remove, list.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;

use super::core::{Core, Repeat, key_in};
use super::limits::{Context, Limits};
use super::lock_errors::refused;
use super::pages::Pages;
use super::parameters::{KeyId, Parameter, claim_parameters, key_bytes, microseconds, version_of};
use super::statements::{Query, SWEPT_AT_ONCE};
use super::status::Status;
use super::waiting::{self, Wait};
use crate::{
    Claim, ErrorKind, Expected, Json, Key, Listing, RawRecord, ReadOptions, RecordVersion, RemoveOptions,
    Result, WriteOptions,
};

pub(super) async fn read(core: &Arc<Core>, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
    let limits = Limits::new(options.get_wait());
    let context = Context::new("read", key);
    let claim = options.resolve_claim();
    if options.ignores_lock() {
        return Ok(peek(core, context, &limits).await?.0);
    }
    if let Claim::Holder(_) = claim {
        // Usually there is no lock, so one look is enough.
        let (record, has_lock) = peek(core, context, &limits).await?;
        if !has_lock {
            return Ok(record);
        }
    }
    let id = KeyId::of(key);
    let mut wait = None;
    loop {
        let [holder, bound, owner, token] = claim_parameters(&claim);
        let parameters =
            [id.id(), id.latch(), holder, bound, owner, token, Parameter::Flag(false), Parameter::Patience];
        let (status, row) =
            core.call_function(context, &limits, Repeat::Yes, Query::Read, &parameters).await?;
        match status {
            Status::Ok => return record(core, context, &row, 1),
            Status::Locked if limits.is_over() => {
                return Err(limits.timed_out(Core::holder_in(&row, 4, 5), context));
            }
            Status::Locked => {
                let Claim::Holder(holder) = &claim else {
                    return Err(refused(core, context, status, &claim, None));
                };
                let wait = wait.get_or_insert_with(|| Wait::new(core, key, &limits));
                waiting::until_free(core, context, &limits, wait, Some(holder)).await?;
            }
            status => return Err(refused(core, context, status, &claim, None)),
        }
    }
}

/// The record, regardless of locks, and whether there is a lock, live or not.
async fn peek(core: &Arc<Core>, context: Context<'_>, limits: &Limits) -> Result<(Option<RawRecord>, bool)> {
    let Some(key) = context.key else { return Ok((None, false)) };
    let id = KeyId::of(key);
    let rows = core.call(context, limits, Repeat::Yes, Query::Peek, &[id.id()]).await?;
    let (records, locks): (Vec<_>, Vec<_>) =
        rows.iter().partition(|row| row.get::<_, Option<i64>>(0).is_some());
    let record = records.first().map_or(Ok(None), |row| record(core, context, row, 0))?;
    Ok((record, !locks.is_empty()))
}

/// The record in three columns: version, result, and what is left of its time to live. `None`: there is none, or it has expired.
fn record(core: &Arc<Core>, context: Context<'_>, row: &Row, first: usize) -> Result<Option<RawRecord>> {
    let (Some(version), Some(text)) =
        (row.get::<_, Option<i64>>(first), row.get::<_, Option<String>>(first + 1))
    else {
        return Ok(None);
    };
    let left = row.get::<_, Option<i64>>(first + 2);
    if left.is_some_and(|left| left <= 0) {
        return Ok(None);
    }
    let left = left.map(|left| Duration::from_micros(left.cast_unsigned()));
    let json = Json::parse(text).map_err(|error| {
        core.error(context, ErrorKind::CorruptRecord).with_detail("not a JSON value").with_source(error)
    })?;
    Ok(Some(RawRecord::new(json, version_of(Some(version))).with_time_left(left)))
}

/// The modes of `write` in the schema.
#[derive(Clone, Copy)]
enum Mode {
    Write,
    /// Writes if the version is this one.
    Swap(RecordVersion),
    /// Only compares the version.
    Compare(RecordVersion),
}

pub(super) async fn write(core: &Arc<Core>, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
    let limits = Limits::new(options.get_wait());
    let context = Context::new("write", key);
    change(core, context, &limits, result, &options, Mode::Write).await.map(drop)
}

pub(super) async fn compare_and_swap(
    core: &Arc<Core>,
    key: &Key,
    expected: Expected<'_>,
    result: &Json,
    options: WriteOptions,
) -> Result<bool> {
    let limits = Limits::new(options.get_wait());
    let context = Context::new("compare_and_swap", key);
    let value = match expected {
        Expected::Absent => {
            let mode = Mode::Swap(RecordVersion::ABSENT);
            return change(core, context, &limits, result, &options, mode).await;
        }
        Expected::Version(version) => {
            return change(core, context, &limits, result, &options, Mode::Swap(version)).await;
        }
        Expected::Value(_) => expected,
    };
    let limit = limits.for_latch();
    // Only this crate can compare values. The version says that the value is still the one that was compared.
    loop {
        limits.check_cancelled(context)?;
        let (record, _) = peek(core, context, &limits).await?;
        let version = record.as_ref().map_or(RecordVersion::ABSENT, |record| record.version);
        if value.matches(record.as_ref()) {
            if change(core, context, &limits, result, &options, Mode::Swap(version)).await? {
                return Ok(true);
            }
        } else if change(core, context, &limits, result, &options, Mode::Compare(version)).await? {
            return Ok(false);
        }
        if limit.is_over() {
            return Err(limits.timed_out(None, context));
        }
    }
}

/// `false`: the record has another version.
async fn change(
    core: &Arc<Core>,
    context: Context<'_>,
    limits: &Limits,
    result: &Json,
    options: &WriteOptions,
    mode: Mode,
) -> Result<bool> {
    let Some(key) = context.key else { return Ok(false) };
    let size = result.as_str().len();
    let limit = core.options.max_record_bytes;
    if u64::try_from(size).unwrap_or(u64::MAX) > limit {
        let detail = format!("{size} bytes, the limit is {limit}");
        return Err(core.error(context, ErrorKind::RecordTooLarge).with_detail(detail));
    }
    let (id, claim) = (KeyId::of(key), options.resolve_claim());
    let (text, time_to_live) = (Parameter::Text(result.as_str()), microseconds(options.get_time_to_live()));
    if matches!((mode, &claim), (Mode::Write, Claim::Holder(_))) {
        // Usually the key has no lock, and then nobody's claim has to be checked.
        let parameters = [id.id(), key_bytes(key), id.latch(), text, time_to_live, Parameter::Patience];
        let rows = core.call(context, limits, Repeat::No, Query::WriteUnlocked, &parameters).await?;
        if rows.first().is_some_and(|row| row.get(0)) {
            return Ok(true);
        }
    }
    let [holder, bound, owner, token] = claim_parameters(&claim);
    let (number, version) = match mode {
        Mode::Write => (0, RecordVersion::ABSENT),
        Mode::Swap(version) => (1, version),
        Mode::Compare(version) => (2, version),
    };
    // A version of another store may be larger than any of this one.
    let version = version.number().map(|number| i64::try_from(number).unwrap_or(-1));
    let parameters = [
        id.id(),
        key_bytes(key),
        id.latch(),
        holder,
        bound,
        owner,
        token,
        text,
        time_to_live,
        Parameter::Integer(number),
        Parameter::Long(version),
        Parameter::Patience,
    ];
    let repeat = if number == 2 { Repeat::Yes } else { Repeat::No };
    let (status, row) = core.call_function(context, limits, repeat, Query::Write, &parameters).await?;
    match status {
        Status::Ok => Ok(true),
        Status::Other => Ok(false),
        status => Err(refused(core, context, status, &claim, Core::holder_in(&row, 1, 2))),
    }
}

pub(super) async fn remove(core: &Arc<Core>, key: &Key, options: RemoveOptions) -> Result<bool> {
    let limits = Limits::new(options.get_wait());
    let context = Context::new("remove", key);
    let (id, claim) = (KeyId::of(key), options.resolve_claim());
    let [holder, bound, owner, token] = claim_parameters(&claim);
    let parameters = [id.id(), id.latch(), holder, bound, owner, token, Parameter::Patience];
    let (status, row) = core.call_function(context, &limits, Repeat::No, Query::Remove, &parameters).await?;
    match status {
        Status::Ok => Ok(row.get(3)),
        status => Err(refused(core, context, status, &claim, Core::holder_in(&row, 1, 2))),
    }
}

pub(super) async fn exists(core: &Arc<Core>, key: &Key) -> Result<bool> {
    let context = Context::new("exists", key);
    let id = KeyId::of(key);
    Ok(!core.call(context, &Limits::none(), Repeat::Yes, Query::Exists, &[id.id()]).await?.is_empty())
}

pub(super) fn keys(core: &Arc<Core>) -> Result<Listing<'_, Key>> {
    let pages = Pages::new(core, Query::Keys, 0);
    Ok(Box::new(pages.begin("keys")?.map(move |row| {
        let row = row?;
        key_in(core, Context::whole("keys"), &row, 1)
    })))
}

/// The numbers of rows that a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresSwept {
    /// Expired records.
    pub records: u64,
    /// Locks that are no longer in force.
    pub locks: u64,
}

pub(super) async fn sweep(core: &Arc<Core>, limits: &Limits) -> Result<PostgresSwept> {
    let mut swept = PostgresSwept::default();
    loop {
        let rows = core.call(Context::whole("sweep"), limits, Repeat::Yes, Query::Sweep, &[]).await?;
        let count = |column| rows.first().map_or(0, |row: &Row| row.get::<_, i64>(column).cast_unsigned());
        (swept.records, swept.locks) = (swept.records + count(0), swept.locks + count(1));
        if count(1) < SWEPT_AT_ONCE {
            return Ok(swept);
        }
    }
}
