//! The primary dies, and its standby is promoted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use record_store::{Error, ErrorKind, LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt};

use super::server::Server;
use crate::support::{PATIENCE, SetOnDrop, as_named, millis};

/// Waits until the server answers a query so.
fn until(server: &Server, sql: &str, answer: &str) {
    let start = Instant::now();
    while server.sql(sql) != answer {
        assert!(start.elapsed() < PATIENCE, "{sql} is {}", server.sql(sql));
        std::thread::sleep(millis(20));
    }
}

/// A primary and its standby.
fn pair(is_synchronous: bool) -> Option<(Server, Server)> {
    let primary = Server::new(&[])?;
    let standby = primary.standby();
    until(&primary, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'", "1");
    if is_synchronous {
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = '*'");
        primary.sql("SELECT pg_reload_conf()");
        until(&primary, "SELECT sync_state FROM pg_stat_replication", "sync");
    }
    Some((primary, standby))
}

fn connect(primary: &Server, standby: &Server) -> PostgresRecordStore {
    // The standby first: the store has to look for the primary from the beginning.
    let url = format!(
        "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?schema=failover",
        standby.port(),
        primary.port()
    );
    PostgresRecordStore::connect(&url, PostgresOptions::new().patience(PATIENCE)).unwrap()
}

fn fail_over(primary: &Server, standby: &Server) {
    primary.kill();
    assert_eq!(standby.sql("SELECT pg_promote()"), "t");
}

/// The calls that were acknowledged to one of the workers.
#[derive(Debug, Default)]
struct Log {
    attempted: u64,
    written: u64,
    counted: u64,
    /// Increments that may or may not have been made.
    uncertain: u64,
}

/// Writes growing numbers to a key of its own, and counts under the lock of `count`, until it is told to stop.
fn work(store: &PostgresRecordStore, own: &str, shared: &Shared) -> Log {
    // A worker that fails ends the others.
    let is_over = SetOnDrop(&shared.ends);
    let mut log = Log::default();
    while !shared.ends.load(Ordering::SeqCst) {
        log.attempted += 1;
        if is_certain(&store.write(own, &log.attempted)) {
            log.written = log.attempted;
        }
        let before = shared.newest.load(Ordering::SeqCst);
        let guard = match store.lock("count", LockOptions::new()) {
            Ok(guard) => guard,
            Err(error) => {
                assert!(error.is_outcome_unknown(), "{error}");
                continue;
            }
        };
        let token = guard.token().get();
        assert!(token > before, "token {token} after {before}");
        shared.newest.fetch_max(token, Ordering::SeqCst);
        let count = match guard.read::<u64>() {
            Ok(count) => count.map_or(0, |record| record.result),
            Err(error) => {
                assert!(error.is_lock_lost(), "{error}");
                continue;
            }
        };
        match guard.write(&(count + 1)) {
            Err(error) if error.is_lock_lost() && !error.is_outcome_unknown() => {}
            outcome if is_certain(&outcome) => log.counted += 1,
            _ => log.uncertain += 1,
        }
        shared.rounds.fetch_add(1, Ordering::SeqCst);
    }
    std::mem::forget(is_over);
    log
}

/// Whether the change was made. Otherwise nobody knows.
fn is_certain(outcome: &Result<(), Error>) -> bool {
    match outcome {
        Ok(()) => true,
        Err(error) => {
            assert!(error.is_outcome_unknown() && error.kind() == ErrorKind::Io, "{error}");
            false
        }
    }
}

#[derive(Default)]
struct Shared {
    newest: AtomicU64,
    rounds: AtomicU64,
    ends: AtomicBool,
}

impl Shared {
    fn until_more_rounds(&self, rounds: u64) {
        let (end, start) = (self.rounds.load(Ordering::SeqCst) + rounds, Instant::now());
        while self.rounds.load(Ordering::SeqCst) < end && !self.ends.load(Ordering::SeqCst) {
            assert!(start.elapsed() < PATIENCE, "the workers do not go on");
            std::thread::sleep(millis(5));
        }
    }
}

#[test]
fn nothing_acknowledged_is_lost_when_a_synchronous_standby_is_promoted() {
    let Some((primary, standby)) = pair(true) else { return };
    let store = connect(&primary, &standby);
    let named = store.lock("named", as_named("job").hold_timeout(Duration::from_hours(1))).unwrap();
    named.write(&1).unwrap();
    let bound = store.lock("bound", LockOptions::new()).unwrap();
    let shared = Shared::default();
    let logs: Vec<Log> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|number| {
                let (store, shared) = (&store, &shared);
                scope.spawn(move || work(store, &format!("own {number}"), shared))
            })
            .collect();
        let stops = SetOnDrop(&shared.ends);
        shared.until_more_rounds(30);
        fail_over(&primary, &standby);
        shared.until_more_rounds(30);
        drop(stops);
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    for (number, log) in logs.iter().enumerate() {
        let stored = store.read::<u64>(format!("own {number}")).unwrap().unwrap().result;
        assert!((log.written..=log.attempted).contains(&stored), "{stored}: {log:?}");
    }
    let (counted, uncertain): (u64, u64) =
        logs.iter().fold((0, 0), |sum, log| (sum.0 + log.counted, sum.1 + log.uncertain));
    let last = store.lock("count", LockOptions::new()).unwrap();
    assert!(last.token().get() > shared.newest.load(Ordering::SeqCst));
    let count = last.read::<u64>().unwrap().unwrap().result;
    assert!((counted..=counted + uncertain).contains(&count), "{count}: {counted} + at most {uncertain}");
    // A named holder's lock is in the tables. The session of a bound one has ended with the primary.
    named.write(&2).unwrap();
    named.release().unwrap();
    assert!(bound.write(&1).unwrap_err().is_lock_lost());
    assert!(store.lock("bound", LockOptions::new()).unwrap().token() > bound.token());
    println!("{counted} increments, {uncertain} uncertain");
}

/// It is cut off from its standby, which has become the primary and gives the same locks. Its sessions are still there.
#[test]
fn a_former_primary_gives_no_lock() {
    let Some((primary, standby)) = pair(true) else { return };
    let options = PostgresOptions::new().patience(Duration::from_secs(2));
    let store = PostgresRecordStore::connect(&primary.url(), options).unwrap();
    for key in ["first", "second"] {
        store.lock(key, LockOptions::new()).unwrap().release().unwrap();
    }
    assert_eq!(standby.sql("SELECT pg_promote()"), "t");
    let error = store.lock("k", LockOptions::new().acquire_timeout(Duration::from_secs(1))).unwrap_err();
    assert!(error.is_outcome_unknown(), "{error:?}");
}

/// Why the guide asks for a synchronous one: this is what it prevents.
#[test]
fn an_asynchronous_standby_may_have_lost_what_was_acknowledged() {
    let Some((primary, standby)) = pair(false) else { return };
    let store = connect(&primary, &standby);
    store.write("k", &1).unwrap();
    let lsn = primary.sql("SELECT pg_current_wal_lsn()");
    until(&standby, &format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'"), "t");
    standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
    standby.sql("SELECT pg_reload_conf()");
    until(&standby, "SELECT count(*) FROM pg_stat_wal_receiver", "0");
    store.write("k", &2).unwrap();
    let acquire = |_| {
        let guard = store.lock("k", as_named("job")).unwrap();
        guard.token()
    };
    let newest = (0..100).map(acquire).max().unwrap();
    fail_over(&primary, &standby);
    assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 1);
    // The tokens continue after those that it knows to be reserved.
    assert!(acquire(0) > newest);
}
