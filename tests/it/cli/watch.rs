//! `watch`: as a screen on a terminal, and as lines in a pipe.

use std::io::{BufRead, BufReader};
use std::sync::mpsc::{Receiver, sync_channel};

use record_store::{Holder, LockOptions, RecordStoreExt, WriteOptions};
use serde_json::Value;

use super::terminal::Terminal;
use super::*;

/// An interval longer than any test: only changes that the system reports are seen.
const NO_POLLING: [&str; 2] = ["--interval", "1h"];

const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

fn job(name: &str) -> LockOptions {
    LockOptions::new().holder(Holder::named(name).unwrap())
}

/// Checks the exit code, and that the program switched to the alternate screen once and back once.
#[track_caller]
fn assert_ends(terminal: Terminal, code: i32) {
    let (status, raw) = terminal.end();
    assert_eq!(status.code(), Some(code), "{raw:?}");
    assert!(raw.starts_with(ENTER) && raw.ends_with(LEAVE), "{raw:?}");
    assert_eq!((raw.matches(ENTER).count(), raw.matches(LEAVE).count()), (1, 1), "{raw:?}");
}

#[test]
fn the_screen_shows_each_change() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("first", &1).unwrap();
    let mut terminal = Terminal::start(&scratch.cli("watch", &NO_POLLING));
    let screen = terminal.wait_until_screen("the record", |screen| screen.contains("0 locks, 1 record "));
    assert!(screen.contains("\nfirst ") && screen.ends_with(" B"), "{screen}");
    assert!(!terminal.is_restored());

    let guard = store.lock("k\u{1b}[2J", job("night job").hold_timeout(Duration::from_hours(1))).unwrap();
    let screen = terminal.wait_until_screen("the lock", |screen| screen.contains("1 lock, "));
    let row = screen.lines().find(|line| line.contains("night job")).unwrap();
    assert!(row.starts_with("k\\u{1b}[2J  alive  ") && row.contains("  59m "), "{row}");
    guard.release().unwrap();
    terminal.wait_until_screen("the release", |screen| !screen.contains("night job"));

    let long = "a long key/".repeat(50);
    store.write(&long, "x").unwrap();
    terminal.wait_until_screen("the record", |screen| screen.contains("\na long key/a long key/"));
    store.remove(&long).unwrap();
    terminal.wait_until_screen("the removal", |screen| !screen.contains("a long key"));
    // Other keys are ignored.
    terminal.type_in("x\x1a\x1c\n");
    store.write("last", &1).unwrap();
    terminal.wait_until_screen("the record", |screen| screen.contains("\nlast "));
    terminal.type_in("q");
    assert_ends(terminal, 0);
}

#[test]
fn every_exit_restores_the_terminal() {
    let scratch = Scratch::new();
    scratch.open();
    let start = || {
        let mut terminal = Terminal::start(&scratch.cli("watch", &NO_POLLING));
        terminal.wait_until_screen("the screen", |screen| screen.contains("0 records"));
        terminal
    };
    let mut terminal = start();
    terminal.type_in("\x03");
    assert_ends(terminal, 128 + 2);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let terminal = start();
        terminal.signal(signal);
        assert_ends(terminal, 128 + signal.as_raw());
    }
    // An error is printed after the terminal is restored.
    let mut terminal = Terminal::start(&scratch.cli("watch", &["--interval", "10ms"]));
    terminal.wait_until_screen("the screen", |screen| screen.contains("0 records"));
    fs::remove_dir_all(scratch.store()).unwrap();
    let raw = terminal.wait_until("the message", |raw| raw.contains("cannot list"));
    assert!(raw.find(LEAVE) < raw.find("record-store: cannot list"), "{raw:?}");
    assert_eq!(terminal.end().0.code(), Some(74));
}

