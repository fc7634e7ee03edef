//! A store that an earlier version of this crate made.

use std::time::{Duration, SystemTime};

use record_store::{LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt};

use super::server::Server;
use super::{new_url, open};
use crate::support::{as_named, named};

const STATUSES: [&str; 12] = [
    "OK",
    "AGAIN",
    "LOCKED",
    "BEHIND",
    "LOST",
    "NOT_LOCKED",
    "GONE",
    "OTHER",
    "SAME",
    "ABSENT",
    "BUSY",
    "SHARED",
];

const SCHEMAS: [&str; 7] = [
    include_str!("../../../fixtures/postgres/schema-1.sql"),
    include_str!("../../../fixtures/postgres/schema-2.sql"),
    include_str!("../../../fixtures/postgres/schema-3.sql"),
    include_str!("../../../fixtures/postgres/schema-4.sql"),
    include_str!("../../../fixtures/postgres/schema-5.sql"),
    include_str!("../../../fixtures/postgres/schema-6.sql"),
    include_str!("../../../fixtures/postgres/schema-7.sql"),
];

/// Makes a store of version 1, with a record and a lock. Returns its schema.
fn make(server: &Server, url: &str) -> String {
    make_version(server, url, 1)
}

fn make_version(server: &Server, url: &str, version: usize) -> String {
    let (_, schema) = url.split_once("schema=").unwrap();
    let text = SCHEMAS[version - 1].replace("{schema}", schema).replace("{latch}", "(-4711)");
    let text = text.replace("{at_once}", "1000000").replace("{reserved}", "record_store.reserved_ffffed99");
    let text = STATUSES
        .iter()
        .enumerate()
        .fold(text, |text, (number, name)| text.replace(&format!("{{{name}}}"), &number.to_string()));
    server.sql(&format!("CREATE SCHEMA {schema}"));
    server.sql(&text);
    server.sql(&format!("INSERT INTO {schema}.store (version, high, low) VALUES ({version}, 17, -3)"));
    assert_eq!(write(server, schema, "7"), "0");
    server.sql(&format!(
        "INSERT INTO {schema}.locks (id, key, holder, bound, owner, token, nonce, acquired_at) \
         VALUES (sha256('held'), 'held', 'job', false, 0, nextval('{schema}.numbers'), 1, now())"
    ));
    schema.to_owned()
}

/// Writes as a process of version 1 does. Returns the status.
fn write(server: &Server, schema: &str, result: &str) -> String {
    server.sql(&format!(
        "SELECT status FROM {schema}.write(sha256('k'), 'k', 5, 'h', false, 0, NULL, '{result}', NULL, 0, NULL, 1000)"
    ))
}

#[test]
fn a_store_of_version_1_is_upgraded_with_all_that_is_in_it() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    let schema = make(server, &url);
    // The first stores had no notes.
    server.sql(&format!("ALTER TABLE {schema}.locks DROP COLUMN note"));
    let token = server.sql(&format!("SELECT token FROM {schema}.locks"));
    let start = SystemTime::now() - Duration::from_secs(2);
    let store = PostgresRecordStore::connect(&url, PostgresOptions::new().existing()).unwrap();
    assert_eq!(server.sql(&format!("SELECT version, high, low FROM {schema}.store")), "8|17|-3");
    assert_eq!(store.verify().map(Result::unwrap).count(), 0);
    let record = store.read::<u8>("k").unwrap().unwrap();
    assert_eq!(record.result, 7);
    let info = store.record_info("k").unwrap().unwrap();
    assert!(info.version() == record.version && info.modified() >= start, "{info:?}");
    let lock = store.lock_info("held").unwrap().unwrap();
    assert_eq!((lock.token().to_string(), lock.holder().name()), (token, "job"));
    // Processes of both versions enter the same latches.
    let body = server.sql(&format!("SELECT prosrc FROM pg_proc WHERE oid = '{schema}.enter'::regproc"));
    assert!(body.contains("pg_advisory_xact_lock((-4711), p_hash)"), "{body}");
    // One of version 1 that still has the store open.
    assert_eq!(write(server, &schema, "8"), "0");
    let later = store.record_info("k").unwrap().unwrap();
    assert!(later.version() != info.version() && later.modified() > info.modified(), "{later:?}");
    store.write("k", &9).unwrap();
}

#[test]
fn several_that_open_a_store_of_version_1_at_once_upgrade_it_once() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    let schema = make(server, &url);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let url = &url;
            scope.spawn(move || open(url).write(format!("of {number}"), &number).unwrap());
        }
    });
    assert_eq!(open(&url).keys().unwrap().count(), 9);
    assert_eq!(server.sql(&format!("SELECT version FROM {schema}.store")), "8");
}

