//! Clients and the server are killed while they work. Acknowledged changes stay.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use record_store::{Error, ErrorKind, LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt};

use super::new_url_on;
use super::server::Server;
use crate::support::children::{Child, Role, Stage};
use crate::support::dice::Dice;
use crate::support::{PATIENCE, as_named, millis, now, storm};

pub(crate) const ROLES: &[Role] = &[("postgres: storm", work)];

/// Counts under the lock of `count`, and writes growing numbers to a key of its own. Says what it attempts, and what
/// was acknowledged.
fn work(stage: &Stage) {
    let (url, own, first): (String, String, u64) = stage.argument();
    let options = PostgresOptions::new().patience(Duration::from_secs(20));
    let store = PostgresRecordStore::connect(&url, options).unwrap();
    for number in first.. {
        stage.send(&format!("attempt {number}"));
        acknowledge(stage, "wrote", number, store.write(&own, &number));
        let count = |old: Option<u64>| Ok(old.unwrap_or(0) + 1);
        acknowledge(stage, "counted", number, store.update("count", LockOptions::new(), count).map(drop));
    }
}

fn acknowledge(stage: &Stage, what: &str, number: u64, outcome: Result<(), Error>) {
    match outcome {
        Ok(()) => stage.send(&format!("{what} {number}")),
        // A lock that was lost changed nothing.
        Err(error) if error.is_lock_lost() => {}
        Err(error) if error.is_outcome_unknown() => stage.send(&format!("unknown {what} {number}")),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Io, "{error} {error:?}"),
    }
}

/// The messages of one of the workers.
#[derive(Default)]
struct Log {
    attempted: u64,
    wrote: u64,
    counted: u64,
    /// Increments that may or may not have been made.
    uncertain: u64,
    counts: bool,
}

