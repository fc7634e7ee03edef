//! Arguments of `lock` and `renew`, which are about locks and no records.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, ValueHint, value_parser};
use record_store::LockToken;

use super::{AdoptArgs, NoteArgs, RecordArgs, WaitArgs, duration};

/// Run a command under a key's lock
///
/// Waits for the lock, runs the command, and releases the lock when the command has exited. Nothing is stored.
/// The command has this program's standard input, output and error: any bytes pass. This program exits with
/// the exit code of the command.
///
/// Meanwhile, `locks` shows who holds the lock and since when, `unlock` releases it, and `run`, `put` and
/// `rm` of the same key wait. If the lock was lost before the command has exited, this program says so on
/// standard error, and does not exit with 0.
///
/// With --shared, all commands that ask for that run at the same time, and none that does not: readers and a
/// writer. With --slots, so many. Nobody changes the record meanwhile. Commands of either kind are served in the
/// order in which they came.
///
/// SIGINT, SIGTERM, SIGHUP and SIGQUIT terminate the command: its process group gets SIGTERM, and
/// after 5 seconds, or at a second signal, SIGKILL. If standard input is a terminal, the command shares it and
/// the process group of this program: then Ctrl-C, Ctrl-\ and Ctrl-Z act on the command as if this program were
/// not there, and the other signals terminate the command but not its descendants. If this program itself is
/// killed with SIGKILL, the key stays locked until the command and its descendants have ended.
///
/// The command finds the store, the key and the token of the lock in `RECORD_STORE_DIR` (an absolute path; a
/// URL without its password), `RECORD_STORE_KEY` and `RECORD_STORE_TOKEN`. It reads and changes the record of
/// the key with --token: without it, it would wait for its own lock, which is a deadlock.
#[derive(Args)]
#[command(override_usage = "record-store lock [OPTIONS] [DIR] <KEY> -- <CMD>...")]
#[command(after_help = "\
Examples:
  # At most one of these runs at any time, on this host.
  record-store lock /var/lib/jobs backup -- ./backup.sh

  # From cron: skip this run if the last one has not ended. 0 is no failure.
  record-store lock /var/lib/jobs sync --wait 0 --conflict-exit-code 0 -- ./sync.sh

  # At most four downloads at a time, on this host.
  record-store lock /var/lib/jobs downloads --slots 4 -- curl -O \"$url\"

  # Change the record under the lock. Fails if the lock was lost.
  record-store lock cache report -- sh -c '
    ./report.sh | record-store put \"$RECORD_STORE_KEY\" --token \"$RECORD_STORE_TOKEN\"'")]
pub(crate) struct LockArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    #[command(flatten)]
    pub(crate) wait: WaitArgs,

    /// Share the lock with all others that share it
    #[arg(long)]
    pub(crate) shared: bool,

    /// Share the lock with so many commands, this one included
    #[arg(long, value_name = "N", conflicts_with = "shared", value_parser = value_parser!(u32).range(1..), value_hint = ValueHint::Other)]
    pub(crate) slots: Option<u32>,

    /// Terminate the command after this time [default: never]
    ///
    /// As for `run`, this is not a lease on the lock: the command is terminated before the key becomes free.
    #[arg(long, value_name = "TIME", value_parser = duration, value_hint = ValueHint::Other)]
    pub(crate) hold: Option<Duration>,

    /// The exit code if the lock cannot be acquired within --wait
    #[arg(long, value_name = "N", default_value = "75", value_hint = ValueHint::Other)]
    pub(crate) conflict_exit_code: u8,

    #[command(flatten)]
    pub(crate) note: NoteArgs,

    #[command(flatten)]
    pub(crate) adopt: AdoptArgs,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(crate) command: Vec<OsString>,
}

/// Restart the lease of a lock
///
/// The lease ends --hold from now, or never. A script that sets a short lease again and again keeps its lock as
/// long as it makes progress, and loses it if it hangs. Only the lock with exactly this token is renewed: if it
/// was lost, the exit code is 75.
///
/// If another process is stopped in the middle of an operation on the key, this fails after 5 seconds.
#[derive(Args)]
#[command(override_usage = "record-store renew [OPTIONS] --token <N> [DIR] <KEY>")]
#[command(after_help = "\
Examples:
  record-store lock cache report -- sh -c '
    for part in 1 2 3; do
      record-store renew \"$RECORD_STORE_KEY\" --token \"$RECORD_STORE_TOKEN\" --hold 10m || exit
      ./part.sh $part
    done'")]
pub(crate) struct RenewArgs {
    #[command(flatten)]
    pub(crate) record: RecordArgs,

    /// The token of the lock, as in `RECORD_STORE_TOKEN`
    #[arg(long, value_name = "N", value_hint = ValueHint::Other)]
    pub(crate) token: LockToken,

    /// The new lease: after this time, the key is free for others [default: no lease]
    #[arg(long, value_name = "TIME", value_parser = duration, value_hint = ValueHint::Other)]
    pub(crate) hold: Option<Duration>,
}
