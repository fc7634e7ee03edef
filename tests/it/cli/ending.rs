//! How `run` ends its command: at a signal, and when it is held too long.

use super::*;

/// Waits for good, and has a child in the background that does too.
const FOR_GOOD: &str = "sleep 1000 & echo x > begun; sleep 1000";

/// A signal that the test itself was started without (as under `nohup`) cannot be tested.
fn is_ignored(signal: Signal) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal.as_raw() - 1) & 1 == 1
}

#[track_caller]
fn assert_free(scratch: &Scratch) {
    assert!(!is_there(&scratch.store().join("k.lock")));
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 1);
}

#[test]
fn a_signal_ends_the_whole_group_and_frees_the_key() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
        if is_ignored(signal) {
            continue;
        }
        let scratch = Scratch::new();
        let mut run = Background::start(&mut scratch.run(&["k"], FOR_GOOD));
        scratch.wait_for_file("begun");
        run.signal(signal);
        // Comes back only when the child in the background, which has it too, is gone.
        let ended = run.output();
        assert_code(&ended, 128 + signal.as_raw());
        assert_eq!((ended.stdout, ended.stderr), (vec![], vec![]));
        assert_free(&scratch);
    }
}

#[test]
fn the_command_may_clean_up_first() {
    let scratch = Scratch::new();
    // It is a child of the command that cleans up, after the command itself is gone.
    let slow = format!(
        "sh -c 'trap \"echo x > told; {} echo x > clean; exit\" TERM; echo x > begun; while :; do sleep 0.01; done' & wait",
        scratch.gate("go").replace('\'', "")
    );
    let mut run = Background::start(&mut scratch.run(&["k"], &slow));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    scratch.wait_for_file("told");
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "0"])), 75);
    scratch.touch("go");
    assert_code(&run.output(), 128 + 15);
    assert!(is_there(&scratch.path("clean")));
    assert_free(&scratch);
}

#[test]
fn a_second_signal_ends_the_patience() {
    let scratch = Scratch::new();
    let stubborn = "trap 'echo x > told' TERM; echo x > begun; while :; do sleep 0.01; done";
    let mut run = Background::start(&mut scratch.run(&["k"], stubborn));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    scratch.wait_for_file("told");
    let start = Instant::now();
    run.signal(Signal::TERM);
    assert_code(&run.output(), 128 + 15);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_free(&scratch);
}

#[test]
fn a_signal_while_waiting_for_the_lock_ends_at_once() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo 1", scratch.gate("go"));
    let holder = Background::start(&mut scratch.run(&["k"], &script));
    scratch.wait_for_file("begun");
    let lock = fs::read(scratch.store().join("k.lock")).unwrap();
    for arguments in [&["k"][..], &["k", "--refresh"]] {
        let mut waiter = Background::start(&mut scratch.run(arguments, "echo x >> runs"));
        scratch.wait_in_line(&mut waiter);
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
fn a_signal_ends_a_print_that_nobody_reads() {
    let scratch = Scratch::new();
    // More than a pipe holds.
    let mut run = Background::start(&mut scratch.run(&["k", "--text"], "head -c 1000000 /dev/zero"));
    let (record, lock) = (scratch.store().join("k.json"), scratch.store().join("k.lock"));
    wait_for("the result to be stored", || is_there(&record) && !is_there(&lock));
    run.signal(Signal::TERM);
    wait_for("the end", || !run.is_running());
    assert_code(&run.output(), 128 + 15);
}

#[test]
fn what_was_ignored_from_the_start_stays_ignored() {
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
fn who_is_held_too_long_is_ended() {
    let scratch = Scratch::new();
    let start = Instant::now();
    let ended = output(&mut scratch.run(&["k", "--hold", "200ms"], "sleep 1000 & sleep 1000"));
    assert!(start.elapsed() >= Duration::from_millis(200));
    let said = assert_fails(&ended, 124);
    assert!(said.contains("200ms"), "{said}");
    assert_free(&scratch);
    // Who is fast enough is left alone.
    assert_prints(&output(&mut scratch.run(&["k", "--hold", "1h"], "echo 1")), "1\n");
}

#[test]
fn a_child_that_keeps_the_output_is_held_too_long_as_well() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.run(&["k", "--hold", "200ms"], "sleep 1000 & echo 1")), 124);
    assert_free(&scratch);
}

#[test]
fn who_closes_its_output_is_held_too_long_as_well() {
    let scratch = Scratch::new();
    let run = &mut scratch.run(&["k", "--hold", "200ms"], "echo 1; exec > /dev/null; sleep 1000");
    assert_fails(&output(run), 124);
    assert_free(&scratch);
}

#[test]
fn who_does_not_listen_is_killed_after_the_grace() {
    let scratch = Scratch::new();
    let deaf = "trap '' TERM; sleep 1000 & sleep 1000";
    let start = Instant::now();
    assert_fails(&output(&mut scratch.run(&["k", "--hold", "100ms"], deaf)), 124);
    assert!(start.elapsed() >= Duration::from_secs(5), "{:?}", start.elapsed());
    assert_free(&scratch);
}

#[test]
fn a_stopped_command_is_ended_too() {
    let scratch = Scratch::new();
    let start = Instant::now();
    let stopped = "trap 'echo x > told; exit' TERM; kill -STOP $$; sleep 1000";
    assert_fails(&output(&mut scratch.run(&["k", "--hold", "200ms"], stopped)), 124);
    assert!(is_there(&scratch.path("told")));
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
