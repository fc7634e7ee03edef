//! The command line with the URL of a server in the place of a directory.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use record_store::{FileSystemRecordStore, Key, LockOptions, ReadOptions, RecordStoreExt};

use super::{new_url, open};
use crate::support::as_named;

fn cli(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap()
}

/// Runs it with this input, and returns what it printed.
fn run(arguments: &[&str], input: &str) -> String {
    use std::io::Write as _;
    let mut command = cli(arguments);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_subcommand_takes_a_url() {
    let Some(url) = new_url() else { return };
    run(&["put", &url, "k"], "{\"total\": 1.50}");
    assert_eq!(run(&["get", &url, "k"], ""), "{\"total\": 1.50}\n");
    run(&["put", &url, "brief", "--ttl", "1h"], "1");
    assert_eq!(run(&["ls", &url], "").lines().count(), 2);
    let first = run(&["run", &url, "computed", "--", "sh", "-c", "date +%s%N"], "");
    assert_eq!(run(&["run", &url, "computed", "--", "sh", "-c", "exit 1"], ""), first);
    run(&["rm", &url, "k"], "");
    assert_eq!(output(&mut cli(&["get", &url, "k"])).status.code(), Some(1));
    let store = open(&url);
    store.acquire_lock("locked", as_named("job")).unwrap();
    assert!(run(&["locks", &url, "--json"], "").contains("\"holder\":\"job\""));
    let refused = output(cli(&["put", &url, "locked"]).stdin(Stdio::null()));
    assert_ne!(refused.status.code(), Some(0));
    run(&["unlock", &url, "locked", "--force"], "");
    assert!(!store.is_locked("locked").unwrap());
    store.acquire_lock("stale", as_named("job").hold_timeout(Duration::ZERO)).unwrap();
    assert!(run(&["gc", &url], "").contains("1 lock removed"));
    for task in ["verify", "watch"] {
        let refused = output(&mut cli(&[task, &url]));
        assert_eq!(refused.status.code(), Some(2), "{task}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("the files of a directory"), "{task}");
    }
}

#[test]
fn a_missing_store_or_server_is_an_error_without_the_password() {
    let Some(url) = new_url() else { return };
    let missing = output(&mut cli(&["ls", &url]));
    assert_eq!(missing.status.code(), Some(1), "{}", String::from_utf8_lossy(&missing.stderr));
    let secret = url.replace("postgres@", "postgres:s3cr3t@").replace("/postgres?", "/nowhere?");
    let refused = output(&mut cli(&["put", &secret, "k"]));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && !text.contains("s3cr3t"), "{text}");
}

/// The records of a store: key, text, and roughly what is left of a time to live.
fn records(store: &dyn record_store::RecordStore) -> Vec<(String, String, Option<u64>)> {
    let mut records: Vec<_> = store
        .keys_raw()
        .unwrap()
        .map(|key| {
            let key: Key = key.unwrap();
            let record = store.read_raw(&key, ReadOptions::new()).unwrap().unwrap();
            let left = record.time_left.map(|left| left.as_secs().div_ceil(600));
            (key.as_str().to_owned(), record.json.as_str().to_owned(), left)
        })
        .collect();
    records.sort();
    records
}

#[test]
fn a_store_moves_to_a_server_and_back_with_its_times_to_live() {
    let Some(url) = new_url() else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (from, back) = (path("from"), path("back"));
    let files = FileSystemRecordStore::open(Path::new(&from)).unwrap();
    for number in 0..700 {
        files.write(format!("k{number}"), &[number, number + 1]).unwrap();
    }
    for (key, seconds) in [("hour", 3_600), ("day", 86_400)] {
        let options = record_store::WriteOptions::new().time_to_live(Duration::from_secs(seconds));
        files.write_with(key, "x\u{0}y", options).unwrap();
    }
    files.write_with("gone", &1, record_store::WriteOptions::new().time_to_live(Duration::ZERO)).unwrap();
    let lines = run(&["export", &from], "");
    run(&["import", &url], &lines);
    let store = open(&url);
    assert_eq!(records(&store), records(&files));
    assert_eq!(records(&store).len(), 702);
    let lines = run(&["export", &url], "");
    run(&["import", &back], &lines);
    assert_eq!(records(&FileSystemRecordStore::open(Path::new(&back)).unwrap()), records(&files));
    // A record that has expired between export and import is not imported.
    run(&["import", &url], "{\"key\":\"old\",\"expires_at\":\"2001-01-01T00:00:00Z\",\"result\":1}");
    assert!(!store.exists("old").unwrap());
    drop(store.lock("k0", LockOptions::new()).unwrap());
}

#[test]
fn the_command_of_lock_finds_a_url_without_its_password() {
    let Some(url) = new_url() else { return };
    let secret = url.replace("postgres@", "postgres:s3cr3t@");
    assert_ne!(secret, url);
    let program = env!("CARGO_BIN_EXE_record-store");
    let script = format!(
        "echo \"$RECORD_STORE_DIR $RECORD_STORE_KEY\"; echo 7 | {program} put k --token $RECORD_STORE_TOKEN;
        echo 8 | {program} put k --wait 0; exit 5"
    );
    let locked = |command: &mut Command| {
        let ended = output(command.env_remove("PGPASSWORD"));
        assert_eq!(ended.status.code(), Some(5), "{}", String::from_utf8_lossy(&ended.stderr));
        // The second one has no token, and would wait for its own lock.
        assert!(String::from_utf8_lossy(&ended.stderr).contains("runs under the lock of \"k\" itself"));
        String::from_utf8(ended.stdout).unwrap()
    };
    let command = ["k", "--", "sh", "-c", &script];
    let passed = locked(&mut cli(&[&["lock", &secret], &command[..]].concat()));
    assert_eq!(passed, format!("{url} k\n"));
    assert_eq!(run(&["get", &url, "k"], ""), "7\n");
    // It has the password already.
    let mut lock = cli(&[&["lock"], &command[..]].concat());
    assert_eq!(locked(lock.env("RECORD_STORE_DIR", &secret)), format!("{secret} k\n"));
    // Its token is worth nothing any more.
    assert_eq!(output(&mut cli(&["renew", &url, "k", "--token", "1"])).status.code(), Some(75));
}
