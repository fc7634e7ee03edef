//! The store on disk. `ops` has one file per operation, each told from beginning to end; `protocol` has the
//! rules that the operations follow; `disk` has the files; `wait_queue` lets callers sleep and wakes them.

mod context;
mod core;
mod disk;
mod log;
mod ops;
mod options;
mod protocol;
mod record_events;
mod upkeep;
mod wait_queue;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::WriteOptions;
use crate::{Acquired, Claim, Expected, IsolationLevel, Json, Key, Listing, LockInfo, LockOptions};
use crate::{BreakOptions, Evicted, EvictionPolicy, ListOptions, RecordInfo, Recovery};
use crate::{
    RawRecord, ReadOptions, RecordStore, RecordVersion, RemoveOptions, Result, SeenRecords, StoreIdentity,
    WaitOptions,
};

#[cfg(doc)]
use crate::ErrorKind;

use context::Context;
use core::Core;
use ops::break_lock::Target;
pub use ops::damaged::DamagedFile;
pub use ops::finding::{Finding, Problem};
pub use ops::sweep::Swept;
pub use ops::verify::{Checked, Verification};
pub use options::{Durability, FileSystemOptions, OpenMode};
use protocol::owner::Owner;

/// A record store in one directory, shared by all processes of the host that open it.
///
/// It is `Send` and `Sync`; one handle serves all threads, and a clone is cheap. Handles may come and go: a
/// lock belongs to the process (or, if its holder is named, to its lease), not to the handle.
///
/// ```
/// use std::time::Duration;
/// use record_store::{FileSystemRecordStore, LockOptions, RecordStoreExt};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("records");
/// let store = FileSystemRecordStore::open(&path)?;
/// let guard = store.lock("invoice-42", LockOptions::new().acquire_timeout(Duration::from_secs(5)))?;
/// if guard.read::<String>()?.is_none() {
///     guard.write("paid")?;
/// }
/// guard.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FileSystemRecordStore(Core);

impl FileSystemOptions {
    /// Opens the store in `dir`, and removes leftover files of dead processes. A store that an earlier version of this
    /// crate created is upgraded, unless it is opened [read-only](OpenMode::ReadOnly): from then on, earlier versions
    /// refuse it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotAStore`] if there is none and the mode forbids creating one, or the directory has other files;
    /// [`ErrorKind::UnsupportedFormat`] if a newer version of this crate created it;
    /// [`ErrorKind::UnsupportedFileSystem`] if `flock` does not work there or
    /// [cannot be trusted](FileSystemOptions::allow_any_file_system); [`ErrorKind::LockTimeout`] if a process is
    /// stopped while it creates or upgrades the store; [`ErrorKind::NeedsRecovery`] if the store was opened to read only after a
    /// power loss; [`ErrorKind::CorruptStore`], [`ErrorKind::NotARegularFile`],
    /// [`ErrorKind::Io`]. A store that could not be created leaves nothing behind.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<FileSystemRecordStore> {
        ops::open::open(dir.as_ref(), &self).map(FileSystemRecordStore)
    }
}

