//! The store on disk. `ops` has one file per operation, each told from beginning to end; `protocol` has the
//! rules that the operations follow; `disk` has the files; `wait_queue` lets callers sleep and wakes them.

mod context;
mod core;
mod disk;
mod ops;
mod options;
mod protocol;
mod wait_queue;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::{Acquired, Claim, IsolationLevel, Json, Key, Listing, LockInfo, LockOptions, LockToken};
use crate::{ReadOptions, RecordStore, RecordVersion, RemoveOptions, Result, WaitOptions, WriteOptions};

#[cfg(doc)]
use crate::ErrorKind;

use context::Context;
use core::Core;
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
    /// Opens the store in `dir`, and removes leftover files of dead processes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotAStore`] if there is none and the mode forbids creating one;
    /// [`ErrorKind::UnsupportedFormat`] if a newer version of this crate created it;
    /// [`ErrorKind::UnsupportedFileSystem`] if `flock` does not work there; [`ErrorKind::CorruptStore`],
    /// [`ErrorKind::NotARegularFile`], [`ErrorKind::Io`]. At most missing directories were created then.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<FileSystemRecordStore> {
        ops::open::open(dir.as_ref(), self).map(FileSystemRecordStore)
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

    /// Removes leftovers: staged files and owner files of dead processes, files of stale locks, and expired
    /// records. It touches nothing that a live process uses, no live lock and no other record. Opening a
    /// store does this too, except for locks and records: these require listing the whole directory.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::ReadOnly`], or [`ErrorKind::Io`] if a directory of the store cannot be listed.
    pub fn sweep(&self) -> Result<Swept> {
        ops::sweep::sweep(&self.0)
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
        Owner::here(&self.0.layout, context)?
            .share()
            .map_err(|error| context.io("duplicate the owner's descriptor", self.path(), error))
    }
}

impl RecordStore for FileSystemRecordStore {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<Json>> {
        ops::read::read(&self.0, key, &options)
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        ops::write::write(&self.0, key, result, &options)
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Option<&Json>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        ops::write::compare_and_swap(&self.0, key, expected, result, &options)
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        ops::read::exists(&self.0, key)
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        ops::remove::remove(&self.0, key, &options)
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        ops::wait_for_change::version(&self.0, key)
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: &RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        ops::wait_for_change::wait_for_change(&self.0, key, seen, &options)
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        ops::keys::keys(&self.0)
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        matches!(level, IsolationLevel::ReadCommitted | IsolationLevel::Serializable)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        ops::acquire_lock::acquire_lock(&self.0, key, &options)
    }

    fn renew_raw(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
        ops::renew::renew(&self.0, key, claim, hold_timeout)
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim) -> Result<()> {
        ops::release_lock::release_lock(&self.0, key, claim)
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        ops::lock_info::lock_info(&self.0, key)
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        ops::wait_for_lock::wait_for_lock(&self.0, key, &options)
    }

    fn break_lock_raw(&self, key: &Key, token: Option<LockToken>) -> Result<bool> {
        ops::break_lock::break_lock(&self.0, key, token)
    }

    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        ops::locks::locks(&self.0)
    }
}

/// An `Arc` of the store is a store. This fails to compile if the trait is no longer object-safe.
const _: fn(Arc<FileSystemRecordStore>) -> Arc<dyn RecordStore> = |store| store;
