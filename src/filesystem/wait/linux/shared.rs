//! The mapped file: 256 counters and 256 slots, all of them atomic words. The one place with
//! `unsafe` code.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::Result;

use crate::filesystem::layout::{self, Context, EVENTS, Layout};

/// What those who watch the keys of one latch sleep on. A cache line each, so that busy keys do not
/// slow each other down.
#[repr(C, align(64))]
pub(super) struct Counter {
    /// Advanced whenever a key of the latch is freed.
    pub(super) freed: AtomicU32,
    /// Advanced when a record changes that somebody watches. The lowest bit says whether somebody
    /// does.
    pub(super) changed: AtomicU32,
    /// The last ticket given out: who has the lower one came first.
    pub(super) tickets: AtomicU64,
    /// The last token given out under the latch.
    pub(super) token: AtomicU64,
}

/// One who waits for a lock.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// One of the states in `queue`. The one who waits sleeps on this word.
    pub(super) state: AtomicU32,
    /// The key, by its two hashes.
    pub(super) crc32: AtomicU32,
    pub(super) tag: AtomicU64,
    pub(super) ticket: AtomicU64,
    /// When it was called, in milliseconds on the boot clock.
    pub(super) called_at: AtomicU64,
    /// The name of its owner file, padded with zeros.
    pub(super) owner: [AtomicU64; OWNER_WORDS],
}

pub(super) const OWNER_WORDS: usize = 4;

/// Which slots are taken, a bit each: to find that nobody waits takes a look at four words.
#[repr(C, align(64))]
pub(super) struct Taken(pub(super) [AtomicU64; 4]);

#[repr(C)]
pub(super) struct Table {
    pub(super) counters: [Counter; 256],
    pub(super) slots: [Slot; 256],
    pub(super) taken: Taken,
}

const SIZE: usize = size_of::<Table>();

/// The table, if there is one that this process may use.
#[derive(Debug)]
pub(super) struct Shared {
    map: Option<MmapRaw>,
    writable: bool,
}

impl Shared {
    /// Maps the table, and makes its file if `writable` and it is missing or short.
    pub(super) fn open(layout: &Layout, writable: bool, context: Context<'_>) -> Result<Self> {
        let path = || layout.private_path(EVENTS);
        let flags = if writable { OFlags::RDWR | OFlags::CREATE } else { OFlags::RDONLY };
        let mode = if writable { layout.mode() } else { Mode::empty() };
        let opened = match layout::open(&layout.private, EVENTS, flags, mode) {
            Ok(opened) => opened,
            // A reader does without: it looks again from time to time.
            Err(_) if !writable => return Ok(Self { map: None, writable }),
            Err(refusal) => return Err(context.refused(refusal, "open the event table", path())),
        };
        if usize::try_from(opened.stat.st_size).unwrap_or(0) < SIZE {
            if !writable {
                return Ok(Self { map: None, writable });
            }
            // Written, not only extended: a store through the map to a page that the disk has no
            // room for would kill the process.
            opened
                .file
                .write_all_at(&vec![0; SIZE], 0)
                .map_err(|error| context.io("write the event table", &path(), error))?;
        }
        let allocated = u64::try_from(opened.stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if writable && allocated < SIZE as u64 {
            // A copy of the file may have come back with holes where the zeros were.
            let allocate = || rustix::fs::fallocate(&opened.file, FallocateFlags::empty(), 0, SIZE as u64);
            match retry_on_intr(allocate) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(errno) => return Err(context.io("allocate the event table", &path(), errno)),
            }
        }
        let mut options = MmapOptions::new();
        options.len(SIZE);
        let map =
            if writable { options.map_raw(&opened.file) } else { options.map_raw_read_only(&opened.file) };
        // Some file systems cannot share a map: there, too, one looks again from time to time.
        Ok(Self { map: map.ok(), writable })
    }

    /// The table to load from.
    #[allow(unsafe_code, clippy::cast_ptr_alignment, reason = "a map begins at a page")]
    pub(super) fn table(&self) -> Option<&Table> {
        let map = self.map.as_ref()?;
        // SAFETY: the map is SIZE bytes long and begins at a page, so a `Table` lies within it and
        // is aligned. It consists of integers of which every bit pattern is valid, all accessed
        // atomically (the padding never), here and in other processes. It is unmapped only when
        // `self` is dropped, which the returned reference borrows. A map that cannot be written is
        // only loaded from: everything that stores goes through `to_change`.
        Some(unsafe { &*map.as_ptr().cast::<Table>() })
    }

    /// The table to change.
    pub(super) fn to_change(&self) -> Option<&Table> {
        self.table().filter(|_| self.writable)
    }
}

impl Slot {
    pub(super) fn set_owner(&self, name: &str) {
        use std::sync::atomic::Ordering::Relaxed;
        let mut bytes = [0; OWNER_WORDS * 8];
        let length = name.len().min(bytes.len());
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        for (word, chunk) in self.owner.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*chunk), Relaxed);
        }
    }

    /// The owner's name. Whatever the bytes are, the caller has to check it.
    pub(super) fn owner(&self) -> String {
        use std::sync::atomic::Ordering::Relaxed;
        let bytes: Vec<u8> = self
            .owner
            .iter()
            .flat_map(|word| word.load(Relaxed).to_ne_bytes())
            .take_while(|&b| b != 0)
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_laid_out_for_ever() {
        // Processes of different versions map the same file.
        assert_eq!((size_of::<Counter>(), size_of::<Slot>(), SIZE), (64, 64, 32 * 1024 + 64));
        assert_eq!(std::mem::offset_of!(Slot, owner), 32);
    }
}