impl FileSystemRecordStore {
    /// Opens the store in `dir` with the default options: durable, and created if necessary.
    ///
    /// # Errors
    ///
    /// As for [`FileSystemOptions::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        FileSystemOptions::new().open(dir)
    }

    /// The store's directory, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.layout.root()
    }

    /// The changes of the last recovery, if there ever was one that changed something. The first open for writing
    /// after a restart of the machine, or of a copy, makes the files agree with the commit log. The chapter
    /// [durability](crate::guide::durability) says when there is something to do.
    ///
    /// ```
    /// use record_store::{FileSystemRecordStore, RecordStoreExt};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// let store = FileSystemRecordStore::open(dir.path().join("records"))?;
    /// store.write("k", &1)?;
    /// assert_eq!(store.last_recovery()?, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub fn last_recovery(&self) -> Result<Option<Recovery>> {
        let context = Context::whole("last_recovery");
        self.0.explained(log::recovery::report::read(&self.0.layout, context))
    }

    /// The files that were in the place of a record or a lock of this store and were neither, such as a record
    /// with a wrong checksum or a file of another program. The store never overwrites or deletes such a file: a
    /// change that finds one moves it to `.store/damaged/`, and the feature `tracing` reports it.
    ///
    /// ```
    /// use record_store::{FileSystemRecordStore, RecordStoreExt};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("records");
    /// let store = FileSystemRecordStore::open(&path)?;
    /// std::fs::write(path.join("notes.json"), "written by another program")?;
    /// store.write("notes", "a record")?;
    /// let damaged = store.damaged()?;
    /// assert_eq!(damaged[0].original_name, "notes.json");
    /// assert_eq!(std::fs::read(&damaged[0].path)?, b"written by another program");
    /// assert_eq!(store.clear_damaged()?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Io`].
    pub fn damaged(&self) -> Result<Vec<DamagedFile>> {
        self.0.explained(ops::damaged::damaged(&self.0))
    }

    /// Deletes the files that [`damaged`](FileSystemRecordStore::damaged) lists, and returns how many. Nothing
    /// else deletes them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::Io`].
    pub fn clear_damaged(&self) -> Result<u64> {
        self.0.explained(ops::damaged::clear_damaged(&self.0))
    }

    /// Moves a file [aside](FileSystemRecordStore::damaged) that is in the place of the key's lock and is none: one
    /// that cannot be parsed, the lock of another key, a link. `Ok(false)`: there is no such file.
    ///
    /// Unlike [`break_lock`](crate::RecordStoreExt::break_lock), this never removes a lock, also not one that was
    /// acquired since the damaged one was seen.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::KeyMismatch`] if it is the lock of a key that differs only in case or Unicode form: on some file
    /// systems both keys have this file. [`ErrorKind::NotARegularFile`] for a directory. [`ErrorKind::LockTimeout`]
    /// if a process is stopped in the middle of an operation on the key, [`ErrorKind::Cancelled`],
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::Io`].
    pub fn break_damaged_lock(&self, key: &Key, options: impl Into<WaitOptions>) -> Result<bool> {
        self.0.explained(ops::break_lock::break_lock(&self.0, key, Target::NoLock, &options.into()))
    }

    /// Removes leftovers: staged files and owner files of dead processes, files of stale locks, and expired
    /// records. It touches nothing that a live process uses, no live lock and no other record. Opening a
    /// store does this too, except for locks and records: these require listing the whole directory.
    ///
    /// Keys on which a process is stopped in the middle of an operation are left for the next sweep.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ReadOnly`], or [`ErrorKind::Io`] if a directory of the store cannot be listed.
    pub fn sweep(&self) -> Result<Swept> {
        self.0.explained(ops::sweep::sweep(&self.0))
    }

    /// Syncs everything that the commit log tells of to the files where it belongs, and empties the log. `Ok(false)`:
    /// that was not possible within two seconds, because a process is stopped in the middle of a change.
    ///
    /// The store does this by itself from time to time. Call it before the files are copied by a program that does not
    /// know the log, or at a moment when nobody waits. It changes no record and no lock, and other processes go on
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ReadOnly`], or [`ErrorKind::Io`] if a file cannot be synced. The log stays as it is then.
    pub fn checkpoint(&self) -> Result<bool> {
        self.0.explained(ops::checkpoint::checkpoint(&self.0))
    }

    /// Checks every file of the store: that records can be read and are complete, that locks can be parsed,
    /// and that there are no other files.
    ///
    /// It writes nothing and does not wait for locks, so it can run at any time, also while other processes
    /// change the store. A concurrently created or removed file may or may not be checked; a concurrent
    /// change is never reported as damage. Memory use does not grow with the number of files, but each record
    /// is read as a whole.
    ///
    /// An item is an error if a file could not be checked; the next item continues after it.
    ///
    /// ```
    /// use record_store::{FileSystemRecordStore, RecordStoreExt};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("records");
    /// let store = FileSystemRecordStore::open(&path)?;
    /// store.write("invoice-42", "paid")?;
    /// let mut verification = store.verify();
    /// for finding in &mut verification {
    ///     let finding = finding?;
    ///     println!("{}: {}", finding.path.display(), finding.problem);
    ///     assert!(!finding.problem.is_damage());
    /// }
    /// assert_eq!(verification.checked().records, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn verify(&self) -> Verification<'_> {
        ops::verify::verify(&self.0)
    }

    /// A descriptor that lets a child process keep this process's locks alive: as long as any process has it
    /// open, locks that are bound to this process stay, also after the end of this process.
    ///
    /// Every program that this process starts while it is open inherits it. So a program that works under a
    /// lock of its parent keeps the lock, even if the parent is killed, until it ends or closes what it
    /// inherited.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ReadOnly`], [`ErrorKind::Io`].
    pub fn share_owner(&self) -> Result<OwnedFd> {
        let context = Context::whole("share_owner");
        self.0.check_writable(context)?;
        self.0
            .explained(Owner::here(&self.0.layout, context))?
            .share()
            .map_err(|error| context.io("duplicate the owner's descriptor", self.path(), error))
    }
}

