//! Listing and evicting records on a server.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime};

use record_store::{ErrorKind, EvictionPolicy, ListOptions, RecordStoreExt};
use sha2::{Digest as _, Sha256};

use super::server::Server;
use super::{new_url, open};
use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis};

pub(crate) const ROLES: &[Role] = &[("postgres: evict", evict_at_once)];

/// The id of a key, and its latch.
fn id_and_latch(key: &str) -> (String, i32) {
    let id = Sha256::digest(key.as_bytes());
    (format!("sha256(convert_to('{key}', 'UTF8'))"), i32::from_be_bytes([id[0], id[1], id[2], id[3]]))
}

/// Inserts this many records at once, faster than by as many writes.
fn insert_many(server: &Server, schema: &str, count: u32) {
    server.sql(&format!(
        "INSERT INTO {schema}.records (id, key, version, result) SELECT sha256(k), k, nextval('{schema}.numbers'), '1' \
         FROM (SELECT convert_to('many/' || n, 'UTF8') AS k FROM generate_series(1, {count}) n) s"
    ));
}

fn evict_at_once(stage: &Stage) {
    let store = open(&stage.argument::<String>());
    stage.send("ready");
    stage.expect("go");
    let evicted = store.evict(EvictionPolicy::new().max_records(50)).unwrap();
    assert_eq!((evicted.kept, evicted.records_left), (0, 50));
    stage.send(&evicted.records.to_string());
}

#[test]
fn processes_that_evict_at_once_remove_no_record_too_many() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    insert_many(Server::shared().unwrap(), store.schema(), 1000);
    for number in 0..50 {
        store.write(format!("young {number}"), &number).unwrap();
    }
    let mut children: Vec<_> = (0..4).map(|_| Child::start("postgres: evict", &url)).collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.send("go");
    }
    let mut evicted = 0;
    for mut child in children {
        evicted += child.receive().parse::<u64>().unwrap();
        child.finish();
    }
    assert_eq!(evicted, 1000);
    let left: Vec<_> = store.keys().unwrap().map(Result::unwrap).collect();
    assert_eq!(left.len(), 50);
    assert!(left.iter().all(|key| key.as_str().starts_with("young ")), "{left:?}");
}

#[test]
fn an_eviction_waits_for_a_removal_that_is_not_committed_and_takes_no_other_record() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    for key in ["old", "young"] {
        store.write(key, &1).unwrap();
    }
    let (id, latch) = id_and_latch("old");
    let schema = store.schema();
    let mut remover = server.psql(
        &format!(
            "BEGIN; SELECT {schema}.enter({latch}, 1000); DELETE FROM {schema}.records WHERE id = {id}; SELECT 'removed'"
        ),
        "removed",
    );
    std::thread::scope(|scope| {
        let evicting = scope.spawn(|| store.evict(EvictionPolicy::new().max_records(1)).unwrap());
        // The objects of advisory locks have no sign.
        let waits = format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = {}::oid",
            latch.cast_unsigned()
        );
        let start = Instant::now();
        while server.sql(&waits) == "0" {
            assert!(start.elapsed() < PATIENCE && !evicting.is_finished(), "it does not wait");
        }
        writeln!(remover.stdin.as_mut().unwrap(), "COMMIT;").unwrap();
        let evicted = evicting.join().unwrap();
        assert_eq!((evicted.records, evicted.kept, evicted.records_left), (0, 0, 1), "{evicted:?}");
    });
    assert!(store.exists("young").unwrap());
    drop(remover.stdin.take());
    remover.wait().unwrap();
}

