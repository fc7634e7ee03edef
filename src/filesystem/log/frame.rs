//! The frames of the commit log as bytes. A frame tells one change of a record or a lock completely.
//!
//! A frame begins at a multiple of [`BLOCK`], so a torn write of one frame damages no other. Each segment has a
//! random number, and so has each of its frames: no content of a record, however hostile, can pass for a frame.

use crate::Key;

/// The unit that a disk writes whole or not at all, in bytes.
pub(crate) const BLOCK: usize = 512;

const MAGIC: u32 = u32::from_le_bytes(*b"RSfr");
const HEADER: usize = 36;

/// The kind of a frame. The number in the frame is the version of the record or the token of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The record has this text.
    Record = 1,
    /// The record was removed.
    Removed = 2,
    /// The lock file has this text.
    Locked = 3,
    /// The lock was released or broken.
    Unlocked = 4,
    /// The record is the file of this name in the private directory, which is synced: it is too large for a frame.
    Large = 5,
    /// All tokens and versions that were given are less than the number. The key means nothing.
    Reserved = 6,
}

/// A change, as a frame tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) kind: Kind,
    pub(crate) number: u64,
    pub(crate) key: &'a str,
    pub(crate) text: &'a [u8],
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        [Self::Record, Self::Removed, Self::Locked, Self::Unlocked, Self::Large, Self::Reserved]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

impl<'a> Frame<'a> {
    pub(crate) fn new(kind: Kind, number: u64, key: &'a Key, text: &'a [u8]) -> Self {
        Self { kind, number, key: key.as_str(), text }
    }

    /// The number of blocks that the frame takes.
    pub(crate) fn blocks(&self) -> u64 {
        (HEADER + self.key.len() + self.text.len()).div_ceil(BLOCK) as u64
    }

    /// The bytes in a segment of this random number. The rest of the last block is zeros.
    pub(crate) fn to_bytes(&self, nonce: u64) -> Vec<u8> {
        let length = (HEADER + self.key.len() + self.text.len()).next_multiple_of(BLOCK);
        let mut bytes = Vec::with_capacity(length);
        let lengths = [self.key.len(), self.text.len()];
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend((self.kind as u32).to_le_bytes());
        bytes.extend(nonce.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        for length in lengths {
            // A frame is smaller than a segment.
            bytes.extend(u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        }
        bytes.extend([0; 4]);
        bytes.extend(self.key.as_bytes());
        bytes.extend(self.text);
        let crc32 = checksum(&bytes);
        bytes[HEADER - 4..HEADER].copy_from_slice(&crc32.to_le_bytes());
        bytes.resize(length, 0);
        bytes
    }

    /// The length of the frame that these bytes may begin, at least [`BLOCK`] of them.
    pub(super) fn length(bytes: &[u8]) -> Option<usize> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize);
        HEADER.checked_add(word(24)?)?.checked_add(word(28)?)
    }

    /// The frame at the beginning of these bytes, if there is a whole one.
    pub(crate) fn parse(bytes: &'a [u8], nonce: u64) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if word(0)? != MAGIC || long(8)? != nonce {
            return None;
        }
        let key_end = HEADER.checked_add(usize::try_from(word(24)?).ok()?)?;
        let end = key_end.checked_add(usize::try_from(word(28)?).ok()?)?;
        let frame = bytes.get(..end)?;
        (word(32)? == checksum(frame)).then_some(())?;
        Some(Self {
            kind: Kind::from_number(word(4)?)?,
            number: long(16)?,
            key: std::str::from_utf8(&frame[HEADER..key_end]).ok()?,
            text: &frame[key_end..],
        })
    }
}

/// The checksum of a frame without padding. Its own place counts as zeros.
fn checksum(frame: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&frame[..HEADER - 4]);
    hasher.update(&[0; 4]);
    hasher.update(&frame[HEADER..]);
    hasher.finalize()
}

/// All whole frames in a segment's bytes, with the numbers of their first blocks. A frame that is torn, missing or of another
/// use of the segment is skipped. The first block is the header.
pub(crate) fn frames(segment: &[u8], nonce: u64) -> impl Iterator<Item = (u64, Frame<'_>)> {
    let mut block = 1;
    std::iter::from_fn(move || {
        while let Some(rest) = segment.get(block * BLOCK..).filter(|rest| !rest.is_empty()) {
            let at = block;
            if let Some(frame) = Frame::parse(rest, nonce) {
                block += usize::try_from(frame.blocks()).unwrap_or(1);
                return Some((at as u64, frame));
            }
            block += 1;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    #[test]
    fn a_frame_reads_back() {
        for (key, text) in [(key("k"), ""), (key("\0\n"), "{}"), (key("k"), &*"x".repeat(5_000))] {
            let frame = Frame::new(Kind::Record, 7, &key, text.as_bytes());
            let bytes = frame.to_bytes(99);
            assert_eq!(bytes.len() as u64, frame.blocks() * BLOCK as u64);
            assert_eq!(Frame::parse(&bytes, 99), Some(frame));
        }
    }

    #[test]
    fn what_is_not_whole_is_no_frame() {
        let key = key("k");
        let frame = Frame::new(Kind::Locked, 7, &key, b"text");
        let bytes = frame.to_bytes(99);
        assert_eq!(Frame::parse(&bytes, 98), None, "of another use of the segment");
        let length = HEADER + 1 + 4;
        for cut in 0..length {
            assert_eq!(Frame::parse(&bytes[..cut], 99), None, "cut at {cut}");
        }
        for bit in 0..length * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Frame::parse(&flipped, 99), None, "bit {bit}");
        }
    }

    #[test]
    fn a_scan_finds_each_frame_behind_holes_and_torn_ones() {
        let key = key("k");
        let frame = |number, length| Frame {
            kind: Kind::Record,
            number,
            key: key.as_str(),
            text: &[b'x'; 3_000][..length],
        };
        let mut segment = vec![0; BLOCK];
        segment.extend(frame(1, 10).to_bytes(99));
        segment.extend([0; BLOCK]);
        segment.extend(frame(2, 10).to_bytes(98));
        let mut torn = frame(3, 3_000).to_bytes(99);
        torn[BLOCK..2 * BLOCK].fill(0);
        segment.extend(torn);
        segment.extend(frame(4, 10).to_bytes(99));
        segment.extend(&frame(5, 3_000).to_bytes(99)[..BLOCK]);
        let found: Vec<_> = frames(&segment, 99).map(|(at, frame)| (at, frame.number)).collect();
        assert_eq!(found, [(1, 1), (10, 4)]);
    }

    #[test]
    fn a_key_that_looks_like_a_frame_is_none() {
        let inner = Frame { kind: Kind::Removed, number: 9, key: "victim", text: b"" }.to_bytes(1);
        // The first block of the outer frame is torn, so that the scan looks inside of it.
        let text = [vec![b' '; BLOCK - HEADER - 1], inner].concat();
        let key = key("k");
        let mut segment = vec![0; BLOCK];
        segment.extend(Frame { kind: Kind::Record, number: 1, key: key.as_str(), text: &text }.to_bytes(99));
        segment[BLOCK..BLOCK + 4].fill(0);
        assert_eq!(frames(&segment, 99).count(), 0);
    }
}
