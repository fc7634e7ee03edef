//! The check of the tables on a server.

use record_store::{PostgresChecked, PostgresFinding, PostgresProblem, PostgresRecordStore};
use serde::Serialize;

use super::report::{Kind, Line, Report, stale_lock};
use crate::failure::Failure;
use crate::format::count;

pub(super) fn verify(store: &PostgresRecordStore, as_json: bool) -> Result<(), Failure> {
    let mut report = Report::begin(as_json);
    let mut verification = store.verify();
    report.add_all((&mut verification).map(|finding| finding.map(|finding| line(&finding))))?;
    let PostgresChecked { records, locks, waiters, .. } = verification.checked();
    let rows = records + locks + waiters;
    let checked = format!(
        "{} checked ({}, {}, {})",
        count(rows, "row"),
        count(records, "record"),
        count(locks, "lock"),
        count(waiters, "waiter"),
    );
    report.summary(&checked, &JsonChecked { rows, records, locks, waiters })?;
    report.end()
}

/// The counts, as JSON. The field names are part of the JSON interface.
#[derive(Serialize)]
struct JsonChecked {
    rows: u64,
    records: u64,
    locks: u64,
    waiters: u64,
}

fn line(PostgresFinding { place, problem, .. }: &PostgresFinding) -> Line {
    Line {
        place: place.clone(),
        kind: kind(problem),
        problem: describe(problem),
        cause: problem.cause().map(Failure::describe),
    }
}

fn kind(problem: &PostgresProblem) -> Kind {
    match problem {
        damage if damage.is_damage() => Kind::Damage,
        PostgresProblem::Foreign => Kind::Foreign,
        _ => Kind::Leftover,
    }
}

/// Names the problem, a stale lock as one of a directory.
fn describe(problem: &PostgresProblem) -> String {
    match problem {
        PostgresProblem::StaleLock(state) => stale_lock(*state).to_owned(),
        other => other.to_string(),
    }
}
