//! Several records in one call of `get` and `rm`.

use std::io::Read;

use record_store::{LockOptions, RecordStoreExt};

use super::terminal::Terminal;
use super::*;

fn filled(keys: &[&str]) -> Scratch {
    let scratch = Scratch::new();
    let store = scratch.open();
    for (number, key) in keys.iter().enumerate() {
        store.write(*key, &number).unwrap();
    }
    scratch
}

fn keys(scratch: &Scratch) -> Vec<String> {
    let mut keys: Vec<_> =
        scratch.open().keys().unwrap().map(|key| key.unwrap().as_str().to_owned()).collect();
    keys.sort();
    keys
}

#[test]
fn get_prints_the_results_in_the_order_of_the_keys() {
    let scratch = filled(&["a", "b", "c"]);
    assert_prints(&output(&mut scratch.cli("get", &["c", "a", "b"])), "2\n0\n1\n");
    let lines = output(&mut scratch.cli("get", &["c", "a", "--json"]));
    let lines = String::from_utf8(lines.stdout).unwrap();
    assert!(lines.starts_with("{\"key\":\"c\",") && lines.contains("\n{\"key\":\"a\","), "{lines}");
}

#[test]
fn one_missing_record_keeps_the_others_from_nothing() {
    let scratch = filled(&["a", "b", "c"]);
    let got = output(&mut scratch.cli("get", &["a", "x", "b", "y"]));
    assert_code(&got, 1);
    assert_eq!(got.stdout, b"0\n1\n");
    let removed = output(&mut scratch.cli("rm", &["a", "x", "b", "y"]));
    assert_code(&removed, 1);
    for failed in [got, removed] {
        let messages = String::from_utf8(failed.stderr).unwrap();
        assert_eq!(messages.lines().count(), 2, "{messages}");
        assert!(messages.contains("no record \"x\"") && messages.contains("no record \"y\""), "{messages}");
    }
    assert_eq!(keys(&scratch), ["c"]);
}

#[test]
fn the_time_limit_is_that_of_the_whole_call() {
    let scratch = filled(&["a", "b", "c"]);
    let store = scratch.open();
    let _guards = ["a", "b"].map(|key| store.lock(key, LockOptions::new()).unwrap());
    let start = Instant::now();
    let removed = output(&mut scratch.cli("rm", &["a", "b", "c", "--wait", "300ms"]));
    assert_code(&removed, 75);
    assert!(start.elapsed() >= Duration::from_millis(300));
    assert_eq!(keys(&scratch), ["a", "b"]);
}

#[test]
fn a_result_is_printed_before_the_lock_of_the_next_record_is_waited_for() {
    let scratch = filled(&["a", "b"]);
    let store = scratch.open();
    let guard = store.lock("b", LockOptions::new()).unwrap();
    let mut get = Background::start(&mut scratch.cli("get", &["a", "b"]));
    let mut first = [0; 2];
    get.child().stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"0\n");
    guard.release().unwrap();
    assert_eq!(get.output().stdout, b"1\n");
}

#[test]
fn get_ends_when_nobody_reads_any_more() {
    let scratch = filled(&["a", "b"]);
    let store = scratch.open();
    let _guard = store.lock("b", LockOptions::new()).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // It does not wait for the second record.
    let ended = scratch.cli("get", &["a", "b"]).stdout(writer).status().unwrap();
    assert!(ended.success(), "{ended:?}");
}

#[test]
fn rm_removes_all_records_of_a_prefix_and_no_others() {
    let scratch = filled(&["report/1", "report/2", "reports", "other"]);
    assert_prints(&output(&mut scratch.cli("rm", &["--prefix", "report/"])), "");
    assert_eq!(keys(&scratch), ["other", "reports"]);
    let none = assert_fails(&output(&mut scratch.cli("rm", &["--prefix", "report/"])), 1);
    assert!(none.contains("no record whose key begins with \"report/\""), "{none}");
    assert_eq!(keys(&scratch), ["other", "reports"]);
}

#[test]
fn what_could_remove_more_than_was_meant_is_refused() {
    let scratch = filled(&["a", "b"]);
    let message = |arguments: &[&str]| {
        let refused = output(&mut scratch.cli("rm", arguments));
        assert_code(&refused, 2);
        String::from_utf8(refused.stderr).unwrap()
    };
    // As by a variable that is not set.
    assert!(message(&["--prefix", ""]).contains("--prefix"));
    assert!(message(&["a", "--prefix", "b"]).contains("keys or --prefix"));
    assert!(message(&["a", "--force"]).contains("--prefix"));
    assert!(message(&["--prefix", "a", "--token", "1"]).contains("one key"));
    assert!(message(&["a", "b", "--token", "1"]).contains("one key"));
    assert_eq!(keys(&scratch), ["a", "b"]);
}

#[test]
fn on_a_terminal_the_user_is_asked_before_a_prefix_is_removed() {
    let scratch = filled(&["a1", "a2", "b1"]);
    for (answer, code) in [("n\n", 75), ("\x04", 75), ("y\n", 0)] {
        let mut terminal = Terminal::start(&scratch.cli("rm", &["--prefix", "a"]));
        terminal.wait_until("the question", |raw| {
            raw.ends_with("Remove 2 records whose keys begin with \"a\"? [y/N] ")
        });
        assert_eq!(keys(&scratch).len(), 3);
        terminal.type_in(answer);
        let (status, raw) = terminal.end();
        assert_eq!(status.code(), Some(code), "{answer:?}: {raw}");
        assert_eq!(keys(&scratch).len(), if code == 0 { 1 } else { 3 });
    }
    let (status, raw) = Terminal::start(&scratch.cli("rm", &["--prefix", "b", "--force"])).end();
    assert!(status.success() && raw.is_empty(), "{raw:?}");
    assert!(keys(&scratch).is_empty());
}

#[test]
fn the_number_of_arguments_says_whether_the_store_is_among_several_keys() {
    let scratch = filled(&["a", "b"]);
    let bare = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        command.args(arguments).current_dir(scratch.0.path()).stdin(Stdio::null());
        command.env("RECORD_STORE_DIR", "store");
        command
    };
    for arguments in [
        &["get", "store", "a", "b"][..],
        &["get", "--dir", "store", "a", "b"],
        &["get", "a", "-d", "store", "b"],
    ] {
        assert_prints(&output(&mut bare(arguments)), "0\n1\n");
    }
    assert_prints(&output(&mut bare(&["get", "a"])), "0\n");
    // The first of two arguments is a directory, whatever the variable says.
    assert_fails(&output(&mut bare(&["get", "a", "b"])), 1);
    assert_prints(&output(&mut bare(&["rm", "--prefix", "a"])), "");
    assert_eq!(keys(&scratch), ["b"]);
}
