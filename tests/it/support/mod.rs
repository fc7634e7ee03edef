//! Helpers that the test modules share.

pub(crate) mod children;
pub(crate) mod dice;
pub(crate) mod trace;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions};
use rustix::time::{ClockId, clock_gettime};

use crate::watchdog::watch_test;

/// The timeout of a wait that must succeed. Only a bug makes a wait this long, even on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The number of rounds of a stress test: `base` times `RECORD_STORE_STORM`.
pub(crate) fn storm(base: u64) -> u64 {
    let factor = std::env::var("RECORD_STORE_STORM").map_or(1, |factor| factor.parse().expect("a number"));
    base * factor
}

pub(crate) fn open(dir: &Path) -> FileSystemRecordStore {
    open_with(dir, Durability::Full)
}

pub(crate) fn open_with(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    watch_test();
    FileSystemOptions::new().durability(durability).open(dir).unwrap()
}

pub(crate) fn named(name: &str) -> Holder {
    Holder::named(name).unwrap()
}

/// Lock options for a named holder.
pub(crate) fn as_named(name: &str) -> LockOptions {
    LockOptions::new().holder(named(name))
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of the host share.
pub(crate) type Moment = u64;

pub(crate) fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// The names of the entries of a directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// [`tempfile::tempdir`] for a test, which is watched.
pub(crate) fn tempdir() -> std::io::Result<tempfile::TempDir> {
    watch_test();
    tempfile::tempdir()
}

/// A temporary directory in memory (`/dev/shm`), where the system has it, so that no test waits for a disk.
pub(crate) fn in_memory() -> tempfile::TempDir {
    watch_test();
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Sets a flag for other threads when it is dropped, also by a panic. Otherwise they would run forever.
pub(crate) struct SetOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The two hashes that identify a key in the wait table: its CRC-32, and the first eight bytes of its
/// SHA-256.
pub(crate) fn hashes_of(key: &str) -> (u32, u64) {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(key.as_bytes());
    let tag = hash.iter().take(8).rev().fold(0, |tag, byte| tag << 8 | u64::from(*byte));
    (crc32fast::hash(key.as_bytes()), tag)
}

/// The path of the key's latch file, relative to the store.
pub(crate) fn latch_of(key: &str) -> String {
    format!(".store/latches/{:02x}", hashes_of(key).0 & 0xff)
}

/// The number of waiters in the wait queue of a store, for all its keys: the marks of the slots in use, behind the
/// counters and the slots.
pub(crate) fn slots_in_use(store: &Path) -> u32 {
    use std::os::unix::fs::FileExt;
    let mut marks = [0; 32];
    let table = std::fs::File::open(store.join(".store/events")).unwrap();
    table.read_exact_at(&mut marks, 32 * 1024).unwrap();
    marks.iter().map(|byte| byte.count_ones()).sum()
}

/// Adds the waiter of a killed process to the wait queue of `key`. Only its slot in the mapped table is
/// left, whose layout never changes. The next release finds a waiter in the queue, and the next process
/// to wait finds out that this waiter is dead.
#[cfg(target_arch = "x86_64")]
pub(crate) fn enqueue_dead_waiter(store: &Path, key: &str) {
    use std::os::unix::fs::FileExt;
    const WAITING: u32 = 1;
    const LAST_SLOT: u64 = 256 * 64 + 255 * 64;
    let (crc32, tag) = hashes_of(key);
    let mut slot = [&WAITING.to_ne_bytes()[..], &crc32.to_ne_bytes(), &tag.to_ne_bytes()].concat();
    slot.extend([0; 16]);
    slot.extend(b"1-killed");
    slot.resize(64, 0);
    // The slots are followed by a bitmap of the slots in use.
    let in_use = [0, 0, 0, 1_u64 << 63];
    slot.extend(in_use.map(u64::to_ne_bytes).as_flattened());
    let table = std::fs::File::options().write(true).open(store.join(".store/events")).unwrap();
    table.write_all_at(&slot, LAST_SLOT).unwrap();
}
