//! `get`, `put` and `rm`: read, write or remove one record.

use std::io;

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, Key, OpenMode, RecordStoreExt};

use crate::args::{DurabilityArgs, GetArgs, PutArgs, RmArgs, StoreArgs};
use crate::failure::{BAD_DATA, Failure, NOT_FOUND};
use crate::value::{Form, Value, read_to_end};

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
    let value = Value::parse(Form::of(args.text), input, "standard input")?;
    let store = open_to_write(&args.record.store, &args.durability, OpenMode::Create)?;
    value.write(&store, &args.record.key, args.expiry.options())?;
    Ok(())
}

pub(crate) fn rm(args: &RmArgs) -> Result<(), Failure> {
    let key = &args.record.key;
    let store = open_to_write(&args.record.store, &args.durability, OpenMode::Existing)?;
    if store.remove(key)? {
        return Ok(());
    }
    Err(no_record(&store, key))
}

fn no_record(store: &FileSystemRecordStore, key: &Key) -> Failure {
    Failure::new(NOT_FOUND, format!("no record {:?} ({})", key.as_str(), store.path().display()))
        .advise("list the keys with ls")
}

/// Opens a store without changing anything in it.
pub(crate) fn open_to_read(store: &StoreArgs) -> record_store::Result<FileSystemRecordStore> {
    FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&store.dir)
}

pub(crate) fn open_to_write(
    store: &StoreArgs,
    durability: &DurabilityArgs,
    mode: OpenMode,
) -> record_store::Result<FileSystemRecordStore> {
    let durability = if durability.relaxed { Durability::Relaxed } else { Durability::Full };
    FileSystemOptions::new().mode(mode).durability(durability).open(&store.dir)
}
