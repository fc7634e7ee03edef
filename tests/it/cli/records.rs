//! `get`, `put` and `rm`, and how errors are reported.

use std::os::unix::ffi::OsStringExt;

use record_store::{Holder, LockOptions, RecordStoreExt};

use super::*;

#[test]
fn a_record_can_be_put_read_and_removed() {
    let scratch = Scratch::new();
    assert_prints(&feed(&mut scratch.cli("put", &["a/b", "--relaxed"]), b" {\"n\": 1.0}\n"), "");
    assert_prints(&output(&mut scratch.cli("get", &["a/b"])), "{\"n\": 1.0}\n");
    let record = scratch.open().read::<serde_json::Value>("a/b").unwrap().unwrap();
    assert_eq!(record.result["n"], 1.0);
    assert_prints(&feed(&mut scratch.cli("put", &["t", "--text"]), b"line\n"), "");
    assert_prints(&output(&mut scratch.cli("get", &["t", "--text"])), "line\n");

    assert_prints(&output(&mut scratch.cli("rm", &["a/b"])), "");
    for subcommand in ["rm", "get"] {
        let message = assert_fails(&output(&mut scratch.cli(subcommand, &["a/b"])), 1);
        assert!(message.contains("a/b") && message.ends_with("; list the keys with ls\n"), "{message}");
    }
}

#[test]
fn any_bytes_come_back_unchanged() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_code(&feed(&mut scratch.cli("put", &["k", "--bytes"]), &bytes), 0);
    assert_eq!(output(&mut scratch.cli("get", &["k", "--bytes"])).stdout, bytes);
    fs::write(scratch.path("input"), &bytes).unwrap();
    for _ in ["computed", "stored"] {
        let run = output(&mut scratch.run(&["run", "--bytes"], "cat input; echo >> runs"));
        assert_code(&run, 0);
        assert_eq!(run.stdout, bytes);
    }
    assert_eq!(scratch.runs(), 1);
    assert_prints(&feed(&mut scratch.cli("put", &["empty", "--bytes"]), b""), "");
    assert_prints(&output(&mut scratch.cli("get", &["empty", "--bytes"])), "");
    assert_prints(&output(&mut scratch.cli("get", &["empty"])), "\"\"\n");
    // A program without this one reads base64.
    let stored: String = scratch.open().read("k").unwrap().unwrap().result;
    assert!(stored.starts_with("AAECAwQFBgcICQ"), "{stored:.20}");
}

#[test]
fn a_result_that_is_no_base64_is_not_taken_for_bytes() {
    let scratch = Scratch::new();
    for stored in ["\"a b\"", "\"AAE\"", "1", "[]"] {
        assert_code(&feed(&mut scratch.cli("put", &["k"]), stored.as_bytes()), 0);
        let message = assert_fails(&output(&mut scratch.cli("get", &["k", "--bytes"])), 65);
        assert!(message.contains("\"k\""), "{message}");
    }
    assert_code(&output(&mut scratch.cli("get", &["k", "--bytes", "--text"])), 2);
    assert_code(&output(&mut scratch.cli("get", &["k", "--bytes", "--json"])), 2);
    let input = [0xFF];
    for form in [&["k"][..], &["k", "--text"]] {
        let message = assert_fails(&feed(&mut scratch.cli("put", form), &input), 65);
        assert!(message.contains("--bytes"), "{message}");
    }
}

#[test]
fn invalid_input_is_not_stored() {
    let scratch = Scratch::new();
    let message = assert_fails(&feed(&mut scratch.cli("put", &["k"]), b"{} {}"), 65);
    assert!(message.ends_with("; store it with --text\n"), "{message}");
    assert_fails(&feed(&mut scratch.cli("put", &["k", "--text"]), b"\xff"), 65);
    assert!(!entry_exists(&scratch.store()));
}

#[test]
fn get_rm_ls_and_locks_do_not_create_a_store() {
    let scratch = Scratch::new();
    for (subcommand, arguments) in [("get", &["k"][..]), ("rm", &["k"]), ("ls", &[]), ("locks", &[])] {
        let message = assert_fails(&output(&mut scratch.cli(subcommand, arguments)), 1);
        assert!(message.ends_with("; create a store with put, run or import\n"), "{message}");
        assert!(!entry_exists(&scratch.store()), "{subcommand}");
    }
    // A directory that is not a store.
    fs::create_dir(scratch.store()).unwrap();
    assert_fails(&output(&mut scratch.cli("get", &["k"])), 1);
    assert!(!entry_exists(&scratch.store().join(".store")));
}

