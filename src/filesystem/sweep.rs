//! Clearing away what dead processes left behind: their staged files and their owner files. What a
//! live process uses is never touched, for only the kernel's word counts as proof of death.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::latch;
use super::layout::{self, Context, Layout, OWNERS, TMP};
use super::lease::Liveness;
use super::owner::{self, Owner};
use super::publish;
use crate::Result;

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Owner files of dead processes.
    pub owners: usize,
    /// Records and locks that dead processes had begun to write.
    pub staged: usize,
    /// Lock files of locks that were no longer live.
    pub locks: usize,
    /// Records whose time to live was over.
    pub records: usize,
}

/// Staged files first: once its owner file is gone, a dead process can no longer be told from one
/// that was never there.
pub(super) fn sweep(layout: &Layout, context: Context<'_>) -> Result<Swept> {
    let here = Owner::known_here(layout);
    let mut swept = Swept::default();
    let tmp = open_dir(layout, TMP, context)?;
    for name in names(layout, &tmp, TMP, context)? {
        let dead = publish::owner_of_staged(&name)
            .is_some_and(|owner| owner::liveness(layout, owner, here.as_deref()) == Liveness::Dead);
        if dead && rustix::fs::unlinkat(&tmp, &*name, AtFlags::empty()).is_ok() {
            swept.staged += 1;
        }
    }
    let owners = open_dir(layout, OWNERS, context)?;
    for name in names(layout, &owners, OWNERS, context)? {
        if here.as_ref().is_some_and(|here| here.name == name) {
            continue;
        }
        let Ok(Some(opened)) = layout::open_existing(&owners, &name) else { continue };
        // Held while the file is unlinked, so that a process that is just now making this file
        // either has it locked already or sees that it lost it. Shared, so that others who look for
        // proof of death just now find it too.
        if latch::try_shared(&opened.file).is_ok_and(|proof| proof)
            && rustix::fs::unlinkat(&owners, &*name, AtFlags::empty()).is_ok()
        {
            swept.owners += 1;
        }
    }
    Ok(swept)
}

fn open_dir(layout: &Layout, name: &str, context: Context<'_>) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    layout::openat(&layout.private, name, flags, Mode::empty())
        .map_err(|errno| context.io("open the directory", &layout.private_path(name), errno))
}

fn names(layout: &Layout, dir: &OwnedFd, name: &str, context: Context<'_>) -> Result<Vec<String>> {
    let failed = |errno| context.io("list the directory", &layout.private_path(name), errno);
    let mut names = Vec::new();
    for entry in layout::list(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // Names that are not UTF-8 are not ours.
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
