//! What the tests share.

pub(crate) mod children;
pub(crate) mod trace;

use std::path::Path;
use std::time::Duration;

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions};

/// Far more than anything here takes, also on a busy machine: only a bug waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The size of a storm: `base`, times `RECORD_STORE_STORM`.
pub(crate) fn storm(base: u64) -> u64 {
    let factor = std::env::var("RECORD_STORE_STORM").map_or(1, |factor| factor.parse().expect("a number"));
    base * factor
}

pub(crate) fn open(dir: &Path) -> FileSystemRecordStore {
    open_with(dir, Durability::Full)
}

pub(crate) fn open_with(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).unwrap()
}

pub(crate) fn named(name: &str) -> Holder {
    Holder::named(name).unwrap()
}

/// Options of a named holder.
pub(crate) fn as_named(name: &str) -> LockOptions {
    LockOptions::new().holder(named(name))
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// The names in a directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
