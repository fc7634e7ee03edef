//! `ls`, `stat` and `locks`: tell what records and locks there are.

use std::num::NonZeroU32;

use record_store::{Key, ListOptions, LockInfo, RecordInfo, RecordStoreExt, WaiterInfo};
use serde::Serialize;

use crate::args::{ListArgs, LocksArgs, Sort, StatArgs};
use crate::failure::Failure;
use crate::format::{
    age, count, duration, holder, json, owner_cell, rfc3339, state, state_cell, waiter, waiting_cell,
};
use crate::output::Output;
use crate::records::{no_record, open_to_read};
use crate::store::Store;
use crate::style::{Cell, Colour, heading, printable, quoted, table};

pub(crate) fn keys(args: &ListArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    if args.long || args.sort.is_some() {
        return records(&store, args);
    }
    let mut out = Output::open();
    let mut outcome = Ok(());
    for key in store.keys()? {
        match key {
            Ok(key) if !key.as_str().starts_with(&args.prefix) => {}
            Ok(key) => key_line(&mut out, &key, args.json)?,
            Err(error) => outcome = Err(printed(error)),
        }
    }
    out.finish()?;
    outcome
}

fn key_line(out: &mut Output, key: &Key, is_json: bool) -> Result<(), Failure> {
    if is_json {
        return out.line(&json(key.as_str())?);
    }
    let style = out.style();
    if out.is_terminal() { out.line(&style.printable(key.as_str())) } else { out.line(key.as_str()) }
}

/// The keys with more about each record, or in an order that needs more.
fn records(store: &Store, args: &ListArgs) -> Result<(), Failure> {
    let mut out = Output::open();
    let mut outcome = Ok(());
    let mut records = Vec::new();
    for record in store.records(ListOptions::new().prefix(&args.prefix))? {
        match record {
            Ok(record) if args.json && args.sort.is_none() => out.line(&json(&JsonRecord::new(&record))?)?,
            Ok(record) => records.push(record),
            Err(error) => outcome = Err(printed(error)),
        }
    }
    match args.sort.unwrap_or(Sort::Key) {
        Sort::Key => records.sort_by(|a, b| a.key().cmp(b.key())),
        Sort::Time => records.sort_by(|a, b| (a.modified(), a.key()).cmp(&(b.modified(), b.key()))),
        Sort::Size => records.sort_by(|a, b| (a.size(), a.key()).cmp(&(b.size(), b.key()))),
    }
    if !args.long {
        records.iter().try_for_each(|record| key_line(&mut out, record.key(), args.json))?;
    } else if args.json {
        records.iter().try_for_each(|record| out.line(&json(&JsonRecord::new(record))?))?;
    } else if !records.is_empty() {
        let mut rows = vec![heading(["SIZE", "VERSION", "MODIFIED", "EXPIRES IN", "KEY"])];
        rows.extend(records.iter().map(record_row));
        out.lines(&table(&rows, out.style()))?;
    }
    out.finish()?;
    outcome
}

fn record_row(record: &RecordInfo) -> [Cell; 5] {
    [
        record.size().to_string().into(),
        version(record).to_string().into(),
        rfc3339(record.modified()).into(),
        record.time_left().map_or_else(|| Cell::coloured("none", Colour::Dim), |left| duration(left).into()),
        printable(record.key().as_str()).into(),
    ]
}

fn version(record: &RecordInfo) -> u64 {
    record.version().number().unwrap_or_default()
}

/// A record as JSON. The field names are part of the JSON interface.
#[derive(Serialize)]
struct JsonRecord<'a> {
    key: &'a str,
    size: u64,
    version: u64,
    modified: String,
    remaining_seconds: Option<f64>,
}

impl<'a> JsonRecord<'a> {
    fn new(record: &'a RecordInfo) -> Self {
        Self {
            key: record.key().as_str(),
            size: record.size(),
            version: version(record),
            modified: rfc3339(record.modified()),
            remaining_seconds: record.time_left().map(|left| left.as_secs_f64()),
        }
    }
}

