//! `get`, `put` and `rm`: read, write or remove one record.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use record_store::{Durability, ErrorKind, FileSystemOptions, Key, OpenMode, RecordStoreExt, RemoveOptions};

use crate::args::{DurabilityArgs, GetArgs, PutArgs, RmArgs, StoreArgs};
use crate::damaged::{Before, Damaged};
use crate::failure::{BAD_DATA, Failure, NOT_FOUND};
use crate::recovery;
use crate::store::{self, Store};
use crate::style::quoted;
use crate::value::{Form, Value, read_to_end};
use crate::waiting::{wait_for_lock, waiting};

/// A change waits at least this long for a process that is in the middle of an operation on the same key. That
/// takes microseconds, unless the process is stopped.
pub(crate) const LATCH_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn get(args: &GetArgs) -> Result<(), Failure> {
    let key = &args.record.key;
    let store = open_to_read(&args.record.store)?;
    match Value::read(Form::of(args.text), &store, key, args.wait)? {
        Some(value) => value.print(),
        None => Err(no_record(&store, key)),
    }
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
    change(&store, key, args.wait.wait, |timeout| {
        value.write(&store, key, args.expiry.options().timeout(timeout))
    })?;
    Ok(())
}

pub(crate) fn rm(args: &RmArgs) -> Result<(), Failure> {
    let key = &args.record.key;
    let store = open_to_write(&args.record.store, &args.durability, OpenMode::Existing)?;
    let _damaged = Damaged::watch(&store, Some(key));
    let removed = change(&store, key, args.wait.wait, |timeout| {
        let options = RemoveOptions::new().timeout(timeout);
        waiting(|observer| {
            store.remove_with(key, observer.into_iter().fold(options, RemoveOptions::observer))
        })
    })?;
    if removed { Ok(()) } else { Err(no_record(&store, key)) }
}

/// Makes a change that another holder's lock can refuse. Waits for that lock for at most `wait`. `attempt` gets
/// the time that it may wait for a process in the middle of an operation.
fn change<T>(
    store: &Store,
    key: &Key,
    wait: Duration,
    attempt: impl Fn(Duration) -> record_store::Result<T>,
) -> record_store::Result<T> {
    let start = Instant::now();
    loop {
        let left = wait.saturating_sub(start.elapsed());
        match attempt(left.max(LATCH_TIMEOUT)) {
            Err(error) if error.kind() == ErrorKind::Locked && !left.is_zero() => {
                wait_for_lock(store, key, Some(left))?;
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
