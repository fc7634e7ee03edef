//! Writing a file as a careful C programmer would, and nothing more: no checks, no locks, no checksum.

#![allow(clippy::disallowed_methods, reason = "what the library does is measured against this")]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use record_store::Durability;
use rustix::fs::{Mode, OFlags};

/// A directory, held open: names are looked up in it, not from the root.
pub(crate) struct RawDir {
    pub(crate) fd: OwnedFd,
    /// Where this process stages what it writes.
    staged: String,
}

const MODE: Mode = Mode::from_raw_mode(0o666);

impl RawDir {
    pub(crate) fn open(path: &Path) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).expect("the directory opens");
        Self { fd, staged: format!("staged-{}", std::process::id()) }
    }

    /// Puts a file under `name` in one step: create, write, rename, and two syncs where it has to last.
    pub(crate) fn publish(&self, name: &str, text: &[u8], durability: Durability) {
        let file = self.create(&self.staged, text);
        if durability == Durability::Full {
            rustix::fs::fdatasync(&file).expect("the file syncs");
        }
        drop(file);
        rustix::fs::renameat(&self.fd, &self.staged, &self.fd, name).expect("the file is renamed");
        if durability == Durability::Full {
            rustix::fs::fsync(&self.fd).expect("the directory syncs");
        }
    }

    /// Makes a file that must not be there yet.
    pub(crate) fn create(&self, name: &str, text: &[u8]) -> OwnedFd {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.fd.as_fd(), name, flags, MODE).expect("the file is made");
        let written = rustix::io::write(&file, text).expect("the file is written");
        assert_eq!(written, text.len(), "a short write");
        file
    }
}
