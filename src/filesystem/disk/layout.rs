//! Where the files of a store are, and how they are opened: below one directory, never through a symbolic
//! link, regular files only.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use super::permissions::Permissions;
use crate::error::DIRECTORY;
use crate::filesystem::context::Context;
use crate::{Error, ErrorKind, Key, Result};

/// The private directory beside the records.
pub(crate) const PRIVATE: &str = ".store";
pub(crate) const FORMAT: &str = "format.json";
pub(crate) const LATCHES: &str = "latches";
pub(crate) const OWNERS: &str = "owners";
/// Files that are being published, and displaced ones.
pub(crate) const STAGED: &str = "staged";
/// The name of that directory in format version 1.
pub(crate) const TMP: &str = "tmp";
/// The commit log.
pub(crate) const LOG: &str = "log";
/// The memory that the processes share about the log.
pub(crate) const LOG_STATE: &str = "log/state";
/// The latch under which the segments of the log change their use.
pub(crate) const LOG_LATCH: &str = "log/latch";
/// The latch of the process that checkpoints the log.
pub(crate) const LOG_CHECKPOINT: &str = "log/checkpoint";
/// The report of the last recovery.
pub(crate) const LOG_RECOVERED: &str = "log/recovered";
/// Files that were in the place of a record or a lock, and are neither.
pub(crate) const DAMAGED: &str = "damaged";
/// The turn of the process that evicts records in the background.
pub(crate) const EVICTION: &str = "eviction";
/// The table of waiters, on Linux.
pub(crate) const EVENTS: &str = "events";

const RECORD_SUFFIX: &str = ".json";
const LOCK_SUFFIX: &str = ".lock";

/// A disk writes this many bytes completely or not at all, at the least: a sector.
pub(crate) const SECTOR: usize = 512;

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
    pub(crate) permissions: Permissions,
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
    /// Opens the directories of a store at the absolute path `root`. New files get the requested permissions,
    /// unless those of the store decide.
    pub(crate) fn open(root: PathBuf, requested: Permissions, context: Context<'_>) -> Result<Self> {
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
        let permissions = requested.in_store(&stat);
        Ok(Self { root, dir, private, identity, permissions, expiring: AtomicBool::new(false) })
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

    /// Whether the private directory was removed since it was opened.
    pub(crate) fn is_removed(&self) -> bool {
        rustix::fs::fstat(&self.private).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Makes the new private directory usable for everyone who may use the directory above it. Root gives it to
    /// the owner of that directory.
    pub(crate) fn adopt_permissions(&mut self) -> Result<(), Errno> {
        let root = rustix::fs::fstat(&self.dir)?;
        let permissions = self.permissions.in_store(&root);
        if !permissions.are_usual() {
            permissions.share_group(&self.private, &root)?;
            permissions.apply_to_dir(&self.private)?;
            permissions.apply_to_root(&self.dir, &root)?;
            self.permissions = permissions.in_store(&rustix::fs::fstat(&self.private)?);
        }
        Ok(())
    }

    /// Opens a directory in the private one, created if it is missing.
    pub(crate) fn make_private_dir(&self, name: &str) -> Result<OwnedFd, Errno> {
        self.make_private_dir_if_missing(name).map(|(dir, _)| dir)
    }

    /// [`make_private_dir`](Layout::make_private_dir), and whether this call has created it.
    pub(crate) fn make_private_dir_if_missing(&self, name: &str) -> Result<(OwnedFd, bool), Errno> {
        match rustix::fs::mkdirat(&self.private, name, self.permissions.dir_mode()) {
            Ok(()) => {
                let opened = self.open_private_dir(name).and_then(|dir| {
                    if !self.permissions.are_usual() {
                        self.permissions.apply_to_dir(&dir)?;
                    }
                    Ok((dir, true))
                });
                // A directory that cannot be used, or has no permissions, must not stay.
                opened.inspect_err(|_| {
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "an empty directory that this call has just created; `publish` imports this module"
                    )]
                    let _ = rustix::fs::unlinkat(&self.private, name, AtFlags::REMOVEDIR);
                })
            }
            Err(Errno::EXIST) => self.open_private_dir(name).map(|dir| (dir, false)),
            Err(errno) => Err(errno),
        }
    }

    /// Opens a directory in the private one.
    pub(crate) fn open_private_dir(&self, name: &str) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.private, name, flags, Mode::empty())
    }

    /// Opens a regular file in the private directory, created if it is missing.
    pub(crate) fn open_or_create_private(&self, name: &str, flags: OFlags) -> Result<Opened, Refusal> {
        let permissions = &self.permissions;
        if permissions.are_usual() {
            return open(&self.private, name, flags | OFlags::CREATE, permissions.mode());
        }
        loop {
            match open(&self.private, name, flags, Mode::empty()) {
                Err(Refusal::Os(Errno::NOENT)) => {}
                opened => return opened,
            }
            match self.create(&self.private, name, flags) {
                Ok(_) | Err(Refusal::Os(Errno::EXIST)) => {}
                Err(refusal) => return Err(refusal),
            }
        }
    }

    /// Creates a new file in a directory of the store.
    pub(crate) fn create(
        &self,
        dir: &OwnedFd,
        name: impl Arg + Copy,
        flags: OFlags,
    ) -> Result<File, Refusal> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL;
        let file = open_unchecked(dir, name, flags, self.permissions.mode())?;
        if !self.permissions.are_usual() {
            self.permissions.apply(&file).map_err(Refusal::Os)?;
        }
        Ok(file)
    }
}

