//! Creating, publishing and removing files: the one place that renames, syncs and unlinks.
//!
//! A file that readers may find is first staged in `.store/staged/`, synced if the store is durable, and then
//! renamed into place: readers find all of it or nothing. The name of a staged file begins with the name of
//! its writer's owner file, so a sweep recognizes the files of dead processes.
//!
//! A file that is in the place of a record is not overwritten and not unlinked by its name: it is
//! [displaced](Displaced), which means moved to a name in `.store/staged/` that says its old one. There it is
//! examined.
#![allow(clippy::disallowed_methods, reason = "the one place that is allowed to call them")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

#[cfg(target_os = "linux")]
use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::layout::{self, DAMAGED, Layout, Opened, Refusal, SECTOR, STAGED};
use crate::filesystem::context::Context;
use crate::filesystem::options::Durability;
use crate::rfc3339;
use crate::{Error, Result};

/// A complete file that nobody can see yet. Dropping it discards it.
#[must_use = "a staged file is discarded when it is dropped"]
pub(crate) struct Staged<'a> {
    layout: &'a Layout,
    /// Its name in the private directory. Empty once there is nothing to discard.
    name: String,
}

/// A file that was in the place of a record, under a name in `.store/staged/`.
#[must_use = "a displaced file has to be examined"]
#[derive(Debug)]
pub(crate) struct Displaced {
    /// Its name in the private directory.
    pub(crate) name: String,
    /// Its name in the store's directory.
    pub(crate) original: String,
    /// Its metadata in the store's directory, a moment before.
    pub(crate) stat: Option<Stat>,
}

/// Separates the parts of a staged file's name: the owner's name, a number and, if the file may be a displaced
/// one, its original name.
pub(crate) const SEPARATOR: char = '.';

/// Numbers the staged files of this process. A forked child continues the count, but has an owner name of
/// its own.
static NUMBER: AtomicU64 = AtomicU64::new(0);

impl<'a> Staged<'a> {
    /// Stages the text of a record of this version. `owner` is the name of this process's owner file. With full
    /// durability it is synced: a record that the commit log tells is staged with relaxed durability.
    pub(crate) fn for_record(
        layout: &'a Layout,
        owner: &str,
        record_name: &str,
        (version, text): (u64, &[u8]),
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        let plain = versioned(&unique_name(owner), version);
        // One write is complete or absent, so this file is never unfinished: see `name_for`. After a power
        // loss it may be, unless it was synced under another name.
        let is_finished_at_once = durability == Durability::Relaxed && text.len() <= MAX_CREATE_BYTES;
        let name = if is_finished_at_once { as_displaced(&plain, record_name) } else { plain.clone() };
        let created = match Self::create(layout, name) {
            // An encrypting file system may have room only for the name of the record.
            Err(Refusal::Os(Errno::NAMETOOLONG)) => Self::create(layout, plain),
            created => created,
        };
        Self::written(created, layout, text, durability, context)
    }

    /// Stages the text of a file that replaces no record.
    pub(crate) fn new(
        layout: &'a Layout,
        owner: &str,
        text: &[u8],
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        let mut created = Err(Refusal::Os(Errno::EXIST));
        for _ in 0..MAX_NAME_ATTEMPTS {
            created = Self::create(layout, unique_name(owner));
            // Left by another process of this number, which had no owner file either.
            if !matches!(created, Err(Refusal::Os(Errno::EXIST))) {
                break;
            }
        }
        Self::written(created, layout, text, durability, context)
    }

    /// Writes `text` to a new file, and syncs it if the durability demands it.
    fn written(
        created: Result<(Self, File), Refusal>,
        layout: &'a Layout,
        text: &[u8],
        durability: Durability,
        context: Context<'_>,
    ) -> Result<Self> {
        let (staged, mut file) = created
            .map_err(|refusal| refusal.into_error(context, "stage a file", layout.private_path(STAGED)))?;
        let failed = |action, error| context.io(action, &layout.private_path(&staged.name), error);
        file.write_all(text).map_err(|error| failed("write the staged file", error))?;
        if durability == Durability::Full {
            // Only once: after a failed sync the kernel may report the same pages as clean.
            file.sync_data().map_err(|error| failed("sync the staged file", error))?;
        }
        Ok(staged)
    }

