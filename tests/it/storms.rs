//! Stress tests: many processes use one record at the same time, for long enough that rare races occur.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use record_store::{Durability, ErrorKind, LockOptions, RecordStoreExt};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis, open, open_with, storm};

pub(crate) const ROLES: &[Role] = &[
    ("increment", increment),
    ("hold-and-check", hold_and_check),
    ("write-without-lock", write_without_lock),
    ("acquire-expired", acquire_expired),
    ("write-under-lock", write_under_lock),
    ("read-repeatedly", read_repeatedly),
];

const PROCESSES: u64 = 8;

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    number: u64,
    times: u64,
    relaxed: bool,
}

/// Starts one child per role, all on the same directory, and makes them begin at the same time.
fn start_together(roles: &[&'static str], dir: &Path, times: u64, relaxed: bool) -> Vec<Child> {
    let mut children: Vec<_> = (0..)
        .zip(roles)
        .map(|(number, role)| Child::start(role, &Task { dir: dir.to_owned(), number, times, relaxed }))
        .collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.send("go");
    }
    children
}

fn durability(task: &Task) -> Durability {
    if task.relaxed { Durability::Relaxed } else { Durability::Full }
}

// No increment under the lock is lost.

fn increments_add_up(times: u64, relaxed: bool) {
    let dir = tempdir().unwrap();
    for mut child in start_together(&["increment"; 8], dir.path(), times, relaxed) {
        // Each line restarts the timeout, so a slow disk does not fail the test.
        for _ in 0..times {
            child.expect("incremented");
        }
        child.finish();
    }
    let sum = open(dir.path()).read::<u64>("counter").unwrap().unwrap().result;
    assert_eq!(sum, PROCESSES * times);
}

#[test]
fn increments_add_up_when_durable() {
    // Some disks need ten milliseconds for each sync.
    increments_add_up(storm(500), false);
}

#[test]
fn increments_add_up_when_relaxed() {
    increments_add_up(storm(500), true);
}

fn increment(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, durability(&task));
    stage.send("ready");
    stage.expect("go");
    for _ in 0..task.times {
        let guard = store.lock("counter", LockOptions::new()).unwrap();
        let count = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(count + 1)).unwrap();
        guard.release().unwrap();
        stage.send("incremented");
    }
}

// No write is accepted while another holder has the lock.

/// Each refused write appends a byte to this file, so that a holder can wait for refusals.
const REFUSALS: &str = "refusals";

#[test]
fn a_write_without_the_lock_is_refused_while_another_holds_it() {
    let dir = tempdir().unwrap();
    let records = dir.path().join("records");
    File::create(dir.path().join(REFUSALS)).unwrap();
    let times = storm(60);
    let mut writers = start_together(&["write-without-lock"; 4], &records, times, true);
    let holders = start_together(&["hold-and-check"; 4], &records, times, true);
    for holder in holders {
        holder.finish();
    }
    let mut accepted = 0;
    for writer in &mut writers {
        writer.send("stop");
        accepted += writer.receive().parse::<u64>().unwrap();
    }
    writers.into_iter().for_each(Child::finish);
    assert!(accepted >= times, "{accepted}");
    assert!(std::fs::metadata(dir.path().join(REFUSALS)).unwrap().len() >= times);
}

/// Acquires the lock in each round. While it holds the lock, it waits until writes have been refused, and
/// must read only its own value. After the release it waits until another process has written.
fn hold_and_check(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    let refusals = File::open(task.dir.with_file_name(REFUSALS)).unwrap();
    let refused = || refusals.metadata().unwrap().len();
    let value = || store.read::<String>("contested").unwrap().map(|record| record.result);
    stage.send("ready");
    stage.expect("go");
    for round in 0..task.times {
        let own = format!("holder {} round {round}", task.number);
        let guard = store.lock("contested", LockOptions::new()).unwrap();
        guard.write(&own).unwrap();
        let before = refused();
        while refused() < before + 4 {
            assert_eq!(guard.read::<String>().unwrap().unwrap().result, own);
        }
        assert_eq!(value(), Some(own.clone()), "{guard:?}");
        guard.release().unwrap();
        while value().as_ref() == Some(&own) {
            std::thread::yield_now();
        }
    }
}

