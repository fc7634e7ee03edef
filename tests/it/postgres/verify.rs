//! Checking a store on a server.

use record_store::{ErrorKind, PostgresFinding, PostgresRecordStore, RecordStoreExt, WriteOptions};

use super::server::Server;
use super::{new_url, open};
use crate::support::{as_named, millis};

/// Place and problem of each finding, the damage first, and the errors.
fn verify(store: &PostgresRecordStore) -> (Vec<String>, Vec<record_store::Error>) {
    let (found, errors): (Vec<_>, Vec<_>) = store.verify().partition(Result::is_ok);
    let line = |finding: PostgresFinding| {
        let kind = if finding.problem.is_damage() { "damage" } else { "leftover" };
        let cause = finding.problem.cause().map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("{kind} {}: {}{cause}", finding.place, finding.problem)
    };
    let mut found: Vec<_> = found.into_iter().map(|finding| line(finding.unwrap())).collect();
    found.sort();
    (found, errors.into_iter().map(Result::unwrap_err).collect())
}

#[track_caller]
fn assert_finds(store: &PostgresRecordStore, expected: &[&str]) {
    let (found, errors) = verify(store);
    assert!(errors.is_empty(), "{errors:?}");
    let schema = store.schema();
    let expected: Vec<_> = expected.iter().map(|it| it.replace("{schema}", schema)).collect();
    let is_same = found.len() == expected.len()
        && found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected));
    assert!(is_same, "found {found:#?}, expected {expected:#?}");
}

#[test]
fn a_sound_store_has_no_findings() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    assert_finds(&store, &[]);
    for number in 0..600 {
        store.write(format!("k{number}"), &number).unwrap();
    }
    store.write("large\u{0}", &"x".repeat(5_000_000)).unwrap();
    let guard = store.lock("held", as_named("job")).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.lock("held", as_named("waiter")).unwrap().release().unwrap());
        let server = Server::shared().unwrap();
        while server.sql(&format!("SELECT count(*) FROM {}.waiters", store.schema())) == "0" {
            assert!(!waiter.is_finished());
        }
        assert_finds(&store, &[]);
        let mut verification = store.verify();
        assert_eq!(verification.by_ref().count(), 0);
        let checked = verification.checked();
        assert_eq!((checked.records, checked.locks, checked.waiters), (601, 1, 1));
        guard.release().unwrap();
    });
}

#[test]
fn each_damaged_row_is_found() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let schema = store.schema();
    for key in ["sound", "bad", "future", "moved"] {
        store.write(key, &1).unwrap();
        store.acquire_lock(key, as_named("job")).unwrap();
    }
    for key in ["shared", "mixed", "endless"] {
        for name in ["first", "second"] {
            store.acquire_lock(key, as_named(name).shared()).unwrap();
        }
    }
    let key = |name: &str| format!("key = convert_to('{name}', 'UTF8')");
    server.sql(&format!(
        "UPDATE {schema}.records SET result = '{{' WHERE {bad};
         UPDATE {schema}.records SET version = 9007199254740000 WHERE {future};
         UPDATE {schema}.records SET id = sha256('elsewhere') WHERE {moved};
         UPDATE {schema}.locks SET holder = '' WHERE {bad};
         UPDATE {schema}.locks SET token = 9007199254740000 WHERE {future};
         UPDATE {schema}.locks SET id = sha256('elsewhere') WHERE {moved};
         UPDATE {schema}.locks SET slots = NULL WHERE {mixed} AND holder = 'second';
         UPDATE {schema}.locks SET slots = 1 + (2::bigint ^ 32)::bigint WHERE {endless} AND holder = 'first';
         INSERT INTO {schema}.records (id, key, version, result) VALUES (sha256('\\xff'), '\\xff', 1, '1')",
        bad = key("bad"),
        future = key("future"),
        moved = key("moved"),
        mixed = key("mixed"),
        endless = key("endless"),
    ));
    assert_finds(
        &store,
        &[
            "damage {schema}.locks \"bad\": the lock cannot be read: verify \"bad\": corrupt lock",
            "damage {schema}.locks \"endless\": the lock cannot be read: verify \"endless\": corrupt lock: no valid number",
            "damage {schema}.locks \"future\": its token 9007199254740000 was never given",
            "damage {schema}.locks \"mixed\": an exclusive lock beside others",
            "damage {schema}.locks \"moved\": the row is in the place of another key",
            "damage {schema}.records \"bad\": the record cannot be read: verify \"bad\": corrupt record: not a JSON value",
            "damage {schema}.records \"future\": its version 9007199254740000 was never given",
            "damage {schema}.records \"moved\": the row is in the place of another key",
            "damage {schema}.records, id \\xa8100ae6aa1940d0b663bb31cd466142ebbdbd5187131b92d93818987832eb89: the key of",
        ],
    );
    assert!(store.exists("sound").unwrap());
}

