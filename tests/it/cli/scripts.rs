//! The options for scripts: variables for the command, tokens, conditions, a default directory and `--quiet`.

use record_store::{LockOptions, RecordStoreExt};

use super::*;

const PROGRAM: &str = env!("CARGO_BIN_EXE_record-store");

/// `record-store ARGUMENTS…`, in the scratch directory, with this default directory.
fn bare(scratch: &Scratch, arguments: &[&str], default: Option<&str>) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(scratch.0.path()).stdin(Stdio::null());
    match default {
        Some(dir) => command.env("RECORD_STORE_DIR", dir),
        None => command.env_remove("RECORD_STORE_DIR"),
    };
    command
}

#[test]
fn the_command_finds_the_store_the_key_and_the_token_in_its_environment() {
    let scratch = Scratch::new();
    let script =
        "echo \"$RECORD_STORE_DIR|$RECORD_STORE_KEY|$RECORD_STORE_TOKEN\" > variables; echo x > begun";
    for subcommand in ["run", "lock"] {
        let script = format!("{script}; {} echo 1", scratch.gate("go"));
        let arguments = [subcommand, "store", "a key", "--", "sh", "-c", &script];
        let mut command = bare(&scratch, &arguments, Some("elsewhere"));
        command.env("RECORD_STORE_KEY", "outer").env("RECORD_STORE_TOKEN", "7");
        let command = Background::start(&mut command);
        scratch.wait_for_file("begun");
        let lock = scratch.open().lock_info("a key").unwrap().unwrap();
        let variables = fs::read_to_string(scratch.path("variables")).unwrap();
        // The store was named by a relative path.
        let dir = scratch.store().canonicalize().unwrap();
        assert_eq!(variables, format!("{}|a key|{}\n", dir.display(), lock.token()), "{subcommand}");
        scratch.touch("go");
        assert_prints(&command.output(), "1\n");
        for name in ["go", "begun"] {
            fs::remove_file(scratch.path(name)).unwrap();
        }
        scratch.open().remove("a key").unwrap();
    }
}

#[test]
fn a_command_without_the_store_does_not_find_the_token_of_another_lock() {
    let scratch = Scratch::new();
    scratch.touch("store");
    let script = "echo \"[\\\"$RECORD_STORE_KEY\\\",\\\"$RECORD_STORE_TOKEN\\\"]\"";
    let mut run = scratch.run(&["k", "--run-anyway"], script);
    run.env("RECORD_STORE_KEY", "outer").env("RECORD_STORE_TOKEN", "7");
    assert_prints(&output(&mut run), "[\"\",\"\"]\n");
}

#[test]
fn a_command_reads_and_changes_its_own_record_with_its_token() {
    let scratch = Scratch::new();
    let script = format!(
        "set -e; store() {{ what=$1; shift; {PROGRAM} $what \"$RECORD_STORE_KEY\" --token $RECORD_STORE_TOKEN \"$@\"; }}
        echo 1 | store put
        store get
        store rm
        echo 2 | store put --if-absent
        echo 3 | store put --if-version $(store get --json | sed 's/.*\"version\":\\([0-9]*\\).*/\\1/')
        store renew --hold 1h
        {PROGRAM} locks --json | grep -c remaining_seconds.:3[0-9][0-9][0-9]
        store renew
        {PROGRAM} locks --json | grep -c remaining_seconds.:null"
    );
    for subcommand in ["lock", "run"] {
        let mut command = scratch.cli(subcommand, &["k", "--", "sh", "-c", &script]);
        if subcommand == "run" {
            command = scratch.cli(subcommand, &["k", "--refresh", "--text", "--", "sh", "-c", &script]);
        }
        assert_prints(&output(&mut command), "1\n1\n1\n");
        let stored = output(&mut scratch.cli("get", &["k"]));
        let result = if subcommand == "lock" { "3\n" } else { "\"1\\n1\\n1\\n\"\n" };
        assert_prints(&stored, result);
    }
}

