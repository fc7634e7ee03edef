//! `ls --long`, `stat`, and the limits of `gc`.

use std::fs::{File, FileTimes};
use std::time::{Duration, SystemTime};

use record_store::{EvictionPolicy, FileSystemOptions, LockOptions, RecordStoreExt, WriteOptions};
use serde_json::Value;

use super::*;
use crate::support::{as_named, millis};

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Three records that were written one after the other.
fn three() -> Scratch {
    let scratch = Scratch::new();
    let store = scratch.open();
    for (key, length) in [("report/large", 5000), ("report/small", 1), ("other", 100)] {
        store.write(key, &"x".repeat(length)).unwrap();
        std::thread::sleep(millis(15));
    }
    scratch
}

#[test]
fn keys_are_selected_and_sorted() {
    let scratch = three();
    let ls = |arguments: &[&str]| {
        let output = output(&mut scratch.cli("ls", arguments));
        assert_code(&output, 0);
        text(&output).lines().map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(ls(&["--sort", "key"]), ["other", "report/large", "report/small"]);
    assert_eq!(ls(&["--sort", "time"]), ["report/large", "report/small", "other"]);
    assert_eq!(ls(&["--sort", "size"]), ["report/small", "other", "report/large"]);
    assert_eq!(ls(&["--sort", "size", "--prefix", "report/"]), ["report/small", "report/large"]);
    assert_eq!(ls(&["--prefix", "oth"]), ["other"]);
    assert_eq!(ls(&["--prefix", "oth", "--json"]), ["\"other\""]);
    assert_eq!(ls(&["--prefix", "none", "--long"]), [""; 0]);
}

#[test]
fn a_long_list_says_what_is_known_of_each_record() {
    let scratch = three();
    let hour = WriteOptions::new().time_to_live(millis(3_600_000));
    scratch.open().write_with("other", &1, hour).unwrap();
    let table = output(&mut scratch.cli("ls", &["--long"]));
    assert_code(&table, 0);
    let table = text(&table);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("SIZE") && lines[0].ends_with("KEY"), "{table}");
    assert!(lines[1].contains("59m 59s") && lines[1].ends_with("other"), "{table}");
    assert!(lines[2].contains("none") && lines[2].ends_with("report/large"), "{table}");
    let json = output(&mut scratch.cli("ls", &["--long", "--json", "--sort", "time"]));
    let records: Vec<Value> = text(&json).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let keys: Vec<_> = records.iter().map(|record| record["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["report/large", "report/small", "other"]);
    assert!(records[0]["size"].as_u64().unwrap() > 5000, "{records:?}");
    assert_eq!(records[0]["remaining_seconds"], Value::Null);
    assert!(records[2]["remaining_seconds"].as_f64().unwrap() > 3500.0, "{records:?}");
    let version = scratch.open().read::<u8>("other").unwrap().unwrap().version;
    assert_eq!(records[2]["version"].as_u64(), version.number());
}

#[test]
fn stat_tells_the_record_and_the_lock() {
    let scratch = three();
    let free = output(&mut scratch.cli("stat", &["other"]));
    assert_code(&free, 0);
    let free = text(&free);
    assert!(free.contains("key:      other\n") && free.contains("lock:     free\n"), "{free}");
    assert!(free.contains("expires:  never\n"), "{free}");
    let store = scratch.open();
    let guard = store.lock("other", as_named("worker 7").hold_timeout(millis(60_000))).unwrap();
    let held = text(&output(&mut scratch.cli("stat", &["other"])));
    assert!(held.contains("held by \"worker 7\", since "), "{held}");
    assert!(held.contains(&format!("token:    {}\n", guard.token())), "{held}");
    let json = output(&mut scratch.cli("stat", &["other", "--json"]));
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["lock"]["holder"], "worker 7");
    assert_eq!(json["record"]["key"], "other");
    // A key that is locked but has no record.
    let _guard = store.lock("absent", LockOptions::new()).unwrap();
    let absent = output(&mut scratch.cli("stat", &["absent", "--json"]));
    assert_code(&absent, 1);
    let json: Value = serde_json::from_slice(&absent.stdout).unwrap();
    assert_eq!(json["record"], Value::Null);
    assert_ne!(json["lock"], Value::Null);
}

#[test]
fn gc_evicts_the_oldest_records_of_a_cache() {
    let scratch = three();
    let limit = ["--max-records", "1"];
    let dry = output(&mut scratch.cli("gc", &[&limit[..], &["--dry-run"]].concat()));
    assert_code(&dry, 0);
    let dry = text(&dry);
    assert!(dry.starts_with("2 records (") && dry.contains("would be evicted, 1 record ("), "{dry}");
    assert_eq!(scratch.open().keys().unwrap().count(), 3);
    let store = scratch.open();
    let guard = store.lock("report/large", LockOptions::new()).unwrap();
    let json = output(&mut scratch.cli("gc", &["--max-size", "2K", "--json"]));
    assert_code(&json, 0);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["evicted"]["kept"], 1, "{json}");
    assert_eq!(json["evicted"]["records"], 2, "{json}");
    assert!(store.exists("report/large").unwrap());
    guard.release().unwrap();
    let done = text(&output(&mut scratch.cli("gc", &["--older-than", "0s"])));
    assert!(done.contains("1 record (") && done.contains(") evicted, 0 records (0 bytes) left"), "{done}");
    for place in [scratch.store().to_str().unwrap(), "postgres://localhost:1/none"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        assert_code(&output(command.args(["gc", place, "--dry-run"])), 2);
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        assert_code(&output(command.args(["gc", place, "--least-recently-read"])), 2);
    }
}

#[test]
fn gc_keeps_what_was_read_last() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let hours = |age| SystemTime::now() - Duration::from_hours(age);
    for (key, age) in [("first", 3), ("second", 2)] {
        store.write(key, &1).unwrap();
        let file = File::open(scratch.store().join(format!("{key}.json"))).unwrap();
        file.set_times(FileTimes::new().set_modified(hours(age)).set_accessed(hours(age))).unwrap();
    }
    let policy = EvictionPolicy::new().least_recently_read(true);
    let noting = FileSystemOptions::new().eviction(policy).open(scratch.store()).unwrap();
    assert!(noting.read::<u8>("first").unwrap().is_some());
    assert_code(&output(&mut scratch.cli("gc", &["--max-records", "1", "--least-recently-read"])), 0);
    assert!(store.exists("first").unwrap() && !store.exists("second").unwrap());
}
