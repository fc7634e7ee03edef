//! `gc`: removes expired records, stale locks and leftovers.

use record_store::{FileSystemOptions, OpenMode};
use serde::Serialize;

use crate::args::GcArgs;
use crate::failure::Failure;
use crate::format::{count, json};
use crate::output::Output;

/// The counts of removed items. The field names are part of the JSON interface.
#[derive(Serialize)]
struct Removed {
    records: usize,
    locks: usize,
}

pub(crate) fn gc(args: &GcArgs) -> Result<(), Failure> {
    let store = FileSystemOptions::new().mode(OpenMode::Existing).open(&args.store.dir)?;
    let swept = store.sweep()?;
    let removed = Removed { records: swept.records, locks: swept.locks };
    let mut out = Output::open();
    out.line(&if args.json {
        json(&removed)?
    } else {
        format!("{} and {} removed", count(removed.records, "record"), count(removed.locks, "lock"))
    })?;
    out.finish()
}
