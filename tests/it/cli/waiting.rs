//! Whom a command waits for, and since when: on a terminal, and elsewhere.

use std::io::{BufRead, BufReader};

use record_store::{Holder, LockGuard, LockOptions, RecordStoreExt};

use super::terminal::Terminal;
use super::*;

fn as_named(name: &str) -> LockOptions {
    LockOptions::new().holder(Holder::named(name).unwrap())
}

/// The lock of an editor, which has a record.
fn editor(store: &FileSystemRecordStore) -> LockGuard<'_, FileSystemRecordStore> {
    let guard = store.lock("k", as_named("ed\titor").note("saves")).unwrap();
    guard.write(&1).unwrap();
    guard
}

/// The next line of standard error.
fn line(stderr: &mut impl BufRead) -> String {
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    line
}

#[test]
fn a_command_that_waits_says_for_whom_and_since_when() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    let since = humantime::format_rfc3339_millis(store.lock_info("k").unwrap().unwrap().acquired_at());
    fs::write(scratch.path("lines"), "{\"key\":\"k\",\"result\":2}\n").unwrap();
    // One that says nothing fails.
    let waits = ["k", "--wait", "1m"];
    // All at the same time.
    let mut commands = [
        ("get", waits.to_vec()),
        ("export", vec!["--wait", "1m"]),
        ("run", [&waits[..], &["--", "echo", "3"]].concat()),
        ("run", [&waits[..], &["--refresh", "--", "echo", "3"]].concat()),
        ("lock", [&waits[..], &["--", "echo", "3"]].concat()),
        ("put", waits.to_vec()),
        ("rm", waits.to_vec()),
        ("import", vec!["lines", "--wait", "1m", "--existing", "skip"]),
        ("import", vec!["lines", "--wait", "1m", "--existing", "overwrite"]),
    ]
    .map(|(subcommand, arguments)| {
        let mut command = scratch.cli(subcommand, &arguments);
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"2").unwrap();
        let mut command = Background::start(command.stdin(reader));
        let stderr = BufReader::new(command.child().stderr.take().unwrap());
        (arguments, command, stderr)
    });
    let expected =
        format!("record-store: waiting for \"k\": locked since {since} by \"ed\\titor\" (saves)\n");
    for (arguments, _, stderr) in &mut commands {
        // It does not wait for a record that it skips.
        if !arguments.contains(&"skip") {
            assert_eq!(line(stderr), expected, "{arguments:?}");
        }
    }
    guard.release().unwrap();
    for (arguments, command, mut stderr) in commands {
        let code = command.output().status.code();
        // The record may be removed before the other commands.
        assert!(matches!(code, Some(0 | 1)), "{arguments:?}: {code:?}");
        let rest = line(&mut stderr);
        assert!(rest.is_empty() || code == Some(1) && rest.contains("no record"), "{arguments:?}: {rest}");
    }
}

#[test]
fn another_holder_is_another_line() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    let mut command = Background::start(&mut scratch.cli("get", &["k"]));
    let mut stderr = BufReader::new(command.child().stderr.take().unwrap());
    assert!(line(&mut stderr).ends_with("by \"ed\\titor\" (saves)\n"));
    // Stopped, so that it does not see the key free.
    command.signal(Signal::STOP);
    let stat = format!("/proc/{}/stat", command.child().id());
    wait_for("the stop", || fs::read_to_string(&stat).unwrap().contains(") T "));
    guard.release().unwrap();
    let guard = store.lock("k", as_named("printer")).unwrap();
    command.signal(Signal::CONT);
    let second = line(&mut stderr);
    assert!(second.starts_with("record-store: waiting for \"k\": locked since "), "{second}");
    assert!(second.ends_with("by \"printer\"\n"), "{second}");
    guard.release().unwrap();
    assert_prints(&command.output(), "1\n");
    assert_eq!(line(&mut stderr), "");
}

#[test]
fn quiet_commands_say_nothing_but_errors() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let _guard = editor(&store);
    let quiet = [vec!["k", "--quiet"], vec!["k", "-q"], vec!["k", "--no-progress"]];
    let commands = quiet.map(|arguments| {
        let arguments = [&arguments[..], &["--wait", "1200ms"]].concat();
        Background::start(&mut scratch.cli("get", &arguments))
    });
    for command in commands {
        let message = assert_fails(&command.output(), 75);
        assert!(message.contains("still locked by \"ed\\titor\" after 1.2"), "{message}");
    }
    // Also in front of the subcommand.
    let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
    command.arg("--quiet").arg("get").arg(scratch.store()).args(["k", "--wait", "1200ms"]);
    assert_fails(&output(&mut command), 75);
}