pub(crate) fn record_name(key: &Key) -> String {
    [key.file_stem(), RECORD_SUFFIX].concat()
}

pub(crate) fn lock_name(key: &Key) -> String {
    [key.file_stem(), LOCK_SUFFIX].concat()
}

/// The name of the record whose key has this stem.
pub(crate) fn record_beside(stem: &str) -> String {
    [stem, RECORD_SUFFIX].concat()
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

/// Opens a directory, also through a symbolic link.
pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(rustix::fs::CWD, path, flags, Mode::empty())
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
        Errno::ISDIR => Refusal::NotRegular(DIRECTORY),
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

/// Reads the first bytes of a file, with one call: there may be fewer than the file has.
pub(crate) fn read_head(opened: &Opened, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = vec![0; bytes];
    let length = retry_on_intr(|| rustix::io::pread(&opened.file, &mut *head, 0))?;
    head.truncate(length);
    Ok(head)
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

/// Whether the open file still has a name.
pub(crate) fn is_linked(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstat(file)?.st_nlink > 0)
}

pub(crate) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Whether this is the metadata of the same file with the same content.
pub(crate) fn is_same(one: &Stat, other: &Stat) -> bool {
    let identity = |stat: &Stat| (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    identity(one) == identity(other)
}

/// The kind of this file, if it is not a regular one.
pub(crate) fn irregular(stat: &Stat) -> Option<&'static str> {
    irregular_type(FileType::from_raw_mode(stat.st_mode))
}

pub(crate) fn irregular_type(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some(DIRECTORY),
        FileType::Symlink => Some("a symbolic link"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => Some("a device"),
    }
}

/// When a file was written.
#[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
pub(crate) fn modified(stat: &Stat) -> SystemTime {
    let (seconds, nanos) = (i64::from(stat.st_mtime), u64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let time = time.and_then(|time| time.checked_add(Duration::from_nanos(nanos)));
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The size of a file in bytes, as its metadata claims.
pub(crate) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

const PAGE: usize = 4096;

/// Reads a whole file from its beginning, but no more than one byte beyond `limit`: enough to see that it is too long.
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
        retry_on_intr(|| rustix::io::pread(&opened.file, rustix::buffer::spare_capacity(&mut bytes), 0))?
            as u64;
    if first != size {
        (&opened.file).seek(SeekFrom::Start(first))?;
        (&opened.file).take(limit.saturating_add(1).saturating_sub(first)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
