//! The key stays locked while the command lives, also after `kill -9` of its `run` process.

use std::os::unix::process::ExitStatusExt;

use super::*;

/// Waits until `script` has created the file `begun`, and kills its runner. Checks that the key
/// stays locked until the file `go` lets the script end, and that a waiter then acquires the lock.
fn check_lock_outlives_runner_of(scratch: &Scratch, script: &str) {
    // No pipes: the command outlives the runner and would keep them open.
    let mut runner = scratch.run(&["k"], script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    scratch.wait_for_file("begun");
    runner.kill().unwrap();
    runner.wait().unwrap();

    assert_fails(&output(&mut scratch.run(&["k", "--wait", "300ms"], "echo x >> runs; echo 0")), 75);
    let locks = output(&mut scratch.cli("locks", &["--json"]));
    let lock: serde_json::Value = serde_json::from_slice(&locks.stdout).unwrap();
    assert_eq!((&lock["state"], &lock["owner_alive"]), (&"held".into(), &true.into()));

    let script = "[ -e ended ] && echo x >> runs && echo 1";
    let mut waiter = Background::start(&mut scratch.run(&["k", "--wait", "50s"], script));
    scratch.wait_until_opened(&mut waiter);
    scratch.touch("go");
    let start = Instant::now();
    // The waiter's script checks that the first command had ended.
    assert_prints(&waiter.output(), "1\n");
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert_eq!(scratch.runs(), 1);
}

#[test]
fn the_key_stays_locked_while_the_command_lives() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo x > ended", scratch.gate("go"));
    check_lock_outlives_runner_of(&scratch, &script);
}

#[test]
fn the_command_inherits_only_descriptors_that_no_script_uses() {
    let scratch = Scratch::new();
    let script = "ls /proc/$$/fd";
    let numbers = |command: &mut Command| -> Vec<u32> {
        let text = String::from_utf8(output(command).stdout).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    // The test may itself have inherited some.
    let before = numbers(Command::new("sh").args(["-c", script]));
    let mut inherited = numbers(&mut scratch.run(&["k", "--text"], script));
    inherited.retain(|number| !before.contains(number));
    assert_eq!(inherited.len(), 2, "{inherited:?}");
    assert!(inherited.iter().all(|&number| number > 255), "{inherited:?}");
}

#[test]
fn the_key_stays_locked_although_the_script_uses_descriptors_of_its_own() {
    let scratch = Scratch::new();
    // A script closes what it inherited under these numbers without knowing it. So does each of its children.
    let all = "exec 3>a 4>a 5>a 6>a 7>a 8>a 9>a";
    let more = "exec 10>b 11>b 12>b 20>b 63>b 200>b 255>b; eval 'exec {free}>b'";
    let bash =
        format!("{all}; {more}; echo x > begun; {} echo x > ended", scratch.gate("go").replace('\'', ""));
    let script = format!("{all}; exec bash -c \"{bash}\"");
    check_lock_outlives_runner_of(&scratch, &script);
}

#[test]
fn the_key_stays_locked_while_a_grandchild_lives() {
    let scratch = Scratch::new();
    // The command ends as soon as its runner is killed. The grandchild keeps none of the standard
    // streams open: only another inherited descriptor shows that it lives.
    let grandchild = format!("({} echo x > ended) < /dev/null > /dev/null 2>&1", scratch.gate("go"));
    let orphaned = "while kill -0 $PPID 2> /dev/null; do sleep 0.01; done";
    let script = format!("{grandchild} & echo x > begun; {orphaned}; echo x > orphaned");
    check_lock_outlives_runner_of(&scratch, &script);
    assert!(entry_exists(&scratch.path("orphaned")));
}

#[test]
fn the_key_is_free_when_the_command_dies_with_its_runner() {
    let scratch = Scratch::new();
    let killed = output(&mut scratch.run(&["k"], "kill -9 $PPID"));
    assert_eq!(killed.status.signal(), Some(9));
    assert_prints(&output(&mut scratch.run(&["k", "--wait", "50s"], "echo 1")), "1\n");
}
