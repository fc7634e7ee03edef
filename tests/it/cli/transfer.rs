//! `export` and `import`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use record_store::{Holder, Json, LockOptions, RecordStoreExt};

use super::terminal::Terminal;
use super::*;

/// Keys and results that are hard to transfer without loss.
fn hard_records() -> BTreeMap<String, String> {
    let results = ["null", "12345678901234567890.10", "\"a\\nb\\u2028\\ud800\"", "[ 1,  2 ]", "{\"a\": {}}"];
    let long = "x/".repeat(400);
    let keys = ["plain", "two\nlines", "größe \u{1F600}", "..", &long];
    keys.map(String::from).into_iter().zip(results.map(String::from)).collect()
}

fn put(scratch: &Scratch, records: &BTreeMap<String, String>) {
    let store = scratch.open();
    for (key, result) in records {
        store.write(key.as_str(), &json(result)).unwrap();
    }
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

fn records_of(scratch: &Scratch) -> BTreeMap<String, String> {
    let store = scratch.open();
    let key_and_result = |key: record_store::Key| {
        let result = store.read::<Json>(&key).unwrap().unwrap().result;
        (key.as_str().to_owned(), result.as_str().to_owned())
    };
    store.keys().unwrap().map(|key| key_and_result(key.unwrap())).collect()
}

fn job() -> LockOptions {
    LockOptions::new().holder(Holder::named("night job").unwrap())
}

fn sorted_names(scratch: &Scratch) -> Vec<String> {
    let mut names = crate::support::names_in(scratch.0.path());
    names.sort();
    names
}

#[test]
fn importing_an_export_copies_the_store() {
    let (from, to) = (Scratch::new(), Scratch::new());
    put(&from, &hard_records());
    let exported = output(&mut from.cli("export", &[]));
    assert_code(&exported, 0);
    assert_eq!(exported.stdout.split(|byte| *byte == b'\n').count(), hard_records().len() + 1);
    assert_prints(&feed(&mut to.cli("import", &["--relaxed"]), &exported.stdout), "");
    assert_eq!(records_of(&to), hard_records());
    // Again with files instead of the standard streams.
    let file = from.path("all.jsonl");
    let file = file.to_str().unwrap();
    assert_prints(&output(&mut from.cli("export", &[file])), "");
    assert_eq!(fs::read(file).unwrap(), exported.stdout);
    assert_prints(&output(&mut to.cli("import", &[file, "--existing", "overwrite"])), "");
    assert_eq!(records_of(&to), hard_records());
}

#[test]
fn a_result_of_several_lines_is_exported_on_one_line() {
    let scratch = Scratch::new();
    scratch.open().write("k", &json("{\r\n \"a\":\n \"x\\ny\"}")).unwrap();
    let line = "{\"key\":\"k\",\"result\":{   \"a\":  \"x\\ny\"}}\n";
    assert_prints(&output(&mut scratch.cli("export", &[])), line);
}

#[test]
fn an_empty_store_is_copied_too() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.cli("export", &["file"])), 1);
    assert!(!entry_exists(&scratch.store()) && !entry_exists(&scratch.path("file")));
    assert_prints(&feed(&mut scratch.cli("import", &["-"]), b""), "");
    assert_prints(&output(&mut scratch.cli("export", &["-"])), "");
}

#[test]
fn an_export_that_meets_a_corrupt_record_keeps_the_old_file() {
    let scratch = Scratch::new();
    put(&scratch, &hard_records());
    fs::write(scratch.path("file"), "old").unwrap();
    fs::write(scratch.store().join("bad.json"), "{}").unwrap();
    let message = assert_fails(&output(&mut scratch.cli("export", &["file"])), 65);
    assert!(message.contains("bad.json"), "{message}");
    assert_eq!(fs::read(scratch.path("file")).unwrap(), b"old");
    assert_eq!(sorted_names(&scratch), ["file", "store"]);

    let message = assert_fails(&output(&mut scratch.cli("export", &["file", "--keep-going"])), 65);
    assert!(message.contains("bad.json"), "{message}");
    assert_eq!(fs::read_to_string(scratch.path("file")).unwrap().lines().count(), hard_records().len());
}

