//! `gc`: removes expired records, stale locks and leftovers.

use std::time::SystemTime;

use record_store::{FileSystemOptions, OpenMode};
use serde::Serialize;

use crate::args::GcArgs;
use crate::damaged::{Before, Damaged};
use crate::failure::Failure;
use crate::format::{count, json};
use crate::output::Output;
use crate::recovery;
use crate::store::{self, Store};

/// The counts of removed items. The field names are part of the JSON interface.
#[derive(Serialize)]
struct Removed {
    records: usize,
    locks: usize,
    /// Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<usize>,
}

impl Removed {
    fn to_text(&self) -> String {
        let (records, locks) = (count(self.records, "record"), count(self.locks, "lock"));
        match self.damaged {
            None => format!("{records} and {locks} removed"),
            Some(damaged) => format!("{records}, {locks} and {} removed", count(damaged, "damaged file")),
        }
    }
}

pub(crate) fn gc(args: &GcArgs) -> Result<(), Failure> {
    if let Some(url) = store::url(&args.store.dir) {
        return gc_on_server(url, args);
    }
    let before = Before::open(&args.store.dir);
    let begun = SystemTime::now();
    let store = FileSystemOptions::new().mode(OpenMode::Existing).open(&args.store.dir)?;
    recovery::report(&store, begun);
    // Nobody has seen yet what this very call moves aside, so it is not deleted.
    let is_new = before.warn_of_new(&store) > 0;
    let cleared = if args.damaged && !is_new { store.clear_damaged()? } else { 0 };
    let damaged = args.damaged.then_some(cleared);
    let watch = Damaged::watch(&Store::from(store.clone()), None);
    let swept = store.sweep()?;
    drop(watch);
    let removed = Removed { records: swept.records, locks: swept.locks, damaged };
    print(&removed, args)
}

#[cfg(feature = "postgres")]
fn gc_on_server(url: &str, args: &GcArgs) -> Result<(), Failure> {
    let (records, locks) = store::connect(url, false)?.sweep()?;
    let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
    // A server keeps no damaged files.
    let damaged = args.damaged.then_some(0);
    print(&Removed { records: number(records), locks: number(locks), damaged }, args)
}

#[cfg(not(feature = "postgres"))]
fn gc_on_server(url: &str, _: &GcArgs) -> Result<(), Failure> {
    store::connect(url, false).map(drop).map_err(Failure::from)
}

fn print(removed: &Removed, args: &GcArgs) -> Result<(), Failure> {
    let mut out = Output::open();
    out.line(&if args.json { json(removed)? } else { removed.to_text() })?;
    out.finish()
}
