//! The version of a record.

use serde::{Deserialize, Serialize};

/// The version of a record, or its absence. Every write gives the record another version, also a write of the
/// same result, and a version never comes back, also if the record is removed and written again.
///
/// [`RecordStoreExt::read`](crate::RecordStoreExt::read) returns it with the result, and
/// [`RecordStoreExt::write_if_version`](crate::RecordStoreExt::write_if_version) writes only if it is still the
/// present one. It can be stored and used later, by other processes too: the numbers of the stores of this crate are less
/// than 2^53, so JSON carries them exactly. Only for equality: a version says nothing about the order of writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordVersion(Option<u64>);

impl RecordVersion {
    /// There is no record.
    pub const ABSENT: Self = Self(None);

    /// The version of this number. Only the store that a number comes from can interpret it.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(Some(number))
    }

    /// The number, unless there was no record.
    #[must_use]
    pub const fn number(self) -> Option<u64> {
        self.0
    }

    /// True if there was no record.
    #[must_use]
    pub const fn is_absent(self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_can_be_stored() {
        for (version, text) in [
            (RecordVersion::ABSENT, "null"),
            (RecordVersion::new(1 << 60), "1152921504606846976"),
            (RecordVersion::new(u64::MAX), "18446744073709551615"),
        ] {
            assert_eq!(serde_json::to_string(&version).unwrap(), text);
            assert_eq!(serde_json::from_str::<RecordVersion>(text).unwrap(), version);
            assert_eq!(version.number().is_none(), version.is_absent());
        }
    }
}
