//! Text forms of locks, times and numbers, shared by all listings.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use record_store::{LockInfo, LockState, WaiterInfo};
use serde::Serialize;

use crate::failure::Failure;
use crate::style::{Cell, Colour, printable, shortened};

pub(crate) fn state(state: LockState) -> &'static str {
    match state {
        LockState::Held => "held",
        LockState::Expired => "expired",
        LockState::Abandoned => "abandoned",
        _ => "unknown",
    }
}

pub(crate) fn state_cell(lock: &LockInfo) -> Cell {
    let colour = if lock.state() == LockState::Held { Colour::Good } else { Colour::Warning };
    Cell::coloured(state(lock.state()), colour)
}

/// Shows whether the process that acquired the lock is alive.
pub(crate) fn owner_cell(lock: &LockInfo) -> Cell {
    match lock.owner_alive() {
        Some(true) => Cell::coloured("alive", Colour::Good),
        Some(false) => Cell::coloured("gone", Colour::Bad),
        None => Cell::coloured("unknown", Colour::Warning),
    }
}

pub(crate) fn json(value: &(impl Serialize + ?Sized)) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::bad_data("cannot be represented in JSON", &error))
}

/// Formats a time as RFC 3339. Times outside of the years 1970 to 9999, which the formatter does not
/// support, are clamped to that range.
pub(crate) fn rfc3339(time: SystemTime) -> String {
    let latest = humantime::parse_rfc3339("9999-12-31T23:59:59Z").unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// A duration in its two largest units, such as `2m 5s`.
pub(crate) fn duration(duration: Duration) -> String {
    let whole = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    whole.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number of things, such as `1 record` or `2 records`.
pub(crate) fn count<N: Copy + Display + PartialEq + From<u8>>(number: N, thing: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// A number of bytes, such as `1.5 MiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let power = bytes.max(1).ilog2() / 10;
    let Some(unit) = (power as usize).checked_sub(1).and_then(|at| UNITS.get(at)) else {
        return count(bytes, "byte");
    };
    // The tenths are rounded down.
    let tenths = (u128::from(bytes) * 10) >> (10 * power);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// The time that has passed since `time`. Zero if `time` is in the future, as after the clock was set
/// back.
pub(crate) fn age(time: SystemTime) -> String {
    duration(time.elapsed().unwrap_or_default())
}

/// The holder of a lock, and its note.
pub(crate) fn holder(lock: &LockInfo) -> String {
    let name = printable(lock.holder().name());
    match lock.note() {
        Some(note) => format!("{name} ({})", shortened(&printable(note))),
        None => name,
    }
}

/// The number of calls that wait for a lock, and for how long the first one has waited.
pub(crate) fn waiting_cell(lock: &LockInfo) -> Cell {
    match lock.waiters() {
        None => Cell::coloured("unknown", Colour::Dim),
        Some([]) => Cell::coloured("none", Colour::Dim),
        Some(waiters @ [first, ..]) => {
            let text = format!("{} for {}", waiters.len(), duration(first.waited()));
            Cell::coloured(text, Colour::Warning)
        }
    }
}

/// One call that waits for a lock.
pub(crate) fn waiter(waiter: &WaiterInfo) -> String {
    let process = match (waiter.process(), waiter.host()) {
        (Some(process), Some(host)) => format!("process {process} on {}", printable(host)),
        (Some(process), None) => format!("process {process}"),
        _ => "a process".to_owned(),
    };
    format!("{process}, for {}", duration(waiter.waited()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_outside_the_supported_years_is_clamped() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.000Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_size_is_in_its_largest_unit() {
        let texts = [0, 1, 1023, 1024, 1536, 5 << 20, u64::MAX].map(size);
        assert_eq!(texts, ["0 bytes", "1 byte", "1023 bytes", "1.0 KiB", "1.5 KiB", "5.0 MiB", "15.9 EiB"]);
    }

    #[test]
    fn one_thing_is_singular() {
        assert_eq!([0, 1, 2].map(|n: u64| count(n, "lock")), ["0 locks", "1 lock", "2 locks"]);
    }

    #[test]
    fn a_duration_is_shown_in_its_two_largest_units() {
        assert_eq!(duration(Duration::from_millis(999)), "0s");
        assert_eq!(duration(Duration::from_secs(125)), "2m 5s");
        assert_eq!(duration(Duration::from_secs(86_400 + 3_600 + 61)), "1day 1h");
    }
}