#[test]
fn the_screen_fills_the_window_and_not_more() {
    let scratch = Scratch::new();
    let store = scratch.open();
    for number in 0..30 {
        store.acquire_lock(format!("lock {number}"), job("night job")).unwrap();
        store.write(format!("record {number}{}", "x".repeat(100)), &1).unwrap();
    }
    let mut terminal = Terminal::start(&scratch.cli("watch", &NO_POLLING));
    for (rows, columns, locks) in [(24, 80, 8), (40, 60, 16), (12, 100, 2), (3, 9, 0)] {
        terminal.resize(rows, columns);
        let screen =
            terminal.wait_until_screen("the size", |screen| screen.lines().count() == usize::from(rows));
        let shown = screen.lines().filter(|line| line.starts_with("lock ")).count();
        assert_eq!(shown, locks, "{screen}");
        assert_eq!(screen.contains(&format!("… and {} more", 30 - locks)), locks > 0, "{screen}");
        // In a very small window the terminal cuts the lines.
        let fits = |line: &str| line.chars().count() <= usize::from(columns);
        assert!(locks == 0 || screen.lines().all(fits), "{screen}");
    }
    terminal.type_in("q");
    assert_ends(terminal, 0);
}

#[test]
fn wide_and_invisible_characters_keep_the_screen_in_order() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.acquire_lock("表".repeat(100), job("night\u{202e}job")).unwrap();
    store.write(format!("\u{202e}{}", "表".repeat(100)), &1).unwrap();
    let mut terminal = Terminal::start(&scratch.cli("watch", &NO_POLLING));
    let screen = terminal.wait_until_screen("the lock", |screen| screen.contains("1 lock, 1 record "));
    assert!(screen.contains("  night\\u{202e}job") && screen.contains("\n\\u{202e}表表"), "{screen}");
    assert!(!screen.contains('\u{202e}'), "{screen}");
    let width = |line: &str| line.chars().count() + line.matches('表').count();
    assert!(screen.lines().all(|line| width(line) <= 80), "{screen}");
    terminal.type_in("q");
    assert_ends(terminal, 0);
}

#[test]
fn the_screen_shows_how_many_wait_for_a_lock() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let token = store.acquire_lock("k".repeat(100), job(&"night".repeat(20))).unwrap();
    let mut terminal = Terminal::start(&scratch.cli("watch", &["--interval", "10ms"]));
    terminal.wait_until_screen("the lock", |screen| screen.contains("kkk") && !screen.contains("wait)"));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.acquire_lock("k".repeat(100), job("morning")).unwrap());
        let screen = terminal.wait_until_screen("the waiter", |screen| screen.contains(" (1 wait)  "));
        assert!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        store.release_lock("k".repeat(100), token).unwrap();
        waiting.join().unwrap();
    });
    terminal.wait_until_screen("the next holder", |screen| {
        screen.contains("morning") && !screen.contains("wait)")
    });
    terminal.type_in("q");
    assert_ends(terminal, 0);
}

/// A `watch` that prints lines.
struct Lines {
    _watch: Background,
    lines: Receiver<String>,
}

impl Lines {
    fn start(command: &mut Command) -> Self {
        let mut watch = Background::start(command);
        let output = BufReader::new(watch.child().stdout.take().unwrap());
        // The thread reads one line ahead at most: each line waits until the test takes it.
        let (sender, lines) = sync_channel(0);
        std::thread::spawn(move || {
            let mut output = output.lines().map_while(Result::ok);
            while output.next().is_some_and(|line| sender.send(line).is_ok()) {}
        });
        Self { _watch: watch, lines }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(TIMEOUT).expect("another line")
    }

    #[track_caller]
    fn expect(&self, change: &str, key: &str, detail: &str) {
        let line = self.next();
        let (time, rest) = line.split_once('\t').unwrap();
        humantime::parse_rfc3339(time).unwrap();
        assert_eq!(rest, format!("{change}\t{key}\t{detail}").trim_end());
    }
}

