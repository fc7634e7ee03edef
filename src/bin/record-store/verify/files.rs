//! The check of the files of a directory.

use record_store::{Checked, FileSystemRecordStore, Finding, Problem, Recovery};
use serde::Serialize;

use super::report::{Kind, Line, Report, stale_lock};
use crate::failure::Failure;
use crate::format::{count, rfc3339};
use crate::recovery;

pub(super) fn verify(store: &FileSystemRecordStore, as_json: bool) -> Result<(), Failure> {
    let mut report = Report::begin(as_json);
    let mut verification = store.verify();
    report.add_all((&mut verification).map(|finding| finding.map(|finding| line(&finding))))?;
    let recovery = store.last_recovery().unwrap_or_else(|error| {
        report.unchecked(error);
        None
    });
    let Checked { files, records, locks, .. } = verification.checked();
    let checked =
        format!("{} checked ({}, {})", count(files, "file"), count(records, "record"), count(locks, "lock"));
    let last_recovery = recovery.as_ref().map(JsonRecovery::new);
    report.summary(&checked, &JsonChecked { files, records, locks, last_recovery })?;
    if let Some(recovery) = &recovery {
        report.remark(&format!(
            "last recovery from the commit log, {}: {}",
            rfc3339(recovery.at),
            recovery::describe(recovery)
        ))?;
    }
    report.end()
}

/// The counts, as JSON. The field names are part of the JSON interface.
#[derive(Serialize)]
struct JsonChecked {
    files: u64,
    records: u64,
    locks: u64,
    last_recovery: Option<JsonRecovery>,
}

#[derive(Serialize)]
struct JsonRecovery {
    at: String,
    records: u64,
    removed: u64,
    locks: u64,
}

impl JsonRecovery {
    fn new(recovery: &Recovery) -> Self {
        let Recovery { at, records, removed, locks, .. } = *recovery;
        Self { at: rfc3339(at), records, removed, locks }
    }
}

fn line(Finding { path, problem, .. }: &Finding) -> Line {
    Line {
        place: path.display().to_string(),
        kind: kind(problem),
        problem: describe(problem),
        cause: problem.cause().map(Failure::describe),
    }
}

fn kind(problem: &Problem) -> Kind {
    match problem {
        damage if damage.is_damage() => Kind::Damage,
        Problem::Foreign => Kind::Foreign,
        Problem::KeptAside => Kind::Kept,
        _ => Kind::Leftover,
    }
}

/// Names the problem. The library names the file, but not its state.
fn describe(problem: &Problem) -> String {
    let text = match problem {
        Problem::StaleLock(state) => stale_lock(*state),
        Problem::OrphanedOwner => "orphaned owner file: its process is gone",
        Problem::OrphanedStagedFile => "orphaned staged file: its process is gone",
        other => return other.to_string(),
    };
    text.to_owned()
}
