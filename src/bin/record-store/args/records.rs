//! Arguments of `get`, `put` and `rm`.

use clap::{Args, ValueHint};

use super::{
    AdoptArgs, DurabilityArgs, ExpiryArgs, FormArgs, KeysArgs, RecordArgs, SelectionArgs, TokenArgs, WaitArgs,
};

/// Print the results of records
///
/// Waits while another holder has a key's lock. Changes nothing in the store. The results are printed in the order
/// of the keys. If a key has no record, the others are printed, and the exit code is 1.
#[derive(Args)]
#[command(override_usage = "record-store get [OPTIONS] [DIR] <KEY>\n       \
    record-store get [OPTIONS] --dir <DIR> <KEY>...\n       \
    record-store get [OPTIONS] <DIR> <KEY>...")]
#[command(after_help = "\
Examples:
  record-store get cache report | jq .total
  record-store get cache report --json | jq .version
  record-store get cache host --text
  record-store get cache logo --bytes > logo.png
  record-store get --dir cache report/2025 report/2026
  record-store get cache report --wait 0s || echo 'not stored, or locked'")]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) records: KeysArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    #[command(flatten)]
    pub(crate) form: FormArgs,

    /// Print one object with the fields key, version, `expires_at` (left out: never) and result
    #[arg(long, conflicts_with_all = ["text", "bytes"])]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) token: TokenArgs,
}

/// Store standard input as a record's result
///
/// Waits while another holder has the key's lock. Creates the store if there is none.
///
/// With --if-absent or --if-version, the comparison and the change are one atomic step. If the record is not
/// as required, nothing is written, and the exit code is 73.
///
/// If another process is stopped in the middle of an operation on the key, this fails after 5 seconds,
/// or after --wait if that is longer.
#[derive(Args)]
#[command(override_usage = "record-store put [OPTIONS] [DIR] <KEY>")]
#[command(after_help = "\
Examples:
  # Add 1 to a counter, unless it was changed meanwhile.
  counter=$(record-store get cache hits --json)
  echo \"$counter\" | jq '.result + 1' |
    record-store put cache hits --if-version \"$(echo \"$counter\" | jq .version)\"

  echo '{\"total\": 12}' | record-store put cache report
  uname -n | record-store put cache host --text
  record-store put cache logo --bytes < logo.png")]
pub(crate) struct PutArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    #[command(flatten)]
    pub(crate) form: FormArgs,

    /// Write only if there is no record. Otherwise the exit code is 73
    #[arg(long)]
    pub(crate) if_absent: bool,

    /// Write only if the record has this version, as `get --json` prints it. Otherwise the exit code is 73
    #[arg(long, value_name = "V", conflicts_with = "if_absent", value_hint = ValueHint::Other)]
    pub(crate) if_version: Option<u64>,

    #[command(flatten)]
    pub(crate) token: TokenArgs,

    #[command(flatten)]
    pub(crate) expiry: ExpiryArgs,

    #[command(flatten)]
    pub(crate) adopt: AdoptArgs,

    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
}

/// Remove records
///
/// Waits while another holder has a key's lock. If a key has no record, the others are removed, and the exit code
/// is 1. With --prefix, it is 1 if there is no such record.
///
/// If another process is stopped in the middle of an operation on a key, this fails after 5 seconds,
/// or after --wait if that is longer.
#[derive(Args)]
#[command(override_usage = "record-store rm [OPTIONS] [DIR] <KEY>\n       \
    record-store rm [OPTIONS] --dir <DIR> <KEY>...\n       \
    record-store rm [OPTIONS] <DIR> <KEY>...\n       \
    record-store rm [OPTIONS] [DIR] --prefix <TEXT>")]
#[command(after_help = "\
Examples:
  record-store rm cache report
  record-store rm cache report || echo 'no such record'
  record-store rm --dir cache report/2025 report/2026
  record-store rm cache --prefix report/")]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) records: SelectionArgs,

    /// With --prefix: do not ask for confirmation on a terminal
    #[arg(long, requires = "prefix")]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    #[command(flatten)]
    pub(crate) token: TokenArgs,

    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
}
