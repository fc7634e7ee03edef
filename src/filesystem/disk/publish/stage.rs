//! Staging: a file is complete before anybody can see it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::in_place::MAX_CREATE_BYTES;
use super::rename::MAX_NAME_ATTEMPTS;
use super::staged_name::{as_displaced, unique_name, versioned};
use crate::Result;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Refusal, STAGED};
use crate::filesystem::options::Durability;

/// A complete file that nobody can see yet. Dropping it discards it.
#[must_use = "a staged file is discarded when it is dropped"]
pub(crate) struct Staged<'a> {
    pub(super) layout: &'a Layout,
    /// Its name in the private directory. Empty once there is nothing to discard.
    pub(super) name: String,
}

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
    pub(super) fn create(layout: &'a Layout, name: String) -> Result<(Self, File), Refusal> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = layout::open_unchecked(&layout.private, &*name, flags, layout.permissions.mode())?;
        let staged = Self { layout, name };
        if !layout.permissions.are_usual() {
            layout.permissions.apply(&file).map_err(Refusal::Os)?;
        }
        Ok((staged, file))
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
