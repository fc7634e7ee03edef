//! Shared locks across processes: readers and writers, a limited number of holders, and holders that are killed.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use record_store::{
    Cancellation, ErrorKind, Holder, LockInfo, LockOptions, LockState, RecordStore, RecordStoreExt,
};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::dice::Dice;
use crate::support::{Moment, PATIENCE, as_named, millis, named, now, open, storm};

pub(crate) const ROLES: &[Role] = &[
    ("share", share),
    ("wait-alone", wait_alone),
    ("read-shared", read_shared),
    ("write-alone", write_alone),
    ("use-slots", use_slots),
];

/// Where a store is.
#[derive(Clone, Serialize, Deserialize)]
enum Place {
    Directory(PathBuf),
    #[cfg(feature = "postgres")]
    Server(String),
}

impl Place {
    fn open(&self) -> Box<dyn RecordStore> {
        match self {
            Self::Directory(dir) => Box::new(open(dir)),
            #[cfg(feature = "postgres")]
            Self::Server(url) => Box::new(crate::postgres::open(url)),
        }
    }
}

/// In a directory and, if there is one, on a server.
fn with_each_store(test: impl Fn(&Place)) {
    let dir = tempdir().unwrap();
    test(&Place::Directory(dir.path().to_owned()));
    #[cfg(feature = "postgres")]
    if let Some(url) = crate::postgres::new_url() {
        test(&Place::Server(url));
    }
}

#[derive(Serialize, Deserialize)]
struct Task {
    place: Place,
    slots: u32,
    times: u64,
}

impl Task {
    /// For readers.
    fn unlimited(place: &Place, times: u64) -> Self {
        Self { place: place.clone(), slots: u32::MAX, times }
    }

    fn options(&self) -> LockOptions {
        LockOptions::new().slots(self.slots).acquire_timeout(PATIENCE)
    }
}

/// The states of the holders, in the order of their tokens.
fn states(store: &dyn RecordStore) -> Vec<LockState> {
    let info = store.lock_info("key").unwrap();
    let mut holders: Vec<_> =
        info.iter().flat_map(LockInfo::holders).map(|it| (it.token(), it.state())).collect();
    holders.sort_by_key(|(token, _)| *token);
    holders.into_iter().map(|(_, state)| state).collect()
}

/// Shares the lock until the parent sends a line.
fn share(stage: &Stage) {
    let task: Task = stage.argument();
    let store = task.place.open();
    let guard = store.lock("key", task.options()).unwrap();
    stage.send("done");
    stage.receive();
    guard.release().unwrap();
}

#[test]
fn killed_holders_free_their_slots_one_by_one() {
    with_each_store(killed_holders);
}

fn killed_holders(place: &Place) {
    let store = &*place.open();
    let task = Task { place: place.clone(), slots: 3, times: 0 };
    // One after the other: the order of the tokens is theirs.
    let start = |_| {
        let mut child = Child::start("share", &task);
        child.expect("done");
        child
    };
    let mut children: Vec<_> = (0..3).map(start).collect();
    assert_eq!(states(store), [LockState::Held; 3]);
    assert!(store.try_lock("key", task.options()).unwrap().is_none());
    let guard = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.lock("key", task.options().holder(named("waiter"))));
        has_waiters(store, 1);
        // The second one: it is neither the first in the file nor the last.
        children.remove(1).kill();
        waiter.join().unwrap().unwrap()
    });
    // What the killed one has left is gone, and nothing else.
    assert_eq!(states(store), [LockState::Held; 3]);
    children.remove(0).kill();
    // A server learns of the death a moment later.
    while states(store) == [LockState::Held; 3] {
        std::thread::sleep(millis(1));
    }
    assert_eq!(states(store), [LockState::Abandoned, LockState::Held, LockState::Held]);
    guard.release().unwrap();
    assert_eq!(states(store), [LockState::Held]);
    let mut last = children.remove(0);
    last.send("release");
    last.finish();
    assert!(!store.is_locked("key").unwrap());
    assert_eq!(store.locks().unwrap().count(), 0, "a file is left");
}

#[test]
fn a_writer_waits_for_the_last_of_killed_readers() {
    with_each_store(killed_readers);
}

