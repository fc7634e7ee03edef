//! The numbers of what a recovery after a power loss has changed.

use std::time::SystemTime;

/// The numbers of files that a recovery has changed, because a power loss had torn, lost or brought back what the commit
/// log tells otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Recovery {
    /// When it was done.
    pub at: SystemTime,
    /// Records that were written again.
    pub records: u64,
    /// Records that were removed again, or that were never on the disk.
    pub removed: u64,
    /// Locks of named holders that were written or removed again.
    pub locks: u64,
}
