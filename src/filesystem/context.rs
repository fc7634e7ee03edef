//! The running operation, for errors to name.

use std::io;
use std::path::Path;

use crate::{Error, ErrorKind, Key};

/// The running operation, and the key that it concerns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) operation: &'static str,
    pub(crate) key: Option<&'a Key>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(operation: &'static str, key: &'a Key) -> Self {
        Self { operation, key: Some(key) }
    }

    /// An operation on the store as a whole.
    pub(crate) const fn whole(operation: &'static str) -> Self {
        Self { operation, key: None }
    }

    pub(crate) fn error(self, kind: ErrorKind) -> Error {
        let error = Error::new(kind, self.operation);
        match self.key {
            Some(key) => error.with_key(key),
            None => error,
        }
    }

    /// A failed system call. `action` is the step that failed, as a verb.
    pub(crate) fn io(self, action: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        self.error(ErrorKind::Io).with_detail(action).with_path(path).with_source(source.into())
    }
}
