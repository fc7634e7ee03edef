//! Records with a time to live, in the file store.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use record_store::{
    Durability, ErrorKind, FileSystemRecordStore, LockOptions, Problem, RecordStoreExt, WriteOptions,
};
use tempfile::tempdir;

use crate::support::{SetOnDrop, as_named, millis, names_in, open, open_with, storm};

/// A store in which records expire: `exists` and `keys` have to open the records.
fn open_expiring(dir: &Path) -> FileSystemRecordStore {
    let store = open(dir);
    store.write_with("first", &1, WriteOptions::new().time_to_live(millis(1))).unwrap();
    store.remove("first").unwrap();
    store
}

/// Writes a record file with the given expiry, independent of the current time.
fn write_by_hand(dir: &Path, key: &str, expires_at: &str, rest: &str) {
    let path = dir.join(format!("{key}.json"));
    let expiry = format!("{{\"expires_at\":\"{expires_at}\"{rest}}}");
    std::fs::write(&path, format!("{{\"key\":\"{key}\",\"expiry\":{expiry},\"result\":1}}")).unwrap();
}

const PAST: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2999-01-01T00:00:00Z";

/// Writes a record, and returns when it has expired.
fn write_expired(store: &FileSystemRecordStore, key: &str) {
    write_expired_value(store, key, "1");
}

fn write_expired_value(store: &FileSystemRecordStore, key: &str, value: &str) {
    store.write_with(key, value, WriteOptions::new().time_to_live(millis(1))).unwrap();
    while store.read::<String>(key).unwrap().is_some() {
        std::thread::sleep(millis(1));
    }
}

#[test]
fn the_record_file_contains_its_expiry() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", &1, WriteOptions::new().time_to_live(millis(3_600_000))).unwrap();
    let path = dir.path().join("key.json");
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(text["expiry"]["expires_at"].as_str().unwrap().ends_with('Z'));
    assert!(text["expiry"]["deadline_ns"].is_u64() && text["record_crc32"].is_string());
    assert_eq!(text["result"], 1);
    // Nothing else says it.
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
    // The next record has no expiry, and its file shows none.
    store.write("key", &2).unwrap();
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(text.get("expiry").is_none());
}

/// People and archivers change the modes of files.
#[test]
fn the_mode_of_a_record_file_does_not_say_whether_it_expires() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let large = "x".repeat(10_000);
    for mode in [0o644, 0o664, 0o777, 0o400] {
        for (key, value) in [("small", "x"), ("large", &*large), (&*"long/".repeat(100), &*large)] {
            write_expired_value(&store, key, value);
            store.write("permanent", &value).unwrap();
            for name in names_in(dir.path()).iter().filter(|name| name.contains(".json")) {
                std::fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
            }
            assert!(!store.exists(key).unwrap() && store.exists("permanent").unwrap(), "{key:.5}, {mode:o}");
            assert!(store.read::<String>(key).unwrap().is_none());
            assert!(!store.remove(key).unwrap(), "an expired record is not there");
            write_expired_value(&store, key, value);
            let keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
            assert_eq!(keys, ["permanent"], "{key:.5}, {mode:o}");
            assert_eq!(store.sweep().unwrap().records, 1, "{key:.5}, {mode:o}");
            assert!(store.write_if_absent(key, &value, WriteOptions::new()).unwrap());
            assert!(store.exists(key).unwrap() && store.remove(key).unwrap());
        }
    }
}

#[test]
fn the_boot_clock_decides_within_one_boot_and_the_wall_clock_across_boots() {
    let dir = tempdir().unwrap();
    let store = open_expiring(dir.path());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let time_ns = std::fs::read_link("/proc/self/ns/time").unwrap().to_string_lossy().into_owned();
    let time_ns = time_ns.trim_start_matches("time:[").trim_end_matches(']').to_owned();
    let this_boot = |deadline: u64| {
        format!(",\"boot_id\":\"{}\",\"time_ns\":{time_ns},\"deadline_ns\":{deadline}", boot.trim())
    };
    let other_boot = ",\"boot_id\":\"another\",\"time_ns\":1,\"deadline_ns\":1";
    write_by_hand(dir.path(), "stepped-back", FUTURE, &this_boot(1));
    write_by_hand(dir.path(), "stepped-forward", PAST, &this_boot(u64::MAX));
    write_by_hand(dir.path(), "other-boot", FUTURE, other_boot);
    write_by_hand(dir.path(), "other-boot-expired", PAST, other_boot);
    write_by_hand(dir.path(), "date-only", FUTURE, "");
    write_by_hand(dir.path(), "date-only-expired", PAST, "");
    for (key, exists) in [
        ("stepped-back", false),
        ("stepped-forward", true),
        ("other-boot", true),
        ("other-boot-expired", false),
        ("date-only", true),
        ("date-only-expired", false),
    ] {
        assert_eq!(store.read::<i64>(key).unwrap().is_some(), exists, "{key}");
        assert_eq!(store.exists(key).unwrap(), exists, "{key}");
    }
}

