//! The segment files of the log: their header, and how they are created, emptied and read.
//!
//! A segment is written with zeros once, so that a sync of a frame has to write no metadata of the file system.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::frame::BLOCK;
use crate::filesystem::disk::layout::{self, LOG, Layout, Refusal};
use crate::filesystem::disk::publish;
use crate::filesystem::options::Durability;
use crate::{Error, ErrorKind, trace};

/// The size of the first segments: those of a small store.
pub(super) const SMALL: u64 = 256;

/// The largest segment.
pub(super) const LARGE: u64 = 16 * 1024;

const MAGIC: u64 = u64::from_le_bytes(*b"RSlog-01");

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// The epoch of its use. Zero: it is empty.
    pub(super) epoch: u64,
    /// The random number of its use.
    pub(super) nonce: u64,
    pub(super) blocks: u64,
    /// All tokens and versions that were given are less, or a frame says a greater number.
    pub(super) high: u64,
}

impl Header {
    /// The header of an empty segment.
    pub(super) fn empty(blocks: u64, high: u64) -> Self {
        Self { epoch: 0, nonce: 0, blocks, high }
    }

    /// The header of a new use.
    pub(super) fn of_use(epoch: u64, blocks: u64, high: u64) -> Self {
        // The keys of a hasher are random.
        let nonce = RandomState::new().build_hasher().finish() | 1;
        Self { epoch, nonce, blocks, high }
    }

    fn to_bytes(self) -> [u8; BLOCK] {
        let mut bytes = [0; BLOCK];
        let words = [MAGIC, self.epoch, self.nonce, self.blocks, self.high];
        for (at, word) in words.iter().enumerate() {
            bytes[at * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        let crc32 = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc32.to_le_bytes());
        bytes
    }

    /// The header in the first block of a file. `None`: the file is no segment.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at * 8..)?.first_chunk()?));
        let crc32 = u32::from_le_bytes(*bytes.get(40..)?.first_chunk()?);
        let is_whole = word(0)? == MAGIC && crc32fast::hash(bytes.get(..40)?) == crc32;
        is_whole.then_some(())?;
        Some(Self { epoch: word(1)?, nonce: word(2)?, blocks: word(3)?, high: word(4)? })
    }

    pub(super) fn write(self, file: &File) -> io::Result<()> {
        file.write_all_at(&self.to_bytes(), 0)
    }
}

/// The name of a segment file in the directory of the log.
pub(super) fn name(segment: usize) -> String {
    format!("{segment:02}")
}

/// The path of a segment file in the private directory.
pub(super) fn path_in_private(segment: usize) -> String {
    format!("{LOG}/{}", name(segment))
}

/// The path of the file that a process locks before it uses or changes a free segment.
pub(super) fn path_of_claim(segment: usize) -> String {
    format!("{LOG}/claim-{}", name(segment))
}

/// The path of a segment file, for messages.
pub(super) fn path(layout: &Layout, segment: usize) -> PathBuf {
    layout.private_path(&path_in_private(segment))
}

pub(super) fn open(dir: &OwnedFd, segment: usize, flags: OFlags) -> Result<File, Refusal> {
    layout::open_unchecked(dir, &*name(segment), flags, Mode::empty())
}

