//! `lock`: a command runs under a key's lock, and nothing is stored.

use record_store::{LockOptions, RecordStoreExt};

use super::terminal::Terminal;
use super::*;

#[track_caller]
fn assert_free(scratch: &Scratch) {
    assert!(!entry_exists(&scratch.store().join("k.lock")));
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 1);
}

/// Standard error of a command that printed nothing else.
#[track_caller]
fn errors(output: &Output, code: i32) -> String {
    assert_code(output, code);
    assert_eq!(output.stdout, b"", "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn the_streams_of_the_command_pass_through_and_nothing_is_stored() {
    let scratch = Scratch::new();
    // More than a pipe holds, and each byte.
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    fs::write(scratch.path("bytes"), &bytes).unwrap();
    let input = fs::File::open(scratch.path("bytes")).unwrap();
    let passed = output(scratch.lock(&["k"], "printf 'a\\377\\0' >&2; cat").stdin(input));
    assert_code(&passed, 0);
    assert!(passed.stdout == bytes, "{} bytes", passed.stdout.len());
    assert_eq!(passed.stderr, b"a\xff\0");
    assert_free(&scratch);
    // An input that the command does not read is not read by anybody else.
    let (mut rest, script) = (fs::File::options(), "head -c 0");
    fs::write(scratch.path("input"), "all of it").unwrap();
    let mut input = rest.read(true).open(scratch.path("input")).unwrap();
    assert_prints(&output(scratch.lock(&["k"], script).stdin(input.try_clone().unwrap())), "");
    assert_eq!(std::io::read_to_string(&mut input).unwrap(), "all of it");
}

#[test]
fn the_exit_code_of_the_command_is_passed_on() {
    let scratch = Scratch::new();
    assert_eq!(errors(&output(&mut scratch.lock(&["k"], "exit 7")), 7), "");
    assert_eq!(errors(&output(&mut scratch.lock(&["k"], "kill -9 $$")), 128 + 9), "");
    assert_free(&scratch);
    let missing = output(scratch.cli("lock", &["k"]).args(["--", "./no-such-command"]));
    assert!(assert_fails(&missing, 127).contains("no-such-command"));
    scratch.touch("plain-file");
    assert_fails(&output(scratch.cli("lock", &["k"]).args(["--", "./plain-file"])), 126);
    assert_free(&scratch);
    assert_code(&output(&mut scratch.cli("lock", &["k"])), 2);
}

#[test]
fn of_many_concurrent_commands_one_runs_at_a_time() {
    let scratch = Scratch::new();
    fs::write(scratch.path("counter"), "0").unwrap();
    // Two commands at the same time would read the same number.
    let script = "n=$(cat counter); sleep 0.01; echo $((n + 1)) > counter";
    let locks: Vec<_> = (0..12).map(|_| Background::start(&mut scratch.lock(&["k"], script))).collect();
    for lock in locks {
        assert_prints(&lock.output(), "");
    }
    assert_eq!(fs::read_to_string(scratch.path("counter")).unwrap(), "12\n");
    assert_free(&scratch);
}

#[test]
fn a_lock_that_cannot_be_acquired_in_time_has_an_exit_code_of_choice() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {}", scratch.gate("go"));
    let mut holder = Background::start(&mut scratch.lock(&["k"], &script));
    scratch.wait_for_file("begun");
    let pid = holder.child().id().to_string();
    for (arguments, code) in [
        (&["k", "--wait", "0"][..], 75),
        (&["k", "--wait", "20ms"], 75),
        (&["k", "--wait", "20ms", "--conflict-exit-code", "9"], 9),
        (&["k", "--wait", "0", "--conflict-exit-code", "0"], 0),
    ] {
        let message = assert_fails(&output(&mut scratch.lock(arguments, "echo x >> runs")), code);
        assert!(message.contains(&pid) && message.contains("--wait"), "{message}");
    }
    // Another failure does not get this code.
    let elsewhere = &["k", "--conflict-exit-code", "9", "--wait", "soon"];
    assert_code(&output(&mut scratch.lock(elsewhere, "echo x >> runs")), 2);
    // Everybody sees who holds the lock, and nobody else has it.
    let shown = output(&mut scratch.cli("locks", &["--json"]));
    let lock: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&lock["state"], &lock["owner_alive"]), (&"held".into(), &true.into()));
    assert!(lock["holder"].as_str().unwrap().contains(&pid), "{lock}");
    for mut command in
        [scratch.cli("get", &["k", "--wait", "0"]), scratch.run(&["k", "--wait", "0"], "echo 1")]
    {
        assert_fails(&output(&mut command), 75);
    }
    assert_eq!(scratch.runs(), 0);
    let mut waiter = Background::start(&mut scratch.lock(&["k"], "echo x >> runs"));
    scratch.wait_until_opened(&mut waiter);
    scratch.touch("go");
    assert_prints(&holder.output(), "");
    assert_prints(&waiter.output(), "");
    assert_eq!(scratch.runs(), 1);
}

