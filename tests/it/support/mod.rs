//! What the tests share.

pub(crate) mod children;
pub(crate) mod dice;
pub(crate) mod trace;

use std::path::Path;
use std::time::Duration;

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions};
use rustix::time::{ClockId, clock_gettime};

/// Far more than anything here takes, also on a busy machine: only a bug waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The size of a storm: `base`, times `RECORD_STORE_STORM`.
pub(crate) fn storm(base: u64) -> u64 {
    let factor = std::env::var("RECORD_STORE_STORM").map_or(1, |factor| factor.parse().expect("a number"));
    base * factor
}

pub(crate) fn open(dir: &Path) -> FileSystemRecordStore {
    open_with(dir, Durability::Full)
}

pub(crate) fn open_with(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).unwrap()
}

pub(crate) fn named(name: &str) -> Holder {
    Holder::named(name).unwrap()
}

/// Options of a named holder.
pub(crate) fn as_named(name: &str) -> LockOptions {
    LockOptions::new().holder(named(name))
}

pub(crate) fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Nanoseconds on the clock that all processes of the host share, `CLOCK_MONOTONIC`.
pub(crate) type Moment = u64;

pub(crate) fn now() -> Moment {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// The names in a directory.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A directory where nothing has to wait for a disk, if the system has such a place.
pub(crate) fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A key as the table of those who wait names it: its CRC-32, and the first bytes of its SHA-256.
pub(crate) fn hashes_of(key: &str) -> (u32, u64) {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(key.as_bytes());
    let tag = hash.iter().take(8).rev().fold(0, |tag, byte| tag << 8 | u64::from(*byte));
    (crc32fast::hash(key.as_bytes()), tag)
}

/// The key's latch file, in the store.
pub(crate) fn latch_of(key: &str) -> String {
    format!(".store/latches/{:02x}", hashes_of(key).0 & 0xff)
}

/// A process comes for the lock, and is killed while it waits: all that is left of it is its place in
/// the mapped table, which is laid out as it is for ever. The release finds somebody in line, and the
/// next to come finds out that nobody is.
pub(crate) fn stand_in_line(store: &Path, key: &str) {
    use std::os::unix::fs::FileExt;
    const WAITING: u32 = 1;
    const LAST_PLACE: u64 = 256 * 64 + 255 * 64;
    let (crc32, tag) = hashes_of(key);
    let mut place = [&WAITING.to_ne_bytes()[..], &crc32.to_ne_bytes(), &tag.to_ne_bytes()].concat();
    place.extend([0; 16]);
    place.extend(b"1-killed");
    place.resize(64, 0);
    // Behind the places there is a bit for each that is taken.
    let taken = [0, 0, 0, 1_u64 << 63];
    place.extend(taken.map(u64::to_ne_bytes).as_flattened());
    let table = std::fs::File::options().write(true).open(store.join(".store/events")).unwrap();
    table.write_all_at(&place, LAST_PLACE).unwrap();
}