/// The answers of the server are its statuses: 0 done, 2 locked, 7 another version, 9 no record.
#[test]
fn a_record_that_was_written_or_locked_since_it_was_listed_is_kept() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    let schema = store.schema();
    let (id, latch) = id_and_latch("k");
    let both = |version: u64| {
        let several = server
            .sql(&format!("SELECT status FROM {schema}.evict_several(ARRAY[{id}], ARRAY[{version}], false)"));
        let one = format!("SELECT status FROM {schema}.evict({id}, {latch}, {version}, 1000)");
        (several.parse::<i32>().unwrap(), server.sql(&one).parse::<i32>().unwrap())
    };
    let version = || store.record_info("k").unwrap().unwrap().version().number().unwrap();
    store.write("k", &1).unwrap();
    let listed = version();
    store.write("k", &2).unwrap();
    assert_eq!(both(listed), (7, 7));
    let guard = store.lock("k", as_named("job")).unwrap();
    assert_eq!(both(version()), (2, 2));
    assert_eq!(guard.read::<u8>().unwrap().unwrap().result, 2);
    guard.release().unwrap();
    let mut watch = store.watch("k").unwrap();
    let waiters = || server.sql(&format!("SELECT count(*) FROM {schema}.waiters"));
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch.next(PATIENCE).unwrap());
        while waiters() == "0" {
            assert!(!watching.is_finished());
        }
        assert_eq!(both(version()), (0, 9));
        assert_eq!(watching.join().unwrap(), Some(record_store::RecordChange::Removed));
    });
    assert_eq!(waiters(), "0", "the watcher was not notified");
}

#[test]
fn ages_are_measured_by_the_clock_of_the_server() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    for key in ["old", "new"] {
        store.write(key, &1).unwrap();
    }
    let schema = store.schema();
    let set = |by: &str, of: &str| {
        server.sql(&format!(
            "UPDATE {schema}.records SET modified_at = modified_at - interval '{by}' \
             WHERE key = convert_to('{of}', 'UTF8')"
        ))
    };
    set("2 days", "old");
    let day = Duration::from_hours(24);
    let age = store.record_info("old").unwrap().unwrap().modified().elapsed().unwrap();
    assert!(age > day && age < 3 * day, "{age:?}");
    let evicted = store.evict(EvictionPolicy::new().older_than(day)).unwrap();
    assert_eq!((evicted.records, evicted.records_left), (1, 1));
    // A new write is a new time.
    set("2 days", "new");
    store.write("new", &2).unwrap();
    assert_eq!(store.evict(EvictionPolicy::new().older_than(day)).unwrap().records, 0);
    let modified = store.record_info("new").unwrap().unwrap().modified();
    assert!(modified <= SystemTime::now() + millis(2_000), "{modified:?}");
}

#[test]
fn a_listing_of_many_and_large_records_is_complete() {
    let Some(url) = new_url() else { return };
    let (store, server) = (open(&url), Server::shared().unwrap());
    // More than two pages.
    insert_many(server, store.schema(), 4_100);
    for number in 0..5 {
        store.write(format!("large/{number}"), &"x".repeat(1_500_000)).unwrap();
    }
    let list = |options: ListOptions| {
        let mut found: Vec<_> = store.records(options).unwrap().map(|record| record.unwrap()).collect();
        found.sort_by(|a, b| a.key().cmp(b.key()));
        found
    };
    assert_eq!(list(ListOptions::new()).len(), 4_105);
    assert_eq!(list(ListOptions::new().prefix("many/")).len(), 4_100);
    assert_eq!(list(ListOptions::new().prefix("none")).len(), 0);
    // The hash of its key begins with twelve ones, so it is on the last page, and none is on the others.
    store.write("rare/1305", &1).unwrap();
    assert_eq!(list(ListOptions::new().prefix("rare/")).len(), 1);
    store.remove("rare/1305").unwrap();
    let large = list(ListOptions::new().prefix("large/").results(true));
    assert_eq!(large.len(), 5);
    for record in &large {
        assert_eq!(record.result().unwrap().as_str().len() as u64, record.size());
        assert_eq!(record.size(), 1_500_002);
    }
    let all = list(ListOptions::new().results(true));
    assert_eq!(all.len(), 4_105);
    assert!(all.iter().all(|record| record.result().is_some()));
}

/// A server does not know of reads.
#[test]
fn the_order_of_the_last_read_is_refused() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    store.write("k", &1).unwrap();
    let policy = EvictionPolicy::new().max_records(0).least_recently_read(true);
    let error = store.evict(policy).unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Unsupported, "evict"), "{error}");
    assert!(store.exists("k").unwrap());
}
