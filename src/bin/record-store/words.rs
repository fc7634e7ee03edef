//! How locks and times are put into words, the same in every listing.

use std::time::{Duration, SystemTime};

use record_store::{LockInfo, LockState};
use serde::Serialize;

use crate::failure::Failure;
use crate::style::{Cell, Ink};

pub(crate) fn state(state: LockState) -> &'static str {
    match state {
        LockState::Held => "held",
        LockState::Expired => "expired",
        LockState::Abandoned => "abandoned",
        _ => "unknown",
    }
}

pub(crate) fn state_cell(lock: &LockInfo) -> Cell {
    let ink = if lock.state() == LockState::Held { Ink::Good } else { Ink::Odd };
    Cell::ink(state(lock.state()), ink)
}

/// Whether the process that took the lock is alive.
pub(crate) fn owner_cell(lock: &LockInfo) -> Cell {
    match lock.owner_alive() {
        Some(true) => Cell::ink("alive", Ink::Good),
        Some(false) => Cell::ink("gone", Ink::Bad),
        None => Cell::ink("unknown", Ink::Odd),
    }
}

pub(crate) fn json(value: &(impl Serialize + ?Sized)) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::bad_data("cannot be held in JSON", &error))
}

/// RFC 3339 knows only the years 1970 to 9999 here; what lies outside is shown as its nearest.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let latest = humantime::parse_rfc3339("9999-12-31T23:59:59Z").unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// A time span in its two largest units, such as `2m 5s`.
pub(crate) fn span(span: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(span.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// How long ago that was. A clock that was set back makes it no time.
pub(crate) fn ago(time: SystemTime) -> String {
    span(time.elapsed().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_beyond_the_calendar_is_shown_as_its_end() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.000Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn spans_are_short() {
        assert_eq!(span(Duration::from_millis(999)), "0s");
        assert_eq!(span(Duration::from_secs(125)), "2m 5s");
        assert_eq!(span(Duration::from_secs(86_400 + 3_600 + 61)), "1day 1h");
    }
}
