//! The versions of records in files, and writes that depend on them.

use std::collections::HashSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use record_store::{
    Durability, ErrorKind, FileSystemRecordStore, Holder, LockOptions, MemoryRecordStore, RecordStore,
    RecordStoreExt, RecordVersion, WriteOptions,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{open, open_with, storm};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[("increment-by-version", increment)];

/// The greatest version that a file can contain.
const GREATEST: u64 = (1 << 53) - 1;

/// The least version of a handwritten record.
const DERIVED: u64 = 1 << 52;

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    durable: bool,
    times: u64,
}

/// Reads a record, changes it, and writes it if it still has the version that was read. Repeats that until it
/// succeeds, and returns the number of attempts.
fn change<R: Serialize + DeserializeOwned>(
    store: &(impl RecordStore + ?Sized),
    key: &str,
    change: impl Fn(Option<R>) -> R,
) -> u64 {
    for attempts in 1.. {
        let seen = store.read::<R>(key).unwrap();
        let version = seen.as_ref().map_or(RecordVersion::ABSENT, |record| record.version);
        let next = change(seen.map(|record| record.result));
        if store.write_if_version(key, version, &next, WriteOptions::new()).unwrap() {
            return attempts;
        }
    }
    unreachable!()
}

/// Increments a counter without a lock.
fn increment(stage: &Stage) {
    let task: Task = stage.argument();
    let durability = if task.durable { Durability::Full } else { Durability::Relaxed };
    let store = open_with(&task.dir, durability);
    stage.send("ready");
    stage.expect("go");
    for _ in 0..task.times {
        change(&store, "count", |count: Option<u64>| count.unwrap_or(0) + 1);
    }
    stage.send("done");
}

fn no_increment_is_lost(durable: bool, times: u64) {
    let dir = tempdir().unwrap();
    let task = || Task { dir: dir.path().to_owned(), durable, times };
    let mut children: Vec<_> = (0..4).map(|_| Child::start("increment-by-version", &task())).collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.send("go");
    }
    for child in &mut children {
        child.expect("done");
    }
    assert_eq!(open(dir.path()).read::<u64>("count").unwrap().unwrap().result, 4 * times);
}

#[test]
fn no_increment_by_version_is_lost_in_a_relaxed_store() {
    no_increment_is_lost(false, storm(200));
}

#[test]
fn no_increment_by_version_is_lost_in_a_durable_store() {
    no_increment_is_lost(true, storm(30));
}

#[derive(Debug, Serialize, Deserialize)]
struct Job {
    name: String,
    /// Added later: earlier records do not have it.
    #[serde(default)]
    attempts: u32,
}

/// In each case the result that was read does not encode to the stored text, so no swap by value succeeds.
fn types_that_encode_differently(store: &(impl RecordStore + ?Sized)) {
    fn is_changed_at_once<R: Debug + Serialize + DeserializeOwned>(
        store: &(impl RecordStore + ?Sized),
        stored: &serde_json::Value,
        step: impl Fn(R) -> R,
    ) {
        store.write("key", stored).unwrap();
        let attempts =
            abort_if_hung("a loop by version", || change(store, "key", |old: Option<R>| step(old.unwrap())));
        assert_eq!(attempts, 1);
        assert_ne!(&store.read::<serde_json::Value>("key").unwrap().unwrap().result, stored);
    }
    let again = |job: Job| Job { attempts: job.attempts + 1, ..job };
    is_changed_at_once(store, &serde_json::json!({"name": "a"}), again);
    is_changed_at_once(
        store,
        &serde_json::json!({"name": "a", "attempts": 1, "of a newer": "program"}),
        again,
    );
    let numbers: Vec<_> = (0..100).collect();
    is_changed_at_once(store, &serde_json::json!(numbers), |mut set: HashSet<u64>| {
        set.insert(100);
        set
    });
}

#[test]
fn a_loop_by_version_ends_whatever_the_type_encodes_to() {
    types_that_encode_differently(&MemoryRecordStore::new());
    let dir = tempdir().unwrap();
    types_that_encode_differently(&open_with(dir.path(), Durability::Relaxed));
}

