//! How a store is opened.

/// The failures that a successful change survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Durability {
    /// Everything, power loss included: the record is synced before it is published, and the directory
    /// after.
    #[default]
    Full,
    /// A crash of any process, but not of the machine: nothing is synced. After a power loss a record is
    /// its newest or an earlier published value, or missing, or reported as corrupt; never a wrong value.
    Relaxed,
}

/// Whether a store may be created, or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OpenMode {
    /// Creates the directory and the store if they are missing.
    #[default]
    Create,
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
///     .file_mode(0o660)
///     .open(&path)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "options do nothing until a store is opened with them"]
pub struct FileSystemOptions {
    pub(super) mode: OpenMode,
    pub(super) durability: Durability,
    pub(super) file_mode: u32,
    pub(super) max_record_bytes: u64,
}

impl Default for FileSystemOptions {
    fn default() -> Self {
        Self {
            mode: OpenMode::Create,
            durability: Durability::Full,
            file_mode: 0o666,
            max_record_bytes: 1 << 30,
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
    /// the search bit for everyone who may read. Everyone who shares a store needs write permission for
    /// all its files.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode & 0o777;
        self
    }

    /// Sets the largest record file in bytes. Larger ones are neither written nor read, so a huge file in
    /// the place of a record cannot exhaust the memory.
    pub fn max_record_bytes(mut self, bytes: u64) -> Self {
        self.max_record_bytes = bytes;
        self
    }
}
