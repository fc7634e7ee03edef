//! How `run` terminates its command: on a signal, and when the `--hold` time is exceeded.

use super::*;

/// A script that never ends, with a background child that never ends either.
const NEVER_ENDS: &str = "sleep 1000 & echo x > begun; sleep 1000";

#[track_caller]
fn assert_free(scratch: &Scratch) {
    assert!(!entry_exists(&scratch.store().join("k.lock")));
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 1);
}

#[test]
fn a_signal_ends_the_whole_process_group_and_releases_the_key() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        let scratch = Scratch::new();
        let mut run = Background::start(&mut scratch.run(&["k"], NEVER_ENDS));
        scratch.wait_for_file("begun");
        run.signal(signal);
        // Returns only when the background child, which shares the output, has ended too.
        let ended = run.output();
        assert_code(&ended, 128 + signal.as_raw());
        assert_eq!((ended.stdout, ended.stderr), (vec![], vec![]));
        assert_free(&scratch);
    }
}

#[test]
fn the_command_may_clean_up_after_a_signal() {
    let scratch = Scratch::new();
    // A child of the command cleans up, after the command itself has ended. It has redirected its output and,
    // for files of its own, each descriptor that a script can name.
    let own_files = "exec > a 3>a 4>a 5>a 6>a 7>a 8>a 9>a";
    let slow = format!(
        "sh -c '{own_files}; trap \"echo x > signalled; {} echo x > clean; exit\" TERM; echo x > begun; while :; do sleep 0.01; done' & wait",
        scratch.gate("go").replace('\'', "")
    );
    let mut run = Background::start(&mut scratch.run(&["k"], &slow));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    scratch.wait_for_file("signalled");
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 75);
    scratch.touch("go");
    assert_code(&run.output(), 128 + 15);
    assert!(entry_exists(&scratch.path("clean")));
    assert_free(&scratch);
}

#[test]
fn a_second_signal_ends_the_grace_period() {
    let scratch = Scratch::new();
    let stubborn = "trap 'echo x > signalled' TERM; echo x > begun; while :; do sleep 0.01; done";
    let mut run = Background::start(&mut scratch.run(&["k"], stubborn));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    scratch.wait_for_file("signalled");
    let start = Instant::now();
    run.signal(Signal::TERM);
    assert_code(&run.output(), 128 + 15);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_free(&scratch);
}

#[test]
fn a_signal_ends_a_wait_for_the_lock_at_once() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo 1", scratch.gate("go"));
    let holder = Background::start(&mut scratch.run(&["k"], &script));
    scratch.wait_for_file("begun");
    let lock = fs::read(scratch.store().join("k.lock")).unwrap();
    for arguments in [&["k"][..], &["k", "--refresh"]] {
        let mut waiter = Background::start(&mut scratch.run(arguments, "echo x >> runs"));
        scratch.wait_until_opened(&mut waiter);
        waiter.signal(Signal::TERM);
        let ended = waiter.output();
        assert_code(&ended, 128 + 15);
        assert_eq!((ended.stdout, ended.stderr), (vec![], vec![]));
    }
    assert_eq!(fs::read(scratch.store().join("k.lock")).unwrap(), lock);
    scratch.touch("go");
    assert_prints(&holder.output(), "1\n");
    assert_eq!(scratch.runs(), 0);
}

#[test]
fn a_signal_ends_a_blocked_write_of_the_result() {
    let scratch = Scratch::new();
    // More than a pipe buffer holds.
    let mut run = Background::start(&mut scratch.run(&["k", "--text"], "head -c 1000000 /dev/zero"));
    let (record, lock) = (scratch.store().join("k.json"), scratch.store().join("k.lock"));
    wait_for("the result to be stored", || entry_exists(&record) && !entry_exists(&lock));
    run.signal(Signal::TERM);
    wait_for("the process to end", || !run.is_running());
    assert_code(&run.output(), 128 + 15);
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo 1", scratch.gate("go"));
    let mut nohup = Command::new("sh");
    nohup.args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_record-store")]);
    let mut run = Background::start(
        nohup
            .arg("run")
            .arg(scratch.store())
            .args(["k", "--", "sh", "-c", &script])
            .current_dir(scratch.0.path()),
    );
    scratch.wait_for_file("begun");
    run.signal(Signal::HUP);
    scratch.touch("go");
    assert_prints(&run.output(), "1\n");
}

#[test]
fn a_command_that_exceeds_the_hold_time_is_terminated() {
    let scratch = Scratch::new();
    let start = Instant::now();
    let ended = output(&mut scratch.run(&["k", "--hold", "200ms"], "sleep 1000 & sleep 1000"));
    assert!(start.elapsed() >= Duration::from_millis(200));
    let message = assert_fails(&ended, 124);
    assert!(message.contains("200ms") && message.contains("--hold"), "{message}");
    assert_free(&scratch);
    // A command that is fast enough is not disturbed.
    assert_prints(&output(&mut scratch.run(&["k", "--hold", "1h"], "echo 1")), "1\n");
}

#[test]
fn a_child_that_keeps_the_output_open_is_subject_to_the_hold_time() {
    let scratch = Scratch::new();
    let ended = output(&mut scratch.run(&["k", "--hold", "200ms"], "sleep 1000 & echo 1"));
    assert_unstored(&ended, 124, b"1\n");
    assert_free(&scratch);
}

#[test]
fn a_command_that_closes_its_output_is_subject_to_the_hold_time() {
    let scratch = Scratch::new();
    let run = &mut scratch.run(&["k", "--hold", "200ms"], "echo 1; exec > /dev/null; sleep 1000");
    assert_unstored(&output(run), 124, b"1\n");
    assert_free(&scratch);
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_the_grace_period() {
    let scratch = Scratch::new();
    let ignores_sigterm = "trap '' TERM; sleep 1000 & sleep 1000";
    let start = Instant::now();
    assert_fails(&output(&mut scratch.run(&["k", "--hold", "100ms"], ignores_sigterm)), 124);
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_free(&scratch);
}

#[test]
fn a_stopped_command_is_terminated_too() {
    let scratch = Scratch::new();
    let start = Instant::now();
    let stopped = "trap 'echo x > signalled; exit' TERM; kill -STOP $$; sleep 1000";
    assert_fails(&output(&mut scratch.run(&["k", "--hold", "200ms"], stopped)), 124);
    assert!(entry_exists(&scratch.path("signalled")));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
