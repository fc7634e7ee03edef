//! `gc`: removes expired records, stale locks and leftovers.

use std::time::SystemTime;

#[cfg(feature = "postgres")]
use record_store::PostgresSwept;
use record_store::{Evicted, EvictionPolicy, FileSystemOptions, OpenMode, RecordStoreExt};
use serde::Serialize;

use crate::args::GcArgs;
use crate::damaged::{Before, Damaged};
use crate::failure::{Failure, USAGE};
use crate::format::{count, json, size};
use crate::output::Output;
use crate::records::open_to_read;
use crate::recovery;
use crate::store::{self, Store};

/// The counts of removed items. The field names are part of the JSON interface.
#[derive(Serialize)]
struct Removed {
    records: u64,
    locks: u64,
    /// Only if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    damaged: Option<u64>,
    /// Only with a limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    evicted: Option<JsonEvicted>,
}

#[derive(Serialize)]
struct JsonEvicted {
    records: u64,
    bytes: u64,
    kept: u64,
    records_left: u64,
    bytes_left: u64,
}

impl From<Evicted> for JsonEvicted {
    fn from(evicted: Evicted) -> Self {
        let Evicted { records, bytes, kept, records_left, bytes_left, .. } = evicted;
        Self { records, bytes, kept, records_left, bytes_left }
    }
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

impl JsonEvicted {
    fn to_text(&self, is_dry_run: bool) -> String {
        let sized = |records, bytes| format!("{} ({})", count(records, "record"), size(bytes));
        let (gone, left) = (sized(self.records, self.bytes), sized(self.records_left, self.bytes_left));
        let verb = if is_dry_run { "would be evicted" } else { "evicted" };
        let kept = match self.kept {
            0 => String::new(),
            kept => format!(
                "; {} kept: locked, changed meanwhile, or not written by the store",
                count(kept, "older record")
            ),
        };
        format!("{gone} {verb}, {left} left{kept}")
    }
}

pub(crate) fn gc(args: &GcArgs) -> Result<(), Failure> {
    let policy = args.limits.policy();
    // Before anything is opened: nothing must be removed.
    let needs_limit =
        [(args.limits.dry_run, "--dry-run"), (args.limits.least_recently_read, "--least-recently-read")];
    if let Some((_, option)) = needs_limit.into_iter().find(|(is_given, _)| *is_given && policy.is_none()) {
        return Err(Failure::new(USAGE, format!("{option} needs --max-records, --max-size or --older-than")));
    }
    if let Some(url) = store::url(&args.store.dir) {
        return gc_on_server(url, args);
    }
    if let Some(policy) = policy.clone().filter(EvictionPolicy::is_dry_run) {
        let evicted = open_to_read(&args.store)?.evict(policy)?;
        return print(&Removed { records: 0, locks: 0, damaged: None, evicted: Some(evicted.into()) }, args);
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
    let evicted = policy.map(|policy| store.evict(policy)).transpose()?.map(JsonEvicted::from);
    let removed = Removed { records: swept.records, locks: swept.locks, damaged, evicted };
    print(&removed, args)
}

#[cfg(feature = "postgres")]
fn gc_on_server(url: &str, args: &GcArgs) -> Result<(), Failure> {
    // Before anything is opened: nothing must be removed.
    if args.damaged {
        let message = "--damaged is about files: on a server, nothing is moved aside";
        return Err(Failure::new(USAGE, message).advise("leave it out; verify names damaged rows"));
    }
    if args.limits.least_recently_read {
        return Err(Failure::new(
            USAGE,
            "--least-recently-read is about files: a server does not know of reads",
        ));
    }
    let store = store::connect(url, false)?;
    let policy = args.limits.policy();
    // First, because an expired record takes no place.
    let swept = if args.limits.dry_run { PostgresSwept::default() } else { store.sweep()? };
    let evicted = policy.map(|policy| store.evict(policy)).transpose()?.map(JsonEvicted::from);
    print(&Removed { records: swept.records, locks: swept.locks, damaged: None, evicted }, args)
}

#[cfg(not(feature = "postgres"))]
fn gc_on_server(url: &str, _: &GcArgs) -> Result<(), Failure> {
    store::connect(url, false).map(drop).map_err(Failure::from)
}

fn print(removed: &Removed, args: &GcArgs) -> Result<(), Failure> {
    let mut out = Output::open();
    if args.json {
        out.line(&json(removed)?)?;
    } else {
        if !args.limits.dry_run {
            out.line(&removed.to_text())?;
        }
        if let Some(evicted) = &removed.evicted {
            out.line(&evicted.to_text(args.limits.dry_run))?;
        }
    }
    out.finish()
}
