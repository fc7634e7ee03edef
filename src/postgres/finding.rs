//! The findings of a check of a store on a server.

use std::fmt;

use crate::{Error, LockState};

#[cfg(doc)]
use super::PostgresRecordStore;

/// The numbers of checked rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresChecked {
    /// Records.
    pub records: u64,
    /// Locks.
    pub locks: u64,
    /// Calls of all processes that wait for a lock or a change.
    pub waiters: u64,
}

/// Something that [`PostgresRecordStore::verify`] found.
#[derive(Debug)]
#[non_exhaustive]
pub struct PostgresFinding {
    /// The table with its schema, the function or the key, for people: `record_store.records "report"`.
    pub place: String,
    /// The problem there.
    pub problem: PostgresProblem,
}

/// A problem of a store on a server.
#[derive(Debug)]
#[non_exhaustive]
pub enum PostgresProblem {
    /// A part of the schema is missing, or is not as this version of the crate makes it.
    #[non_exhaustive]
    CorruptSchema {
        /// The difference, for people.
        detail: String,
    },
    /// This role lacks a right that some operations need.
    #[non_exhaustive]
    Permissions {
        /// The role.
        role: String,
        /// The remedy, as a statement: `GRANT DELETE ON TABLE record_store.records TO app`.
        remedy: String,
    },
    /// A row that this crate did not write like this: it is in the place of another key, or its number was never given.
    #[non_exhaustive]
    CorruptRow {
        /// The difference, for people.
        detail: String,
    },
    /// A record that cannot be read.
    CorruptRecord(Error),
    /// A lock that cannot be read.
    CorruptLock(Error),
    /// A table that no version of this crate makes. The store does not touch it.
    Foreign,
    /// A record whose time to live is over.
    ExpiredRecord,
    /// A lock that is no longer in force: its lease expired, or its process is gone.
    StaleLock(LockState),
    /// Waiters of processes that are gone.
    #[non_exhaustive]
    StaleWaiters {
        /// How many.
        count: u64,
    },
}

impl PostgresProblem {
    /// True if something is lost or does not work. Otherwise the store works as before: it is a foreign table, or a
    /// leftover that [`PostgresRecordStore::sweep`] removes.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::CorruptSchema { .. }
            | Self::Permissions { .. }
            | Self::CorruptRow { .. }
            | Self::CorruptRecord(_)
            | Self::CorruptLock(_) => true,
            Self::Foreign | Self::ExpiredRecord | Self::StaleLock(_) | Self::StaleWaiters { .. } => false,
        }
    }

    /// The error of the check, if there was one.
    #[must_use]
    pub fn cause(&self) -> Option<&Error> {
        match self {
            Self::CorruptRecord(error) | Self::CorruptLock(error) => Some(error),
            _ => None,
        }
    }
}

impl fmt::Display for PostgresProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CorruptSchema { detail } | Self::CorruptRow { detail } => detail,
            Self::Permissions { role, remedy } => {
                return write!(f, "the role {role} may not use it: {remedy}");
            }
            Self::CorruptRecord(_) => "the record cannot be read",
            Self::CorruptLock(_) => "the lock cannot be read",
            Self::Foreign => "not a table of the store",
            Self::ExpiredRecord => "an expired record",
            Self::StaleLock(LockState::Expired) => "an expired lock",
            Self::StaleLock(_) => "a lock of a process that is gone",
            Self::StaleWaiters { count: 1 } => "a waiter of a process that is gone",
            Self::StaleWaiters { count } => return write!(f, "{count} waiters of processes that are gone"),
        })
    }
}
