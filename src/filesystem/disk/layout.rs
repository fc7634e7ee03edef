//! Where the files of a store are, and how they are opened: below one directory, never through a symbolic
//! link, regular files only.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use crate::filesystem::context::Context;
use crate::{Error, ErrorKind, Key, Result};

/// The private directory beside the records.
pub(crate) const PRIVATE: &str = ".store";
pub(crate) const FORMAT: &str = "format.json";
pub(crate) const LATCHES: &str = "latches";
pub(crate) const OWNERS: &str = "owners";
pub(crate) const TMP: &str = "tmp";
/// The table of waiters, on Linux.
pub(crate) const EVENTS: &str = "events";

const RECORD_SUFFIX: &str = ".json";
const LOCK_SUFFIX: &str = ".lock";

/// Lock files are read up to this size, whatever size they claim.
pub(crate) const MAX_LOCK_BYTES: usize = 64 * 1024;

/// The flags of every open. Non-blocking, so that opening a FIFO in the place of a file cannot hang; for
/// regular files that flag has no effect.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// The store's directory and its private one, held open: whatever the paths refer to later, a handle
/// stays with its store.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    pub(crate) dir: OwnedFd,
    pub(crate) private: OwnedFd,
    /// Device and inode of the private directory: identifies the store, whatever path it was opened by.
    pub(crate) identity: (u64, u64),
    /// The permission bits of new files, before the umask.
    pub(crate) file_mode: u32,
    /// This process knows that the store has, or had, records that expire.
    pub(crate) expiring: AtomicBool,
}

/// An open regular file.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) stat: Stat,
}

/// Why a file was not opened.
#[derive(Clone, Copy)]
pub(crate) enum Refusal {
    Os(Errno),
    NotRegular(&'static str),
}

impl Refusal {
    pub(crate) fn into_error(self, context: Context<'_>, action: &'static str, path: PathBuf) -> Error {
        match self {
            Refusal::Os(errno) => context.io(action, &path, errno),
            Refusal::NotRegular(found) => {
                context.error(ErrorKind::NotARegularFile).with_detail(found).with_path(path)
            }
        }
    }
}

impl Layout {
    /// Opens the directories of a store at the absolute path `root`.
    pub(crate) fn open(root: PathBuf, file_mode: u32, context: Context<'_>) -> Result<Self> {
        let not_a_store = || context.error(ErrorKind::NotAStore).with_path(&root);
        // The path to the store's directory may contain links. The paths inside must not.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(rustix::fs::CWD, &root, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => not_a_store(),
            errno => context.io("open the directory", &root, errno),
        })?;
        let private =
            openat(&dir, PRIVATE, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(|errno| match errno {
                Errno::NOENT => not_a_store(),
                errno => context.io("open the directory", &root.join(PRIVATE), errno),
            })?;
        let stat =
            rustix::fs::fstat(&private).map_err(|errno| context.io("stat", &root.join(PRIVATE), errno))?;
        #[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
        let identity = (u64::try_from(stat.st_dev).unwrap_or(0), stat.st_ino.into());
        Ok(Self { root, dir, private, identity, file_mode, expiring: AtomicBool::new(false) })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a file in the private directory, for errors.
    pub(crate) fn private_path(&self, name: &str) -> PathBuf {
        self.root.join(PRIVATE).join(name)
    }

    pub(crate) fn record_path(&self, key: &Key) -> PathBuf {
        self.root.join(record_name(key))
    }

    pub(crate) fn lock_path(&self, key: &Key) -> PathBuf {
        self.root.join(lock_name(key))
    }

    /// Creates the store's directory and the private one in it, where they are missing.
    pub(crate) fn create(root: &Path, file_mode: u32, context: Context<'_>) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(dir_mode(file_mode));
        let failed = |path: &Path, error| context.io("create the directory", path, error);
        builder.recursive(true).create(root).map_err(|error| failed(root, error))?;
        let private = root.join(PRIVATE);
        match builder.recursive(false).create(&private) {
            // Whether the existing file is a directory is checked when it is opened.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(&private, error)),
            _ => Ok(()),
        }
    }

    /// Creates the directories in the private one where they are missing, and checks that none of them is
    /// a link.
    pub(crate) fn complete(&self, context: Context<'_>) -> Result<()> {
        let mode = Mode::from_raw_mode(dir_mode(self.file_mode));
        for name in [LATCHES, OWNERS, TMP] {
            let path = self.private_path(name);
            match rustix::fs::mkdirat(&self.private, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(context.io("create the directory", &path, errno)),
            }
            self.open_private_dir(name).map_err(|errno| context.io("open the directory", &path, errno))?;
        }
        Ok(())
    }

    /// Opens a directory in the private one.
    pub(crate) fn open_private_dir(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.private, name, flags, Mode::empty())
    }

