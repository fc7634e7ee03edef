//! Conversions from and into `io::Error`.

use std::io;

use super::{Error, ErrorKind};

/// So that a closure of the caller's can use `?` on an [`io::Error`]. If that was made from an error of this crate, it is
/// that error again.
impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        match source.downcast() {
            Ok(error) => error,
            Err(source) => Self::new(ErrorKind::Io, "").with_source(source),
        }
    }
}

/// Keeps the operating system's kind, where there is one, and this error as its cause.
///
/// No kind becomes [`Interrupted`](io::ErrorKind::Interrupted), which the standard library retries.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error.kind() {
            ErrorKind::LockTimeout => io::ErrorKind::TimedOut,
            ErrorKind::Locked => io::ErrorKind::WouldBlock,
            ErrorKind::Unsupported | ErrorKind::UnsupportedIsolationLevel => io::ErrorKind::Unsupported,
            ErrorKind::InvalidKey
            | ErrorKind::InvalidHolder
            | ErrorKind::InvalidJson
            | ErrorKind::InvalidUrl
            | ErrorKind::Encode => io::ErrorKind::InvalidInput,
            ErrorKind::CorruptRecord
            | ErrorKind::CorruptLock
            | ErrorKind::CorruptStore
            | ErrorKind::KeyMismatch
            | ErrorKind::Decode => io::ErrorKind::InvalidData,
            ErrorKind::NotAStore | ErrorKind::StoreRemoved => io::ErrorKind::NotFound,
            ErrorKind::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
            ErrorKind::RecordTooLarge => io::ErrorKind::FileTooLarge,
            _ => error
                .io_kind()
                .filter(|kind| *kind != io::ErrorKind::Interrupted)
                .unwrap_or(io::ErrorKind::Other),
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Holder, Result};

    #[test]
    fn io_errors_convert_both_ways() {
        fn reads() -> Result<()> {
            Err(io::Error::from(io::ErrorKind::PermissionDenied))?;
            Ok(())
        }
        fn calls() -> io::Result<()> {
            Ok(reads()?)
        }
        let error = reads().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        let error = calls().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.into_inner().unwrap().downcast::<Error>().is_ok());
        let timeout = io::Error::from(Error::new(ErrorKind::LockTimeout, "read"));
        assert_eq!(timeout.kind(), io::ErrorKind::TimedOut);
    }

    struct Cancelled;

    impl io::Read for Cancelled {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(Error::new(ErrorKind::Cancelled, "lock").into())
        }
    }

    #[test]
    fn an_error_survives_an_io_error_that_nobody_retries() {
        let holder = Holder::named("worker").unwrap();
        let error = Error::new(ErrorKind::LockTimeout, "lock").with_holder(holder.clone());
        let outer = io::Error::from(error);
        assert_eq!(outer.kind(), io::ErrorKind::TimedOut);
        let back = Error::from(outer);
        assert!(back.is_timeout() && back.holder() == Some(&holder));

        let cancelled = io::Error::from(Error::new(ErrorKind::Cancelled, "lock"));
        assert_ne!(cancelled.kind(), io::ErrorKind::Interrupted);
        let interrupted = Error::from(io::Error::from(io::ErrorKind::Interrupted));
        assert_ne!(io::Error::from(interrupted).kind(), io::ErrorKind::Interrupted);
        let error = io::Read::read_to_end(&mut Cancelled, &mut Vec::new()).unwrap_err();
        assert_eq!(Error::from(error).kind(), ErrorKind::Cancelled);
    }
}
