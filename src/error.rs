//! What can go wrong, and which lock, record and file it went wrong with.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Holder, IsolationLevel, Key, LockToken};

/// A [`std::result::Result`] whose error is [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every way in which an operation of this crate can fail.
///
/// The text of an error says which operation failed, for which key, why, and at which path. The
/// cause, where there is one, is in [`source()`](std::error::Error::source) and is not repeated in
/// the text.
///
/// An operation that fails leaves the record and its lock as they were, except where the variant
/// says otherwise. Match on a variant, or ask the predicates, which stay true when variants are
/// added: [`is_timeout`](Error::is_timeout), [`is_cancelled`](Error::is_cancelled),
/// [`is_locked`](Error::is_locked), [`is_lock_lost`](Error::is_lock_lost),
/// [`is_corrupt`](Error::is_corrupt).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The string cannot be a key: it is empty or too long.
    #[error("invalid key: {reason}")]
    InvalidKey {
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The string cannot name a holder: it is empty or too long.
    #[error("invalid holder: {reason}")]
    InvalidHolder {
        /// What is wrong with it.
        reason: &'static str,
    },

    /// Another holder's lock is live, so the change was refused. Nothing was changed.
    #[error("{}: locked by {holder}{}", Subject(operation, Some(key)), At(path))]
    Locked {
        /// The refused operation.
        operation: &'static str,
        /// The record that is locked.
        key: Key,
        /// Who holds it.
        holder: Holder,
        /// The lock file, where the store has one.
        path: Option<PathBuf>,
    },

    /// The lock did not become free in time.
    #[error("{}: {}{}", Subject(operation, Some(key)), Waited(*waited, holder.as_ref()), At(path))]
    LockTimeout {
        /// The operation that gave up.
        operation: &'static str,
        /// The record that was waited for.
        key: Key,
        /// Who held it at the last look. `None` where nobody did, but it was the turn of another who
        /// had waited, or some process is stopped in the middle of an operation on this key.
        holder: Option<Holder>,
        /// How long the operation had waited.
        waited: Duration,
        /// The lock file, where the store has one.
        path: Option<PathBuf>,
    },

    /// The acquisition was [cancelled](crate::Cancellation). It has no lock.
    #[error("{}: cancelled", Subject(operation, Some(key)))]
    Cancelled {
        /// The operation that was cancelled.
        operation: &'static str,
        /// The record that was waited for.
        key: Key,
    },

    /// The claim was by token, and the lock with that token is no longer live: its lease ran out,
    /// or it was released, broken or taken over. The change was refused.
    #[error("{}: the lock with token {token} is lost{}", Subject(operation, Some(key)), At(path))]
    LockLost {
        /// The refused operation.
        operation: &'static str,
        /// The record whose lock is lost.
        key: Key,
        /// The token that is no longer worth anything.
        token: LockToken,
        /// The lock file, where the store has one.
        path: Option<PathBuf>,
    },

    /// There is no live lock to release or renew.
    #[error("{}: not locked{}", Subject(operation, Some(key)), At(path))]
    NotLocked {
        /// The refused operation.
        operation: &'static str,
        /// The record that is not locked.
        key: Key,
        /// The lock file that was looked for, where the store has one.
        path: Option<PathBuf>,
    },

    /// The lock to release or renew is held by another.
    #[error("{}: held by {current}, not by {holder}{}", Subject(operation, Some(key)), At(path))]
    NotLockHolder {
        /// The refused operation.
        operation: &'static str,
        /// The record in question.
        key: Key,
        /// Who asked.
        holder: Holder,
        /// Who holds the lock.
        current: Holder,
        /// The lock file, where the store has one.
        path: Option<PathBuf>,
    },

    /// The record file exists but cannot be trusted: it is no JSON record, or its checksum is wrong.
    #[error("{}: corrupt record: {reason}{}", Subject(operation, key.as_ref()), AtPath(path))]
    CorruptRecord {
        /// The operation that met it.
        operation: &'static str,
        /// The key, as far as it is known.
        key: Option<Key>,
        /// What is wrong with the file.
        reason: String,
        /// The record file.
        path: PathBuf,
        /// The parser's error, where parsing failed.
        source: Option<serde_json::Error>,
    },

    /// The lock file exists but cannot be understood. Nobody can tell whether the key is locked;
    /// [`break_lock`](crate::RecordStoreExt::break_lock) removes the file.
    #[error("{}: corrupt lock: {reason}{}", Subject(operation, key.as_ref()), AtPath(path))]
    CorruptLock {
        /// The operation that met it.
        operation: &'static str,
        /// The key, as far as it is known.
        key: Option<Key>,
        /// What is wrong with the file.
        reason: String,
        /// The lock file.
        path: PathBuf,
        /// The parser's error, where parsing failed.
        source: Option<serde_json::Error>,
    },

    /// A file of the store's own (below `.store/`) cannot be understood.
    #[error("{}: corrupt store: {reason}{}", Subject(operation, None), AtPath(path))]
    CorruptStore {
        /// The operation that met it.
        operation: &'static str,
        /// What is wrong with the file.
        reason: String,
        /// The file.
        path: PathBuf,
        /// The parser's error, where parsing failed.
        source: Option<serde_json::Error>,
    },

    /// The file at this key's path belongs to another key: the file system does not tell the two
    /// names apart (it ignores case, or normalises Unicode).
    #[error("{}: the file belongs to key {}{}", Subject(operation, Some(key)), Quoted(found.as_str()), AtPath(path))]
    KeyMismatch {
        /// The operation that met it.
        operation: &'static str,
        /// The key that was asked for.
        key: Key,
        /// The key inside the file.
        found: Key,
        /// The file.
        path: PathBuf,
    },

    /// Something other than a regular file stands where the store keeps one. It was not touched.
    #[error("{}: {found} where a regular file belongs{}", Subject(operation, key.as_ref()), AtPath(path))]
    NotARegularFile {
        /// The operation that met it.
        operation: &'static str,
        /// The key, where the file belongs to one.
        key: Option<Key>,
        /// What stands there: a symbolic link, a directory, …
        found: &'static str,
        /// Where it stands.
        path: PathBuf,
    },

    /// The record is larger than the store's limit.
    #[error("{}: {size} bytes, over the limit of {limit}{}", Subject(operation, Some(key)), At(path))]
    RecordTooLarge {
        /// The operation that met it.
        operation: &'static str,
        /// The key.
        key: Key,
        /// The size of the record file in bytes.
        size: u64,
        /// The largest size in bytes that the store accepts.
        limit: u64,
        /// The record file, where the store has one.
        path: Option<PathBuf>,
    },

    /// The result cannot be written as JSON. Nothing was written.
    #[error("{}: the result cannot be held in JSON", Subject(operation, Some(key)))]
    Encode {
        /// The refused operation.
        operation: &'static str,
        /// The key.
        key: Key,
        /// What the serialiser said.
        source: serde_json::Error,
    },

    /// The record is sound, but its result is not of the type that was asked for.
    #[error("{}: the result is not of the expected type", Subject(operation, Some(key)))]
    Decode {
        /// The operation.
        operation: &'static str,
        /// The key.
        key: Key,
        /// What the deserialiser said.
        source: serde_json::Error,
    },

    /// The operating system refused. For a change under
    /// [`Durability::Full`](crate::Durability::Full), a failure to sync the *directory* comes after
    /// the change became visible: readers see the new state, but it may not survive a power loss.
    #[error("{}: cannot {action}{}", Subject(operation, key.as_ref()), AtPath(path))]
    Io {
        /// The operation that failed.
        operation: &'static str,
        /// The key, where one is concerned.
        key: Option<Key>,
        /// The step that failed, as a verb: "open", "sync", "rename into place" …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },

    /// No thread could be started.
    #[error("{}: cannot start a thread", Subject(operation, key.as_ref()))]
    Thread {
        /// The operation that needed one.
        operation: &'static str,
        /// The key, where one is concerned.
        key: Option<Key>,
        /// What the operating system said.
        source: io::Error,
    },

    /// A hook of a transaction failed. If it ran at the commit, the transaction is rolled back.
    #[error("{}: a hook failed", Subject(operation, Some(key)))]
    Hook {
        /// What the hook belonged to: "commit" or "rollback".
        operation: &'static str,
        /// The transaction's key.
        key: Key,
        /// What the hook said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The store cannot keep transactions so far apart.
    #[error("begin {}: isolation level {level:?} is not supported by this store", Quoted(key.as_str()))]
    UnsupportedIsolationLevel {
        /// The transaction's key.
        key: Key,
        /// The level that was asked for.
        level: IsolationLevel,
    },

    /// The directory was written by a newer version of this crate.
    #[error("open: format version {found}, but this crate knows only up to {supported}{}", AtPath(path))]
    UnsupportedFormat {
        /// The version found.
        found: u64,
        /// The newest version that this crate understands.
        supported: u64,
        /// The file that says so.
        path: PathBuf,
    },

    /// `flock` does not work on this file system, so nothing could be kept safe there.
    #[error("open: unsupported file system: {reason}{}", AtPath(path))]
    UnsupportedFileSystem {
        /// What was seen.
        reason: &'static str,
        /// The store's directory.
        path: PathBuf,
    },

    /// The directory holds no store, and the options forbid to create one.
    #[error("open: not a record store{}", AtPath(path))]
    NotAStore {
        /// The directory.
        path: PathBuf,
    },

    /// The store was opened read-only.
    #[error("{}: the store was opened read-only{}", Subject(operation, key.as_ref()), AtPath(path))]
    ReadOnly {
        /// The refused operation.
        operation: &'static str,
        /// The key, where one is concerned.
        key: Option<Key>,
        /// The store's directory.
        path: PathBuf,
    },

    /// The store does not implement this method.
    #[error("{method} is not supported by this store")]
    Unsupported {
        /// The method's name.
        method: &'static str,
    },
}

impl Error {
    /// True where a lock did not become free in time ([`Error::LockTimeout`]).
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self, Error::LockTimeout { .. })
    }

    /// True where the wait for a lock was [cancelled](crate::Cancellation) ([`Error::Cancelled`]).
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Error::Cancelled { .. })
    }

    /// True where another's live lock stands in the way: [`Error::Locked`],
    /// [`Error::LockTimeout`], [`Error::NotLockHolder`].
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self, Error::Locked { .. } | Error::LockTimeout { .. } | Error::NotLockHolder { .. })
    }

    /// True where the caller's own lock is gone ([`Error::LockLost`]): it must not go on as if it
    /// still held the record.
    #[must_use]
    pub fn is_lock_lost(&self) -> bool {
        matches!(self, Error::LockLost { .. })
    }

    /// True where a file cannot be trusted: [`Error::CorruptRecord`], [`Error::CorruptLock`],
    /// [`Error::CorruptStore`], [`Error::KeyMismatch`].
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        matches!(
            self,
            Error::CorruptRecord { .. }
                | Error::CorruptLock { .. }
                | Error::CorruptStore { .. }
                | Error::KeyMismatch { .. }
        )
    }

    /// The key concerned, where there is one.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        match self {
            Error::Locked { key, .. }
            | Error::LockTimeout { key, .. }
            | Error::Cancelled { key, .. }
            | Error::LockLost { key, .. }
            | Error::NotLocked { key, .. }
            | Error::NotLockHolder { key, .. }
            | Error::KeyMismatch { key, .. }
            | Error::RecordTooLarge { key, .. }
            | Error::Encode { key, .. }
            | Error::Hook { key, .. }
            | Error::UnsupportedIsolationLevel { key, .. }
            | Error::Decode { key, .. } => Some(key),
            Error::CorruptRecord { key, .. }
            | Error::CorruptLock { key, .. }
            | Error::NotARegularFile { key, .. }
            | Error::Io { key, .. }
            | Error::Thread { key, .. }
            | Error::ReadOnly { key, .. } => key.as_ref(),
            _ => None,
        }
    }

    /// The file or directory concerned, where there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Error::Locked { path, .. }
            | Error::LockTimeout { path, .. }
            | Error::LockLost { path, .. }
            | Error::NotLocked { path, .. }
            | Error::NotLockHolder { path, .. }
            | Error::RecordTooLarge { path, .. } => path.as_deref(),
            Error::CorruptRecord { path, .. }
            | Error::CorruptLock { path, .. }
            | Error::CorruptStore { path, .. }
            | Error::KeyMismatch { path, .. }
            | Error::NotARegularFile { path, .. }
            | Error::Io { path, .. }
            | Error::UnsupportedFormat { path, .. }
            | Error::UnsupportedFileSystem { path, .. }
            | Error::NotAStore { path, .. }
            | Error::ReadOnly { path, .. } => Some(path),
            _ => None,
        }
    }
}