#[test]
fn a_token_whose_lock_is_lost_changes_nothing() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("k", &1).unwrap();
    assert_prints(&output(&mut scratch.lock(&["k"], "echo $RECORD_STORE_TOKEN > token")), "");
    let token = fs::read_to_string(scratch.path("token")).unwrap();
    let late = ["k", "--token", token.trim()];
    let check = || {
        for subcommand in ["put", "rm", "renew", "get"] {
            let mut command = scratch.cli(subcommand, &late);
            // The others do not read their input.
            let refused = if subcommand == "put" { feed(&mut command, b"2") } else { output(&mut command) };
            let message = assert_fails(&refused, 75);
            assert!(message.contains("is lost"), "{message}");
        }
    };
    // Neither while the key is free, nor while another holder has it.
    check();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    check();
    assert_eq!(guard.read::<u8>().unwrap().unwrap().result, 1);
    assert_eq!(guard.remaining().unwrap(), None);
    assert_code(&output(&mut scratch.cli("renew", &["k"])), 2);
    assert_code(&output(&mut scratch.cli("put", &["k", "--token", "x"])), 2);
}

#[test]
fn a_lease_that_a_script_has_set_ends() {
    let scratch = Scratch::new();
    let script = format!(
        "{PROGRAM} renew k --token $RECORD_STORE_TOKEN --hold 100ms; {PROGRAM} lock k -- echo next; echo end"
    );
    let lost = output(&mut scratch.lock(&["k"], &script));
    assert_code(&lost, 75);
    assert_eq!(String::from_utf8_lossy(&lost.stdout), "next\nend\n");
    assert!(String::from_utf8_lossy(&lost.stderr).contains("the lock was lost while the command ran"));
}

#[test]
fn put_writes_only_if_the_record_is_as_required() {
    let scratch = Scratch::new();
    let put = |arguments: &[&str], input: &str| feed(&mut scratch.cli("put", arguments), input.as_bytes());
    let get = || output(&mut scratch.cli("get", &["k"]));
    assert_prints(&put(&["k", "--if-absent"], "1"), "");
    let message = assert_fails(&put(&["k", "--if-absent"], "2"), 73);
    assert!(message.contains("\"k\" already has a record") && message.contains("--if-absent"), "{message}");
    assert_prints(&get(), "1\n");

    let shown = output(&mut scratch.cli("get", &["k", "--json"]));
    let record: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let stored = scratch.open().read::<u8>("k").unwrap().unwrap();
    assert_eq!((&record["key"], &record["result"]), (&"k".into(), &1.into()));
    assert_eq!(record["version"], serde_json::to_value(stored.version).unwrap());
    assert!(record.get("expires_at").is_none(), "{record}");
    let version = record["version"].to_string();
    assert_prints(&put(&["k", "--text", "--ttl", "1h", "--if-version", &version], "2"), "");
    let message = assert_fails(&put(&["k", "--if-version", &version], "3"), 73);
    assert!(message.contains(&version) && message.contains("get --json"), "{message}");
    assert_prints(&get(), "\"2\"\n");
    let shown = output(&mut scratch.cli("get", &["k", "--json"]));
    assert!(String::from_utf8_lossy(&shown.stdout).contains("\"expires_at\":\""), "{shown:?}");
    assert_fails(&put(&["none", "--if-version", &version], "3"), 73);
    for arguments in [&["k", "--if-absent", "--if-version", "1"][..], &["k", "--if-version", "x"]] {
        assert_code(&output(&mut scratch.cli("put", arguments)), 2);
    }
    assert_code(&output(&mut scratch.cli("get", &["k", "--json", "--text"])), 2);
}

