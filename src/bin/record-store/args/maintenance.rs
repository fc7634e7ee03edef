//! Arguments of `unlock`, `verify` and `gc`, which maintain a store.

use std::time::Duration;

use clap::{Args, ValueHint};

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

/// Check every file of the store
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
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store verify cache
  record-store verify cache --json | jq -r 'select(.kind == \"damage\") | .path'

Each line of --json but the last is an object with the fields
  path, kind (\"damage\", \"foreign\", \"kept\", \"leftover\"), problem, cause (null: no further details);
the last one has the fields files, records, locks, damage, foreign, kept, leftover and unchecked")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Print each finding, and the summary, as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove expired records, stale locks and leftovers
///
/// Removes expired records, lock files without a live lock, and files that dead processes left
/// behind. Live records and live locks are not touched, so this is safe while other processes use
/// the store. Keys on which a process is stopped in the middle of an operation are left for the next
/// run. Prints the number of records and locks that were removed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store gc cache
  record-store gc cache --json | jq .records")]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Also delete the files that changes have moved aside, because they were in the place of a record or a
    /// lock and were neither. `verify` lists them. A file that this very run has moved aside stays
    #[arg(long)]
    pub(crate) damaged: bool,

    /// Print a JSON object with the fields records and locks, and damaged with --damaged
    #[arg(long)]
    pub(crate) json: bool,
}