fn version(store: &FileSystemRecordStore, key: &str) -> RecordVersion {
    store.read::<serde_json::Value>(key).unwrap().expect("a record").version
}

fn write_if(store: &FileSystemRecordStore, key: &str, version: RecordVersion) -> bool {
    store.write_if_version(key, version, &"written", WriteOptions::new()).unwrap()
}

#[test]
fn a_handwritten_record_has_a_version_that_changes_with_its_file() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let path = dir.path().join("notes.json");
    let by_hand = |text: &str| std::fs::write(&path, text).unwrap();
    let long = format!("{{\"key\":\"notes\",\"result\":\"{}\"}}", "x".repeat(10_000));
    let texts = [
        "{\"key\":\"notes\",\"result\":1}",
        "{\"result\":22,\"key\":\"notes\"}",
        // A field of the writer's own, whatever its name is.
        "{\"key\":\"notes\",\"version\":\"1.0\",\"result\":333}",
        "{\"key\":\"notes\",\"version\":\"1.0\",\"result\":4444}",
        "{\"key\":\"notes\",\"version\":[7],\"result\":55555}",
        &long,
    ];
    let mut seen = HashSet::new();
    for text in texts {
        by_hand(text);
        let mut watch = store.watch("notes").unwrap();
        let before = version(&store, "notes");
        assert_eq!(version(&store, "notes"), before, "{text:.60}");
        assert_eq!(watch.next(std::time::Duration::ZERO).unwrap(), None, "{text:.60}");
        assert!(seen.insert(before), "{text:.60}");
        // JSON carries it exactly, and the clock gives no such version.
        assert!((DERIVED..=GREATEST).contains(&before.number().unwrap()), "{text:.60}");
        // Edited in its place.
        by_hand(&format!("{text} "));
        assert!(!write_if(&store, "notes", before), "{text:.60}");
        assert!(watch.next(std::time::Duration::ZERO).unwrap().is_some(), "{text:.60}");
        assert!(write_if(&store, "notes", version(&store, "notes")), "{text:.60}");
        assert!(version(&store, "notes").number().unwrap() < DERIVED, "{text:.60}");
    }
}

/// A number in this field is of this crate, which writes it with a checksum. So the record is damaged, or edited by
/// hand by somebody who forgot that field.
#[test]
fn a_version_without_a_checksum_is_damage_and_is_kept() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("notes", &1).unwrap();
    let path = dir.path().join("notes.json");
    let written = std::fs::read_to_string(&path).unwrap();
    let large = format!("{{\"key\":\"notes\",\"version\":7,\"result\":\"{}\"}}", "x".repeat(10_000));
    for text in [
        &*written.replace("record_crc32", "record_crc3"),
        "{\"key\":\"notes\",\"version\":7,\"result\":4444}",
        "{\"key\":\"notes\",\"result\":4444,\"version\":0}",
        &large,
    ] {
        std::fs::write(&path, text).unwrap();
        let error = store.read::<serde_json::Value>("notes").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptRecord, "{text:.60}");
        assert!(error.detail().unwrap().contains("remove the version"), "{error}");
        assert!(
            store.exists("notes").unwrap()
                && store.watch("notes").unwrap().next(std::time::Duration::ZERO).unwrap().is_none(),
            "{text:.60}"
        );
        assert_eq!(store.verify().map(Result::unwrap).filter(|it| it.problem.is_damage()).count(), 1);
        // As the error says.
        let edited = serde_json::from_str::<serde_json::Value>(text).unwrap();
        let edited = serde_json::json!({"key": "notes", "result": edited["result"]});
        std::fs::write(&path, edited.to_string()).unwrap();
        assert_eq!(store.read::<serde_json::Value>("notes").unwrap().unwrap().result, edited["result"]);
        // A write keeps it.
        std::fs::write(&path, text).unwrap();
        store.write("notes", &1).unwrap();
        let [kept] = &store.damaged().unwrap()[..] else { panic!("{text:.60}: {:?}", store.damaged()) };
        assert_eq!(std::fs::read_to_string(&kept.path).unwrap(), text);
        store.clear_damaged().unwrap();
    }
}

