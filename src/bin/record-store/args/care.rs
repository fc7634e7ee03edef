//! `unlock`, `verify`, `gc` and `completions`: for those who look after a store.

use clap::Args;

use super::{Record, Store};

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

/// Check every file of the store
///
/// Records have to be whole JSON records with the right checksum and key, locks to be understood,
/// and nothing else is to lie around. Prints a line for each finding and then a summary. Changes
/// nothing, waits for nobody, and can be done while others use the store.
///
/// A finding is damage: something is lost or does not work; strange: a file that is not the store's,
/// and is left alone; or a leftover of a process that is gone, which is normal and is cleared away in
/// time. Only damage shows in the exit code, which is 65 then.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store verify cache
  record-store verify cache --json | jq -r 'select(.kind == \"damage\") | .path'

Each line of --json but the last is an object with the fields
  path, kind (\"damage\", \"strange\", \"leftover\"), problem, cause (null: there is no more to say);
the last one has the fields files, records, locks, damage, strange, leftover and unchecked")]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Print each finding, and the summary, as a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

/// Remove what counts for nothing any more
///
/// Records whose time to live is over, lock files that nobody holds, and what dead processes left
/// behind. No record and no lock that counts is touched, so this can be done while others use the
/// store. Prints how many records and locks it removed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store gc cache
  record-store gc cache --json | jq .records")]
pub(crate) struct GcArgs {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Print a JSON object with the fields records and locks
    #[arg(long)]
    pub(crate) json: bool,
}

/// Print a script that completes command lines
#[derive(Args)]
#[command(after_help = "\
Examples:
  record-store completions bash > ~/.local/share/bash-completion/completions/record-store
  record-store completions zsh > ~/.zfunc/_record-store
  record-store completions fish > ~/.config/fish/completions/record-store.fish")]
pub(crate) struct CompletionsArgs {
    /// For which shell
    pub(crate) shell: clap_complete::Shell,
}
