//! The kinds of failure.

#[cfg(doc)]
use super::Error;

/// The kind of failure of an [`struct@Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The string cannot be a key: it is empty or too long.
    InvalidKey,
    /// The string cannot name a holder: it is empty or too long.
    InvalidHolder,
    /// Another [holder's](Error::holder) lock is live, so the change was refused.
    Locked,
    /// The lock did not become free before the timeout. [`Error::holder`] had it at the last check.
    /// Without a holder, other waiters were ahead, or a process is stopped inside an operation.
    LockTimeout,
    /// The wait was [cancelled](crate::Cancellation). The caller has no lock.
    Cancelled,
    /// The claim was by [token](Error::token), and the lock with that token is no longer live: its
    /// lease expired, or it was released, broken or taken over. The change was refused.
    LockLost,
    /// The claimant [shares](crate::LockOptions::shared) the lock, so it may not change the record, and cannot acquire the
    /// lock exclusively: it would wait for itself. Nothing was changed.
    LockShared,
    /// There is no live lock to release or renew.
    NotLocked,
    /// The lock to release or renew is held by another [holder](Error::holder) than the
    /// [claimant](Error::claimant).
    NotLockHolder,
    /// The record file exists but cannot be trusted: it is no JSON record, its checksum is wrong, or it has a version
    /// and no checksum.
    CorruptRecord,
    /// The lock file exists but cannot be parsed, so the state of the lock is unknown.
    /// [`break_lock`](crate::RecordStoreExt::break_lock) and
    /// [`break_damaged_lock`](crate::FileSystemRecordStore::break_damaged_lock) move the file
    /// [aside](crate::FileSystemRecordStore::damaged).
    CorruptLock,
    /// A private file of the store (below `.store/`) cannot be parsed.
    CorruptStore,
    /// The file at this key's path belongs to another key: it was copied there, or the file system does not
    /// distinguish the two names, because it ignores case or normalizes Unicode.
    KeyMismatch,
    /// Something other than a regular file is in the place of one. This call did not touch it.
    NotARegularFile,
    /// The record is larger than the store's limit.
    RecordTooLarge,
    /// The text is not one JSON value, or it is nested too deeply.
    InvalidJson,
    /// The value cannot be encoded as JSON. Nothing was written.
    Encode,
    /// The record is sound, but its result is not of the requested type.
    Decode,
    /// The operating system refused. See [`source()`](std::error::Error::source) for its error.
    Io,
    /// No thread could be started, or the runtime is shutting down.
    Thread,
    /// A hook of a transaction failed. If it ran at the commit, the transaction is rolled back.
    Hook,
    /// The store cannot provide this isolation level.
    UnsupportedIsolationLevel,
    /// The directory was written by a newer version of this crate.
    UnsupportedFormat,
    /// `flock` does not work on this file system, or cannot be trusted there, so the store would not be safe. See
    /// [`allow_any_file_system`](crate::FileSystemOptions::allow_any_file_system).
    UnsupportedFileSystem,
    /// The directory holds no store, and the options forbid creating one. If it is
    /// not empty, [`OpenMode::Adopt`](crate::OpenMode::Adopt) is necessary to create one.
    NotAStore,
    /// The store was removed while it was open, and perhaps a new one was made at its path. This handle cannot
    /// be used any more: open the store again. If only the private directory was removed, a record that is still
    /// there can be read, exists and is listed.
    StoreRemoved,
    /// The machine was restarted, perhaps after a power loss, and the files have to be made to agree with the commit
    /// log. A process that only reads cannot do that.
    NeedsRecovery,
    /// The store was opened read-only.
    ReadOnly,
    /// The address of a store is not valid: the URL of a server, or the name of a schema.
    InvalidUrl,
    /// The server, or a pooler in front of it, cannot keep the contract.
    UnsupportedServer,
    /// The store does not implement this operation.
    Unsupported,
    /// The value belongs to the process that created it, and this is a forked child of that process.
    WrongProcess,
    /// An error of the caller's own code, such as a closure, that passed through this crate.
    Other,
}

/// The advice for a directory that has other files than those of a store.
pub(super) const ADOPT: &str = "choose an empty directory, or open this one with OpenMode::Adopt";

/// The advice if a process uses a store whose log it does not share.
pub(super) const STOP_PROCESS: &str = "stop that process, then open the store again";

/// The advice for damaged shared memory.
pub(super) const STOP_ALL: &str = "stop all processes that use the store, then remove the file";

impl ErrorKind {
    /// Advice for the caller, where there is some.
    pub(super) fn hint(self) -> Option<&'static str> {
        Some(match self {
            ErrorKind::Locked => "acquire the lock to wait for it",
            ErrorKind::LockShared => "release the lock, and acquire it without `shared` or `slots`",
            ErrorKind::LockLost => "acquire the lock again and repeat the work",
            ErrorKind::CorruptRecord => "write or remove the record to replace the file",
            ErrorKind::CorruptLock => "if no process is at work on this key, remove the file with break_lock",
            ErrorKind::CorruptStore => "restore the file from a backup",
            ErrorKind::KeyMismatch => "choose keys that differ in more than case or Unicode form",
            ErrorKind::NotARegularFile => "move it out of the store's directory",
            ErrorKind::RecordTooLarge => "raise the limit with max_record_bytes",
            ErrorKind::Decode => "read the record as the type that was written",
            ErrorKind::UnsupportedFormat => "update this program",
            ErrorKind::UnsupportedFileSystem => "keep the store on a local file system",
            ErrorKind::NotAStore => "open it for writing once to create the store",
            ErrorKind::StoreRemoved => "open it again",
            ErrorKind::NeedsRecovery => "open it for writing once",
            ErrorKind::ReadOnly => "open the store for writing",
            _ => return None,
        })
    }
}
