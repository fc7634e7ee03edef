//! Arguments of `unlock`, `verify` and `gc`, which maintain a store.

use std::time::Duration;

use clap::{Args, ValueHint};
use record_store::EvictionPolicy;

use super::{RecordArgs, StoreArgs, duration};

/// Release another holder's lock
///
/// Shows the holder, when it acquired the lock, when the lease expires and whether the process that
/// acquired the lock is alive, and then asks for confirmation. The holder is not notified: it may
/// still be running, but its later writes with the token of this lock are rejected. Only the displayed
/// lock is released: if another holder has acquired the key in the meantime, that lock stays, and the
/// exit code is 75.
///
/// A lock of a dead process normally needs no unlock. The exception is a lock with a named holder: it
/// stays until it is released or its lease expires.
///
/// A file in the place of the lock that is none, such as a corrupt one, the lock of another key or a link, is
/// moved to .store/damaged: no process can acquire the lock while it is there. A lock that was acquired since
/// then stays. A directory is not moved, and neither is the lock of a key that differs only in case.
#[derive(Args)]
#[command(override_usage = "record-store unlock [OPTIONS] [DIR] <KEY>")]
#[command(after_help = "\
Examples:
  record-store unlock cache report
  record-store locks cache --json | jq -r 'select(.owner_alive == false) | .key' |
    while read -r key; do record-store unlock cache \"$key\" --force; done")]
pub(crate) struct UnlockArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    /// Do not ask for confirmation. Required if standard input or output is not a terminal
    #[arg(long)]
    pub(crate) force: bool,

    /// Maximum time to wait for a process that is stopped in the middle of an operation on the key
    #[arg(long, value_name = "TIME", value_hint = ValueHint::Other)]
    #[arg(value_parser = duration, default_value = "5s")]
    pub(crate) wait: Duration,
}

/// Check every file of the store, or every row on a server
///
/// Records must be complete and have the right checksum and key, lock files must be valid, and no
/// other files should exist. Prints one line for each finding and then a summary. Changes nothing,
/// never waits, and is safe while other processes use the store.
///
/// There are four kinds of findings. damage: data is lost or something does not work. foreign: a
/// file that does not belong to the store; the store ignores it. kept: a file that was in the place of
/// a record or a lock and was neither, so a change has moved it to .store/damaged; gc --damaged deletes
/// it. leftover: a file of a process that is gone; this is normal, and the store removes it later. The
/// exit code is 65 if there is damage; other findings do not change it.
///
/// On a server, each record must be in the row of its key and its result must be JSON, each lock must be valid, no
/// version or token may be greater than the last number that was given, the tables and functions must be those of
/// this version, and this role must have all rights. Nothing is ever kept aside there.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store verify cache
  record-store verify cache --json | jq -r 'select(.kind == \"damage\") | .path'

Each line of --json but the last is an object with the fields
  path (on a server: the table and the key), kind (\"damage\", \"foreign\", \"kept\", \"leftover\"),
  problem, cause (null: no further details);
the last one has the fields files, records, locks, damage, foreign, kept, leftover and unchecked;
on a server, rows and waiters in place of files")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Print each finding, and the summary, as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove expired records, stale locks and leftovers, and old records of a cache
///
/// With --max-records, --max-size or --older-than, removes the records that were written the longest time ago until the
/// store is as small as that. Records that are locked, that were written by hand or that change meanwhile are
/// kept; younger ones go in their place.
///
/// Removes expired records, lock files without a live lock, and files that dead processes left
/// behind. Live records and live locks are not touched, so this is safe while other processes use
/// the store. Keys on which a process is stopped in the middle of an operation are left for the next
/// run. Prints the number of records and locks that were removed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store gc cache
  record-store gc cache --json | jq .records
  record-store gc cache --max-size 2G --older-than 30d --dry-run

In --json, evicted is an object with the fields records, bytes, kept, records_left and bytes_left")]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Also delete the files that changes have moved aside, because they were in the place of a record or a
    /// lock and were neither. `verify` lists them. A file that this very run has moved aside stays. Not on a server,
    /// where nothing is moved aside
    #[arg(long)]
    pub(crate) damaged: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,

    /// Print a JSON object with the fields records and locks, damaged with --damaged, and evicted with a limit
    #[arg(long)]
    pub(crate) json: bool,
}

/// Selects how large the store may be.
#[derive(Args)]
pub(crate) struct LimitArgs {
    /// Keep at most this many records
    #[arg(long, value_name = "N", value_hint = ValueHint::Other)]
    max_records: Option<u64>,

    /// Keep records of at most this size, all together: bytes, or with K, M, G or T powers of 1024, such as 500M
    #[arg(long, value_name = "SIZE", value_hint = ValueHint::Other, value_parser = size)]
    max_size: Option<u64>,

    /// Keep no record that was written longer ago than this, such as 30d, or with --least-recently-read not read since
    #[arg(long, value_name = "TIME", value_hint = ValueHint::Other, value_parser = duration)]
    older_than: Option<Duration>,

    /// Remove first what was not read for the longest time, instead of what was written then. Reads count, to the minute,
    /// if they were noted by a program that has opened the store for this order; those of this program are not. Not on
    /// a server
    #[arg(long)]
    pub(crate) least_recently_read: bool,

    /// Remove nothing, and say what the limits would remove
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl LimitArgs {
    /// `None`: there is no limit.
    pub(crate) fn policy(&self) -> Option<EvictionPolicy> {
        let policy = EvictionPolicy::new()
            .max_records(self.max_records)
            .max_bytes(self.max_size)
            .older_than(self.older_than);
        let order = self.least_recently_read;
        (policy != EvictionPolicy::new()).then(|| policy.least_recently_read(order).dry_run(self.dry_run))
    }
}

/// Parses a number of bytes.
fn size(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text[number.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1_u64 << 40,
        _ => return Err("the unit is none of K, M, G and T".into()),
    };
    let count: u64 = number.parse().map_err(|_| "not a whole number of bytes, such as 500M".to_owned())?;
    count.checked_mul(unit).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_bytes_or_has_a_unit() {
        for (text, bytes) in
            [("0", 0), ("17", 17), ("1k", 1024), ("2MiB", 2 << 20), ("3G", 3 << 30), ("1T", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "1 G", "1X", "99999999T", "ä"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