#[test]
fn a_signal_or_the_hold_time_ends_the_whole_process_group() {
    let never_ends = "sleep 1000 & echo x > begun; sleep 1000";
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let scratch = Scratch::new();
        let mut lock = Background::start(&mut scratch.lock(&["k"], never_ends));
        scratch.wait_for_file("begun");
        lock.signal(signal);
        // Returns only when the background child, which shares the output, has ended too.
        assert_eq!(errors(&lock.output(), 128 + signal.as_raw()), "");
        assert_free(&scratch);
    }
    let scratch = Scratch::new();
    let message = assert_fails(&output(&mut scratch.lock(&["k", "--hold", "200ms"], never_ends)), 124);
    assert!(message.contains("200ms") && message.contains("--hold"), "{message}");
    assert_free(&scratch);
    assert_prints(&output(&mut scratch.lock(&["k", "--hold", "1h"], "echo 1")), "1\n");
}

#[test]
fn a_signal_ends_a_wait_for_the_lock() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let mut waiter = Background::start(&mut scratch.lock(&["k"], "echo x >> runs"));
    scratch.wait_until_opened(&mut waiter);
    waiter.signal(Signal::TERM);
    assert_eq!(errors(&waiter.output(), 128 + 15), "");
    assert!(guard.is_held().unwrap());
    assert_eq!(scratch.runs(), 0);
}

#[test]
fn the_key_stays_locked_if_only_the_program_is_killed() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo x > ended", scratch.gate("go"));
    // No pipes: the command outlives the program and would keep them open.
    let mut lock = scratch.lock(&["k"], &script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    scratch.wait_for_file("begun");
    lock.kill().unwrap();
    lock.wait().unwrap();
    assert_fails(&output(&mut scratch.lock(&["k", "--wait", "300ms"], "echo x >> runs")), 75);
    let mut waiter = Background::start(&mut scratch.lock(&["k"], "[ -e ended ] && echo x >> runs"));
    scratch.wait_until_opened(&mut waiter);
    scratch.touch("go");
    assert_prints(&waiter.output(), "");
    assert_eq!(scratch.runs(), 1);
}

#[test]
fn a_background_process_that_is_left_behind_does_not_keep_the_lock() {
    let scratch = Scratch::new();
    let script = format!("({} echo x > late) > /dev/null 2>&1 & echo 1", scratch.gate("go"));
    assert_prints(&output(&mut scratch.lock(&["k"], &script)), "1\n");
    assert_free(&scratch);
    assert_prints(&output(&mut scratch.lock(&["k", "--wait", "0"], "echo 2")), "2\n");
    scratch.touch("go");
    scratch.wait_for_file("late");
}

