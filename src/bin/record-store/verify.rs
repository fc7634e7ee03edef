//! `verify`: checks the files of a store.

use record_store::{Checked, Finding, LockState, Problem, Recovery};
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::failure::{BAD_DATA, Failure};
use crate::format::{count, json, rfc3339};
use crate::list::printed;
use crate::output::Output;
use crate::records::open_to_read;
use crate::recovery;
use crate::style::Colour;

pub(crate) fn verify(args: &VerifyArgs) -> Result<(), Failure> {
    let store = open_to_read(&args.store)?.into_files("verify")?;
    let mut out = Output::open();
    let mut summary = Summary::default();
    let mut outcome = Ok(());
    let mut verification = store.verify();
    for finding in &mut verification {
        match finding {
            Ok(finding) => {
                summary.count(kind(&finding.problem));
                print(&mut out, &finding, args.json)?;
            }
            Err(error) => {
                summary.unchecked += 1;
                outcome = Err(printed(error));
            }
        }
    }
    let recovery = store.last_recovery().unwrap_or_else(|error| {
        summary.unchecked += 1;
        outcome = Err(printed(error));
        None
    });
    summary.print(&mut out, verification.checked(), recovery.as_ref(), args.json)?;
    out.finish()?;
    if summary.damage > 0 {
        return Err(Failure::silent(BAD_DATA));
    }
    outcome
}

/// The kind of a finding. The names are part of the JSON interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Damage,
    Foreign,
    /// A file that was moved aside.
    Kept,
    Leftover,
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
        Problem::StaleLock(LockState::Expired) => "stale lock: its lease has expired",
        Problem::StaleLock(_) => "stale lock: its process is gone",
        Problem::OrphanedOwner => "orphaned owner file: its process is gone",
        Problem::OrphanedStagedFile => "orphaned staged file: its process is gone",
        other => return other.to_string(),
    };
    text.to_owned()
}

/// A finding as JSON. The field names are part of the JSON interface.
#[derive(Serialize)]
struct JsonFinding {
    path: String,
    kind: Kind,
    problem: String,
    cause: Option<String>,
}

fn print(out: &mut Output, finding: &Finding, as_json: bool) -> Result<(), Failure> {
    let Finding { path, problem, .. } = finding;
    let cause = problem.cause().map(Failure::describe);
    let (path, kind) = (path.display().to_string(), kind(problem));
    if as_json {
        return out.line(&json(&JsonFinding { path, kind, problem: describe(problem), cause })?);
    }
    let style = out.style();
    let word = match kind {
        Kind::Damage => style.paint(Colour::Bad, "damage"),
        Kind::Foreign => style.paint(Colour::Warning, "foreign"),
        Kind::Kept => style.paint(Colour::Warning, "kept"),
        Kind::Leftover => style.paint(Colour::Dim, "leftover"),
    };
    // The cause already contains the path.
    let message = cause.unwrap_or_else(|| format!("{} ({path})", describe(problem)));
    out.line(&format!("{word}: {}", style.printable(&message)))
}

/// The number of findings. The field names are part of the JSON interface.
#[derive(Default, Serialize)]
struct Summary {
    damage: u64,
    foreign: u64,
    kept: u64,
    leftover: u64,
    /// The number of files and directories that could not be checked.
    unchecked: u64,
}

impl Summary {
    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Damage => self.damage += 1,
            Kind::Foreign => self.foreign += 1,
            Kind::Kept => self.kept += 1,
            Kind::Leftover => self.leftover += 1,
        }
    }

    fn print(
        &self,
        out: &mut Output,
        checked: Checked,
        recovery: Option<&Recovery>,
        as_json: bool,
    ) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct JsonRecovery {
            at: String,
            records: usize,
            removed: usize,
            locks: usize,
        }
        #[derive(Serialize)]
        struct All<'a> {
            files: u64,
            records: u64,
            locks: u64,
            #[serde(flatten)]
            summary: &'a Summary,
            last_recovery: Option<JsonRecovery>,
        }
        let Checked { files, records, locks, .. } = checked;
        if as_json {
            let last_recovery = recovery.map(|recovery| {
                let Recovery { at, records, removed, locks, .. } = *recovery;
                JsonRecovery { at: rfc3339(at), records, removed, locks }
            });
            return out.line(&json(&All { files, records, locks, summary: self, last_recovery })?);
        }
        let Summary { damage, foreign, kept, leftover, unchecked } = self;
        let colour = if damage + unchecked == 0 { Colour::Good } else { Colour::Bad };
        let damaged = out.style().paint(colour, &format!("{damage} damaged")).into_owned();
        let kept = if *kept > 0 { format!(", {kept} kept aside") } else { String::new() };
        let unchecked = if *unchecked > 0 { format!(", {unchecked} not checked") } else { String::new() };
        out.line(&format!(
            "{} checked ({}, {}): {damaged}, {foreign} foreign, {leftover} leftover{kept}{unchecked}",
            count(files, "file"),
            count(records, "record"),
            count(locks, "lock"),
        ))?;
        match recovery {
            Some(recovery) => out.line(&format!(
                "last recovery from the commit log, {}: {}",
                rfc3339(recovery.at),
                recovery::describe(recovery)
            )),
            None => Ok(()),
        }
    }
}