    /// Replaces the text of a staged record by one of another version that is not shorter, and syncs it again if the
    /// durability demands it. One write, as in `for_record`.
    pub(crate) fn rewrite(
        &mut self,
        (version, text): (u64, &[u8]),
        durability: Durability,
        context: Context<'_>,
    ) -> Result<()> {
        let path = || self.layout.private_path(&self.name);
        let private = &self.layout.private;
        let file = layout::open_unchecked(private, &*self.name, OFlags::WRONLY, Mode::empty())
            .map_err(|refusal| refusal.into_error(context, "open the staged file", path()))?;
        file.write_all_at(text, 0).map_err(|error| context.io("write the staged file", &path(), error))?;
        if durability == Durability::Full {
            file.sync_data().map_err(|error| context.io("sync the staged file", &path(), error))?;
        }
        let renamed = versioned(&self.name, version);
        rustix::fs::renameat(private, &*self.name, private, &*renamed)
            .map_err(|errno| context.io("rename the staged file", &path(), errno))?;
        self.name = renamed;
        Ok(())
    }

    /// Syncs the text, where the log does not tell it.
    pub(crate) fn sync(&self, context: Context<'_>) -> Result<()> {
        let path = || self.layout.private_path(&self.name);
        let file = layout::open_unchecked(&self.layout.private, &*self.name, OFlags::WRONLY, Mode::empty())
            .map_err(|refusal| refusal.into_error(context, "open the staged file", path()))?;
        file.sync_data().map_err(|error| context.io("sync the staged file", &path(), error))
    }

    /// Creates an empty file. From then on it is discarded if a step fails.
    fn create(layout: &'a Layout, name: String) -> Result<(Self, File), Refusal> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = layout::open_unchecked(&layout.private, &*name, flags, layout.permissions.mode())?;
        let staged = Self { layout, name };
        if !layout.permissions.are_usual() {
            layout.permissions.apply(&file).map_err(Refusal::Os)?;
        }
        Ok((staged, file))
    }

    /// Renames the file to the name of a record that has no file. `false`: there is one.
    pub(crate) fn publish_new(&mut self, name: &str, context: Context<'_>) -> Result<bool> {
        match move_new((&self.layout.private, &self.name), (&self.layout.dir, name)) {
            Ok(()) => self.name.clear(),
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => {
                return Err(context.io("rename into place", &self.layout.root().join(name), errno));
            }
        }
        Ok(true)
    }

    /// Gives the file the name of a record that has no file, as a second name: until it is synced, the name in the
    /// private directory says that this record may be torn by a power loss. Returns that name, for
    /// [`remove_staged`]. `Err(EXIST)`: the record has a file.
    pub(crate) fn publish_linked(&mut self, name: &str) -> Result<String, Errno> {
        self.name_for(name)?;
        let layout = self.layout;
        rustix::fs::linkat(&layout.private, &*self.name, &layout.dir, name, AtFlags::empty())?;
        Ok(std::mem::take(&mut self.name))
    }

    /// Renames the file to a staged name that says the record's. A crash leaves the old file of the record, or
    /// this one, under this name. A sweep may unlink an unfinished file whatever is in it, but not that one.
    pub(crate) fn name_for(&mut self, name: &str) -> Result<&str, Errno> {
        let private = &self.layout.private;
        if original_of_staged(&self.name).is_none() {
            let displaced = as_displaced(&self.name, name);
            rustix::fs::renameat(private, &*self.name, private, &*displaced)?;
            self.name = displaced;
        }
        Ok(&self.name)
    }

    /// [`name_for`](Staged::name_for), and makes the name survive a power loss.
    pub(crate) fn name_on_disk(&mut self, name: &str, context: Context<'_>) -> Result<&str> {
        let layout = self.layout;
        let path = || layout.private_path(STAGED);
        let failed = |errno| context.io("sync the directory", &path(), errno);
        self.name_for(name).map_err(failed)?;
        let dir = layout.open_private_dir(STAGED).map_err(failed)?;
        retry_on_intr(|| rustix::fs::fsync(&dir)).map_err(failed)?;
        Ok(&self.name)
    }

