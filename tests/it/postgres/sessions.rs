//! The session that stands for a process dies, and the server with it.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use record_store::{
    BreakOptions, Cancellation, ErrorKind, EvictionPolicy, LockOptions, PostgresOptions, PostgresRecordStore,
    ReadOptions, RecordStoreExt, WaitOptions, WriteOptions,
};
use rustix::process::{Pid, Signal, kill_process};

use super::server::Server;
use super::{new_url, new_url_on, open, swept};
use crate::support::{PATIENCE, as_named, millis};
use crate::watchdog::abort_if_hung;

/// Ends all sessions that stand for a process of the store, or all sessions of this process.
fn terminate(server: &Server, which: &str) {
    server.sql(&format!(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
         WHERE application_name = 'record-store' AND pid <> pg_backend_pid() AND {which}"
    ));
}

/// A server of the test's own, because all sessions on it are ended.
fn own_server() -> Option<Server> {
    Server::new(&[])
}

#[test]
fn a_bound_lock_is_lost_with_its_session_and_the_guard_says_so() {
    let Some(server) = own_server() else { return };
    for which in ["query LIKE '%advisory_lock%'", "true"] {
        let store = open(&new_url_on(&server));
        store.write("k", &0).unwrap();
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let named_guard = store.lock("named", as_named("job")).unwrap();
        let (lost, is_lost) = channel();
        let kept = store.lock("kept", LockOptions::new().hold_timeout(Duration::from_secs(3))).unwrap();
        let kept = kept.keep_alive(move |error| lost.send(error).unwrap());
        kept.unwrap();
        terminate(&server, which);
        abort_if_hung("a call after the end of the session", || {
            assert!(guard.write(&1).unwrap_err().is_lock_lost());
            assert!(!guard.is_held().unwrap());
            assert!(guard.release().unwrap_err().is_lock_lost());
            // The holder is the same thread, but another session stands for it.
            assert_eq!(store.read::<i32>("k").unwrap().unwrap().result, 0);
            let again = store.lock("k", LockOptions::new()).unwrap();
            again.write(&2).unwrap();
            again.release().unwrap();
            named_guard.write(&3).unwrap();
            named_guard.release().unwrap();
        });
        let error = is_lost.recv_timeout(PATIENCE).unwrap();
        assert!(error.is_lock_lost(), "{error}");
    }
}

/// A session makes a plan once. While a table is small, the server would plan to read all of it, and go on so when it has grown.
#[test]
fn a_lookup_in_a_small_table_uses_its_index_too() {
    let Some(url) = new_url() else { return };
    let server = Server::shared().unwrap();
    let schema = open(&url).schema().to_owned();
    let store = open(&url);
    let work = || {
        store.write("k", &1).unwrap();
        store.read::<u8>("k").unwrap();
        store.lock("k", LockOptions::new()).unwrap().release().unwrap();
    };
    work();
    for table in ["records", "locks", "waiters"] {
        server.sql(&format!("VACUUM ANALYZE {schema}.{table}"));
    }
    let count = |what: &str| {
        let tables = format!("schemaname = '{schema}' AND relname IN ('records', 'locks', 'waiters')");
        server
            .sql(&format!("SELECT sum({what}) FROM pg_stat_user_tables WHERE {tables}"))
            .parse::<u64>()
            .unwrap()
    };
    let (sequential, by_index) = (count("seq_scan"), count("idx_scan"));
    let start = Instant::now();
    // A session reports what it has done after a second.
    while count("idx_scan") < by_index + 100 {
        work();
        assert!(start.elapsed() < PATIENCE, "the index is not used");
    }
    assert_eq!(count("seq_scan"), sequential);
}

/// Others share the number of a dead session while they take over its locks.
#[test]
fn a_process_that_connects_again_ends_only_its_own_lost_session() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let number = server.sql(&format!("SELECT owner FROM {}.locks", store.schema()));
    let sessions = |what: &str| {
        server.sql(&format!(
            "SELECT {what} FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted \
             AND (classid::bigint << 32 | objid::bigint) = {number}"
        ))
    };
    assert_eq!(sessions("pg_terminate_backend(pid, 10000)"), "t");
    let other = format!("SELECT pg_advisory_lock_shared({number}); SELECT 'shared'");
    let mut other = server.psql(&other, "shared");
    assert!(guard.release().unwrap_err().is_lock_lost());
    drop(store.lock("k", LockOptions::new()).unwrap());
    assert_eq!(sessions("mode"), "ShareLock", "the session of another process was ended");
    other.kill().unwrap();
    other.wait().unwrap();
}

