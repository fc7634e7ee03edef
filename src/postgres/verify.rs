//! Checking a store without changing anything in it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use tokio_postgres::Row;

use super::block_on::block_on;
use super::core::{Core, Repeat, key_in};
use super::finding::{PostgresChecked, PostgresFinding, PostgresProblem};
use super::limits::{Context, Limits};
use super::lock_info::info_in;
use super::pages::Pages;
use super::parameters::{KeyId, Parameter};
use super::schema_check;
use super::statements::Query;
use crate::{ErrorKind, Json, Key, LockState, Result};

const CONTEXT: Context<'static> = Context { operation: "verify", key: None };

/// The findings of [`verify`](super::PostgresRecordStore::verify), one by one.
pub struct PostgresVerification<'a> {
    core: &'a Arc<Core>,
    /// The parts that are not checked yet, the next one last.
    left: Vec<Part<'a>>,
    found: VecDeque<Result<PostgresFinding>>,
    checked: PostgresChecked,
}

/// A part of a store.
#[derive(Debug)]
enum Part<'a> {
    Schema,
    Rights,
    Records(Pages<'a>),
    Locks(Pages<'a>),
    Waiters,
}

pub(super) fn verify(core: &Arc<Core>) -> PostgresVerification<'_> {
    let records = Part::Records(Pages::new(core, Query::RowsOfRecords, 0));
    let locks = Part::Locks(Pages::new(core, Query::Locks, 9));
    PostgresVerification {
        core,
        left: vec![Part::Waiters, locks, records, Part::Rights, Part::Schema],
        found: VecDeque::new(),
        checked: PostgresChecked::default(),
    }
}

impl Iterator for PostgresVerification<'_> {
    type Item = Result<PostgresFinding>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(found) = self.found.pop_front() {
                return Some(found);
            }
            // A second attempt would fail in the same way, forever: so the part is left out.
            let part = self.left.pop()?;
            if let Err(error) = block_on(self.check(part)) {
                self.found.push_back(Err(error));
            }
        }
    }
}

impl<'a> PostgresVerification<'a> {
    /// The numbers of rows that were checked so far.
    #[must_use]
    pub fn checked(&self) -> PostgresChecked {
        self.checked
    }

    /// Checks a part, or a page of it, and puts the rest of it back.
    async fn check(&mut self, part: Part<'a>) -> Result<()> {
        match part {
            Part::Schema => {
                let rows = self.rows(Query::SchemaParts, true).await?;
                let report = schema_check::check(&self.core.schema, &rows);
                self.found.extend(report.findings.into_iter().map(Ok));
                if !report.has_columns {
                    self.left.clear();
                    let error = self.core.error(CONTEXT, ErrorKind::CorruptStore);
                    return Err(error
                        .with_detail("the tables are not those of the store, so their rows are not read"));
                }
            }
            Part::Rights => {
                let rows = self.rows(Query::Rights, true).await?;
                self.found.extend(schema_check::missing_rights(&rows).into_iter().map(Ok));
            }
            Part::Records(mut pages) => {
                let page = pages.next(CONTEXT.operation).await?;
                if !page.is_empty() {
                    let last = self.last_number().await?;
                    for row in &page {
                        self.check_record(row, last);
                    }
                    self.left.push(Part::Records(pages));
                }
            }
            Part::Locks(mut pages) => {
                let page = pages.next(CONTEXT.operation).await?;
                if !page.is_empty() {
                    let last = self.last_number().await?;
                    for rows in page.chunk_by(|row, next| row.get::<_, &[u8]>(9) == next.get::<_, &[u8]>(9)) {
                        self.check_lock(rows, last);
                    }
                    self.left.push(Part::Locks(pages));
                }
            }
            Part::Waiters => {
                let rows = self.rows(Query::Waiters, false).await?;
                let [all, stale] = [0, 1]
                    .map(|column| rows.first().map_or(0, |row| row.get::<_, i64>(column).unsigned_abs()));
                self.checked.waiters = all;
                if stale > 0 {
                    let place = format!("{}.waiters", self.core.schema.name());
                    self.find(place, PostgresProblem::StaleWaiters { count: stale });
                }
            }
        }
        Ok(())
    }

    async fn rows(&self, query: Query, is_of_schema: bool) -> Result<Vec<Row>> {
        let schema = [Parameter::Text(self.core.schema.name())];
        let parameters = if is_of_schema { &schema[..] } else { &[] };
        self.core.call(CONTEXT, &Limits::none(), Repeat::Yes, query, parameters).await
    }

