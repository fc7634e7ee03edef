//! Reads, checks and removes files with the bare system calls, as a careful C programmer would.

#![allow(clippy::disallowed_methods, reason = "the store is compared with these calls")]

use std::hint::black_box;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::raw::RawDir;

/// A record as plain `serde` decodes it.
#[derive(Deserialize)]
pub(crate) struct Plain<R> {
    key: String,
    result: R,
}

impl RawDir {
    pub(crate) fn open_to_read(&self, name: &str) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Ok(file) => Some(file),
            Err(Errno::NOENT) => None,
            Err(errno) => panic!("open {name}: {errno}"),
        }
    }

    /// Reads the whole file with a single read of its size.
    pub(crate) fn slurp(&self, name: &str) -> Vec<u8> {
        let file = self.open_to_read(name).expect("the file exists");
        let size = rustix::fs::fstat(&file).expect("the file has a size").st_size;
        let mut text = vec![0; usize::try_from(size).expect("a size")];
        let length = rustix::io::read(&file, &mut text).expect("the file is read");
        assert_eq!(length, text.len(), "a short read");
        text
    }

    pub(crate) fn read<R: DeserializeOwned>(&self, name: &str) -> Plain<R> {
        let plain: Plain<R> = serde_json::from_slice(&self.slurp(name)).expect("a record");
        black_box(&plain.key);
        black_box(&plain.result);
        plain
    }

    pub(crate) fn stat(&self, name: &str) -> bool {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    pub(crate) fn unlink(&self, name: &str) {
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()).expect("the file is removed");
    }
}
