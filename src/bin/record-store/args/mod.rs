//! Definition of the command line arguments and their help.

mod listing;
mod locking;
mod maintenance;
mod place;
mod progress;
mod transfer;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use record_store::{Claim, LockToken, OpenMode, WriteOptions};

use crate::duration::parse as duration;
pub(crate) use listing::{ListArgs, Sort, StatArgs};
pub(crate) use locking::{LockArgs, RenewArgs};
pub(crate) use maintenance::{GcArgs, UnlockArgs, VerifyArgs};
pub(crate) use place::{CopyArgs, RecordArgs, StoreArgs};
pub(crate) use progress::ProgressArgs;
pub(crate) use transfer::{Existing, ExportArgs, ImportArgs};
pub(crate) use watch::WatchArgs;

/// A macro, because `concat!` accepts literals but not constants.
macro_rules! exit_codes {
    () => {
        "\
Exit codes:
  0      success
  1      no such record or lock, or no store in DIR
  2      invalid usage
  65     invalid JSON or text, or a corrupt file in the store
  73     nothing written: put --if-absent: there is a record; put --if-version: it has
         another version; import: a key already has a record
  74     I/O error
  75     still locked after --wait, or the lock was lost; lock: see --conflict-exit-code
  124    run, lock: the command took longer than --hold
  126    run, lock: the command could not be executed
  127    run, lock: the command was not found
  128+n  run, lock: terminated by signal n
  other  run, lock: the exit code of the command"
    };
}

/// JSON records and crash-safe locks in one directory, shared by the processes of one host.
///
/// A record is a key and a JSON result. `run` computes a result once, even if several processes
/// request it concurrently. `lock` runs a command while no other one runs under the same lock. The other
/// subcommands read, change and list records and locks.
///
/// If the store is always the same, set `RECORD_STORE_DIR` to its directory or URL and leave out DIR. The
/// variable never changes the meaning of a command line that names a store: `get cache report` reads the
/// record "report" of "cache", whatever the variable says, and `get report` that of the variable's store.
///
/// A command that waits for another holder's lock for more than a second says so on standard error: whom it
/// waits for, and since when that holder has the lock. --quiet and --no-progress switch that off.
#[derive(Parser)]
#[command(
    name = "record-store",
    version,
    after_long_help = concat!(
        "Examples:
  record-store run cache weather -- curl -s https://example.org/weather.json
  record-store get cache weather
  record-store lock cache deploy -- ./deploy.sh
  record-store locks cache

A length of time is a number and a unit: ms, s, m (minutes), h, d or w, as in 90s or '1h 30m'.

",
        exit_codes!()
    )
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) progress: ProgressArgs,

    #[command(subcommand)]
    pub(crate) task: Task,
}

