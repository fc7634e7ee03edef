//! How this program fails: with an exit code, and mostly with a line on standard error.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use record_store::Error;

/// Why this program does not end with 0, or, for a closed pipe, why it ends early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// Nothing for what the user did, or the command has said already.
    message: Option<String>,
}

pub(crate) const NOT_FOUND: u8 = 1;
/// Also clap's.
pub(crate) const USAGE: u8 = 2;
pub(crate) const BAD_DATA: u8 = 65;
/// An import met a key that has a record.
pub(crate) const EXISTS: u8 = 73;
const IO: u8 = 74;
pub(crate) const LOCKED: u8 = 75;
pub(crate) const HELD_TOO_LONG: u8 = 124;
const CANNOT_RUN: u8 = 126;
const NO_SUCH_COMMAND: u8 = 127;

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    /// A failure that needs no words.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, message: None }
    }

    /// Input or output that is not of the form it should have.
    pub(crate) fn bad_data(what: &str, error: &dyn StdError) -> Self {
        Self::new(BAD_DATA, format!("{what}: {}", chain(error)))
    }

    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        Self::new(IO, format!("{what}: {error}"))
    }

    /// Whoever reads our output may stop at any time; that is no failure.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(0);
        }
        Self::io("cannot write to standard output", error)
    }

    /// A command that could not be started, with the exit codes of a shell.
    pub(crate) fn start(command: &std::ffi::OsStr, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound { NO_SUCH_COMMAND } else { CANNOT_RUN };
        Self::new(code, format!("cannot run {}: {error}", command.display()))
    }

    /// A command's output that could not be taken.
    pub(crate) fn output(error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::FileTooLarge { BAD_DATA } else { IO };
        Self::new(code, format!("cannot take the command's output: {error}"))
    }

    /// An error and its causes, on one line.
    pub(crate) fn chain(error: &Error) -> String {
        chain(error)
    }

    /// The end by a signal, as a shell shows it.
    pub(crate) fn signal(number: i32) -> Self {
        Self::silent(signal_code(number))
    }

    /// Says where it went wrong.
    pub(crate) fn at(mut self, place: &str) -> Self {
        self.message = self.message.map(|message| format!("{place}: {message}"));
        self
    }

    /// Says what went wrong, now. A closed standard error is nothing to fail over.
    pub(crate) fn said(mut self) -> Self {
        if let Some(message) = self.message.take() {
            let _ = writeln!(io::stderr(), "record-store: {message}");
        }
        self
    }

    /// Says what went wrong, if it is not said yet.
    pub(crate) fn report(self) -> ExitCode {
        ExitCode::from(self.said().code)
    }
}

/// 128 plus the number of the signal.
pub(crate) fn signal_code(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(0).saturating_add(128)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            error if error.is_locked() || error.is_lock_lost() => LOCKED,
            error if error.is_corrupt() => BAD_DATA,
            Error::Encode { .. }
            | Error::Decode { .. }
            | Error::RecordTooLarge { .. }
            | Error::NotARegularFile { .. }
            | Error::UnsupportedFormat { .. } => BAD_DATA,
            Error::NotAStore { .. } => NOT_FOUND,
            // A read-only open of a directory that is not there.
            Error::Io { operation: "open", source, .. } if source.kind() == io::ErrorKind::NotFound => {
                NOT_FOUND
            }
            _ => IO,
        };
        Self::new(code, chain(&error))
    }
}

/// The error and its causes, on one line.
fn chain(error: &dyn StdError) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a `String` cannot fail.
        let _ = write!(line, ": {error}");
        cause = error.source();
    }
    line
}
