//! Writing lock files in their places, with one write.

use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::Result;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Opened, Refusal, SECTOR};

/// Creates a new file under its final name, with one write. Only for lock files: an empty lock file is not
/// a lock yet, and a write of less than a page is complete or absent.
pub(crate) fn create(layout: &Layout, name: &str, text: &[u8], context: Context<'_>) -> Result<()> {
    let path = || layout.root().join(name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = layout::open_unchecked(&layout.dir, name, flags, layout.permissions.mode())
        .map_err(|refusal| refusal.into_error(context, "create", path()))?;
    file.write_all(text).map_err(|error| {
        // A part of a lock must not stay. If this fails as well, the rest is empty or corrupt.
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })
}

/// Writes `text` into a blank file with one write. `false`: the file is larger than a sector, has a second
/// name, or is too small. A file that grows gets its content before its size, so a reader could find the
/// text truncated. After a power loss, a larger file could have a part of this text and a part of an earlier one.
pub(crate) fn fill(layout: &Layout, name: &str, text: &[u8], context: Context<'_>) -> Result<bool> {
    let path = || layout.root().join(name);
    let blank = match layout::open(&layout.dir, name, OFlags::WRONLY, Mode::empty()) {
        // Another user's. It can be replaced nevertheless.
        Err(Refusal::Os(Errno::ACCESS | Errno::PERM)) => return Ok(false),
        opened => opened.map_err(|refusal| refusal.into_error(context, "open", path()))?,
    };
    let Some(size) = sector_size(&blank).filter(|size| text.len() <= *size) else { return Ok(false) };
    // No zero may remain.
    let mut padded = text.to_vec();
    padded.resize(size, b'\n');
    blank.file.write_all_at(&padded, 0).map_err(|error| {
        let _ = rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty());
        context.io("write", &path(), error)
    })?;
    Ok(true)
}

/// Overwrites a file with zeros, with one write: a blank file is not a lock. `false`: the file is larger than a
/// sector or has a second name, or that failed, perhaps half way. Then the caller removes the file.
pub(crate) fn blank(layout: &Layout, name: &str) -> bool {
    let Ok(full) = layout::open(&layout.dir, name, OFlags::WRONLY, Mode::empty()) else { return false };
    sector_size(&full).is_some_and(|size| full.file.write_all_at(&vec![0; size], 0).is_ok())
}

/// The size of a file that is not larger than a sector and has no second name. A write would change the file
/// under its second name too, which may be a backup or a file outside of the store.
fn sector_size(opened: &Opened) -> Option<usize> {
    let has_one_name = opened.stat.st_nlink == 1;
    usize::try_from(opened.stat.st_size).ok().filter(|size| has_one_name && *size <= SECTOR)
}

/// The most that one write may cover: less than a page of any machine.
pub(crate) const MAX_CREATE_BYTES: usize = 4_000;
