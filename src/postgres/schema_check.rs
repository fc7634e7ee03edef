//! Checking the schema against what this version makes, and the rights of this role.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::Row;

use super::finding::{PostgresFinding, PostgresProblem};
use super::schema::{self, SchemaName};

/// A table: its name, its columns with their types, and its primary key.
type Table = (&'static str, &'static [(&'static str, &'static str)], &'static str);

const TABLES: &[Table] = &[
    (
        "store",
        &[
            ("is_only", "boolean NOT NULL"),
            ("version", "integer NOT NULL"),
            ("high", "bigint NOT NULL"),
            ("low", "bigint NOT NULL"),
            ("reserved", "bigint NOT NULL"),
        ],
        "is_only",
    ),
    ("uptime", &[("is_only", "boolean NOT NULL")], "is_only"),
    (
        "records",
        &[
            ("id", "bytea NOT NULL"),
            ("key", "bytea NOT NULL"),
            ("version", "bigint NOT NULL"),
            ("modified_at", "timestamp with time zone NOT NULL"),
            ("expires_at", "timestamp with time zone"),
            ("result", "text NOT NULL"),
        ],
        "id",
    ),
    (
        "locks",
        &[
            ("id", "bytea NOT NULL"),
            ("key", "bytea NOT NULL"),
            ("holder", "bytea NOT NULL"),
            ("bound", "boolean NOT NULL"),
            ("owner", "bigint NOT NULL"),
            ("token", "bigint NOT NULL"),
            ("nonce", "bigint NOT NULL"),
            ("acquired_at", "timestamp with time zone NOT NULL"),
            ("expires_at", "timestamp with time zone"),
            ("note", "bytea"),
            ("slots", "bigint"),
        ],
        "id, token",
    ),
    (
        "waiters",
        &[
            ("id", "bytea NOT NULL"),
            ("number", "bigint NOT NULL"),
            ("nonce", "bigint NOT NULL"),
            ("owner", "bigint NOT NULL"),
            ("kind", "\"char\" NOT NULL"),
            ("notified_at", "timestamp with time zone"),
            ("since", "timestamp with time zone NOT NULL"),
            ("slots", "bigint"),
        ],
        "id, number",
    ),
];

/// The settings of a function that has the rights of its owner. A function without these settings could be made to call one of
/// the caller's own.
const DEFINER: &str = "search_path=pg_catalog, pg_temp";

fn is_definer(function: &str) -> bool {
    ["begin_session", "is_reserved"].contains(&function)
}

/// The problems of the schema.
pub(super) struct Report {
    pub(super) findings: Vec<PostgresFinding>,
    /// Whether all columns are as expected, so that rows can be read.
    pub(super) has_columns: bool,
}

/// Checks the schema. Each row is a part: its kind, its name and its details.
pub(super) fn check(schema: &SchemaName, rows: &[Row]) -> Report {
    let mut parts: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    for row in rows {
        parts.entry(row.get(0)).or_default().insert((row.get(1), row.get(2)));
    }
    let of_kind = |kind| parts.get(kind).cloned().unwrap_or_default();
    let (mut findings, mut has_columns) = (Vec::new(), true);
    let mut find = |name: &str, problem| {
        findings.push(PostgresFinding { place: format!("{}.{name}", schema.name()), problem });
    };
    let corrupt = |detail: String| PostgresProblem::CorruptSchema { detail };
    let versions = of_kind("version");
    let version = schema::VERSION.to_string();
    if versions.iter().map(|(found, _)| *found).ne([version.as_str()]) {
        let found: Vec<_> = versions.iter().map(|(found, _)| *found).collect();
        find("store", corrupt(format!("its version is {}, and not {version}", found.join(" and "))));
    }
    let (columns, keys, functions) = (of_kind("column"), of_kind("key"), of_kind("function"));
    if !of_kind("unlogged").iter().any(|(name, _)| *name == "uptime") {
        find(
            "uptime",
            corrupt("the table is not unlogged, so a crash of the server is not noticed".to_owned()),
        );
    }
    for (table, its_columns, key) in TABLES {
        for (column, kind) in *its_columns {
            let name = format!("{table}.{column}");
            let detail = match columns.iter().find(|(found, _)| *found == name) {
                Some((_, found)) if found == kind => continue,
                Some((_, found)) => format!("the column is {found}, and not {kind}"),
                None => "the column is missing".to_owned(),
            };
            has_columns = false;
            find(&name, corrupt(detail));
        }
        if !keys.contains(&(*table, *key)) {
            find(table, corrupt(format!("there is no valid primary key ({key}): rebuild it with REINDEX")));
        }
    }
    let definers = of_kind("definer");
    let body = |name: &str| functions.iter().find(|(found, _)| *found == name).map(|(_, body)| *body);
    let latch = body("enter").and_then(schema::latch_in);
    for (name, expected) in schema::functions(schema, latch.unwrap_or_default()) {
        match body(&name) {
            Some(found)
                if found == expected && definers.contains(&(&*name, DEFINER)) == is_definer(&name) => {}
            Some(_) => find(&name, corrupt("the function is another one".to_owned())),
            None => find(&name, corrupt("the function is missing".to_owned())),
        }
    }
    for (name, kind) in of_kind("relation") {
        let is_ours = match kind {
            "S" => name == "numbers",
            _ => TABLES.iter().any(|(table, ..)| *table == name),
        };
        if !is_ours {
            find(name, PostgresProblem::Foreign);
        }
    }
    Report { findings, has_columns }
}

/// The rights that this role lacks. Each row is one: the role, on what, and which.
pub(super) fn missing_rights(rows: &[Row]) -> Vec<PostgresFinding> {
    let finding = |row: &Row| {
        let (role, on, privilege) = (row.get::<_, String>(0), row.get::<_, &str>(1), row.get::<_, &str>(2));
        let remedy = format!("GRANT {privilege} ON {on} TO \"{}\"", role.replace('"', "\"\""));
        let place = on.split_once(' ').map_or(on, |(_, name)| name).to_owned();
        PostgresFinding { place, problem: PostgresProblem::Permissions { role, remedy } }
    };
    rows.iter().map(finding).collect()
}
