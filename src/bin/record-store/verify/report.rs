//! The output of `verify`: one line for each finding, and a summary.

use record_store::{Error, LockState};
use serde::Serialize;

use crate::failure::{BAD_DATA, Failure};
use crate::format::json;
use crate::list::printed;
use crate::output::Output;
use crate::style::Colour;

pub(super) struct Report {
    out: Output,
    as_json: bool,
    found: Found,
    outcome: Result<(), Failure>,
}

/// A finding as JSON. The field names are part of the JSON interface.
#[derive(Serialize)]
pub(super) struct Line {
    #[serde(rename = "path")]
    pub(super) place: String,
    pub(super) kind: Kind,
    pub(super) problem: String,
    pub(super) cause: Option<String>,
}

/// The kind of a finding. The names are part of the JSON interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Damage,
    Foreign,
    /// A file that was moved aside.
    Kept,
    Leftover,
}

/// The number of findings. The field names are part of the JSON interface.
#[derive(Default, Serialize)]
struct Found {
    damage: u64,
    foreign: u64,
    kept: u64,
    leftover: u64,
    /// The number of files, directories or tables that could not be checked.
    unchecked: u64,
}

impl Report {
    pub(super) fn begin(as_json: bool) -> Self {
        Self { out: Output::open(), as_json, found: Found::default(), outcome: Ok(()) }
    }

    /// Adds all findings. An error is a part that could not be checked.
    pub(super) fn add_all(
        &mut self,
        lines: impl Iterator<Item = Result<Line, Error>>,
    ) -> Result<(), Failure> {
        for line in lines {
            match line {
                Ok(line) => self.add(&line)?,
                Err(error) => self.unchecked(error),
            }
        }
        Ok(())
    }

    fn add(&mut self, line: &Line) -> Result<(), Failure> {
        match line.kind {
            Kind::Damage => self.found.damage += 1,
            Kind::Foreign => self.found.foreign += 1,
            Kind::Kept => self.found.kept += 1,
            Kind::Leftover => self.found.leftover += 1,
        }
        if self.as_json {
            return self.out.line(&json(line)?);
        }
        let style = self.out.style();
        let word = match line.kind {
            Kind::Damage => style.paint(Colour::Bad, "damage"),
            Kind::Foreign => style.paint(Colour::Warning, "foreign"),
            Kind::Kept => style.paint(Colour::Warning, "kept"),
            Kind::Leftover => style.paint(Colour::Dim, "leftover"),
        };
        // The cause already contains the place.
        let message = line.cause.clone().unwrap_or_else(|| format!("{} ({})", line.problem, line.place));
        self.out.line(&format!("{word}: {}", style.printable(&message)))
    }

    /// A part could not be checked.
    pub(super) fn unchecked(&mut self, error: Error) {
        self.found.unchecked += 1;
        self.outcome = Err(printed(error));
    }

    /// Prints the summary. `checked`: what was checked, as text and as fields of a JSON object.
    pub(super) fn summary(&mut self, checked: &str, fields: &impl Serialize) -> Result<(), Failure> {
        #[derive(Serialize)]
        struct All<'a, T> {
            #[serde(flatten)]
            checked: &'a T,
            #[serde(flatten)]
            found: &'a Found,
        }
        if self.as_json {
            return self.out.line(&json(&All { checked: fields, found: &self.found })?);
        }
        let Found { damage, foreign, kept, leftover, unchecked } = &self.found;
        let colour = if damage + unchecked == 0 { Colour::Good } else { Colour::Bad };
        let damaged = self.out.style().paint(colour, &format!("{damage} damaged")).into_owned();
        let kept = if *kept > 0 { format!(", {kept} kept aside") } else { String::new() };
        let unchecked = if *unchecked > 0 { format!(", {unchecked} not checked") } else { String::new() };
        let line = format!("{checked}: {damaged}, {foreign} foreign, {leftover} leftover{kept}{unchecked}");
        self.out.line(&line)
    }

    /// Prints another line of text.
    pub(super) fn remark(&mut self, text: &str) -> Result<(), Failure> {
        if self.as_json { Ok(()) } else { self.out.line(text) }
    }

    pub(super) fn end(self) -> Result<(), Failure> {
        self.out.finish()?;
        if self.found.damage > 0 {
            return Err(Failure::silent(BAD_DATA));
        }
        self.outcome
    }
}

/// Names a lock that is no longer in force.
pub(super) fn stale_lock(state: LockState) -> &'static str {
    match state {
        LockState::Expired => "stale lock: its lease has expired",
        _ => "stale lock: its process is gone",
    }
}