#[test]
fn changes_are_printed_as_lines_in_a_pipe() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("old", &1).unwrap();
    let long = "a long key/".repeat(50);
    let held = store.lock("held\there", job("night\njob")).unwrap();
    let also = store.lock(&long, job("another")).unwrap();
    let lines = Lines::start(&mut scratch.cli("watch", &NO_POLLING));
    let mut first = [lines.next(), lines.next()].map(|line| line.split_once('\t').unwrap().1.to_owned());
    first.sort();
    assert_eq!(first, [format!("locked\t{long}\tanother"), "locked\theld\\there\tnight\\njob".into()]);

    let size = |key: &record_store::Key| {
        let record = scratch.store().join(format!("{}.json", key.file_stem()));
        format!("{} bytes", record.metadata().unwrap().len())
    };
    held.write(&1).unwrap();
    lines.expect("written", "held\\there", &size(held.key()));
    held.release().unwrap();
    lines.expect("released", "held\\there", "night\\njob");
    also.write("x").unwrap();
    lines.expect("written", &long, &size(also.key()));
    also.release().unwrap();
    lines.expect("released", &long, "another");
    store.remove(&long).unwrap();
    lines.expect("removed", &long, "");
    store.remove("old").unwrap();
    lines.expect("removed", "old", "");

    let late = store.acquire_lock("late", job("night job")).unwrap();
    lines.expect("locked", "late", "night job");
    store.renew("late", late, Duration::from_millis(20)).unwrap();
    lines.expect("expired", "late", "night job");

    let script = format!("{} kill -9 $PPID", scratch.gate("go"));
    let mut runner = Background::start(&mut scratch.run(&["left"], &script));
    let holder = lines.next().rsplit_once('\t').unwrap().1.to_owned();
    assert!(holder.contains(&runner.child().id().to_string()), "{holder}");
    scratch.touch("go");
    lines.expect("abandoned", "left", &holder);
}

#[test]
fn watch_ends_when_its_reader_stops_although_nothing_changes() {
    let scratch = Scratch::new();
    scratch.open().acquire_lock("k", job("night job")).unwrap();
    let mut watch = Background::start(&mut scratch.cli("watch", &NO_POLLING));
    let mut first = String::new();
    BufReader::new(watch.child().stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("\tlocked\tk\t"), "{first}");
    let ended = watch.output();
    assert_code(&ended, 0);
    assert_eq!(ended.stderr, b"");
}

#[test]
fn changes_are_printed_as_json_on_request() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let token = store.acquire_lock("a\nb", job("night job")).unwrap();
    let lines = Lines::start(&mut scratch.cli("watch", &["--json"]));
    let next = || serde_json::from_str::<Value>(&lines.next()).unwrap();
    let locked = next();
    assert_eq!((&locked["change"], &locked["key"]), (&"locked".into(), &"a\nb".into()));
    assert_eq!((&locked["holder"], &locked["token"]), (&"night job".into(), &token.get().into()));
    assert_eq!((&locked["size"], locked["at"].is_string()), (&Value::Null, true));
    store.write_with("a\nb", &1, WriteOptions::new().claim(token)).unwrap();
    let written = next();
    assert_eq!((&written["change"], &written["holder"]), (&"written".into(), &Value::Null));
    assert!(written["size"].as_u64().unwrap() > 10);
}

#[test]
fn watch_polls_where_the_system_reports_nothing() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let guard = store.lock("held", job("night job")).unwrap();
    let watch = scratch.cli("watch", &["--interval", "10ms"]);
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    command.args(["echo 0 > /proc/sys/user/max_inotify_instances && exec \"$@\"", "sh"]);
    command.arg(watch.get_program()).args(watch.get_args());
    let lines = Lines::start(&mut command);
    lines.expect("locked", "held", "night job");
    guard.write(&1).unwrap();
    let size = scratch.store().join("held.json").metadata().unwrap().len();
    lines.expect("written", "held", &format!("{size} bytes"));
    guard.release().unwrap();
    lines.expect("released", "held", "night job");
    store.remove("held").unwrap();
    lines.expect("removed", "held", "");
}

#[test]
fn a_missing_store_and_a_bad_interval_are_refused() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.cli("watch", &[])), 1);
    for interval in ["soon", "1ms"] {
        assert_code(&output(&mut scratch.cli("watch", &["--interval", interval])), 2);
    }
}