#[test]
fn get_put_and_rm_wait_for_a_locked_record() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = store.lock("k", LockOptions::new().holder(Holder::named("night job").unwrap())).unwrap();
    let once = ["k", "--wait", "0"];
    for refused in [feed(&mut scratch.cli("put", &once), b"1"), output(&mut scratch.cli("rm", &once))] {
        let message = assert_fails(&refused, 75);
        assert!(message.contains("night job") && message.ends_with("release it with unlock\n"), "{message}");
    }
    assert_fails(&output(&mut scratch.cli("get", &["k", "--wait", "10ms"])), 75);
    let mut waiter = Background::start(&mut scratch.cli("get", &["k"]));
    guard.write("done").unwrap();
    assert!(waiter.is_running());
    guard.release().unwrap();
    assert_prints(&waiter.output(), "\"done\"\n");
    // The default is the same for each command.
    fs::write(scratch.path("lines"), "{\"key\":\"k\",\"result\":2}\n").unwrap();
    for (subcommand, arguments) in [("put", &["k", "--text"][..]), ("import", &["lines"]), ("rm", &["k"])] {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        guard.remove().unwrap();
        let mut waiter = Background::start(&mut scratch.cli(subcommand, arguments));
        scratch.wait_until_opened(&mut waiter);
        guard.write("for rm").unwrap();
        if subcommand == "import" {
            guard.remove().unwrap();
        }
        guard.release().unwrap();
        assert_prints(&waiter.output(), "");
    }
    assert!(!store.exists("k").unwrap());
}

#[test]
fn a_corrupt_record_is_reported_with_its_cause() {
    let scratch = Scratch::new();
    scratch.open();
    fs::write(scratch.store().join("k.json"), "{\"key\":").unwrap();
    for mut command in [scratch.cli("get", &["k"]), scratch.run(&["k", "--fail-if-damaged"], "echo 1")] {
        let message = assert_fails(&output(&mut command), 65);
        assert!(message.contains("corrupt record") && message.contains("k.json"), "{message}");
        // The cause, which is the parser's message, comes last, before the advice.
        let end = "column 7; replace the record with put, or remove it with rm\n";
        assert!(message.ends_with(end), "{message}");
    }
    assert_prints(&output(&mut scratch.run(&["k", "--refresh"], "echo 1")), "1\n");
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "1\n");
}

#[test]
fn a_full_disk_is_reported() {
    let scratch = Scratch::new();
    assert_prints(&output(&mut scratch.run(&["k"], "echo 1")), "1\n");
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    for (subcommand, arguments) in [("get", &["k"][..]), ("ls", &[])] {
        let printed = output(scratch.cli(subcommand, arguments).stdout(full()));
        assert!(assert_fails(&printed, 74).contains("standard output"));
    }
    // A failure to print the error does not change the exit code.
    assert_code(&output(scratch.cli("get", &["none"]).stderr(full())), 1);
}

#[test]
fn a_store_that_cannot_be_written_can_be_read() {
    let scratch = Scratch::new();
    assert_prints(&output(&mut scratch.run(&["k"], "echo 1")), "1\n");
    let read_only = |command: &Command| in_namespace(READ_ONLY, scratch.0.path(), command);
    let Some(mut get) = read_only(&scratch.cli("get", &["k"])) else { return };
    assert_prints(&output(&mut get), "1\n");
    for command in [scratch.cli("rm", &["k"]), scratch.cli("gc", &[])] {
        let message = assert_fails(&output(&mut read_only(&command).unwrap()), 74);
        assert!(message.ends_with("they need no write permission\n"), "{message}");
    }
}

#[test]
fn wrong_usage_is_refused() {
    let scratch = Scratch::new();
    for mut command in [
        scratch.cli("get", &[""]),
        scratch.cli("get", &[]),
        scratch.cli("get", &["k", "--wait", "soon"]),
        scratch.cli("run", &["k"]),
        scratch.cli("run", &["k", "--"]),
        scratch.cli("grab", &[]),
    ] {
        assert_code(&output(&mut command), 2);
    }
    let not_utf8 = std::ffi::OsString::from_vec(b"a\xff".into());
    assert_code(&output(scratch.cli("get", &[]).arg(not_utf8)), 2);
    assert!(!entry_exists(&scratch.store()));
}

#[test]
fn every_subcommand_has_help_with_examples() {
    let help = |arguments: &[&str]| {
        let printed = output(Command::new(env!("CARGO_BIN_EXE_record-store")).args(arguments).arg("--help"));
        assert_code(&printed, 0);
        String::from_utf8(printed.stdout).unwrap()
    };
    for subcommand in [
        "run",
        "lock",
        "get",
        "put",
        "rm",
        "ls",
        "locks",
        "renew",
        "unlock",
        "export",
        "import",
        "verify",
        "completions",
    ] {
        assert!(help(&[subcommand]).contains("Examples:\n"), "{subcommand}");
        assert!(help(&[]).contains(&format!("\n  {subcommand} ")), "{subcommand}");
    }
    for text in [help(&[]), help(&["run"])] {
        assert!(text.contains("Exit codes:") && text.contains("128+n"), "{text}");
    }
}
