//! Failures of this program: an exit code and usually a message on standard error.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use record_store::{Error, ErrorKind};

use crate::remarks::remark;
use crate::style::{printable, quoted};

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
/// The record is not as required, so nothing was written.
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
        Self::new(BAD_DATA, with_causes(format!("{what}: {error}"), error))
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
        Self::new(code, format!("cannot run {}: {error}", quoted(&command.to_string_lossy())))
    }

    /// The command's output could not be read.
    pub(crate) fn command_output(error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::FileTooLarge { BAD_DATA } else { IO };
        Self::new(code, format!("cannot read the command's output: {error}"))
    }

    /// An error of the library, its causes, and what to do on the command line, on one line.
    pub(crate) fn describe(error: &Error) -> String {
        advised(Self::problem(error), advice(error))
    }

    /// An error of the library and its causes, on one line. Leaves out the library's hint, which names
    /// methods instead of commands.
    pub(crate) fn problem(error: &Error) -> String {
        let mut line = error.to_string();
        if let Some(hint) = error.hint()
            && let Some(rest) = line.strip_suffix(hint)
        {
            line.truncate(rest.trim_end_matches("; ").len());
        }
        with_causes(line, error)
    }

    /// Termination by a signal. The exit code is that of a shell.
    pub(crate) fn signal(number: i32) -> Self {
        Self::silent(signal_code(number))
    }

    /// Adds what the user can do to the end of the message.
    pub(crate) fn advise(mut self, advice: &str) -> Self {
        self.message = self.message.map(|message| advised(message, Some(advice)));
        self
    }

    /// Replaces the exit code.
    pub(crate) fn with_code(mut self, code: u8) -> Self {
        self.code = code;
        self
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
            // Paths and texts of other programs may contain anything.
            let _ = writeln!(io::stderr(), "record-store: {}", printable(&message));
        }
        self
    }

    /// Prints the message of what is no failure, unless nothing but errors is wanted.
    pub(crate) fn remarked(self) {
        if let Some(message) = self.message {
            remark(&message);
        }
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
        let code = match error.kind() {
            ErrorKind::LockShared => LOCKED,
            _ if error.is_locked() || error.is_lock_lost() => LOCKED,
            _ if error.is_corrupt() => BAD_DATA,
            ErrorKind::Encode
            | ErrorKind::Decode
            | ErrorKind::RecordTooLarge
            | ErrorKind::NotARegularFile
            | ErrorKind::NeedsRecovery
            | ErrorKind::UnsupportedFormat => BAD_DATA,
            ErrorKind::NotAStore => NOT_FOUND,
            // The directory of the store does not exist. With a relative path, the working directory does not.
            ErrorKind::Io
                if error.operation() == "open"
                    && error.io_kind() == Some(io::ErrorKind::NotFound)
                    && error.path().is_none_or(Path::is_absolute) =>
            {
                NOT_FOUND
            }
            _ => IO,
        };
        Self::new(code, Self::describe(&error))
    }
}

/// Whether the error is about the file in the place of the key's record or lock, and not about another file of the
/// store.
pub(crate) fn concerns_file_of_key(error: &Error) -> bool {
    let extension = error.path().and_then(Path::extension);
    error.key().is_some() && extension.is_some_and(|extension| extension == "json" || extension == "lock")
}

/// The advice for the user of the command line about an error, if there is any.
fn advice(error: &Error) -> Option<&'static str> {
    let has_key = error.key().is_some();
    // Where the library advises the same as for a corrupt file, this program does, too.
    let kind = [ErrorKind::CorruptRecord, ErrorKind::CorruptLock]
        .into_iter()
        .find(|&corrupt| error.hint() == Error::new(corrupt, "").hint())
        .unwrap_or(error.kind());
    Some(match kind {
        ErrorKind::Locked => "wait for it with --wait, or release it with unlock",
        ErrorKind::LockTimeout if error.holder().is_some() => {
            "wait longer with --wait, or release it with unlock"
        }
        ErrorKind::LockTimeout => "wait longer with --wait",
        ErrorKind::LockLost | ErrorKind::StoreRemoved => "run the command again",
        ErrorKind::LockShared => "acquire it without --shared and --slots",
        ErrorKind::CorruptRecord if has_key => "replace the record with put, or remove it with rm",
        ErrorKind::CorruptLock if has_key => {
            "if no process is at work on this key, remove the file with unlock --force"
        }
        // The file name is a hash, and only the file contained the key.
        ErrorKind::CorruptRecord => "move the file out of the store's directory",
        ErrorKind::CorruptLock => "if no process is at work on the store, remove the file",
        // Only --text requests a type.
        ErrorKind::Decode => "leave out --text",
        // The limit cannot be changed on the command line.
        ErrorKind::RecordTooLarge => return None,
        ErrorKind::NotAStore if error.detail().is_some() => {
            "choose another directory, or add --adopt to keep records beside other files"
        }
        ErrorKind::NotAStore => "create a store with put, run or import",
        ErrorKind::NeedsRecovery => "recover it with gc",
        ErrorKind::ReadOnly => NOT_WRITABLE,
        ErrorKind::Io => match error.io_kind()? {
            io::ErrorKind::PermissionDenied => {
                "check the owner and the permissions: a change needs write permission for all files of the store"
            }
            io::ErrorKind::ReadOnlyFilesystem => NOT_WRITABLE,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space on the disk",
            _ => return None,
        },
        // The other hints name no methods.
        _ => return error.hint(),
    })
}

