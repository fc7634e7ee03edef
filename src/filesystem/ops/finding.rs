//! The findings of a check of a store.

use std::fmt;
use std::path::PathBuf;

use crate::{Error, LockState};

/// Something that [`verify`](crate::FileSystemRecordStore::verify) found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// The problem of the file.
    pub problem: Problem,
}

/// A problem of a file of a store.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The file that identifies the store is damaged, or of a newer version.
    CorruptFormat(Error),
    /// A record that cannot be read: not a regular file, not a JSON record, a wrong checksum, another key's
    /// name, or too large.
    CorruptRecord(Error),
    /// A lock file that cannot be parsed, so that nobody can acquire that lock.
    CorruptLock(Error),
    /// Something else is in the place of a private file or directory of the store.
    #[non_exhaustive]
    WrongType {
        /// The type that was found: a directory, a symbolic link, …
        found: &'static str,
    },
    /// Somebody who may write the store may not use this file or directory, so some operations fail for them.
    #[non_exhaustive]
    Permissions {
        /// The user or the group.
        whom: &'static str,
        /// The remedy, as an imperative: "set its mode to 664".
        remedy: String,
    },
    /// A file that no version of this crate creates. The store does not touch it.
    Foreign,
    /// A file in `.store/damaged/`: it was in the place of a record or a lock, and was neither.
    /// [`clear_damaged`](crate::FileSystemRecordStore::clear_damaged) deletes it.
    KeptAside,
    /// A record whose time to live is over.
    ExpiredRecord,
    /// The file of a lock that is no longer in force: its lease expired, or its process is gone.
    StaleLock(LockState),
    /// A lock file that is empty, or of which a part is zeros. It is no lock.
    BlankLock,
    /// The owner file of a dead process.
    OrphanedOwner,
    /// A staged file of a dead process.
    OrphanedStagedFile,
}

impl Problem {
    /// True if something is lost or does not work. Otherwise the store works as before: it is a foreign
    /// file, a file that was moved aside, or a leftover that [`sweep`](crate::FileSystemRecordStore::sweep)
    /// removes.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::CorruptFormat(_)
            | Self::CorruptRecord(_)
            | Self::CorruptLock(_)
            | Self::WrongType { .. }
            | Self::Permissions { .. } => true,
            Self::Foreign
            | Self::KeptAside
            | Self::ExpiredRecord
            | Self::StaleLock(_)
            | Self::BlankLock
            | Self::OrphanedOwner
            | Self::OrphanedStagedFile => false,
        }
    }

    /// The error of the check, if there was one. It names the path too.
    #[must_use]
    pub fn cause(&self) -> Option<&Error> {
        match self {
            Self::CorruptFormat(error) | Self::CorruptRecord(error) | Self::CorruptLock(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CorruptFormat(_) => "the store's format cannot be read",
            Self::CorruptRecord(_) => "the record cannot be read",
            Self::CorruptLock(_) => "the lock cannot be read",
            Self::WrongType { found } => return write!(f, "{found} in the place of a private file"),
            Self::Permissions { whom, remedy } => return write!(f, "{whom} may not use it: {remedy}"),
            Self::Foreign => "not a file of the store",
            Self::KeptAside => "a damaged or foreign file that was moved aside",
            Self::ExpiredRecord => "an expired record",
            Self::StaleLock(LockState::Expired) => "an expired lock",
            Self::StaleLock(_) => "a lock of a dead process",
            Self::BlankLock => "an unfinished lock file",
            Self::OrphanedOwner => "the owner file of a dead process",
            Self::OrphanedStagedFile => "a staged file of a dead process",
        })
    }
}
