//! `run`: a command runs once per key, across all processes.

use record_store::{RecordStoreExt, WriteOptions};

use super::*;

#[test]
fn of_many_concurrent_processes_one_runs_and_all_print_the_result() {
    let scratch = Scratch::new();
    let script = format!("echo x >> runs; {} echo '{{\"by\": '$$'}}'", scratch.gate("go"));
    let mut runs: Vec<_> = (0..8).map(|_| Background::start(&mut scratch.run(&["k"], &script))).collect();
    scratch.wait_for_file("runs");
    for run in &mut runs {
        scratch.wait_until_opened(run);
    }
    scratch.touch("go");
    let outputs: Vec<_> = runs.into_iter().map(Background::output).collect();
    let first = String::from_utf8(outputs[0].stdout.clone()).unwrap();
    assert!(first.starts_with("{\"by\": "), "{first}");
    for output in &outputs {
        assert_prints(output, &first);
    }
    assert_eq!(scratch.runs(), 1);
    assert!(!entry_exists(&scratch.store().join("k.lock")));

    // A later process prints the result at once.
    assert_prints(&output(&mut scratch.run(&["k", "--wait", "0"], "echo x >> runs")), &first);
    assert_eq!(scratch.runs(), 1);
}

#[test]
fn a_fast_command_runs_only_once_too() {
    let scratch = Scratch::new();
    // Some processes find no result, and then find the key free because another one has just finished.
    let runs: Vec<_> = (0..100)
        .map(|number| {
            let key = format!("{}", number / 10);
            let script = format!("echo x >> runs; echo {key}");
            (key.clone(), Background::start(&mut scratch.run(&[&key, "--relaxed"], &script)))
        })
        .collect();
    for (key, run) in runs {
        assert_prints(&run.output(), &format!("{key}\n"));
    }
    assert_eq!(scratch.runs(), 10);
}

#[test]
fn a_stored_result_is_printed_without_changing_the_store() {
    let scratch = Scratch::new();
    assert_prints(&output(&mut scratch.run(&["k"], "echo 7")), "7\n");
    let before = scratch.owners();
    assert_eq!(before.len(), 1);
    assert_prints(&output(&mut scratch.run(&["k"], "false")), "7\n");
    // Opening the store for writing would have removed the dead owner's file and left a new one.
    assert_eq!(scratch.owners(), before);
}

#[test]
fn a_failed_command_stores_nothing_and_its_exit_code_is_passed_on() {
    let scratch = Scratch::new();
    let failed = output(&mut scratch.run(&["k"], "echo why >&2; exit 7"));
    assert_code(&failed, 7);
    assert_eq!(failed.stdout, b"");
    assert_eq!(String::from_utf8_lossy(&failed.stderr), "why\n");
    assert_fails(&output(&mut scratch.cli("get", &["k"])), 1);
    assert_code(&output(&mut scratch.run(&["k"], "kill -9 $$")), 128 + 9);
    assert_prints(&output(&mut scratch.run(&["k", "--wait", "0"], "echo 1")), "1\n");
}

#[test]
fn one_waiter_runs_its_own_command_after_a_failed_one() {
    let scratch = Scratch::new();
    let first = Background::start(
        &mut scratch.run(&["k"], &format!("echo x > begun; {} exit 3", scratch.gate("go"))),
    );
    scratch.wait_for_file("begun");
    let mut waiters: Vec<_> =
        (0..3).map(|_| Background::start(&mut scratch.run(&["k"], "echo x >> runs; echo 2"))).collect();
    for waiter in &mut waiters {
        scratch.wait_until_opened(waiter);
    }
    scratch.touch("go");
    assert_code(&first.output(), 3);
    for waiter in waiters {
        assert_prints(&waiter.output(), "2\n");
    }
    assert_eq!(scratch.runs(), 1);
}

#[test]
fn a_timeout_reports_the_holder_of_the_lock() {
    let scratch = Scratch::new();
    let script = format!("echo x > begun; {} echo 1", scratch.gate("go"));
    let mut holder = Background::start(&mut scratch.run(&["k"], &script));
    scratch.wait_for_file("begun");
    let pid = holder.child().id().to_string();
    for arguments in
        [&["k", "--wait", "0"][..], &["k", "--wait", "20ms"], &["k", "--wait", "20ms", "--refresh"]]
    {
        let start = Instant::now();
        let message = assert_fails(&output(&mut scratch.run(arguments, "echo x >> runs")), 75);
        assert!(message.contains(&pid) && message.contains("; wait longer with --wait"), "{message}");
        if arguments.contains(&"20ms") {
            assert!(start.elapsed() >= Duration::from_millis(20));
            // The message reports the whole time waited, which is not in microseconds.
            assert!(message.contains(" after ") && !message.contains("µs"), "{message}");
        }
    }
    assert_eq!(scratch.runs(), 0);
    scratch.touch("go");
    assert_prints(&holder.output(), "1\n");
}

