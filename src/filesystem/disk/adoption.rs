//! Whether a directory may become a store (I12). In a store, a change may move files away whose names could be
//! those of records or locks. So a directory with other files becomes one only if the caller says so.

use std::path::Path;

use rustix::fs::Dir;
use rustix::io::Errno;

use super::expiry::EXPIRING;
use super::layout::{self, DAMAGED, EVENTS, FORMAT, LATCHES, OWNERS, PRIVATE, TMP};
use crate::error::NOT_EMPTY;
use crate::filesystem::context::Context;
use crate::filesystem::options::OpenMode;
use crate::{ErrorKind, Result};

/// The names that a store which is being created, or whose creation was interrupted, may have in its private
/// directory.
const UNFINISHED: [&str; 6] = [LATCHES, OWNERS, TMP, DAMAGED, EVENTS, EXPIRING];

/// Fails if this directory, which is no store, has files that are not those of an unfinished store.
pub(crate) fn check(root: &Path, mode: OpenMode, context: Context<'_>) -> Result<()> {
    let private = root.join(PRIVATE);
    let refused = match (has_other(&private, &UNFINISHED, context)?, mode) {
        // Not ours in any mode: its files would become those of the store.
        (true, _) => Some((&*private, "the directory has other files than those of a store")),
        (false, OpenMode::Adopt) => None,
        (false, _) => has_other(root, &[PRIVATE], context)?.then_some((root, NOT_EMPTY)),
    };
    match refused {
        // Another process has completed the store meanwhile, and these are its records.
        Some(_) if private.join(FORMAT).exists() => Ok(()),
        Some((path, detail)) => Err(context.error(ErrorKind::NotAStore).with_detail(detail).with_path(path)),
        None => Ok(()),
    }
}

/// Whether the directory has a file of another name than these.
fn has_other(dir: &Path, names: &[&str], context: Context<'_>) -> Result<bool> {
    let failed = |errno| context.io("list the directory", dir, errno);
    let entries = match layout::open_dir(dir).and_then(Dir::new) {
        Ok(entries) => entries,
        // What this path is, is checked when it is created and opened.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && !names.iter().any(|own| own.as_bytes() == name) {
            return Ok(true);
        }
    }
    Ok(false)
}
