//! The system calls of the store's operations alone, in their order, without encoding, checksums or comparisons.
//!
//! Their time is the price of the promises. `tests/it/system_calls.rs` asserts the same calls of the store itself.

#![allow(clippy::disallowed_methods, reason = "the store is compared with these calls")]

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};

/// As many staged names stay until the log is synced.
const STAGED: usize = 64;

/// The bytes of the log. It is written again from its beginning.
const LOG: u64 = 128 << 10;

const MODE: Mode = Mode::from_raw_mode(0o666);

/// Open directories as those of a store.
pub(crate) struct Replay {
    dir: OwnedFd,
    private: OwnedFd,
    owner: OwnedFd,
    log: OwnedFd,
    log_end: u64,
    /// The number of the next staged file.
    next: usize,
}

impl Replay {
    pub(crate) fn new(path: &Path) -> Self {
        let private = path.join("private");
        std::fs::create_dir_all(private.join("staged")).expect("the directories are created");
        for file in ["owner", "latch"] {
            std::fs::write(private.join(file), "").expect("the file is created");
        }
        let log_size = usize::try_from(LOG).expect("a small log");
        std::fs::write(private.join("log"), vec![0; log_size]).expect("the log is created");
        let open = |path: &Path, flags| {
            rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty()).expect("it opens")
        };
        Self {
            dir: open(path, OFlags::RDONLY | OFlags::DIRECTORY),
            private: open(&private, OFlags::RDONLY | OFlags::DIRECTORY),
            owner: open(&private.join("owner"), OFlags::RDWR),
            log: open(&private.join("log"), OFlags::WRONLY),
            log_end: 0,
            next: 0,
        }
    }

    /// A read of a record without a lock. Returns the bytes.
    pub(crate) fn read(&self, record: &str, lock: &str) -> Vec<u8> {
        let file = open(&self.dir, record);
        let size = rustix::fs::fstat(&file).expect("a file").st_size;
        assert!(!self.exists(lock));
        assert!(self.exists(record));
        read(&file, size)
    }

    /// A relaxed write of a record that has no lock. `is_new`: it has no file either.
    pub(crate) fn write(&mut self, record: &str, lock: &str, text: &[u8], is_new: bool) {
        let staged = format!("staged/{}", self.next);
        rustix::fs::fstat(&self.owner).expect("a file");
        create(&self.private, &staged, text);
        let latch = self.enter();
        assert!(!self.exists(lock));
        assert_ne!(self.exists(record), is_new);
        self.append(text);
        if is_new {
            rustix::fs::linkat(&self.private, &*staged, &self.dir, record, AtFlags::empty()).expect("a link");
        } else {
            let flags = RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(&self.private, &*staged, &self.dir, record, flags)
                .expect("an exchange");
        }
        leave(latch);
        if !is_new {
            // Without `fstat`: its size is known.
            drop(read(&open(&self.private, &staged), i64::try_from(text.len()).expect("a small text")));
        }
        self.next += 1;
        if self.next.is_multiple_of(STAGED) {
            self.unlink_staged();
        }
    }

    /// [`write`](Self::write) of a record that may have a file.
    pub(crate) fn write_any(&mut self, record: &str, lock: &str, text: &[u8]) {
        self.write(record, lock, text, !self.exists(record));
    }

    /// The acquisition of a free lock, and its release. Without the notification of waiters.
    pub(crate) fn acquire_and_release(&self, lock: &str, text: &[u8]) {
        assert!(!self.exists(lock));
        rustix::fs::fstat(&self.owner).expect("a file");
        let latch = self.enter();
        assert!(!self.exists(lock));
        create(&self.dir, lock, text);
        leave(latch);
        let latch = self.enter();
        let file = open(&self.dir, lock);
        let size = rustix::fs::fstat(&file).expect("a file").st_size;
        drop(read(&file, size));
        drop(file);
        rustix::fs::unlinkat(&self.dir, lock, AtFlags::empty()).expect("unlinked");
        leave(latch);
    }

    fn unlink_staged(&self) {
        rustix::fs::fdatasync(&self.log).expect("synced");
        for number in self.next - STAGED..self.next {
            rustix::fs::unlinkat(&self.private, format!("staged/{number}"), AtFlags::empty())
                .expect("unlinked");
        }
    }

    fn append(&mut self, text: &[u8]) {
        let mut frame = vec![0; (text.len() + 64).next_multiple_of(512)];
        frame[..text.len()].copy_from_slice(text);
        let length = frame.len() as u64;
        if self.log_end + length > LOG {
            self.log_end = 0;
        }
        let written = rustix::io::pwrite(&self.log, &frame, self.log_end).expect("written");
        assert_eq!(written, frame.len());
        self.log_end += length;
    }

    fn exists(&self, name: &str) -> bool {
        rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    fn enter(&self) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let latch = rustix::fs::openat(&self.private, "latch", flags, Mode::empty()).expect("it opens");
        rustix::fs::flock(&latch, FlockOperation::NonBlockingLockExclusive).expect("locked");
        rustix::fs::fstat(&latch).expect("a file");
        latch
    }
}

fn leave(latch: OwnedFd) {
    rustix::fs::flock(&latch, FlockOperation::Unlock).expect("unlocked");
    drop(latch);
}

fn open(dir: &OwnedFd, name: &str) -> OwnedFd {
    rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect("it opens")
}

fn create(dir: &OwnedFd, name: &str, text: &[u8]) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, MODE).expect("created");
    assert_eq!(rustix::io::write(&file, text).expect("written"), text.len());
}

fn read(file: &OwnedFd, size: i64) -> Vec<u8> {
    let mut text = vec![0; usize::try_from(size).expect("a small file")];
    assert_eq!(rustix::io::read(file, &mut text).expect("read"), text.len());
    text
}
