//! The command line with the URL of a server in the place of a directory.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use record_store::{FileSystemRecordStore, Key, LockOptions, ReadOptions, RecordStoreExt, WriteOptions};
use serde_json::Value;

use super::server::Server;
use super::{new_url, open};
use crate::support::{PATIENCE, as_named};

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
    let verified = run(&["verify", &url], "");
    assert_eq!(
        verified,
        "2 rows checked (2 records, 0 locks, 0 waiters): 0 damaged, 0 foreign, 0 leftover\n"
    );
}

#[test]
fn records_are_described_on_a_server_as_in_a_directory() {
    let Some(url) = new_url() else { return };
    for (key, result) in
        [("report/large", "x".repeat(5000)), ("report/small", "y".into()), ("other", "z".into())]
    {
        run(&["put", &url, key, "--text"], &result);
    }
    run(&["put", &url, "other", "--ttl", "1h"], "123");
    let lines = |arguments: &[&str]| {
        run(&[&["ls", &url], arguments].concat(), "").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(lines(&["--sort", "time"]), ["report/large", "report/small", "other"]);
    assert_eq!(lines(&["--sort", "size", "--prefix", "report/"]), ["report/small", "report/large"]);
    let table = lines(&["--long"]);
    assert!(table[0].starts_with("SIZE") && table[1].ends_with("other"), "{table:?}");
    assert!(table[1].starts_with("3 ") && table[1].contains("59m"), "{table:?}");
    assert!(table[2].starts_with("5002 ") && table[2].contains("none"), "{table:?}");
    let store = open(&url);
    let guard = store.lock("other", as_named("job")).unwrap();
    let stat: Value = serde_json::from_str(&run(&["stat", &url, "other", "--json"], "")).unwrap();
    assert_eq!((&stat["record"]["size"], &stat["lock"]["holder"]), (&3.into(), &"job".into()));
    assert_eq!(stat["lock"]["token"], guard.token().get());
    let text = run(&["stat", &url, "other"], "");
    assert!(text.contains("size:     3 bytes\n") && text.contains("held by \"job\""), "{text}");
    assert_eq!(output(&mut cli(&["stat", &url, "absent"])).status.code(), Some(1));
}

#[test]
fn gc_keeps_a_cache_on_a_server_small() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    for number in 0..4 {
        store.write(format!("k{number}"), &"x".repeat(998)).unwrap();
    }
    let brief = WriteOptions::new().time_to_live(Duration::ZERO);
    store.write_with("brief", &1, brief).unwrap();
    let keys = || {
        let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
        keys.sort();
        keys
    };
    let limit = ["gc", &url, "--max-records", "3"];
    let dry = run(&[&limit[..], &["--dry-run"]].concat(), "");
    assert_eq!(dry, "1 record (1000 bytes) would be evicted, 3 records (2.9 KiB) left\n");
    assert_eq!(keys().len(), 4);
    // Not even what has expired is removed by a dry run.
    let guard = store.lock("k0", as_named("job")).unwrap();
    assert!(run(&["verify", &url], "").contains("leftover: an expired record"));
    let json: Value = serde_json::from_str(&run(&[&limit[..], &["--json"]].concat(), "")).unwrap();
    assert_eq!(
        (&json["records"], &json["evicted"]["records"], &json["evicted"]["kept"]),
        (&1.into(), &1.into(), &1.into())
    );
    assert_eq!(keys(), ["k0", "k2", "k3"]);
    guard.release().unwrap();
    let done = run(&["gc", &url, "--max-size", "2000"], "");
    assert_eq!(done.lines().last(), Some("1 record (1000 bytes) evicted, 2 records (1.9 KiB) left"));
    assert_eq!(keys(), ["k2", "k3"]);
    let refused = output(&mut cli(&["gc", &url, "--damaged"]));
    assert_eq!(refused.status.code(), Some(2));
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("on a server, nothing is moved aside; leave it out"), "{text}");
}

