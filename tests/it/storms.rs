//! Storms: many processes, one record, for long enough that whatever can go wrong does.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use record_store::{Durability, Error, LockOptions, RecordStoreExt};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis, open, open_with, storm};

pub(crate) const ROLES: &[Role] = &[
    ("increment", increment),
    ("hold-and-look", hold_and_look),
    ("write-unguarded", write_unguarded),
    ("race-for-expired", race_for_expired),
    ("write-in-sections", write_in_sections),
    ("read-on", read_on),
];

const PROCESSES: u64 = 8;

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    number: u64,
    times: u64,
    relaxed: bool,
}

/// Starts one child per role, all on one directory, and lets them begin together.
fn start_together(roles: &[&'static str], dir: &Path, times: u64, relaxed: bool) -> Vec<Child> {
    let mut children: Vec<_> = (0..)
        .zip(roles)
        .map(|(number, role)| Child::start(role, &Task { dir: dir.to_owned(), number, times, relaxed }))
        .collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.tell("go");
    }
    children
}

fn durability(task: &Task) -> Durability {
    if task.relaxed { Durability::Relaxed } else { Durability::Full }
}

// Increments under the lock are never lost.

fn increments_add_up(times: u64, relaxed: bool) {
    let dir = tempdir().unwrap();
    for mut child in start_together(&["increment"; 8], dir.path(), times, relaxed) {
        // However slow the disk is, the child goes on.
        for _ in 0..times {
            child.expect("one more");
        }
        child.finish();
    }
    let sum = open(dir.path()).read::<u64>("counter").unwrap().unwrap().result;
    assert_eq!(sum, PROCESSES * times);
}

#[test]
fn increments_add_up_when_durable() {
    // Disks differ: some take ten milliseconds for a sync.
    increments_add_up(storm(500), false);
}

#[test]
fn increments_add_up_when_relaxed() {
    increments_add_up(storm(500), true);
}

fn increment(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, durability(&task));
    stage.tell("ready");
    stage.expect("go");
    for _ in 0..task.times {
        let guard = store.lock("counter", LockOptions::new()).unwrap();
        let count = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(count + 1)).unwrap();
        guard.release().unwrap();
        stage.tell("one more");
    }
}

// No write is accepted while another holds the lock.

/// Each refusal appends a byte here, so that a holder can wait for one.
const REFUSALS: &str = "refusals";

#[test]
fn a_write_without_the_lock_never_lands_inside_anothers() {
    let dir = tempdir().unwrap();
    let records = dir.path().join("records");
    File::create(dir.path().join(REFUSALS)).unwrap();
    let times = storm(60);
    let mut writers = start_together(&["write-unguarded"; 4], &records, times, true);
    let holders = start_together(&["hold-and-look"; 4], &records, times, true);
    for holder in holders {
        holder.finish();
    }
    let mut accepted = 0;
    for writer in &mut writers {
        writer.tell("enough");
        accepted += writer.hear().parse::<u64>().unwrap();
    }
    writers.into_iter().for_each(Child::finish);
    assert!(accepted >= times, "{accepted}");
    assert!(std::fs::metadata(dir.path().join(REFUSALS)).unwrap().len() >= times);
}

/// Takes the lock again and again. Inside, waits until writers have been refused, and sees only
/// what it wrote itself; outside, waits until somebody else has written.
fn hold_and_look(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    let refusals = File::open(task.dir.with_file_name(REFUSALS)).unwrap();
    let refused = || refusals.metadata().unwrap().len();
    let value = || store.read::<String>("contested").unwrap().map(|record| record.result);
    stage.tell("ready");
    stage.expect("go");
    for round in 0..task.times {
        let mine = format!("holder {} round {round}", task.number);
        let guard = store.lock("contested", LockOptions::new()).unwrap();
        guard.write(&mine).unwrap();
        let before = refused();
        while refused() < before + 4 {
            assert_eq!(guard.read::<String>().unwrap().unwrap().result, mine);
        }
        assert_eq!(value(), Some(mine.clone()), "{guard:?}");
        guard.release().unwrap();
        while value().as_ref() == Some(&mine) {
            std::thread::yield_now();
        }
    }
}

