//! The schema of a store: its tables and functions, made by the first process that comes.

use tokio_postgres::Client;

use super::failure::Failure;
use super::status::Status;
use crate::{Error, ErrorKind, Result};

/// The version of the schema. A newer one is refused, and an older one is upgraded. Each change of the tables, or of the
/// functions, is another version.
pub(super) const VERSION: i32 = 8;

/// So many tokens are reserved at a time. After a crash of the server, so many numbers are left out.
const RESERVED_AT_ONCE: i64 = 1_000_000;

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
    OlderVersion,
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
        (Ok(1..VERSION), Ok(_), Ok(_)) => Found::OlderVersion,
        (Ok(..=VERSION) | Err(_), ..) => Found::Foreign,
        (Ok(version), ..) => Found::NewerVersion(version),
    })
}

/// Makes the store, or upgrades it, unless another process has just done so.
pub(super) async fn create_or_upgrade(client: &Client, schema: &SchemaName) -> Result<Found, Failure> {
    // It waits as long as its turn takes.
    let begin =
        format!("BEGIN; SET LOCAL lock_timeout = 0; SELECT pg_catalog.pg_advisory_xact_lock({CREATION})");
    client.batch_execute(&begin).await?;
    let made = create_or_upgrade_in_transaction(client, schema).await;
    let end = if made.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = client.batch_execute(end).await;
    let found = made?;
    ended?;
    Ok(found)
}

async fn create_or_upgrade_in_transaction(client: &Client, schema: &SchemaName) -> Result<Found, Failure> {
    match find(client, schema).await? {
        Found::Nothing => create(client, schema).await?,
        Found::OlderVersion => upgrade(client, schema).await?,
        found => return Ok(found),
    }
    find(client, schema).await
}

async fn create(client: &Client, schema: &SchemaName) -> Result<(), Failure> {
    let exists = "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = $1)";
    // A role may have the right to make tables in an existing schema, and no right to make schemas.
    if !client.query_one(exists, &[&schema.name()]).await?.get::<_, bool>(0) {
        client.batch_execute(&format!("CREATE SCHEMA {}", schema.quoted())).await?;
    }
    #[expect(clippy::cast_possible_truncation, reason = "any number of 32 bits")]
    let latch = random() as i32;
    client.batch_execute(&definition(schema, latch).concat()).await?;
    let insert = format!(
        "INSERT INTO {0}.store (version, high, low, reserved) \
         SELECT $1, $2, $3, last_value + $4 FROM {0}.numbers",
        schema.quoted()
    );
    client.execute(&insert, &[&VERSION, &random(), &random(), &RESERVED_AT_ONCE]).await?;
    Ok(())
}

/// Adds the columns and the table that are missing, gives the locks their present primary key, and makes the functions anew.
/// The records stay as they are: those of which nobody knows when they were written count as written now.
///
/// Processes of version 3 or later that have the store open go on with the new functions, which take what the old ones took.
/// Those of an earlier one get an error at their next acquisition or release: the functions that they call expect one row for
/// each lock, and would remove the locks of all that share it.
async fn upgrade(client: &Client, schema: &SchemaName) -> Result<(), Failure> {
    let has = "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::pg_catalog.regclass \
               AND attname = $2 AND NOT attisdropped)";
    for (table, column, kind) in ADDED_COLUMNS {
        let table = format!("{}.{table}", schema.quoted());
        // Only if it is missing: that locks the table.
        if !client.query_one(has, &[&table, column]).await?.get::<_, bool>(0) {
            client.batch_execute(&format!("ALTER TABLE {table} ADD COLUMN {column} {kind}")).await?;
        }
    }
    let uptime = format!("{}.uptime", schema.quoted());
    if !client.query_one("SELECT pg_catalog.to_regclass($1) IS NOT NULL", &[&uptime]).await?.get::<_, bool>(0)
    {
        let [tables, _] = definition(schema, 0);
        let its_own = tables.split_inclusive(';').filter(|statement| statement.contains(&uptime));
        client.batch_execute(&its_own.collect::<String>()).await?;
    }
    // The default of an added column is computed once, so that the table is not written anew.
    let default = "ALTER COLUMN modified_at SET DEFAULT pg_catalog.clock_timestamp()";
    client.batch_execute(&format!("ALTER TABLE {}.records {default}", schema.quoted())).await?;
    let key = "SELECT conname::text FROM pg_catalog.pg_constraint \
               WHERE conrelid = $1::text::pg_catalog.regclass AND contype = 'p' AND cardinality(conkey) = 1";
    let locks = format!("{}.locks", schema.quoted());
    if let Some(row) = client.query_opt(key, &[&locks]).await? {
        let name = row.get::<_, String>(0).replace('"', "\"\"");
        let change = format!("ALTER TABLE {locks} DROP CONSTRAINT \"{name}\", ADD PRIMARY KEY (id, token)");
        client.batch_execute(&change).await?;
    }
    let latch = latch(client, schema).await?;
    let names = functions(schema, latch).into_iter().map(|(name, _)| name);
    let names: Vec<_> = names.chain(FORMER_FUNCTIONS.map(str::to_owned)).collect();
    let old = "SELECT p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p \
               JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
               WHERE n.nspname = $1 AND p.proname::text = ANY ($2)";
    for row in client.query(old, &[&schema.name(), &names]).await? {
        client.batch_execute(&format!("DROP FUNCTION {}", row.get::<_, &str>(0))).await?;
    }
    let [_, functions] = definition(schema, latch);
    client.batch_execute(&functions).await?;
    client.execute(&format!("UPDATE {}.store SET version = $1", schema.quoted()), &[&VERSION]).await?;
    Ok(())
}

