//! `get`, `put` and `rm`: read, write or remove one record.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use record_store::{
    Durability, ErrorKind, FileSystemOptions, Json, Key, OpenMode, ReadOptions, RecordStore, RecordStoreExt,
    RecordVersion, RemoveOptions,
};
use serde::Serialize;

use crate::args::{DurabilityArgs, GetArgs, PutArgs, RmArgs, StoreArgs};
use crate::damaged::{Before, Damaged};
use crate::failure::{BAD_DATA, EXISTS, Failure, NOT_FOUND};
use crate::format::{json, rfc3339};
use crate::output::Output;
use crate::recovery;
use crate::store::{self, Store};
use crate::style::quoted;
use crate::value::{Condition, Form, Value, read_to_end};
use crate::waiting::{wait_for_lock, waiting};

/// A change waits at least this long for a process that is in the middle of an operation on the same key. That
/// takes microseconds, unless the process is stopped.
pub(crate) const LATCH_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn get(args: &GetArgs) -> Result<(), Failure> {
    let key = &args.record.key;
    let store = open_to_read(&args.record.store)?;
    let options = ReadOptions::new().timeout(args.wait.wait).claim(args.token.claim());
    let record =
        waiting(|observer| store.read_raw(key, observer.into_iter().fold(options, ReadOptions::observer)))?;
    let Some(record) = record else { return Err(no_record(&store, key)) };
    if !args.json {
        return Value::from_json(Form::of(args.text), key, record.json)?.print();
    }
    let mut out = Output::open();
    out.line(&json_line(key, Some(record.version), record.time_left, &record.json)?)?;
    out.finish()
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
    let value = Value::parse(Form::of(args.text), &input, "standard input")?;
    drop(input);
    let key = &args.record.key;
    let store = open_to_write(&args.record.store, &args.durability, args.adopt.mode())?;
    let _damaged = Damaged::watch(&store, Some(key));
    let condition = match args.if_version {
        Some(number) => Condition::Version(RecordVersion::new(number)),
        None if args.if_absent => Condition::Absent,
        None => Condition::Nothing,
    };
    let is_written = change(&store, key, args.wait.wait, |timeout| {
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
    let key = &args.record.key;
    let store = open_to_write(&args.record.store, &args.durability, OpenMode::Existing)?;
    let _damaged = Damaged::watch(&store, Some(key));
    let removed = change(&store, key, args.wait.wait, |timeout| {
        let options = RemoveOptions::new().timeout(timeout).claim(args.token.claim());
        waiting(|observer| {
            store.remove_with(key, observer.into_iter().fold(options, RemoveOptions::observer))
        })
    })?;
    if removed { Ok(()) } else { Err(no_record(&store, key)) }
}

/// Makes a change that another holder's lock can refuse. Waits for that lock for at most `wait`, or forever.
/// `attempt` gets the time that it may wait for a process in the middle of an operation.
fn change<T>(
    store: &Store,
    key: &Key,
    wait: Option<Duration>,
    attempt: impl Fn(Duration) -> record_store::Result<T>,
) -> record_store::Result<T> {
    let start = Instant::now();
    loop {
        let left = wait.map(|wait| wait.saturating_sub(start.elapsed()));
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
