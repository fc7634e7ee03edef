//! Where everything lies, and how it is opened: beneath one directory, never through a symbolic
//! link, regular files only.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use crate::{Error, Key, Result};

/// The private directory beside the records.
pub(super) const PRIVATE: &str = ".store";
pub(super) const FORMAT: &str = "format.json";
pub(super) const LATCHES: &str = "latches";
pub(super) const OWNERS: &str = "owners";
pub(super) const TMP: &str = "tmp";
/// What sleepers share, on Linux.
pub(super) const EVENTS: &str = "events";

const RECORD_SUFFIX: &str = ".json";
const LOCK_SUFFIX: &str = ".lock";

/// Lock files are read up to this size, whatever size they claim.
pub(super) const MAX_LOCK_BYTES: usize = 64 * 1024;

/// What every call on a descriptor of ours begins with. Non-blocking, so that a FIFO put in the
/// place of a file cannot hang the open; regular files do not care.
const SAFE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// The store's directory and its private one, held open: whatever the paths come to mean later,
/// one store is one place.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    pub(super) dir: OwnedFd,
    pub(super) private: OwnedFd,
    /// Tells this store from every other one, by whatever path it was opened.
    pub(super) identity: (u64, u64),
    /// The permission bits of new files, before the umask.
    pub(super) file_mode: u32,
    /// This process knows that there are, or were, records that end.
    pub(super) expiring: AtomicBool,
}

/// The operation under way, for errors to name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context<'a> {
    pub(super) operation: &'static str,
    pub(super) key: Option<&'a Key>,
}

/// A file that was opened and found to be a regular one.
pub(super) struct Opened {
    pub(super) file: File,
    pub(super) stat: Stat,
}

/// Why a file was not opened.
#[derive(Clone, Copy)]
pub(super) enum Refusal {
    Os(Errno),
    NotRegular(&'static str),
}

impl Layout {
    /// Opens the directories of a store at the absolute path `root`.
    pub(super) fn open(root: PathBuf, file_mode: u32, context: Context<'_>) -> Result<Self> {
        // The store's directory may well be reached through a link. What is inside may not.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(rustix::fs::CWD, &root, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::NOENT => Error::NotAStore { path: root.clone() },
            errno => context.io("open the directory", &root, errno),
        })?;
        let private =
            openat(&dir, PRIVATE, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(|errno| match errno {
                Errno::NOENT => Error::NotAStore { path: root.clone() },
                errno => context.io("open the directory", &root.join(PRIVATE), errno),
            })?;
        let stat =
            rustix::fs::fstat(&private).map_err(|errno| context.io("look at", &root.join(PRIVATE), errno))?;
        #[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
        let identity = (u64::try_from(stat.st_dev).unwrap_or(0), stat.st_ino.into());
        Ok(Self { root, dir, private, identity, file_mode, expiring: AtomicBool::new(false) })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The path of something in the private directory, for errors and for `tempfile`.
    pub(super) fn private_path(&self, name: &str) -> PathBuf {
        self.root.join(PRIVATE).join(name)
    }

    pub(super) fn record_path(&self, key: &Key) -> PathBuf {
        self.root.join(record_name(key))
    }

    pub(super) fn lock_path(&self, key: &Key) -> PathBuf {
        self.root.join(lock_name(key))
    }

    /// Makes the store's directory and in it the private one, where they are missing.
    pub(super) fn create(root: &Path, file_mode: u32, context: Context<'_>) -> Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(dir_mode(file_mode));
        let failed = |path: &Path, error| context.io("create the directory", path, error);
        builder.recursive(true).create(root).map_err(|error| failed(root, error))?;
        let private = root.join(PRIVATE);
        match builder.recursive(false).create(&private) {
            // What it is that exists is seen when it is opened.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(&private, error)),
            _ => Ok(()),
        }
    }

    /// Makes the directories in the private one, where they are missing, and sees that none of them
    /// leads elsewhere.
    pub(super) fn complete(&self, context: Context<'_>) -> Result<()> {
        let mode = Mode::from_raw_mode(dir_mode(self.file_mode));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for name in [LATCHES, OWNERS, TMP] {
            let path = self.private_path(name);
            match rustix::fs::mkdirat(&self.private, name, mode) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(context.io("create the directory", &path, errno)),
            }
            openat(&self.private, name, flags, Mode::empty())
                .map_err(|errno| context.io("open the directory", &path, errno))?;
        }
        Ok(())
    }

    pub(super) fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.file_mode)
    }
}

/// Whoever may read a file may also pass through its directory.
fn dir_mode(file_mode: u32) -> u32 {
    file_mode | (file_mode & 0o444) >> 2
}

impl<'a> Context<'a> {
    pub(super) fn new(operation: &'static str, key: &'a Key) -> Self {
        Self { operation, key: Some(key) }
    }

    /// An operation on the store as a whole.
    pub(super) fn whole(operation: &'static str) -> Self {
        Self { operation, key: None }
    }