#[test]
fn no_concurrent_change_of_a_shell_loop_is_lost() {
    let scratch = Scratch::new();
    assert_prints(&feed(&mut scratch.cli("put", &["k"]), b"0"), "");
    let script = "for i in 1 2 3 4 5; do
            code=73
            while [ $code = 73 ]; do
                record=$($0 get k --json)
                version=$(echo \"$record\" | sed 's/.*\"version\":\\([0-9]*\\).*/\\1/')
                result=$(echo \"$record\" | sed 's/.*\"result\":\\([0-9]*\\).*/\\1/')
                echo $((result + 1)) | $0 put k --relaxed --if-version $version 2> /dev/null
                code=$?
            done
            [ $code = 0 ] || exit $code
        done";
    let shells: Vec<_> = (0..4)
        .map(|_| {
            let mut shell = Command::new("sh");
            shell.args(["-c", script, PROGRAM]).env("RECORD_STORE_DIR", scratch.store());
            Background::start(&mut shell)
        })
        .collect();
    for shell in shells {
        assert_prints(&shell.output(), "");
    }
    assert_prints(&output(&mut scratch.cli("get", &["k"])), "20\n");
}

#[test]
fn the_number_of_arguments_says_whether_the_store_is_among_them() {
    let scratch = Scratch::new();
    for (dir, result) in [("a", "1"), ("b", "2")] {
        assert_prints(&feed(&mut bare(&scratch, &["put", dir, "k"], None), result.as_bytes()), "");
    }
    fs::write(scratch.path("lines"), "{\"key\":\"k\",\"result\":7}\n").unwrap();
    for (arguments, default, printed) in [
        (&["get", "k"][..], Some("a"), "1\n"),
        // The variable changes nothing that is complete without it.
        (&["get", "b", "k"], Some("a"), "2\n"),
        (&["get", "--wait", "1s", "b", "--text", "k"], Some("a"), "error"),
        (&["get", "b", "--wait", "1s", "k"], Some("a"), "2\n"),
        (&["get", "--dir", "b", "k"], Some("a"), "2\n"),
        (&["get", "k", "-d", "b"], None, "2\n"),
        (&["run", "k", "--", "echo", "3"], Some("a"), "1\n"),
        (&["run", "b", "k", "--", "echo", "3"], Some("a"), "2\n"),
        (&["ls"], Some("a"), "k\n"),
        (&["ls", "b"], Some("a"), "k\n"),
        (&["export"], Some("a"), "{\"key\":\"k\",\"result\":1}\n"),
        (&["export", "b"], Some("a"), "{\"key\":\"k\",\"result\":2}\n"),
        (&["export", "-d", "b", "-"], Some("a"), "{\"key\":\"k\",\"result\":2}\n"),
        (&["import", "-d", "c", "lines"], Some("a"), ""),
        (&["get", "c", "k"], Some("a"), "7\n"),
    ] {
        let found = output(&mut bare(&scratch, arguments, default));
        if printed == "error" {
            assert_code(&found, 65);
        } else {
            assert_prints(&found, printed);
        }
    }
    for (arguments, default, word) in [
        (&["get", "k"][..], None, "RECORD_STORE_DIR"),
        (&["ls"], None, "RECORD_STORE_DIR"),
        (&["ls"], Some(""), "RECORD_STORE_DIR"),
        (&["export"], None, "RECORD_STORE_DIR"),
        (&["get"], Some("a"), "the key is missing"),
        (&["get", "-d", "a"], Some("a"), "the key is missing"),
        (&["put", "a", "k", "-d", "b"], None, "given twice"),
        (&["ls", "a", "-d", "b"], None, "given twice"),
        (&["export", "a", "file", "-d", "b"], None, "given twice"),
        (&["put", "a", "k", "more"], None, "unexpected argument"),
    ] {
        let refused = output(&mut bare(&scratch, arguments, default));
        assert_code(&refused, 2);
        let message = String::from_utf8(refused.stderr).unwrap();
        assert!(message.contains(word) && !message.contains("\n\n\n"), "{arguments:?}: {message}");
    }
    // Nothing was created on the way.
    let mut names: Vec<_> =
        fs::read_dir(scratch.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "c", "lines"]);
}

#[test]
fn quiet_leaves_out_what_is_no_error() {
    let scratch = Scratch::new();
    scratch.open();
    for quiet in [false, true] {
        let with = |mut command: Command| {
            if quiet {
                command.arg("-q");
            }
            command
        };
        fs::write(scratch.store().join("k.json"), "damaged").unwrap();
        let put = feed(&mut with(scratch.cli("put", &["k"])), b"1");
        assert_prints(&put, "");
        assert_eq!(put.stderr.is_empty(), quiet, "{put:?}");
        fs::write(scratch.store().join("package.json"), "{\"name\":1}").unwrap();
        let export = output(&mut with(scratch.cli("export", &[])));
        assert_prints(&export, "{\"key\":\"k\",\"result\":1}\n");
        assert_eq!(export.stderr.is_empty(), quiet, "{export:?}");
        // An error is printed in any case.
        assert_fails(&output(&mut with(scratch.cli("get", &["none"]))), 1);
    }
    scratch.touch("file");
    let without = |quiet: &[&str]| {
        let arguments = [&["run"], quiet, &["file", "k", "--run-anyway", "--", "echo", "1"]].concat();
        output(&mut bare(&scratch, &arguments, None))
    };
    assert_prints(&without(&[]), "1\n");
    assert!(!without(&[]).stderr.is_empty());
    assert_prints(&without(&["--quiet"]), "1\n");
    assert!(without(&["--quiet"]).stderr.is_empty());
}

#[test]
fn a_unit_that_may_mean_two_things_is_refused_everywhere() {
    let scratch = Scratch::new();
    for (subcommand, option) in [
        ("run", "--wait"),
        ("run", "--hold"),
        ("run", "--ttl"),
        ("lock", "--wait"),
        ("lock", "--hold"),
        ("get", "--wait"),
        ("put", "--wait"),
        ("put", "--ttl"),
        ("rm", "--wait"),
        ("renew", "--hold"),
        ("unlock", "--wait"),
        ("import", "--wait"),
        ("export", "--wait"),
        ("watch", "--interval"),
    ] {
        for (time, word) in [("1M", "minutes or months"), ("30", "30s for seconds"), ("1y", "days")] {
            let key: &[&str] = if subcommand == "watch" { &[] } else { &["k"] };
            let refused = output(&mut scratch.cli(subcommand, &[key, &[option, time]].concat()));
            assert_code(&refused, 2);
            let message = String::from_utf8(refused.stderr).unwrap();
            assert!(message.contains(option) && message.contains(word), "{subcommand}: {message}");
        }
    }
    assert!(!entry_exists(&scratch.store()));
}

#[test]
fn a_command_that_would_wait_for_its_own_lock_is_told_so_at_once() {
    let scratch = Scratch::new();
    let nested = [
        "get k",
        "get -d $RECORD_STORE_DIR k other",
        "rm k",
        "rm --prefix k",
        "put k < /dev/null --text",
        "run k -- echo 1",
        "lock k -- echo 1",
        "export",
        "import --existing overwrite < lines",
    ];
    fs::write(scratch.path("lines"), "{\"key\":\"k\",\"result\":1}\n").unwrap();
    let script = nested.map(|nested| format!("{PROGRAM} {nested}; echo $?")).join("\n");
    scratch.open().write("other", &1).unwrap();
    for outer in ["lock", "run"] {
        scratch.open().write("k", &0).unwrap();
        let arguments: &[&str] = if outer == "run" { &["k", "--refresh", "--text"] } else { &["k"] };
        let mut outer = scratch.cli(outer, arguments);
        let ended = output(outer.args(["--", "sh", "-c", &script]));
        let messages = String::from_utf8_lossy(&ended.stderr);
        // `get` prints the other record all the same.
        assert_prints(&ended, "75\n1\n75\n75\n75\n75\n75\n75\n75\n75\n");
        let told = messages.lines().filter(|line| line.contains("runs under the lock of \"k\" itself"));
        assert_eq!(told.count(), nested.len(), "{messages}");
    }
}

#[test]
fn the_variables_of_another_lock_refuse_nothing() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("k", &1).unwrap();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let token = guard.token().get();
    let ended = |key: &str, token: u64| {
        let mut get = scratch.cli("get", &["k", "--wait", "0"]);
        output(get.env("RECORD_STORE_KEY", key).env("RECORD_STORE_TOKEN", token.to_string()))
    };
    for (key, token) in [("k", token - 1), ("other", token)] {
        let message = assert_fails(&ended(key, token), 75);
        assert!(!message.contains("itself"), "{message}");
    }
    assert!(assert_fails(&ended("k", token), 75).contains("itself"));
    guard.release().unwrap();
    assert_prints(&ended("k", token), "1\n");
}