/// A record of format version 1.
fn of_version_1(dir: &Path, key: &str, version: u64) {
    let crc32 = crc32fast::hash(b"1");
    let text =
        format!("{{\"key\":\"{key}\",\"version\":{version},\"crc32\":\"{crc32:08x}\",\"result\":1}}\n");
    std::fs::write(dir.join(format!("{key}.json")), text).unwrap();
}

/// A record with this version.
pub(crate) fn versioned(dir: &Path, key: &str, version: u64) {
    let crc32 = crc32fast::hash(format!("{version}\0\0{}", 1).as_bytes());
    let text = format!(
        "{{\"key\":\"{key}\",\"version\":{version},\"record_crc32\":\"{crc32:08x}\",\"result\":1}}\n"
    );
    std::fs::write(dir.join(format!("{key}.json")), text).unwrap();
}

/// The memory that the processes share is lost at a restart of the machine, and the clock may be behind then.
#[test]
fn a_version_is_greater_than_that_of_the_old_file() {
    for (durability, write) in [
        (Durability::Relaxed, versioned as fn(&Path, &str, u64)),
        (Durability::Full, versioned),
        (Durability::Relaxed, of_version_1),
    ] {
        let dir = tempdir().unwrap();
        let ahead = 1 << 52;
        let store = open_with(dir.path(), durability);
        write(dir.path(), "key", ahead);
        assert_eq!(version(&store, "key").number(), Some(ahead));
        store.write("key", &2).unwrap();
        assert_eq!(version(&store, "key").number(), Some(ahead + 1));
        drop(store);
        let _ = std::fs::remove_file(dir.path().join(".store/events"));
        let store = open_with(dir.path(), durability);
        store.write("key", &3).unwrap();
        assert_eq!(version(&store, "key").number(), Some(ahead + 2));
        assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 3);
        if !cfg!(record_store_elsewhere) {
            store.remove("key").unwrap();
            store.write("key", &4).unwrap();
            assert_eq!(version(&store, "key").number(), Some(ahead + 4), "a removal has a version, too");
        }
        assert_eq!(store.verify().count(), 0);
    }
}

/// The same if the shared memory has an older number: it is not synced, and has the numbers of other keys, too.
#[test]
fn a_version_is_greater_than_that_of_a_file_from_the_future() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    store.write("key", &1).unwrap();
    let ahead = version(&store, "key").number().unwrap() + 3_600_000_000;
    versioned(dir.path(), "key", ahead);
    let file = std::fs::File::options().write(true).open(dir.path().join("key.json")).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_hours(1)).unwrap();
    store.write("key", &2).unwrap();
    assert_eq!(version(&store, "key").number(), Some(ahead + 1));
    assert!(!write_if(&store, "key", RecordVersion::ABSENT));
}

#[test]
fn a_record_with_the_greatest_version_can_be_written() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    for number in [0, GREATEST, GREATEST + 1, u64::MAX] {
        let key = format!("key-{number}");
        versioned(dir.path(), &key, number);
        let mut seen = HashSet::from([version(&store, &key)]);
        for _ in 0..3 {
            store.write(&key, &1).unwrap();
            assert!(seen.insert(version(&store, &key)), "{number}");
        }
    }
}

/// Whatever fails in it, a swap by version is one operation.
#[test]
fn a_swap_by_version_has_one_name() {
    let store = MemoryRecordStore::new();
    let swap = |key: &str, result: f64| {
        store.write_if_version(key, RecordVersion::ABSENT, &result, WriteOptions::new()).unwrap_err()
    };
    let _guard = store.lock("locked", LockOptions::new().holder(Holder::named("other").unwrap())).unwrap();
    for (error, kind) in [(swap("k", f64::NAN), ErrorKind::Encode), (swap("locked", 1.0), ErrorKind::Locked)]
    {
        assert_eq!((error.kind(), error.operation()), (kind, "compare_and_swap"));
    }
}
