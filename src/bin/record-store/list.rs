//! `ls` and `locks`: what there is.

use std::time::SystemTime;

use record_store::{LockInfo, LockState, RecordStoreExt};
use serde::Serialize;

use crate::args::{ListArgs, LocksArgs};
use crate::failure::Failure;
use crate::output::{Output, printable, table};
use crate::records::open_to_read;

pub(crate) fn keys(args: &ListArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut out = Output::open();
    let mut outcome = Ok(());
    for key in store.keys()? {
        match key {
            Ok(key) if args.json => out.line(&json(key.as_str())?)?,
            Ok(key) if out.is_terminal() => out.line(&printable(key.as_str()))?,
            Ok(key) => out.line(key.as_str())?,
            Err(error) => outcome = Err(reported(error)),
        }
    }
    out.finish()?;
    outcome
}

pub(crate) fn locks(args: &LocksArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?;
    let mut out = Output::open();
    let mut outcome = Ok(());
    let mut rows = Vec::new();
    for lock in store.locks()? {
        match lock {
            Ok(lock) if args.json => out.line(&json(&JsonLock::new(&lock))?)?,
            Ok(lock) => rows.push(row(&lock)),
            Err(error) => outcome = Err(reported(error)),
        }
    }
    if !rows.is_empty() {
        // By key, for people.
        rows.sort();
        rows.insert(0, ["KEY", "STATE", "OWNER", "SINCE", "UNTIL", "TOKEN", "HOLDER"].map(String::from));
        out.write(table(&rows).as_bytes())?;
    }
    out.finish()?;
    outcome
}

/// Says what is wrong with one item, so that the listing can go on. Only the exit code is left to
/// tell in the end.
fn reported(error: record_store::Error) -> Failure {
    Failure::from(error).said()
}

fn row(lock: &LockInfo) -> [String; 7] {
    let owner = match lock.owner_alive() {
        Some(true) => "alive",
        Some(false) => "gone",
        None => "unknown",
    };
    [
        printable(lock.key().as_str()),
        state(lock.state()).to_owned(),
        owner.to_owned(),
        rfc3339(lock.acquired_at()),
        lock.expires_at().map_or_else(|| "released".to_owned(), rfc3339),
        lock.token().to_string(),
        printable(lock.holder().name()),
    ]
}

/// A lock as programs see it. The names of the fields are part of the interface.
#[derive(Serialize)]
struct JsonLock<'a> {
    key: &'a str,
    holder: &'a str,
    process_bound: bool,
    token: u64,
    state: &'static str,
    owner_alive: Option<bool>,
    acquired_at: String,
    expires_at: Option<String>,
    remaining_seconds: Option<f64>,
}

impl<'a> JsonLock<'a> {
    fn new(lock: &'a LockInfo) -> Self {
        Self {
            key: lock.key().as_str(),
            holder: lock.holder().name(),
            process_bound: lock.holder().is_process_bound(),
            token: lock.token().get(),
            state: state(lock.state()),
            owner_alive: lock.owner_alive(),
            acquired_at: rfc3339(lock.acquired_at()),
            expires_at: lock.expires_at().map(rfc3339),
            remaining_seconds: lock.remaining().map(|left| left.as_secs_f64()),
        }
    }
}

fn state(state: LockState) -> &'static str {
    match state {
        LockState::Held => "held",
        LockState::Expired => "expired",
        LockState::Abandoned => "abandoned",
        _ => "unknown",
    }
}

fn json(value: &(impl Serialize + ?Sized)) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::bad_data("cannot be held in JSON", &error))
}

/// RFC 3339 knows only the years 1970 to 9999 here; what lies outside is shown as its nearest.
fn rfc3339(time: SystemTime) -> String {
    let latest = humantime::parse_rfc3339("9999-12-31T23:59:59Z").unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_time_beyond_the_calendar_is_shown_as_its_end() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 40);
        assert_eq!(rfc3339(far), "9999-12-31T23:59:59.000Z");
        assert_eq!(rfc3339(SystemTime::UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00.000Z");
    }
}
