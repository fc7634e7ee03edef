//! `get`, `put` and `rm`: read, write and remove records.

use std::io;
use std::time::{Duration, SystemTime};

use record_store::{
    Durability, ErrorKind, FileSystemOptions, Json, Key, LockToken, OpenMode, ReadOptions, RecordStore,
    RecordStoreExt, RecordVersion, RemoveOptions,
};
use serde::Serialize;

use crate::args::{DurabilityArgs, GetArgs, PutArgs, RmArgs, Selection, StoreArgs};
use crate::confirm::{confirmed, is_interactive};
use crate::damaged::{Before, Damaged};
use crate::failure::{BAD_DATA, EXISTS, Failure, LOCKED, NOT_FOUND, USAGE};
use crate::format::{json, rfc3339};
use crate::limit::Limit;
use crate::output::Output;
use crate::own_lock::{refuse_own_exclusive_lock, refuse_own_lock};
use crate::recovery;
use crate::store::{self, Store};
use crate::style::quoted;
use crate::value::{Condition, Stored, Value, read_to_end};
use crate::waiting::{wait_for_lock, waiting};

/// A change waits at least this long for a process that is in the middle of an operation on the same key. That
/// takes microseconds, unless the process is stopped.
pub(crate) const LATCH_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn get(args: &GetArgs) -> Result<(), Failure> {
    check_token(args.token.token, args.records.keys.len() == 1)?;
    let store = open_to_read(&args.records.store)?;
    let limit = Limit::new(args.wait.wait);
    let mut out = Output::open();
    let mut failures = Failures::default();
    for key in &args.records.keys {
        match text(&store, key, args, limit) {
            Ok(text) => out.write(&text)?,
            Err(failure) => failures.add(failure),
        }
        // The next record may be locked.
        out.flush()?;
    }
    failures.last()
}

/// The output for one record.
fn text(store: &Store, key: &Key, args: &GetArgs, limit: Limit) -> Result<Vec<u8>, Failure> {
    refuse_own_exclusive_lock(store, key, args.token.token)?;
    let options = ReadOptions::new().timeout(limit.left()).claim(args.token.claim());
    let record = waiting(|observer| store.read_raw(key, options.observer(observer)))?;
    let Some(record) = record else { return Err(no_record(store, key)) };
    if args.json {
        let line = json_line(key, Some(record.version), record.time_left, &record.json)?;
        return Ok(format!("{line}\n").into_bytes());
    }
    Ok(Stored::new(args.form.form(), key, record)?.value.into_output())
}

fn check_token(token: Option<LockToken>, is_single: bool) -> Result<(), Failure> {
    if token.is_none() || is_single {
        return Ok(());
    }
    Err(Failure::new(USAGE, "a token is that of one key's lock").advise("give one key, or leave out --token"))
}

/// The failures of a command that goes on after a failure. The last one is its end, and those before it are printed.
#[derive(Default)]
struct Failures(Option<Failure>);

impl Failures {
    fn add(&mut self, failure: Failure) {
        if let Some(earlier) = self.0.replace(failure) {
            let _ = earlier.printed();
        }
    }

    fn last(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), Err)
    }
}

/// A record on one line, as `export` and `get --json` print it. The field names are part of the JSON interface.
pub(crate) fn json_line(
    key: &Key,
    version: Option<RecordVersion>,
    time_left: Option<Duration>,
    result: &Json,
) -> Result<String, Failure> {
    #[derive(Serialize)]
    struct Line<'a> {
        key: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<RecordVersion>,
        /// When its time to live ends. Before the result, which may be long.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_at: Option<String>,
        result: &'a Json,
    }
    let end = time_left.and_then(|left| SystemTime::now().checked_add(left));
    let line = json(&Line { key: key.as_str(), version, expires_at: end.map(rfc3339), result })?;
    // JSON strings contain no raw line feed. A line feed between values is only white space.
    Ok(line.replace(['\n', '\r'], " "))
}

pub(crate) fn put(args: &PutArgs) -> Result<(), Failure> {
    // Reads the input before it opens the store, so that invalid input creates no store.
    let input = read_to_end(io::stdin().lock()).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => Failure::new(BAD_DATA, format!("standard input: {error}")),
        _ => Failure::io("cannot read standard input", &error),
    })?;
    let value = Value::parse(args.form.form(), &input, "standard input")?;
    drop(input);
    let key = &args.record.key;
    let store = open_to_write(&args.record.store, &args.durability, args.adopt.mode())?;
    let _damaged = Damaged::watch(&store, Some(key));
    let condition = match args.if_version {
        Some(number) => Condition::Version(RecordVersion::new(number)),
        None if args.if_absent => Condition::Absent,
        None => Condition::Nothing,
    };
    refuse_own_lock(&store, key, args.token.token)?;
    let is_written = change(&store, key, Limit::new(args.wait.wait), |timeout| {
        let options = args.expiry.options().timeout(timeout).claim(args.token.claim());
        value.write(&store, key, condition, options)
    })?;
    if is_written { Ok(()) } else { Err(not_as_required(&store, key, args)) }
}