/// Creates an empty segment file, on the disk. It gets this mode, whatever the umask of this process: everyone who may
/// write the store may write it. `false`: a file of another program was there, and is moved aside.
pub(super) fn create(
    layout: &Layout,
    dir: &OwnedFd,
    segment: usize,
    mode: Mode,
    header: Header,
) -> Result<bool, Refusal> {
    let name = name(segment);
    let file = match layout.create(dir, &*name, OFlags::RDWR) {
        Err(Refusal::Os(Errno::EXIST)) => {
            // Without content, or of a creation that was not completed: nothing refers to it.
            let bytes = read(dir, segment)?.unwrap_or_default();
            if used_length(&bytes) != 0 && Header::parse(&bytes).is_none() {
                // A file of another program, or a segment that has decayed (I12).
                let kept = publish::set_aside(layout, (dir, &name), &name, Durability::Full);
                let error = Error::new(ErrorKind::CorruptStore, "open").with_detail("no segment of the log");
                trace::set_aside(&kept.map_err(Refusal::Os)?, &error);
                return Ok(false);
            }
            open(dir, segment, OFlags::RDWR)?
        }
        created => created?,
    };
    if layout.permissions.are_usual() {
        rustix::fs::fchmod(&file, mode).map_err(Refusal::Os)?;
    }
    // The header first: that of an earlier use may be the only one that says which numbers were given.
    header.write(&file).map_err(refused)?;
    let length = usize::try_from(header.blocks).unwrap_or(0).saturating_sub(1) * BLOCK;
    if let Err(error) = file.write_all_at(&vec![0; length], BLOCK as u64).and_then(|()| file.sync_all()) {
        let _ = shrink(&file);
        return Err(refused(error));
    }
    retry_on_intr(|| rustix::fs::fsync(dir)).map_err(Refusal::Os)?;
    Ok(true)
}

/// Gives back the room of an empty segment. Its header stays: it may be the only one that says which numbers were given.
pub(super) fn shrink(file: &File) -> io::Result<()> {
    file.set_len(BLOCK as u64)
}

/// The length without the zeros at the end. Compares whole blocks: most of a segment is zero.
pub(super) fn used_length(mut bytes: &[u8]) -> usize {
    while let Some((rest, last)) = bytes.split_last_chunk()
        && *last == [0; BLOCK]
    {
        bytes = rest;
    }
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// Empties a segment file of this length, on the disk. One with other names may be that of another store, too: it is
/// replaced by a new one.
pub(super) fn empty(
    layout: &Layout,
    dir: &OwnedFd,
    segment: usize,
    header: Header,
    length: usize,
) -> Result<(), Refusal> {
    let stat = layout::stat(dir, &name(segment)).map_err(Refusal::Os)?;
    if let Some(stat) = stat
        && stat.st_nlink > 1
    {
        publish::remove_private(dir, &name(segment));
        let mode = Mode::from_raw_mode(stat.st_mode);
        while !create(layout, dir, segment, mode, header)? {}
        return Ok(());
    }
    write_empty(&open(dir, segment, OFlags::WRONLY)?, header, length.saturating_sub(BLOCK)).map_err(refused)
}

/// Empties a segment file of which so many bytes after the header were used, on the disk.
pub(super) fn write_empty(file: &File, header: Header, used: usize) -> io::Result<()> {
    // The header first: a frame must not disappear while an older one about the same key is there.
    header.write(file)?;
    file.sync_data()?;
    // The text of a removed record must not stay here.
    file.write_all_at(&vec![0; used], BLOCK as u64)?;
    file.sync_data()
}

#[allow(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn refused(error: io::Error) -> Refusal {
    Refusal::Os(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The whole content of a segment file. `None`: there is no such file.
pub(super) fn read(dir: &OwnedFd, segment: usize) -> Result<Option<Vec<u8>>, Refusal> {
    let Some(opened) = layout::open_existing(dir, &name(segment))? else { return Ok(None) };
    let read = layout::read_up_to(&opened, LARGE * BLOCK as u64);
    read.map(Some).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_nothing_else_does() {
        let header = Header::of_use(3, SMALL, 77);
        let bytes = header.to_bytes();
        assert_eq!(Header::parse(&bytes), Some(header));
        for bit in 0..44 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::parse(&flipped), None, "bit {bit}");
        }
        assert_eq!(Header::parse(&[0; BLOCK]), None);
        assert_ne!(Header::of_use(3, SMALL, 77).nonce, header.nonce);
    }

    #[test]
    fn the_used_length_ends_after_the_last_byte_that_is_not_zero() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 7] {
            let mut bytes = vec![0; length];
            assert_eq!(used_length(&bytes), 0, "{length}");
            for last in 0..length {
                bytes.fill(0);
                bytes[last] = 1;
                assert_eq!(used_length(&bytes), last + 1, "{length}");
                bytes[0] = 1;
                assert_eq!(used_length(&bytes), last + 1, "{length}");
            }
        }
    }
}
