//! `run --tee`: the output of the command is printed while it runs.

use std::io::{BufRead, BufReader, Read};

use record_store::RecordStoreExt;

use super::*;

/// More than a pipe buffer holds.
const SIZE: usize = 1_000_000;

#[test]
fn the_output_is_printed_while_the_command_runs() {
    let scratch = Scratch::new();
    let script = format!("echo '[1,'; {} echo 2; echo ']'", scratch.gate("go"));
    let mut run = Background::start(&mut scratch.run(&["k", "--tee"], &script));
    let mut stdout = BufReader::new(run.child().stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "[1,\n");
    assert!(!scratch.open().exists("k").unwrap(), "nothing is stored yet");
    scratch.touch("go");
    stdout.read_to_string(&mut line).unwrap();
    // Printed once, as the command did.
    assert_eq!(line, "[1,\n2\n]\n");
    assert_code(&run.output(), 0);
    assert_prints(&output(&mut scratch.run(&["k", "--tee"], "echo 0")), "[1,\n2\n]\n");
}

#[test]
fn a_reader_that_has_stopped_neither_stops_the_command_nor_keeps_the_key_locked() {
    let scratch = Scratch::new();
    let script = format!("head -c {SIZE} /dev/zero | tr '\\0' x");
    let mut run = Background::start(&mut scratch.run(&["k", "--tee", "--text"], &script));
    // The result is there although nobody reads the standard output of the other process.
    let stored = output(&mut scratch.cli("get", &["k", "--text", "--wait", "1m"]));
    let stored = if stored.stdout.is_empty() {
        // The other process had not acquired the lock yet.
        let store = scratch.open();
        assert!(store.wait_for_record("k", TIMEOUT).unwrap());
        store.read::<String>("k").unwrap().unwrap().result.len()
    } else {
        stored.stdout.len()
    };
    assert_eq!(stored, SIZE);
    assert!(run.is_running());
    let printed = run.output();
    assert_code(&printed, 0);
    assert_eq!(printed.stdout, vec![b'x'; SIZE]);
}

#[test]
fn a_reader_that_is_gone_does_not_keep_the_result_from_the_others() {
    let scratch = Scratch::new();
    let script = format!("echo 1; {} echo 2; touch ended", scratch.gate("go"));
    let mut run = Background::start(&mut scratch.run(&["k", "--tee", "--text"], &script));
    let mut first = [0; 2];
    run.child().stdout.take().unwrap().read_exact(&mut first).unwrap();
    scratch.touch("go");
    assert_code(&run.output(), 0);
    scratch.wait_for_file("ended");
    assert_eq!(scratch.open().read::<String>("k").unwrap().unwrap().result, "1\n2\n");
}

#[test]
fn what_cannot_be_stored_is_printed_once_too() {
    let scratch = Scratch::new();
    let failed = output(&mut scratch.run(&["k", "--tee"], "echo not JSON"));
    assert_unstored(&failed, 65, b"not JSON\n");
    let failed = output(&mut scratch.run(&["k", "--tee"], "echo 1; exit 7"));
    assert_unstored(&failed, 7, b"1\n");
    let failed = output(&mut scratch.run(&["k", "--tee", "--hold", "100ms"], "echo 1; sleep 60"));
    assert_unstored(&failed, 124, b"1\n");
    assert!(scratch.open().read::<u64>("k").unwrap().is_none());
}

#[test]
fn a_descendant_that_keeps_the_output_open_does_not_keep_the_program_from_ending() {
    let scratch = Scratch::new();
    let script = format!("setsid sh -c \"{}\" & echo 1; sleep 60", scratch.gate("go"));
    // It inherits standard error, which `output` would wait for.
    let mut run = scratch.run(&["k", "--tee", "--hold", "100ms"], &script);
    run.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut run = Background(Some(run.spawn().unwrap()));
    // Long before the descendant.
    wait_for("the program to end", || !run.is_running());
    assert!(scratch.open().read::<u64>("k").unwrap().is_none());
    scratch.touch("go");
    let ended = run.output();
    assert_code(&ended, 124);
    assert_eq!(ended.stdout, b"1\n");
}

#[test]
fn a_signal_ends_a_command_whose_output_nobody_reads() {
    let scratch = Scratch::new();
    let script = format!("head -c {SIZE} /dev/zero; echo > begun; {} true", scratch.gate("never"));
    let mut run = Background::start(&mut scratch.run(&["k", "--tee", "--text"], &script));
    scratch.wait_for_file("begun");
    run.signal(Signal::TERM);
    // The time for the reader is over after 5 seconds.
    wait_for("the program to end", || !run.is_running());
    assert!(!scratch.open().is_locked("k").unwrap());
}
