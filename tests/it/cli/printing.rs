//! Signals while `run` prints: only `run` has the output of the command, so it is printed first.

use record_store::RecordStoreExt;

use super::*;

/// More than a pipe buffer holds.
const SIZE: usize = 1_000_000;

/// A `run` in the middle of printing: its reader does not read yet.
fn printing(scratch: &Scratch, arguments: &[&str], script: &str) -> Background {
    let mut run = Background::start(&mut scratch.run(arguments, script));
    let stdout = run.child().stdout.take().unwrap();
    wait_for("the first output", || rustix::io::ioctl_fionread(&stdout).unwrap() > 0);
    run.child().stdout = Some(stdout);
    run
}

/// Sends the first signal and waits until the program knows it: then a thread limits the time that is left.
fn signal(run: &mut Background) {
    run.signal(Signal::TERM);
    let threads = format!("/proc/{}/task", run.child().id());
    let is_timer = |thread: fs::DirEntry| {
        fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name.trim() == "exit-timer")
    };
    wait_for("the signal to be handled", || {
        assert!(run.is_running(), "the signal has ended the program");
        fs::read_dir(&threads).is_ok_and(|threads| threads.flatten().any(is_timer))
    });
}

#[test]
fn a_signal_while_unstored_output_is_printed_loses_nothing() {
    let scratch = Scratch::new();
    let mut run = printing(&scratch, &["k"], &format!("head -c {SIZE} /dev/zero"));
    signal(&mut run);
    let message = assert_unstored(&run.output(), 128 + 15, &vec![0; SIZE]);
    assert!(message.contains("not one JSON value"), "{message}");
    assert!(!entry_exists(&scratch.store().join("k.json")));
}

#[test]
fn a_signal_while_a_stored_result_is_printed_loses_nothing() {
    let scratch = Scratch::new();
    let mut run = printing(&scratch, &["k", "--text"], &format!("head -c {SIZE} /dev/zero"));
    signal(&mut run);
    let ended = run.output();
    assert_code(&ended, 128 + 15);
    assert!(ended.stdout == vec![0; SIZE], "{} bytes", ended.stdout.len());
    assert_eq!(ended.stderr, b"");
    assert_eq!(scratch.open().read::<String>("k").unwrap().unwrap().result.len(), SIZE);
}

#[test]
fn a_second_signal_while_the_output_is_printed_ends_the_program_at_once() {
    let scratch = Scratch::new();
    let mut run = printing(&scratch, &["k"], &format!("head -c {SIZE} /dev/zero"));
    signal(&mut run);
    let start = Instant::now();
    run.signal(Signal::INT);
    wait_for("the program to end", || !run.is_running());
    // The first signal alone would end it after 5 seconds.
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_code(&run.output(), 128 + 2);
}
