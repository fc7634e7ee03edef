//! Arguments of `export` and `import`, which copy a store to and from one file.

use clap::{Args, ValueEnum};

use super::{AdoptArgs, CopyArgs, DurabilityArgs, WaitArgs};

/// Write all records as JSON Lines
///
/// Each line is an object with the fields key and result. The order is not defined. `import` reads
/// this format. A line feed between the values of a result becomes a space; nothing else in a result
/// changes. Times to live are not exported: imported records never expire.
///
/// While another holder has the lock of a record, this waits, and then writes what that holder
/// committed. The records are read one by one: the export is not a snapshot of the whole store. FILE
/// is replaced atomically at the end: an incomplete export never appears under its name.
///
/// If a record cannot be read, the export stops, and FILE is unchanged. With --keep-going, the error
/// is reported, the record is skipped, and the exit code is that of the first such record. A file that
/// is no record of its key at all, such as a copy named "k 2.json" or a package.json, is skipped with
/// a warning, and is no error.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store export cache backup.jsonl
  record-store export cache | sort | zstd > backup.jsonl.zst
  record-store export cache --wait 0s --keep-going > all-but-the-locked.jsonl")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) copy: CopyArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// Skip records that cannot be read
    #[arg(long)]
    pub(crate) keep_going: bool,
}

/// Store records from JSON Lines
///
/// Each line is an object with the fields key and result, as `export` writes them. Other fields and
/// empty lines are ignored. Creates the store if there is none.
///
/// Each record is stored under its lock. This waits while another holder has that lock. The first
/// line that cannot be stored stops the import and is reported; the lines before it are stored. With
/// --keep-going, every such line is reported, the other lines are stored, and the exit code is that
/// of the first failed line.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store import cache backup.jsonl
  record-store import cache backup.jsonl --existing overwrite --wait 10s
  record-store export cache | record-store import copy")]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    pub(crate) copy: CopyArgs,

    /// How to treat keys that already have a record
    #[arg(long, value_enum, default_value_t, value_name = "ACTION")]
    pub(crate) existing: Existing,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// Continue after a line that cannot be stored
    #[arg(long)]
    pub(crate) keep_going: bool,

    #[command(flatten)]
    pub(crate) adopt: AdoptArgs,

    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
}

/// The treatment of keys that already have a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Existing {
    /// Reject the line
    #[default]
    Fail,
    /// Keep the stored record
    Skip,
    /// Replace the stored record
    Overwrite,
}