/// If a process of the server crashes, the others send a notice and end. A change on such a connection would have an unknown
/// outcome.
#[test]
fn an_idle_connection_that_a_crash_has_ended_is_not_used_for_a_change() {
    let Some(server) = own_server() else { return };
    let store = open(&new_url_on(&server));
    store.write("k", &1).unwrap();
    let session =
        "SELECT pid FROM pg_stat_activity WHERE query LIKE '%advisory_lock%' AND pid <> pg_backend_pid()";
    let session = Pid::from_raw(server.sql(session).parse().unwrap()).unwrap();
    let mut other = server.psql("SELECT 'ready'; SELECT pg_sleep(1000)", "ready");
    kill_process(session, Signal::KILL).unwrap();
    abort_if_hung("the other sessions are not ended", || other.wait().unwrap());
    // From then on the server lets nobody in until all sessions have ended and it has recovered.
    drop(open(&new_url_on(&server)));
    store.write("k", &2).unwrap();
    assert_eq!(store.read::<i32>("k").unwrap().unwrap().result, 2);
}

/// As in a failover: for a while there are only standbys.
#[test]
fn a_call_waits_until_a_standby_is_the_primary() {
    let Some(server) = own_server() else { return };
    let store = open(&new_url_on(&server));
    store.write("k", &1).unwrap();
    server.stop();
    std::fs::write(server.data().join("standby.signal"), "").unwrap();
    server.start_again();
    std::thread::scope(|scope| {
        let write = scope.spawn(|| store.write("k", &2));
        std::thread::sleep(millis(500));
        server.sql("SELECT pg_promote()");
        write.join().unwrap().unwrap();
    });
    assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 2);
}

#[test]
fn a_waiter_survives_the_end_of_all_sessions() {
    let Some(server) = own_server() else { return };
    let url = new_url_on(&server);
    let store = open(&url);
    let guard = store.lock("k", as_named("holder")).unwrap();
    std::thread::scope(|scope| {
        let waiter =
            scope.spawn(|| store.lock("k", LockOptions::new()).map(|guard| guard.release().unwrap()));
        let reader = scope.spawn(|| store.read::<u8>("k"));
        let watcher = scope.spawn(|| store.wait_for_record("k", WaitOptions::new().timeout(PATIENCE)));
        std::thread::sleep(millis(200));
        terminate(&server, "true");
        std::thread::sleep(millis(200));
        guard.write(&7).unwrap();
        guard.release().unwrap();
        waiter.join().unwrap().unwrap();
        assert_eq!(reader.join().unwrap().unwrap().unwrap().result, 7);
        assert!(watcher.join().unwrap().unwrap());
    });
}

#[test]
fn a_crash_and_a_restart_of_the_server_are_survived() {
    let Some(server) = own_server() else { return };
    let store = open(&new_url_on(&server));
    store.write("k", &1).unwrap();
    let guard = store.lock("k", as_named("job")).unwrap();
    let bound = store.lock("bound", LockOptions::new()).unwrap();
    let token = guard.token();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.lock("k", LockOptions::new()).map(|guard| guard.token()));
        std::thread::sleep(millis(200));
        server.kill();
        server.start_again();
        assert_eq!(guard.read::<i32>().unwrap().unwrap().result, 1);
        guard.release().unwrap();
        assert!(waiter.join().unwrap().unwrap() > token, "tokens grow");
    });
    assert!(bound.write(&1).unwrap_err().is_lock_lost());
}

