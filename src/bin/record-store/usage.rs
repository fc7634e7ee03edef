//! Help, version, and errors in the usage.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};

use crate::failure::{Failure, USAGE};
use crate::names::usual;
use crate::style::{printable, shortened};

/// Prints the message of clap and returns the exit code.
///
/// clap itself ignores it if standard output cannot be written, and repeats arguments whole and unescaped.
pub(crate) fn print(mut message: clap::Error) -> ExitCode {
    if message.use_stderr() {
        suggest(&mut message);
        make_printable(&mut message);
        let _ = message.print();
        return ExitCode::from(USAGE);
    }
    match message.print().and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::stdout(&error).report(),
    }
}

/// Suggests the subcommand for what other programs call differently. Names that look alike do something else: `set` is
/// not `get`.
fn suggest(message: &mut clap::Error) {
    let Some(ContextValue::String(name)) = message.get(ContextKind::InvalidSubcommand) else { return };
    let Some((task, what)) = usual(name) else { return };
    message.remove(ContextKind::SuggestedSubcommand);
    let tip = StyledStr::from(format!("to {what}, use '{task}'"));
    message.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
}

/// Escapes and shortens the argument that the message repeats.
fn make_printable(message: &mut clap::Error) {
    for kind in [ContextKind::InvalidValue, ContextKind::InvalidArg, ContextKind::InvalidSubcommand] {
        let Some(ContextValue::String(text)) = message.get(kind) else { continue };
        let shown = shortened(&printable(text)).into_owned();
        if shown != *text {
            message.insert(kind, ContextValue::String(shown));
            // The suggestions repeat it, too.
            message.remove(ContextKind::Suggested);
        }
    }
}
