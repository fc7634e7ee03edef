//! Help, version, and wrong usage.

use super::*;

#[test]
fn help_that_cannot_be_written_is_an_error() {
    let program = || Command::new(env!("CARGO_BIN_EXE_record-store"));
    for arguments in [
        &["--help"][..],
        &["-h"],
        &["--version"],
        &["help"],
        &["help", "get"],
        &["run", "--help"],
        &["completions", "bash"],
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let message = assert_fails(&output(program().args(arguments).stdout(full)), 74);
        assert!(message.contains("standard output"), "{message}");
        // A reader may stop at any time.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = output(program().args(arguments).stdout(writer));
        assert_prints(&ended, "");
        assert_eq!(ended.stderr, b"");
        let printed = output(program().args(arguments));
        assert_code(&printed, 0);
        assert!(!printed.stdout.is_empty() && printed.stderr.is_empty(), "{printed:?}");
    }
}

#[test]
fn what_other_programs_call_a_subcommand_is_suggested() {
    let scratch = Scratch::new();
    for (name, subcommand) in [
        ("del", "rm"),
        ("delete", "rm"),
        ("SET", "put"),
        ("list", "ls"),
        ("cat", "get"),
        ("show", "get"),
        ("fsck", "verify"),
        ("exec", "run"),
        ("manual", "man"),
    ] {
        let message = assert_usage(&output(&mut scratch.cli(name, &["k"])));
        assert!(message.starts_with(&format!("error: unrecognized subcommand '{name}'\n")), "{message}");
        assert!(message.contains(&format!(", use '{subcommand}'\n")), "{message}");
        // Something else looks similar.
        assert_eq!(message.matches("tip:").count(), 1, "{message}");
    }
    // A typing error.
    let message = assert_usage(&output(&mut scratch.cli("verfy", &[])));
    assert!(message.contains("similar subcommand exists: 'verify'"), "{message}");
}

#[track_caller]
fn assert_usage(output: &Output) -> String {
    assert_code(output, 2);
    assert_eq!(output.stdout, b"");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn messages_shorten_and_escape_what_was_typed() {
    let scratch = Scratch::new();
    let long = ("ä".repeat(10_000), "ä".repeat(40));
    let unseen = ("a\u{202e}\u{1b}[2J".to_owned(), "a\\u{202e}\\u{1b}[2J".to_owned());
    for (text, shown) in [long, unseen] {
        let check = |failed: Output, code: i32| {
            assert_code(&failed, code);
            let message = String::from_utf8(failed.stderr).unwrap();
            assert!(message.len() < 600 && message.contains(&shown), "{message}");
            assert!(!message.contains(['\u{1b}', '\u{202e}']), "{message:?}");
        };
        let line = format!("{{\"key\":{},\"result\":1}}", serde_json::json!(text));
        assert_prints(&feed(&mut scratch.cli("import", &[]), line.as_bytes()), "");
        check(feed(&mut scratch.cli("import", &[]), line.as_bytes()), 73);
        assert_prints(&output(&mut scratch.cli("rm", &[&text])), "");
        for (subcommand, arguments, code) in [
            ("get", &[&*text][..], 1),
            ("rm", &[&text], 1),
            ("unlock", &[&text, "--force"], 1),
            ("get", &["k", &text], 1),
            ("put", &["k", &text], 2),
            ("get", &["k", &format!("--{text}")], 2),
            ("get", &["k", "--wait", &text], 2),
            ("import", &["line", "--existing", &text], 2),
            (&text, &[], 2),
            ("run", &["k", "--", &format!("./{text}")], if text.len() > 100 { 126 } else { 127 }),
        ] {
            check(output(&mut scratch.cli(subcommand, arguments)), code);
        }
    }
}