impl Log {
    fn read(&mut self, child: &mut Child) {
        while let Some(line) = child.try_receive() {
            let (what, number) = line.rsplit_once(' ').unwrap();
            let number = number.parse().unwrap();
            match what {
                "attempt" => self.attempted = number,
                "wrote" => (self.wrote, self.counts) = (number, true),
                "unknown wrote" => self.counts = true,
                "counted" => self.counted += 1,
                "unknown counted" => self.uncertain += 1,
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kills_of_clients_and_of_the_server() {
    const WORKERS: usize = 3;
    let Some(server) = Server::new(&[]) else { return };
    let url = new_url_on(&server);
    let store =
        PostgresRecordStore::connect(&url, PostgresOptions::new().patience(Duration::from_secs(20))).unwrap();
    let start = |number: usize, first: u64| {
        Child::start("postgres: storm", &(url.as_str(), format!("own {number}"), first))
    };
    let mut logs: Vec<Log> = (0..WORKERS).map(|_| Log::default()).collect();
    let mut children: Vec<Child> = (0..WORKERS).map(|number| start(number, 1)).collect();
    let mut dice = Dice::new(now());
    let (mut clients, mut servers) = (0, 0);
    let end = Instant::now() + Duration::from_secs(storm(8));
    while Instant::now() < end || clients < 3 || servers < 2 {
        std::thread::sleep(dice.time(millis(400)));
        for (log, child) in logs.iter_mut().zip(&mut children) {
            log.read(child);
        }
        if dice.once_in(4) {
            server.kill();
            server.start_again();
            servers += 1;
        } else if dice.once_in(2) {
            server.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE application_name = 'record-store' AND random() < 0.5",
            );
        } else {
            let number = dice.index(WORKERS);
            let mut child = children.swap_remove(number);
            child.signal(rustix::process::Signal::KILL);
            std::thread::sleep(millis(20));
            logs[number].read(&mut child);
            // One write and one increment may have been under way.
            logs[number].uncertain += 1;
            child.kill();
            let next = logs[number].attempted + 1;
            children.push(start(number, next));
            let last = children.len() - 1;
            children.swap(number, last);
            clients += 1;
        }
    }
    for (number, mut child) in children.into_iter().enumerate() {
        child.signal(rustix::process::Signal::KILL);
        std::thread::sleep(millis(20));
        logs[number].read(&mut child);
        logs[number].uncertain += 1;
        child.kill();
    }
    // All locks are free: their sessions are gone.
    let guard = store.lock("count", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
    let counted: u64 = logs.iter().map(|log| log.counted).sum();
    let uncertain: u64 = logs.iter().map(|log| log.uncertain).sum();
    let count = guard.read::<u64>().unwrap().unwrap().result;
    assert!((counted..=counted + uncertain).contains(&count), "{count}: {counted} + at most {uncertain}");
    for (number, log) in logs.iter().enumerate() {
        let stored = store.read::<u64>(format!("own {number}")).unwrap().map_or(0, |record| record.result);
        assert!(
            (log.wrote..=log.attempted).contains(&stored),
            "{stored}: {} to {}",
            log.wrote,
            log.attempted
        );
    }
    assert!(counted > 20, "only {counted} increments");
    println!("{counted} increments, {uncertain} uncertain, {clients} clients and {servers} servers killed");
}

/// The release of an exclusive lock that ends with its session does not wait for the disk. After a crash the server may have
/// that lock again, but its owner is gone.
#[test]
fn a_released_lock_is_free_after_a_crash_of_the_server() {
    // A commit that does not wait for the disk is lost when the server is killed.
    let Some(server) = Server::new(&["wal_writer_delay=10s"]) else { return };
    let store = PostgresRecordStore::connect(&new_url_on(&server), PostgresOptions::new().patience(PATIENCE))
        .unwrap();
    let mut are_lost = Vec::new();
    for options in [LockOptions::new(), LockOptions::new(), LockOptions::new(), as_named("job")] {
        let guard = store.lock("k", options.clone().hold_timeout(PATIENCE)).unwrap();
        guard.write(&1).unwrap();
        guard.release().unwrap();
        server.kill();
        server.start_again();
        are_lost.push(server.sql(&format!("SELECT count(*) FROM {}.locks", store.schema())) == "1");
        assert!(!store.is_locked("k").unwrap(), "{options:?}");
        let begun = Instant::now();
        store.lock("k", as_named("other")).unwrap().release().unwrap();
        assert!(begun.elapsed() < PATIENCE / 2, "{options:?}");
    }
    // The server writes a page to the disk when it is full, also in the middle of a release.
    assert!(are_lost[..3].contains(&true), "each release waited for the disk");
    assert!(!are_lost[3]);
}

/// Nothing ends such a lock but its lease.
#[test]
fn a_named_lock_is_held_after_a_crash_of_the_server() {
    let Some(server) = Server::new(&["wal_writer_delay=10s"]) else { return };
    let store = PostgresRecordStore::connect(&new_url_on(&server), PostgresOptions::new().patience(PATIENCE))
        .unwrap();
    for round in 0..3 {
        // The first one of a session waits for the disk in any case.
        for number in 0..2 {
            store.acquire_lock(format!("first {round} {number}"), LockOptions::new()).unwrap();
        }
        let key = format!("k {round}");
        let token = store.acquire_lock(&*key, as_named("job")).unwrap();
        server.kill();
        server.start_again();
        let lock = store.lock_info(&*key).unwrap();
        assert_eq!(lock.map(|lock| lock.token()), Some(token), "the lock is lost");
        assert!(store.try_lock(&*key, LockOptions::new()).unwrap().is_none());
    }
}

/// The acquisition of a lock that ends with its session does not wait for the disk. Neither it nor its token may be there after
/// a crash, but the token is not given again.
#[test]
fn a_token_that_a_crash_of_the_server_has_lost_is_not_given_again() {
    let Some(server) = Server::new(&["wal_writer_delay=10s"]) else { return };
    let url = new_url_on(&server);
    let connect = || PostgresRecordStore::connect(&url, PostgresOptions::new().patience(PATIENCE)).unwrap();
    let store = connect();
    let schema = store.schema().to_owned();
    let token =
        |store: &PostgresRecordStore, key: &str| store.acquire_lock(key, LockOptions::new()).unwrap().get();
    let (mut are_lost, mut newest) = (Vec::new(), 0);
    for round in 0..5 {
        // The first one of a session reserves tokens on the disk.
        for number in 0..2 {
            newest = newest.max(token(&store, &format!("first {round} {number}")));
        }
        take_numbers(&server, &schema);
        let lost = token(&store, &format!("lost {round}"));
        assert!(lost > newest + 100);
        server.kill();
        server.start_again();
        let count = server.sql(&format!("SELECT count(*) FROM {schema}.locks WHERE token = {lost}"));
        are_lost.push(count == "0");
        // Several sessions are the first ones after the crash.
        let next = std::thread::scope(|scope| {
            let connect = &connect;
            let threads: Vec<_> = (0..4)
                .map(|number| scope.spawn(move || token(&connect(), &format!("next {round} {number}"))))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(next.iter().all(|next| *next > lost), "{next:?} after {lost}");
        assert_eq!(next.iter().collect::<BTreeSet<_>>().len(), next.len());
        newest = *next.iter().max().unwrap();
    }
    // The server writes a page to the disk when it is full, also in the middle of an acquisition.
    assert!(are_lost.contains(&true), "each acquisition waited for the disk");
}

/// Beyond the reserved tokens, an acquisition reserves more on the disk before it returns.
#[test]
fn a_token_beyond_the_reserved_ones_is_on_the_disk() {
    let Some(server) = Server::new(&["wal_writer_delay=10s"]) else { return };
    let url = new_url_on(&server);
    let connect = || PostgresRecordStore::connect(&url, PostgresOptions::new().patience(PATIENCE)).unwrap();
    let schema = connect().schema().to_owned();
    for round in 0..3 {
        connect().acquire_lock(format!("first {round}"), LockOptions::new()).unwrap();
        let reserved = format!("(SELECT last_value + 50 FROM {schema}.numbers)");
        server.sql(&format!("UPDATE {schema}.store SET reserved = {reserved}"));
        let store = connect();
        store.acquire_lock(format!("within {round}"), LockOptions::new()).unwrap();
        take_numbers(&server, &schema);
        let token = store.acquire_lock(format!("beyond {round}"), LockOptions::new()).unwrap();
        server.kill();
        server.start_again();
        let locks = format!("SELECT count(*) FROM {schema}.locks WHERE token = {token}");
        assert_eq!(server.sql(&locks), "1", "the acquisition is lost");
        assert_eq!(server.sql(&format!("SELECT reserved >= {token} FROM {schema}.store")), "t");
    }
}

/// As records do that are written without a wait for the disk: a sequence tells the disk of its numbers in advance.
fn take_numbers(server: &Server, schema: &str) {
    server.sql(&format!(
        "SET synchronous_commit = off; SELECT max(nextval('{schema}.numbers')) FROM generate_series(1, 100)"
    ));
}