#[test]
fn a_record_with_an_invalid_expiry_is_corrupt_and_is_kept() {
    let dir = tempdir().unwrap();
    let store = open_expiring(dir.path());
    write_by_hand(dir.path(), "date", "yesterday", "");
    std::fs::write(dir.path().join("kind.json"), "{\"key\":\"kind\",\"expiry\":7,\"result\":1}").unwrap();
    std::fs::write(
        dir.path().join("sum.json"),
        format!(
            "{{\"key\":\"sum\",\"expiry\":{{\"expires_at\":\"{PAST}\"}},\"expiry_crc32\":\"0\",\"result\":1}}"
        ),
    )
    .unwrap();
    for key in ["date", "kind", "sum"] {
        assert_eq!(store.read::<i64>(key).unwrap_err().kind(), ErrorKind::CorruptRecord, "{key}");
        assert!(store.exists(key).unwrap());
    }
    assert_eq!(store.sweep().unwrap().records, 0);
    assert_eq!(store.keys().unwrap().count(), 3);
}

#[test]
fn a_sweep_removes_expired_records_and_nothing_else() {
    for durability in [Durability::Full, Durability::Relaxed] {
        let dir = tempdir().unwrap();
        let store = open_with(dir.path(), durability);
        let long = "x/".repeat(200);
        for key in ["expired", "held", &long] {
            write_expired(&store, key);
        }
        let guard = store.lock("held", as_named("other")).unwrap();
        store.write("permanent", &1).unwrap();
        store.write_with("live", &1, WriteOptions::new().time_to_live(millis(3_600_000))).unwrap();
        std::fs::write(dir.path().join("garbage.json"), "garbage").unwrap();
        let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
        keys.sort();
        assert_eq!(keys, ["garbage", "live", "permanent"]);
        let expired = |finding: &record_store::Finding| matches!(finding.problem, Problem::ExpiredRecord);
        assert_eq!(store.verify().map(std::result::Result::unwrap).filter(expired).count(), 3);
        let swept = store.sweep().unwrap();
        assert_eq!((swept.records, swept.locks), (3, 0));
        assert_eq!(store.sweep().unwrap().records, 0);
        // The sweep does not affect the holder.
        assert!(guard.read::<i64>().unwrap().is_none());
        guard.write(&2).unwrap();
        guard.release().unwrap();
        let mut left: Vec<_> =
            names_in(dir.path()).into_iter().filter(|name| !name.starts_with('.')).collect();
        left.sort();
        assert_eq!(left, ["garbage.json", "held.json", "live.json", "permanent.json"]);
    }
}

/// Records expire and are removed by a concurrent sweep all the time. No reader sees an expired record, and
/// no live record is missing.
#[test]
fn a_concurrent_sweep_does_not_affect_readers_and_writers() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.sweep().unwrap();
            }
        });
        scope.spawn(|| {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                if let Some(record) = store.read::<u64>("key").unwrap() {
                    assert!(record.result >= last, "an older record came back");
                    last = record.result;
                }
            }
        });
        // Stops the other threads also if this one panics. Otherwise they would run forever.
        let _stop = SetOnDrop(&done);
        for number in 0..storm(300) {
            let guard = store.lock("key", LockOptions::new()).unwrap();
            guard.write_with(&number, WriteOptions::new().time_to_live(millis(1))).unwrap();
            guard.write(&number).unwrap();
            assert_eq!(guard.read::<u64>().unwrap().expect("a record without an expiry").result, number);
            guard.write_with(&number, WriteOptions::new().time_to_live(millis(number % 3))).unwrap();
        }
    });
}

#[test]
fn a_time_to_live_beyond_the_calendar_never_expires() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", &1, WriteOptions::new().time_to_live(std::time::Duration::MAX)).unwrap();
    assert!(!std::fs::read_to_string(dir.path().join("key.json")).unwrap().contains("expiry"));
    // No record in this store expires, so `exists` and `keys` need not check.
    assert!(!dir.path().join(".store/expiring").exists());
    store.write_with("key", &1, WriteOptions::new().time_to_live(std::time::Duration::ZERO)).unwrap();
    assert!(store.read::<i64>("key").unwrap().is_none());
    assert!(dir.path().join(".store/expiring").exists());
}

/// An editor wakes nobody. The watch looks at the file from time to time, although the record expires much later.
#[cfg(not(record_store_no_recheck))]
#[test]
fn a_watch_of_a_record_that_expires_notices_a_change_by_hand() {
    use crate::support::PATIENCE;
    use crate::support::children::spawn_until_asleep;
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", &1, WriteOptions::new().time_to_live(60 * PATIENCE)).unwrap();
    let watching = spawn_until_asleep({
        let store = open(dir.path());
        move || store.watch("key").unwrap().next(10 * PATIENCE).unwrap()
    });
    std::fs::write(dir.path().join("key.json"), "{\"key\":\"key\",\"result\":2}").unwrap();
    assert!(watching.join().is_some());
}
