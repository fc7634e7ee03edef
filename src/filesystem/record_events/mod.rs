//! Notifications of the system that records have changed, for watches of a whole store.
//!
//! They are hints, and so is their absence: they say at which records to look. Where there are none, a watch lists the
//! directory from time to time.

use std::time::Duration;

// Linux can be built without them as well, to test the other implementation.
#[cfg(all(target_os = "linux", not(record_store_elsewhere)))]
mod inotify;
#[cfg(not(all(target_os = "linux", not(record_store_elsewhere))))]
mod none;

#[cfg(all(target_os = "linux", not(record_store_elsewhere)))]
pub(crate) use inotify::RecordEvents;
#[cfg(not(all(target_os = "linux", not(record_store_elsewhere))))]
pub(crate) use none::RecordEvents;

/// What the notifications say beside the names of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reported {
    /// Some were lost: any record may have changed.
    pub(crate) were_lost: bool,
    /// There will be no more, because the directory is gone.
    pub(crate) have_ended: bool,
    /// The private directory was changed: perhaps the store was removed.
    pub(crate) is_store_changed: bool,
}

/// The records are also listed if nothing says that it is necessary, in case that the file system does not report all
/// changes: so long after the last listing, or so many times as long as that took. A build for tests does without.
#[cfg(not(record_store_no_recheck))]
pub(crate) const RELIST: (Duration, u32) = (Duration::from_secs(10), 200);
#[cfg(record_store_no_recheck)]
pub(crate) const RELIST: (Duration, u32) = (Duration::from_secs(u32::MAX as u64), 0);

/// The same where there are no notifications.
pub(crate) const POLL: (Duration, u32) = (Duration::from_millis(10), crate::changes::polling::PAUSE_FACTOR);
