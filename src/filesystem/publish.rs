//! How files come to be and go: the one place that renames, syncs and unlinks.
//!
//! What a reader may find is staged in `.store/tmp/`, synced where the store is durable, and then
//! renamed into its place, so that it is there whole or not at all. A staged file carries its
//! writer's owner name, by which a sweep tells what a dead process left behind.
#![allow(clippy::disallowed_methods, reason = "this is the one place that they are left to")]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(target_os = "linux")]
use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::expiry;
use super::layout::{self, Context, Layout, Opened, TMP};
use super::open::Durability;
use super::owner::Owner;
use crate::Result;

/// A file that is complete but in nobody's sight. Dropped, it is discarded.
#[must_use = "a staged file is discarded when it is dropped"]
pub(super) struct Staged<'a> {
    layout: &'a Layout,
    /// Its name in the private directory. Empty once there is nothing to discard.
    name: String,
    durability: Durability,
}

/// Between the owner's name and the number in a staged file's name.
const SEPARATOR: char = '.';

/// Numbers the staged files of this process. The owner's name before it is this process's alone; a
/// forked child goes on counting, but has an owner of its own.
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl<'a> Staged<'a> {
    /// Writes `text` to a new file, and to the disk where that is asked for.
    pub(super) fn new(
        layout: &'a Layout,
        owner: &Owner,
        text: &[u8],
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        Self::written(layout, owner, text, None, durability, context)
    }

    /// [`Staged::new`] for a record that may come to its end, or not.
    pub(super) fn record(
        layout: &'a Layout,
        owner: &Owner,
        text: &[u8],
        ends: bool,
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        Self::written(layout, owner, text, ends.then_some(expiry::MARK), durability, context)
    }

    fn written(
        layout: &'a Layout,
        owner: &Owner,
        text: &[u8],
        mark: Option<u32>,
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TMP}/{}{SEPARATOR}{number:x}", owner.name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let mut file = layout::open_unseen(&layout.private, &name, flags, layout.mode())
            .map_err(|refusal| context.refused(refusal, "stage a file", layout.private_path(TMP)))?;
        // From here on it is discarded if anything fails.
        let staged = Self { layout, name, durability };
        let failed = |action, error| context.io(action, &layout.private_path(&staged.name), error);
        file.write_all(text).map_err(|error| failed("write the staged file", error))?;
        if let Some(mark) = mark {
            // Not at the creation: the umask may take it off.
            let marked = rustix::fs::fstat(&file)
                .and_then(|stat| rustix::fs::fchmod(&file, Mode::from_raw_mode(stat.st_mode | mark)));
            marked.map_err(|errno| failed("mark the staged file", errno.into()))?;
        }
        if durability == Durability::Full {
            // Once only. After a failed sync the kernel may call the same pages clean.
            file.sync_data().map_err(|error| failed("sync the staged file", error))?;
        }
        Ok(staged)
    }

    /// Gives the file its name in the store's directory, in the place of whatever has that name.
    pub(super) fn publish(mut self, name: &str, context: Context<'_>) -> Result<()> {
        let layout = self.layout;
        if self.durability == Durability::Relaxed && self.exchange(name) {
            // Now the staged name is the old file's, which goes with it.
            return Ok(());
        }
        rustix::fs::renameat(&layout.private, &*self.name, &layout.dir, name)
            .map_err(|errno| context.io("rename into place", &layout.root().join(name), errno))?;
        self.name.clear();
        Ok(())
    }

    /// Swaps the file with a regular one of this name, in one step; `false` if there is none, or if
    /// the file system cannot do that. Where nothing has to last this is the cheaper way: to rename
    /// over a file makes ext4 write the new one to the disk at once.
    #[cfg(target_os = "linux")]
    fn exchange(&self, name: &str) -> bool {
        let (from, to) = (&self.layout.private, &self.layout.dir);
        let exchange = || rustix::fs::renameat_with(from, &*self.name, to, name, RenameFlags::EXCHANGE);
        matches!(layout::look(to, name), Ok(Some(stat)) if layout::irregular(&stat).is_none())
            && exchange().is_ok()
    }

    #[cfg(not(target_os = "linux"))]
    fn exchange(&self, _name: &str) -> bool {
        false
    }

    /// Links the file to `name` in the private directory; `false` if that name is taken.
    pub(super) fn publish_private(self, name: &str, context: Context<'_>) -> Result<bool> {
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
            // What stays is swept away when this process is gone.
            let _ = rustix::fs::unlinkat(&self.layout.private, &*self.name, AtFlags::empty());
        }
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
    let mut file = layout::open_unseen(&layout.dir, name, flags, layout.mode())
        .map_err(|refusal| context.refused(refusal, "create", path()))?;
    file.write_all(text).map_err(|error| {
        // Nobody may find half a lock. If this fails as well, what stays is empty or unsound.
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })
}

