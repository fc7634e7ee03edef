//! The messages on standard error that are no errors.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use crate::args::ProgressArgs;
use crate::style::printable;

static CHOSEN: OnceLock<ProgressArgs> = OnceLock::new();

/// Sets once what the command line asks for.
pub(crate) fn choose(args: ProgressArgs) {
    let _ = CHOSEN.set(args);
}

fn is_quiet() -> bool {
    CHOSEN.get().is_some_and(|args| args.quiet)
}

/// Whether progress is shown, and whom a command waits for.
pub(crate) fn shows_progress() -> bool {
    CHOSEN.get().is_none_or(|args| !args.quiet && !args.no_progress)
}

/// Whether progress can be drawn: a line that is renewed in its place.
pub(crate) fn draws_progress() -> bool {
    shows_progress() && io::stderr().is_terminal()
}

/// Prints a line, unless nothing but errors is wanted.
pub(crate) fn remark(message: &str) {
    if !is_quiet() {
        // Ignores write errors, because standard error may be closed.
        let _ = writeln!(io::stderr(), "record-store: {}", printable(message));
    }
}