/// They still have the store open.
#[test]
fn processes_of_earlier_versions_exclude_those_of_this_one() {
    let Some(server) = Server::shared() else { return };
    for version in [3, 4, 5, 6, 7] {
        let url = new_url().unwrap();
        let schema = make_version(server, &url, version);
        let store = open(&url);
        assert_eq!(store.verify().map(Result::unwrap).count(), 0, "{version}");
        let guard = store.lock("k", LockOptions::new()).unwrap();
        // The session of this process stands for the other one, too.
        let owner = server.sql(&format!("SELECT owner FROM {schema}.locks WHERE key = 'k'"));
        let acquire = acquire(&schema, "acquire_lock", &owner);
        let release = format!(
            "SELECT status FROM {schema}.release_lock(sha256('k'), 5, 'old', false, {owner}, NULL, 1000)"
        );
        assert_eq!(server.sql(&acquire), "2", "version {version}: it is locked");
        assert_eq!(server.sql(&release), "2", "version {version}: another has the lock");
        guard.release().unwrap();
        assert_eq!(server.sql(&acquire), "0", "version {version}");
        assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none(), "version {version}");
        assert!(store.is_lock_holder("k", &named("old")).unwrap(), "version {version}");
        assert_eq!(server.sql(&release), "0", "version {version}");
        assert!(!store.is_locked("k").unwrap(), "version {version}");
        // They do not know that a lock can be shared.
        let readers = ["first", "second"].map(|name| store.lock("k", as_named(name).shared()).unwrap());
        assert_eq!(server.sql(&acquire), "2", "version {version}");
        assert_eq!(server.sql(&release), "2", "version {version}");
        assert_eq!(write(server, &schema, "9"), "2", "version {version}");
        for reader in readers {
            assert!(reader.is_held().unwrap());
            reader.release().unwrap();
        }
        assert_eq!(server.sql(&acquire), "0", "version {version}");
    }
}

/// A process of it may be inside of one, and go on to call another one.
#[test]
fn the_functions_of_the_former_version_are_still_there() {
    let Some(url) = new_url() else { return };
    let (server, former) = (Server::shared().unwrap(), SCHEMAS.len());
    let schema = make_version(server, &url, former);
    open(&url);
    let functions = SCHEMAS[former - 1].split("CREATE FUNCTION {schema}.").skip(1);
    for name in functions.map(|function| function.split_once('(').unwrap().0) {
        let exists = format!("SELECT to_regproc('{schema}.{name}') IS NOT NULL");
        assert_eq!(server.sql(&exists), "t", "{name}");
    }
}

/// Acquires as a process of an earlier version does.
fn acquire(schema: &str, function: &str, owner: &str) -> String {
    format!(
        "SELECT status FROM {schema}.{function}(sha256('k'), 'k', 5, 'old', false, {owner}, 7, NULL, false, 1000, NULL)"
    )
}

/// The functions that they call would remove the locks of all that share them.
#[test]
fn processes_of_the_first_two_versions_acquire_and_release_nothing_after_an_upgrade() {
    let Some(server) = Server::shared() else { return };
    for version in [1, 2] {
        let url = new_url().unwrap();
        let schema = make_version(server, &url, version);
        let acquire = acquire(&schema, "acquire", "0");
        assert_eq!(server.sql(&acquire), "6", "version {version}: it has no session");
        let store = open(&url);
        assert_eq!(store.verify().map(Result::unwrap).count(), 0, "{version}");
        let count = "SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace";
        let names = "'acquire', 'release', 'await_free', 'await_change'";
        let count = server.sql(&format!("{count} WHERE n.nspname = '{schema}' AND p.proname IN ({names})"));
        assert_eq!(count, "0", "version {version}");
    }
}

#[test]
fn a_role_that_does_not_own_the_tables_upgrades_nothing() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    let schema = make(server, &url);
    server.sql("DO $$ BEGIN CREATE ROLE tenant LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$");
    server.sql(&format!(
        "GRANT ALL ON SCHEMA {schema} TO tenant; GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO tenant; \
         GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO tenant"
    ));
    let tenant = url.replace("postgres@", "tenant@");
    let error = PostgresRecordStore::connect(&tenant, PostgresOptions::new()).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("must be owner of table locks"), "{cause}");
    assert_eq!(server.sql(&format!("SELECT version FROM {schema}.store")), "1");
    open(&url).write("k", &1).unwrap();
    open(&tenant).write("k", &2).unwrap();
}
