//! The store on disk: what it is made of, and its operations, each of which is told in `records` or
//! `locks` from beginning to end. The modules beneath those are the steps: `look` judges a claim
//! against a lock by the rules of `lease`, `latch` keeps the processes apart, `publish` makes files
//! appear and disappear, `wait` sleeps and wakes, `owner` knows who is alive.

mod break_by_token;
mod clock;
mod expiry;
mod finding;
mod latch;
mod layout;
mod lease;
mod list;
mod locks;
mod look;
mod open;
mod owner;
mod publish;
mod records;
mod sidecar;
mod sweep;
mod verify;
mod versions;
mod wait;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use crate::trace;
use crate::{Acquired, Claim, Error, Holder, IsolationLevel, Json, Key, Listing, LockInfo, LockOptions};
use crate::{RecordStore, RecordVersion, Result, WriteOptions};

pub use finding::{Finding, Problem};
use layout::{Context, Layout};
pub use open::{Durability, FileSystemOptions, OpenMode};
use owner::Owner;
pub use sweep::Swept;
pub use verify::{Checked, Verification};
use wait::Events;

/// A record store in one directory, shared by all processes of the host that open it.
///
/// It is `Send` and `Sync`; one handle serves all threads, and a clone costs next to nothing. Handles
/// may come and go: locks belong to the process (or, if named, to nobody but their lease), not to
/// the handle.
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
pub struct FileSystemRecordStore {
    layout: Arc<Layout>,
    options: FileSystemOptions,
    events: Arc<Events>,
}

impl FileSystemRecordStore {
    /// Opens the store in `dir` with the default options: makes it if need be, durable.
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
        self.layout.root()
    }

    /// Removes what dead processes left behind: files that they had begun to write, the files by
    /// which they were known to be alive, and lock files that count for nothing. Removes the records
    /// too whose time to live is over. Touches nothing that a live process uses, and no record or lock
    /// that counts. Opening a store does this too, except for locks and records: to find them takes a
    /// walk through the whole directory.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], or [`Error::Io`] if the store's own directories cannot be listed.
    pub fn sweep(&self) -> Result<Swept> {
        let context = Context::whole("sweep");
        self.writable(context)?;
        let locks = self.sweep_locks(context)?;
        let records = self.sweep_records(context)?;
        let swept = Swept { locks, records, ..sweep::sweep(&self.layout, context)? };
        trace::swept(&swept);
        Ok(swept)
    }

    /// A descriptor by which a child process shares in this process's life: as long as any process
    /// has it open, locks bound to this process stay, also when this process is gone.
    ///
    /// It is inherited by every program that this process starts while it is open. So a program
    /// that works under a lock of its parent keeps the lock, even if the parent is killed, until it
    /// has ended, or has closed what it inherited.
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], [`Error::Io`].
    pub fn share_owner(&self) -> Result<OwnedFd> {
        let context = Context::whole("share_owner");
        self.writable(context)?;
        Owner::here(&self.layout, context)?
            .share()
            .map_err(|error| context.io("duplicate the owner's descriptor", self.layout.root(), error))
    }

    fn writable(&self, context: Context<'_>) -> Result<()> {
        if self.options.mode == OpenMode::ReadOnly {
            return Err(Error::ReadOnly {
                operation: context.operation,
                key: context.key.cloned(),
                path: self.layout.root().to_owned(),
            });
        }
        Ok(())
    }
}

impl RecordStore for FileSystemRecordStore {
    fn read_json(&self, key: &Key, claim: &Claim, timeout: Option<Duration>) -> Result<Option<Json>> {
        self.read_record(key, claim, timeout)
    }

    fn write_json(&self, key: &Key, result: &RawValue, claim: &Claim, options: &WriteOptions) -> Result<()> {
        self.write_record(key, result, claim, options)
    }

    fn swap_json(
        &self,
        key: &Key,
        expected: Option<&RawValue>,
        result: &RawValue,
        claim: &Claim,
        options: &WriteOptions,
    ) -> Result<bool> {
        self.swap_record(key, expected, result, claim, options)
    }

    fn record_exists(&self, key: &Key) -> Result<bool> {
        self.has_record(key)
    }

    fn remove_record(&self, key: &Key, claim: &Claim) -> Result<bool> {
        self.unlink_record(key, claim)
    }

    fn record_version(&self, key: &Key) -> Result<RecordVersion> {
        self.version_now(key)
    }

    fn wait_for_change(
        &self,
        key: &Key,
        seen: &RecordVersion,
        timeout: Option<Duration>,
    ) -> Result<Option<RecordVersion>> {
        self.wait_for_version(key, seen, timeout)
    }

    fn all_keys(&self) -> Result<Listing<'_, Key>> {
        self.list_records()
    }

    fn supports_level(&self, level: IsolationLevel) -> bool {
        matches!(level, IsolationLevel::ReadCommitted | IsolationLevel::Serializable)
    }

    fn acquire(&self, key: &Key, holder: &Holder, options: &LockOptions) -> Result<Acquired> {
        self.take_lock(key, holder, options)
    }

    fn renew_lease(&self, key: &Key, claim: &Claim, hold_timeout: Option<Duration>) -> Result<()> {
        self.renew_lock(key, claim, hold_timeout)
    }

    fn release(&self, key: &Key, claim: &Claim) -> Result<()> {
        self.give_back_lock(key, claim)
    }

    fn current_lock(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.live_lock(key)
    }

    fn wait_until_free(&self, key: &Key, timeout: Option<Duration>) -> Result<bool> {
        self.wait_for_no_lock(key, timeout)
    }

    fn force_release(&self, key: &Key) -> Result<bool> {
        self.break_lock_of(key)
    }

    fn all_locks(&self) -> Result<Listing<'_, LockInfo>> {
        self.list_locks()
    }
}

/// An `Arc` of the store is a store. This fails to compile if the trait stops to be object-safe.
const _: fn(Arc<FileSystemRecordStore>) -> Arc<dyn RecordStore> = |store| store;
