//! `unlock`: with `--force`, and after the user has confirmed it.

use record_store::{Holder, LockOptions, RecordStoreExt};

use super::terminal::Terminal;
use super::*;

fn job(name: &str) -> LockOptions {
    LockOptions::new().holder(Holder::named(name).unwrap())
}

const QUESTION: &str = "Release this lock? [y/N] ";

#[test]
fn force_breaks_a_live_lock() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = store.lock("a\nb", job("night job").hold_timeout(Duration::from_hours(1))).unwrap();
    let broken = output(&mut scratch.cli("unlock", &["a\nb", "--force"]));
    assert_code(&broken, 0);
    let shown = String::from_utf8(broken.stdout).unwrap();
    let token = guard.token().to_string();
    for word in ["a\\nb", "night job", "alive", "s ago)", "(in 59m ", &token] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    assert!(!store.is_locked("a\nb").unwrap());
    assert!(guard.write(&1).unwrap_err().is_lock_lost());
}

#[test]
fn without_a_terminal_the_error_suggests_force() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("k", job("night job")).unwrap();
    let message = assert_fails(&output(&mut scratch.cli("unlock", &["k"])), 2);
    assert!(
        message.contains("night job") && message.contains("alive") && message.contains("--force"),
        "{message}"
    );
    assert!(store.is_locked("k").unwrap());
}

#[test]
fn a_lock_without_a_lease_has_no_end() {
    let scratch = Scratch::new();
    scratch.open().acquire_lock("k", job("night job")).unwrap();
    let broken = output(&mut scratch.cli("unlock", &["k", "--force"]));
    assert_code(&broken, 0);
    let shown = String::from_utf8(broken.stdout).unwrap();
    let until = shown.lines().find(|line| line.starts_with("UNTIL")).unwrap();
    assert_eq!(until.split_whitespace().collect::<Vec<_>>(), ["UNTIL", "none"]);
}

#[test]
fn a_key_that_is_not_locked_cannot_be_unlocked() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.cli("unlock", &["k", "--force"])), 1);
    assert!(!entry_exists(&scratch.store()));
    scratch.open().acquire_lock("late", job("night job").hold_timeout(Duration::ZERO)).unwrap();
    for key in ["k", "late"] {
        let message = assert_fails(&output(&mut scratch.cli("unlock", &[key, "--force"])), 1);
        assert!(message.contains("not locked") && message.contains("with locks"), "{message}");
    }
}

#[test]
fn force_removes_a_corrupt_lock() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let path = scratch.store().join("k.lock");
    fs::write(&path, "not a lock").unwrap();
    let message = assert_fails(&output(&mut scratch.cli("unlock", &["k"])), 2);
    assert!(message.contains("corrupt lock") && message.contains("k.lock"), "{message}");
    assert!(message.contains("add --force") && !message.contains("break_lock"), "{message}");
    // A command that needs the lock suggests the command that removes it.
    for mut command in [scratch.cli("get", &["k"]), scratch.run(&["k"], "echo 1"), scratch.cli("rm", &["k"])]
    {
        let message = assert_fails(&output(&mut command), 65);
        assert!(message.contains("remove the file with unlock --force"), "{message}");
        assert!(!message.contains("break_lock"), "{message}");
    }
    assert!(store.try_lock("k", LockOptions::new()).is_err());
    assert_code(&output(&mut scratch.cli("unlock", &["k", "--force"])), 0);
    assert!(store.try_lock("k", LockOptions::new()).unwrap().is_some());
}

#[test]
fn a_lock_that_was_acquired_in_the_meantime_is_not_taken_for_the_damaged_one() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("k", job("night job")).unwrap();
    let path = scratch.store().join("k.lock");
    let live = scratch.path("live");
    fs::copy(&path, &live).unwrap();
    fs::write(&path, "not a lock").unwrap();
    let latch = scratch.enter_latch("k");
    let mut unlock = Background::start(&mut scratch.cli("unlock", &["k", "--force", "--wait", "50s"]));
    let (open, name) = (format!("/proc/{}/fd", unlock.child().id()), crate::support::latch_of("k"));
    let is_latch = |fd: fs::DirEntry| fd.path().read_link().is_ok_and(|file| file.ends_with(&name));
    wait_for("the program to reach the latch", || {
        assert!(unlock.is_running());
        fs::read_dir(&open).is_ok_and(|open| open.flatten().any(is_latch))
    });
    // Another unlock was faster, and the next holder has acquired the lock.
    fs::rename(&live, &path).unwrap();
    drop(latch);
    let ended = unlock.output();
    assert_code(&ended, 75);
    let message = String::from_utf8(ended.stderr).unwrap();
    assert!(message.contains("now locked by \"night job\""), "{message}");
    assert!(store.is_locked("k").unwrap());
    assert!(store.damaged().unwrap().is_empty());
}