/// The columns that a store of an older version may lack: table, name and definition.
const ADDED_COLUMNS: &[(&str, &str, &str)] = &[
    ("locks", "note", "bytea"),
    ("locks", "slots", "bigint"),
    ("store", "reserved", "bigint NOT NULL DEFAULT 0"),
    ("records", "modified_at", "timestamptz NOT NULL DEFAULT pg_catalog.now()"),
    ("waiters", "since", "timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()"),
    ("waiters", "slots", "bigint"),
];

/// The functions of earlier versions that this one does not have.
const FORMER_FUNCTIONS: [&str; 5] = ["acquire", "release", "await_free", "await_change", "put"];

/// The number of the latches of a store, which is a part of its functions and never changes: processes with an older and a
/// newer version of the functions enter the same latches.
async fn latch(client: &Client, schema: &SchemaName) -> Result<i32, Failure> {
    let query = "SELECT p.prosrc FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE n.nspname = $1 AND p.proname = 'enter'";
    let row = client.query_opt(query, &[&schema.name()]).await?;
    row.and_then(|row| latch_in(row.get(0))).ok_or_else(|| {
        Failure::Unusable(ErrorKind::CorruptStore, "the function enter is missing, or another one".into())
    })
}

/// The number of the latches in the body of the function `enter`.
pub(super) fn latch_in(body: &str) -> Option<i32> {
    let (_, call) = body.split_once("pg_advisory_xact_lock(")?;
    call.split_once(',')?.0.trim_matches(['(', ')']).parse().ok()
}

/// The statements that make the tables, and those that make the functions.
fn definition(schema: &SchemaName, latch: i32) -> [String; 2] {
    const TEXT: &str = include_str!("schema.sql");
    let (tables, functions) = TEXT.split_once("-- The functions.").unwrap_or((TEXT, ""));
    [tables.to_owned(), format!("-- The functions.{functions}")].map(|text| {
        let text = text
            .replace("{schema}", &schema.quoted())
            .replace("{latch}", &format!("({latch})"))
            .replace("{at_once}", &RESERVED_AT_ONCE.to_string())
            .replace("{reserved}", &format!("record_store.reserved_{:08x}", latch.cast_unsigned()));
        Status::ALL.iter().fold(text, |text, status| {
            text.replace(&format!("{{{}}}", status.name()), &status.number().to_string())
        })
    })
}

/// The functions of a store: their names and bodies.
pub(super) fn functions(schema: &SchemaName, latch: i32) -> Vec<(String, String)> {
    let [_, functions] = definition(schema, latch);
    let function = |text: &str| {
        let (_, signature) = text.split_once('.')?;
        let (name, rest) = signature.split_once('(')?;
        let body = match rest.split_once("AS $$") {
            Some((_, body)) => body.split_once("$$;")?.0.to_owned(),
            None => rest
                .split_once("AS '")
                .or_else(|| rest.split_once("AS\n'"))?
                .1
                .split_once("';")?
                .0
                .replace("''", "'"),
        };
        Some((name.to_owned(), body))
    };
    functions.split("CREATE FUNCTION ").skip(1).filter_map(function).collect()
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

    fn schema() -> SchemaName {
        SchemaName::new("jobs-2").unwrap()
    }

    #[test]
    fn the_definition_has_no_placeholder_left() {
        let [tables, functions] = definition(&schema(), -7);
        assert!(tables.contains("CREATE TABLE \"jobs-2\".records"));
        assert!(!tables.contains("CREATE FUNCTION") && !functions.contains("CREATE TABLE"));
        let left = tables.lines().chain(functions.lines()).find(|line| line.contains(['{', '}']));
        assert_eq!(left, None);
    }

    #[test]
    fn each_function_is_known_by_its_name_and_body() {
        let functions = functions(&schema(), -7);
        assert_eq!(functions.len(), definition(&schema(), -7)[1].matches("CREATE FUNCTION").count());
        let body = |name: &str| &functions.iter().find(|(found, _)| found == name).unwrap().1;
        assert_eq!(latch_in(body("enter")), Some(-7));
        assert_eq!(body("lives"), "SELECT NOT pg_catalog.pg_try_advisory_xact_lock_shared($1)");
        assert!(body("left_until").starts_with("SELECT ") && !body("since_epoch").contains("''"));
        assert_eq!(latch_in("PERFORM pg_catalog.pg_advisory_xact_lock(12, p_hash)"), Some(12));
        assert_eq!(latch_in("PERFORM nothing()"), None);
    }

    #[test]
    fn a_name_that_would_have_to_be_escaped_is_refused() {
        for name in ["", "a b", "a\"b", "a'b", "a$$b", "pg_catalog", &"x".repeat(64)] {
            assert_eq!(SchemaName::new(name).unwrap_err().kind(), ErrorKind::InvalidUrl, "{name}");
        }
    }
}