    pub(super) fn io(self, action: &'static str, path: &Path, source: impl Into<io::Error>) -> Error {
        Error::Io {
            operation: self.operation,
            key: self.key.cloned(),
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }

    pub(super) fn refused(self, refusal: Refusal, action: &'static str, path: PathBuf) -> Error {
        match refusal {
            Refusal::Os(errno) => self.io(action, &path, errno),
            Refusal::NotRegular(found) => {
                Error::NotARegularFile { operation: self.operation, key: self.key.cloned(), found, path }
            }
        }
    }
}

pub(super) fn record_name(key: &Key) -> String {
    [key.file_stem(), RECORD_SUFFIX].concat()
}

pub(super) fn lock_name(key: &Key) -> String {
    [key.file_stem(), LOCK_SUFFIX].concat()
}

/// The key's stem, if this is the name of a record.
pub(super) fn record_stem(name: &str) -> Option<&str> {
    name.strip_suffix(RECORD_SUFFIX)
}

/// The key's stem, if this is the name of a lock.
pub(super) fn lock_stem(name: &str) -> Option<&str> {
    name.strip_suffix(LOCK_SUFFIX)
}

/// Opens a file or a directory. Some file systems let a signal interrupt that, and then it is tried
/// again.
pub(super) fn openat(
    dir: impl AsFd + Copy,
    path: impl Arg + Copy,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    retry_on_intr(|| rustix::fs::openat(dir, path, flags, mode))
}

/// Opens `name` in `dir`; the caller adds what it wants to do with it.
pub(super) fn open(dir: &OwnedFd, name: &str, flags: OFlags, mode: Mode) -> Result<Opened, Refusal> {
    let file = open_unseen(dir, name, flags, mode)?;
    let stat = rustix::fs::fstat(&file).map_err(Refusal::Os)?;
    match irregular(&stat) {
        None => Ok(Opened { file, stat }),
        Some(found) => Err(Refusal::NotRegular(found)),
    }
}

/// [`open`] without the look at what was opened: for the caller to do, or for a file made just now.
pub(super) fn open_unseen(dir: &OwnedFd, name: &str, flags: OFlags, mode: Mode) -> Result<File, Refusal> {
    let opened = openat(dir, name, flags | SAFE, mode);
    opened.map(File::from).map_err(|errno| match errno {
        Errno::LOOP | Errno::MLINK => Refusal::NotRegular("a symbolic link"),
        Errno::ISDIR => Refusal::NotRegular("a directory"),
        Errno::NXIO => Refusal::NotRegular("a FIFO or a socket"),
        errno => Refusal::Os(errno),
    })
}

/// Creates a file of a new random name in a directory of the private one. By descriptor, and not by
/// path: the store may have been moved meanwhile.
pub(super) fn create_unique(layout: &Layout, dir: &str, prefix: &str) -> io::Result<(File, String)> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | SAFE;
    let made =
        tempfile::Builder::new().prefix(prefix).rand_bytes(16).disable_cleanup(true).make_in("", |path| {
            let name = path.file_name().unwrap_or_default();
            let fd = openat(&layout.private, &*Path::new(dir).join(name), flags, layout.mode())?;
            Ok(File::from(fd))
        })?;
    let (file, path) = made.into_parts();
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let _ = path.keep();
    Ok((file, name))
}

/// Opens a file to be read; `None` where there is none.
pub(super) fn open_existing(dir: &OwnedFd, name: &str) -> Result<Option<Opened>, Refusal> {
    match open(dir, name, OFlags::RDONLY, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        Err(Refusal::Os(Errno::NOENT)) => Ok(None),
        Err(refusal) => Err(refusal),
    }
}

/// Begins a listing of a directory. It is opened anew: listings have positions of their own.
pub(super) fn list(dir: &OwnedFd) -> Result<Dir, Errno> {
    retry_on_intr(|| Dir::read_from(dir))
}

/// What `name` is, without opening it; `None` where there is nothing.
pub(super) fn look(dir: &OwnedFd, name: &str) -> Result<Option<Stat>, Errno> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Whether an open file is a regular one.
pub(super) fn is_regular(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| irregular(&stat).is_none())
}

/// What this is instead of a regular file.
pub(super) fn irregular(stat: &Stat) -> Option<&'static str> {
    irregular_type(FileType::from_raw_mode(stat.st_mode))
}

pub(super) fn irregular_type(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Symlink => Some("a symbolic link"),
        FileType::Fifo => Some("a FIFO"),
        FileType::Socket => Some("a socket"),
        _ => Some("a device"),
    }
}

/// The size of a file in bytes, as it says.
pub(super) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

const PAGE: usize = 4096;

/// Reads a file whole, but no more than one byte beyond `limit`: enough to see that it is too long.
pub(super) fn read_up_to(opened: &Opened, limit: u64) -> io::Result<Vec<u8>> {
    let size = size(&opened.stat).min(limit);
    let mut bytes = Vec::new();
    // The size is a hint, and may be a lie. One byte more lets the end be found without a second
    // allocation. A page at least: a lock that is written just now must not be read in parts, for it
    // may change hands in between.
    let room = usize::try_from(size).unwrap_or(usize::MAX).max(PAGE).saturating_add(1);
    bytes.try_reserve_exact(room)?;
    // A read that asked for more and got just the size has seen the end: one call for most files.
    let first =
        retry_on_intr(|| rustix::io::read(&opened.file, rustix::buffer::spare_capacity(&mut bytes)))? as u64;
    if first != size {
        (&opened.file).take(limit.saturating_add(1).saturating_sub(first)).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}
