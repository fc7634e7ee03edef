//! Changes as lines of text or JSON.

use std::time::SystemTime;

use serde::Serialize;

use super::model::{Cause, Change};
use crate::failure::Failure;
use crate::format::{json, rfc3339};
use crate::style::{Colour, Style};

/// A change as JSON. The field names are part of the JSON interface.
#[derive(Serialize)]
struct Line<'a> {
    at: String,
    change: &'static str,
    key: &'a str,
    holder: Option<&'a str>,
    token: Option<u64>,
    size: Option<u64>,
}

impl<'a> Line<'a> {
    fn of(change: &'a Change) -> Self {
        let now = SystemTime::now();
        let (word, at) = match change {
            Change::Locked(lock) => ("locked", lock.acquired_at()),
            Change::Unlocked(_, Cause::Released) => ("released", now),
            Change::Unlocked(_, Cause::Expired) => ("expired", now),
            Change::Unlocked(_, Cause::Abandoned) => ("abandoned", now),
            Change::Written(written) => ("written", written.modified),
            Change::Removed(_) => ("removed", now),
        };
        let lock = match change {
            Change::Locked(lock) | Change::Unlocked(lock, _) => Some(lock),
            _ => None,
        };
        let (key, size) = match change {
            Change::Locked(lock) | Change::Unlocked(lock, _) => (lock.key().as_str(), None),
            Change::Written(written) => (written.key.as_str(), Some(written.size)),
            Change::Removed(key) => (key.as_str(), None),
        };
        let (holder, token) = (lock.map(|lock| lock.holder().name()), lock.map(|lock| lock.token().get()));
        Self { at: rfc3339(at), change: word, key, holder, token, size }
    }
}

/// Formats one change as a line.
pub(super) fn line(change: &Change, as_json: bool, style: Style) -> Result<String, Failure> {
    let line = Line::of(change);
    if as_json {
        return json(&line);
    }
    let colour = match change {
        Change::Locked(_) => Colour::Good,
        Change::Unlocked(_, Cause::Expired | Cause::Abandoned) => Colour::Warning,
        _ => Colour::Dim,
    };
    let detail = match (line.holder, line.size) {
        (Some(holder), _) => style.printable(holder),
        (_, Some(size)) => format!("{size} bytes"),
        _ => String::new(),
    };
    let (word, key) = (style.paint(colour, line.change), style.printable(line.key));
    Ok(format!("{}\t{word}\t{key}\t{detail}", line.at).trim_end().to_owned())
}
