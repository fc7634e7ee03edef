//! Whether a directory may become a store (I12). In a store, a change may move files away whose names could be
//! those of records or locks. So a directory with other files becomes one only if the caller says so.
//!
//! The private directory of an unfinished store is used as it is: leftovers in it are deleted, and the event table is
//! written. So every file in it must be one that an unfinished store can have, whatever the caller says.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};
use rustix::io::Errno;

use crate::error::NOT_EMPTY;
use crate::filesystem::context::Context;
use crate::filesystem::disk::expiry::EXPIRING;
use crate::filesystem::disk::layout::{
    self, DAMAGED, EVENTS, FORMAT, LATCHES, LOG, LOG_RECOVERED, LOG_STATE, OWNERS, PRIVATE, Refusal, STAGED,
    TMP,
};
use crate::filesystem::disk::{event_table, private_names};
use crate::filesystem::log;
use crate::filesystem::options::OpenMode;
use crate::{ErrorKind, Result};

/// The directories that a store which is being created, or whose creation was interrupted, may have in its private
/// directory, and the names in them.
const DIRECTORIES: [(&str, IsOwn); 6] = [
    (LATCHES, private_names::is_latch),
    (OWNERS, private_names::is_owner),
    (STAGED, |name| private_names::owner_of_staged(name).is_some()),
    // Of an earlier version of this crate, whose creation of the store was interrupted.
    (TMP, |name| private_names::owner_of_staged(name).is_some()),
    (DAMAGED, private_names::is_kept),
    // Nothing was recovered yet.
    (LOG, |name| private_names::is_of_log(name) && !LOG_RECOVERED.ends_with(name)),
];

/// Whether this is the name of a file of a store.
type IsOwn = fn(&str) -> bool;

const OTHER_FILES: &str = "the directory has other files than those of a store";
const OTHER_FILE: &str = "the file is not that of a store";

/// Fails if this directory, which is no store, has files that are not those of an unfinished store.
pub(crate) fn check(root: &Path, mode: OpenMode, context: Context<'_>) -> Result<()> {
    let private = root.join(PRIVATE);
    let refused = match (foreign_in_private(&private, context)?, mode) {
        // Not ours in any mode: its files would become those of the store.
        (Some(foreign), _) => Some(foreign),
        (None, OpenMode::Adopt) => None,
        (None, _) => has_other(root, |name| name == PRIVATE, context)?.then(|| (root.to_owned(), NOT_EMPTY)),
    };
    match refused {
        // Another process has completed the store meanwhile, and these are its records.
        Some(_) if private.join(FORMAT).exists() => Ok(()),
        Some((path, detail)) => Err(context.error(ErrorKind::NotAStore).with_detail(detail).with_path(path)),
        None => Ok(()),
    }
}

/// A foreign file in the private directory of an unfinished store, and the reason.
fn foreign_in_private(private: &Path, context: Context<'_>) -> Result<Option<(PathBuf, &'static str)>> {
    let is_known =
        |name: &str| DIRECTORIES.iter().any(|(own, _)| *own == name) || matches!(name, EVENTS | EXPIRING);
    if has_other(private, is_known, context)? {
        return Ok(Some((private.to_owned(), OTHER_FILES)));
    }
    for (name, is_own) in DIRECTORIES {
        let dir = private.join(name);
        if has_other(&dir, is_own, context)? {
            return Ok(Some((dir, OTHER_FILES)));
        }
    }
    let Ok(dir) = layout::open_dir(private) else { return Ok(None) };
    for name in [EVENTS, EXPIRING, LOG_STATE] {
        if !is_own_file(&dir, private, name, context)? {
            return Ok(Some((private.join(name), OTHER_FILE)));
        }
    }
    Ok(None)
}

/// Whether this file is missing or ours.
fn is_own_file(dir: &OwnedFd, private: &Path, name: &str, context: Context<'_>) -> Result<bool> {
    match layout::open(dir, name, OFlags::RDONLY, Mode::empty()) {
        Ok(opened) if name == EVENTS => event_table::is_ours(&opened)
            .map_err(|error| context.io("read the event table", &private.join(name), error)),
        Ok(opened) if name == LOG_STATE => log::is_state(&opened)
            .map_err(|error| context.io("read the state of the log", &private.join(name), error)),
        Ok(opened) => Ok(opened.stat.st_size == 0),
        Err(Refusal::Os(Errno::NOENT)) => Ok(true),
        Err(Refusal::NotRegular(_)) => Ok(false),
        Err(refusal) => Err(refusal.into_error(context, "open", private.join(name))),
    }
}

/// Whether the directory has a file of another name than these.
fn has_other(dir: &Path, is_own: impl Fn(&str) -> bool, context: Context<'_>) -> Result<bool> {
    let failed = |errno| context.io("list the directory", dir, errno);
    let entries = match layout::open_dir(dir).and_then(Dir::new) {
        Ok(entries) => entries,
        // The creation and the open check this path.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => return Ok(false),
        Err(errno) => return Err(failed(errno)),
    };
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        // This crate creates no name that is not UTF-8.
        if !matches!(name.to_bytes(), b"." | b"..") && !name.to_str().is_ok_and(&is_own) {
            return Ok(true);
        }
    }
    Ok(false)
}