#[test]
fn refresh_runs_even_if_a_result_is_stored() {
    let scratch = Scratch::new();
    assert_prints(&output(&mut scratch.run(&["k"], "echo 1")), "1\n");
    assert_prints(&output(&mut scratch.run(&["k", "--refresh"], "echo 2")), "2\n");
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "2\n");
    // A failed refresh keeps the old result.
    assert_code(&output(&mut scratch.run(&["k", "--refresh"], "exit 1")), 1);
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "2\n");
}

#[test]
fn json_is_stored_byte_for_byte_and_nothing_else_is_accepted() {
    let scratch = Scratch::new();
    let json = "{ \"a\" : [1.50, 123456789012345678901234567890, \"\\u00e9\"] }";
    assert_prints(
        &output(&mut scratch.run(&["k"], &format!("printf '\\n  %s \\n' '{json}'"))),
        &format!("{json}\n"),
    );
    let message = assert_fails(&output(&mut scratch.run(&["other"], "true")), 65);
    assert!(message.contains("not one JSON value") && message.ends_with("with --text\n"), "{message}");
    assert_fails(&output(&mut scratch.cli("get", &["other"])), 1);
}

#[test]
fn text_is_stored_byte_for_byte() {
    let scratch = Scratch::new();
    let text = "two \"lines\"\n of text\n";
    for script in ["printf 'two \"lines\"\\n of text\\n'", "false"] {
        assert_prints(&output(&mut scratch.run(&["k", "--text"], script)), text);
    }
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "\"two \\\"lines\\\"\\n of text\\n\"\n");
    assert_prints(&output(&mut scratch.cli("get", &["k", "--text"])), text);
    assert_prints(&output(&mut scratch.run(&["empty", "--text"], "true")), "");
    assert_prints(&output(&mut scratch.cli("get", &["empty"])), "\"\"\n");

    // A stored number is not printed as text.
    assert_prints(&output(&mut scratch.run(&["n"], "echo 7")), "7\n");
    let message = assert_fails(&output(&mut scratch.run(&["n", "--text"], "echo 7")), 65);
    assert!(message.ends_with("; leave out --text\n"), "{message}");
}

#[test]
fn a_command_that_cannot_run_releases_the_key() {
    let scratch = Scratch::new();
    let message = assert_fails(&output(scratch.cli("run", &["k"]).args(["--", "./no-such-command"])), 127);
    assert!(message.contains("no-such-command"), "{message}");
    scratch.touch("plain-file");
    assert_fails(&output(scratch.cli("run", &["k"]).args(["--", "./plain-file"])), 126);
    assert_prints(&output(&mut scratch.run(&["k", "--wait", "0"], "echo 1")), "1\n");
}

#[test]
fn a_large_output_does_not_block() {
    let scratch = Scratch::new();
    let script = "echo '['; seq 1 400000 | sed 's/$/,/'; echo '0]'; head -c 1000000 /dev/zero >&2";
    let printed = output(&mut scratch.run(&["k", "--relaxed"], script));
    assert_code(&printed, 0);
    assert_eq!(printed.stderr.len(), 1_000_000);
    let numbers: Vec<u32> = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!((numbers.len(), numbers[399_999]), (400_001, 400_000));
    assert_eq!(output(&mut scratch.cli("get", &["k"])).stdout, printed.stdout);
}

#[test]
fn the_output_is_complete_when_no_process_has_it_open() {
    let scratch = Scratch::new();
    let script = format!("({} echo '2]') & echo '[1,'; echo $$ > begun", scratch.gate("go"));
    let mut run = Background::start(&mut scratch.run(&["k"], &script));
    scratch.wait_for_file("begun");
    assert_fails(&output(&mut scratch.run(&["k", "--wait", "50ms"], "echo 0")), 75);
    assert!(run.is_running());
    scratch.touch("go");
    assert_prints(&run.output(), "[1,\n2]\n");
}

#[test]
fn a_command_that_closes_its_output_early_is_waited_for() {
    let scratch = Scratch::new();
    let script = format!("echo 1; exec >&-; echo x > begun; {} exit 4", scratch.gate("go"));
    let mut run = Background::start(&mut scratch.run(&["k"], &script));
    scratch.wait_for_file("begun");
    assert_fails(&output(&mut scratch.run(&["k", "--wait", "50ms"], "echo 0")), 75);
    assert!(run.is_running());
    scratch.touch("go");
    assert_code(&run.output(), 4);
}

