//! No command waits without bound for a process that is stopped in the middle of an operation, or for a lock.

use std::os::unix::process::ExitStatusExt;

use record_store::{Holder, LockOptions, RecordStoreExt, WriteOptions};

use super::*;

const STOPPED: &str =
    "record-store: waiting for \"k\": another process is stopped in the middle of an operation";

fn job() -> LockOptions {
    LockOptions::new().holder(Holder::named("night job").unwrap())
}

#[test]
fn commands_give_up_on_a_process_that_is_stopped_in_an_operation() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("k", &1).unwrap();
    store.acquire_lock("k", job()).unwrap();
    fs::write(scratch.path("lines"), "{\"key\":\"k\",\"result\":2}\n").unwrap();
    let _stopped = scratch.enter_latch("k");
    let start = Instant::now();
    // All at the same time.
    let commands = [
        ("put", vec!["k", "--text"], true),
        ("rm", vec!["k"], true),
        ("unlock", vec!["k", "--force"], true),
        ("unlock", vec!["k", "--force", "--wait", "0"], false),
        ("import", vec!["lines", "--existing", "overwrite", "--wait", "0"], false),
        ("run", vec!["k", "--refresh", "--wait", "10ms", "--", "echo", "3"], false),
    ]
    .map(|(subcommand, arguments, says_so)| {
        (subcommand, says_so, Background::start(&mut scratch.cli(subcommand, &arguments)))
    });
    for (subcommand, says_so, command) in commands {
        let ended = command.output();
        assert_code(&ended, 75);
        let message = String::from_utf8(ended.stderr).unwrap();
        let (remarks, failure): (Vec<_>, Vec<_>) = message.lines().partition(|line| *line == STOPPED);
        // The others give up before they would say whom they wait for.
        assert!(remarks.len() == usize::from(says_so), "{subcommand}: {message}");
        assert!(failure.len() == 1 && failure[0].contains("--wait"), "{subcommand}: {message}");
    }
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(
        fs::read_to_string(scratch.store().join("k.json")).unwrap().matches("\"result\":1").count(),
        1
    );
}

#[test]
fn import_waits_for_a_lock_but_gives_up_on_a_stopped_process() {
    let scratch = Scratch::new();
    scratch.open();
    fs::write(scratch.path("lines"), "{\"key\":\"k\",\"result\":2}\n").unwrap();
    let _stopped = scratch.enter_latch("k");
    let start = Instant::now();
    let import = output(&mut scratch.cli("import", &["lines"]));
    assert_code(&import, 75);
    let message = String::from_utf8(import.stderr).unwrap();
    let lines: Vec<_> = message.lines().collect();
    assert!(lines.len() == 2 && lines[0] == STOPPED && lines[1].contains("--wait"), "{message}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn gc_leaves_a_key_with_a_stopped_process_for_later() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let ended = || WriteOptions::new().time_to_live(Duration::ZERO);
    // Many keys, of which a part shares the latch.
    for number in 0..600 {
        store.write_with(format!("{number}"), &1, ended()).unwrap();
    }
    store.write_with("k", &1, ended()).unwrap();
    store.acquire_lock("k", job().hold_timeout(Duration::ZERO)).unwrap();
    let stopped = scratch.enter_latch("k");
    let removed = output(&mut scratch.cli("gc", &["--json"]));
    assert_code(&removed, 0);
    let removed: serde_json::Value = serde_json::from_slice(&removed.stdout).unwrap();
    assert_eq!(removed["locks"], 0);
    let records = removed["records"].as_u64().unwrap();
    assert!((500..600).contains(&records), "{records}");
    drop(stopped);
    let rest = format!("{{\"records\":{},\"locks\":1}}\n", 601 - records);
    assert_prints(&output(&mut scratch.cli("gc", &["--json"])), &rest);
}

#[test]
fn a_signal_ends_a_wait_for_a_stopped_process() {
    let scratch = Scratch::new();
    scratch.open().write("k", &1).unwrap();
    let _stopped = scratch.enter_latch("k");
    let forever = ["k", "--wait", "1h"];
    for subcommand in ["put", "rm"] {
        let mut command = Background::start(scratch.cli(subcommand, &forever).stdin(input("2")));
        scratch.wait_until_opened(&mut command);
        command.signal(Signal::INT);
        assert_eq!(command.output().status.signal(), Some(2), "{subcommand}");
    }
}

/// A standard input with this content.
fn input(text: &str) -> std::io::PipeReader {
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(text.as_bytes()).unwrap();
    reader
}

#[test]
fn put_and_rm_wait_for_a_lock_on_request() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for (subcommand, left) in [("put", Some(2)), ("rm", None)] {
        let guard = store.lock("k", job()).unwrap();
        guard.write(&1).unwrap();
        let start = |wait: &str| {
            let mut command = scratch.cli(subcommand, &["k", "--wait", wait]);
            Background::start(command.stdin(input("2")))
        };
        let begun = Instant::now();
        let message = assert_fails(&start("30ms").output(), 75);
        assert!(begun.elapsed() >= Duration::from_millis(30));
        assert!(message.contains("night job") && message.contains("--wait"), "{message}");
        let mut waiter = start("50s");
        scratch.wait_until_opened(&mut waiter);
        guard.release().unwrap();
        assert_prints(&waiter.output(), "");
        assert_eq!(store.read::<u8>("k").unwrap().map(|record| record.result), left);
    }
}
