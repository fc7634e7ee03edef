//! `verify` and `completions`.

use record_store::{LockOptions, RecordStoreExt};
use serde_json::Value;

use super::*;

#[test]
fn a_sound_store_has_no_findings() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.cli("verify", &[])), 1);
    let store = scratch.open();
    store.write("k", &1).unwrap();
    store.acquire_lock("k", LockOptions::new()).unwrap();
    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 0);
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.ends_with(" (1 record, 1 lock): 0 damaged, 0 foreign, 0 leftover\n"), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn each_finding_is_printed_as_one_line() {
    let scratch = Scratch::new();
    scratch.open();
    fs::write(scratch.store().join("notes\u{1b}"), "").unwrap();
    fs::write(scratch.store().join(".store/owners/1-deaddeaddeaddead"), "").unwrap();
    // Neither of the two is an error.
    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 0);
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(
        text.contains("foreign: not a file of the store (") && text.contains("notes\\u{1b})\n"),
        "{text}"
    );
    assert!(text.contains("leftover: orphaned owner file: its process is gone ("), "{text}");

    fs::write(scratch.store().join("bad.json"), "{").unwrap();
    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 65);
    assert_eq!(verified.stderr, b"");
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.contains("damage: verify \"bad\": corrupt record: not a JSON record ("), "{text}");
    let damage = text.lines().find(|line| line.starts_with("damage: ")).unwrap();
    assert!(damage.ends_with("; replace the record with put, or remove it with rm"), "{damage}");
    assert!(text.ends_with(": 1 damaged, 1 foreign, 1 leftover\n"), "{text}");

    let verified = output(&mut scratch.cli("verify", &["--json"]));
    assert_code(&verified, 65);
    let text = String::from_utf8(verified.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, findings) = lines.split_last().unwrap();
    let kinds: Vec<&str> = findings.iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    for kind in ["damage", "foreign", "leftover"] {
        assert_eq!(summary[kind], 1, "{text}");
        assert!(kinds.contains(&kind), "{text}");
    }
    let damage = findings.iter().find(|finding| finding["kind"] == "damage").unwrap();
    assert!(damage["path"].as_str().unwrap().ends_with("/bad.json"), "{text}");
    assert!(damage["cause"].as_str().unwrap().contains("corrupt record"), "{text}");
    assert_eq!((&summary["records"], &summary["unchecked"]), (&1.into(), &0.into()));
}

#[test]
fn stale_locks_are_leftovers() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("late", LockOptions::new().hold_timeout(Duration::ZERO)).unwrap();
    assert_eq!(output(&mut scratch.run(&["left"], "kill -9 $PPID")).status.code(), None);
    wait_for("the owner of \"left\" to end", || !store.is_locked("left").unwrap());
    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 0);
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.contains("leftover: stale lock: its lease has expired ("), "{text}");
    assert!(text.contains("leftover: stale lock: its process is gone ("), "{text}");
    let verified = output(&mut scratch.cli("verify", &["--json"]));
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.contains("\"kind\":\"leftover\",\"problem\":\"stale lock: its lease"), "{text}");
}