#[test]
fn without_a_server_every_call_ends_in_time() {
    let Some(server) = own_server() else { return };
    let patience = Duration::from_secs(2);
    let store = PostgresRecordStore::connect(&new_url_on(&server), PostgresOptions::new().patience(patience))
        .unwrap();
    let guard = store.lock("held", LockOptions::new()).unwrap();
    server.stop();
    let start = Instant::now();
    let zero = Duration::ZERO;
    let calls: Vec<(&str, record_store::Error)> = vec![
        ("read", store.read_with::<u8>("k", ReadOptions::new().timeout(zero)).unwrap_err()),
        ("write", store.write_with("k", &1, WriteOptions::new().timeout(zero)).unwrap_err()),
        ("acquire_lock", store.lock("k", LockOptions::new().acquire_timeout(zero)).unwrap_err()),
        ("read", store.read::<u8>("k").unwrap_err()),
        ("exists", store.exists("k").unwrap_err()),
        ("keys", store.keys().err().unwrap()),
        ("watch", store.wait_for_record("k", zero).unwrap_err()),
    ];
    assert!(start.elapsed() < 8 * patience, "{:?}", start.elapsed());
    for (operation, error) in calls {
        assert_eq!((error.operation(), error.kind()), (operation, ErrorKind::Io), "{error}");
        assert!(!error.is_outcome_unknown(), "nothing was sent: {error}");
        assert!(error.to_string().contains("cannot reach the server (127.0.0.1:"), "{error}");
    }
    abort_if_hung("a drop without a server", || drop(guard));
    server.start_again();
    store.write("k", &1).unwrap();
}

/// A server that is stopped in the middle, as a host without memory or disk is.
#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let Some(server) = own_server() else { return };
    let patience = Duration::from_secs(1);
    let store = PostgresRecordStore::connect(&new_url_on(&server), PostgresOptions::new().patience(patience))
        .unwrap();
    store.write("k", &1).unwrap();
    server.pause(true);
    let start = Instant::now();
    let error = abort_if_hung("a write", || store.write("k", &2).unwrap_err());
    assert!(error.is_outcome_unknown(), "{error}");
    assert!(!abort_if_hung("a read", || store.read::<u8>("k").unwrap_err()).is_outcome_unknown());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    server.pause(false);
    store.write("k", &3).unwrap();
    assert_eq!(store.read::<i32>("k").unwrap().unwrap().result, 3);
}

/// A session in the middle of a transaction that has entered the latches of all keys.
pub(crate) struct Stalled(std::process::Child);

impl Stalled {
    pub(crate) fn of(server: &Server, store: &PostgresRecordStore, key: &str) -> Self {
        let digest = {
            use sha2::Digest as _;
            sha2::Sha256::digest(key.as_bytes())
        };
        let hash = i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
        let schema = store.schema();
        let sql = format!("BEGIN; SELECT {schema}.enter({hash}, 1000); SELECT 'entered'");
        Self(server.psql(&sql, "entered"))
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// As when two sweeps remove the same rows in another order: the server undoes one of them.
#[test]
fn a_statement_that_was_undone_because_of_a_deadlock_is_repeated() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let schema = store.schema();
    store.write_with("k", &1, WriteOptions::new().time_to_live(millis(1))).unwrap();
    Server::shared().unwrap().sql(&format!(
        "CREATE SEQUENCE {schema}.removals;
        CREATE FUNCTION {schema}.refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('{schema}.removals') = 1 THEN
                RAISE EXCEPTION 'deadlock detected' USING ERRCODE = 'deadlock_detected';
            END IF;
            RETURN OLD;
        END $$;
        CREATE TRIGGER refuse BEFORE DELETE ON {schema}.records FOR EACH ROW EXECUTE FUNCTION {schema}.refuse_once()"
    ));
    std::thread::sleep(millis(5));
    assert_eq!(swept(&store), (1, 0));
}

/// A read that comes after the end of a lease.
#[derive(Clone, Copy, Debug)]
enum Late {
    Other,
    /// Nothing is left of the lock.
    AfterSweep,
    /// By the holder, in another thread than the write.
    Holder,
}

/// The write is admitted before the end of its lease, and commits a second after it.
#[test]
fn a_read_after_the_end_of_a_lease_waits_for_a_change_that_was_admitted_before() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    store.write("k", &0).unwrap();
    let schema = store.schema();
    server.sql(&format!(
        "CREATE FUNCTION {schema}.stall() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_catalog.pg_sleep(1.5); RETURN NULL; END $$;
        CREATE TRIGGER stall AFTER UPDATE ON {schema}.records FOR EACH ROW EXECUTE FUNCTION {schema}.stall()"
    ));
    for (at, late) in [Late::Other, Late::AfterSweep, Late::Holder].into_iter().enumerate() {
        // On a busy machine, the write may come after the end of the lease.
        let is_tested = (0..10).any(|_| {
            let holder = as_named("job").hold_timeout(millis(500));
            let token = store.acquire_lock("k", holder.clone()).unwrap();
            let (written, read) = std::thread::scope(|scope| {
                let write = || store.write_with("k", &(at + 1), WriteOptions::new().claim(token));
                let writer = scope.spawn(write);
                while store.is_locked("k").unwrap() {
                    std::thread::sleep(millis(5));
                }
                let mut options = ReadOptions::new();
                match late {
                    Late::Other => {}
                    Late::AfterSweep => drop(store.sweep().unwrap()),
                    Late::Holder => options = options.claim(holder.resolve_holder()),
                }
                let read = store.read_with::<usize>("k", options).unwrap().unwrap().result;
                (writer.join().unwrap(), read)
            });
            match &written {
                Ok(()) => assert_eq!(read, at + 1, "{late:?}"),
                Err(error) => assert!(error.is_lock_lost() && read == at, "{late:?}: {error}"),
            }
            written.is_ok()
        });
        assert!(is_tested, "{late:?}: each write was late");
    }
}

