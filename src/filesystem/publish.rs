//! How files come to be and go: the one place that renames, syncs and unlinks.
//!
//! What a reader may find is staged in `.store/tmp/`, synced where the store is durable, and then
//! renamed into its place, so that it is there whole or not at all. A staged file carries its
//! writer's owner name, by which a sweep tells what a dead process left behind.
#![allow(clippy::disallowed_methods, reason = "this is the one place that they are left to")]

use std::fs::{File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use tempfile::TempPath;

use super::layout::{self, Context, Layout, TMP};
use super::open::Durability;
use super::owner::Owner;
use crate::Result;

/// A file that is complete but in nobody's sight. Dropped, it is discarded.
#[must_use = "a staged file is discarded when it is dropped"]
pub(super) struct Staged {
    path: TempPath,
    name: String,
}

/// Between the owner's name and the random part of a staged file's name.
const SEPARATOR: char = '.';

impl Staged {
    /// Writes `text` to a new file, and to the disk where the store is durable.
    pub(super) fn new(
        layout: &Layout,
        owner: &Owner,
        text: &[u8],
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        let dir = layout.private_path(TMP);
        let staged = tempfile::Builder::new()
            .prefix(&format!("{}{SEPARATOR}", owner.name))
            .permissions(Permissions::from_mode(layout.file_mode))
            .tempfile_in(&dir)
            .map_err(|error| context.io("stage a file", &dir, error))?;
        let (mut file, path) = staged.into_parts();
        file.write_all(text).map_err(|error| context.io("write the staged file", &path, error))?;
        if durability == Durability::Full {
            // Once only. After a failed sync the kernel may call the same pages clean.
            file.sync_data().map_err(|error| context.io("sync the staged file", &path, error))?;
        }
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { path, name })
    }

    /// Renames the file to `name` in the store's directory, over whatever has that name.
    pub(super) fn publish(self, layout: &Layout, name: &str, context: Context<'_>) -> Result<()> {
        rustix::fs::renameat(&layout.private, format!("{TMP}/{}", self.name), &layout.dir, name)
            .map_err(|errno| context.io("rename into place", &layout.root().join(name), errno))?;
        self.forget();
        Ok(())
    }

    /// Links the file to `name` in the private directory; `false` if that name is taken.
    pub(super) fn publish_private(self, layout: &Layout, name: &str, context: Context<'_>) -> Result<bool> {
        let from = format!("{TMP}/{}", self.name);
        match rustix::fs::linkat(&layout.private, from, &layout.private, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(context.io("link into place", &layout.private_path(name), errno)),
        }
    }

    /// The name is gone: there is nothing left to discard.
    fn forget(self) {
        // On Unix this only disarms the destructor.
        let _ = self.path.keep();
    }
}

/// The owner's name in a staged file's name.
pub(super) fn owner_of_staged(name: &str) -> Option<&str> {
    name.split_once(SEPARATOR).map(|(owner, _)| owner)
}

/// Creates a new file under its own name, by one write. Only for what is never looked at half
/// written: an empty lock file is no lock yet, and one write of less than a page is whole or not
/// there.
pub(super) fn create(layout: &Layout, name: &str, text: &[u8], context: Context<'_>) -> Result<()> {
    let path = || layout.root().join(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut opened = layout::open(&layout.dir, name, flags, layout.mode())
        .map_err(|refusal| context.refused(refusal, "create", path()))?;
    opened.file.write_all(text).map_err(|error| {
        // Nobody may find half a lock. If this fails as well, what stays is empty or unsound.
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })
}

/// The most that [`create`] may write: a page of any machine, with room to spare.
pub(super) const MAX_CREATE_BYTES: usize = 4_000;

/// Unlinks `name`; `false` if there is nothing of that name.
pub(super) fn remove(layout: &Layout, name: &str, context: Context<'_>) -> Result<bool> {
    match rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(context.io("unlink", &layout.root().join(name), errno)),
    }
}

/// Makes what was renamed or unlinked in the store's directory survive a power loss.
pub(super) fn sync_records(layout: &Layout, durability: Durability, context: Context<'_>) -> Result<()> {
    if durability == Durability::Full {
        rustix::fs::fsync(&layout.dir)
            .map_err(|errno| context.io("sync the directory", layout.root(), errno))?;
    }
    Ok(())
}

/// Makes a new directory's entries, and its own, survive a power loss.
pub(super) fn sync_new_store(layout: &Layout, durability: Durability, context: Context<'_>) -> Result<()> {
    if durability == Durability::Full {
        let private = layout.private_path("");
        let parent = layout.root().parent().map(PathBuf::from).unwrap_or_default();
        for dir in [private.as_path(), layout.root(), &parent] {
            File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(|error| context.io("sync the directory", dir, error))?;
        }
    }
    Ok(())
}
