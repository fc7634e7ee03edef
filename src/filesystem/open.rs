//! Opening a store: what it can be opened for, and what is checked and made on the way.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::layout::{self, Context, FORMAT, Layout};
use super::owner::Owner;
use super::publish::{self, Staged};
use super::wait::Events;
use super::{FileSystemRecordStore, sweep};
use crate::trace;
use crate::{Error, Result};

/// What a successful change survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Everything, power loss included: the record is synced before it is published, and the
    /// directory after.
    #[default]
    Full,
    /// A crash of any process, but not of the machine: nothing is synced. After a power loss a
    /// record is its newest or an earlier published value, or missing, or reported corrupt; never a
    /// wrong value.
    Relaxed,
}

/// Whether a store may be made, or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum OpenMode {
    /// Make the directory and the store where they are missing.
    #[default]
    Create,
    /// Only open a store that is there.
    Existing,
    /// Only read: nothing is ever written, so it works in a directory that cannot be written.
    /// Every change is [`Error::ReadOnly`].
    ReadOnly,
}

/// How a [`FileSystemRecordStore`] is opened.
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

/// The format that this version writes, and the newest that it reads.
const FORMAT_VERSION: u64 = 1;

/// More than any `format.json` needs.
const MAX_FORMAT_BYTES: u64 = 4096;

impl FileSystemOptions {
    /// The default options: create, full durability, mode 0666 before the umask, records up to
    /// 1 GiB.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the store may be made, or changed.
    pub fn mode(mut self, mode: OpenMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets what a change survives. Processes of one store may differ in it.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets the permission bits of new files, from which the process's umask is taken off.
    /// Directories also get the right to be searched by whoever may read. Everyone who shares a
    /// store needs the right to write all its files.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode & 0o777;
        self
    }

    /// Sets the largest record file in bytes. Larger ones are neither written nor read, so a huge
    /// file put in the place of a record cannot exhaust the memory.
    pub fn max_record_bytes(mut self, bytes: u64) -> Self {
        self.max_record_bytes = bytes;
        self
    }

    /// Opens the store in `dir`, and sweeps away what dead processes left there.
    ///
    /// # Errors
    ///
    /// [`Error::NotAStore`] if there is none and none may be made; [`Error::UnsupportedFormat`] if
    /// a newer version of this crate made it; [`Error::UnsupportedFileSystem`] if `flock` does not
    /// work there; [`Error::CorruptStore`], [`Error::NotARegularFile`], [`Error::Io`]. Nothing but
    /// missing directories has been made then.
    pub fn open(self, dir: impl AsRef<Path>) -> Result<FileSystemRecordStore> {
        let context = Context::whole("open");
        let dir = dir.as_ref();
        // Later changes of the working directory must not move the store.
        let root = std::path::absolute(dir).map_err(|error| context.io("resolve the path", dir, error))?;
        if self.mode == OpenMode::ReadOnly {
            return self.open_read_only(root, context);
        }
        if self.mode == OpenMode::Create {
            Layout::create(&root, self.file_mode, context)?;
        }
        let layout = Layout::open(root, self.file_mode, context)?;
        // Before anything else is made, see that this is a store, and one that we know.
        match check(&layout, context) {
            Err(Error::NotAStore { .. }) if self.mode == OpenMode::Create => {
                layout.complete(context)?;
                initialise(&layout, context)?;
            }
            checked => {
                checked?;
                layout.complete(context)?;
            }
        }
        let here = Owner::here(&layout, context)?;
        refuse_without_flock(&layout, &here, context)?;
        let events = Events::open(&layout, true, context)?;
        let store = FileSystemRecordStore { layout: Arc::new(layout), options: self, events };
        trace::swept(&sweep::sweep(&store.layout, context)?);
        Ok(store)
    }

    fn open_read_only(self, root: PathBuf, context: Context<'_>) -> Result<FileSystemRecordStore> {
        let layout = Layout::open(root, self.file_mode, context)?;
        check(&layout, context)?;
        let events = Events::open(&layout, false, context)?;
        Ok(FileSystemRecordStore { layout: Arc::new(layout), options: self, events })
    }
}

#[derive(Serialize, Deserialize)]
struct Format {
    version: u64,
}

/// Sees that this is a store, of a format that this version knows.
pub(super) fn check(layout: &Layout, context: Context<'_>) -> Result<()> {
    let path = || layout.private_path(FORMAT);
    let opened = layout::open_existing(&layout.private, FORMAT)
        .map_err(|refusal| context.refused(refusal, "open", path()))?
        .ok_or_else(|| Error::NotAStore { path: layout.root().to_owned() })?;
    let text =
        layout::read_up_to(&opened, MAX_FORMAT_BYTES).map_err(|error| context.io("read", &path(), error))?;
    let corrupt = |reason: &str, source| Error::CorruptStore {
        operation: context.operation,
        reason: reason.into(),
        path: path(),
        source,
    };
    match serde_json::from_slice(&text) {
        Ok(Format { version: 0 }) => Err(corrupt("format version 0", None)),
        Ok(Format { version }) if version > FORMAT_VERSION => {
            Err(Error::UnsupportedFormat { found: version, supported: FORMAT_VERSION, path: path() })
        }
        Ok(_) => Ok(()),
        Err(error) => Err(corrupt("not a format version", Some(error))),
    }
}

/// Marks a new store. Of several processes that do so at once, one does and the others find it done.
///
/// Synced whatever the durability, which others may set differently, and the mark last: where it is
/// seen, the directories that records go to are on the disk.
fn initialise(layout: &Layout, context: Context<'_>) -> Result<()> {
    let here = Owner::here(layout, context)?;
    let text = format!("{{\"version\":{FORMAT_VERSION}}}\n");
    publish::sync_new_store(layout, context)?;
    let staged = Staged::new(layout, &here, text.as_bytes(), Durability::Full, context)?;
    if !staged.publish_private(FORMAT, context)? {
        return check(layout, context);
    }
    publish::sync_private(layout, context)
}

/// A file that this process has locked must look locked to whoever opens it afresh.
fn refuse_without_flock(layout: &Layout, here: &Owner, context: Context<'_>) -> Result<()> {
    if here.looks_alive(layout, context)? {
        return Ok(());
    }
    Err(Error::UnsupportedFileSystem {
        reason: "flock does not keep two open files apart",
        path: layout.root().to_owned(),
    })
}
