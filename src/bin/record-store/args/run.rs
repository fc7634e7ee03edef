//! Arguments of `run`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueHint};
use record_store::{UpdateOptions, WriteOptions};

use super::{AdoptArgs, DurabilityArgs, ExpiryArgs, FormArgs, NoteArgs, RecordArgs, WaitArgs, duration};

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
/// without --token: it would wait for its own lock. This program recognizes such a call and refuses it.
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

  # The same, but nobody waits for curl if the result is less than a day old.
  record-store run cache rates --ttl 1h --stale 23h -- curl -s https://example.org/rates.json

  # Text instead of JSON. Always compute again.
  record-store run cache host --text --refresh -- uname -n

  # A file of any bytes. Show what the command prints while it runs.
  record-store run cache logo --bytes -- convert logo.svg png:-
  record-store run cache report --text --tee -- ./report.sh

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

    #[command(flatten)]
    pub(crate) form: FormArgs,

    /// Also print the command's output while it runs
    ///
    /// Without this option, it is printed when the command has ended. The callers that wait for the result print
    /// it then, in any case. The command's standard error is never captured.
    #[arg(long)]
    pub(crate) tee: bool,

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
    pub(crate) note: NoteArgs,

    #[command(flatten)]
    pub(crate) adopt: AdoptArgs,

    #[command(flatten)]
    pub(crate) expiry: ExpiryArgs,

    /// After the time of --ttl, the result stays for this much longer, while one call computes the next one
    ///
    /// In this time the result is stale. The first call runs its command. Until the next result is stored, the other
    /// calls print the stale one immediately, instead of waiting. If the command fails, the stale result stays, and
    /// the next call runs its own command. All calls for a key need the same --ttl and --stale.
    #[arg(long, value_name = "TIME", value_parser = duration, value_hint = ValueHint::Other)]
    #[arg(requires = "ttl", conflicts_with_all = ["refresh", "refresh_ttl"])]
    stale: Option<Duration>,

    /// A stored result also expires after the time of --ttl from now on
    ///
    /// Without this option, --ttl applies only to a result that this call computes. If the stored one has no time
    /// to live, a message on standard error says so.
    #[arg(long, requires = "ttl")]
    pub(crate) refresh_ttl: bool,

    #[command(flatten)]
    pub(crate) durability: DurabilityArgs,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

impl RunArgs {
    /// How long a result is stale after its time to live.
    pub(crate) fn stale_for(&self) -> Option<Duration> {
        // The library limits it.
        UpdateOptions::new().stale_for(self.stale).get_stale_for()
    }

    pub(crate) fn write_options(&self) -> WriteOptions {
        let time_to_live =
            self.expiry.ttl.map(|time| time.saturating_add(self.stale_for().unwrap_or_default()));
        WriteOptions::new().time_to_live(time_to_live)
    }
}