    pub(crate) fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.file_mode)
    }
}

/// Everyone who may read a file may also search its directory.
fn dir_mode(file_mode: u32) -> u32 {
    file_mode | (file_mode & 0o444) >> 2
}

pub(crate) fn record_name(key: &Key) -> String {
    [key.file_stem(), RECORD_SUFFIX].concat()
}

pub(crate) fn lock_name(key: &Key) -> String {
    [key.file_stem(), LOCK_SUFFIX].concat()
}

/// The key's stem, if this is the name of a record.
pub(crate) fn record_stem(name: &str) -> Option<&str> {
    name.strip_suffix(RECORD_SUFFIX)
}

/// The key's stem, if this is the name of a lock.
pub(crate) fn lock_stem(name: &str) -> Option<&str> {
    name.strip_suffix(LOCK_SUFFIX)
}

/// Opens a file or a directory. On some file systems a signal can interrupt that: then it is retried.
fn openat(dir: impl AsFd + Copy, path: impl Arg + Copy, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::openat(dir, path, flags, mode))
}

/// Opens the regular file `name` in `dir`.
pub(crate) fn open(dir: &OwnedFd, name: &str, flags: OFlags, mode: Mode) -> Result<Opened, Refusal> {
    let file = open_unchecked(dir, name, flags, mode)?;
    let stat = rustix::fs::fstat(&file).map_err(Refusal::Os)?;
    match irregular(&stat) {
        None => Ok(Opened { file, stat }),
        Some(found) => Err(Refusal::NotRegular(found)),
    }
}

/// [`open`] without the check that the file is a regular one: the caller checks, or has just created it.
pub(crate) fn open_unchecked(
    dir: &OwnedFd,
    name: impl Arg + Copy,
    flags: OFlags,
    mode: Mode,
) -> Result<File, Refusal> {
    let opened = openat(dir, name, flags | SAFE, mode);
    opened.map(File::from).map_err(|errno| match errno {
        Errno::LOOP | Errno::MLINK => Refusal::NotRegular("a symbolic link"),
        Errno::ISDIR => Refusal::NotRegular("a directory"),
        Errno::NXIO => Refusal::NotRegular("a FIFO or a socket"),
        errno => Refusal::Os(errno),
    })
}

/// Opens a file for reading. `None`: there is none.
pub(crate) fn open_existing(dir: &OwnedFd, name: &str) -> Result<Option<Opened>, Refusal> {
    match open(dir, name, OFlags::RDONLY, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Refusal::Os(Errno::NOENT)) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Begins a listing of a directory. The directory is opened again, because a listing has its own position.
pub(crate) fn list(dir: &OwnedFd) -> Result<Dir, Errno> {
    retry_on_intr(|| Dir::read_from(dir))
}

/// The metadata of `name`, without following a link. `None`: there is no such file.
pub(crate) fn stat(dir: &OwnedFd, name: &str) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// The kind of this file, if it is not a regular one.
pub(crate) fn irregular(stat: &Stat) -> Option<&'static str> {
    irregular_type(FileType::from_raw_mode(stat.st_mode))
}

pub(crate) fn irregular_type(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Symlink => Some("a symbolic link"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => Some("a device"),
    }
}

/// The size of a file in bytes, as its metadata claims.
pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

const PAGE: usize = 4096;

/// Reads a whole file, but no more than one byte beyond `limit`: enough to see that it is too long.
pub(crate) fn read_up_to(opened: &Opened, limit: u64) -> io::Result<Vec<u8>> {
    let size = size(&opened.stat).min(limit);
    let mut bytes = Vec::new();
    // The size is only a hint. One more byte of room lets the end be found without a second allocation.
    // At least a page: a lock file that is being written must be read in one call, because its content may
    // change between two.
    let room = usize::try_from(size).unwrap_or(usize::MAX).max(PAGE).saturating_add(1);
    bytes.try_reserve_exact(room)?;
    // A read that asks for more than the size and gets exactly the size has reached the end: one call for
    // most files.
    let first =
        retry_on_intr(|| rustix::io::read(&opened.file, rustix::buffer::spare_capacity(&mut bytes)))? as u64;
    if first != size {
        (&opened.file).take(limit.saturating_add(1).saturating_sub(first)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
