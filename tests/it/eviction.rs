//! A cache that stays small: eviction while other processes write, read and hold locks, and what it never touches.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{
    Durability, ErrorKind, EvictionPolicy, FileSystemOptions, ListOptions, LockOptions, OpenMode,
    RecordStoreExt, WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::support::children::{Child, Role, Stage};
use crate::support::{millis, open, open_with, storm, tempdir};

pub(crate) const ROLES: &[Role] =
    &[("fill a cache", fill), ("read a cache", read), ("hold and write in a cache", hold_and_write)];

const LIMIT: u64 = 50;

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    number: u64,
    times: u64,
}

fn start(role: &'static str, dir: &Path, number: u64, times: u64) -> Child {
    let mut child = Child::start(role, &Task { dir: dir.to_owned(), number, times });
    child.expect("ready");
    child
}

/// Writes more than the limit, and evicts now and then.
fn fill(stage: &Stage) {
    let Task { dir, number, times } = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for time in 0..times {
        store.write(format!("{number} {time}"), &vec![number; 100]).unwrap();
        if time % 20 == 0 {
            store.evict(EvictionPolicy::new().max_records(LIMIT)).unwrap();
        }
    }
    stage.send("done");
}

/// Reads what there is until it is told to stop. A record that is evicted meanwhile is absent, and nothing else.
fn read(stage: &Stage) {
    let Task { dir, .. } = stage.argument();
    let store = open(&dir);
    stage.send("ready");
    stage.expect("go");
    let mut found = 0_u64;
    while !store.exists("stop").unwrap() {
        for key in store.keys().unwrap() {
            let key = key.unwrap();
            if let Some(record) = store.read::<Vec<u64>>(&key).unwrap() {
                assert_eq!(record.result.len(), 100, "{key}");
                found += 1;
            }
        }
        for record in store.records(ListOptions::new().results(true)).unwrap() {
            found += u64::from(record.unwrap().result().is_some());
        }
    }
    stage.send(&found.to_string());
}

/// A record that is written under a lock is there until the lock is released.
fn hold_and_write(stage: &Stage) {
    let Task { dir, number, times } = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for time in 0..times {
        let guard = store.lock(format!("held {number}"), LockOptions::new()).unwrap();
        guard.write(&vec![time; 100]).unwrap();
        for _ in 0..20 {
            assert_eq!(guard.read::<Vec<u64>>().unwrap().expect("not evicted").result[0], time);
        }
        guard.release().unwrap();
    }
    stage.send("done");
}

#[test]
fn eight_processes_keep_a_cache_small() {
    let dir = tempdir().unwrap();
    let times = storm(200);
    let mut writers: Vec<_> = (0..4).map(|number| start("fill a cache", dir.path(), number, times)).collect();
    writers.extend((4..6).map(|number| start("hold and write in a cache", dir.path(), number, times)));
    let mut readers: Vec<_> = (6..8).map(|number| start("read a cache", dir.path(), number, times)).collect();
    for child in writers.iter_mut().chain(&mut readers) {
        child.send("go");
    }
    for mut child in writers {
        child.expect("done");
        child.finish();
    }
    let store = open(dir.path());
    let evicted = store.evict(EvictionPolicy::new().max_records(LIMIT)).unwrap();
    assert_eq!((evicted.records_left, evicted.kept), (LIMIT, 0), "{evicted:?}");
    assert_eq!(store.keys().unwrap().count() as u64, LIMIT);
    assert!(store.locks().unwrap().next().is_none());
    store.write("stop", &vec![0; 100]).unwrap();
    for mut child in readers {
        assert!(child.receive().parse::<u64>().unwrap() > 0);
        child.finish();
    }
    assert!(store.verify().all(|finding| !finding.unwrap().problem.is_damage()));
}

#[test]
fn what_was_not_written_by_the_store_is_never_evicted() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("ours", &1).unwrap();
    let by_hand = dir.path().join("by-hand.json");
    std::fs::write(&by_hand, r#"{"key":"by-hand","result":1}"#).unwrap();
    let damaged = dir.path().join("damaged.json");
    std::fs::write(&damaged, "{").unwrap();
    std::fs::create_dir(dir.path().join("directory.json")).unwrap();
    let evicted = store.evict(EvictionPolicy::new().max_records(0)).unwrap();
    assert_eq!((evicted.records, evicted.kept, evicted.records_left), (1, 2, 2));
    assert!(by_hand.exists() && damaged.exists() && dir.path().join("directory.json").exists());
    assert!(store.damaged().unwrap().is_empty());
    assert!(!store.exists("ours").unwrap());
}

#[test]
fn an_expired_record_counts_until_it_is_evicted() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let expires_at_once = WriteOptions::new().time_to_live(Duration::from_nanos(1));
    store.write_with("expired", &1, expires_at_once).unwrap();
    std::thread::sleep(millis(15));
    store.write("key", &1).unwrap();
    let evicted = store.evict(EvictionPolicy::new().max_records(1)).unwrap();
    assert_eq!((evicted.records, evicted.kept, evicted.records_left), (1, 0, 1));
    assert!(store.exists("key").unwrap());
}

#[test]
fn a_store_that_is_opened_read_only_says_what_would_be_evicted() {
    let dir = tempdir().unwrap();
    open(dir.path()).write("key", &1).unwrap();
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
    let policy = EvictionPolicy::new().max_records(0);
    assert_eq!(reader.evict(policy.clone()).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(reader.evict(policy.dry_run(true)).unwrap().records, 1);
    assert!(reader.exists("key").unwrap());
}

/// A damaged file is an error of its own, and the listing goes on.
#[test]
fn a_damaged_record_does_not_end_the_listing() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("first", &1).unwrap();
    store.write("second", &1).unwrap();
    std::fs::write(dir.path().join("damaged.json"), r#"{"key":"damaged","#).unwrap();
    for results in [false, true] {
        let (good, bad): (Vec<_>, Vec<_>) =
            store.records(ListOptions::new().results(results)).unwrap().partition(Result::is_ok);
        assert_eq!(good.len(), 2);
        let error = bad.into_iter().next().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptRecord, "{error}");
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
