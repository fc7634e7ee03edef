//! Times for people, as RFC 3339 text.

use std::time::{Duration, SystemTime};

/// The last second that RFC 3339 can express: the end of the year 9999.
pub(crate) const END_OF_CALENDAR: Duration = Duration::from_secs(253_402_300_799);

/// The text of a time. A time beyond the calendar is shown as the nearest end of it.
pub(crate) fn format(time: SystemTime) -> String {
    let end = SystemTime::UNIX_EPOCH + END_OF_CALENDAR;
    humantime::format_rfc3339_nanos(time.clamp(SystemTime::UNIX_EPOCH, end)).to_string()
}

/// The time that such a text names.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    humantime::parse_rfc3339(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_back_and_none_is_beyond_the_calendar() {
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123);
        assert_eq!(format(time), "2023-11-14T22:13:20.000000123Z");
        assert_eq!(parse(&format(time)), Some(time));
        assert_eq!(format(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000000000Z");
        let far = SystemTime::UNIX_EPOCH + END_OF_CALENDAR * 2;
        assert_eq!(format(far), "9999-12-31T23:59:59.000000000Z");
        assert_eq!(parse("yesterday"), None);
    }
}