#[test]
fn what_a_sweep_removes_is_no_damage() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let schema = store.schema();
    store.write_with("brief", &1, WriteOptions::new().time_to_live(millis(0))).unwrap();
    store.acquire_lock("late", as_named("job").hold_timeout(millis(0))).unwrap();
    // Of sessions that are gone: nobody has locked these numbers.
    server.sql(&format!(
        "INSERT INTO {schema}.waiters (id, number, nonce, owner, kind) \
         SELECT sha256('k'), n, n, 4711 + n / 2, 'l' FROM generate_series(1, 3) n;
         INSERT INTO {schema}.locks SELECT sha256('gone'), 'gone', 'h', true, 4711, nextval('{schema}.numbers'), 1, now()"
    ));
    assert_finds(
        &store,
        &[
            "leftover {schema}.locks \"gone\": a lock of a process that is gone",
            "leftover {schema}.locks \"late\": an expired lock",
            "leftover {schema}.records \"brief\": an expired record",
            "leftover {schema}.waiters: 3 waiters of processes that are gone",
        ],
    );
    store.sweep().unwrap();
    assert_finds(&store, &[]);
}

#[test]
fn each_part_of_the_schema_that_is_not_as_it_was_made_is_found() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let schema = store.schema();
    server.sql(&format!(
        "CREATE TABLE {schema}.notes ();
         ALTER TABLE {schema}.waiters DROP CONSTRAINT waiters_pkey;
         DROP FUNCTION {schema}.leave;
         CREATE OR REPLACE FUNCTION {schema}.notify_change(p_id bytea) RETURNS boolean LANGUAGE sql AS 'SELECT true';
         UPDATE {schema}.store SET version = 1"
    ));
    assert_finds(
        &store,
        &[
            "damage {schema}.leave: the function is missing",
            "damage {schema}.notify_change: the function is another one",
            "damage {schema}.store: its version is 1, and not 8",
            "damage {schema}.waiters: there is no valid primary key (id, number)",
            "leftover {schema}.notes: not a table of the store",
        ],
    );
    // Each of these would let a token be given twice after a crash of the server.
    server.sql(&format!(
        "ALTER TABLE {schema}.uptime SET LOGGED; ALTER FUNCTION {schema}.begin_session SECURITY INVOKER;
         ALTER FUNCTION {schema}.is_reserved RESET search_path"
    ));
    let (found, _) = verify(&store);
    let has = |text: &str| found.iter().any(|line| line.contains(text));
    assert!(has(".uptime: the table is not unlogged"), "{found:#?}");
    assert!(has(".begin_session: the function is another one"), "{found:#?}");
    assert!(has(".is_reserved: the function is another one"), "{found:#?}");
    // Rows of another form are not read.
    server.sql(&format!(
        "ALTER TABLE {schema}.records ALTER COLUMN version TYPE integer; ALTER TABLE {schema}.locks DROP COLUMN note"
    ));
    let (found, errors) = verify(&store);
    let has = |text: &str| found.iter().any(|line| line.contains(text));
    assert!(has(".records.version: the column is integer NOT NULL, and not bigint NOT NULL"), "{found:#?}");
    assert!(has(".locks.note: the column is missing"), "{found:#?}");
    assert_eq!(errors.iter().map(record_store::Error::kind).collect::<Vec<_>>(), [ErrorKind::CorruptStore]);
}

#[test]
fn a_missing_right_is_found_with_its_remedy() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let schema = store.schema();
    server.sql(
        "DO $$ BEGIN CREATE ROLE \"half-poor\" LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    );
    server.sql(&format!(
        "GRANT USAGE ON SCHEMA {schema} TO \"half-poor\"; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO \"half-poor\"; \
         GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO \"half-poor\"; \
         REVOKE DELETE ON {schema}.records FROM \"half-poor\""
    ));
    let poor = open(&url.replace("postgres@", "half-poor@"));
    let remedy = format!("GRANT DELETE ON TABLE {schema}.records TO \"half-poor\"");
    assert_finds(
        &poor,
        &[&format!("damage {{schema}}.records: the role half-poor may not use it: {remedy}")],
    );
    assert_finds(&store, &[]);
    server.sql(&remedy);
    assert_finds(&poor, &[]);
    // Two functions lend the rights of their owner to those who call them.
    server.sql(&format!(
        "GRANT CREATE ON SCHEMA {schema} TO \"half-poor\"; REVOKE ALL ON {schema}.uptime FROM \"half-poor\";
         ALTER FUNCTION {schema}.begin_session OWNER TO \"half-poor\""
    ));
    let missing = |privilege| {
        format!(
            "damage {{schema}}.uptime: the role half-poor may not use it: \
             GRANT {privilege} ON TABLE {schema}.uptime TO \"half-poor\""
        )
    };
    assert_finds(&store, &[&missing("INSERT"), &missing("SELECT")]);
}
