//! The memory that the processes of a store share about the log: where the next frame goes, which frames are synced, and which
//! numbers are given. It is in a mapped file, is never synced, and is worth nothing after a restart of the machine:
//! then it is set up again from the segments.
#![allow(unsafe_code, reason = "a mapped file")]

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
#[cfg(target_os = "linux")]
use sha2::{Digest, Sha256};

use super::position::Position;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{self, LOG_STATE, Layout, Opened};
use crate::filesystem::disk::private_names::SEGMENTS;
use crate::filesystem::protocol::clock::Reading;
use crate::{ErrorKind, Result};

/// The words of the whole log.
#[repr(C, align(64))]
pub(super) struct Head {
    /// [`MAGIC`], or zero in a file that is not set up.
    magic: AtomicU64,
    /// Identifies the boot, the store and this file. Any other value: the words mean nothing.
    ready: AtomicU64,
    /// The position of the next frame.
    pub(super) append: AtomicU64,
    /// The greatest epoch that was given.
    pub(super) epoch: AtomicU64,
    /// All tokens and versions are less than this. It is on the disk before one of them is given.
    pub(super) high: AtomicU64,
    /// All tokens and versions are greater than this: one before the restart may have been as great.
    pub(super) floor: AtomicU64,
    /// When a process last began to empty a full segment, in milliseconds on the boot clock. Zero: none is full.
    pub(super) checkpoint: AtomicU64,
    /// One: the last attempt to empty them has ended, but a process that is stopped prevents that for some.
    pub(super) is_prevented: AtomicU64,
}

/// The words of a segment file.
#[repr(C, align(64))]
pub(super) struct Segment {
    /// The epoch of its use. Zero: it is free.
    pub(super) epoch: AtomicU64,
    /// The random number of its use.
    pub(super) nonce: AtomicU64,
    /// Its size. Zero: there is no such file.
    pub(super) blocks: AtomicU64,
    /// When this use began, in milliseconds on the boot clock.
    pub(super) begun: AtomicU64,
    /// The epoch in which a sync of it has failed.
    pub(super) failed: AtomicU64,
    /// The epoch in which all its frames are synced: it gets no more.
    pub(super) synced: AtomicU64,
}

/// The words of a latch. Only who is in the latch stores `token`, `version`, `logged` and `mark`.
#[repr(C, align(64))]
pub(crate) struct LatchWords {
    /// The last token issued under the latch.
    pub(crate) token: AtomicU64,
    /// The last version given to a record under the latch.
    pub(crate) version: AtomicU64,
    /// The position of the last frame. It is stored before the change can be seen.
    pub(super) logged: AtomicU64,
    /// All frames up to this position are synced.
    pub(super) synced: AtomicU64,
    /// The position of a frame whose change may not be made yet or, if that needs more than a sync of the log, may not be
    /// durable yet; or zero. That of a header: a process is about to append a frame to that use of the segment.
    pub(super) mark: AtomicU64,
}

#[repr(C)]
pub(super) struct Words {
    pub(super) head: Head,
    pub(super) segments: [Segment; SEGMENTS],
    pub(super) latches: [LatchWords; 256],
}

const SIZE: usize = size_of::<Words>();

const MAGIC: u64 = u64::from_ne_bytes(*b"RSstate2");

/// That of an earlier version of this crate. Its words had other meanings, so they are worth nothing.
const EARLIER_MAGIC: u64 = u64::from_ne_bytes(*b"RSstate1");

/// The value of `ready` that a process stores which does not know the boot.
const UNKNOWN_BOOT: u64 = 2;

/// The mapped file.
#[derive(Debug)]
pub(super) struct Shared {
    #[cfg(target_os = "linux")]
    map: MmapRaw,
    /// There is none.
    #[cfg(not(target_os = "linux"))]
    map: std::convert::Infallible,
    writable: bool,
    /// The mode of the file, which the creator of the store has given to it.
    mode: Mode,
    /// The file has other names: another store may have it, too.
    is_linked: bool,
    /// The value of `ready` for this boot, this store and this file. `None`: the system does not identify the boot.
    ready: Option<u64>,
    /// The words are of this boot, although the system does not identify it.
    is_trusted: AtomicBool,
}

