//! Creating, publishing and removing files: the one place that renames, syncs and unlinks.
//!
//! A file that readers may find is first staged in `.store/tmp/`, synced if the store is durable, and then
//! renamed into place: readers find all of it or nothing. The name of a staged file begins with the name of
//! its writer's owner file, so a sweep recognizes the files of dead processes.
#![allow(clippy::disallowed_methods, reason = "the one place that is allowed to call them")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(target_os = "linux")]
use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::layout::{self, Layout, Opened, TMP};
use crate::filesystem::context::Context;
use crate::filesystem::options::Durability;
use crate::{Error, Result};

/// A complete file that nobody can see yet. Dropping it discards it.
#[must_use = "a staged file is discarded when it is dropped"]
pub(crate) struct Staged<'a> {
    layout: &'a Layout,
    /// Its name in the private directory. Empty once there is nothing to discard.
    name: String,
    durability: Durability,
}

/// Between the owner's name and the number in a staged file's name.
const SEPARATOR: char = '.';

/// Numbers the staged files of this process. A forked child continues the count, but has an owner name of
/// its own.
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl<'a> Staged<'a> {
    /// Writes `text` to a new file, and syncs it if the durability demands it. `owner` is the name of this
    /// process's owner file; the file gets `extra_mode` in addition to the layout's mode.
    pub(crate) fn new(
        layout: &'a Layout,
        owner: &str,
        text: &[u8],
        extra_mode: u32,
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TMP}/{owner}{SEPARATOR}{number:x}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = layout::open_unchecked(&layout.private, &*name, flags, layout.mode())
            .map_err(|refusal| refusal.into_error(context, "stage a file", layout.private_path(TMP)))?;
        // From here on it is discarded if a step fails.
        let staged = Self { layout, name, durability };
        let failed = |action, error| context.io(action, &layout.private_path(&staged.name), error);
        file.write_all(text).map_err(|error| failed("write the staged file", error))?;
        if extra_mode != 0 {
            // Not when the file is created: the umask could clear the bits.
            let set = rustix::fs::fstat(&file)
                .and_then(|stat| rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode | extra_mode)));
            set.map_err(|errno| failed("set the mode of the staged file", errno.into()))?;
        }
        if durability == Durability::Full {
            // Only once: after a failed sync the kernel may report the same pages as clean.
            file.sync_data().map_err(|error| failed("sync the staged file", error))?;
        }
        Ok(staged)
    }

    /// Renames the file into the store's directory, over an existing file of that name.
    pub(crate) fn publish(mut self, name: &str, context: Context<'_>) -> Result<()> {
        let layout = self.layout;
        if self.durability == Durability::Relaxed && self.exchange(name) {
            // The staged name now belongs to the old file, and is discarded with it.
            return Ok(());
        }
        rustix::fs::renameat(&layout.private, &*self.name, &layout.dir, name)
            .map_err(|errno| context.io("rename into place", &layout.root().join(name), errno))?;
        self.name.clear();
        Ok(())
    }

    /// Exchanges the file with the regular file of this name atomically. `false`: there is none, or the
    /// file system does not support it. Without a sync this is cheaper: a rename over an existing file makes
    /// ext4 write the new one to the disk at once.
    #[cfg(target_os = "linux")]
    fn exchange(&self, name: &str) -> bool {
        let (from, to) = (&self.layout.private, &self.layout.dir);
        let exchange = || rustix::fs::renameat_with(from, &*self.name, to, name, RenameFlags::EXCHANGE);
        matches!(layout::stat(to, name), Ok(Some(stat)) if layout::irregular(&stat).is_none())
            && exchange().is_ok()
    }

    #[cfg(not(target_os = "linux"))]
    fn exchange(&self, _name: &str) -> bool {
        false
    }

    /// Links the file to `name` in the private directory. `false`: that name exists.
    pub(crate) fn publish_private(self, name: &str, context: Context<'_>) -> Result<bool> {
        let private = &self.layout.private;
        match rustix::fs::linkat(private, &*self.name, private, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(context.io("link into place", &self.layout.private_path(name), errno)),
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // If this fails, a sweep removes the file after the end of this process.
            let _ = rustix::fs::unlinkat(&self.layout.private, &*self.name, AtFlags::empty());
        }
    }
}