#[test]
fn an_export_waits_for_locks_and_leaves_no_file_after_a_signal() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = store.lock("k", job()).unwrap();
    guard.write(&1).unwrap();
    let message = assert_fails(&output(&mut scratch.cli("export", &["--wait", "0s"])), 75);
    assert!(message.contains("night job"), "{message}");

    let mut waiter = Background::start(&mut scratch.cli("export", &["file"]));
    wait_for("the new file", || sorted_names(&scratch).len() == 2);
    assert!(!entry_exists(&scratch.path("file")));
    waiter.signal(Signal::TERM);
    assert_code(&waiter.output(), 128 + 15);
    assert_eq!(sorted_names(&scratch), ["store"]);

    let waiter = Background::start(&mut scratch.cli("export", &[]));
    guard.write(&2).unwrap();
    guard.release().unwrap();
    assert_prints(&waiter.output(), "{\"key\":\"k\",\"result\":2}\n");
}

#[test]
fn an_export_keeps_modes_links_and_devices() {
    let scratch = Scratch::new();
    scratch.open().write("k", &1).unwrap();
    let line = "{\"key\":\"k\",\"result\":1}\n";
    let read = |name: &str| fs::read_to_string(scratch.path(name)).unwrap();
    let mode = |name: &str| scratch.path(name).metadata().unwrap().permissions().mode() & 0o777;
    // A new file has the default mode.
    scratch.touch("other");
    assert_prints(&output(&mut scratch.cli("export", &["new"])), "");
    assert_eq!((read("new").as_str(), mode("new")), (line, mode("other")));

    fs::set_permissions(scratch.path("other"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::symlink("other", scratch.path("link")).unwrap();
    assert_prints(&output(&mut scratch.cli("export", &["link"])), "");
    assert_eq!((read("other").as_str(), mode("other")), (line, 0o600));
    assert!(scratch.path("link").is_symlink());

    // A target that is not a regular file is written to and not replaced.
    assert_prints(&output(&mut scratch.cli("export", &["/dev/stdout"])), line);
    let full = output(&mut scratch.cli("export", &["/dev/full"]));
    assert!(assert_fails(&full, 74).contains("/dev/full"));
    assert_fails(&output(&mut scratch.cli("export", &["store"])), 74);
}

#[test]
fn an_import_reports_the_number_of_a_bad_line() {
    let scratch = Scratch::new();
    for (bad, word) in [
        (&b"{\"key\":\"b\"}"[..], "missing field `result`"),
        (b"{\"key\":\"\",\"result\":1}", "empty"),
        (b"{\"key\":\"b\",\"result\":", "EOF"),
        (b"{\"key\":\"b\",\"result\":1} 2", "at column 24"),
        (b"\xff", "not a record"),
    ] {
        assert_fails(&feed(&mut scratch.cli("import", &[]), bad), 65);
        assert!(!entry_exists(&scratch.store()));
        let lines =
            [b"{\"key\":\"a\",\"result\":1}\r\n\n", bad, b"\n{\"result\":3,\"key\":\"c\",\"more\":0}"]
                .concat();
        let message = assert_fails(&feed(&mut scratch.cli("import", &[]), &lines), 65);
        assert!(
            message.contains("standard input line 3: not a record: ") && message.contains(word),
            "{message}"
        );
        assert_eq!(records_of(&scratch), BTreeMap::from([("a".into(), "1".into())]));

        fs::write(scratch.path("file"), lines).unwrap();
        let arguments = ["file", "--keep-going", "--existing", "skip"];
        let message = assert_fails(&output(&mut scratch.cli("import", &arguments)), 65);
        assert!(message.contains("file line 3: not a record: "), "{message}");
        assert_eq!(records_of(&scratch).len(), 2);
        fs::remove_dir_all(scratch.store()).unwrap();
    }
    assert_fails(&output(&mut scratch.cli("import", &["none"])), 74);
}

#[test]
fn existing_records_are_refused_skipped_or_overwritten_as_requested() {
    let scratch = Scratch::new();
    scratch.open().write("a", &0).unwrap();
    let lines = b"{\"key\":\"a\",\"result\":1}\n{\"key\":\"b\",\"result\":2}\n";
    let assert_results = |a: &str, b: Option<&str>| {
        let wanted = [("a", Some(a)), ("b", b)];
        let wanted = wanted.into_iter().filter_map(|(key, result)| Some((key.into(), result?.into())));
        assert_eq!(records_of(&scratch), wanted.collect());
    };
    let message = assert_fails(&feed(&mut scratch.cli("import", &[]), lines), 73);
    assert!(
        message.contains("line 1: \"a\" already has a record") && message.contains("--existing"),
        "{message}"
    );
    assert_results("0", None);
    assert_fails(&feed(&mut scratch.cli("import", &["--keep-going"]), lines), 73);
    assert_results("0", Some("2"));
    assert_prints(&feed(&mut scratch.cli("import", &["--existing", "skip"]), lines), "");
    assert_results("0", Some("2"));
    assert_prints(&feed(&mut scratch.cli("import", &["--existing", "overwrite"]), lines), "");
    assert_results("1", Some("2"));
}

#[test]
fn a_locked_record_is_not_imported() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = store.lock("a", job()).unwrap();
    let lines = b"{\"key\":\"a\",\"result\":1}\n{\"key\":\"b\",\"result\":2}\n";
    for existing in ["fail", "skip", "overwrite"] {
        let arguments = ["--keep-going", "--existing", existing, "--wait", "0"];
        let output = feed(&mut scratch.cli("import", &arguments), lines);
        assert_code(&output, 75);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("line 1: ") && message.contains("night job"), "{message}");
    }
    assert!(!store.exists("a").unwrap() && store.exists("b").unwrap());

    fs::write(scratch.path("file"), lines).unwrap();
    let arguments = ["file", "--wait", "50s", "--existing", "overwrite"];
    let mut waiter = Background::start(&mut scratch.cli("import", &arguments));
    scratch.wait_until_opened(&mut waiter);
    guard.release().unwrap();
    assert_prints(&waiter.output(), "");
    assert_eq!(records_of(&scratch).len(), 2);
}

