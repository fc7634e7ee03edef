//! How a store is opened, and what is refused.

use std::error::Error as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use record_store::{Error, ErrorKind, LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt};

use super::server::{Server, free_port, has_program, url_at};
use super::{new_url, open};
use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] =
    &[("postgres: open at once", open_at_once), ("postgres: count descriptors", count_descriptors)];

fn count_descriptors(stage: &Stage) {
    let url: String = stage.argument();
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    // The open checks two connections, if there may be two.
    let stores: Vec<_> = [1, 2]
        .map(|connections| {
            let store = PostgresOptions::new().connections(connections).connect(&url).unwrap();
            (store, count())
        })
        .into();
    stage.send(&format!("{}", stores[1].1 - stores[0].1));
}

/// As the guide says.
#[cfg(target_os = "linux")]
#[test]
fn a_connection_of_blocking_calls_takes_three_descriptors() {
    let Some(url) = new_url() else { return };
    let mut child = Child::start("postgres: count descriptors", &url);
    // Both handles have the session of the process in common.
    child.expect("6");
    child.finish();
}

fn refused(url: &str, options: PostgresOptions) -> Error {
    let opened = abort_if_hung("an open", || PostgresRecordStore::connect(url, options));
    let error = opened.expect_err(url);
    assert_eq!(error.operation(), "open");
    error
}

fn impatient() -> PostgresOptions {
    PostgresOptions::new().patience(Duration::from_millis(700))
}

fn open_at_once(stage: &Stage) {
    let url: String = stage.argument();
    stage.send("ready");
    stage.expect("go");
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                let store = open(&url);
                store
                    .update("count", record_store::LockOptions::new(), |old: Option<u32>| {
                        Ok(old.unwrap_or(0) + 1)
                    })
                    .unwrap();
            });
        }
    });
    stage.send("done");
}

#[test]
fn twenty_creators_at_once_make_one_store() {
    let Some(url) = new_url() else { return };
    let mut children: Vec<_> = (0..4).map(|_| Child::start("postgres: open at once", &url)).collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.send("go");
    }
    for mut child in children {
        child.expect("done");
        child.finish();
    }
    assert_eq!(open(&url).read::<u32>("count").unwrap().unwrap().result, 20);
}

#[test]
fn a_schema_that_is_no_store_of_this_version_is_refused() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    let error = refused(&url, PostgresOptions::new().existing());
    assert_eq!(error.kind(), ErrorKind::NotAStore, "{error}");
    let store = open(&url);
    let schema = store.schema();
    assert!(PostgresRecordStore::connect(&url, PostgresOptions::new().existing()).is_ok());
    server.sql(&format!("UPDATE {schema}.store SET version = 99"));
    let error = refused(&url, PostgresOptions::new());
    assert_eq!(error.kind(), ErrorKind::UnsupportedFormat, "{error}");
    assert!(error.to_string().contains("version 99"), "{error}");
    server.sql(&format!("CREATE SCHEMA foreign_{schema}; CREATE TABLE foreign_{schema}.t ()"));
    let error = refused(&url, PostgresOptions::new().schema(format!("foreign_{schema}")));
    assert_eq!(error.kind(), ErrorKind::NotAStore, "{error}");
    assert!(error.to_string().contains("has other tables"), "{error}");
    let table =
        format!("CREATE TABLE typed_{schema}.store AS SELECT 'a'::text AS version, 'b' AS high, 'c' AS low");
    server.sql(&format!("CREATE SCHEMA typed_{schema}; {table}"));
    let error = refused(&url, PostgresOptions::new().schema(format!("typed_{schema}")));
    assert_eq!(error.kind(), ErrorKind::NotAStore, "{error}");
    for name in ["", "a\"b", "pg_catalog"] {
        assert_eq!(refused(&url, PostgresOptions::new().schema(name)).kind(), ErrorKind::InvalidUrl);
    }
}