impl Shared {
    /// Maps the file. If `writable`, it is created and extended where necessary, and a file of another program in its place
    /// is an error of the kind `CorruptStore` (I12). `None`: there is none, or the file system does not support shared
    /// mappings.
    pub(super) fn open(layout: &Layout, writable: bool, context: Context<'_>) -> Result<Option<Self>> {
        let path = || layout.private_path(LOG_STATE);
        let opened = if writable {
            layout.open_or_create_private(LOG_STATE, OFlags::RDWR)
        } else {
            layout::open(&layout.private, LOG_STATE, OFlags::RDONLY, Mode::empty())
        };
        let opened = match opened {
            Ok(opened) => opened,
            Err(_) if !writable => return Ok(None),
            Err(refusal) => return Err(refusal.into_error(context, "open the state of the log", path())),
        };
        if !is_ours(&opened).map_err(|error| context.io("read the state of the log", &path(), error))? {
            if !writable {
                return Ok(None);
            }
            return Err(context.error(ErrorKind::CorruptStore).with_detail(FOREIGN).with_path(path()));
        }
        let size = layout::size(&opened.stat);
        if size < SIZE as u64 {
            if !writable {
                return Ok(None);
            }
            // Written, not only extended: a store to a page for which the disk has no room would kill the process.
            let missing = vec![0; SIZE - usize::try_from(size).unwrap_or(SIZE)];
            let written = opened.file.write_all_at(&missing, size);
            written.map_err(|error| context.io("write the state of the log", &path(), error))?;
        }
        match Self::map(layout, &opened, writable) {
            Ok(shared) => Ok(Some(shared)),
            // The file system has no shared mappings, so no process has one.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => Ok(None),
            Err(_) if !writable => Ok(None),
            Err(error) => Err(context.io("map the state of the log", &path(), error)),
        }
    }