#[test]
fn a_lock_that_is_lost_meanwhile_is_reported() {
    for (end, code) in [("exit 0", 75), ("exit 7", 7)] {
        let scratch = Scratch::new();
        let script = format!("echo x > begun; {} {end}", scratch.gate("go"));
        let lock = Background::start(&mut scratch.lock(&["k"], &script));
        scratch.wait_for_file("begun");
        assert_prints(&output(scratch.cli("unlock", &["k", "--force"]).stdout(Stdio::null())), "");
        // Another holder's lock stays.
        let store = scratch.open();
        let guard = store.lock("k", LockOptions::new()).unwrap();
        scratch.touch("go");
        let message = assert_fails(&lock.output(), code);
        assert!(message.contains("the lock was lost while the command ran"), "{message}");
        assert!(guard.is_held().unwrap());
    }
}

/// Runs the script under `lock`, with its streams on a terminal.
fn on_a_terminal(scratch: &Scratch, script: &str) -> Terminal {
    let mut terminal = Terminal::start(&scratch.lock(&["k"], script));
    terminal.wait_until("the script", |raw| raw.contains("ready"));
    terminal
}

#[test]
fn on_a_terminal_the_command_reads_keys_and_handles_ctrl_c() {
    let scratch = Scratch::new();
    // A command that the system would stop, if it were in the background.
    let mut terminal = on_a_terminal(&scratch, "echo ready; read line; echo \"got <$line>\"; exit 5");
    terminal.type_in("keys\n");
    let (status, raw) = terminal.end();
    assert!(raw.contains("got <keys>") && status.code() == Some(5), "{raw}");

    let waits = "while :; do sleep 0.01; done";
    // The command goes on after each of them.
    let catches = format!("trap 'echo caught' INT; echo ready; {} exit 3", scratch.gate("go"));
    let mut terminal = on_a_terminal(&scratch, &catches);
    for number in 1..=3 {
        terminal.type_in("\x03");
        terminal.wait_until("the trap", |raw| raw.matches("caught").count() == number);
    }
    scratch.touch("go");
    assert_eq!(terminal.end().0.code(), Some(3));
    assert_free(&scratch);

    let mut terminal = on_a_terminal(&scratch, &format!("echo ready; {waits}"));
    terminal.type_in("\x03");
    assert_eq!(terminal.end().0.code(), Some(128 + 2));
    assert_free(&scratch);

    // Another signal is for this program alone, which passes it on.
    let catches = format!("trap 'echo caught; exit 3' TERM; echo ready; {waits}");
    let terminal = on_a_terminal(&scratch, &catches);
    terminal.signal(Signal::TERM);
    let (status, raw) = terminal.end();
    assert!(raw.contains("caught") && status.code() == Some(128 + 15), "{raw}");
    assert_free(&scratch);
}

#[test]
fn on_a_terminal_the_hold_time_ends_the_command_and_not_its_caller() {
    let scratch = Scratch::new();
    // The shell, the program and the command are one process group.
    let program = env!("CARGO_BIN_EXE_record-store");
    let script = format!(
        "trap 'echo hit' TERM; {program} lock store k --hold 300ms -- sh -c 'while :; do sleep 0.01; done'
        echo \"ended $?\""
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).current_dir(scratch.0.path());
    let (status, raw) = Terminal::start(&shell).end();
    assert!(raw.contains("ended 124") && !raw.contains("hit"), "{raw}");
    assert!(status.success());
    assert_free(&scratch);
}

