//! A length of time on the command line.

use std::time::Duration;

use crate::style::{quoted, shortened};

const SECOND: u64 = 1_000_000_000;

/// The names of each unit, and its length in nanoseconds.
const UNITS: [(&[&str], u64); 6] = [
    (&["ms", "millisecond", "milliseconds"], SECOND / 1_000),
    (&["s", "sec", "secs", "second", "seconds"], SECOND),
    (&["m", "min", "mins", "minute", "minutes"], 60 * SECOND),
    (&["h", "hr", "hrs", "hour", "hours"], 3_600 * SECOND),
    (&["d", "day", "days"], 86_400 * SECOND),
    (&["w", "week", "weeks"], 7 * 86_400 * SECOND),
];

/// Parses a length of time: numbers, each with a unit, such as `90s`, `1.5h` or `1h 30m`. Zero needs no unit.
///
/// No unit may mean two things: `1M` is refused, because it is a month to some and a minute to others.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("a length of time is a number and a unit, such as 30s".to_owned());
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let after = after.trim_start();
        let end = after.find(|c: char| !c.is_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let nanoseconds = of_unit(number, unit)?;
        total = part(number, nanoseconds)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(|| format!("{} is not a length of time", quoted(text)))?;
        rest = after.trim_start();
    }
    Ok(total)
}

/// The length of a unit. `number` is what stands before it.
fn of_unit(number: &str, unit: &str) -> Result<u64, String> {
    if let Some((_, length)) = UNITS.iter().find(|(names, _)| names.contains(&unit)) {
        return Ok(*length);
    }
    let number = shortened(number);
    Err(match unit {
        "" if number.is_empty() => "a length of time is a number and a unit, such as 30s".to_owned(),
        "" => format!("{number} of what? Add a unit, such as {number}s for seconds"),
        "M" => format!("M may be minutes or months: write {number}m for minutes, or the number of days"),
        "mo" | "mon" | "month" | "months" | "y" | "yr" | "year" | "years" => {
            format!("{} has no fixed length: write the number of days, such as 30d", quoted(unit))
        }
        _ => format!("{} is no unit: use ms, s, m, h, d or w", quoted(unit)),
    })
}

/// A number of units. `None`: it is no number, or it is too large.
fn part(number: &str, unit: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole = u128::from(unit).checked_mul(whole.parse().ok()?)?;
    // A unit has fewer nanoseconds than this scale has steps. Further digits do not matter.
    let fraction = &fraction[..fraction.len().min(18)];
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let nanoseconds = whole.checked_add(u128::from(unit) * fraction.parse::<u128>().ok()? / scale)?;
    let seconds = u64::try_from(nanoseconds / u128::from(SECOND)).ok()?;
    Some(Duration::new(seconds, u32::try_from(nanoseconds % u128::from(SECOND)).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_is_numbers_with_units() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("0", ms(0)),
            ("0s", ms(0)),
            ("250ms", ms(250)),
            ("5s", ms(5_000)),
            ("5 s", ms(5_000)),
            ("2m", ms(120_000)),
            ("2min", ms(120_000)),
            ("1h", ms(3_600_000)),
            ("1h30m", ms(5_400_000)),
            ("1h 30m", ms(5_400_000)),
            ("1.5h", ms(5_400_000)),
            ("0.25s", ms(250)),
            ("0.0000000009999s", ms(0)),
            ("1day", ms(86_400_000)),
            ("30d", ms(30 * 86_400_000)),
            ("2weeks", ms(14 * 86_400_000)),
            ("18446744073709551615s", Duration::from_secs(u64::MAX)),
            ("0.99999999999999999999999999w", Duration::new(604_799, 999_999_999)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_unit_that_may_mean_two_things_is_refused() {
        for (text, word) in [
            ("1M", "may be minutes or months"),
            ("1month", "the number of days"),
            ("2y", "the number of days"),
            ("30", "Add a unit, such as 30s"),
            ("5m 30", "Add a unit, such as 30s"),
            ("5S", "is no unit"),
            ("5H", "is no unit"),
            ("5us", "use ms, s, m, h, d or w"),
            ("soon", "is no unit"),
            ("", "a number and a unit"),
            (" ", "a number and a unit"),
            ("-1s", "a number and a unit"),
            ("s", "is not a length of time"),
            (".s", "is not a length of time"),
            ("1.s", "is not a length of time"),
            ("1.2.3s", "is not a length of time"),
            ("1e3s", "is no unit"),
            ("18446744073709551616s", "is not a length of time"),
            ("99999999999999999999999999999999999999999w", "is not a length of time"),
            ("18446744073709551615s 1s", "is not a length of time"),
        ] {
            let refused = parse(text).unwrap_err();
            assert!(refused.contains(word), "{text}: {refused}");
        }
    }
}