fn killed_readers(place: &Place) {
    let store = &*place.open();
    let task = Task::unlimited(place, 0);
    let mut children: Vec<_> = (0..3).map(|_| Child::start("share", &task)).collect();
    for child in &mut children {
        child.expect("done");
    }
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| store.lock("key", LockOptions::new()).map(|guard| guard.write(&1)));
        has_waiters(store, 1);
        for child in children {
            assert!(!writer.is_finished(), "the writer did not wait for all");
            child.kill();
        }
        writer.join().unwrap().unwrap().unwrap();
    });
    assert_eq!(store.read::<u8>("key").unwrap().unwrap().result, 1);
}

/// Waits for the lock alone.
fn wait_alone(stage: &Stage) {
    let task: Task = stage.argument();
    let store = task.place.open();
    stage.send("ready");
    drop(store.lock("key", LockOptions::new()).unwrap());
    stage.send("done");
}

fn has_waiters(store: &dyn RecordStore, count: usize) {
    while store.lock_info("key").unwrap().unwrap().waiters().is_none_or(|waiters| waiters.len() != count) {
        std::thread::sleep(millis(1));
    }
}

/// The writer is the first in the queue, and the lock is shared all the time.
fn a_reader_passes_a_writer(place: &Place, disturb: impl FnOnce(&mut Option<Child>)) {
    let store = &*place.open();
    let task = Task::unlimited(place, 0);
    let first = store.lock("key", as_named("first").shared()).unwrap();
    let mut writer = Some(Child::start("wait-alone", &task));
    has_waiters(store, 1);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| store.lock("key", task.options().holder(named("second"))));
        has_waiters(store, 2);
        assert!(!reader.is_finished());
        disturb(&mut writer);
        reader.join().unwrap().unwrap().release().unwrap();
    });
    first.release().unwrap();
    if let Some(mut writer) = writer {
        writer.resume();
        writer.expect("ready");
        writer.expect("done");
        writer.finish();
    }
    assert!(!store.is_locked("key").unwrap());
}

#[test]
fn a_reader_does_not_wait_for_a_writer_that_is_killed() {
    with_each_store(|place| {
        a_reader_passes_a_writer(place, |writer| {
            writer.take().unwrap().kill();
        });
    });
}

/// Nobody reports that. The reader finds it out when it looks again, which it does not in the build without re-checks.
#[cfg(not(record_store_no_recheck))]
#[test]
fn a_reader_does_not_wait_for_a_writer_that_is_stopped() {
    with_each_store(|place| a_reader_passes_a_writer(place, |writer| writer.as_mut().unwrap().stop_asleep()));
}

#[test]
fn a_reader_does_not_wait_for_a_writer_that_gives_up() {
    with_each_store(a_writer_gives_up);
}

fn a_writer_gives_up(place: &Place) {
    let store = &*place.open();
    let first = store.lock("key", as_named("first").shared()).unwrap();
    let cancellation = Cancellation::new();
    std::thread::scope(|scope| {
        let writer =
            scope.spawn(|| store.lock("key", as_named("writer").cancellation(&cancellation)).map(drop));
        has_waiters(store, 1);
        let readers = ["second", "third"]
            .map(|name| scope.spawn(move || store.lock("key", as_named(name).shared()).map(drop)));
        has_waiters(store, 3);
        cancellation.cancel();
        assert!(writer.join().unwrap().unwrap_err().is_cancelled());
        for reader in readers {
            reader.join().unwrap().unwrap();
        }
    });
    first.release().unwrap();
}

/// Nothing but the acquisition of the first one tells the second one: there is no lease whose end it waits for.
#[test]
fn readers_that_wait_acquire_together() {
    with_each_store(readers_wait);
}

fn readers_wait(place: &Place) {
    let store = &*place.open();
    let writer = store.lock("key", as_named("writer")).unwrap();
    let both = Barrier::new(2);
    std::thread::scope(|scope| {
        for (name, count) in [("first", 1), ("second", 2)] {
            let both = &both;
            scope.spawn(move || {
                let guard = store.lock("key", as_named(name).shared()).unwrap();
                both.wait();
                guard.release().unwrap();
            });
            has_waiters(store, count);
        }
        writer.release().unwrap();
    });
    assert!(!store.is_locked("key").unwrap());
}