    /// The last number that was given. To be asked after the rows were read: the numbers only grow, so none of theirs is
    /// greater.
    async fn last_number(&self) -> Result<i64> {
        let rows = self.rows(Query::LastNumber, false).await?;
        Ok(rows.first().map_or(0, |row| row.get(0)))
    }

    fn check_record(&mut self, row: &Row, last: i64) {
        self.checked.records += 1;
        let (place, key) = match self.key_of(row, "records", 0, 1) {
            Ok(found) => found,
            Err(finding) => return self.found.push_back(Ok(finding)),
        };
        if let Some(detail) = wrong_number("version", row.get(2), last) {
            return self.find(place, PostgresProblem::CorruptRow { detail });
        }
        if let Err(error) = Json::parse(row.get::<_, String>(3)) {
            let context = Context::new(CONTEXT.operation, &key);
            let error = self
                .core
                .error(context, ErrorKind::CorruptRecord)
                .with_detail("not a JSON value")
                .with_source(error);
            return self.find(place, PostgresProblem::CorruptRecord(error));
        }
        if row.get(4) {
            self.find(place, PostgresProblem::ExpiredRecord);
        }
    }

    /// Checks the rows of a key.
    fn check_lock(&mut self, rows: &[Row], last: i64) {
        let is_exclusive = |row: &Row| row.get::<_, Option<i64>>(12).is_none();
        if let [first, _, ..] = rows
            && rows.iter().any(is_exclusive)
            && let Ok((place, _)) = self.key_of(first, "locks", 9, 0)
        {
            let detail = "an exclusive lock beside others: break the lock".to_owned();
            self.find(place, PostgresProblem::CorruptRow { detail });
        }
        for row in rows {
            self.check_acquisition(row, last);
        }
    }

    fn check_acquisition(&mut self, row: &Row, last: i64) {
        self.checked.locks += 1;
        let (place, key) = match self.key_of(row, "locks", 9, 0) {
            Ok(found) => found,
            Err(finding) => return self.found.push_back(Ok(finding)),
        };
        if let Some(detail) = wrong_number("token", row.get(3), last) {
            return self.find(place, PostgresProblem::CorruptRow { detail });
        }
        match info_in(self.core, Context::new(CONTEXT.operation, &key), row, None) {
            Err(error) => self.find(place, PostgresProblem::CorruptLock(error)),
            Ok(info) if info.state() == LockState::Held => {}
            Ok(info) => self.find(place, PostgresProblem::StaleLock(info.state())),
        }
    }

    /// The key of a row, and where it is for people. Fails if the row is not in the place of that key.
    fn key_of(
        &self,
        row: &Row,
        table: &str,
        id: usize,
        key: usize,
    ) -> std::result::Result<(String, Key), PostgresFinding> {
        let table = format!("{}.{table}", self.core.schema.name());
        let id = row.get::<_, &[u8]>(id);
        let Ok(key) = key_in(self.core, CONTEXT, row, key) else {
            let place = format!("{table}, id {}", Hex(id));
            let detail = "the key of the row is not valid: delete the row".to_owned();
            return Err(PostgresFinding { place, problem: PostgresProblem::CorruptRow { detail } });
        };
        let place = format!("{table} {:?}", key.as_str());
        if KeyId::of(&key).as_bytes() != id {
            let detail = format!(
                "the row is in the place of another key, so nothing finds it under its own: delete the row with the \
                 id {}",
                Hex(id)
            );
            return Err(PostgresFinding { place, problem: PostgresProblem::CorruptRow { detail } });
        }
        Ok((place, key))
    }

    fn find(&mut self, place: String, problem: PostgresProblem) {
        self.found.push_back(Ok(PostgresFinding { place, problem }));
    }
}

/// The problem of a number that is not one of those that were given.
fn wrong_number(name: &str, number: i64, last: i64) -> Option<String> {
    let is_given = (1..=last).contains(&number);
    (!is_given).then(|| {
        format!("its {name} {number} was never given, the last number is {last}: a later one may be the same or less")
    })
}

/// Bytes as PostgreSQL writes them.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\\x")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PostgresVerification<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresVerification").field("checked", &self.checked).finish_non_exhaustive()
    }
}
