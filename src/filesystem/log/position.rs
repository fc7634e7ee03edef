//! Positions in the log. They grow with time.

use crate::filesystem::disk::private_names::SEGMENTS;

/// A place in the log: the use of a segment, which segment file that is, and a block in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

const BLOCK_BITS: u32 = 20;
const SEGMENT_BITS: u32 = SEGMENTS.ilog2();

/// The greatest number of a use.
pub(super) const MAX_EPOCH: u64 = u64::MAX >> (SEGMENT_BITS + BLOCK_BITS);

impl Position {
    pub(crate) fn new(epoch: u64, segment: usize, block: u64) -> Self {
        debug_assert!(segment < SEGMENTS && block < 1 << BLOCK_BITS, "a position in a segment");
        Self((epoch << SEGMENT_BITS | segment as u64) << BLOCK_BITS | block)
    }

    pub(crate) fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }

    /// The use of a segment: each use has a greater number.
    pub(crate) fn epoch(self) -> u64 {
        self.0 >> (SEGMENT_BITS + BLOCK_BITS)
    }

    /// The number of the segment file.
    pub(crate) fn segment(self) -> usize {
        usize::try_from(self.0 >> BLOCK_BITS).unwrap_or(0) % SEGMENTS
    }

    pub(crate) fn block(self) -> u64 {
        self.0 & ((1 << BLOCK_BITS) - 1)
    }

    /// The header of the same use of the segment.
    pub(crate) fn header(self) -> Self {
        Self(self.0 - self.block())
    }

    /// The position that many blocks further in the same segment.
    pub(crate) fn after(self, blocks: u64) -> Self {
        Self(self.0 + blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_has_its_parts_and_grows_with_the_epoch_first() {
        let position = Position::new(5, 3, 17);
        assert_eq!((position.epoch(), position.segment(), position.block()), (5, 3, 17));
        assert_eq!(position.after(2), Position::new(5, 3, 19));
        assert_eq!(position.header(), Position::new(5, 3, 0));
        assert!(Position::new(5, 15, 900) < Position::new(6, 0, 1));
        assert!(Position::default() < Position::new(1, 0, 0));
        assert_eq!(Position::from_number(position.number()), position);
    }
}