/// No latch excludes those who use the tables without the functions, such as a backup that locks them.
#[test]
fn a_row_that_another_program_has_locked_ends_no_call_late() {
    let Some(url) = new_url() else { return };
    let (server, store) = (Server::shared().unwrap(), open(&url));
    let guard = store.lock("k", LockOptions::new()).unwrap();
    guard.write(&1).unwrap();
    store.write("free", &1).unwrap();
    let schema = store.schema();
    let mut other = server.psql(
        &format!(
            "BEGIN; SELECT FROM {schema}.records FOR UPDATE; SELECT FROM {schema}.locks FOR UPDATE; SELECT 'locked'"
        ),
        "locked",
    );
    let (timeout, raw): (_, &dyn record_store::RecordStore) = (millis(300), &store);
    let [key, free] = ["k", "free"].map(|key| record_store::Key::new(key).unwrap());
    let claim = guard.token();
    let json = record_store::Json::parse("2").unwrap();
    let calls: [(&str, Call<'_>); 3] = [
        ("write without a lock", &|wait| raw.write_raw(&free, &json, WriteOptions::new().wait(wait))),
        ("write", &|wait| raw.write_raw(&key, &json, WriteOptions::new().claim(claim).wait(wait))),
        ("release", &|wait| raw.release_lock_raw(&key, &claim.into(), wait)),
    ];
    for (name, call) in calls {
        let start = Instant::now();
        let error = call(WaitOptions::new().timeout(timeout)).unwrap_err();
        let elapsed = start.elapsed();
        assert!(error.is_timeout() && !error.is_outcome_unknown(), "{name}: {error}");
        assert!(elapsed >= timeout && elapsed < Duration::from_secs(2), "{name}: {elapsed:?}");
    }
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(guard.read::<u8>().unwrap().unwrap().result, 1);
    guard.write(&3).unwrap();
    guard.release().unwrap();
}

type Call<'a> = &'a (dyn Fn(WaitOptions) -> record_store::Result<()> + Sync);

#[test]
fn a_table_that_another_program_has_locked_ends_no_call_late() {
    let Some(url) = new_url() else { return };
    let patience = millis(700);
    let connect = || PostgresRecordStore::connect(&url, PostgresOptions::new().patience(patience));
    let (server, store) = (Server::shared().unwrap(), connect().unwrap());
    store.write("k", &1).unwrap();
    let schema = store.schema();
    for (table, name, call) in [
        ("records", "exists", &|| store.exists("k").map(drop)),
        ("records", "read", &|| store.read::<u8>("k").map(drop)),
        ("records", "sweep", &|| store.sweep().map(drop)),
        ("store", "open", &|| connect().map(drop)),
    ] as [(_, _, &dyn Fn() -> record_store::Result<()>); 4]
    {
        let lock = format!("BEGIN; LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE; SELECT 'locked'");
        let mut other = server.psql(&lock, "locked");
        let start = Instant::now();
        let error = call().unwrap_err();
        let elapsed = start.elapsed();
        assert!(error.to_string().contains("get the answer of the server in time"), "{name}: {error}");
        assert!(elapsed >= patience && elapsed < Duration::from_secs(5), "{name}: {elapsed:?}");
        // The table is unlocked while the call waits.
        std::thread::scope(|scope| {
            let called = scope.spawn(|| PostgresRecordStore::connect(&url, PostgresOptions::new()).map(drop));
            std::thread::sleep(millis(400));
            other.kill().unwrap();
            other.wait().unwrap();
            called.join().unwrap().unwrap();
        });
        call().unwrap();
    }
}

/// It has a short timeout, which limits the wait for a lock of the store, and not that for an answer of the server.
#[test]
fn a_call_waits_for_a_table_that_is_locked_for_a_moment() {
    let Some(url) = new_url() else { return };
    let (server, store) = (Server::shared().unwrap(), open(&url));
    store.write("k", &1).unwrap();
    let schema = store.schema();
    let (soon, ended) = (millis(100), std::cell::RefCell::new(store.watch("k").unwrap()));
    for (table, name, call) in [
        ("records", "read", &|| store.read_with::<u8>("k", ReadOptions::new().timeout(soon)).map(|_| true)),
        ("records", "watch", &|| ended.borrow_mut().next(soon).map(|change| change.is_none())),
        ("locks", "wait_for_lock", &|| store.wait_for_lock("k", soon)),
    ] as [(_, _, &dyn Fn() -> record_store::Result<bool>); 3]
    {
        let lock = format!("BEGIN; LOCK TABLE {schema}.{table} IN ACCESS EXCLUSIVE MODE; SELECT 'locked'");
        let mut other = server.psql(&lock, "locked");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(millis(600));
                other.kill().unwrap();
                other.wait().unwrap();
            });
            assert!(call().unwrap(), "{name}");
        });
    }
}

