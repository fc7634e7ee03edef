//! What the command line takes, and its help.

mod care;
mod transfer;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use record_store::{Key, WriteOptions};

pub(crate) use care::{CompletionsArgs, GcArgs, UnlockArgs, VerifyArgs};
pub(crate) use transfer::{Existing, ExportArgs, ImportArgs};
pub(crate) use watch::WatchArgs;

/// A macro, because `concat!` takes no constants.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0      ok
  1      no such record or lock, or no store in DIR
  2      wrong usage
  65     not JSON (or not text), or a file in the store is corrupt
  73     import: a key has a record already
  74     the operating system refused
  75     locked by another, or not free in time (--wait)
  124    run: the command took longer than --hold
  126    run: the command cannot be run
  127    run: the command was not found
  128+n  run: ended by signal n
  other  run: the command's own"
    };
}

/// JSON records and crash-safe locks in one directory, shared by the processes of one host.
///
/// A record is a key and a JSON result. `run` computes a result once, however many processes ask
/// for it at the same time; the other subcommands read, change and list.
#[derive(Parser)]
#[command(
    name = "record-store",
    version,
    after_long_help = concat!(
        "Examples:
  record-store run cache weather -- curl -s https://example.org/weather.json
  record-store get cache weather
  record-store locks cache

",
        exit_codes!()
    )
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Subcommand)]
pub(crate) enum Task {
    Run(RunArgs),
    Get(GetArgs),
    Put(PutArgs),
    Rm(RmArgs),
    Ls(ListArgs),
    Locks(LocksArgs),
    Unlock(UnlockArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Verify(VerifyArgs),
    Gc(GcArgs),
    Watch(WatchArgs),
    Completions(CompletionsArgs),
}

/// Where.
#[derive(Args)]
pub(crate) struct Store {
    /// The store's directory
    pub(crate) dir: PathBuf,
}

/// Which record.
#[derive(Args)]
pub(crate) struct Record {
    #[command(flatten)]
    pub(crate) store: Store,

    /// The record's key: any text that is not empty
    #[arg(value_parser = |text: &str| Key::new(text))]
    pub(crate) key: Key,
}

/// How a change is made.
#[derive(Args)]
pub(crate) struct Change {
    /// Do not sync to disk: faster, but a power loss may take the change back
    #[arg(long)]
    pub(crate) relaxed: bool,
}

/// How long what is stored lives.
#[derive(Args)]
pub(crate) struct Life {
    /// The record is gone after this time, such as 90s or 1day [default: never]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) ttl: Option<Duration>,
}

impl Life {
    pub(crate) fn options(&self) -> WriteOptions {
        self.ttl.map_or_else(WriteOptions::new, |ttl| WriteOptions::new().time_to_live(ttl))
    }
}

/// Print the stored result, or run a command once to make it
///
/// A stored result is printed at once, without a lock. Otherwise this takes the key's lock, runs
/// the command, stores its standard output, which must be one JSON value, and prints it. Whoever
/// asks for the same key meanwhile waits and prints the same. If the command fails, nothing is
/// stored, its output goes to standard error, its exit code is passed on, and the next in line runs
/// its own command.
///
/// As in $(…), the output is complete when nobody has it open any more: a process that the command
/// leaves in the background holds the key until it closes its standard output.
///
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT end the command: its process group gets SIGTERM, and after 5
/// seconds, or at a second signal, SIGKILL. A signal that was ignored from the start (nohup) stays
/// ignored. If this program itself is killed with SIGKILL, the key stays locked until the command
/// and its descendants have ended, and their output is lost. They keep the lock by a file descriptor
/// that they inherit; a program that closes what it does not know lets go of it.
///
/// The command must not ask for the same key: it would wait for itself.
#[derive(Args)]
#[command(after_long_help = concat!(
    "Examples:
  # Two shells at once: one computes, both print.
  record-store run cache primes -- ./primes --up-to 1000000

  # Give up after 30 seconds in line; let the command take at most 5 minutes.
  record-store run cache report --wait 30s --hold 5m -- ./report.sh

  # Computed anew when it is an hour old.
  record-store run cache rates --ttl 1h -- curl -s https://example.org/rates.json

  # Text instead of JSON, computed anew.
  record-store run cache host --text --refresh -- uname -n

",
    exit_codes!()
))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) record: Record,

    /// Wait no longer than this for another's lock, such as 5s or 2m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,

    /// End the command when it has taken this long [default: never]
    ///
    /// This is no lease on the lock: a lease would free the key while the command is still at
    /// work. Here the command is ended first.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) hold: Option<Duration>,

    /// Run the command even if a result is stored
    #[arg(long)]
    pub(crate) refresh: bool,

    /// The command prints text: store it as a JSON string, print it as it is
    #[arg(long)]
    pub(crate) text: bool,

    #[command(flatten)]
    pub(crate) life: Life,

    #[command(flatten)]
    pub(crate) change: Change,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Print a record's result
///
/// Waits while another holds the key's lock. Changes nothing in the store.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store get cache report | jq .total
  record-store get cache host --text
  record-store get cache report --wait 0s || echo 'not there, or being computed'")]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) record: Record,

    /// Wait no longer than this for another's lock, such as 5s or 2m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(crate) wait: Option<Duration>,

    /// The result is a JSON string: print its text as it is
    #[arg(long)]
    pub(crate) text: bool,
}

/// Store standard input as a record's result
///
/// Refused while another holds the key's lock. Makes the store if there is none.
#[derive(Args)]
#[command(after_help = "\
Examples:
  echo '{\"total\": 12}' | record-store put cache report
  uname -n | record-store put cache host --text")]
pub(crate) struct PutArgs {
    #[command(flatten)]
    pub(crate) record: Record,

    /// Standard input is text: store it as a JSON string
    #[arg(long)]
    pub(crate) text: bool,

    #[command(flatten)]
    pub(crate) life: Life,

    #[command(flatten)]
    pub(crate) change: Change,
}

/// Remove a record
///
/// Refused while another holds the key's lock.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store rm cache report
  record-store rm cache report || echo 'there was none'")]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) record: Record,

    #[command(flatten)]
    pub(crate) change: Change,
}

/// List the keys that have a record
///
/// One key a line, in no order. Control characters, line feeds among them, are escaped where
/// standard output is a terminal, and else printed as they are: use --json to tell a line feed in a
/// key from the end of the line. A record whose key cannot be told is reported on standard error,
/// and the exit code shows it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store ls cache | sort
  record-store ls cache --json | jq -r 'select(startswith(\"report/\"))'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Print each key as a JSON string
    #[arg(long)]
    pub(crate) json: bool,
}

/// List the locks: who holds what, since when, until when
///
/// STATE is held, expired (its lease ran out: the key is free) or abandoned (its owner is gone: the
/// key is free). OWNER tells whether the process that took the lock is alive. A command of `run`
/// that outlives its runner counts as alive. A lock that cannot be read is reported on standard
/// error, and the exit code shows it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store locks cache
  record-store locks cache --json | jq -r 'select(.state == \"held\") | .holder'

Each line of --json is an object with the fields
  key, holder, process_bound, token, state (\"held\", \"expired\", \"abandoned\"),
  owner_alive (true, false, or null: cannot be told), acquired_at,
  expires_at and remaining_seconds (null: held until released)")]
pub(crate) struct LocksArgs {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Print each lock as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound() {
        super::Cli::command().debug_assert();
    }
}
