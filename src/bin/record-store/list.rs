//! `ls` and `locks`: list keys and locks.

use record_store::{LockInfo, RecordStoreExt};
use serde::Serialize;

use crate::args::{ListArgs, LocksArgs};
use crate::failure::Failure;
use crate::format::{json, owner_cell, rfc3339, state, state_cell};
use crate::output::Output;
use crate::records::open_to_read;
use crate::style::{Cell, Colour, heading, printable, table};

pub(crate) fn keys(args: &ListArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut out = Output::open();
    let style = out.style();
    let mut outcome = Ok(());
    for key in store.keys()? {
        match key {
            Ok(key) if args.json => out.line(&json(key.as_str())?)?,
            Ok(key) if out.is_terminal() => out.line(&style.printable(key.as_str()))?,
            Ok(key) => out.line(key.as_str())?,
            Err(error) => outcome = Err(printed(error)),
        }
    }
    out.finish()?;
    outcome
}

pub(crate) fn locks(args: &LocksArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut out = Output::open();
    let mut outcome = Ok(());
    let mut rows = Vec::new();
    for lock in store.locks()? {
        match lock {
            Ok(lock) if args.json => out.line(&json(&JsonLock::new(&lock))?)?,
            Ok(lock) => rows.push(row(&lock)),
            Err(error) => outcome = Err(printed(error)),
        }
    }
    if !rows.is_empty() {
        // A table for people is sorted by key.
        rows.sort_by(|a, b| a[0].text.cmp(&b[0].text));
        rows.insert(0, heading(["KEY", "STATE", "OWNER", "SINCE", "UNTIL", "TOKEN", "HOLDER"]));
        out.lines(&table(&rows, out.style()))?;
    }
    out.finish()?;
    outcome
}

/// Prints the error of one item, so that the listing can continue. The result keeps the exit code for
/// the end.
pub(crate) fn printed(error: record_store::Error) -> Failure {
    Failure::from(error).printed()
}

fn row(lock: &LockInfo) -> [Cell; 7] {
    [
        printable(lock.key().as_str()).into(),
        state_cell(lock),
        owner_cell(lock),
        rfc3339(lock.acquired_at()).into(),
        lock.expires_at().map_or_else(|| Cell::coloured("none", Colour::Dim), |time| rfc3339(time).into()),
        lock.token().to_string().into(),
        printable(lock.holder().name()).into(),
    ]
}

/// A lock as JSON. The field names are part of the JSON interface.
///
/// [`LockInfo`] serializes the same fields, but its times have nanoseconds, and these have milliseconds.
#[derive(Serialize)]
struct JsonLock<'a> {
    key: &'a str,
    holder: &'a str,
    process_bound: bool,
    token: u64,
    state: &'static str,
    owner_alive: Option<bool>,
    acquired_at: String,
    expires_at: Option<String>,
    remaining_seconds: Option<f64>,
}

impl<'a> JsonLock<'a> {
    fn new(lock: &'a LockInfo) -> Self {
        Self {
            key: lock.key().as_str(),
            holder: lock.holder().name(),
            process_bound: lock.holder().is_process_bound(),
            token: lock.token().get(),
            state: state(lock.state()),
            owner_alive: lock.owner_alive(),
            acquired_at: rfc3339(lock.acquired_at()),
            expires_at: lock.expires_at().map(rfc3339),
            remaining_seconds: lock.remaining().map(|left| left.as_secs_f64()),
        }
    }
}
