//! The directories of a new store, and taking them back if the store cannot be completed.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::layout::{DAMAGED, EVENTS, LATCHES, LOG, Layout, OWNERS, PRIVATE, STAGED};
use super::permissions::Permissions;
use super::{expiry, layout, private_names, publish};
use crate::Result;
use crate::filesystem::context::Context;

/// The parts of a new store that an open has created. Dropping it removes the empty directories again, so that
/// a store that cannot be completed leaves nothing behind.
///
/// Another process may find one of these directories and use it before it disappears. It gets an error that the
/// directory does not exist, and begins again.
pub(crate) struct Created {
    /// The store's directory and those above it, the uppermost first. The private one may be the last.
    dirs: Vec<PathBuf>,
    /// The private one among them.
    private: Option<PathBuf>,
    /// Names in the private directory.
    inside: Vec<&'static str>,
}

impl Created {
    /// Creates the store's directory, those above it and the private one in it, where they are missing. `None`:
    /// another process has just removed one of them.
    pub(crate) fn new(root: &Path, requested: Permissions, context: Context<'_>) -> Result<Option<Self>> {
        let mut created = Self { dirs: Vec::new(), private: None, inside: Vec::new() };
        let private = root.join(PRIVATE);
        match created.make(&private, requested) {
            Ok(()) => {}
            Err((_, error)) if error.kind() == io::ErrorKind::NotFound => {
                if !root.is_symlink() {
                    return Ok(None);
                }
                // It leads nowhere.
                return Err(context.io("create the directory", root, error));
            }
            Err((dir, error)) => return Err(context.io("create the directory", &dir, error)),
        }
        created.private = created.dirs.last().filter(|last| **last == private).cloned();
        Ok(Some(created))
    }

    /// Creates a directory and those above it, where they are missing. Whether an existing file is a directory is
    /// checked when it is opened.
    fn make(&mut self, dir: &Path, requested: Permissions) -> Result<(), (PathBuf, io::Error)> {
        #[allow(clippy::useless_conversion, reason = "the type of the mode differs between systems")]
        let create = || DirBuilder::new().mode(requested.dir_mode().as_raw_mode().into()).create(dir);
        let outcome = match (create(), dir.parent()) {
            (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
                self.make(parent, requested)?;
                create()
            }
            (outcome, _) => outcome,
        };
        match outcome {
            Ok(()) => self.dirs.push(dir.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err((dir.to_owned(), error)),
        }
        Ok(())
    }

    /// Creates the directories in the private one where they are missing. Called in the latch of the creation.
    pub(crate) fn complete(&mut self, layout: &mut Layout, context: Context<'_>) -> Result<()> {
        match layout.adopt_permissions() {
            Ok(()) => {}
            // Another user has created it.
            Err(Errno::PERM) if self.private.is_none() => {}
            Err(errno) => {
                return Err(context.io("set the permissions of the directory", layout.root(), errno));
            }
        }
        self.inside.extend(complete(layout, context)?);
        // Now, because a damaged file has to be moved there also when the disk is full. If this fails, it is
        // created when it is needed.
        if let Ok((_, true)) = layout.make_private_dir_if_missing(DAMAGED) {
            self.inside.push(DAMAGED);
        }
        Ok(())
    }

    /// Runs a step that creates a file of this name in the private directory.
    pub(crate) fn file<T>(
        &mut self,
        layout: &Layout,
        name: &'static str,
        create: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if matches!(layout::stat(&layout.private, name), Ok(None)) {
            self.inside.push(name);
        }
        create()
    }

    /// Everything stays: the store is complete.
    pub(crate) fn keep(&mut self) {
        self.dirs.clear();
        self.inside.clear();
    }

    /// Removes what was created in the private directory, and that directory. Called in the latch of the creation:
    /// nobody else is using it. The process that enters the latch next finds that the directory is gone, and
    /// begins again.
    pub(crate) fn undo_private(&mut self, layout: &Layout) {
        for name in self.inside.drain(..).rev() {
            match name {
                EVENTS | expiry::EXPIRING => drop(publish::remove_private(&layout.private, name)),
                _ => undo(layout, [name]),
            }
        }
        if let Some(private) = self.private.take() {
            publish::remove_dir(&private);
            self.dirs.retain(|dir| *dir != private);
        }
    }
}

/// Removes the log of a store that could not be completed. Nothing is opened: perhaps that is what has failed.
fn remove_log(layout: &Layout) {
    for path in private_names::of_log() {
        publish::remove_private(&layout.private, &path);
    }
    publish::remove_private_dir(&layout.private, LOG);
}

impl Drop for Created {
    fn drop(&mut self) {
        for dir in self.dirs.drain(..).rev() {
            // One that is not empty has become somebody else's.
            publish::remove_dir(&dir);
        }
    }
}

/// Creates the directories in the private one where they are missing, and checks that none of them is a link.
/// Returns those that it has created.
pub(crate) fn complete(layout: &Layout, context: Context<'_>) -> Result<Vec<&'static str>> {
    let mut created = Vec::new();
    for name in [LATCHES, OWNERS, STAGED, LOG] {
        let made = layout.make_private_dir_if_missing(name);
        match made {
            Ok((_, true)) => created.push(name),
            Ok((_, false)) => {}
            Err(errno) => {
                let error = context.io("create the directory", &layout.private_path(name), errno);
                undo(layout, created);
                return Err(error);
            }
        }
    }
    Ok(created)
}

/// Removes directories that [`complete`] has created, because a later step has failed. Called in the latch of the
/// creation.
pub(crate) fn undo<T>(layout: &Layout, created: T)
where
    T: IntoIterator<Item = &'static str, IntoIter: DoubleEndedIterator>,
{
    for name in created.into_iter().rev() {
        match name {
            LOG => remove_log(layout),
            _ => publish::remove_private_dir(&layout.private, name),
        }
    }
}