#[test]
fn a_store_that_was_dropped_and_made_again_is_another_one() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    let store = open(&url);
    store.write("k", &1).unwrap();
    let guard = store.lock("held", as_named("job")).unwrap();
    server.sql(&format!("DROP SCHEMA {} CASCADE", store.schema()));
    let error = store.write("k", &2).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreRemoved, "{error}");
    let again = open(&url);
    assert!(again.read::<u8>("k").unwrap().is_none());
    // Numbers that were used again would let a late holder pass for the new one.
    let new = again.lock("held", as_named("other")).unwrap();
    assert!(new.token() > guard.token(), "{:?} after {:?}", new.token(), guard.token());
    assert!(guard.write(&1).unwrap_err().is_lock_lost());
    new.release().unwrap();
}

#[test]
fn a_host_that_does_not_answer_leaves_time_for_the_others() {
    let Some(url) = new_url() else { return };
    // Connections to it are made by the kernel, and nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let hosts = format!("@127.0.0.1:{},", silent.local_addr().unwrap().port());
    let options = PostgresOptions::new().patience(Duration::from_secs(4));
    let start = Instant::now();
    let store = abort_if_hung("an open", || PostgresRecordStore::connect(&url.replace('@', &hosts), options));
    let store = store.unwrap();
    store.write("k", &1).unwrap();
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn an_address_in_the_url_is_used_without_asking_for_the_name() {
    let Some(url) = new_url() else { return };
    let url = format!("{}&hostaddr=127.0.0.1", url.replace("@127.0.0.1", "@db.invalid"));
    open(&url).write("k", &1).unwrap();
}

#[test]
fn missing_rights_are_an_error_that_says_so() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    server.sql("DO $$ BEGIN CREATE ROLE poor LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$");
    let poor = url.replace("postgres@", "poor@");
    let error = refused(&poor, PostgresOptions::new());
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    let source = error.source().unwrap().to_string();
    assert!(source.contains("permission denied for database postgres"), "{source}");
    // A role may be given a store, without the right to make one.
    let store = open(&url);
    let schema = store.schema();
    server.sql(&format!(
        "GRANT USAGE ON SCHEMA {schema} TO poor; GRANT SELECT ON {schema}.store TO poor; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON {schema}.records, {schema}.locks, {schema}.waiters TO poor; \
         GRANT USAGE, SELECT ON SEQUENCE {schema}.numbers TO poor"
    ));
    let poor = open(&poor);
    assert_eq!(poor.verify().map(Result::unwrap).count(), 0);
    poor.write("k", &1).unwrap();
    for options in [LockOptions::new(), crate::support::as_named("poor")] {
        let guard = poor.lock("k", options).unwrap();
        assert!(store.try_lock("k", crate::support::as_named("other")).unwrap().is_none());
        guard.release().unwrap();
    }
}

/// A role that may use a store does not get the rights of its owner.
#[test]
fn the_functions_that_lend_rights_call_nothing_of_their_caller() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let schema = store.schema();
    server.sql("DO $$ BEGIN CREATE ROLE mallory LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$");
    server.sql(&format!("GRANT USAGE ON SCHEMA {schema} TO mallory"));
    for call in ["begin_session()", "is_reserved(1)", "is_reserved(9007199254740991)"] {
        server.sql(&format!(
            "SET SESSION AUTHORIZATION mallory;
             CREATE FUNCTION pg_temp.is_mine() RETURNS boolean LANGUAGE sql AS 'SELECT current_user = ''mallory''';
             CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.is_mine());
             CREATE DOMAIN pg_temp.int8 AS pg_catalog.int8 CHECK (pg_temp.is_mine());
             SELECT {schema}.{call}"
        ));
    }
    // Nobody can use up the tokens.
    let is_far = format!("SELECT reserved > last_value + 1000000 FROM {schema}.store, {schema}.numbers");
    assert_eq!(server.sql(&is_far), "f");
    store.lock("k", LockOptions::new()).unwrap().release().unwrap();
}

