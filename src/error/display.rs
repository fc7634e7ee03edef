//! The text of an error.

use std::fmt;

use super::{ErrorKind, Inner, Place};
use crate::{Holder, Key};

/// The text: operation, key, problem, place, and what to do.
pub(super) struct Text<'a>(pub(super) &'a Inner);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = self.0;
        let key = error.key.as_ref().map(|key| Quoted(key.as_str()));
        match (error.operation, key) {
            ("", None) => {}
            ("", Some(key)) => write!(f, "{key}: ")?,
            (operation, None) => write!(f, "{operation}: ")?,
            (operation, Some(key)) => write!(f, "{operation} {key}: ")?,
        }
        error.fmt_problem(f)?;
        match &error.place {
            Some(Place::Path(path)) => write!(f, " ({})", path.display())?,
            Some(Place::Address(address)) => write!(f, " ({address})")?,
            None => {}
        }
        error.hint().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl Inner {
    fn fmt_problem(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let detail = self.detail.as_deref().unwrap_or("unspecified");
        let holder = Named(self.holder.as_ref());
        match self.kind {
            ErrorKind::InvalidKey => write!(f, "invalid key: {detail}"),
            ErrorKind::InvalidHolder => write!(f, "invalid holder: {detail}"),
            ErrorKind::Locked => write!(f, "locked by {holder}"),
            ErrorKind::LockTimeout => {
                let waited = self.waited.unwrap_or_default();
                match &self.holder {
                    Some(_) => write!(f, "still locked by {holder} after {waited:.1?}"),
                    None => write!(
                        f,
                        "not possible within {waited:.1?}: another waiter is ahead, or a process is stopped in the \
                         middle of an operation"
                    ),
                }
            }
            ErrorKind::Cancelled => f.write_str("cancelled"),
            ErrorKind::LockLost => {
                f.write_str("the lock ")?;
                self.token.map_or(Ok(()), |token| write!(f, "with token {token} "))?;
                f.write_str("is lost")
            }
            ErrorKind::LockShared => f.write_str("the lock is shared, so it permits no change"),
            ErrorKind::NotLocked => f.write_str("not locked"),
            ErrorKind::NotLockHolder => {
                write!(f, "held by {holder}, not by {}", Named(self.claimant.as_ref()))
            }
            ErrorKind::CorruptRecord => write!(f, "corrupt record: {detail}"),
            ErrorKind::CorruptLock => write!(f, "corrupt lock: {detail}"),
            ErrorKind::CorruptStore => write!(f, "corrupt store: {detail}"),
            ErrorKind::KeyMismatch => write!(f, "the file belongs to another key: {detail}"),
            ErrorKind::NotARegularFile => write!(f, "{detail} in the place of a regular file"),
            ErrorKind::RecordTooLarge => write!(f, "record too large: {detail}"),
            ErrorKind::InvalidJson => f.write_str("not JSON"),
            ErrorKind::Encode => f.write_str("the result cannot be encoded as JSON"),
            ErrorKind::Decode => f.write_str("the result is not of the expected type"),
            ErrorKind::Io => match &self.detail {
                Some(action) => write!(f, "cannot {action}"),
                None => f.write_str("input/output error"),
            },
            ErrorKind::Thread => f.write_str("cannot start a thread"),
            ErrorKind::Hook => f.write_str("a hook failed"),
            ErrorKind::UnsupportedIsolationLevel => {
                write!(f, "isolation level {detail} is not supported by this store")
            }
            ErrorKind::UnsupportedFormat => write!(f, "unsupported format: {detail}"),
            ErrorKind::UnsupportedFileSystem => write!(f, "unsupported file system: {detail}"),
            ErrorKind::NotAStore => match &self.detail {
                Some(detail) => write!(f, "not a record store: {detail}"),
                None => f.write_str("not a record store"),
            },
            ErrorKind::StoreRemoved => f.write_str("the store was removed since it was opened"),
            ErrorKind::NeedsRecovery => {
                f.write_str("the store has to be recovered after a restart of the machine")
            }
            ErrorKind::ReadOnly => f.write_str("the store was opened read-only"),
            ErrorKind::InvalidUrl => write!(f, "invalid address of a store: {detail}"),
            ErrorKind::UnsupportedServer => write!(f, "unsupported server: {detail}"),
            ErrorKind::Unsupported => f.write_str("not supported by this store"),
            ErrorKind::WrongProcess => f.write_str("begun by the parent of this forked process"),
            ErrorKind::Other => {
                f.write_str(self.detail.as_deref().unwrap_or("an error of the caller's own code"))
            }
        }
    }
}

/// The longest excerpt of a key that an error shows, in characters.
const SHOWN: usize = 80;

/// A key as an error shows it: quoted, control characters escaped, cut if it is long.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(SHOWN) {
            None => write!(f, "{:?}", self.0),
            Some((cut, _)) => write!(f, "{:?}…", &self.0[..cut]),
        }
    }
}

/// A key as an error's [detail](Error::detail) shows it.
pub(super) fn quoted(key: &Key) -> String {
    Quoted(key.as_str()).to_string()
}

/// A holder, if it is known.
struct Named<'a>(Option<&'a Holder>);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(holder) => write!(f, "{:?}", holder.name()),
            None => f.write_str("an unknown holder"),
        }
    }
}