#[test]
fn the_command_reads_standard_input() {
    let scratch = Scratch::new();
    assert_prints(&feed(&mut scratch.run(&["k"], "cat"), b"[1]"), "[1]\n");
}

#[test]
fn a_reader_that_stops_early_is_not_an_error() {
    let scratch = Scratch::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let printed = output(scratch.run(&["k"], "echo 1").stdout(writer));
    assert_prints(&printed, "");
    assert_eq!(printed.stderr, b"");
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "1\n");
}

const STALE: [&str; 5] = ["k", "--ttl", "1h", "--stale", "1h"];

/// Stores a result that is stale for a call with the options [`STALE`].
fn store_stale(scratch: &Scratch) {
    let options = WriteOptions::new().time_to_live(Duration::from_mins(30));
    scratch.open().write_with("k", &1, options).unwrap();
}

#[test]
fn a_stale_result_is_printed_while_one_command_computes_the_next() {
    let scratch = Scratch::new();
    store_stale(&scratch);
    let script = format!("echo x > begun; {} echo 2", scratch.gate("go"));
    let first = Background::start(&mut scratch.run(&STALE, &script));
    scratch.wait_for_file("begun");
    for more in [&["--wait", "0"][..], &[], &["--fail-if-damaged"], &["--tee"]] {
        let arguments = [&STALE[..], more].concat();
        let printed = output(&mut scratch.run(&arguments, "echo x >> runs"));
        assert_prints(&printed, "1\n");
        assert_eq!(String::from_utf8_lossy(&printed.stderr), "");
    }
    // All others wait for the lock, as ever.
    assert_fails(&output(&mut scratch.run(&["k", "--wait", "0"], "echo x >> runs")), 75);
    assert_fails(&output(&mut scratch.run(&["k", "--wait", "0", "--refresh"], "echo x >> runs")), 75);
    scratch.touch("go");
    assert_prints(&first.output(), "2\n");
    assert_prints(&output(&mut scratch.run(&STALE, "echo x >> runs")), "2\n");
    assert_eq!(scratch.runs(), 0);
    let left = scratch.open().record_info("k").unwrap().unwrap().time_left();
    assert!(left.is_some_and(|left| left > Duration::from_mins(90)), "{left:?}");
}

#[test]
fn of_many_processes_that_find_a_stale_result_one_runs() {
    let scratch = Scratch::new();
    store_stale(&scratch);
    let run = |_| Background::start(&mut scratch.run(&STALE, "echo x >> runs; echo 2"));
    for run in (0..8).map(run).collect::<Vec<_>>() {
        let printed = run.output();
        assert_code(&printed, 0);
        assert!([&b"1\n"[..], b"2\n"].contains(&&*printed.stdout), "{printed:?}");
    }
    assert_eq!(scratch.runs(), 1);
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "2\n");
}

#[test]
fn a_stale_result_stays_if_the_command_fails_or_is_terminated() {
    let scratch = Scratch::new();
    store_stale(&scratch);
    let failed = output(&mut scratch.run(&STALE, "exit 7"));
    assert_code(&failed, 7);
    assert_eq!(failed.stdout, b"");
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "1\n");
    let mut terminated = Background::start(&mut scratch.run(&STALE, "echo x > begun; sleep 1000"));
    scratch.wait_for_file("begun");
    terminated.signal(Signal::TERM);
    assert_code(&terminated.output(), 128 + 15);
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "1\n");
    assert_prints(&output(&mut scratch.run(&STALE, "echo 2")), "2\n");
}

#[test]
fn a_stale_result_is_printed_for_a_user_who_may_not_write() {
    let scratch = Scratch::new();
    store_stale(&scratch);
    let run = scratch.run(&STALE, "echo x >> runs");
    let Some(mut run) = in_namespace(READ_ONLY, &scratch.store(), &run) else { return };
    assert_prints(&output(&mut run), "1\n");
    assert_eq!(scratch.runs(), 0);
}

#[test]
fn a_result_can_be_stale_only_after_a_time_to_live() {
    let scratch = Scratch::new();
    for arguments in [
        &["k", "--stale", "1h"][..],
        &[&STALE[..], &["--refresh"]].concat(),
        &[&STALE[..], &["--refresh-ttl"]].concat(),
    ] {
        assert_code(&output(&mut scratch.run(arguments, "echo x >> runs")), 2);
    }
    assert_eq!(scratch.runs(), 0);
    // Not forever: then it would never be stale.
    let longest = ["k", "--ttl", "1ms", "--stale", "9000000d"];
    assert_prints(&output(&mut scratch.run(&longest, "echo 1")), "1\n");
    std::thread::sleep(Duration::from_millis(2));
    assert_prints(&output(&mut scratch.run(&longest, "echo 2")), "2\n");
}