/// The output of a long import on a terminal with so many columns.
fn progress_of_a_long_import(columns: u16) -> Vec<String> {
    let scratch = Scratch::new();
    let done = AtomicBool::new(false);
    let fifo = scratch.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut lines = fs::File::options().write(true).open(&fifo).unwrap();
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                number += 1;
                writeln!(lines, "{{\"key\":\"{}\",\"result\":1}}", number % 100).unwrap();
            }
        });
        let arguments = ["fifo", "--relaxed", "--existing", "overwrite"];
        let mut terminal = Terminal::start(&scratch.cli("import", &arguments));
        terminal.resize(24, columns);
        terminal.wait_until("the progress", |raw| raw.contains(" rec") && raw.contains("\x1b[K"));
        done.store(true, Ordering::Relaxed);
        let (status, raw) = terminal.end();
        assert!(status.success());
        assert!(raw.ends_with("\r\x1b[K"), "{raw:?}");
        raw.split("\x1b[K").map(|line| line.trim_start_matches('\r').to_owned()).collect()
    })
}

#[test]
fn a_long_import_shows_its_progress() {
    let drawn = progress_of_a_long_import(80);
    assert!(drawn[0].contains(" records, ") && drawn[0].ends_with("/s"), "{drawn:?}");
}

#[test]
fn the_progress_fits_on_a_narrow_terminal() {
    let drawn = progress_of_a_long_import(12);
    assert!(drawn[0].contains(" rec") && drawn[0].ends_with('…'), "{drawn:?}");
    assert!(drawn.iter().all(|line| line.chars().count() < 12), "{drawn:?}");
}
