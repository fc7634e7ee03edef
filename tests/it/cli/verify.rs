//! `verify` and `completions`.

use record_store::{LockOptions, RecordStoreExt};
use serde_json::Value;

use super::*;

#[test]
fn a_sound_store() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.cli("verify", &[])), 1);
    let store = scratch.open();
    store.write("k", &1).unwrap();
    store.acquire_lock("k", &LockOptions::new()).unwrap();
    let verified = output(&mut scratch.cli("verify", &[]));
    assert_code(&verified, 0);
    let said = String::from_utf8(verified.stdout).unwrap();
    assert!(
        said.ends_with(" 1 records and 1 locks among them: 0 damaged, 0 strange, 0 left over\n"),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn each_finding_is_a_line() {
    let scratch = Scratch::new();
    scratch.open();
    fs::write(scratch.store().join("notes\u{1b}"), "").unwrap();
    fs::write(scratch.store().join(".store/owners/1-dead"), "").unwrap();
    // Neither is any reason to worry.
    let said = output(&mut scratch.cli("verify", &[]));
    assert_code(&said, 0);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.contains("strange: not a file of the store (") && said.contains("notes\\u{1b})\n"),
        "{said}"
    );
    assert!(said.contains("leftover: left by a process that is gone ("), "{said}");

    fs::write(scratch.store().join("bad.json"), "{").unwrap();
    let said = output(&mut scratch.cli("verify", &[]));
    assert_code(&said, 65);
    assert_eq!(said.stderr, b"");
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains("damage: verify \"bad\": corrupt record: not a JSON record ("), "{said}");
    assert!(said.ends_with(": 1 damaged, 1 strange, 1 left over\n"), "{said}");

    let said = output(&mut scratch.cli("verify", &["--json"]));
    assert_code(&said, 65);
    let said = String::from_utf8(said.stdout).unwrap();
    let lines: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, findings) = lines.split_last().unwrap();
    let kinds: Vec<&str> = findings.iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    for kind in ["damage", "strange", "leftover"] {
        assert_eq!(summary[kind], 1, "{said}");
        assert!(kinds.contains(&kind), "{said}");
    }
    let damage = findings.iter().find(|finding| finding["kind"] == "damage").unwrap();
    assert!(damage["path"].as_str().unwrap().ends_with("/bad.json"), "{said}");
    assert!(damage["cause"].as_str().unwrap().contains("corrupt record"), "{said}");
    assert_eq!((&summary["records"], &summary["unchecked"]), (&1.into(), &0.into()));
}

#[test]
fn every_shell_is_told_every_task() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let printed = output(Command::new(env!("CARGO_BIN_EXE_record-store")).args(["completions", shell]));
        assert_code(&printed, 0);
        let script = String::from_utf8(printed.stdout).unwrap();
        assert!(script.contains("locks") && script.contains("keep-going"), "{shell}: {script}");
    }
    if let Ok(mut bash) = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn() {
        let script = output(Command::new(env!("CARGO_BIN_EXE_record-store")).args(["completions", "bash"]));
        bash.stdin.take().unwrap().write_all(&script.stdout).unwrap();
        assert!(bash.wait().unwrap().success());
    }
    assert_code(&output(Command::new(env!("CARGO_BIN_EXE_record-store")).args(["completions", "ed"])), 2);
}
