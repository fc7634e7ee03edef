//! The schema of a store: its tables and functions, made by the first process that comes.

use tokio_postgres::Client;

use super::failure::Failure;
use super::status::Status;
use crate::{Error, ErrorKind, Result};

/// The version of the schema. A newer one is refused.
const VERSION: i32 = 1;

/// The latch under which schemas are made, one at a time in a database: `record-store`, as bytes.
const CREATION: i64 = 0x7265_636f_7264_2d73;

/// The quoted name of a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SchemaName(String);

impl SchemaName {
    pub(super) fn new(name: &str) -> Result<Self> {
        let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '-';
        if name.is_empty() || name.len() > 63 || !name.chars().all(is_plain) || name.starts_with("pg_") {
            return Err(Error::new(ErrorKind::InvalidUrl, "open").with_detail(
                "the name of a schema has at most 63 letters, digits, _ and -, and does not begin with pg_",
            ));
        }
        Ok(Self(name.to_owned()))
    }

    pub(super) fn name(&self) -> &str {
        &self.0
    }

    pub(super) fn quoted(&self) -> String {
        format!("\"{}\"", self.0)
    }
}

/// The two numbers that identify a store, wherever its database is moved.
pub(super) type StoreNumbers = [u64; 2];

/// The state of the schema before the open.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Store(StoreNumbers),
    /// No schema, or one without any tables.
    Nothing,
    NewerVersion(i32),
    /// A schema with other tables.
    Foreign,
}

/// Looks for the store.
pub(super) async fn find(client: &Client, schema: &SchemaName) -> Result<Found, Failure> {
    let table = format!("{}.store", schema.quoted());
    let query = "SELECT pg_catalog.to_regclass($1) IS NOT NULL, EXISTS (SELECT FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $2)";
    let row = client.query_one(query, &[&table, &schema.name()]).await?;
    match (row.get(0), row.get(1)) {
        (false, false) => return Ok(Found::Nothing),
        (false, true) => return Ok(Found::Foreign),
        (true, _) => {}
    }
    let versions = client.query(&format!("SELECT version, high, low FROM {table}"), &[]).await;
    let rows = match versions {
        Ok(rows) => rows,
        // A table of that name with other columns.
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_COLUMN) => {
            return Ok(Found::Foreign);
        }
        Err(error) => return Err(error.into()),
    };
    let Some(row) = rows.first() else { return Ok(Found::Foreign) };
    // Nor is a table with columns of other types a store.
    let number = |column| row.try_get::<_, i64>(column).map(i64::cast_unsigned);
    Ok(match (row.try_get(0), number(1), number(2)) {
        (Ok(VERSION), Ok(high), Ok(low)) => Found::Store([high, low]),
        (Ok(VERSION) | Err(_), ..) => Found::Foreign,
        (Ok(version), ..) => Found::NewerVersion(version),
    })
}

/// Makes the store, unless another process has just made it.
pub(super) async fn create(client: &Client, schema: &SchemaName) -> Result<Found, Failure> {
    client.batch_execute(&format!("BEGIN; SELECT pg_catalog.pg_advisory_xact_lock({CREATION})")).await?;
    let created = create_in_transaction(client, schema).await;
    let end = if created.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = client.batch_execute(end).await;
    let found = created?;
    ended?;
    Ok(found)
}

async fn create_in_transaction(client: &Client, schema: &SchemaName) -> Result<Found, Failure> {
    match find(client, schema).await? {
        Found::Nothing => {}
        found => return Ok(found),
    }
    let exists = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)";
    // A role may have the right to make tables in an existing schema, and no right to make schemas.
    if !client.query_one(exists, &[&schema.name()]).await?.get::<_, bool>(0) {
        client.batch_execute(&format!("CREATE SCHEMA {}", schema.quoted())).await?;
    }
    client.batch_execute(&definition(schema)).await?;
    let numbers = [random(), random()];
    let insert = format!("INSERT INTO {}.store (version, high, low) VALUES ($1, $2, $3)", schema.quoted());
    client.execute(&insert, &[&VERSION, &numbers[0], &numbers[1]]).await?;
    Ok(Found::Store(numbers.map(i64::cast_unsigned)))
}

/// The statements that make the tables and functions.
fn definition(schema: &SchemaName) -> String {
    #[expect(clippy::cast_possible_truncation, reason = "any number of 32 bits")]
    let latch = random() as i32;
    let text = include_str!("schema.sql")
        .replace("{schema}", &schema.quoted())
        .replace("{latch}", &format!("({latch})"));
    Status::ALL.iter().fold(text, |text, status| {
        text.replace(&format!("{{{}}}", status.name()), &status.number().to_string())
    })
}

/// A number that nothing else has.
pub(super) fn random() -> i64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // The standard library's only source of random numbers: each `RandomState` has keys of its own.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(u64::from(std::process::id()));
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    hasher.write_u128(time.as_nanos());
    hasher.finish().cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_has_no_placeholder_left() {
        let text = definition(&SchemaName::new("jobs-2").unwrap());
        assert!(text.contains("CREATE TABLE \"jobs-2\".records"));
        let left = text.lines().find(|line| line.contains(['{', '}']));
        assert_eq!(left, None);
    }

    #[test]
    fn a_name_that_would_have_to_be_escaped_is_refused() {
        for name in ["", "a b", "a\"b", "a'b", "a$$b", "pg_catalog", &"x".repeat(64)] {
            assert_eq!(SchemaName::new(name).unwrap_err().kind(), ErrorKind::InvalidUrl, "{name}");
        }
    }
}
