//! What a check of a store can find.

use std::fmt;
use std::path::PathBuf;

use crate::{Error, LockState};

/// Something that [`verify`](crate::FileSystemRecordStore::verify) found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The file.
    pub path: PathBuf,
    /// What is the matter with it.
    pub problem: Problem,
}

/// What can be the matter with a file of a store.
#[derive(Debug)]
#[non_exhaustive]
pub enum Problem {
    /// What says that this is a store is damaged, or of a newer version.
    UnsoundFormat(Error),
    /// A record that cannot be read: not a regular file, no JSON record, a wrong checksum, another
    /// key's name, or too large.
    UnsoundRecord(Error),
    /// A lock file that cannot be understood, so that nobody can take that lock.
    UnsoundLock(Error),
    /// Something that has the place of a file or a directory of the store's own.
    Misplaced {
        /// What stands there: a directory, a symbolic link, …
        found: &'static str,
    },
    /// A file that no version of this crate makes. The store leaves it alone.
    Strange,
    /// A record whose time to live is over.
    OverRecord,
    /// A lock file that counts for nothing: its lease ran out, or its process is gone.
    DeadLock(LockState),
    /// A lock file that was never filled.
    BlankLock,
    /// The file by which a process that is gone was known to be alive.
    DeadOwner,
    /// What a process that is gone had begun to write.
    Unfinished,
}

impl Problem {
    /// True where something is lost or does not work. Otherwise the store is none the worse for it:
    /// it is a stranger's file, or a leftover that
    /// [`sweep`](crate::FileSystemRecordStore::sweep) clears away.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::UnsoundFormat(_)
            | Self::UnsoundRecord(_)
            | Self::UnsoundLock(_)
            | Self::Misplaced { .. } => true,
            Self::Strange
            | Self::OverRecord
            | Self::DeadLock(_)
            | Self::BlankLock
            | Self::DeadOwner
            | Self::Unfinished => false,
        }
    }

    /// What was wrong, where there is more to say. It names the path too.
    #[must_use]
    pub fn cause(&self) -> Option<&Error> {
        match self {
            Self::UnsoundFormat(error) | Self::UnsoundRecord(error) | Self::UnsoundLock(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnsoundFormat(_) => "the store's format cannot be told",
            Self::UnsoundRecord(_) => "the record cannot be read",
            Self::UnsoundLock(_) => "the lock cannot be understood",
            Self::Misplaced { found } => return write!(f, "{found} in the place of the store's own"),
            Self::Strange => "not a file of the store",
            Self::OverRecord => "a record whose time to live is over",
            Self::DeadLock(LockState::Expired) => "a lock whose lease ran out",
            Self::DeadLock(_) => "a lock whose process is gone",
            Self::BlankLock => "a lock that was never filled in",
            Self::DeadOwner => "left by a process that is gone",
            Self::Unfinished => "begun by a process that is gone",
        })
    }
}
