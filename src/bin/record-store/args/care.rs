//! `unlock` and `verify`: for when something went wrong.

use clap::Args;

use super::Record;

/// Take a lock away from its holder
///
/// Shows who holds the key, since when, until when, and whether the process that took the lock is
/// alive, and asks first. The holder is not told: it may still be at work, but what it writes under
/// this lock from now on is refused. Exactly the lock that was shown is taken away: if another has
/// taken the key meanwhile, that lock stays, and the exit code is 75.
///
/// No lock of a dead process needs this, unless its holder was named by the program: then the lock
/// stays until it is released, or its lease runs out. A lock file that cannot be understood is
/// removed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store unlock cache report
  record-store locks cache --json | jq -r 'select(.owner_alive == false) | .key' |
    while read -r key; do record-store unlock cache \"$key\" --force; done")]
pub(crate) struct UnlockArgs {
    #[command(flatten)]
    pub(crate) record: Record,

    /// Do not ask. Needed where standard input or output is no terminal
    #[arg(long)]
    pub(crate) force: bool,
}
