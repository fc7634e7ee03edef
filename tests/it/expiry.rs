//! Records with a time to live, as files.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use record_store::{
    Durability, Error, FileSystemRecordStore, LockOptions, Problem, RecordStoreExt, WriteOptions,
};
use tempfile::tempdir;

use crate::support::{as_named, millis, names_in, open, open_with, storm};

/// A file that is over, or is not, whatever the clock says.
fn by_hand(dir: &Path, key: &str, expires_at: &str, rest: &str) {
    let path = dir.join(format!("{key}.json"));
    let expiry = format!("{{\"expires_at\":\"{expires_at}\"{rest}}}");
    std::fs::write(&path, format!("{{\"key\":\"{key}\",\"expiry\":{expiry},\"result\":1}}")).unwrap();
    mark(&path);
}

fn mark(path: &Path) {
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode | 0o100)).unwrap();
}

const PAST: &str = "2001-01-01T00:00:00Z";
const FUTURE: &str = "2999-01-01T00:00:00Z";

/// Writes a record that is over when this returns.
fn write_over(store: &FileSystemRecordStore, key: &str) {
    store.write_with(key, &1, WriteOptions::new().time_to_live(millis(1))).unwrap();
    while store.exists(key).unwrap() {
        std::thread::sleep(millis(1));
    }
}

#[test]
fn the_file_says_until_when() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", &1, WriteOptions::new().time_to_live(millis(3_600_000))).unwrap();
    let path = dir.path().join("key.json");
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(text["expiry"]["expires_at"].as_str().unwrap().ends_with('Z'));
    assert!(text["expiry"]["deadline_ns"].is_u64() && text["expiry_crc32"].is_string());
    assert_eq!(text["result"], 1);
    assert_ne!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o100, 0);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);
    // The next one lives for ever, and looks it.
    store.write("key", &2).unwrap();
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(text.get("expiry").is_none());
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o111, 0);
}

#[test]
fn the_boot_clock_decides_within_one_boot_and_the_wall_clock_across() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let time_ns = std::fs::read_link("/proc/self/ns/time").unwrap().to_string_lossy().into_owned();
    let time_ns = time_ns.trim_start_matches("time:[").trim_end_matches(']').to_owned();
    let here = |deadline: u64| {
        format!(",\"boot_id\":\"{}\",\"time_ns\":{time_ns},\"deadline_ns\":{deadline}", boot.trim())
    };
    let elsewhere = ",\"boot_id\":\"another\",\"time_ns\":1,\"deadline_ns\":1";
    by_hand(dir.path(), "stepped-back", FUTURE, &here(1));
    by_hand(dir.path(), "stepped-on", PAST, &here(u64::MAX));
    by_hand(dir.path(), "other-boot", FUTURE, elsewhere);
    by_hand(dir.path(), "other-boot-over", PAST, elsewhere);
    by_hand(dir.path(), "date-only", FUTURE, "");
    by_hand(dir.path(), "date-only-over", PAST, "");
    for (key, is_there) in [
        ("stepped-back", false),
        ("stepped-on", true),
        ("other-boot", true),
        ("other-boot-over", false),
        ("date-only", true),
        ("date-only-over", false),
    ] {
        assert_eq!(store.read::<i64>(key).unwrap().is_some(), is_there, "{key}");
        assert_eq!(store.exists(key).unwrap(), is_there, "{key}");
    }
}

#[test]
fn what_makes_no_sense_is_corrupt_and_stays() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    by_hand(dir.path(), "date", "yesterday", "");
    std::fs::write(dir.path().join("kind.json"), "{\"key\":\"kind\",\"expiry\":7,\"result\":1}").unwrap();
    std::fs::write(
        dir.path().join("sum.json"),
        format!(
            "{{\"key\":\"sum\",\"expiry\":{{\"expires_at\":\"{PAST}\"}},\"expiry_crc32\":\"0\",\"result\":1}}"
        ),
    )
    .unwrap();
    for key in ["date", "kind", "sum"] {
        mark(&dir.path().join(format!("{key}.json")));
        assert!(matches!(store.read::<i64>(key), Err(Error::CorruptRecord { .. })), "{key}");
        assert!(store.exists(key).unwrap());
    }
    assert_eq!(store.sweep().unwrap().records, 0);
    assert_eq!(store.keys().unwrap().count(), 3);
}

#[test]
fn a_sweep_removes_what_is_over_and_nothing_else() {
    for durability in [Durability::Full, Durability::Relaxed] {
        let dir = tempdir().unwrap();
        let store = open_with(dir.path(), durability);
        let long = "x/".repeat(200);
        for key in ["over", "held", &long] {
            write_over(&store, key);
        }
        let guard = store.lock("held", as_named("other")).unwrap();
        store.write("stays", &1).unwrap();
        store.write_with("lives", &1, WriteOptions::new().time_to_live(millis(3_600_000))).unwrap();
        std::fs::write(dir.path().join("garbage.json"), "garbage").unwrap();
        mark(&dir.path().join("garbage.json"));
        let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
        keys.sort();
        assert_eq!(keys, ["garbage", "lives", "stays"]);
        let over = |found: &record_store::Finding| matches!(found.problem, Problem::OverRecord);
        assert_eq!(store.verify().map(std::result::Result::unwrap).filter(over).count(), 3);
        let swept = store.sweep().unwrap();
        assert_eq!((swept.records, swept.locks), (3, 0));
        assert_eq!(store.sweep().unwrap().records, 0);
        // The holder goes on as if nothing had happened.
        assert!(guard.read::<i64>().unwrap().is_none());
        guard.write(&2).unwrap();
        guard.release().unwrap();
        let mut left: Vec<_> =
            names_in(dir.path()).into_iter().filter(|name| !name.starts_with('.')).collect();
        left.sort();
        assert_eq!(left, ["garbage.json", "held.json", "lives.json", "stays.json"]);
    }
}

/// Records end and are swept away all the time; nobody ever sees one that is over, or misses one that
/// is not.
#[test]
fn a_sweep_disturbs_nobody() {
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
        // Also where this panics: the others would go on for ever.
        let _done = Done(&done);
        for number in 0..storm(300) {
            let guard = store.lock("key", LockOptions::new()).unwrap();
            guard.write_with(&number, WriteOptions::new().time_to_live(millis(1))).unwrap();
            guard.write(&number).unwrap();
            assert_eq!(guard.read::<u64>().unwrap().expect("it lives for ever").result, number);
            guard.write_with(&number, WriteOptions::new().time_to_live(millis(number % 3))).unwrap();
        }
    });
}

struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_copy_without_permission_bits_still_reads_right() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    write_over(&store, "key");
    let path = dir.path().join("key.json");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(store.read::<i64>("key").unwrap().is_none());
    assert!(store.write_if_absent("key", &2, WriteOptions::new()).unwrap());
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}

#[test]
fn a_time_beyond_the_calendar_is_for_ever() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", &1, WriteOptions::new().time_to_live(std::time::Duration::MAX)).unwrap();
    assert!(!std::fs::read_to_string(dir.path().join("key.json")).unwrap().contains("expiry"));
    // Nothing ends here, so nobody need look.
    assert!(!dir.path().join(".store/expiring").exists());
    store.write_with("key", &1, WriteOptions::new().time_to_live(std::time::Duration::ZERO)).unwrap();
    assert!(store.read::<i64>("key").unwrap().is_none());
    assert!(dir.path().join(".store/expiring").exists());
}