/// The rows that it has removed until then would be there again.
#[test]
fn a_change_of_many_rows_does_not_begin_again_because_one_is_locked() {
    let Some(url) = new_url() else { return };
    let (server, store) = (Server::shared().unwrap(), open(&url));
    let schema = store.schema();
    for (statement, call) in [
        (format!("DELETE FROM \"{schema}\".records"), &|| store.sweep().map(|swept| swept.records)),
        (format!("\"{schema}\".evict_several"), &|| {
            store.evict(EvictionPolicy::new().max_records(0)).map(|evicted| evicted.records)
        }),
    ] as [(_, &(dyn Fn() -> record_store::Result<u64> + Sync)); 2]
    {
        let time_to_live = statement.contains("DELETE").then_some(millis(1));
        for key in ["k", "l"] {
            store.write_with(key, &1, WriteOptions::new().time_to_live(time_to_live)).unwrap();
        }
        std::thread::sleep(millis(10));
        let lock = format!("BEGIN; SELECT FROM {schema}.records FOR UPDATE; SELECT 'locked'");
        let mut other = server.psql(&lock, "locked");
        let asked = format!(
            "SELECT query_start FROM pg_stat_activity \
             WHERE wait_event_type = 'Lock' AND query LIKE '%{statement}%' AND pid <> pg_backend_pid()"
        );
        std::thread::scope(|scope| {
            let called = scope.spawn(call);
            let start = Instant::now();
            let first = loop {
                match server.sql(&asked) {
                    first if !first.is_empty() => break first,
                    _ => assert!(start.elapsed() < PATIENCE, "it does not wait: {statement}"),
                }
            };
            std::thread::sleep(millis(700));
            assert_eq!(server.sql(&asked), first, "it is the same statement: {statement}");
            other.kill().unwrap();
            other.wait().unwrap();
            assert_eq!(called.join().unwrap().unwrap(), 2, "{statement}");
        });
    }
}