    #[cfg(target_os = "linux")]
    fn map(layout: &Layout, opened: &Opened, writable: bool) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.len(SIZE);
        let map =
            if writable { options.map_raw(&opened.file) } else { options.map_raw_read_only(&opened.file) };
        Ok(Self {
            map: map?,
            writable,
            mode: Mode::from_raw_mode(opened.stat.st_mode),
            is_linked: opened.stat.st_nlink > 1,
            ready: identity(layout, opened),
            is_trusted: AtomicBool::new(false),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn map(_layout: &Layout, _opened: &Opened, _writable: bool) -> io::Result<Self> {
        Err(Errno::NODEV.into())
    }

    #[allow(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
    pub(super) fn words(&self) -> &Words {
        #[cfg(target_os = "linux")]
        // SAFETY: the mapping is SIZE bytes long and begins at a page, so `Words` are within it and aligned. They
        // consist of integers for which every bit pattern is valid, all accessed atomically, here and in other
        // processes. The mapping lives as long as `self`. Stores are made only where `is_writable`.
        unsafe {
            &*self.map.as_ptr().cast::<Words>()
        }
        #[cfg(not(target_os = "linux"))]
        match self.map {}
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether the words are of this boot and this store.
    pub(super) fn is_ready(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
            || self.ready.is_some_and(|ready| self.words().head.ready.load(Ordering::Acquire) == ready)
    }

    /// Whether the system identifies the boot. If it does not, only a living process proves that the words are of it.
    pub(super) fn knows_boot(&self) -> bool {
        self.ready.is_some()
    }

    /// Whether the words may be of this boot, because a process has set them up that did not know the boot, or because this
    /// one does not know it.
    pub(super) fn may_be_ready(&self) -> bool {
        let head = &self.words().head;
        let ready = head.ready.load(Ordering::Acquire);
        if head.magic.load(Ordering::Acquire) != MAGIC {
            return false;
        }
        ready == UNKNOWN_BOOT || (ready != 0 && !self.knows_boot())
    }

    /// The words are of this boot.
    pub(super) fn trust(&self) {
        self.is_trusted.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_linked(&self) -> bool {
        self.is_linked
    }

    /// Sets all words to zero. They mean nothing until [`set_ready`](Self::set_ready).
    pub(super) fn clear(&self) {
        let words = self.words();
        words.head.ready.store(0, Ordering::SeqCst);
        let head = &words.head;
        let others = [&head.high, &head.floor, &head.checkpoint, &head.is_prevented];
        for word in [&head.append, &head.epoch].into_iter().chain(others) {
            word.store(0, Ordering::Relaxed);
        }
        for it in &words.segments {
            for word in [&it.epoch, &it.nonce, &it.blocks, &it.begun, &it.failed, &it.synced] {
                word.store(0, Ordering::Relaxed);
            }
        }
        for it in &words.latches {
            for word in [&it.token, &it.version, &it.logged, &it.synced, &it.mark] {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The words are set up.
    pub(super) fn set_ready(&self) {
        self.words().head.magic.store(MAGIC, Ordering::SeqCst);
        self.words().head.ready.store(self.ready.unwrap_or(UNKNOWN_BOOT), Ordering::SeqCst);
        self.trust();
    }
}

/// The time, in milliseconds on the boot clock.
pub(super) fn now() -> u64 {
    u64::try_from(Reading::now().boottime.as_millis()).unwrap_or(u64::MAX)
}

impl Words {
    pub(super) fn append(&self) -> Position {
        Position::from_number(self.head.append.load(Ordering::SeqCst))
    }

    pub(super) fn segment(&self, position: Position) -> &Segment {
        &self.segments[position.segment()]
    }

    /// Whether the segment has the use of this position.
    pub(super) fn is_in_use(&self, position: Position) -> bool {
        self.segment(position).epoch.load(Ordering::SeqCst) == position.epoch()
    }
}

/// The bytes of a line of 64 that are used: those of the head, of a segment and of a latch.
const USED: [usize; 3] = [8 * 8, 6 * 8, 5 * 8];

/// A change is made within microseconds, unless its process is interrupted.
const SOON: Duration = Duration::from_micros(100);

/// A process that has not made its change after this time may be stopped, or was killed.
const STOPPED: Duration = Duration::from_millis(10);

const FOREIGN: &str = "not the state of the log";

/// Whether a file is what the processes share, or the beginning of it: it begins with the magic number or with zeros, it is
/// not too long, and the parts that are never written are zeros.
pub(crate) fn is_ours(opened: &Opened) -> io::Result<bool> {
    let used = |line: usize| match line {
        0 => USED[0],
        1..=SEGMENTS => USED[1],
        _ => USED[2],
    };
    let bytes = layout::read_head(opened, SIZE)?;
    let magic = &bytes[..bytes.len().min(size_of_val(&MAGIC))];
    let is_known = [MAGIC, EARLIER_MAGIC].iter().any(|known| magic == known.to_ne_bytes());
    let begins = magic.iter().all(|byte| *byte == 0) || is_known;
    let mut lines = bytes.chunks(64).enumerate();
    let is_zero = |(line, bytes): (usize, &[u8])| bytes.iter().skip(used(line)).all(|byte| *byte == 0);
    Ok(begins && layout::size(&opened.stat) <= SIZE as u64 && lines.all(is_zero))
}

impl LatchWords {
    /// Whether a change may not be made yet whose frame is in this use of a segment.
    pub(super) fn is_unfinished(&self, epoch: u64) -> bool {
        Position::from_number(self.mark.load(Ordering::SeqCst)).epoch() == epoch
    }

    /// Whether the change whose frame is at this position may not be made yet, or not be durable in spite of a sync of the log.
    pub(super) fn is_being_made(&self, position: Position) -> bool {
        let mark = self.mark.load(Ordering::Acquire);
        mark != 0 && mark == position.number()
    }

    /// Waits until it is made. `false`: the process that makes it does not go on.
    pub(super) fn wait_until_made(&self, position: Position) -> bool {
        let begun = Instant::now();
        while self.is_being_made(position) {
            match begun.elapsed() {
                short if short < SOON => std::thread::yield_now(),
                long if long < STOPPED => std::thread::sleep(SOON),
                _ => return false,
            }
        }
        true
    }

    pub(super) fn logged(&self) -> Position {
        Position::from_number(self.logged.load(Ordering::Acquire))
    }

    pub(super) fn synced(&self) -> Position {
        Position::from_number(self.synced.load(Ordering::Acquire))
    }

    /// The frames up to this position are synced.
    pub(super) fn set_synced(&self, position: Position) {
        self.synced.fetch_max(position.number(), Ordering::AcqRel);
    }
}

/// A number for the boot, the store and the file. A copy of the store has other inodes.
#[cfg(target_os = "linux")]
#[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
fn identity(layout: &Layout, opened: &Opened) -> Option<u64> {
    let now = Reading::now();
    let mut hash = Sha256::new();
    hash.update(&now.epoch()?.boot_id);
    let inode: u64 = opened.stat.st_ino.into();
    for number in [layout.identity.0, layout.identity.1, inode, SIZE as u64, MAGIC] {
        hash.update(number.to_le_bytes());
    }
    let first = hash.finalize().first_chunk().copied().map_or(0, u64::from_le_bytes);
    Some(first | 1)
}