    /// Exchanges the file with the one in the place of the record atomically. `None`: there is none, or the
    /// file system does not support it.
    #[cfg(target_os = "linux")]
    pub(crate) fn exchange(&mut self, name: &str, old: Stat) -> Option<Displaced> {
        self.name_for(name).ok()?;
        let private = &self.layout.private;
        exchange((private, &self.name), (&self.layout.dir, name)).ok()?;
        let (staged, original) = (std::mem::take(&mut self.name), name.to_owned());
        Some(Displaced { name: staged, original, stat: Some(old) })
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self, reason = "as on Linux")]
    pub(crate) fn exchange(&mut self, _name: &str, _old: Stat) -> Option<Displaced> {
        None
    }

    /// Renames the file over the one in the place of the record, which the caller has examined. `false`: another
    /// file is there now.
    pub(crate) fn rename_over_examined(
        &mut self,
        name: &str,
        examined: &Stat,
        context: Context<'_>,
    ) -> Result<bool> {
        let is_current = is_current(self.layout, name, examined, context)?;
        if is_current {
            self.rename_over(name, context)?;
        }
        Ok(is_current)
    }

    /// Renames the file into the store's directory, over an existing file of that name, which the caller has
    /// examined.
    pub(crate) fn rename_over(&mut self, name: &str, context: Context<'_>) -> Result<()> {
        let layout = self.layout;
        rustix::fs::renameat(&layout.private, &*self.name, &layout.dir, name)
            .map_err(|errno| context.io("rename into place", &layout.root().join(name), errno))?;
        self.name.clear();
        Ok(())
    }

    /// Publishes a lock file. The caller has read the old one, if there was one, under the latch.
    ///
    /// An exchange is cheaper than a rename over the old file, which makes ext4 write the new one to the disk
    /// at once. Then the staged name belongs to the old lock, and is discarded with it.
    pub(crate) fn publish_lock(mut self, name: &str, context: Context<'_>) -> Result<()> {
        let layout = self.layout;
        match layout::stat(&layout.dir, name) {
            Ok(None) if self.publish_new(name, context)? => return Ok(()),
            // Another program has just created it.
            Ok(None) => return Err(context.io("create", &layout.root().join(name), Errno::EXIST)),
            #[cfg(target_os = "linux")]
            Ok(Some(stat))
                if layout::irregular(&stat).is_none()
                    && exchange((&layout.private, &self.name), (&layout.dir, name)).is_ok() =>
            {
                return Ok(());
            }
            Ok(Some(_)) | Err(_) => {}
        }
        self.rename_over(name, context)
    }

    /// Renames the file to a name in the private directory that does not exist. Called in the latch of the
    /// creation, so that nobody else gives a file that name.
    pub(crate) fn publish_private(mut self, name: &str, context: Context<'_>) -> Result<()> {
        let private = &self.layout.private;
        rustix::fs::renameat(private, &*self.name, private, name)
            .map_err(|errno| context.io("rename into place", &self.layout.private_path(name), errno))?;
        self.name.clear();
        Ok(())
    }
}

/// The owner's name in the names of files that a process stages before it has an owner file. There is no such
/// file, so a sweep removes what such a process leaves.
pub(crate) fn nameless_owner() -> String {
    format!("new-{}", std::process::id())
}

/// Creates an empty file in the private directory, if there is none of that name. It appears with its
/// permissions.
pub(crate) fn create_private(layout: &Layout, name: &str) -> Result<(), Refusal> {
    for _ in 0..MAX_NAME_ATTEMPTS {
        let (mut staged, _) = match Staged::create(layout, unique_name(&nameless_owner())) {
            // Left by another process of this number.
            Err(Refusal::Os(Errno::EXIST)) => continue,
            created => created?,
        };
        let (from, to) = ((&layout.private, &*staged.name), (&layout.private, name));
        let linked = || rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty());
        match rename_new(from, to) {
            Ok(()) => staged.name.clear(),
            Err(Errno::EXIST) => {}
            // A sweep has taken it for the file of a dead process.
            Err(Errno::NOENT) if matches!(layout::stat(from.0, from.1), Ok(None)) => continue,
            Err(_) => match linked() {
                Ok(()) | Err(Errno::EXIST) => {}
                // No other way is left on this file system: for a moment it has no permissions.
                Err(_) => match layout.create(to.0, name, OFlags::WRONLY) {
                    Ok(_) | Err(Refusal::Os(Errno::EXIST)) => {}
                    Err(refusal) => return Err(refusal),
                },
            },
        }
        return Ok(());
    }
    Err(Refusal::Os(Errno::EXIST))
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // If this fails, a sweep removes the file after the end of this process.
            let _ = rustix::fs::unlinkat(&self.layout.private, &*self.name, AtFlags::empty());
        }
    }
}

