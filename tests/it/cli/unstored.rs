//! `run`: the command's output reaches the caller although it is not stored. And `--run-anyway`, which runs the
//! command without the store.

use record_store::{LockOptions, RecordStoreExt};

use super::*;

#[track_caller]
fn assert_no_record(scratch: &Scratch) {
    assert!(!entry_exists(&scratch.store().join("k.lock")));
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 1);
}

#[test]
fn output_that_is_not_json_is_printed() {
    let scratch = Scratch::new();
    for (script, printed) in [
        ("echo no", &b"no\n"[..]),
        ("printf ' 1  2 '", b" 1  2 "),
        ("echo '{\"a\":'", b"{\"a\":\n"),
        ("printf '\"\\377\"\\0'", b"\"\xff\"\0"),
    ] {
        let message = assert_unstored(&output(&mut scratch.run(&["k"], script)), 65, printed);
        assert!(message.contains("not one JSON value"), "{message}");
        // Not for the last one, which is not text either.
        assert_eq!(message.ends_with("; store it with --text\n"), !script.contains("377"), "{message}");
        assert_eq!(message.contains("--bytes"), script.contains("377"), "{message}");
        assert_no_record(&scratch);
    }
}

#[test]
fn output_that_is_not_text_is_printed() {
    let scratch = Scratch::new();
    let message =
        assert_unstored(&output(&mut scratch.run(&["k", "--text"], "printf 'a\\377\\n'")), 65, b"a\xff\n");
    assert!(message.contains("not UTF-8") && message.contains("--bytes"), "{message}");
    assert_no_record(&scratch);
}

#[test]
fn the_output_of_a_failed_command_is_printed() {
    let scratch = Scratch::new();
    let message = assert_unstored(&output(&mut scratch.run(&["k"], "echo half; exit 7")), 7, b"half\n");
    assert!(message.ends_with(": the command failed (exit status: 7)\n"), "{message}");
    let killed = output(&mut scratch.run(&["k"], "echo half; kill -9 $$"));
    assert!(assert_unstored(&killed, 128 + 9, b"half\n").contains("signal: 9"));
    assert_no_record(&scratch);
}

#[test]
fn the_output_before_a_signal_is_printed() {
    let scratch = Scratch::new();
    // The command prints after the signal, too. Its shell would report the end of `sleep`.
    let script = "exec 2> /dev/null; trap 'echo rest; exit' TERM; echo half; echo x > begun
        while :; do sleep 0.01; done";
    let mut run = Background::start(&mut scratch.run(&["k"], script));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    let message = assert_unstored(&run.output(), 128 + 15, b"half\nrest\n");
    assert!(message.contains("signal 15"), "{message}");
    assert_no_record(&scratch);
}

#[test]
fn after_a_signal_a_reader_that_stopped_does_not_block() {
    let scratch = Scratch::new();
    // More than a pipe buffer holds.
    let script = "head -c 1000000 /dev/zero; echo x > begun; sleep 1000";
    let mut run = Background::start(&mut scratch.run(&["k", "--text"], script));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    wait_for("the process to end", || !run.is_running());
    assert_code(&run.output(), 128 + 15);
    assert_no_record(&scratch);
}

#[test]
fn the_output_before_the_end_of_the_hold_time_is_printed() {
    let scratch = Scratch::new();
    let ended = output(&mut scratch.run(&["k", "--hold", "200ms"], "echo half; sleep 1000"));
    let message = assert_unstored(&ended, 124, b"half\n");
    assert!(message.contains("after 200ms") && message.contains("--hold"), "{message}");
    assert_no_record(&scratch);
}

#[test]
fn the_output_is_printed_although_a_process_keeps_it_open() {
    let scratch = Scratch::new();
    // It has left the process group, so no signal reaches it.
    let gate = scratch.gate("go").replace('\'', "");
    let script = format!("setsid sh -c \"{gate}\" 2> /dev/null & echo half");
    let start = Instant::now();
    let ended = output(&mut scratch.run(&["k", "--hold", "200ms"], &script));
    scratch.touch("go");
    assert_unstored(&ended, 124, b"half\n");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_no_record(&scratch);
}

#[test]
fn the_output_is_printed_although_the_disk_is_full() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.store()).unwrap();
    let script = "echo '[\"the result\"]'; head -c 1000000 /dev/zero > store/filler 2> /dev/null; true";
    for (arguments, code) in [(&["k"][..], 74), (&["k", "--run-anyway"], 0)] {
        let run = scratch.run(arguments, script);
        let small = "mount -t tmpfs -o size=400k none $dir";
        let Some(mut run) = in_namespace(small, &scratch.store(), &run) else { return };
        let message =
            assert_unstored(&output(run.current_dir(scratch.0.path())), code, b"[\"the result\"]\n");
        assert!(message.contains("No space left") && message.contains("free some space"), "{message}");
    }
}

#[test]
fn the_output_is_printed_although_the_lock_is_lost() {
    let scratch = Scratch::new();
    let program = env!("CARGO_BIN_EXE_record-store");
    let script = format!("{program} unlock store k --force > shown && echo 1");
    for arguments in [&["k"][..], &["k", "--run-anyway"]] {
        let message = assert_unstored(&output(&mut scratch.run(arguments, &script)), 75, b"1\n");
        assert!(message.contains("is lost") && message.ends_with("; run the command again\n"), "{message}");
        assert_no_record(&scratch);
    }
}