/// The owner's name in the name of a staged file.
pub(crate) fn owner_of_staged(name: &str) -> Option<&str> {
    name.split_once(SEPARATOR).map(|(owner, _)| owner)
}

/// Creates a new file under its final name, with one write. Only for lock files: an empty lock file is not
/// a lock yet, and a write of less than a page is complete or absent.
pub(crate) fn create(layout: &Layout, name: &str, text: &[u8], context: Context<'_>) -> Result<()> {
    let path = || layout.root().join(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = layout::open_unchecked(&layout.dir, name, flags, layout.mode())
        .map_err(|refusal| refusal.into_error(context, "create", path()))?;
    file.write_all(text).map_err(|error| {
        // A part of a lock must not stay. If this fails as well, the rest is empty or corrupt.
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })
}

/// Writes `text` into a blank file with one write. `false`: the file is too large for that, has a second
/// name, or is too small. A file that grows gets its content before its size, so a reader could find the
/// text truncated.
pub(crate) fn fill(layout: &Layout, name: &str, text: &[u8], context: Context<'_>) -> Result<bool> {
    let path = || layout.root().join(name);
    let blank = layout::open(&layout.dir, name, OFlags::WRONLY, Mode::empty())
        .map_err(|refusal| refusal.into_error(context, "open", path()))?;
    let Some(size) = page_size(&blank).filter(|size| text.len() <= *size) else { return Ok(false) };
    // No zero may remain.
    let mut padded = text.to_vec();
    padded.resize(size, b'\n');
    blank.file.write_all_at(&padded, 0).map_err(|error| {
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })?;
    Ok(true)
}

/// Overwrites a file with zeros, with one write: a blank file is not a lock. `false`: that failed, perhaps
/// half way. The caller must remove the file then, because a part of a lock is corrupt.
pub(crate) fn blank(layout: &Layout, name: &str) -> bool {
    let Ok(full) = layout::open(&layout.dir, name, OFlags::WRONLY, Mode::empty()) else { return false };
    page_size(&full).is_some_and(|size| full.file.write_all_at(&vec![0; size], 0).is_ok())
}

/// The size of a file that one write covers and that has no second name. A write would change the file
/// under its second name too, which may be a backup or a file outside of the store.
fn page_size(opened: &Opened) -> Option<usize> {
    let has_one_name = opened.stat.st_nlink == 1;
    usize::try_from(opened.stat.st_size).ok().filter(|size| has_one_name && *size <= MAX_CREATE_BYTES)
}

/// The most that one write may cover: less than a page of any machine.
pub(crate) const MAX_CREATE_BYTES: usize = 4_000;

/// Unlinks `name`. `false`: there is no such file.
pub(crate) fn remove(layout: &Layout, name: &str, context: Context<'_>) -> Result<bool> {
    match rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(context.io("unlink", &layout.root().join(name), errno)),
    }
}

/// Unlinks a file in a directory of the store's own. `false`: it is still there, or was not there.
pub(crate) fn remove_private(dir: &OwnedFd, name: &str) -> bool {
    rustix::fs::unlinkat(dir, name, AtFlags::empty()).is_ok()
}

/// Makes the renames and removals in the store's directory survive a power loss.
pub(crate) fn sync_records(layout: &Layout, durability: Durability, context: Context<'_>) -> Result<()> {
    match durability {
        // The change is visible already. If the sync fails, it may or may not survive.
        Durability::Full => sync(&layout.dir, layout.root(), context).map_err(Error::with_unknown_outcome),
        Durability::Relaxed => Ok(()),
    }
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
    sync(&layout.dir, layout.root(), context)?;
    sync_private(layout, context)
}

/// Makes the names in the private directory survive a power loss.
pub(crate) fn sync_private(layout: &Layout, context: Context<'_>) -> Result<()> {
    sync(&layout.private, &layout.private_path(""), context)
}

fn sync(dir: &OwnedFd, path: &Path, context: Context<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::fsync(dir)).map_err(|errno| context.io("sync the directory", path, errno))
}