/// Reads twice under a shared lock. Nothing may change in between.
fn read_shared(stage: &Stage) {
    let task: Task = stage.argument();
    let store = task.place.open();
    let guard = store.lock("key", task.options()).unwrap();
    stage.send("ready");
    stage.expect("go");
    guard.release().unwrap();
    for _ in 0..task.times {
        let guard = store.lock("key", task.options()).unwrap();
        let first = guard.read::<u64>().unwrap().map(|record| record.result);
        assert!(store.lock_info("key").unwrap().expect("the lock of this process").is_shared());
        std::thread::sleep(Duration::from_micros(200));
        assert_eq!(
            guard.read::<u64>().unwrap().map(|record| record.result),
            first,
            "a change under a shared lock"
        );
        guard.release().unwrap();
    }
    stage.send("done");
}

fn write_alone(stage: &Stage) {
    let task: Task = stage.argument();
    let store = task.place.open();
    stage.send("ready");
    stage.expect("go");
    for _ in 0..task.times {
        let guard = store.lock("key", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
        let count = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(count + 1)).unwrap();
        guard.release().unwrap();
    }
    stage.send("done");
}

#[test]
fn readers_together_and_writers_alone() {
    with_each_store(readers_and_writers);
}

fn readers_and_writers(place: &Place) {
    const EACH: usize = 3;
    let store = place.open();
    let times = storm(60);
    let task = Task::unlimited(place, times);
    let roles = [["read-shared"; EACH], ["write-alone"; EACH]].concat();
    let mut children: Vec<_> = roles.iter().map(|role| Child::start(role, &task)).collect();
    for child in &mut children {
        child.expect("ready");
    }
    // In the queue, readers and writers may come in turn from now on, so that no two readers meet.
    let info = store.lock_info("key").unwrap().expect("the lock of the readers");
    assert_eq!(info.holders().filter(|it| it.state() == LockState::Held).count(), EACH);
    for child in &mut children {
        child.send("go");
    }
    for child in &mut children {
        child.expect("done");
    }
    children.into_iter().for_each(Child::finish);
    let sum = store.read::<u64>("key").unwrap().unwrap().result;
    assert_eq!(sum, EACH as u64 * times);
}

const SLOTS: u32 = 3;

/// Writes down from when to when it holds one of the slots.
fn use_slots(stage: &Stage) {
    let (task, logs): (Task, PathBuf) = stage.argument();
    let store = task.place.open();
    let mut log = File::create(logs.join(std::process::id().to_string())).unwrap();
    let mut dice = Dice::new(now());
    for _ in 0..task.times {
        let guard = store.lock("key", task.options()).unwrap();
        writeln!(log, "{}", now()).unwrap();
        std::thread::sleep(dice.time(millis(3)));
        writeln!(log, "{}", now()).unwrap();
        guard.release().unwrap();
    }
    stage.send("done");
    stage.receive();
}

/// The beginnings and the ends of what a child has held: one more, and one less. It may have lost its slot as soon as it
/// was sent the kill.
fn changes(logs: &Path, child: Child) -> Vec<(Moment, i32)> {
    let log = logs.join(child.pid().as_raw_pid().to_string());
    let killed = now();
    child.kill();
    let mut changes: Vec<_> = std::fs::read_to_string(log)
        .unwrap_or_default()
        .lines()
        .map(|line| line.parse::<Moment>().unwrap())
        .zip([1, -1].into_iter().cycle())
        .collect();
    if changes.last().is_some_and(|(_, change)| *change == 1) {
        changes.push((killed, -1));
    }
    changes
}

#[test]
fn there_are_never_more_holders_than_slots_whoever_is_killed() {
    with_each_store(never_more_than_slots);
}