/// Nothing was written, because the record is not as --if-absent or --if-version requires it.
fn not_as_required(store: &Store, key: &Key, args: &PutArgs) -> Failure {
    let (key, place) = (quoted(key.as_str()), store.place());
    match args.if_version {
        Some(version) => Failure::new(EXISTS, format!("{key} does not have the version {version} ({place})"))
            .advise("read it again with get --json"),
        None => Failure::new(EXISTS, format!("{key} already has a record ({place})"))
            .advise("leave out --if-absent to replace it"),
    }
}

pub(crate) fn rm(args: &RmArgs) -> Result<(), Failure> {
    let is_single = matches!(&args.records.selection, Selection::Keys(keys) if keys.len() == 1);
    check_token(args.token.token, is_single)?;
    let store = open_to_write(&args.records.store, &args.durability, OpenMode::Existing)?;
    let limit = Limit::new(args.wait.wait);
    let keys = match &args.records.selection {
        Selection::Keys(keys) => keys,
        Selection::Prefix(prefix) => &matching(&store, prefix)?,
    };
    if let Selection::Prefix(prefix) = &args.records.selection
        && !args.force
        && is_interactive()
        && !confirmed(&removal_question(keys.len(), prefix))?
    {
        return Err(Failure::new(LOCKED, "nothing was removed"));
    }
    let mut failures = Failures::default();
    for key in keys {
        match remove(&store, key, args, limit) {
            Ok(is_removed) => {
                // With a prefix, somebody else has removed it since it was listed.
                if !is_removed && matches!(args.records.selection, Selection::Keys(_)) {
                    failures.add(no_record(&store, key));
                }
            }
            Err(failure) => failures.add(failure),
        }
    }
    failures.last()
}

fn remove(store: &Store, key: &Key, args: &RmArgs, limit: Limit) -> Result<bool, Failure> {
    refuse_own_lock(store, key, args.token.token)?;
    let _damaged = Damaged::watch(store, Some(key));
    let is_removed = change(store, key, limit, |timeout| {
        let options = RemoveOptions::new().timeout(timeout).claim(args.token.claim());
        waiting(|observer| store.remove_with(key, options.observer(observer)))
    })?;
    Ok(is_removed)
}

/// The keys of the records whose keys begin with this text. None is a failure.
fn matching(store: &Store, prefix: &str) -> Result<Vec<Key>, Failure> {
    let keys = store.keys()?.filter(|key| !matches!(key, Ok(key) if !key.as_str().starts_with(prefix)));
    let keys: Vec<_> = keys.collect::<record_store::Result<_>>()?;
    if keys.is_empty() {
        let message = format!("no record whose key begins with {} ({})", quoted(prefix), store.place());
        return Err(Failure::new(NOT_FOUND, message).advise("list the keys with ls"));
    }
    Ok(keys)
}

fn removal_question(count: usize, prefix: &str) -> String {
    let records = if count == 1 { "the record whose key begins" } else { "records whose keys begin" };
    let count = if count == 1 { String::new() } else { format!("{count} ") };
    format!("Remove {count}{records} with {}?", quoted(prefix))
}

/// Makes a change that another holder's lock can refuse. Waits for that lock until the limit. `attempt` gets the time
/// that it may wait for a process in the middle of an operation.
fn change<T>(
    store: &Store,
    key: &Key,
    limit: Limit,
    attempt: impl Fn(Duration) -> record_store::Result<T>,
) -> record_store::Result<T> {
    loop {
        let left = limit.left();
        match attempt(left.unwrap_or_default().max(LATCH_TIMEOUT)) {
            Err(error) if error.kind() == ErrorKind::Locked && left != Some(Duration::ZERO) => {
                wait_for_lock(store, key, left)?;
            }
            outcome => return outcome,
        }
    }
}

pub(crate) fn no_record(store: &Store, key: &Key) -> Failure {
    Failure::new(NOT_FOUND, format!("no record {} ({})", quoted(key.as_str()), store.place()))
        .advise("list the keys with ls")
}

/// Opens a store without changing anything in it.
pub(crate) fn open_to_read(store: &StoreArgs) -> record_store::Result<Store> {
    if let Some(url) = store::url(&store.dir) {
        return store::connect(url, false).map(Store::from);
    }
    FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&store.dir).map(Store::from)
}

/// Opens a store, and prints what became of the files that dead processes have displaced.
pub(crate) fn open_to_write(
    store: &StoreArgs,
    durability: &DurabilityArgs,
    mode: OpenMode,
) -> record_store::Result<Store> {
    if let Some(url) = store::url(&store.dir) {
        return store::connect(url, mode != OpenMode::Existing).map(Store::from);
    }
    let durability = if durability.relaxed { Durability::Relaxed } else { Durability::Full };
    let before = Before::open(&store.dir);
    let begun = SystemTime::now();
    let opened = FileSystemOptions::new().mode(mode).durability(durability).open(&store.dir)?;
    recovery::report(&opened, begun);
    before.warn_of_new(&opened);
    Ok(opened.into())
}
