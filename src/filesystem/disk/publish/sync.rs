//! Syncing files and directories.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Refusal};
use crate::filesystem::options::Durability;
use crate::{Error, Result};

/// Syncs a file in the store's directory, if there is one.
pub(crate) fn sync_file(layout: &Layout, name: &str, context: Context<'_>) -> Result<()> {
    let path = || layout.root().join(name);
    match layout::open_existing(&layout.dir, name) {
        Ok(Some(opened)) => opened.file.sync_data().map_err(|error| context.io("sync", &path(), error)),
        // The file there now is none of ours.
        Ok(None) | Err(Refusal::NotRegular(_)) => Ok(()),
        Err(refusal) => Err(refusal.into_error(context, "open", path())),
    }
}

/// Syncs all files of the file system that has the store.
pub(crate) fn sync_file_system(layout: &Layout, context: Context<'_>) -> Result<()> {
    let failed = |errno| context.io("sync the file system", layout.root(), errno);
    // Opened for this: each open file reports an earlier error once.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let dir = layout::open_unchecked(&layout.dir, ".", flags, Mode::empty());
    let dir =
        dir.map_err(|refusal| refusal.into_error(context, "open the directory", layout.root().to_owned()))?;
    retry_on_intr(|| sync_all_of(&dir)).map_err(failed)
}

#[cfg(target_os = "linux")]
fn sync_all_of(file: &File) -> Result<(), Errno> {
    rustix::fs::syncfs(file)
}

#[cfg(not(target_os = "linux"))]
fn sync_all_of(_file: &File) -> Result<(), Errno> {
    rustix::fs::sync();
    Ok(())
}

/// Makes the renames and removals in the store's directory survive a power loss.
pub(crate) fn sync_records(layout: &Layout, durability: Durability, context: Context<'_>) -> Result<()> {
    match durability {
        // The change is visible already. If the sync fails, it may or may not survive.
        Durability::Full => sync_names(layout, context).map_err(Error::with_unknown_outcome),
        Durability::Relaxed => Ok(()),
    }
}

/// Syncs the store's directory: the names in it survive a power loss.
pub(crate) fn sync_names(layout: &Layout, context: Context<'_>) -> Result<()> {
    sync(&layout.dir, layout.root(), context)
}

/// Makes a new store's directories survive a power loss. The directories above it too: this process, or
/// another one that has not synced yet, may have created them together with the store.
pub(crate) fn sync_new_store(layout: &Layout, context: Context<'_>) -> Result<()> {
    for dir in layout.root().ancestors().skip(1) {
        let failed = |error| context.io("sync the directory", dir, error);
        match File::open(dir) {
            Ok(open) if open.metadata().map_err(failed)?.dev() == layout.identity.0 => {
                open.sync_all().map_err(failed)?;
            }
            // The parent is on another file system, on which this one is mounted.
            Ok(_) => break,
            // A process that may not read a directory has not created anything in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(failed(error)),
        }
    }
    sync_names(layout, context)?;
    sync_private(layout, context)
}

/// Makes the names in the private directory survive a power loss.
pub(crate) fn sync_private(layout: &Layout, context: Context<'_>) -> Result<()> {
    sync(&layout.private, &layout.private_path(""), context)
}

fn sync(dir: &OwnedFd, path: &Path, context: Context<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::fsync(dir)).map_err(|errno| context.io("sync the directory", path, errno))
}
