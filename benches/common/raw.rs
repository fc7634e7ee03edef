//! Writes files with the bare system calls, as a careful C programmer would: no checks, no locks, no
//! checksums.

#![allow(clippy::disallowed_methods, reason = "the store is compared with these calls")]

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use record_store::Durability;
use rustix::fs::{Mode, OFlags};

/// An open directory. File names are relative to it, so that no path is resolved from the root.
pub(crate) struct RawDir {
    pub(crate) fd: OwnedFd,
    /// The name of this process's temporary file.
    staged: String,
}

const MODE: Mode = Mode::from_raw_mode(0o666);

impl RawDir {
    pub(crate) fn open(path: &Path) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).expect("the directory opens");
        Self { fd, staged: format!("staged-{}", std::process::id()) }
    }

    /// Publishes a file as `name` atomically: create, write, rename, and two syncs if it must be durable.
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

    /// Creates a file that must not exist yet.
    pub(crate) fn create(&self, name: &str, text: &[u8]) -> OwnedFd {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.fd.as_fd(), name, flags, MODE).expect("the file is created");
        let written = rustix::io::write(&file, text).expect("the file is written");
        assert_eq!(written, text.len(), "a short write");
        file
    }
}