#[test]
fn a_process_that_is_stopped_in_an_operation_delays_the_output_only_briefly() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo 1", scratch.gate("go"));
    let run = Background::start(&mut scratch.run(&["k"], &script));
    scratch.wait_for_file("begun");
    let stopped = scratch.enter_latch("k");
    scratch.touch("go");
    let mut ended = run.output();
    let messages = String::from_utf8(ended.stderr.clone()).unwrap();
    let (waiting, rest) = messages.split_once('\n').unwrap();
    assert!(waiting.contains("waiting for \"k\": another process is stopped"), "{waiting}");
    ended.stderr = rest.into();
    let message = assert_unstored(&ended, 75, b"1\n");
    assert!(message.contains("within 5.") && message.contains("--wait"), "{message}");
    drop(stopped);
    // The lock could not be released either, but ended with its process.
    assert_prints(&output(&mut scratch.run(&["k", "--wait", "10s"], "echo 2")), "2\n");
}

#[test]
fn output_that_can_neither_be_stored_nor_printed_has_the_exit_code_of_the_first() {
    let scratch = Scratch::new();
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let ended = output(scratch.run(&["k"], "echo no").stdout(full));
    assert_code(&ended, 65);
    let messages = String::from_utf8(ended.stderr).unwrap();
    assert!(messages.contains("cannot write to standard output"), "{messages}");
    assert!(messages.lines().last().unwrap().ends_with("; store it with --text"), "{messages}");
}

/// Stores that cannot be used.
fn unusable() -> [Scratch; 4] {
    let [file, newer, dangling, damaged] = [(); 4].map(|()| Scratch::new());
    file.touch("store");
    newer.open();
    fs::write(newer.store().join(".store/format.json"), "{\"version\":99}").unwrap();
    std::os::unix::fs::symlink("missing/missing", dangling.store()).unwrap();
    // It can be opened.
    damaged.open();
    fs::create_dir(damaged.store().join(crate::support::latch_of("k"))).unwrap();
    [file, newer, dangling, damaged]
}

#[test]
fn a_store_that_cannot_be_used_is_an_error_that_names_run_anyway() {
    for scratch in unusable() {
        for arguments in [&["k"][..], &["k", "--refresh"]] {
            let refused = output(&mut scratch.run(arguments, "echo x >> runs; echo 1"));
            let message = assert_fails(&refused, refused.status.code().unwrap());
            assert!([65, 74, 1].contains(&refused.status.code().unwrap()), "{refused:?}");
            assert!(
                message.ends_with("add --run-anyway to run the command without the store\n"),
                "{message}"
            );
        }
        assert_eq!(scratch.runs(), 0);
    }
}

#[test]
fn run_anyway_runs_the_command_without_the_store() {
    for scratch in unusable() {
        for (script, code, printed, messages) in [
            ("echo x >> runs; echo 1", 0, "1\n", 1),
            // Everything else is as usual.
            ("echo half; exit 7", 7, "half\n", 2),
            ("exit 7", 7, "", 1),
            ("echo no", 65, "no\n", 2),
            ("kill -9 $$", 128 + 9, "", 1),
        ] {
            let ran = output(&mut scratch.run(&["k", "--run-anyway"], script));
            assert_code(&ran, code);
            assert_eq!(String::from_utf8_lossy(&ran.stdout), printed);
            let warning = String::from_utf8(ran.stderr).unwrap();
            assert!(
                warning.starts_with("record-store: running the command without the store: "),
                "{warning}"
            );
            assert_eq!(warning.lines().count(), messages, "{warning}");
        }
        assert_eq!(scratch.runs(), 1);
    }
}

#[test]
fn run_anyway_ends_at_a_signal() {
    let [scratch, ..] = unusable();
    let script = "trap 'echo rest; exit' TERM; echo x > begun; while :; do sleep 0.01; done";
    let mut run = Background::start(&mut scratch.run(&["k", "--run-anyway"], script));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    let ended = run.output();
    assert_code(&ended, 128 + 15);
    assert_eq!(ended.stdout, b"rest\n");
}

#[test]
fn run_anyway_changes_nothing_if_the_store_can_be_used() {
    let scratch = Scratch::new();
    let run = |script: &str| output(&mut scratch.run(&["k", "--run-anyway", "--wait", "10ms"], script));
    let store = scratch.open();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let message = assert_fails(&run("echo x >> runs; echo 1"), 75);
    assert!(!message.contains("--run-anyway"), "{message}");
    drop(guard);
    assert_eq!(scratch.runs(), 0);
    assert_prints(&run("echo 1"), "1\n");
    assert_prints(&run("echo 2"), "1\n");
}

#[test]
fn on_a_read_only_store_run_prints_what_is_stored_and_runs_the_rest_on_request() {
    let scratch = Scratch::new();
    assert_prints(&output(&mut scratch.run(&["k"], "echo 1")), "1\n");
    let read_only = |command: &Command| in_namespace(READ_ONLY, scratch.0.path(), command);
    let Some(mut stored) = read_only(&scratch.run(&["k"], "echo 2")) else { return };
    assert_prints(&output(&mut stored), "1\n");
    let refused = output(&mut read_only(&scratch.run(&["new"], "echo 2")).unwrap());
    let message = assert_fails(&refused, 74);
    assert!(message.ends_with("add --run-anyway to run the command without the store\n"), "{message}");
    let ran = output(&mut read_only(&scratch.run(&["new", "--run-anyway"], "echo 2")).unwrap());
    assert_prints(&ran, "2\n");
    let warning = String::from_utf8(ran.stderr).unwrap();
    assert!(warning.contains("without the store") && warning.contains("Read-only file system"), "{warning}");
    assert_fails(&output(&mut scratch.cli("get", &["new"])), 1);
}