#[derive(Subcommand)]
pub(crate) enum Task {
    Run(RunArgs),
    Lock(LockArgs),
    Get(GetArgs),
    Put(PutArgs),
    Rm(RmArgs),
    Ls(ListArgs),
    Stat(StatArgs),
    Locks(LocksArgs),
    Renew(RenewArgs),
    Unlock(UnlockArgs),
    Export(ExportArgs),
    Import(ImportArgs),
    Verify(VerifyArgs),
    Gc(GcArgs),
    Watch(WatchArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Selects the durability of a change.
#[derive(Args)]
pub(crate) struct DurabilityArgs {
    /// Do not sync to disk: faster, but a power loss may undo the change
    #[arg(long)]
    pub(crate) relaxed: bool,
}

/// Selects how long to wait for a lock. The default is the same for all subcommands.
#[derive(Args)]
pub(crate) struct WaitArgs {
    /// Maximum time to wait for another holder's lock, such as 5s or 2m, or 0 [default: forever]
    #[arg(long, value_name = "TIME", value_parser = duration, value_hint = ValueHint::Other)]
    pub(crate) wait: Option<Duration>,
}

/// Selects the lock under which a record is read or changed.
#[derive(Args)]
pub(crate) struct TokenArgs {
    /// Act under the lock with this token, as in `RECORD_STORE_TOKEN`: fails if that lock was lost
    #[arg(long, value_name = "N", value_hint = ValueHint::Other)]
    pub(crate) token: Option<LockToken>,
}

impl TokenArgs {
    pub(crate) fn claim(&self) -> Claim {
        self.token.map_or_else(Claim::current, Claim::Delegated)
    }
}

/// Selects where a store may be created.
#[derive(Args)]
pub(crate) struct AdoptArgs {
    /// Create the store also in a directory that has other files
    ///
    /// Files whose names end in .json or .lock are then in the places of records and locks. A change of
    /// such a key moves the file to .store/damaged and says so.
    #[arg(long)]
    pub(crate) adopt: bool,
}

impl AdoptArgs {
    pub(crate) fn mode(&self) -> OpenMode {
        if self.adopt { OpenMode::Adopt } else { OpenMode::Create }
    }
}

/// Selects when a stored record expires.
#[derive(Args)]
pub(crate) struct ExpiryArgs {
    /// The record expires after this time, such as 90s or 1day [default: never]
    #[arg(long, value_name = "TIME", value_parser = duration, value_hint = ValueHint::Other)]
    pub(crate) ttl: Option<Duration>,
}

impl ExpiryArgs {
    pub(crate) fn options(&self) -> WriteOptions {
        WriteOptions::new().time_to_live(self.ttl)
    }
}

/// Print the stored result, or run a command once to compute it
///
/// If a result is stored, this prints it immediately, without a lock. Otherwise this acquires the
/// key's lock, runs the command, stores its standard output, which must be one JSON value, and prints
/// it. Concurrent `run` calls for the same key wait and print the same result. If the command fails,
/// nothing is stored, this program exits with the command's exit code, and the next waiter runs its own
/// command.
///
/// This prints the command's output in any case. If the output cannot be stored, because the command
/// fails, is terminated or does not print JSON, or because the disk is full or the lock is lost, a
/// message on standard error says why, and the exit code is not 0.
///
/// As in $(…), the output is complete when no process has it open for writing any more. A background
/// process that the command starts keeps the key locked until it closes its standard output.
///
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT terminate the command: its process group gets SIGTERM, and
/// after 5 seconds, or at a second signal, SIGKILL. Then the output is printed, also if the signal
/// arrives while it is printed already: for at most 5 seconds, because the reader may have stopped,
/// and until the next signal. A signal that was ignored when this program
/// started (nohup) stays ignored. If this program itself is killed with SIGKILL, the key stays locked
/// until the command and its descendants have ended, and their output is lost. They hold the lock
/// through an inherited file descriptor, with a number of 1000 or above if the limit of open files
/// allows it. A program that closes all file descriptors it does not know releases the lock early.
///
/// The command finds the store, the key and the token of the lock in `RECORD_STORE_DIR` (an absolute path; a
/// URL without its password), `RECORD_STORE_KEY` and `RECORD_STORE_TOKEN`. It must not request the same key
/// without --token: it would wait for its own lock, which is a deadlock.
#[derive(Args)]
#[command(override_usage = "record-store run [OPTIONS] [DIR] <KEY> -- <CMD>...")]
#[command(after_long_help = concat!(
    "Examples:
  # Two concurrent shells: one runs the command, both print the result.
  record-store run cache primes -- ./primes --up-to 1000000

  # Wait at most 30 seconds for the lock. Let the command run at most 5 minutes.
  record-store run cache report --wait 30s --hold 5m -- ./report.sh

  # Compute again when the result is one hour old.
  record-store run cache rates --ttl 1h -- curl -s https://example.org/rates.json

  # Text instead of JSON. Always compute again.
  record-store run cache host --text --refresh -- uname -n

  # The store only saves time: without it, run the command all the same.
  record-store run /var/cache/build tools --run-anyway -- ./list-tools.sh

",
    exit_codes!()
))]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// Terminate the command after this time [default: never]
    ///
    /// This is not a lease on the lock: when a lease expires, the key becomes free while the command
    /// still runs. With --hold, the command is terminated before the key becomes free.
    #[arg(long, value_name = "TIME", value_parser = duration, value_hint = ValueHint::Other)]
    pub(crate) hold: Option<Duration>,

    /// Run the command even if a result is stored
    #[arg(long)]
    pub(crate) refresh: bool,

    /// The command prints text: store it as a JSON string, and print it unquoted
    #[arg(long)]
    pub(crate) text: bool,

    /// If the store cannot be used, run the command without it
    ///
    /// For example in a container whose file system is read-only or full. The command then runs without a
    /// lock, perhaps several times at once, its output is not stored, and a warning on standard error
    /// says so. A store that cannot be used is then no error: the exit code is that of the command.
    /// Without this option, the command does not run. A lock of another holder is waited for in any case.
    /// A file in the place of the lock that is none is an error in any case: unlock moves it aside.
    #[arg(long)]
    pub(crate) run_anyway: bool,

    /// If the stored result is damaged, fail instead of running the command again
    ///
    /// Without this option, the command runs as if no result were stored. The file is kept in
    /// .store/damaged, and a warning on standard error says so. The same applies to a file in the place of
    /// the record that is none, such as the record of another key or a link.
    #[arg(long)]
    pub(crate) fail_if_damaged: bool,

    #[command(flatten)]
    pub(crate) adopt: AdoptArgs,

    #[command(flatten)]
    pub(crate) expiry: ExpiryArgs,

    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Print a record's result
