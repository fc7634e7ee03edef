//! The files in `.store/damaged/`: listing them, and deleting them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, DAMAGED};
use crate::filesystem::disk::publish;
use crate::{Error, Result};

/// A file that was in the place of a record or a lock and was neither, so it was moved aside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub struct DamagedFile {
    /// Where it is now. Its name is the original one and the time when it was moved.
    pub path: PathBuf,
    /// The name that it had in the store's directory.
    pub original_name: String,
}

/// All of them, in the order of their names.
pub(crate) fn damaged(core: &Core) -> Result<Vec<DamagedFile>> {
    let context = Context::whole("damaged");
    let Some(dir) = open(core, context)? else { return Ok(Vec::new()) };
    let path = core.layout.private_path(DAMAGED);
    let file = |name: String| DamagedFile {
        path: path.join(&name),
        original_name: publish::original_of_kept(&name).to_owned(),
    };
    let mut files: Vec<_> = names(core, &dir, context)?.into_iter().map(file).collect();
    files.sort();
    Ok(files)
}

/// Deletes them. Returns how many.
pub(crate) fn clear_damaged(core: &Core) -> Result<u64> {
    let context = Context::whole("clear_damaged");
    core.check_writable(context)?;
    let Some(dir) = open(core, context)? else { return Ok(0) };
    let mut cleared = 0;
    for name in names(core, &dir, context)? {
        cleared += u64::from(publish::remove_damaged(&core.layout, &dir, &name, context)?);
    }
    Ok(cleared)
}

/// `None`: nothing was ever moved aside.
fn open(core: &Core, context: Context<'_>) -> Result<Option<OwnedFd>> {
    match core.layout.open_private_dir(DAMAGED) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => core.check_exists(context).map(|()| None),
        Err(errno) => Err(failed(core, "open the directory", errno, context)),
    }
}

/// The names in the directory, without those of directories, which this crate does not move there.
fn names(core: &Core, dir: &OwnedFd, context: Context<'_>) -> Result<Vec<String>> {
    let failed = |errno| failed(core, "list the directory", errno, context);
    let mut names = Vec::new();
    for entry in layout::list(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // This crate creates no name that is not UTF-8.
        let Ok(name) = entry.file_name().to_str() else { continue };
        if !matches!(layout::stat(dir, name), Ok(Some(stat)) if layout::is_directory(&stat)) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn failed(core: &Core, action: &'static str, errno: Errno, context: Context<'_>) -> Error {
    context.io(action, &core.layout.private_path(DAMAGED), errno)
}