/// Longest excerpt of a key that an error shows, in characters: a message stays a message, also
/// for a key of ten thousand characters.
const SHOWN: usize = 80;

/// A key as an error shows it: quoted, control characters escaped, cut where it is long.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(SHOWN) {
            None => write!(f, "{:?}", self.0),
            Some((cut, _)) => write!(f, "{:?}…", &self.0[..cut]),
        }
    }
}

/// `operation "key"`, the beginning of every message.
struct Subject<'a>(&'a str, Option<&'a Key>);

impl fmt::Display for Subject<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        match self.1 {
            Some(key) => write!(f, " {}", Quoted(key.as_str())),
            None => Ok(()),
        }
    }
}

/// ` (path)`, the end of a message.
struct AtPath<'a>(&'a Path);

impl fmt::Display for AtPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, " ({})", self.0.display())
    }
}

/// ` (path)`, or nothing for a store that has no files.
struct At<'a>(&'a Option<PathBuf>);

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_deref().map_or(Ok(()), |path| AtPath(path).fmt(f))
    }
}

/// What a timed-out wait has to say.
struct Waited<'a>(Duration, Option<&'a Holder>);

impl fmt::Display for Waited<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            Some(holder) => write!(f, "still locked by {holder} after {:.1?}", self.0),
            None => write!(f, "others went first for {:.1?}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn text_names_operation_key_and_path_but_not_the_cause() {
        let error = Error::Io {
            operation: "write",
            key: Some(Key::new("a\nb").unwrap()),
            action: "sync",
            path: "/records/a%0Ab.json".into(),
            source: io::Error::from_raw_os_error(5),
        };
        assert_eq!(error.to_string(), r#"write "a\nb": cannot sync (/records/a%0Ab.json)"#);
        assert!(error.source().unwrap().to_string().contains("os error 5"));
    }

    #[test]
    fn a_long_key_is_cut() {
        let error = Error::NotLocked {
            operation: "release_lock",
            key: Key::new("ä".repeat(9_000)).unwrap(),
            path: None,
        };
        assert!(error.to_string().len() < 300, "{error}");
    }
}