/// A name for a staged file.
fn unique_name(owner: &str) -> String {
    format!("{STAGED}/{owner}{SEPARATOR}{:x}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Puts a version into the name of a staged file, behind its number: that of the record that is staged under this name.
/// So a file that was displaced to this name is recognized: it has another one. A file that was not is perhaps one whose
/// publication was refused.
fn versioned(staged: &str, version: u64) -> String {
    let mut parts = staged.splitn(3, SEPARATOR);
    let (owner, number) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let number = number
        .get(..number.len().saturating_sub(VERSION_DIGITS))
        .filter(|it| !it.is_empty())
        .unwrap_or(number);
    let original = parts.next().map(|original| format!("{SEPARATOR}{original}")).unwrap_or_default();
    format!("{owner}{SEPARATOR}{number}{version:0VERSION_DIGITS$x}{original}")
}

/// The version in the name of a staged file. `None`: no record was staged under this name.
pub(crate) fn version_of_staged(name: &str) -> Option<u64> {
    let number = name.split(SEPARATOR).nth(1)?;
    let digits = number.get(number.len().checked_sub(VERSION_DIGITS).filter(|rest| *rest > 0)?..)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Enough for every version. The number of a staged file has fewer digits.
const VERSION_DIGITS: usize = 14;

/// The staged name of a file that may be the displaced one of a record.
fn as_displaced(staged: &str, record_name: &str) -> String {
    format!("{staged}{SEPARATOR}{record_name}")
}

/// The original name in the name of a staged file, if that may be a displaced file.
pub(crate) fn original_of_staged(name: &str) -> Option<&str> {
    name.splitn(3, SEPARATOR).nth(2)
}

/// Displaces the file in the place of a record. `None`: there is none.
pub(crate) fn displace(
    layout: &Layout,
    owner: &str,
    name: &str,
    stat: Stat,
) -> Result<Option<Displaced>, Errno> {
    let displaced = as_displaced(&unique_name(owner), name);
    match rustix::fs::renameat(&layout.dir, name, &layout.private, &*displaced) {
        Ok(()) => Ok(Some(Displaced { name: displaced, original: name.to_owned(), stat: Some(stat) })),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Moves a file to `.store/damaged/`, under a new name that begins with its original one. Returns its path.
///
/// The move is durable before the caller goes on, if the store is: an exchange that reached the disk by half
/// could have lost the file.
pub(crate) fn set_aside(
    layout: &Layout,
    from: (&OwnedFd, &str),
    original: &str,
    durability: Durability,
) -> Result<PathBuf, Errno> {
    let kept = move_to_damaged(layout, from, original, durability)?;
    Ok(layout.private_path(&kept))
}

/// Gives a file in the store's directory a second name in `.store/damaged/`, durably: it is about to be replaced, and in
/// between its place must not be empty. Where that is not possible, it is moved. Returns the path.
pub(crate) fn keep(layout: &Layout, name: &str) -> Result<PathBuf, Errno> {
    let link =
        |from: Name<'_>, to: Name<'_>| rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty());
    let kept = put_into_damaged(layout, (&layout.dir, name), name, Durability::Full, link)
        .or_else(|_| move_to_damaged(layout, (&layout.dir, name), name, Durability::Full))?;
    Ok(layout.private_path(&kept))
}

/// [`set_aside`], returning the new name in the private directory, for [`put_back`].
pub(crate) fn move_to_damaged(
    layout: &Layout,
    from: Name<'_>,
    original: &str,
    durability: Durability,
) -> Result<String, Errno> {
    put_into_damaged(layout, from, original, durability, |from, to| match rename_new(from, to) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => rename_reserved(from, to),
        renamed => renamed,
    })
}

fn put_into_damaged(
    layout: &Layout,
    from: Name<'_>,
    original: &str,
    durability: Durability,
    put: impl Fn(Name<'_>, Name<'_>) -> Result<(), Errno>,
) -> Result<String, Errno> {
    let damaged = layout.make_private_dir(DAMAGED)?;
    let mut renamed = Err(Errno::NAMETOOLONG);
    for longest in [LONGEST_ORIGINAL, LONGEST_ORIGINAL / 4] {
        if renamed != Err(Errno::NAMETOOLONG) {
            break;
        }
        let original = &original[..original.floor_char_boundary(longest)];
        for _ in 0..MAX_NAME_ATTEMPTS {
            let kept = format!("{original}{KEPT_SEPARATOR}{}", stamp());
            renamed = put(from, (&damaged, &kept)).map(|()| kept);
            if renamed != Err(Errno::EXIST) {
                break;
            }
        }
    }
    let kept = renamed?;
    if durability == Durability::Full {
        // The file is safe from this program already. The file system may still lose it.
        let _ = retry_on_intr(|| rustix::fs::fsync(&damaged));
        if let Ok(staged) = layout.open_private_dir(STAGED) {
            let _ = retry_on_intr(|| rustix::fs::fsync(&staged));
        }
    }
    Ok(format!("{DAMAGED}/{kept}"))
}

/// Moves a file of the private directory back to the place where it was found. `false`: it stays, because another
/// file is there now, or because that fails.
pub(crate) fn put_back(layout: &Layout, private_name: &str, original: &str) -> bool {
    move_new((&layout.private, private_name), (&layout.dir, original)).is_ok()
}

/// The original name of a file in `.store/damaged/`.
pub(crate) fn original_of_kept(name: &str) -> &str {
    name.rsplit_once(KEPT_SEPARATOR).map_or(name, |(original, _)| original)
}

pub(crate) const KEPT_SEPARATOR: char = '~';

/// The part of an original name that leaves room for a time.
const LONGEST_ORIGINAL: usize = 220;

/// The times that two processes take from the clock are rarely the same.
const MAX_NAME_ATTEMPTS: usize = 100;

/// The time, in characters that every file system allows in a name.
fn stamp() -> String {
    rfc3339::format(SystemTime::now()).replace(['-', ':'], "")
}

/// A name in a directory.
type Name<'a> = (&'a OwnedFd, &'a str);

/// Renames a file, unless the new name exists.
#[cfg(target_os = "linux")]
fn rename_new(from: Name<'_>, to: Name<'_>) -> Result<(), Errno> {
    rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE)
}

#[cfg(not(target_os = "linux"))]
fn rename_new(_from: Name<'_>, _to: Name<'_>) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

/// Renames a file, unless the new name exists, on any file system.
fn move_new(from: Name<'_>, to: Name<'_>) -> Result<(), Errno> {
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

/// Whether the file of this name in the store's directory still is the one that was examined.
fn is_current(layout: &Layout, name: &str, examined: &Stat, context: Context<'_>) -> Result<bool> {
    layout::stat(&layout.dir, name)
        .map(|stat| stat.is_some_and(|stat| layout::is_same(&stat, examined)))
        .map_err(|errno| context.io("stat", &layout.root().join(name), errno))
}

/// Renames a file to a new name where no rename can check that the name is new: an empty file, which only one
/// process can create, reserves the name.
fn rename_reserved(from: Name<'_>, to: Name<'_>) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::openat(to.0, to.1, flags, Mode::RUSR | Mode::WUSR)?;
    rustix::fs::renameat(from.0, from.1, to.0, to.1).inspect_err(|_| {
        let _ = rustix::fs::unlinkat(to.0, to.1, AtFlags::empty());
    })
}

#[cfg(target_os = "linux")]
fn exchange(one: Name<'_>, other: Name<'_>) -> Result<(), Errno> {
    rustix::fs::renameat_with(one.0, one.1, other.0, other.1, RenameFlags::EXCHANGE)
}

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

/// Moves a staged file over the file in the place of a record, which the caller has examined.
pub(crate) fn move_staged_over(
    layout: &Layout,
    staged: &str,
    name: &str,
    context: Context<'_>,
) -> Result<()> {
    rustix::fs::renameat(&layout.private, staged, &layout.dir, name)
        .map_err(|errno| context.io("rename into place", &layout.root().join(name), errno))
}

/// Puts a displaced file back in the place of a record, and takes the file there away. Called in the latch, when the
/// change cannot be made durable.
#[cfg(target_os = "linux")]
pub(crate) fn exchange_back(layout: &Layout, staged: &str, name: &str) -> Result<(), Errno> {
    exchange((&layout.private, staged), (&layout.dir, name))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn exchange_back(_layout: &Layout, _staged: &str, _name: &str) -> Result<(), Errno> {
    Err(Errno::NOSYS)
}

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

/// Syncs the names of the staged files.
pub(crate) fn sync_staged_names(layout: &Layout, context: Context<'_>) -> Result<()> {
    let path = layout.private_path(STAGED);
    let dir =
        layout.open_private_dir(STAGED).map_err(|errno| context.io("open the directory", &path, errno))?;
    sync(&dir, &path, context)
}

fn sync(dir: &OwnedFd, path: &Path, context: Context<'_>) -> Result<()> {
    retry_on_intr(|| rustix::fs::fsync(dir)).map_err(|errno| context.io("sync the directory", path, errno))
}