/// `stat`.
pub(crate) fn stat(args: &StatArgs) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct JsonStat<'a> {
        key: &'a str,
        record: Option<JsonRecord<'a>>,
        lock: Option<JsonLock<'a>>,
    }
    let (store, key) = (open_to_read(&args.record.store)?, &args.record.key);
    let (record, lock) = (store.record_info(key)?, store.lock_info(key)?);
    let mut out = Output::open();
    if args.json {
        let (record, lock) = (record.as_ref().map(JsonRecord::new), lock.as_ref().map(JsonLock::new));
        out.line(&json(&JsonStat { key: key.as_str(), record, lock })?)?;
    } else {
        out.lines(&facts(key, record.as_ref(), lock.as_ref()))?;
    }
    out.finish()?;
    if record.is_some() { Ok(()) } else { Err(no_record(&store, key)) }
}

fn facts(key: &Key, record: Option<&RecordInfo>, lock: Option<&LockInfo>) -> Vec<String> {
    let mut facts = vec![("key", printable(key.as_str()))];
    if let Some(record) = record {
        let expires =
            record.time_left().map_or_else(|| "never".to_owned(), |left| format!("in {}", duration(left)));
        facts.extend([
            ("size", count(record.size(), "byte")),
            ("version", version(record).to_string()),
            ("modified", format!("{} ({} ago)", rfc3339(record.modified()), age(record.modified()))),
            ("expires", expires),
        ]);
    }
    match lock {
        None => facts.push(("lock", "free".to_owned())),
        Some(lock) => {
            for holder in lock.holders() {
                facts.extend(holder_facts(holder));
            }
            facts.extend(lock.waiters().unwrap_or_default().iter().map(|it| ("waiting", waiter(it))));
        }
    }
    facts.into_iter().map(|(name, value)| format!("{:<10}{value}", format!("{name}:"))).collect()
}

fn holder_facts(lock: &LockInfo) -> Vec<(&'static str, String)> {
    let lease = lock
        .remaining()
        .map_or_else(|| "without a lease".to_owned(), |left| format!("for {}", duration(left)));
    let since = format!("since {} ({} ago), {lease}", rfc3339(lock.acquired_at()), age(lock.acquired_at()));
    let held = if lock.is_shared() { "shared" } else { "held" };
    let held = format!("{held} by {}, {since}", quoted(lock.holder().name()));
    let mut facts = vec![("lock", held), ("token", lock.token().to_string())];
    facts.extend(lock.note().map(|note| ("note", printable(note))));
    facts
}

pub(crate) fn locks(args: &LocksArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut out = Output::open();
    let mut outcome = Ok(());
    let mut rows = Vec::new();
    for lock in store.locks()? {
        match lock {
            Ok(lock) if args.json => out.line(&json(&JsonLock::new(&lock))?)?,
            Ok(lock) => {
                // All wait for the lock, and none for one of its holders.
                let waiters = || lock.waiters().map(<[_]>::to_vec);
                rows.extend(lock.holders().map(|holder| row(&holder.clone().with_waiters(waiters()))));
            }
            Err(error) => outcome = Err(printed(error)),
        }
    }
    if !rows.is_empty() {
        // A table for people is sorted by key.
        rows.sort_by(|a, b| a[0].text.cmp(&b[0].text));
        rows.insert(0, heading(["KEY", "STATE", "OWNER", "SINCE", "UNTIL", "WAITING", "TOKEN", "HOLDER"]));
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

fn row(lock: &LockInfo) -> [Cell; 8] {
    [
        printable(lock.key().as_str()).into(),
        state_cell(lock),
        owner_cell(lock),
        rfc3339(lock.acquired_at()).into(),
        lock.expires_at().map_or_else(|| Cell::coloured("none", Colour::Dim), |time| rfc3339(time).into()),
        waiting_cell(lock),
        lock.token().to_string().into(),
        holder(lock).into(),
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
    note: Option<&'a str>,
    shared: bool,
    /// `None`: the lock is exclusive, or shared by as many as there are.
    slots: Option<u32>,
    /// The other holders of a shared lock.
    sharers: Vec<JsonLock<'a>>,
    /// The first one first. `None`: unknown.
    waiters: Option<&'a [WaiterInfo]>,
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
            note: lock.note(),
            shared: lock.is_shared(),
            slots: lock.slots().map(NonZeroU32::get).filter(|slots| *slots != u32::MAX),
            sharers: lock.sharers().iter().map(JsonLock::new).collect(),
            waiters: lock.waiters(),
        }
    }
}