#[test]
fn a_path_with_invisible_characters_is_shown_escaped() {
    let scratch = Scratch::new();
    let dir = scratch.path("a\u{1b}[31m\u{202e}b");
    record_store::FileSystemRecordStore::open(&dir).unwrap();
    let damage = || fs::write(dir.join("k.lock"), "not a lock").unwrap();
    damage();
    let unlock = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        command.arg("unlock").arg(&dir).arg("k").args(more).current_dir(scratch.0.path());
        command
    };
    for ended in [output(unlock(&[]).stdin(Stdio::null())), output(&mut unlock(&["--force"]))] {
        let shown = [ended.stdout, ended.stderr].concat();
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("a\\u{1b}[31m\\u{202e}b"), "{shown:?}");
        assert!(!shown.contains(['\u{1b}', '\u{202e}']), "{shown:?}");
    }
    damage();
    // On a terminal, too, where only the colours are escape sequences.
    let (_, raw) = Terminal::start(&unlock(&["--force"])).end();
    assert!(raw.contains("a\\u{1b}[31m\\u{202e}b") && !raw.contains('\u{202e}'), "{raw:?}");
    assert!(!raw.contains("a\u{1b}[31m"), "{raw:?}");
}

#[test]
fn on_a_terminal_the_user_is_asked() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("k", job("night job")).unwrap();
    for (answer, code) in [("n\n", 75), ("\n", 75), ("\x04", 75), ("yes\n", 0)] {
        let mut terminal = Terminal::start(&scratch.cli("unlock", &["k"]));
        let asked = terminal.wait_until("the question", |raw| raw.ends_with(QUESTION));
        assert!(asked.contains("night job") && asked.contains("\x1b[32malive\x1b[0m"), "{asked:?}");
        assert!(store.is_locked("k").unwrap());
        terminal.type_in(answer);
        let (status, raw) = terminal.end();
        assert_eq!(status.code(), Some(code), "{answer:?}: {raw}");
        assert!(raw.ends_with('\n'), "{raw:?}");
        assert_eq!(store.is_locked("k").unwrap(), code != 0);
    }
}

#[test]
fn only_the_lock_that_was_shown_is_broken() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let first = store.lock("k", job("first")).unwrap();
    let mut terminal = Terminal::start(&scratch.cli("unlock", &["k"]));
    terminal.wait_until("the question", |raw| raw.ends_with(QUESTION));
    first.release().unwrap();
    let second = store.lock("k", job("second")).unwrap();
    terminal.type_in("y\n");
    let (status, raw) = terminal.end();
    assert_eq!(status.code(), Some(75), "{raw}");
    assert!(raw.contains("now locked by \"second\""), "{raw}");
    second.write(&1).unwrap();
}

#[test]
fn colours_respect_the_terminal_and_no_color() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("k", job("night job")).unwrap();
    let shown = |name: &str, value: &str| {
        let mut command = scratch.cli("locks", &[]);
        Terminal::start(command.env(name, value)).end().1
    };
    assert!(shown("TERM", "xterm").contains("\x1b[32mheld\x1b[0m"));
    for (name, value) in [("NO_COLOR", "1"), ("CLICOLOR", "0"), ("TERM", "dumb")] {
        let plain = shown(name, value);
        assert!(plain.contains("held") && !plain.contains('\x1b'), "{plain:?}");
    }
    let piped = |name: &str| output(scratch.cli("locks", &[]).env(name, "1"));
    assert!(!String::from_utf8_lossy(&piped("UNUSED").stdout).contains('\x1b'));
    assert!(String::from_utf8_lossy(&piped("CLICOLOR_FORCE").stdout).contains("\x1b[32mheld\x1b[0m"));
}
