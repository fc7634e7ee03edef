//! `flock`: the lock of a file that the kernel releases when its process ends. The one place that calls it.
#![allow(clippy::disallowed_methods, reason = "the one place that is allowed to call them")]

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use super::file_system;
use crate::filesystem::context::Context;
use crate::{Error, ErrorKind};

/// Blocks in the kernel until the exclusive `flock` is acquired.
pub(crate) fn exclusive(file: &File) -> io::Result<()> {
    loop {
        match fs2::FileExt::lock_exclusive(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// Attempts to acquire the exclusive `flock`. `false`: another process has the file locked.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    attempted(|| fs2::FileExt::try_lock_exclusive(file))
}

/// Attempts to acquire the shared `flock`, which prevents an exclusive one while the file is open. `false`:
/// another process has the file exclusively locked.
pub(crate) fn try_shared(file: &File) -> io::Result<bool> {
    attempted(|| fs2::FileExt::try_lock_shared(file))
}

/// Whether a process has the file exclusively locked. Checked with a shared lock, so that concurrent checks
/// do not find each other.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    if try_shared(file)? {
        fs2::FileExt::unlock(file)?;
        return Ok(false);
    }
    Ok(true)
}

fn attempted(mut attempt: impl FnMut() -> io::Result<()>) -> io::Result<bool> {
    loop {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Unlocks explicitly: a child that was forked without the C library shares the open file description, so closing is not
/// enough. If this fails, the close that follows is the second attempt.
pub(crate) fn unlock(file: &File) {
    let _ = fs2::FileExt::unlock(file);
}

/// The error of a failed `flock`. It names the file system, where that may be the reason.
pub(crate) fn failed(file: &File, error: io::Error, path: &Path, context: Context<'_>) -> Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOSYS | Errno::OPNOTSUPP) => context
            .error(ErrorKind::UnsupportedFileSystem)
            .with_detail(format!("flock does not work on {}", file_system::name_of(file)))
            .with_path(path)
            .with_source(error),
        Some(Errno::NOLCK) => context
            .error(ErrorKind::Io)
            .with_detail(format!("flock on {}", file_system::name_of(file)))
            .with_path(path)
            .with_source(error),
        _ => context.io("flock", path, error),
    }
}
