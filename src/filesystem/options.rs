//! How a store is opened.

use super::disk::permissions::Permissions;
use crate::EvictionPolicy;

/// The failures that a successful change survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Everything, power loss included: the call returns when the change is on the disk. See the
    /// [guide](crate::guide::durability).
    #[default]
    Full,
    /// A crash of any process, but not of the machine: few calls wait for the disk, see the
    /// [guide](crate::guide::durability). After a power loss a record is its newest or an earlier published value. It is
    /// never damaged, and never missing if it was on the disk.
    Relaxed,
}

/// Whether a store may be created, or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenMode {
    /// Creates the directory and the store if they are missing. A directory that is not empty and holds no store
    /// is refused with [`ErrorKind::NotAStore`](crate::ErrorKind::NotAStore).
    #[default]
    Create,
    /// As [`Create`](OpenMode::Create), but a directory with other files becomes a store too.
    ///
    /// Files whose names end in `.json` or `.lock` are then in the places of records and locks. A change of such
    /// a key moves the file to `.store/damaged/`, unless it is a record or a lock: see
    /// [`damaged`](crate::FileSystemRecordStore::damaged).
    Adopt,
    /// Opens an existing store only.
    Existing,
    /// Reads only: nothing is ever written, so it works in a directory that cannot be written. Every
    /// change is [`ErrorKind::ReadOnly`](crate::ErrorKind::ReadOnly).
    ReadOnly,
}

/// How a [`FileSystemRecordStore`](crate::FileSystemRecordStore) is opened.
///
/// ```
/// use record_store::{Durability, FileSystemOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("records");
/// let store = FileSystemOptions::new()
///     .durability(Durability::Relaxed)
///     .shared_group()
///     .open(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "options do nothing until a store is opened with them"]
pub struct FileSystemOptions {
    pub(super) mode: OpenMode,
    pub(super) durability: Durability,
    pub(super) file_mode: Option<u32>,
    pub(super) is_shared: bool,
    pub(super) allows_any_file_system: bool,
    pub(super) max_record_bytes: u64,
    pub(super) eviction: EvictionPolicy,
}

/// The largest record file by default.
pub(super) const DEFAULT_MAX_RECORD_BYTES: u64 = 1 << 30;

impl OpenMode {
    /// Whether a missing store is created.
    pub(super) fn creates(self) -> bool {
        matches!(self, Self::Create | Self::Adopt)
    }
}

impl Default for FileSystemOptions {
    fn default() -> Self {
        Self {
            mode: OpenMode::Create,
            durability: Durability::Full,
            file_mode: None,
            is_shared: false,
            allows_any_file_system: false,
            max_record_bytes: DEFAULT_MAX_RECORD_BYTES,
            eviction: EvictionPolicy::new(),
        }
    }
}

impl FileSystemOptions {
    /// The default options: create, full durability, mode 0666 before the umask, records up to 1 GiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the store may be created, or changed.
    pub fn mode(mut self, mode: OpenMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets what a change survives. The processes of one store may differ in it.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the permission bits of new files, before the process's umask is applied. Directories also get
    /// the search bit for everyone who may read. For a store that several users write, see
    /// [`shared_group`](Self::shared_group).
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = Some(mode & 0o777);
        self
    }

    /// Makes a new store usable for its group: the group of the store's directory or, if that is new, the
    /// group of this process.
    ///
    /// The directories get the setgid bit, and the modes of all files are set exactly, whatever the umask of
    /// the process that creates them: 0660, or what [`file_mode`](Self::file_mode) says together with these
    /// bits. Otherwise one process with the usual umask 022 would create files that the others may not write.
    ///
    /// An existing store says itself whether it is shared: its directory `.store` is writable for its group and
    /// has the setgid bit. Then its mode decides for all processes, with or without this option.
    /// [`verify`](crate::FileSystemRecordStore::verify) names the files that do not fit, and what to do.
    pub fn shared_group(mut self) -> Self {
        self.is_shared = true;
        self
    }

    /// Allows a file system whose locks cannot be trusted: NFS, SMB, 9p, FUSE, virtiofs, Ceph, Lustre and the
    /// like.
    ///
    /// There, `flock` may not keep out a process on another host, or one that uses the directory through another
    /// mount, and nothing notices that: both write, and updates are lost. Allow it if all processes are on one
    /// host and use one mount, or if the file system is known to be local. The environment variable
    /// `RECORD_STORE_ALLOW_FILE_SYSTEM=1` does the same for a whole process.
    pub fn allow_any_file_system(mut self) -> Self {
        self.allows_any_file_system = true;
        self
    }

    /// Sets the largest record file in bytes. Larger ones are neither written nor read, so a huge file in
    /// the place of a record cannot exhaust the memory. A change of that key moves it
    /// [aside](crate::FileSystemRecordStore::damaged), because it cannot be checked.
    pub fn max_record_bytes(mut self, bytes: u64) -> Self {
        self.max_record_bytes = bytes;
        self
    }

    /// Sets how large the store may be, and how old its records. The writes of this process then
    /// [evict](crate::RecordStoreExt::evict) what is too much, in the background.
    ///
    /// No write waits for that or fails because of it: a thread lists the records and removes the oldest ones. It begins
    /// with the first write, and again after later ones, but not before a second has passed since the last time, or nine
    /// times as long as that listing took. So a store of a hundred thousand records may exceed its limits by what all its
    /// processes write in a few seconds. The guide's page on [eviction](crate::guide::eviction) says more about this bound.
    ///
    /// One process at a time does it, and it keeps to its own policy: give the same one to all processes that write. A
    /// process whose writes do not evict may have none. An eviction that fails is reported by the feature `tracing`, and is
    /// tried again after half a minute. After the last handle is dropped, this process evicts nothing more. Those removals
    /// wait for no disk: after a power loss, a record that was evicted may be there again.
    ///
    /// With a policy of the order [`least_recently_read`](EvictionPolicy::least_recently_read), this process also notes when
    /// it reads a record, in the access time of the file. If the last read or write was less than a minute ago, that costs
    /// nothing, otherwise one system call. Nothing is noted in the file of another user, unless this process is root's, and
    /// nothing in a store that is opened read-only.
    ///
    /// A policy that is a [dry run](EvictionPolicy::dry_run) has no effect here: nobody would see what it finds.
    ///
    /// ```
    /// use record_store::{EvictionPolicy, FileSystemOptions, RecordStoreExt};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("cache");
    /// let policy = EvictionPolicy::new().max_bytes(2 << 30);
    /// let cache = FileSystemOptions::new().eviction(policy).open(&path)?;
    /// cache.write("page/1", "a large text")?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn eviction(mut self, policy: EvictionPolicy) -> Self {
        self.eviction = policy;
        self
    }

    /// The permissions of the files of a new store.
    pub(super) fn permissions(&self) -> Permissions {
        let usual = if self.is_shared { 0o660 } else { 0o666 };
        Permissions::new(self.file_mode.unwrap_or(usual), self.is_shared)
    }
}