impl RecordStore for FileSystemRecordStore {
    fn identity_raw(&self) -> Option<StoreIdentity> {
        let (device, inode) = self.0.layout.identity;
        Some(StoreIdentity::new("directory", [device, inode]))
    }

    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.0.explained(ops::read::read(&self.0, key, &options))
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.0.explained(ops::write::write(&self.0, key, result, &options))
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        self.0.explained(ops::write::compare_and_swap(&self.0, key, expected, result, &options))
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.0.explained(ops::read::exists(&self.0, key))
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        self.0.explained(ops::remove::remove(&self.0, key, &options))
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        self.0.explained(ops::wait_for_change::version(&self.0, key))
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        self.0.explained(ops::wait_for_change::wait_for_change(&self.0, key, seen, &options))
    }

    fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
        self.0.explained(ops::changes::changes(&self.0, seen, &options))
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        self.0.explained(ops::keys::keys(&self.0))
    }

    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        self.0.explained(ops::records::records(&self.0, options))
    }

    fn record_info_raw(&self, key: &Key) -> Result<Option<RecordInfo>> {
        self.0.explained(ops::records::record_info(&self.0, key))
    }

    fn evict_raw(&self, policy: EvictionPolicy) -> Result<Evicted> {
        self.0.explained(ops::evict::evict(&self.0, &policy))
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        matches!(level, IsolationLevel::ReadCommitted | IsolationLevel::Serializable)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        self.0.explained(ops::acquire_lock::acquire_lock(&self.0, key, &options))
    }

    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        self.0.explained(ops::renew::renew(&self.0, key, claim, hold_timeout, &options))
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.0.explained(ops::release_lock::release_lock(&self.0, key, claim, &options))
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.0.explained(ops::lock_info::lock_info(&self.0, key))
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        self.0.explained(ops::wait_for_lock::wait_for_lock(&self.0, key, &options))
    }

    fn break_lock_raw(&self, key: &Key, options: BreakOptions) -> Result<bool> {
        let target = options.get_token().map_or(Target::Any, Target::Acquisition);
        self.0.explained(ops::break_lock::break_lock(&self.0, key, target, options.get_wait()))
    }

    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        self.0.explained(ops::locks::locks(&self.0))
    }
}

/// An `Arc` of the store is a store. This fails to compile if the trait is no longer object-safe.
const _: fn(Arc<FileSystemRecordStore>) -> Arc<dyn RecordStore> = |store| store;
