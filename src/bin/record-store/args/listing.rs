//! Arguments of `ls` and `stat`, which tell what records there are.

use clap::{Args, ValueEnum, ValueHint};

use super::{RecordArgs, StoreArgs};

/// List the keys that have a record
///
/// Prints one key per line, in no particular order. On a terminal, control characters such as line
/// feeds are escaped. Otherwise they are printed unchanged: use --json to distinguish a line feed in
/// a key from the end of a line. If the key of a record cannot be determined, an error is printed to
/// standard error, and the exit code is not 0.
///
/// With --long, prints a table: size in bytes, version, when the record was last written, how much of its time to live
/// is left (none: it does not expire), and the key.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store ls cache | sort
  record-store ls cache --json | jq -r 'select(startswith(\"report/\"))'
  record-store ls cache --long --prefix report/ --sort size

Each line of --long --json is an object with the fields
  key, size, version, modified, remaining_seconds (null: it does not expire)")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Also print size, version, time of the last write and time to live
    #[arg(long, short)]
    pub(crate) long: bool,

    /// Only keys that begin with this text
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, value_hint = ValueHint::Other)]
    pub(crate) prefix: String,

    /// Sort by key, by time (the oldest first) or by size (the smallest first)
    #[arg(long, value_name = "BY")]
    pub(crate) sort: Option<Sort>,

    /// Print each key as a JSON string, or with --long each record as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    Key,
    Time,
    Size,
}

/// Show all that is known of one key: its record and its lock
///
/// Prints one line for each fact. If there is a lock, it says who holds it. Waits for no lock. If there is no record,
/// the exit code is 1, whether there is a lock or not.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store stat cache report
  record-store stat cache report --json | jq .record.version

--json prints one object with the fields key, record (null: there is none) and lock (null: the key is free);
record has the fields of ls --long --json, and lock those of locks --json")]
pub(crate) struct StatArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
