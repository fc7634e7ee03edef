//! The version of a record file.

use rustix::fs::Stat;
use sha2::{Digest, Sha256};

use super::lock_file::MAX_TOKEN;
use crate::RecordVersion;

/// The highest bit of the versions that are derived. The clock reaches it in the year 2112. All versions are less than
/// 2^53, so JSON carries them exactly.
const DERIVED: u64 = 1 << 52;

/// The version of a file: the one that it contains or, in a file that was written by hand or by an earlier version
/// of this library, one that is derived from what changes when the file does.
pub(crate) fn of(contained: Option<u64>, stat: &Stat) -> RecordVersion {
    RecordVersion::new(valid(contained).unwrap_or_else(|| derived(stat)))
}

/// The version that a file contains, if it can be one.
pub(crate) fn valid(contained: Option<u64>) -> Option<u64> {
    contained.filter(|version| (1..=MAX_TOKEN).contains(version))
}

#[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
fn derived(stat: &Stat) -> u64 {
    let inode: u64 = stat.st_ino.into();
    let seconds: i64 = stat.st_mtime.into();
    let nanos = u64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let mut hash = Sha256::new();
    for bytes in [inode.to_le_bytes(), seconds.to_le_bytes(), nanos.to_le_bytes(), stat.st_size.to_le_bytes()]
    {
        hash.update(bytes);
    }
    let first = hash.finalize().first_chunk().copied().map_or(0, u64::from_be_bytes);
    DERIVED | first >> 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_contained_or_derived() {
        let stat = rustix::fs::stat(".").unwrap();
        let number = |contained, stat: &Stat| of(contained, stat).number().unwrap();
        assert_eq!(number(Some(1), &stat), 1);
        assert_eq!(number(Some(MAX_TOKEN), &stat), MAX_TOKEN);
        let derived = number(None, &stat);
        assert!((DERIVED..=MAX_TOKEN).contains(&derived));
        for impossible in [0, MAX_TOKEN + 1, u64::MAX] {
            assert_eq!(number(Some(impossible), &stat), derived);
        }
        let changes: [fn(&mut Stat); 4] = [
            |stat| stat.st_ino += 1,
            |stat| stat.st_mtime += 1,
            |stat| stat.st_mtime_nsec += 1,
            |stat| stat.st_size += 1,
        ];
        for change in changes {
            let mut other = stat;
            change(&mut other);
            assert_ne!(number(None, &other), derived);
        }
    }
}
