//! Failures of this program: an exit code and usually a message on standard error.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use record_store::Error;

/// The reason why this program exits with a code other than 0. A closed output pipe is also a
/// `Failure`, with code 0: it ends the program early.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// `None` if a message would add nothing: the user ended the program, or the reason is already
    /// printed, by the command or by this program.
    message: Option<String>,
}

pub(crate) const NOT_FOUND: u8 = 1;
/// clap exits with the same code.
pub(crate) const USAGE: u8 = 2;
pub(crate) const BAD_DATA: u8 = 65;
/// `import` found a key that already has a record.
pub(crate) const EXISTS: u8 = 73;
const IO: u8 = 74;
pub(crate) const LOCKED: u8 = 75;
pub(crate) const HOLD_EXCEEDED: u8 = 124;
const CANNOT_EXECUTE: u8 = 126;
const COMMAND_NOT_FOUND: u8 = 127;

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: Some(message.into()) }
    }

    /// A failure that prints no message.
    pub(crate) fn silent(code: u8) -> Self {
        Self { code, message: None }
    }

    /// Data with an invalid format.
    pub(crate) fn bad_data(what: &str, error: &dyn StdError) -> Self {
        Self::new(BAD_DATA, format!("{what}: {}", chain(error)))
    }

    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        Self::new(IO, format!("{what}: {error}"))
    }

    /// A failed write to standard output. A closed pipe is not an error: the reader may stop at any
    /// time.
    pub(crate) fn stdout(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(0);
        }
        Self::io("cannot write to standard output", error)
    }

    /// The command could not be started. The exit codes are those of a shell.
    pub(crate) fn spawn(command: &std::ffi::OsStr, error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::NotFound { COMMAND_NOT_FOUND } else { CANNOT_EXECUTE };
        Self::new(code, format!("cannot run {}: {error}", command.display()))
    }

    /// The command's output could not be read.
    pub(crate) fn command_output(error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::FileTooLarge { BAD_DATA } else { IO };
        Self::new(code, format!("cannot read the command's output: {error}"))
    }

    /// An error and its causes, on one line.
    pub(crate) fn chain(error: &Error) -> String {
        chain(error)
    }

    /// Termination by a signal. The exit code is that of a shell.
    pub(crate) fn signal(number: i32) -> Self {
        Self::silent(signal_code(number))
    }

    /// Adds the position of the failure to the message.
    pub(crate) fn at(mut self, position: &str) -> Self {
        self.message = self.message.map(|message| format!("{position}: {message}"));
        self
    }

    /// Prints the message immediately and keeps only the exit code. Ignores write errors, because
    /// standard error may be closed.
    pub(crate) fn printed(mut self) -> Self {
        if let Some(message) = self.message.take() {
            let _ = writeln!(io::stderr(), "record-store: {message}");
        }
        self
    }

    /// Prints the message, unless it is already printed, and returns the exit code.
    pub(crate) fn report(self) -> ExitCode {
        ExitCode::from(self.printed().code)
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
            // A read-only open of a directory that does not exist.
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
