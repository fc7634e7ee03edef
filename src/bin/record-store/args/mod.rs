//! Definition of the command line arguments and their help.

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

mod listing;
mod locking;
mod maintenance;
mod place;
mod progress;
mod records;
mod run;
mod transfer;
mod watch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use record_store::{Claim, LockToken, OpenMode, WriteOptions};

use crate::duration::parse as duration;
use crate::form::Form;
pub(crate) use listing::{ListArgs, Sort, StatArgs};
pub(crate) use locking::{LockArgs, RenewArgs};
pub(crate) use maintenance::{GcArgs, UnlockArgs, VerifyArgs};
pub(crate) use place::{CopyArgs, DIR, KeysArgs, RecordArgs, Selection, SelectionArgs, StoreArgs};
pub(crate) use progress::ProgressArgs;
pub(crate) use records::{GetArgs, PutArgs, RmArgs};
pub(crate) use run::RunArgs;
pub(crate) use transfer::{Existing, ExportArgs, ImportArgs};
pub(crate) use watch::WatchArgs;

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

/// Says what the holder of a lock does.
#[derive(Args)]
pub(crate) struct NoteArgs {
    /// Tells those who look at the lock what this call does [default: the name of the command]
    #[arg(long, value_name = "TEXT", value_hint = ValueHint::Other)]
    note: Option<String>,
}

impl NoteArgs {
    pub(crate) fn note(&self, command: &[OsString]) -> String {
        let name = || command.first().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.note.clone().unwrap_or_else(name)
    }
}

/// Selects how a result is stored and printed. Without an option, it is JSON.
#[derive(Args)]
pub(crate) struct FormArgs {
    /// The result is text: a JSON string in the store, and unquoted in input and output
    #[arg(long)]
    text: bool,

    /// The result is any bytes: base64 in a JSON string in the store, and unchanged in input and output
    #[arg(long, conflicts_with = "text")]
    bytes: bool,
}

impl FormArgs {
    pub(crate) fn form(&self) -> Form {
        match self {
            Self { bytes: true, .. } => Form::Bytes,
            Self { text: true, .. } => Form::Text,
            _ => Form::Json,
        }
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

/// List the locks: key, holder, start and expiry
///
/// STATE is held, expired (the lease has expired: the key is free) or abandoned (the owner process is
/// gone: the key is free). OWNER shows whether the process that acquired the lock is alive. A command
/// of `run` that outlives its runner counts as alive. UNTIL shows when the lease expires: none means
/// that the lock has no lease. HOLDER also shows, in parentheses, what the holder does, in its own words. If a lock cannot be read, an error is printed to standard error, and the
/// exit code is not 0.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store locks cache
  record-store locks cache --json | jq -r 'select(.state == \"held\") | .holder'

Each line of --json is an object with the fields
  key, holder, process_bound, token, state (\"held\", \"expired\", \"abandoned\"),
  owner_alive (true, false, or null: unknown), acquired_at,
  expires_at and remaining_seconds (null: no lease), note (null: none),
  shared, slots (null: exclusive, or any number), sharers (the other
  holders, each with the same fields), waiters (null: unknown)")]
pub(crate) struct LocksArgs {
    #[command(flatten)]
    pub(crate) store: StoreArgs,

    /// Print each lock as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a completion script for a shell
///
/// It completes subcommands, options and directories. In bash (4.4 or later), zsh and fish, it also completes keys: it
/// asks the program in the PATH, which waits for no lock and changes nothing. Replace the script when you install
/// another version of this program.
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