const NOT_WRITABLE: &str = "use get, ls, locks, export, verify and watch: they need no write permission";

fn advised(mut message: String, advice: Option<&str>) -> String {
    if let Some(advice) = advice {
        message.push_str("; ");
        message.push_str(advice);
    }
    message
}

/// Adds the causes of `error` to its message.
fn with_causes(mut message: String, error: &dyn StdError) -> String {
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a `String` cannot fail.
        let _ = write!(message, ": {error}");
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use record_store::{Holder, Key};

    use super::*;

    fn error(kind: ErrorKind) -> Error {
        Error::new(kind, "write").with_key(&Key::new("k").unwrap()).with_path("/records/k.json")
    }

    fn io_error(kind: io::ErrorKind) -> Error {
        error(ErrorKind::Io).with_detail("open the record").with_source(io::Error::from(kind))
    }

    #[test]
    fn the_advice_comes_after_the_causes_and_names_commands() {
        let corrupt = error(ErrorKind::CorruptLock).with_detail("a bad file").with_source("the cause");
        assert_eq!(
            Failure::describe(&corrupt),
            "write \"k\": corrupt lock: a bad file (/records/k.json): the cause; \
             if no process is at work on this key, remove the file with unlock --force"
        );
        assert_eq!(
            Failure::problem(&corrupt),
            "write \"k\": corrupt lock: a bad file (/records/k.json): the cause"
        );
        assert_eq!(
            Failure::describe(&error(ErrorKind::UnsupportedFormat).with_detail("version 2")),
            "write \"k\": unsupported format: version 2 (/records/k.json); update this program"
        );
        assert_eq!(
            Failure::describe(&io_error(io::ErrorKind::TimedOut)),
            "write \"k\": cannot open the record (/records/k.json): timed out"
        );
    }

    #[test]
    fn a_hint_of_the_library_is_shown_only_if_it_names_no_method() {
        use ErrorKind as Kind;
        for kind in [
            Kind::InvalidKey,
            Kind::InvalidHolder,
            Kind::Locked,
            Kind::LockTimeout,
            Kind::Cancelled,
            Kind::LockLost,
            Kind::NotLocked,
            Kind::NotLockHolder,
            Kind::CorruptRecord,
            Kind::CorruptLock,
            Kind::CorruptStore,
            Kind::KeyMismatch,
            Kind::NotARegularFile,
            Kind::RecordTooLarge,
            Kind::Encode,
            Kind::Decode,
            Kind::Io,
            Kind::Thread,
            Kind::Hook,
            Kind::UnsupportedIsolationLevel,
            Kind::NeedsRecovery,
            Kind::UnsupportedFormat,
            Kind::UnsupportedFileSystem,
            Kind::NotAStore,
            Kind::ReadOnly,
            Kind::Unsupported,
            Kind::Other,
        ] {
            for error in [error(kind), error(kind).with_holder(Holder::current()), Error::new(kind, "read")] {
                let (advice, hint) = (advice(&error), error.hint());
                assert!(advice.is_none_or(|advice| !advice.contains('_')), "{kind:?}: {advice:?}");
                let described = Failure::describe(&error);
                assert_eq!(
                    hint.is_some_and(|hint| described.contains(hint)),
                    hint.is_some() && hint == advice,
                    "{kind:?}: {described}"
                );
                assert!(advice.is_none_or(|advice| described.ends_with(&format!("; {advice}"))));
            }
        }
    }

    #[test]
    fn a_store_that_cannot_be_written_has_advice() {
        for (kind, word) in [
            (io::ErrorKind::PermissionDenied, "write permission"),
            (io::ErrorKind::ReadOnlyFilesystem, "they need no write permission"),
            (io::ErrorKind::StorageFull, "free some space"),
        ] {
            let described = Failure::describe(&io_error(kind));
            assert!(described.contains(word), "{described}");
        }
    }

    #[test]
    fn the_exit_code_depends_on_the_kind() {
        let code = |error: Error| Failure::from(error).code;
        for (kind, expected) in [
            (ErrorKind::Locked, LOCKED),
            (ErrorKind::LockTimeout, LOCKED),
            (ErrorKind::NotLockHolder, LOCKED),
            (ErrorKind::LockLost, LOCKED),
            (ErrorKind::LockShared, LOCKED),
            (ErrorKind::CorruptRecord, BAD_DATA),
            (ErrorKind::CorruptLock, BAD_DATA),
            (ErrorKind::CorruptStore, BAD_DATA),
            (ErrorKind::KeyMismatch, BAD_DATA),
            (ErrorKind::NotARegularFile, BAD_DATA),
            (ErrorKind::RecordTooLarge, BAD_DATA),
            (ErrorKind::Decode, BAD_DATA),
            (ErrorKind::NeedsRecovery, BAD_DATA),
            (ErrorKind::UnsupportedFormat, BAD_DATA),
            (ErrorKind::NotAStore, NOT_FOUND),
            (ErrorKind::UnsupportedFileSystem, IO),
            (ErrorKind::Thread, IO),
        ] {
            assert_eq!(code(error(kind)), expected, "{kind:?}");
        }
        assert_eq!(code(io_error(io::ErrorKind::NotFound)), IO);
        let missing = Error::new(ErrorKind::Io, "open").with_source(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(code(missing), NOT_FOUND);
    }
}
