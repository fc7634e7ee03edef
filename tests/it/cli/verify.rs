//! `verify` and `completions`.

use record_store::{LockOptions, RecordStoreExt};
use serde_json::Value;

use super::*;
use crate::support::as_named;

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

#[test]
fn a_recovery_is_reported_by_the_command_that_does_it_and_by_verify() {
    let original = Scratch::new();
    let store = original.open();
    for key in ["a", "b"] {
        store.write(key, &1).unwrap();
    }
    store.acquire_lock("a", as_named("job")).unwrap();
    // A copy is recovered, as a store is after a power loss.
    let scratch = Scratch::new();
    fs::create_dir(scratch.store()).unwrap();
    crate::tree::copy(&original.store(), &scratch.store());
    fs::remove_file(scratch.store().join("a.json")).unwrap();
    fs::write(scratch.store().join("b.json"), "").unwrap();
    fs::remove_file(scratch.store().join("a.lock")).unwrap();

    let refused = assert_fails(&output(&mut scratch.cli("verify", &[])), 65);
    assert!(refused.ends_with("; recover it with gc\n"), "{refused}");
    let gc = output(&mut scratch.cli("gc", &[]));
    assert_code(&gc, 0);
    let changed = "2 records written again, 0 records removed, 1 lock corrected";
    let expected = format!("record-store: recovered from the commit log: {changed}\n");
    assert_eq!(String::from_utf8(gc.stderr).unwrap(), expected);
    let again = output(&mut scratch.cli("gc", &[]));
    assert_eq!((again.status.code(), &*again.stderr), (Some(0), &b""[..]));

    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 0);
    let text = String::from_utf8(verified.stdout).unwrap();
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("last recovery from the commit log, 2"), "{text}");
    assert!(last.ends_with(&format!(": {changed}")), "{text}");
    let verified = output(&mut scratch.cli("verify", &["--json"]));
    let text = String::from_utf8(verified.stdout).unwrap();
    let summary: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    let recovery = &summary["last_recovery"];
    assert_eq!(
        (&recovery["records"], &recovery["removed"], &recovery["locks"]),
        (&2.into(), &0.into(), &1.into())
    );
    let at = humantime::parse_rfc3339(recovery["at"].as_str().unwrap()).unwrap();
    assert!(at.elapsed().unwrap() < Duration::from_mins(10), "{text}");

    // A damaged report tells nothing, and damages nothing.
    fs::write(scratch.store().join(".store/log/recovered"), "{").unwrap();
    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 0);
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.ends_with(": 0 damaged, 0 foreign, 0 leftover\n"), "{text}");
}