#[test]
fn the_last_handle_ends_the_session_although_a_table_is_locked() {
    let Some(url) = new_url() else { return };
    let (server, store) = (Server::shared().unwrap(), open(&url));
    let schema = store.schema().to_owned();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let owner = server.sql(&format!("SELECT owner FROM {schema}.locks"));
    guard.release().unwrap();
    let lock = format!("BEGIN; LOCK TABLE {schema}.locks IN ACCESS EXCLUSIVE MODE; SELECT 'locked'");
    let mut other = server.psql(&lock, "locked");
    drop(store);
    std::thread::sleep(millis(600));
    other.kill().unwrap();
    other.wait().unwrap();
    let start = Instant::now();
    while server.sql(&format!("SELECT {schema}.lives({owner})")) == "t" {
        assert!(start.elapsed() < PATIENCE, "the session is still there");
    }
}

#[test]
fn a_stalled_latch_ends_no_call_late() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let server = Server::shared().unwrap();
    let guard = store.lock("k", as_named("holder")).unwrap();
    let stalled = ["k", "free"].map(|key| Stalled::of(server, &store, key));
    let timeout = millis(300);
    let [key, free] = ["k", "free"].map(|key| record_store::Key::new(key).unwrap());
    let token = guard.token();
    let raw: &dyn record_store::RecordStore = &store;
    let json = record_store::Json::parse("1").unwrap();
    let calls: [(&str, Call<'_>); 7] = [
        ("write without a lock", &|wait| raw.write_raw(&free, &json, WriteOptions::new().wait(wait))),
        ("write", &|wait| raw.write_raw(&key, &json, WriteOptions::new().claim(token).wait(wait))),
        ("acquire", &|wait| raw.acquire_lock_raw(&key, as_named("other").wait(wait)).map(drop)),
        ("renew", &|wait| raw.renew_raw(&key, &token.into(), None, wait)),
        ("release", &|wait| raw.release_lock_raw(&key, &token.into(), wait)),
        ("break", &|wait| raw.break_lock_raw(&key, BreakOptions::new().wait(wait)).map(drop)),
        ("wait_for_lock", &|wait| match raw.wait_for_lock_raw(&key, wait) {
            Ok(false) => Err(record_store::Error::new(ErrorKind::LockTimeout, "")),
            outcome => outcome.map(drop),
        }),
    ];
    for (name, call) in calls {
        let start = Instant::now();
        let error = call(WaitOptions::new().timeout(timeout)).unwrap_err();
        assert!(error.is_timeout(), "{name}: {error}");
        let elapsed = start.elapsed();
        assert!(elapsed >= timeout && elapsed < Duration::from_secs(2), "{name}: {elapsed:?}");
        let cancellation = Cancellation::new();
        let start = Instant::now();
        std::thread::scope(|scope| {
            let called = scope.spawn(|| call(WaitOptions::new().cancellation(&cancellation)));
            std::thread::sleep(millis(100));
            cancellation.cancel();
            let error = called.join().unwrap().unwrap_err();
            assert!(error.is_cancelled(), "{name}: {error}");
        });
        assert!(start.elapsed() < Duration::from_secs(2), "{name}: {:?}", start.elapsed());
    }
    // Reads do not enter a latch.
    assert!(guard.read::<u8>().unwrap().is_none() && store.read::<u8>("free").unwrap().is_none());
    drop(stalled);
    guard.write(&1).unwrap();
    guard.release().unwrap();
}

/// `now()` would be the time before the wait for the latch.
#[test]
fn a_holder_that_sleeps_past_its_lease_at_the_latch_changes_nothing() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let server = Server::shared().unwrap();
    let lease = LockOptions::new().hold_timeout(millis(400));
    let guard = store.lock("k", lease).unwrap();
    let stalled = Stalled::of(server, &store, "k");
    std::thread::scope(|scope| {
        let late = scope.spawn(|| guard.write(&1));
        std::thread::sleep(millis(700));
        drop(stalled);
        assert!(late.join().unwrap().unwrap_err().is_lock_lost());
    });
    assert!(store.read::<u8>("k").unwrap().is_none());
}