#[test]
fn verify_names_what_is_wrong_on_a_server() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    for key in ["good", "bad"] {
        store.write(key, &1).unwrap();
    }
    store.acquire_lock("late", as_named("job").hold_timeout(Duration::ZERO)).unwrap();
    let schema = store.schema();
    Server::shared().unwrap().sql(&format!(
        "UPDATE {schema}.records SET result = '{{' WHERE key = 'bad'; CREATE TABLE {schema}.notes ()"
    ));
    let verified = output(&mut cli(&["verify", &url]));
    assert_eq!((verified.status.code(), &*verified.stderr), (Some(65), &b""[..]));
    let text = String::from_utf8(verified.stdout).unwrap();
    assert!(text.contains("damage: verify \"bad\": corrupt record: not a JSON value ("), "{text}");
    assert!(text.contains("; replace the record with put, or remove it with rm"), "{text}");
    assert!(text.contains(&format!("foreign: not a table of the store ({schema}.notes)\n")), "{text}");
    let stale = format!("leftover: stale lock: its lease has expired ({schema}.locks \"late\")\n");
    assert!(text.contains(&stale), "{text}");
    let last = "3 rows checked (2 records, 1 lock, 0 waiters): 1 damaged, 1 foreign, 1 leftover";
    assert_eq!(text.lines().last(), Some(last));
    let verified = output(&mut cli(&["verify", &url, "--json"]));
    assert_eq!(verified.status.code(), Some(65));
    let text = String::from_utf8(verified.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (summary, findings) = lines.split_last().unwrap();
    assert_eq!(
        (&summary["rows"], &summary["damage"], &summary["unchecked"]),
        (&3.into(), &1.into(), &0.into())
    );
    let damage = findings.iter().find(|finding| finding["kind"] == "damage").unwrap();
    assert_eq!(damage["path"], format!("{schema}.records \"bad\""));
    // Its advice works.
    run(&["put", &url, "bad"], "2");
    run(&["gc", &url], "");
    assert!(run(&["verify", &url], "").ends_with(": 0 damaged, 1 foreign, 0 leftover\n"));
}

#[test]
fn watch_prints_the_changes_on_a_server() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    store.write("old", &1).unwrap();
    let held = store.lock("held", as_named("night\njob")).unwrap();
    let mut watch = cli(&["watch", &url, "--interval", "50ms"]).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, lines) = std::sync::mpsc::channel();
    let printed = BufReader::new(watch.stdout.take().unwrap());
    std::thread::spawn(move || printed.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let expect = |change: &str, key: &str, detail: &str| {
        let line = lines.recv_timeout(PATIENCE).unwrap();
        let (_, rest) = line.split_once('\t').unwrap();
        assert_eq!(rest, format!("{change}\t{key}\t{detail}").trim_end());
    };
    expect("locked", "held", "night\\njob");
    held.write("ab").unwrap();
    expect("written", "held", "4 bytes");
    // The same result again is another version.
    held.write("ab").unwrap();
    expect("written", "held", "4 bytes");
    held.release().unwrap();
    expect("released", "held", "night\\njob");
    store.remove("old").unwrap();
    expect("removed", "old", "");
    store.acquire_lock("late", as_named("job").hold_timeout(Duration::from_secs(1))).unwrap();
    expect("locked", "late", "job");
    expect("expired", "late", "job");
    let mut left = cli(&["lock", &url, "left", "--note", "dies", "--", "sh", "-c", "kill -9 $PPID; sleep 1"]);
    left.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap().wait().unwrap();
    store.wait_for_lock("left", PATIENCE).unwrap();
    // Between two looks, it may have been there or not.
    store.write("last", &1).unwrap();
    let mut line = lines.recv_timeout(PATIENCE).unwrap();
    if line.contains("\tlocked\tleft\t") {
        line = lines.recv_timeout(PATIENCE).unwrap();
        assert!(line.contains("\tabandoned\tleft\t"), "{line}");
        line = lines.recv_timeout(PATIENCE).unwrap();
    }
    assert!(line.ends_with("\twritten\tlast\t1 bytes"), "{line}");
    watch.kill().unwrap();
    watch.wait().unwrap();
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