/// Writes `text` into a blank file, by one write. `false` if the file is too large for that, has
/// another name, or is too small: a file that grows has its new content before it has its new size,
/// and so a reader could find the text cut off.
pub(super) fn fill(layout: &Layout, name: &str, text: &[u8], context: Context<'_>) -> Result<bool> {
    let path = || layout.root().join(name);
    let blank = layout::open(&layout.dir, name, OFlags::WRONLY, Mode::empty())
        .map_err(|refusal| context.refused(refusal, "open", path()))?;
    let Some(size) = page_size(&blank).filter(|size| text.len() <= *size) else { return Ok(false) };
    // No zero may be left of it.
    let mut padded = text.to_vec();
    padded.resize(size, b'\n');
    blank.file.write_all_at(&padded, 0).map_err(|error| {
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })?;
    Ok(true)
}

/// Overwrites a file with zeros, by one write: it is there, but says nothing. `false` if that cannot
/// be done, or was done only in part: a part is a lock that nobody could take, so then the file has
/// to go.
pub(super) fn blank(layout: &Layout, name: &str) -> bool {
    let Ok(full) = layout::open(&layout.dir, name, OFlags::WRONLY, Mode::empty()) else { return false };
    page_size(&full).is_some_and(|size| full.file.write_all_at(&vec![0; size], 0).is_ok())
}

/// The size of a file that one write covers, and that has no other name: under that it would be
/// written too, be it a backup or a file outside of the store.
fn page_size(opened: &Opened) -> Option<usize> {
    let own = opened.stat.st_nlink == 1;
    usize::try_from(opened.stat.st_size).ok().filter(|size| own && *size <= MAX_CREATE_BYTES)
}

/// The most that one write may cover: a page of any machine, with room to spare.
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
        retry_on_intr(|| rustix::fs::fsync(&layout.dir))
            .map_err(|errno| context.io("sync the directory", layout.root(), errno))?;
    }
    Ok(())
}

/// Makes a new store's directories survive a power loss: all those above it too, for any of them may
/// have been made with it, by this process or by another that has not synced it yet.
pub(super) fn sync_new_store(layout: &Layout, context: Context<'_>) -> Result<()> {
    for dir in layout.root().ancestors().skip(1) {
        let failed = |error| context.io("sync the directory", dir, error);
        match File::open(dir) {
            Ok(open) if open.metadata().map_err(failed)?.dev() == layout.identity.0 => {
                open.sync_all().map_err(failed)?;
            }
            // Another file system, on which this one is mounted.
            Ok(_) => break,
            // Whoever may not look into a directory has not made anything in it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(failed(error)),
        }
    }
    sync_records(layout, Durability::Full, context)?;
    sync_private(layout, context)
}

/// Makes what was linked in the private directory survive a power loss.
pub(super) fn sync_private(layout: &Layout, context: Context<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::fsync(&layout.private))
        .map_err(|errno| context.io("sync the directory", &layout.private_path(""), errno))
}
