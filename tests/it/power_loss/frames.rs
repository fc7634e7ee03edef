//! The bytes of the log: segment headers and frames. Written down a second time, so that the library does not check
//! itself.

use super::content::SECTOR;

const HEADER_MAGIC: &[u8] = b"RSlog-01";
const FRAME_MAGIC: &[u8] = b"RSfr";
const FRAME_HEADER: usize = 36;

/// The first block of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) epoch: u64,
    pub(crate) nonce: u64,
    pub(crate) blocks: u64,
    pub(crate) high: u64,
}

/// A change of a record or a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u32,
    pub(crate) nonce: u64,
    pub(crate) number: u64,
    pub(crate) key: Vec<u8>,
    pub(crate) text: Vec<u8>,
}

/// A frame that names the file of a record.
pub(crate) const LARGE: u32 = 5;

/// A frame that says that all tokens and versions that were given are less than its number.
pub(crate) const RESERVED: u32 = 6;

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Header {
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        // The zeros at the end of a file may be missing.
        let mut block = bytes[..bytes.len().min(SECTOR)].to_vec();
        block.resize(SECTOR, 0);
        let is_whole = block.starts_with(HEADER_MAGIC) && word(&block, 40)? == crc32fast::hash(&block[..40]);
        let field = |at| long(&block, at);
        is_whole.then_some(Self { epoch: field(8)?, nonce: field(16)?, blocks: field(24)?, high: field(32)? })
    }

    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = HEADER_MAGIC.to_vec();
        for number in [self.epoch, self.nonce, self.blocks, self.high] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes.resize(SECTOR, 0);
        bytes
    }
}

impl Frame {
    /// The frame at the beginning of these bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(FRAME_MAGIC) {
            return None;
        }
        let key_end = FRAME_HEADER + word(bytes, 24)? as usize;
        let end = key_end + word(bytes, 28)? as usize;
        let mut frame = bytes[..bytes.len().min(end)].to_vec();
        frame.resize(end, 0);
        let stored = word(&frame, 32)?;
        frame[32..FRAME_HEADER].fill(0);
        (stored == crc32fast::hash(&frame)).then_some(())?;
        let (key, text) = (frame[FRAME_HEADER..key_end].to_vec(), frame[key_end..].to_vec());
        Some(Self { kind: word(bytes, 4)?, nonce: long(bytes, 8)?, number: long(bytes, 16)?, key, text })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = FRAME_MAGIC.to_vec();
        bytes.extend(self.kind.to_le_bytes());
        bytes.extend(self.nonce.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(u32::try_from(self.key.len()).unwrap().to_le_bytes());
        bytes.extend(u32::try_from(self.text.len()).unwrap().to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&self.key);
        bytes.extend(&self.text);
        let crc32 = crc32fast::hash(&bytes);
        bytes[32..FRAME_HEADER].copy_from_slice(&crc32.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        bytes
    }

    fn blocks(&self) -> usize {
        (FRAME_HEADER + self.key.len() + self.text.len()).div_ceil(SECTOR)
    }
}

/// The frames of a segment about either key, and the rest of it.
pub(crate) fn parts(segment: &[u8], keys: [&str; 2]) -> [Vec<u8>; 3] {
    let Some(header) = Header::parse(segment) else {
        return [Vec::new(), Vec::new(), segment[..segment.len().min(SECTOR)].to_vec()];
    };
    let mut parts = [Vec::new(), Vec::new(), Header { nonce: 0, ..header }.to_bytes()];
    let mut block = 1;
    while let Some(rest) = segment.get(block * SECTOR..).filter(|_| header.epoch != 0) {
        let frame = Frame::parse(rest).filter(|frame| frame.nonce == header.nonce);
        let Some(frame) = frame else {
            block += 1;
            continue;
        };
        block += frame.blocks();
        if frame.kind == RESERVED {
            parts[2].extend(Frame { nonce: 0, ..frame }.to_bytes());
        } else if let Some(key) = keys.iter().position(|key| key.as_bytes() == frame.key) {
            if parts[key].is_empty() {
                parts[key].extend(header.epoch.to_le_bytes());
            }
            parts[key].extend(Frame { nonce: 1, ..frame }.to_bytes());
        }
    }
    parts
}

/// All tokens and versions that were given are less, as this segment says.
pub(crate) fn high(segment: &[u8]) -> u64 {
    let Some(header) = Header::parse(segment) else { return 0 };
    let frames = segment.chunks(SECTOR).skip(1).filter(|_| header.epoch != 0).filter_map(Frame::parse);
    let reserved = frames.filter(|frame| frame.kind == RESERVED && frame.nonce == header.nonce);
    reserved.map(|frame| frame.number).fold(header.high, u64::max)
}
