//! The mapped file: 256 counters and 256 slots, all of them atomic words. The one place with `unsafe` code.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, AtomicU64};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::filesystem::context::Context;
use crate::filesystem::disk::event_table::{self, SIZE};
use crate::filesystem::disk::layout::{self, EVENTS, Layout};
use crate::{ErrorKind, Result};

/// The words that watchers of the keys of one latch sleep on. One cache line each, so that busy keys do not
/// slow each other down.
#[repr(C, align(64))]
pub(super) struct Counter {
    /// Incremented whenever a key of the latch becomes free.
    pub(super) freed: AtomicU32,
    /// Incremented when a watched record changes. The lowest bit says whether there are watchers.
    pub(super) changed: AtomicU32,
    /// The next ticket. A waiter with a lower ticket came first.
    pub(super) tickets: AtomicU64,
    /// The last token issued under the latch.
    pub(super) token: AtomicU64,
    /// The last version given to a record under the latch.
    pub(super) version: AtomicU64,
}

/// A waiter for a lock.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// One of the states in `queue`. The waiter sleeps on this word.
    pub(super) state: AtomicU32,
    /// The key, by its two hashes.
    pub(super) crc32: AtomicU32,
    pub(super) tag: AtomicU64,
    pub(super) ticket: AtomicU64,
    /// While it waits, until when it sleeps; once it is notified, when that was. In milliseconds on the boot clock.
    pub(super) time: AtomicU64,
    /// The name of its owner file, padded with zeros.
    pub(super) owner: [AtomicU64; OWNER_WORDS],
}

pub(super) const OWNER_WORDS: usize = 4;

/// One bit per slot that is in use: four loads show that nobody waits.
#[repr(C, align(64))]
pub(super) struct InUse(pub(super) [AtomicU64; 4]);

#[repr(C)]
pub(super) struct Table {
    pub(super) counters: [Counter; 256],
    pub(super) slots: [Slot; 256],
    pub(super) in_use: InUse,
}

const _: () = assert!(size_of::<Table>() == SIZE, "the size of the file");

/// The detail of the error for a file of another program in the place of the table.
const NO_TABLE: &str = "not the table of waiters";

/// The mapping of the table, if there is one that this process may use.
#[derive(Debug)]
pub(super) struct Mapping {
    map: Option<MmapRaw>,
    writable: bool,
}

impl Mapping {
    /// Maps the table. If `writable`, it creates or extends the file where necessary. A file that is no table is not
    /// changed: that is an error of the kind `CorruptStore` (I12).
    pub(super) fn open(layout: &Layout, writable: bool, context: Context<'_>) -> Result<Self> {
        let path = || layout.private_path(EVENTS);
        let opened = if writable {
            layout.open_or_create_private(EVENTS, OFlags::RDWR)
        } else {
            layout::open(&layout.private, EVENTS, OFlags::RDONLY, Mode::empty())
        };
        let opened = match opened {
            Ok(opened) => opened,
            // A reader can do without: it checks again from time to time.
            Err(_) if !writable => return Ok(Self { map: None, writable }),
            Err(refusal) => return Err(refusal.into_error(context, "open the event table", path())),
        };
        let size = layout::size(&opened.stat);
        // The content of a table of the right size is that of any moment, and harmless whatever it is.
        if size != SIZE as u64 {
            if !writable {
                return Ok(Self { map: None, writable });
            }
            let is_ours = event_table::is_ours(&opened);
            if !is_ours.map_err(|error| context.io("read the event table", &path(), error))? {
                let error = context.error(ErrorKind::CorruptStore);
                return Err(error.with_detail(NO_TABLE).with_path(path()));
            }
            // Written, not only extended: a store through the mapping to a page for which the disk has no
            // room would kill the process.
            let missing = vec![0; SIZE - usize::try_from(size).unwrap_or(SIZE)];
            opened
                .file
                .write_all_at(&missing, size)
                .map_err(|error| context.io("write the event table", &path(), error))?;
        }
        let allocated = u64::try_from(opened.stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if writable && allocated < SIZE as u64 {
            // A copy of the file may have holes in the place of the zeros.
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
        // Some file systems do not support shared mappings: then, too, a sleeper checks from time to time.
        Ok(Self { map: map.ok(), writable })
    }

    /// No table: nobody can be notified.
    pub(super) fn none() -> Self {
        Self { map: None, writable: false }
    }

    /// The table to load from.
    #[allow(unsafe_code, clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    pub(super) fn table(&self) -> Option<&Table> {
        let map = self.map.as_ref()?;
        // SAFETY: the mapping is SIZE bytes long and begins at a page, so a `Table` is within it and aligned.
        // It consists of integers for which every bit pattern is valid, all accessed atomically (the padding
        // never), here and in other processes. It is unmapped only when `self` is dropped, which the
        // returned reference borrows. A read-only mapping is only loaded from: every store goes through
        // `table_to_change`.
        Some(unsafe { &*map.as_ptr().cast::<Table>() })
    }

    /// The table to change.
    pub(super) fn table_to_change(&self) -> Option<&Table> {
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

    /// The owner's name. It may be garbage, and the caller has to check it.
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
    fn the_layout_of_the_table_is_fixed() {
        // Processes of different versions map the same file.
        assert_eq!((size_of::<Counter>(), size_of::<Slot>(), SIZE), (64, 64, 32 * 1024 + 64));
        assert_eq!(std::mem::offset_of!(Slot, owner), 32);
        assert_eq!(std::mem::offset_of!(Counter, version), 24);
    }
}