#[test]
fn a_quiet_command_prints_no_warning() {
    for (option, is_quiet) in [("--quiet", true), ("--no-progress", false)] {
        let scratch = Scratch::new();
        drop(scratch.open());
        fs::write(scratch.store().join("k.json"), "no record").unwrap();
        let written = feed(&mut scratch.cli("put", &["k", option]), b"1");
        assert_prints(&written, "");
        let warning = String::from_utf8(written.stderr).unwrap();
        assert_eq!(warning.contains("k.json was damaged or foreign"), !is_quiet, "{warning}");
        assert_eq!(warning.is_empty(), is_quiet, "{warning}");
        // The same for a store that cannot be used, if the command runs without it.
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        command.args(["run", "/dev/null", "k", "--run-anyway", option, "--", "echo", "1"]);
        let ran = output(&mut command);
        assert_prints(&ran, "1\n");
        assert_eq!(ran.stderr.is_empty(), is_quiet, "{ran:?}");
    }
}

/// How often the line was drawn that begins so.
fn drawn(raw: &str, beginning: &str) -> usize {
    raw.matches(&format!("\r{beginning}")).count()
}

#[test]
fn on_a_terminal_the_line_is_renewed_and_cleared() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    let mut terminal = Terminal::start(&scratch.cli("get", &["k"]));
    terminal.wait_until("a renewed line", |raw| drawn(raw, "waiting ") >= 3);
    guard.release().unwrap();
    let (status, raw) = terminal.end();
    assert_eq!(status.code(), Some(0));
    assert_eq!(drawn(&raw, "waiting 1s for \"k\": locked for "), 1, "{raw:?}");
    assert_eq!(drawn(&raw, "waiting 2s for \"k\": locked for "), 1, "{raw:?}");
    assert!(raw.contains("s by \"ed\\titor\" (saves)\x1b[K"), "{raw:?}");
    assert!(raw.ends_with("\x1b[K\r\x1b[K1\r\n") && raw.matches('\n').count() == 1, "{raw:?}");
}

#[test]
fn the_line_fits_on_a_narrow_terminal() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    let mut terminal = Terminal::start(&scratch.cli("get", &["k"]));
    terminal.resize(24, 20);
    terminal.wait_until("the line", |raw| drawn(raw, "waiting 1s for \"k\"…\x1b[K") == 1);
    guard.release().unwrap();
    terminal.end();
}

#[test]
fn the_line_is_cleared_when_a_signal_ends_the_wait() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    let mut terminal = Terminal::start(&scratch.run(&["k", "--refresh"], "echo 3"));
    terminal.wait_until("the line", |raw| drawn(raw, "waiting ") == 1);
    terminal.type_in("\x03");
    let (status, raw) = terminal.end();
    assert_eq!(status.code(), Some(130));
    assert!(raw.ends_with("\r\x1b[K"), "{raw:?}");
    guard.release().unwrap();
}

#[test]
fn a_background_job_prints_one_line() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    let program = env!("CARGO_BIN_EXE_record-store");
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("set -m; {program} get store k & wait")]).current_dir(scratch.0.path());
    let mut terminal = Terminal::start(&shell);
    let is_said = |raw: &str| raw.contains("record-store: waiting for \"k\": locked since ");
    terminal.wait_until("the line", is_said);
    guard.release().unwrap();
    let (_, raw) = terminal.end();
    assert_eq!(drawn(&raw, "waiting "), 0, "{raw:?}");
}

#[test]
fn without_progress_nothing_is_drawn_on_a_terminal() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let _guard = editor(&store);
    let (_, raw) = Terminal::start(&scratch.cli("get", &["k", "--no-progress", "--wait", "1200ms"])).end();
    assert!(raw.starts_with("record-store: ") && raw.matches('\n').count() == 1, "{raw:?}");
}

#[test]
fn the_calls_that_wait_for_a_lock_are_shown() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = editor(&store);
    store.acquire_lock("other", as_named("nobody waits")).unwrap();
    let mut waiting = Background::start(&mut scratch.cli("lock", &["k", "--wait", "1m", "--", "true"]));
    let shown = |subcommand: &str, arguments: &[&str]| {
        String::from_utf8(output(&mut scratch.cli(subcommand, arguments)).stdout).unwrap()
    };
    let process = waiting.child().id();
    let waits = format!("process {process} on ");
    let mut stat = String::new();
    while !stat.contains(&waits) {
        assert_eq!(waiting.child().try_wait().unwrap(), None, "{stat}");
        stat = shown("stat", &["k"]);
    }
    assert_eq!(stat.lines().filter(|line| line.starts_with("waiting: ")).count(), 1, "{stat}");
    let table = shown("locks", &[]);
    let at = table.find("WAITING").unwrap();
    let column: Vec<&str> = table.lines().map(|line| &line[at..at + 7]).collect();
    assert_eq!((&column[1][..6], column[2]), ("1 for ", "none   "), "{table}");
    let json = shown("locks", &["--json"]);
    let locks = json.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let waiters = |key| locks.clone().find(|lock| lock["key"] == key).unwrap()["waiters"].clone();
    assert_eq!(waiters("other"), serde_json::json!([]));
    assert_eq!(waiters("k")[0]["process"], process);
    assert!(waiters("k")[0]["waiting_seconds"].as_f64().is_some(), "{json}");
    guard.release().unwrap();
    assert_code(&waiting.output(), 0);
}