/// Writes without a lock until it is told that it is enough.
fn write_unguarded(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    let mut refusals = OpenOptions::new().append(true).open(task.dir.with_file_name(REFUSALS)).unwrap();
    stage.tell("ready");
    stage.expect("go");
    let (sender, enough) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = sender.send(std::io::stdin().read_line(&mut line));
    });
    let mut accepted = 0_u64;
    while enough.try_recv().is_err() {
        match store.write("contested", &format!("writer {} write {accepted}", task.number)) {
            Ok(()) => accepted += 1,
            Err(Error::Locked { .. }) => refusals.write_all(b".").unwrap(),
            Err(other) => panic!("{other}: {other:?}"),
        }
    }
    stage.tell(&accepted.to_string());
}

// An expired lock has one heir at a time.

#[test]
fn an_expired_lock_goes_to_one_at_a_time() {
    let dir = tempdir().unwrap();
    let records = dir.path().join("records");
    let times = storm(30);
    let mut racers = start_together(&["race-for-expired"; 8], &records, times, true);
    let store = open_with(&records, Durability::Relaxed);
    for round in 0..times {
        let key = format!("expired-{round}");
        let leftover = as_named("gone").hold_timeout(millis(20));
        let token = store.acquire_lock(&key, &leftover).unwrap();
        for racer in &mut racers {
            racer.tell(&key);
        }
        let mut tokens: Vec<u64> = racers.iter_mut().map(|racer| racer.hear().parse().unwrap()).collect();
        tokens.push(token.get());
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len() as u64, PROCESSES + 1, "one token each: {tokens:?}");
        assert_eq!(tokens[0], token.get(), "later means greater");
        assert!(!store.is_locked(&key).unwrap());
        let entries = store.read::<u64>(&key).unwrap().unwrap().result;
        assert_eq!(entries, PROCESSES);
    }
    racers.into_iter().for_each(Child::finish);
}

fn race_for_expired(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.tell("ready");
    stage.expect("go");
    for _ in 0..task.times {
        let key = stage.hear();
        let guard = store.lock(&key, LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
        // Nothing of the library's: the file system itself bears witness.
        let marker = task.dir.with_file_name(format!("{key} is entered"));
        OpenOptions::new().write(true).create_new(true).open(&marker).expect("alone in the section");
        let entries = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(entries + 1)).unwrap();
        std::fs::remove_file(&marker).unwrap();
        let token = guard.token();
        guard.release().unwrap();
        stage.tell(&token.to_string());
    }
}

// A reader sees every record whole, in order, and never what a holder has not committed.

/// Large enough that it takes many pages, and a while to write.
const LARGE: usize = 200_000;

#[derive(Serialize, Deserialize)]
struct Large {
    sequence: u64,
    filler: String,
}

#[test]
fn readers_under_a_writer_see_only_whole_and_committed_records() {
    let dir = tempdir().unwrap();
    open(dir.path()).write("large", &large(0)).unwrap();
    let times = storm(100);
    for child in
        start_together(&["write-in-sections", "read-on", "read-on", "read-on"], dir.path(), times, true)
    {
        child.finish();
    }
}

fn large(sequence: u64) -> Large {
    let letter = char::from(b'a' + u8::try_from(sequence % 26).unwrap());
    Large { sequence, filler: letter.to_string().repeat(LARGE) }
}

/// Writes twice in each section: what is odd is not committed. Now and then it writes even numbers
/// without a lock.
fn write_in_sections(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.tell("ready");
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

fn read_on(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.tell("ready");
    stage.expect("go");
    let mut last = 0;
    while last < 2 * task.times {
        let seen: Large = store.read("large").unwrap().expect("a record").result;
        assert!(seen.filler == large(seen.sequence).filler, "torn at {}", seen.sequence);
        assert!(seen.sequence.is_multiple_of(2), "{} was not committed", seen.sequence);
        assert!(seen.sequence >= last, "back from {last} to {}", seen.sequence);
        last = seen.sequence;
    }
}
