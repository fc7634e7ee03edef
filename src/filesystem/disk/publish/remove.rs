//! Unlinking.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use super::rename::is_current;
use crate::Result;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{DAMAGED, Layout};

/// Unlinks `name`. `false`: there is no such file.
pub(crate) fn remove(layout: &Layout, name: &str, context: Context<'_>) -> Result<bool> {
    match rustix::fs::unlinkat(&layout.dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(context.io("unlink", &layout.root().join(name), errno)),
    }
}

/// Unlinks a file that was examined. `false`: another file is there now.
pub(crate) fn remove_examined(
    layout: &Layout,
    name: &str,
    examined: &Stat,
    context: Context<'_>,
) -> Result<bool> {
    Ok(is_current(layout, name, examined, context)? && remove(layout, name, context)?)
}

/// Unlinks a file in `.store/damaged/`. `false`: another process was faster.
pub(crate) fn remove_damaged(
    layout: &Layout,
    dir: &OwnedFd,
    name: &str,
    context: Context<'_>,
) -> Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(context.io("unlink", &layout.private_path(DAMAGED).join(name), errno)),
    }
}

/// Unlinks a file in a directory of the store's own. `false`: it is still there, or was not there.
pub(crate) fn remove_private(dir: &OwnedFd, name: &str) -> bool {
    rustix::fs::unlinkat(dir, name, AtFlags::empty()).is_ok()
}

/// Removes a directory in the private one, if it is empty. Best effort.
pub(crate) fn remove_private_dir(private: &OwnedFd, name: &str) {
    let _ = rustix::fs::unlinkat(private, name, AtFlags::REMOVEDIR);
}

/// Removes a directory, if it is empty. Best effort.
pub(crate) fn remove_dir(path: &Path) {
    let _ = std::fs::remove_dir(path);
}

/// Unlinks a staged file.
pub(crate) fn remove_staged(layout: &Layout, name: &str, context: Context<'_>) -> Result<()> {
    rustix::fs::unlinkat(&layout.private, name, AtFlags::empty())
        .map_err(|errno| context.io("unlink", &layout.private_path(name), errno))
}