/// Writes without a lock until the parent sends a line.
fn write_without_lock(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    let mut refusals = OpenOptions::new().append(true).open(task.dir.with_file_name(REFUSALS)).unwrap();
    stage.send("ready");
    stage.expect("go");
    let (sender, stop) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = sender.send(std::io::stdin().read_line(&mut line));
    });
    let mut accepted = 0_u64;
    while stop.try_recv().is_err() {
        match store.write("contested", &format!("writer {} write {accepted}", task.number)) {
            Ok(()) => accepted += 1,
            Err(error) if error.kind() == ErrorKind::Locked => refusals.write_all(b".").unwrap(),
            Err(other) => panic!("{other}: {other:?}"),
        }
    }
    stage.send(&accepted.to_string());
}

// An expired lock is acquired by one process at a time.

#[test]
fn an_expired_lock_is_acquired_by_one_process_at_a_time() {
    let dir = tempdir().unwrap();
    let records = dir.path().join("records");
    let times = storm(30);
    let mut racers = start_together(&["acquire-expired"; 8], &records, times, true);
    let store = open_with(&records, Durability::Relaxed);
    for round in 0..times {
        let key = format!("expired-{round}");
        let leftover = as_named("gone").hold_timeout(millis(20));
        let token = store.acquire_lock(&key, leftover).unwrap();
        for racer in &mut racers {
            racer.send(&key);
        }
        let mut tokens: Vec<u64> = racers.iter_mut().map(|racer| racer.receive().parse().unwrap()).collect();
        tokens.push(token.get());
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len() as u64, PROCESSES + 1, "a token was issued twice: {tokens:?}");
        assert_eq!(tokens[0], token.get(), "a later token is not greater");
        assert!(!store.is_locked(&key).unwrap());
        let entries = store.read::<u64>(&key).unwrap().unwrap().result;
        assert_eq!(entries, PROCESSES);
    }
    racers.into_iter().for_each(Child::finish);
}

fn acquire_expired(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for _ in 0..task.times {
        let key = stage.receive();
        let guard = store.lock(&key, LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
        // Independent of the library: the file system proves that no other process is inside.
        let marker = task.dir.with_file_name(format!("{key}.entered"));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&marker)
            .expect("no other process inside the lock");
        let entries = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(entries + 1)).unwrap();
        std::fs::remove_file(&marker).unwrap();
        let token = guard.token();
        guard.release().unwrap();
        stage.send(&token.to_string());
    }
}

// A reader sees only whole, committed records, and never an older one after a newer one.

/// Large enough to span many pages and to take some time to write.
const LARGE: usize = 200_000;

#[derive(Serialize, Deserialize)]
struct Large {
    sequence: u64,
    filler: String,
}

#[test]
fn concurrent_readers_see_only_whole_and_committed_records() {
    let dir = tempdir().unwrap();
    open(dir.path()).write("large", &large(0)).unwrap();
    let times = storm(100);
    for child in start_together(
        &["write-under-lock", "read-repeatedly", "read-repeatedly", "read-repeatedly"],
        dir.path(),
        times,
        true,
    ) {
        child.finish();
    }
}

fn large(sequence: u64) -> Large {
    let letter = char::from(b'a' + u8::try_from(sequence % 26).unwrap());
    Large { sequence, filler: letter.to_string().repeat(LARGE) }
}

/// Writes twice under each lock: an odd number, which is never committed, then an even one. In every third
/// round it writes an even number without the lock.
fn write_under_lock(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for round in 1..=task.times {
        if round % 3 == 0 {
            store.write("large", &large(2 * round)).unwrap();
            continue;
        }
        let guard = store.lock("large", LockOptions::new()).unwrap();
        guard.write(&large(2 * round - 1)).unwrap();
        guard.write(&large(2 * round)).unwrap();
        guard.release().unwrap();
    }
}

fn read_repeatedly(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    let mut last = 0;
    while last < 2 * task.times {
        let seen: Large = store.read("large").unwrap().expect("a record").result;
        assert!(seen.filler == large(seen.sequence).filler, "torn record {}", seen.sequence);
        assert!(seen.sequence.is_multiple_of(2), "{} was not committed", seen.sequence);
        assert!(seen.sequence >= last, "an older record after {last}: {}", seen.sequence);
        last = seen.sequence;
    }
}