#[test]
fn another_encoding_is_refused() {
    let Some(_) = new_url() else { return };
    let server = Server::shared().unwrap();
    server.sql("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    let error =
        refused(&format!("{}/latin", server.url().trim_end_matches("/postgres")), PostgresOptions::new());
    assert_eq!(error.kind(), ErrorKind::UnsupportedServer, "{error:?}");
    assert!(error.to_string().contains("the encoding of the database is LATIN1, and not UTF8"), "{error}");
}

#[test]
fn a_standby_is_refused_and_a_promoted_one_is_not() {
    let Some(server) = Server::new(&[]) else { return };
    open(&server.url()).write("k", &1).unwrap();
    server.stop();
    let signal = server.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    server.start_again();
    let error = refused(&server.url(), PostgresOptions::new());
    assert_eq!(error.kind(), ErrorKind::UnsupportedServer, "{error}");
    assert!(error.to_string().contains("standby"), "{error}");
    // Of several hosts, the first that can be written.
    let primary = Server::shared().unwrap();
    let both = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?schema=both_{}",
        server.port(),
        primary.port(),
        std::process::id()
    );
    open(&both).write("k", &2).unwrap();
    server.sql("SELECT pg_promote()");
    assert_eq!(open(&server.url()).read::<u8>("k").unwrap().unwrap().result, 1);
}

#[test]
fn no_error_and_no_debug_text_has_the_password_in_it() {
    const SECRET: &str = "s3cr3t-of-a-user";
    let Some(server) = Server::new(&["password_encryption=scram-sha-256"]) else { return };
    server.sql(&format!("CREATE ROLE app LOGIN SUPERUSER PASSWORD '{SECRET}'"));
    let hba = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    std::fs::write(server.data().join("pg_hba.conf"), hba).unwrap();
    server.sql("SELECT pg_reload_conf()");
    let url = |password: &str, port: u16| format!("postgres://app:{password}@127.0.0.1:{port}/postgres");
    let start = Instant::now();
    let store = loop {
        // The new rules are read a moment later.
        match PostgresRecordStore::connect(&url(SECRET, server.port()), PostgresOptions::new()) {
            Ok(store) => break store,
            Err(error) => assert!(start.elapsed() < PATIENCE, "{error}"),
        }
    };
    let wrong = format!("{SECRET}-wrong");
    let unreachable = format!("{}?schema={SECRET}", url(SECRET, free_port()));
    let mut texts = vec![format!("{store:?}"), store.address().to_owned()];
    for url in [
        url(&wrong, server.port()),
        url(SECRET, free_port()),
        unreachable.replace(&format!("?schema={SECRET}"), ""),
        format!("postgres://app:{SECRET}@{SECRET}@127.0.0.1/postgres"),
        format!("postgres://app:{SECRET}@127.0.0.1:{SECRET}/postgres"),
        format!("postgres://app:{SECRET}@127.0.0.1/postgres?{SECRET}={SECRET}"),
    ] {
        let mut error: &dyn std::error::Error = &refused(&url, impatient());
        loop {
            texts.push(format!("{error} {error:?}"));
            match error.source() {
                Some(source) => error = source,
                None => break,
            }
        }
    }
    server.stop();
    texts.push(format!("{:?}", store.write("k", &1).unwrap_err()));
    for text in texts {
        assert!(!text.contains("s3cr3t"), "{text}");
    }
}

/// A wrong password does not become right with patience.
#[test]
fn a_refusal_of_the_server_is_reported_at_once() {
    let Some(url) = new_url() else { return };
    let start = Instant::now();
    let error = refused(&url.replace("/postgres?", "/nowhere?"), PostgresOptions::new());
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    let source = error.source().unwrap().to_string();
    assert!(source.contains("database \"nowhere\" does not exist"), "{source}");
}