#[test]
fn commands_that_share_the_lock_run_together_and_others_wait() {
    let scratch = Scratch::new();
    let holds = |number: u32| format!("echo x > begun-{number}; {}", scratch.gate("go"));
    let mut holders: Vec<_> = (1..=2)
        .map(|number| {
            Background::start(&mut scratch.lock(&["k", "--shared", "--note", "reads"], &holds(number)))
        })
        .collect();
    scratch.wait_for_file("begun-1");
    scratch.wait_for_file("begun-2");
    let pids: Vec<_> = holders.iter_mut().map(|holder| holder.child().id().to_string()).collect();
    for arguments in [&["k", "--wait", "0"][..], &["k", "--slots", "2", "--wait", "0"]] {
        assert_fails(&output(&mut scratch.lock(arguments, "echo x >> runs")), 75);
    }
    // Each holder has a row.
    let table = output(&mut scratch.cli("locks", &[]));
    let table = String::from_utf8(table.stdout).unwrap();
    assert_eq!(table.lines().filter(|line| line.starts_with('k')).count(), 2, "{table}");
    assert!(!table.contains("unknown"), "nobody waits for the lock: {table}");
    let shown = output(&mut scratch.cli("locks", &["--json"]));
    let lock: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!((&lock["shared"], &lock["slots"]), (&true.into(), &serde_json::Value::Null));
    let holds = [&lock, &lock["sharers"][0]].map(|it| it["holder"].as_str().unwrap().to_owned());
    let stat = String::from_utf8(output(&mut scratch.cli("stat", &["k"])).stdout).unwrap();
    for pid in &pids {
        assert!(holds.iter().any(|holder| holder.contains(pid)), "{lock}");
        assert!(stat.lines().any(|line| line.contains("shared by") && line.contains(pid)), "{stat}");
    }
    // A reader does not wait, and a writer is refused.
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 1);
    assert_fails(&feed(&mut scratch.cli("put", &["k", "--wait", "0"]), b"1"), 75);
    let unlocked = output(&mut scratch.cli("unlock", &["k"]));
    let message = String::from_utf8(unlocked.stderr).unwrap();
    assert!(pids.iter().all(|pid| message.contains(pid)), "{message}");
    scratch.touch("go");
    for holder in holders {
        assert_prints(&holder.output(), "");
    }
    assert_eq!(scratch.runs(), 0);
    assert_free(&scratch);
}

#[test]
fn only_so_many_commands_run_as_there_are_slots() {
    let scratch = Scratch::new();
    // Each has a directory while it runs. A fourth one finds all three names taken.
    let script = "mkdir a 2>/dev/null && d=a || mkdir b 2>/dev/null && d=${d:-b} || mkdir c && d=${d:-c}
        [ -n \"$d\" ] || exit 9; sleep 0.02; rmdir $d; echo x >> runs";
    let locks: Vec<_> =
        (0..10).map(|_| Background::start(&mut scratch.lock(&["k", "--slots", "3"], script))).collect();
    for lock in locks {
        assert_prints(&lock.output(), "");
    }
    assert_eq!(scratch.runs(), 10);
    assert_free(&scratch);
}

#[test]
fn a_command_under_a_shared_lock_reads_and_does_not_write() {
    let scratch = Scratch::new();
    assert_prints(&feed(&mut scratch.cli("put", &["k"]), b"1"), "");
    let bin = env!("CARGO_BIN_EXE_record-store");
    let script = format!("{bin} get \"$RECORD_STORE_KEY\" --token \"$RECORD_STORE_TOKEN\" && {bin} get k");
    assert_prints(&output(&mut scratch.lock(&["k", "--shared"], &script)), "1\n1\n");
    let script = format!("echo 2 | {bin} put \"$RECORD_STORE_KEY\" --token \"$RECORD_STORE_TOKEN\"");
    let message = assert_fails(&output(&mut scratch.lock(&["k", "--shared"], &script)), 75);
    assert!(message.contains("shared"), "{message}");
    // It would wait for a writer that waits for it.
    let script = format!("{bin} lock k --shared -- true");
    let message = assert_fails(&output(&mut scratch.lock(&["k", "--shared"], &script)), 75);
    assert!(message.contains("deadlock"), "{message}");
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "1\n");
    assert_code(&output(&mut scratch.lock(&["k", "--shared", "--slots", "2"], "true")), 2);
    assert_code(&output(&mut scratch.lock(&["k", "--slots", "0"], "true")), 2);
}
