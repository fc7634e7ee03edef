//! `ls` and `locks`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};

use record_store::{Durability, FileSystemOptions, Holder, LockOptions, RecordStoreExt};
use serde_json::Value;

use super::*;

fn lines(output: &Output) -> BTreeSet<String> {
    String::from_utf8(output.stdout.clone()).unwrap().lines().map(String::from).collect()
}

#[test]
fn keys_are_printed_one_per_line() {
    let scratch = Scratch::new();
    let keys = ["plain", "a/b", "with\ttab", "größe", "two\nlines"];
    for key in keys {
        scratch.open().write(key, &1).unwrap();
    }
    let plain = output(&mut scratch.cli("ls", &[]));
    assert_code(&plain, 0);
    assert_eq!(lines(&plain), keys.iter().flat_map(|key| key.lines()).map(String::from).collect());
    let json = output(&mut scratch.cli("ls", &["--json"]));
    assert_code(&json, 0);
    let decoded: BTreeSet<String> =
        lines(&json).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(decoded, keys.map(String::from).into());
}

#[test]
fn a_reader_may_stop_after_the_first_key() {
    let scratch = Scratch::new();
    let store = FileSystemOptions::new().durability(Durability::Relaxed).open(scratch.store()).unwrap();
    // More than a pipe buffer holds.
    for number in 0..1500 {
        store.write(format!("{number:0>150}"), &number).unwrap();
    }
    for arguments in [&[][..], &["--json"]] {
        let mut ls = Background::start(&mut scratch.cli("ls", arguments));
        let mut first = String::new();
        BufReader::new(ls.child().stdout.take().unwrap()).read_line(&mut first).unwrap();
        assert!(first.trim_end().len() >= 150, "{first}");
        let ended = ls.output();
        assert_code(&ended, 0);
        assert_eq!(ended.stderr, b"");
    }
}

#[test]
fn a_corrupt_record_does_not_end_the_list() {
    let scratch = Scratch::new();
    let long = "x".repeat(300);
    for key in ["first", "second", &long] {
        scratch.open().write(key, &1).unwrap();
    }
    // A key this long is stored only inside the file, not in its name.
    let path = scratch.store().join(format!("{}.json", record_store::Key::new(&*long).unwrap().file_stem()));
    fs::write(path, "{}").unwrap();
    let listed = output(&mut scratch.cli("ls", &[]));
    assert_code(&listed, 65);
    assert_eq!(lines(&listed), ["first", "second"].map(String::from).into());
    assert!(String::from_utf8_lossy(&listed.stderr).starts_with("record-store: keys: corrupt record"));
}

/// A store with four locks: `held` has no lease, `leased` has a lease of one hour, the lease of
/// `late` has expired, and the holder of `left` is dead.
fn store_with_locks(scratch: &Scratch) -> FileSystemRecordStore {
    let store = scratch.open();
    let named = || LockOptions::new().holder(Holder::named("night job").unwrap());
    store.acquire_lock("held", LockOptions::new()).unwrap();
    store.acquire_lock("leased", named().hold_timeout(Duration::from_hours(1))).unwrap();
    store.acquire_lock("late", named().hold_timeout(Duration::ZERO)).unwrap();
    let killed = output(&mut scratch.run(&["left"], "kill -9 $PPID"));
    assert_eq!(killed.status.code(), None);
    wait_for("the owner of \"left\" to end", || !store.is_locked("left").unwrap());
    store
}

#[test]
fn locks_are_printed_as_a_table() {
    let scratch = Scratch::new();
    store_with_locks(&scratch);
    let listed = output(&mut scratch.cli("locks", &[]));
    assert_code(&listed, 0);
    let text = String::from_utf8(listed.stdout).unwrap();
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0][..3], ["KEY", "STATE", "OWNER"], "{text}");
    let first_words: Vec<String> = rows[1..].iter().map(|row| row[..3].join(" ")).collect();
    assert_eq!(
        first_words,
        ["held held alive", "late expired alive", "leased held alive", "left abandoned gone"],
        "{text}"
    );
    // The columns are aligned.
    let at = text.find("HOLDER").unwrap();
    let starts: BTreeSet<&str> = text.lines().skip(1).map(|line| &line[at - 2..at]).collect();
    assert_eq!(starts, BTreeSet::from(["  "]), "{text}");
    assert!(text.lines().nth(1).unwrap().contains("  none  "), "{text}");
}

