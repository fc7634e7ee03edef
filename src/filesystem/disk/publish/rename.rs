//! Renaming without replacing a file.

use std::os::fd::OwnedFd;

#[cfg(target_os = "linux")]
use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::Result;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout};

/// A name in a directory.
pub(super) type Name<'a> = (&'a OwnedFd, &'a str);

/// Renames a file, unless the new name exists.
#[cfg(target_os = "linux")]
pub(super) fn rename_new(from: Name<'_>, to: Name<'_>) -> Result<(), Errno> {
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn rename_new(_from: Name<'_>, _to: Name<'_>) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

/// Renames a file, unless the new name exists, on any file system.
pub(super) fn move_new(from: Name<'_>, to: Name<'_>) -> Result<(), Errno> {
    match rename_new(from, to) {
        // The file system cannot do it, or what follows fails in the same way.
        Err(errno) if errno != Errno::EXIST => {}
        renamed => return renamed,
    }
    match rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty()) {
        Ok(()) => {
            // If this fails, the second name is removed by a sweep.
            let _ = rustix::fs::unlinkat(from.0, from.1, AtFlags::empty());
            return Ok(());
        }
        Err(Errno::EXIST) => return Err(Errno::EXIST),
        Err(_) => {}
    }
    // No call of such a file system is atomic. A file that appears after this check would be lost.
    if layout::stat(to.0, to.1)?.is_some() {
        return Err(Errno::EXIST);
    }
    rustix::fs::renameat(from.0, from.1, to.0, to.1)
}

/// Renames a file to a new name where no rename can check that the name is new: an empty file, which only one
/// process can create, reserves the name.
pub(super) fn rename_reserved(from: Name<'_>, to: Name<'_>) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(to.0, to.1, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::renameat(from.0, from.1, to.0, to.1).inspect_err(|_| {
        let _ = rustix::fs::unlinkat(to.0, to.1, AtFlags::empty());
    })
}

/// Whether the file of this name in the store's directory still is the one that was examined.
pub(super) fn is_current(layout: &Layout, name: &str, examined: &Stat, context: Context<'_>) -> Result<bool> {
    layout::stat(&layout.dir, name)
        .map(|stat| stat.is_some_and(|stat| layout::is_same(&stat, examined)))
        .map_err(|errno| context.io("stat", &layout.root().join(name), errno))
}

/// The times that two processes take from the clock are rarely the same.
pub(super) const MAX_NAME_ATTEMPTS: usize = 100;