#[test]
fn a_pooler_in_transaction_mode_is_refused_and_one_in_session_mode_is_not() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    if !has_program("pgbouncer") {
        return;
    }
    for (mode, size) in [("transaction", 10), ("transaction", 2), ("session", 10)] {
        let pooler = Pooler::start(server, mode, size);
        let url = url.replace(&format!(":{}/", server.port()), &format!(":{}/", pooler.port));
        if mode == "session" {
            open(&url).write("k", &1).unwrap();
        } else {
            let error = refused(&url, PostgresOptions::new().patience(Duration::from_secs(3)));
            assert_eq!(error.kind(), ErrorKind::UnsupportedServer, "{mode} {size}: {error} {error:?}");
            assert!(error.to_string().contains("pooler"), "{error}");
        }
    }
}

struct Pooler {
    process: std::process::Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Pooler {
    fn start(server: &Server, mode: &str, size: u32) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let users = dir.path().join("users");
        std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
        let config = dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nauth_type = trust\nauth_file = {}\npool_mode = {mode}\nunix_socket_dir =\n\
             default_pool_size = {size}\n\
             ignore_startup_parameters = extra_float_digits\n",
            server.port(),
            users.display(),
        );
        std::fs::write(&config, text).unwrap();
        for path in [dir.path(), &users, &config] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let mut command = server.as_its_user("pgbouncer");
        let process =
            command.arg("-q").arg(&config).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let pooler = Self { process, port, _dir: dir };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < PATIENCE, "the pooler does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        pooler
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn tls_is_used_as_sslmode_says() {
    let Some(server) = Server::new(&[]) else { return };
    if !has_program("openssl") {
        return;
    }
    server.stop();
    let make = |arguments: &[&str]| {
        let mut openssl = server.as_its_user("openssl");
        let output = openssl.args(arguments).current_dir(server.data()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    // An authority, and a certificate of it for localhost.
    let req = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
    make(&[&req[..], &["-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=authority"]].concat());
    let ext = ["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"];
    make(
        &[
            &req[..],
            &["-CA", "ca.crt", "-CAkey", "ca.key", "-keyout", "server.key", "-out", "server.crt"],
            &["-subj", "/CN=localhost"],
            &ext,
        ]
        .concat(),
    );
    server.start(&["ssl=on"]);
    let roots = server.data().join("ca.crt");
    let to_us = std::env::temp_dir().join(format!("record-store-roots-{}", std::process::id()));
    std::fs::copy(&roots, &to_us).unwrap();
    let url =
        |host: &str, query: &str| format!("postgres://postgres@{host}:{}/postgres?{query}", server.port());
    let with_roots = |mode: &str| format!("sslmode={mode}&sslrootcert={}", to_us.display());
    let is_encrypted = |url: &str| {
        let store = open(url);
        let encrypted = server.sql(
            "SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE application_name = 'record-store'",
        );
        drop(store);
        std::thread::sleep(Duration::from_millis(200));
        encrypted == "t"
    };
    assert!(!is_encrypted(&url("127.0.0.1", "sslmode=disable")));
    for good in [
        url("127.0.0.1", ""),
        url("127.0.0.1", "sslmode=require"),
        url("127.0.0.1", &with_roots("verify-ca")),
        url("127.0.0.1", &with_roots("require")),
        url("localhost", &with_roots("verify-full")),
    ] {
        assert!(is_encrypted(&good), "{good}");
    }
    for bad in [
        url("127.0.0.1", &with_roots("verify-full")),
        url("localhost", "sslmode=verify-full"),
        url("localhost", "sslmode=verify-ca"),
    ] {
        let error = refused(&bad, impatient());
        let source = format!("{:?}", error.source().unwrap());
        assert!(source.to_lowercase().contains("cert"), "{bad}: {source}");
    }
    std::fs::remove_file(&to_us).unwrap();
    // A server without TLS.
    let plain = Server::shared().unwrap();
    let error = refused(&format!("{}?sslmode=require", url_at(plain.port())), impatient());
    assert!(format!("{:?}", error.source()).contains("server does not support TLS"), "{error:?}");
}