#[test]
fn the_table_is_aligned_whatever_the_keys_are() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let holder = || LockOptions::new().holder(Holder::named("night\u{202e}job").unwrap());
    for key in ["plain", "表表表🦀", "gro\u{308}ße", "a\u{202e}b", "zero\u{200b}width", "\u{301}"] {
        store.acquire_lock(key, holder()).unwrap();
    }
    let listed = output(&mut scratch.cli("locks", &[]));
    assert_code(&listed, 0);
    let text = String::from_utf8(listed.stdout).unwrap();
    let shown = ["plain", "表表表🦀", "gro\u{308}ße", "a\\u{202e}b", "zero\\u{200b}width", "\\u{301}"];
    for key in shown {
        assert!(text.lines().any(|line| line.starts_with(&format!("{key}  "))), "{text}");
    }
    // A wide character uses two columns, a combining mark none.
    let column = |line: &str, word: &str| {
        let before = &line[..line.find(word).unwrap()];
        let width = |char: char| match char {
            '\u{308}' => 0,
            '表' | '🦀' => 2,
            _ => 1,
        };
        before.chars().map(width).sum::<usize>()
    };
    let holders: BTreeSet<usize> =
        text.lines().skip(1).map(|line| column(line, "night\\u{202e}job")).collect();
    assert_eq!(holders, BTreeSet::from([column(text.lines().next().unwrap(), "HOLDER")]), "{text}");
}

#[test]
fn without_locks_nothing_is_printed() {
    let scratch = Scratch::new();
    scratch.open();
    for arguments in [&[][..], &["--json"]] {
        assert_prints(&output(&mut scratch.cli("locks", arguments)), "");
    }
}

#[test]
fn locks_are_printed_as_json_on_request() {
    let scratch = Scratch::new();
    let store = store_with_locks(&scratch);
    let listed = output(&mut scratch.cli("locks", &["--json"]));
    assert_code(&listed, 0);
    let locks: Vec<Value> = lines(&listed).iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lock = |key: &str| locks.iter().find(|lock| lock["key"] == key).unwrap();
    assert_eq!(locks.len(), 4);

    let info = store.lock_info("held").unwrap().unwrap();
    let held = lock("held");
    assert_eq!(held["holder"], info.holder().name());
    assert_eq!(held["token"], info.token().get());
    assert_eq!((&held["state"], &held["process_bound"]), (&"held".into(), &true.into()));
    assert_eq!((&held["expires_at"], &held["remaining_seconds"]), (&Value::Null, &Value::Null));

    let leased = lock("leased");
    assert_eq!((&leased["holder"], &leased["process_bound"]), (&"night job".into(), &false.into()));
    let time = |name: &str| humantime::parse_rfc3339(leased[name].as_str().unwrap()).unwrap();
    assert_eq!(time("expires_at").duration_since(time("acquired_at")).unwrap(), Duration::from_hours(1));
    let remaining = leased["remaining_seconds"].as_f64().unwrap();
    assert!((1.0..=3600.0).contains(&remaining), "{remaining}");

    assert_eq!(lock("late")["state"], "expired");
    assert_eq!((&lock("left")["state"], &lock("left")["owner_alive"]), (&"abandoned".into(), &false.into()));
}

#[test]
fn a_corrupt_lock_does_not_end_the_list() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("good", LockOptions::new()).unwrap();
    fs::write(scratch.store().join("bad.lock"), "not a lock").unwrap();
    let listed = output(&mut scratch.cli("locks", &[]));
    assert_code(&listed, 65);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("good"));
    assert!(String::from_utf8_lossy(&listed.stderr).contains("bad.lock"));
}

#[test]
fn a_lock_tells_what_its_holder_does() {
    let scratch = Scratch::new();
    let gate = scratch.gate("go");
    let shown = |key: &str| {
        let table = output(&mut scratch.cli("locks", &[]));
        let lines = output(&mut scratch.cli("locks", &["--json"]));
        let stat = output(&mut scratch.cli("stat", &[key]));
        [table, lines, stat].map(|output| String::from_utf8(output.stdout).unwrap())
    };
    for (subcommand, given, note) in [
        ("lock", &[][..], "sh"),
        ("lock", &["--note", "backs \u{1b}[2Jup"], "backs \\u{1b}[2Jup"),
        ("run", &["--text", "--refresh"], "sh"),
        ("run", &["--text", "--refresh", "--note", "renders"], "renders"),
    ] {
        let mut command = scratch.cli(subcommand, &["k"]);
        command.args(given).args(["--", "sh", "-c", &format!("echo > begun; {gate} true")]);
        let command = Background::start(&mut command);
        scratch.wait_for_file("begun");
        let [table, lines, stat] = shown("k");
        assert!(table.trim_end().ends_with(&format!(" ({note})")), "{table}");
        assert!(stat.contains(&format!("note:     {note}\n")), "{stat}");
        let lock: serde_json::Value = serde_json::from_str(&lines).unwrap();
        assert_eq!(lock["note"].as_str().unwrap().escape_debug().to_string(), note);
        let message = assert_fails(&output(&mut scratch.cli("unlock", &["k"])), 2);
        assert!(message.contains("is locked by"), "{message}");
        scratch.touch("go");
        assert_code(&command.output(), 0);
        for name in ["go", "begun"] {
            fs::remove_file(scratch.path(name)).unwrap();
        }
    }
    let store = scratch.open();
    let _guard = store.lock("k", LockOptions::new()).unwrap();
    let [table, lines, stat] = shown("k");
    assert!(
        lines.contains("\"note\":null") && !table.contains('(') && !stat.contains("note:"),
        "{table}{lines}{stat}"
    );
}
