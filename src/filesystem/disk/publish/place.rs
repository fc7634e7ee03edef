//! Giving staged files their places.

#[cfg(target_os = "linux")]
use rustix::fs::RenameFlags;
use rustix::fs::{AtFlags, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};

use super::displace::Displaced;
#[cfg(target_os = "linux")]
use super::rename::Name;
use super::rename::{MAX_NAME_ATTEMPTS, is_current, move_new, rename_new};
use super::stage::Staged;
use super::staged_name::{as_displaced, nameless_owner, original_of_staged, unique_name};
use crate::Result;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, Layout, Refusal, STAGED};

impl Staged<'_> {
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
    pub(crate) fn exchange(&mut self, name: &str) -> Option<Displaced> {
        self.name_for(name).ok()?;
        let private = &self.layout.private;
        exchange((private, &self.name), (&self.layout.dir, name)).ok()?;
        let (staged, original) = (std::mem::take(&mut self.name), name.to_owned());
        Some(Displaced { name: staged, original })
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self, reason = "as on Linux")]
    pub(crate) fn exchange(&mut self, _name: &str) -> Option<Displaced> {
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

/// Exchanges two files atomically.
#[cfg(target_os = "linux")]
fn exchange(one: Name<'_>, other: Name<'_>) -> Result<(), Errno> {
    rustix::fs::renameat_with(one.0, one.1, other.0, other.1, RenameFlags::EXCHANGE)
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