///
/// Waits while another holder has the key's lock. Changes nothing in the store.
#[derive(Args)]
#[command(override_usage = "record-store get [OPTIONS] [DIR] <KEY>")]
#[command(after_help = "\
Examples:
  record-store get cache report | jq .total
  record-store get cache report --json | jq .version
  record-store get cache host --text
  record-store get cache report --wait 0s || echo 'not stored, or locked'")]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// The result is a JSON string: print it unquoted
    #[arg(long)]
    pub(crate) text: bool,

    /// Print one object with the fields key, version, `expires_at` (left out: never) and result
    #[arg(long, conflicts_with = "text")]
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
  uname -n | record-store put cache host --text")]
pub(crate) struct PutArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// Standard input is text: store it as a JSON string
    #[arg(long)]
    pub(crate) text: bool,

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

/// Remove a record
///
/// Waits while another holder has the key's lock.
///
/// If another process is stopped in the middle of an operation on the key, this fails after 5 seconds,
/// or after --wait if that is longer.
#[derive(Args)]
#[command(override_usage = "record-store rm [OPTIONS] [DIR] <KEY>")]
#[command(after_help = "\
Examples:
  record-store rm cache report
  record-store rm cache report || echo 'no such record'")]
pub(crate) struct RmArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    #[command(flatten)]
    pub(crate) token: TokenArgs,

    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,
}

/// List the locks: key, holder, start and expiry
///
/// STATE is held, expired (the lease has expired: the key is free) or abandoned (the owner process is
/// gone: the key is free). OWNER shows whether the process that acquired the lock is alive. A command
/// of `run` that outlives its runner counts as alive. UNTIL shows when the lease expires: none means
/// that the lock has no lease. If a lock cannot be read, an error is printed to standard error, and the
/// exit code is not 0.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store locks cache
  record-store locks cache --json | jq -r 'select(.state == \"held\") | .holder'

Each line of --json is an object with the fields
  key, holder, process_bound, token, state (\"held\", \"expired\", \"abandoned\"),
  owner_alive (true, false, or null: unknown), acquired_at,
  expires_at and remaining_seconds (null: no lease)")]
pub(crate) struct LocksArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Print each lock as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store completions bash > ~/.local/share/bash-completion/completions/record-store
  record-store completions zsh > ~/.zfunc/_record-store
  record-store completions fish > ~/.config/fish/completions/record-store.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell that will run the script
    pub(crate) shell: clap_complete::Shell,
}

/// Write the manual pages
///
/// Writes one page for this program and one for each subcommand into DIR, such as record-store.1 and
/// record-store-run.1. Creates DIR if there is none, and replaces the pages that are there.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store man ~/.local/share/man/man1
  man record-store-run")]
pub(crate) struct ManArgs {
    /// The directory to write to
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) dir: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_argument_definitions_are_valid() {
        super::Cli::command().debug_assert();
    }
}
