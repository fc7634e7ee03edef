//! `export` and `import`: a store as one file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{Change, Store};

/// Write all records as JSON Lines
///
/// Each line is an object with the fields key and result, in no order. `import` reads them back.
/// A line feed inside a result, between its values, becomes a space; nothing else of a result changes.
/// Times to live are left out: what is imported lives for ever.
///
/// Waits while another holds the lock of a record, and writes what it committed. Each record is read
/// at a moment of its own. FILE is replaced in one step when all is written: half an export never
/// has its name.
///
/// A record that cannot be read ends the export, and FILE stays as it was. With --keep-going it is
/// reported and left out, and the exit code is that of the first such record.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store export cache backup.jsonl
  record-store export cache | sort | zstd > backup.jsonl.zst
  record-store export cache --wait 0s --keep-going > all-but-the-locked.jsonl")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Where to write to [default: standard output, as for -]
    pub(crate) file: Option<PathBuf>,

    /// Wait no longer than this for another's lock, such as 5s or 2m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,

    /// Leave out what cannot be read
    #[arg(long)]
    pub(crate) keep_going: bool,
}

/// Store records that are given as JSON Lines
///
/// Each line is an object with the fields key and result, as `export` writes them. Other fields and
/// empty lines are ignored. Makes the store if there is none.
///
/// Each record is stored under its lock, and is refused while another holds that. The first line
/// that cannot be stored ends the import and is named; what came before it is stored. With
/// --keep-going every such line is reported, the others are stored, and the exit code is that of
/// the first.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store import cache backup.jsonl
  record-store import cache backup.jsonl --existing overwrite --wait 10s
  record-store export cache | record-store import copy")]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Where to read from [default: standard input, as for -]
    pub(crate) file: Option<PathBuf>,

    /// What to do with keys that have a record
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    pub(crate) existing: Existing,

    /// Wait no longer than this for another's lock, such as 5s or 2m
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "0s")]
    pub(crate) wait: Duration,

    /// Go on after a line that cannot be stored
    #[arg(long)]
    pub(crate) keep_going: bool,

    #[command(flatten)]
    pub(crate) change: Change,
}

/// What an import does with keys that have a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Existing {
    /// Refuse the line
    #[default]
    Fail,
    /// Leave the stored record as it is
    Skip,
    /// Store the line's record instead
    Overwrite,
}
