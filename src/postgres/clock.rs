//! The times of the server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time in microseconds since 1970.
pub(super) fn time(microseconds: i64) -> SystemTime {
    let since = Duration::from_micros(microseconds.unsigned_abs());
    let time = if microseconds < 0 { UNIX_EPOCH.checked_sub(since) } else { UNIX_EPOCH.checked_add(since) };
    time.unwrap_or(UNIX_EPOCH)
}