fn never_more_than_slots(place: &Place) {
    let store = place.open();
    let logs = tempdir().unwrap();
    let task = (Task { place: place.clone(), slots: SLOTS, times: storm(100) }, logs.path());
    let mut children: Vec<_> = (0..6).map(|_| Child::start("use-slots", &task)).collect();
    let mut dice = Dice::new(now());
    let mut all = Vec::new();
    for _ in 0..storm(8) {
        std::thread::sleep(dice.time(millis(60)));
        let at = dice.index(children.len());
        all.extend(changes(logs.path(), children.swap_remove(at)));
        children.push(Child::start("use-slots", &task));
    }
    for mut child in children {
        child.expect("done");
        all.extend(changes(logs.path(), child));
    }
    // At the same moment, one ends before the next one begins.
    all.sort_unstable();
    let mut holders = 0;
    let most = all
        .iter()
        .map(|(_, change)| {
            holders += change;
            holders
        })
        .max();
    assert_eq!(most, Some(SLOTS.try_into().unwrap()), "of {} changes", all.len());
    let start = Instant::now();
    let guard = store.lock("key", as_named("last").acquire_timeout(PATIENCE)).unwrap();
    assert!(start.elapsed() < PATIENCE / 2, "a killed holder blocks the key");
    guard.release().unwrap();
}

#[test]
fn a_lock_that_is_full_to_the_limit_of_its_file_lets_nobody_in() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let options = |number: usize| {
        let holder = Holder::named(format!("{number}{}", "x".repeat(400))).unwrap();
        LockOptions::new().holder(holder).note(&"n".repeat(1_000)).acquire_timeout(Duration::ZERO).shared()
    };
    let mut tokens = Vec::new();
    let error = loop {
        match store.acquire_lock("key", options(tokens.len())) {
            Ok(token) => tokens.push(token),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::LockTimeout);
    assert!(tokens.len() >= 20, "{}", tokens.len());
    store.release_lock("key", tokens.pop().unwrap()).unwrap();
    tokens.push(store.acquire_lock("key", options(99)).unwrap());
    for token in tokens {
        store.renew("key", token, PATIENCE).unwrap();
        store.release_lock("key", token).unwrap();
    }
    assert!(!store.is_locked("key").unwrap());
}

#[test]
fn guards_of_one_process_share_and_release_by_themselves() {
    with_each_store(guards_of_one_process);
}

fn guards_of_one_process(place: &Place) {
    let store = &*place.open();
    let bound = |name: &str| LockOptions::new().holder(Holder::bound(name).unwrap()).shared();
    let first = store.lock("key", bound("first")).unwrap();
    let again = store.lock("key", bound("first")).unwrap();
    let second = store.lock("key", bound("second")).unwrap();
    assert_eq!(first.token(), again.token());
    assert!(second.is_held().unwrap(), "only the oldest one holds the lock");
    // Acquired without a guard, so no guard releases it.
    let explicit = store.acquire_lock("key", bound("third")).unwrap();
    let third = store.lock("key", bound("third")).unwrap();
    store.release_lock("key", Holder::bound("second").unwrap()).unwrap();
    assert!(second.release().unwrap_err().is_lock_lost());
    drop(third);
    assert!(store.renew("key", explicit, PATIENCE).is_ok(), "a guard released what was acquired without one");
    drop(first);
    assert!(again.is_held().unwrap(), "the first guard released the lock of the second one");
    again.release().unwrap();
    assert_eq!(states(store), [LockState::Held]);
    store.release_lock("key", explicit).unwrap();
    assert!(!store.is_locked("key").unwrap());
}

/// A lock file of one sharer, as a hand or a damage may leave it.
#[test]
fn a_damaged_list_of_sharers_is_an_error() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for name in ["first", "second"] {
        store.acquire_lock("key", as_named(name).shared()).unwrap();
    }
    let place = dir.path().join("key.lock");
    let text = std::fs::read_to_string(&place).unwrap();
    for (from, to) in [
        ("\"shared\":true,\"newest\"", "\"newest\""),
        ("\"holder\":\"second\"", "\"holder\":\"\""),
        ("\"sharers\":[{", "\"sharers\":[7,{"),
    ] {
        let damaged = text.replacen(from, to, 1);
        assert_ne!(damaged, text, "{from}");
        std::fs::write(&place, damaged).unwrap();
        let error = store.lock_info("key").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptLock, "{from}");
        let error = store.lock("key", LockOptions::new().acquire_timeout(Duration::ZERO)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptLock, "{from}");
    }
}
