//! A cache that stays small: eviction while other processes write, read and hold locks, and what it never touches.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use record_store::{
    Durability, ErrorKind, EvictionPolicy, FileSystemOptions, FileSystemRecordStore, ListOptions,
    LockOptions, OpenMode, ReadOptions, RecordStoreExt, WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::forks::{assert_succeeds, fork};
use crate::support::children::{Child, Role, Stage, until_asleep};
use crate::support::{PATIENCE, in_memory, millis, open, open_with, storm, tempdir};
use crate::watchdog::watch_test;

pub(crate) const ROLES: &[Role] = &[
    ("fill a cache", fill),
    ("read a cache", read),
    ("hold and write in a cache", hold_and_write),
    ("fill a cache that keeps itself small", fill_until_stopped),
    ("fork while a cache keeps itself small", fork_while_evicting),
    ("drop a cache that keeps itself small", drop_in_the_pause),
];

const LIMIT: u64 = 50;

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    number: u64,
    times: u64,
}

fn start(role: &'static str, dir: &Path, number: u64, times: u64) -> Child {
    let mut child = Child::start(role, &Task { dir: dir.to_owned(), number, times });
    child.expect("ready");
    child
}

/// Writes more than the limit, and evicts now and then.
fn fill(stage: &Stage) {
    let Task { dir, number, times } = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for time in 0..times {
        store.write(format!("{number} {time}"), &vec![number; 100]).unwrap();
        if time % 20 == 0 {
            store.evict(EvictionPolicy::new().max_records(LIMIT)).unwrap();
        }
    }
    stage.send("done");
}

/// Reads what there is until it is told to stop. A record that is evicted meanwhile is absent, and nothing else.
fn read(stage: &Stage) {
    let Task { dir, .. } = stage.argument();
    let store = open(&dir);
    stage.send("ready");
    stage.expect("go");
    let mut found = 0_u64;
    while !store.exists("stop").unwrap() {
        for key in store.keys().unwrap() {
            let key = key.unwrap();
            if let Some(record) = store.read::<Vec<u64>>(&key).unwrap() {
                assert_eq!(record.result.len(), 100, "{key}");
                found += 1;
            }
        }
        for record in store.records(ListOptions::new().results(true)).unwrap() {
            found += u64::from(record.unwrap().result().is_some());
        }
    }
    stage.send(&found.to_string());
}

/// A record that is written under a lock is there until the lock is released.
fn hold_and_write(stage: &Stage) {
    let Task { dir, number, times } = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for time in 0..times {
        let guard = store.lock(format!("held {number}"), LockOptions::new()).unwrap();
        guard.write(&vec![time; 100]).unwrap();
        for _ in 0..20 {
            assert_eq!(guard.read::<Vec<u64>>().unwrap().expect("not evicted").result[0], time);
        }
        guard.release().unwrap();
    }
    stage.send("done");
}

#[test]
fn eight_processes_keep_a_cache_small() {
    let dir = tempdir().unwrap();
    let times = storm(200);
    let mut writers: Vec<_> = (0..4).map(|number| start("fill a cache", dir.path(), number, times)).collect();
    writers.extend((4..6).map(|number| start("hold and write in a cache", dir.path(), number, times)));
    let mut readers: Vec<_> = (6..8).map(|number| start("read a cache", dir.path(), number, times)).collect();
    for child in writers.iter_mut().chain(&mut readers) {
        child.send("go");
    }
    for mut child in writers {
        child.expect("done");
        child.finish();
    }
    let store = open(dir.path());
    let evicted = store.evict(EvictionPolicy::new().max_records(LIMIT)).unwrap();
    assert_eq!((evicted.records_left, evicted.kept), (LIMIT, 0), "{evicted:?}");
    assert_eq!(store.keys().unwrap().count() as u64, LIMIT);
    assert!(store.locks().unwrap().next().is_none());
    store.write("stop", &vec![0; 100]).unwrap();
    for mut child in readers {
        assert!(child.receive().parse::<u64>().unwrap() > 0);
        child.finish();
    }
    assert!(store.verify().all(|finding| !finding.unwrap().problem.is_damage()));
}

#[test]
fn what_was_not_written_by_the_store_is_never_evicted() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("ours", &1).unwrap();
    let by_hand = dir.path().join("by-hand.json");
    std::fs::write(&by_hand, r#"{"key":"by-hand","result":1}"#).unwrap();
    let damaged = dir.path().join("damaged.json");
    std::fs::write(&damaged, "{").unwrap();
    std::fs::create_dir(dir.path().join("directory.json")).unwrap();
    let evicted = store.evict(EvictionPolicy::new().max_records(0)).unwrap();
    assert_eq!((evicted.records, evicted.kept, evicted.records_left), (1, 2, 2));
    assert!(by_hand.exists() && damaged.exists() && dir.path().join("directory.json").exists());
    assert!(store.damaged().unwrap().is_empty());
    assert!(!store.exists("ours").unwrap());
}

#[test]
fn an_expired_record_counts_until_it_is_evicted() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let expires_at_once = WriteOptions::new().time_to_live(Duration::from_nanos(1));
    store.write_with("expired", &1, expires_at_once).unwrap();
    std::thread::sleep(millis(15));
    store.write("key", &1).unwrap();
    let evicted = store.evict(EvictionPolicy::new().max_records(1)).unwrap();
    assert_eq!((evicted.records, evicted.kept, evicted.records_left), (1, 0, 1));
    assert!(store.exists("key").unwrap());
}

#[test]
fn a_store_that_is_opened_read_only_says_what_would_be_evicted() {
    let dir = tempdir().unwrap();
    open(dir.path()).write("key", &1).unwrap();
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
    let policy = EvictionPolicy::new().max_records(0);
    assert_eq!(reader.evict(policy.clone()).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert_eq!(reader.evict(policy.dry_run(true)).unwrap().records, 1);
    assert!(reader.exists("key").unwrap());
}

/// A damaged file is an error of its own, and the listing goes on.
#[test]
fn a_damaged_record_does_not_end_the_listing() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("first", &1).unwrap();
    store.write("second", &1).unwrap();
    std::fs::write(dir.path().join("damaged.json"), r#"{"key":"damaged","#).unwrap();
    for results in [false, true] {
        let (good, bad): (Vec<_>, Vec<_>) =
            store.records(ListOptions::new().results(results)).unwrap().partition(Result::is_ok);
        assert_eq!(good.len(), 2);
        let error = bad.into_iter().next().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptRecord, "{error}");
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}

/// The turn of the process that evicts in the background.
const TURN: &str = ".store/eviction";

/// Opens a store whose writes keep it within the limit.
fn open_kept(dir: &Path) -> FileSystemRecordStore {
    watch_test();
    let policy = EvictionPolicy::new().max_records(LIMIT);
    FileSystemOptions::new().durability(Durability::Relaxed).eviction(policy).open(dir).unwrap()
}

fn records_in(dir: &Path) -> u64 {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).count() as u64
}

fn write_some(store: &FileSystemRecordStore, prefix: &str, records: u64) {
    for number in 0..records {
        store.write(format!("{prefix} {number}"), &vec![number; 100]).unwrap();
    }
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(millis(2));
    }
}

fn wait_until_small(dir: &Path) {
    wait_until("the store is within the limit", || records_in(dir) <= LIMIT);
}

/// Waits until an eviction in the background has ended that is not the one of this text. Returns its text.
fn next_turn(dir: &Path, last: &str) -> String {
    let read = || fs::read_to_string(dir.join(TURN)).unwrap_or_default();
    wait_until("there is another eviction", || !["", last].contains(&read().as_str()));
    read()
}

fn begun(turn: &str) -> Duration {
    Duration::from_micros(turn.split_once(' ').unwrap().0.parse().unwrap())
}

/// Writes until it is told to stop, and then keeps the store open until it is told to end.
fn fill_until_stopped(stage: &Stage) {
    let Task { dir, number, .. } = stage.argument();
    let store = open_kept(&dir);
    stage.send("ready");
    stage.expect("go");
    let mut times = 0_u64;
    while !dir.with_extension("stop").exists() {
        store.write(format!("{number} {times}"), &vec![number; 100]).unwrap();
        let guard = store.lock(format!("held {number}"), LockOptions::new()).unwrap();
        guard.write(&vec![times; 100]).unwrap();
        assert_eq!(guard.read::<Vec<u64>>().unwrap().expect("not evicted").result[0], times);
        guard.release().unwrap();
        times += 1;
        // Six processes that do nothing but write are faster than the one that removes.
        std::thread::sleep(millis(5));
    }
    stage.send(&times.to_string());
    stage.receive();
}

#[test]
fn the_writes_of_eight_processes_keep_a_cache_small() {
    let dir = in_memory();
    let dir = dir.path().join("cache");
    let store = open_with(&dir, Durability::Relaxed);
    // The oldest.
    let by_hand = dir.join("by-hand.json");
    fs::write(&by_hand, format!(r#"{{"key":"by-hand","result":{:?}}}"#, [0; 100])).unwrap();
    let mut writers: Vec<_> =
        (0..6).map(|number| start("fill a cache that keeps itself small", &dir, number, 0)).collect();
    let mut readers: Vec<_> = (6..8).map(|number| start("read a cache", &dir, number, 0)).collect();
    for child in writers.iter_mut().chain(&mut readers) {
        child.send("go");
    }
    let mut turn = String::new();
    for _ in 0..3 {
        turn = next_turn(&dir, &turn);
    }
    File::create(dir.with_extension("stop")).unwrap();
    let written: u64 = writers.iter_mut().map(|child| child.receive().parse::<u64>().unwrap()).sum();
    assert!(written > LIMIT, "{written}");
    wait_until_small(&dir);
    assert!(by_hand.exists());
    // An eviction that was not needed any more removes nothing.
    assert_eq!(store.evict(EvictionPolicy::new().max_records(LIMIT)).unwrap().records, 0);
    for mut child in writers {
        child.send("end");
        child.finish();
    }
    store.write("stop", &vec![0; 100]).unwrap();
    for mut child in readers {
        assert!(child.receive().parse::<u64>().unwrap() > 0);
        child.finish();
    }
    assert!(store.verify().all(|finding| !finding.unwrap().problem.is_damage()));
}

/// The next eviction sees the writes since the last one began. It does not begin at once.
#[test]
fn evictions_in_the_background_pause() {
    let dir = tempdir().unwrap();
    let store = open_kept(dir.path());
    // The oldest.
    let locked = store.lock("locked", LockOptions::new()).unwrap();
    locked.write(&1).unwrap();
    write_some(&store, "first", LIMIT + 1);
    let first = next_turn(dir.path(), "");
    // Also for another handle, as in another process, which knows only what is in the file.
    let other = open_kept(dir.path());
    write_some(&other, "second", LIMIT + 1);
    let second = next_turn(dir.path(), &first);
    let pause = begun(&second).checked_sub(begun(&first)).unwrap();
    assert!(pause >= Duration::from_secs(1), "{pause:?}");
    wait_until_small(dir.path());
    assert!(locked.read::<u8>().unwrap().is_some());
    locked.release().unwrap();
    let findings: Vec<_> = store.verify().map(Result::unwrap).collect();
    assert!(findings.is_empty(), "{findings:?}");
}

/// Neither an eviction at once in two processes, nor a write that waits for the other one.
#[test]
#[expect(clippy::disallowed_methods, reason = "this stands in for another process")]
fn one_process_at_a_time_evicts_in_the_background() {
    let dir = tempdir().unwrap();
    let store = open_kept(dir.path());
    let turn = File::create(dir.path().join(TURN)).unwrap();
    turn.lock().unwrap();
    write_some(&store, "some", 2 * LIMIT);
    // The attempt after a pause finds the turn taken, too.
    std::thread::sleep(millis(1500));
    assert_eq!(records_in(dir.path()), 2 * LIMIT);
    turn.unlock().unwrap();
    wait_until_small(dir.path());
}

/// Such a process may have been killed, or may have had a clock that was wrong.
#[test]
fn an_eviction_from_the_future_says_nothing() {
    let dir = tempdir().unwrap();
    let store = open_kept(dir.path());
    // In the year 2286, and an hour.
    fs::write(dir.path().join(TURN), "00010000000000000000 00000000003600000000\n").unwrap();
    write_some(&store, "some", 2 * LIMIT);
    wait_until_small(dir.path());
}

#[test]
fn a_foreign_file_in_the_place_of_the_turn_is_not_changed() {
    let dir = tempdir().unwrap();
    let store = open_kept(dir.path());
    fs::write(dir.path().join(TURN), "theirs").unwrap();
    write_some(&store, "some", 2 * LIMIT);
    wait_until_small(dir.path());
    assert_eq!(fs::read(dir.path().join(TURN)).unwrap(), b"theirs");
}

#[test]
fn an_eviction_that_fails_fails_no_write() {
    let dir = tempdir().unwrap();
    let store = open_kept(dir.path());
    fs::create_dir(dir.path().join(TURN)).unwrap();
    write_some(&store, "some", 2 * LIMIT);
    assert_eq!(records_in(dir.path()), 2 * LIMIT);
}

/// Its thread has nothing to do, and its pause is an hour.
fn drop_in_the_pause(stage: &Stage) {
    let Task { dir, .. } = stage.argument();
    let store = open_kept(&dir);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros();
    fs::write(dir.join(TURN), format!("{now:020} 00000000003600000000\n")).unwrap();
    write_some(&store, "some", 1);
    let path = fs::canonicalize(&dir).unwrap();
    let is_open = || {
        let files = fs::read_dir("/proc/self/fd").unwrap();
        files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(|file| file == path))
    };
    until_asleep(std::process::id(), evicting_thread());
    drop(store);
    wait_until("the thread has ended", || !is_open());
    stage.send("done");
}

/// The thread of this process that evicts. The kernel cuts its name.
fn evicting_thread() -> i32 {
    let mut found = None;
    wait_until("there is a thread", || {
        let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
        let mut evicting = threads.filter(|thread| {
            fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "record-store ev\n")
        });
        found = evicting.next().map(|thread| thread.file_name().to_str().unwrap().parse().unwrap());
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn the_drop_of_the_last_handle_ends_the_thread() {
    let dir = tempdir().unwrap();
    let mut child = start_quietly("drop a cache that keeps itself small", dir.path());
    child.expect("done");
    child.finish();
}

/// The child has a copy of the state of its parent, whose thread does not exist there.
fn fork_while_evicting(stage: &Stage) {
    let Task { dir, .. } = stage.argument();
    let store = open_kept(&dir);
    write_some(&store, "parent", 2 * LIMIT);
    let child = fork(|| {
        write_some(&store, "child", 2 * LIMIT);
        wait_until_small(&dir);
    });
    // This process writes nothing more, and evicts only what it may have seen.
    drop(store);
    assert_succeeds(child);
    stage.send("done");
}

#[test]
fn a_forked_child_evicts_by_itself() {
    let dir = tempdir().unwrap();
    let mut child = start_quietly("fork while a cache keeps itself small", dir.path());
    child.expect("done");
    child.finish();
}

fn start_quietly(role: &'static str, dir: &Path) -> Child {
    Child::start(role, &Task { dir: dir.to_owned(), number: 0, times: 0 })
}

const HOUR: Duration = Duration::from_hours(1);

/// Opens a store that notes its reads, and evicts only when it is told to.
fn open_noting(dir: &Path) -> FileSystemRecordStore {
    watch_test();
    FileSystemOptions::new().eviction(EvictionPolicy::new().least_recently_read(true)).open(dir).unwrap()
}

/// Writes records that are as old as this in hours, and that nobody has read.
fn write_old(dir: &Path, records: &[(&str, u32)]) {
    let store = open(dir);
    for (key, age) in records {
        store.write(*key, &1).unwrap();
        let file = File::open(dir.join(format!("{key}.json"))).unwrap();
        let then = SystemTime::now() - HOUR * *age;
        file.set_times(fs::FileTimes::new().set_modified(then).set_accessed(then)).unwrap();
    }
}

fn keys_of(store: &FileSystemRecordStore) -> Vec<String> {
    let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
    keys.sort();
    keys
}

fn least_recently_read(records: u64) -> EvictionPolicy {
    EvictionPolicy::new().max_records(records).least_recently_read(true)
}

#[test]
fn a_record_that_was_read_is_evicted_after_those_that_were_not() {
    let reads: [fn(&FileSystemRecordStore); 4] = [
        |store| assert!(store.read::<u8>("first").unwrap().is_some()),
        |store| {
            let ignoring = ReadOptions::new().ignore_lock();
            assert!(store.read_with::<u8>("first", ignoring).unwrap().is_some());
        },
        |store| {
            let guard = store.lock("first", LockOptions::new()).unwrap();
            assert!(guard.read::<u8>().unwrap().is_some());
        },
        |store| {
            let never = || panic!("it is there");
            assert_eq!(store.get_or_compute::<u8>("first", LockOptions::new(), never).unwrap(), 1);
        },
    ];
    for read in reads {
        let dir = tempdir().unwrap();
        write_old(dir.path(), &[("first", 3), ("second", 2), ("third", 1)]);
        let store = open_noting(dir.path());
        read(&store);
        // The eviction looks into files, too. That is no read.
        let dry = store.evict(least_recently_read(1).dry_run(true)).unwrap();
        assert_eq!((dry.records, keys_of(&store).len()), (2, 3));
        assert_eq!(store.evict(least_recently_read(2)).unwrap().records, 1);
        assert_eq!(keys_of(&store), ["first", "third"]);
        assert_eq!(store.evict(least_recently_read(2).older_than(HOUR / 2)).unwrap().records, 1);
        assert_eq!(keys_of(&store), ["first"]);
        // By the time of its write, it is the oldest.
        assert_eq!(store.evict(EvictionPolicy::new().older_than(HOUR)).unwrap().records, 1);
    }
}

/// With `relatime`, the kernel replaces an access time that is not later than the last change of the file or of its metadata.
#[test]
fn later_reads_of_any_kind_leave_a_noted_read_as_it_is() {
    let dir = tempdir().unwrap();
    let keys: Vec<String> = (0..20).map(|number| format!("read{number}")).collect();
    let mut records: Vec<(&str, u32)> = keys.iter().map(|key| (&**key, 3)).collect();
    records.push(("not read", 2));
    write_old(dir.path(), &records);
    let store = open_noting(dir.path());
    for _ in 0..3 {
        for key in &keys {
            assert!(store.read::<u8>(key).unwrap().is_some());
            fs::read(dir.path().join(format!("{key}.json"))).unwrap();
        }
    }
    assert_eq!(store.evict(least_recently_read(20)).unwrap().records, 1);
    assert!(!store.exists("not read").unwrap(), "one that was read is evicted");
}

/// The reads of other programs, of a store that is opened otherwise, and of a listing.
#[test]
fn a_read_that_was_not_noted_changes_no_order() {
    let dir = tempdir().unwrap();
    write_old(dir.path(), &[("first", 3), ("second", 2), ("third", 1)]);
    // As the kernel sets it, and so late that it does not set it again.
    let file = File::open(dir.path().join("first.json")).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH + HOUR * 500_000)).unwrap();
    let noting = FileSystemOptions::new().eviction(least_recently_read(1));
    for store in [open(dir.path()), noting.mode(OpenMode::ReadOnly).open(dir.path()).unwrap()] {
        assert!(store.read::<u8>("first").unwrap().is_some());
        assert_eq!(store.records(ListOptions::new().results(true)).unwrap().count(), 3);
    }
    fs::read(dir.path().join("first.json")).unwrap();
    let store = open(dir.path());
    assert_eq!(store.evict(least_recently_read(2)).unwrap().records, 1);
    assert_eq!(keys_of(&store), ["second", "third"]);
}

/// Its version depends on the time of the file.
#[test]
fn a_noted_read_keeps_the_version_of_a_handwritten_record() {
    let dir = tempdir().unwrap();
    let store = open_noting(dir.path());
    let path = dir.path().join("by-hand.json");
    fs::write(&path, r#"{"key":"by-hand","result":1}"#).unwrap();
    let then = SystemTime::now() - HOUR;
    File::open(&path).unwrap().set_times(fs::FileTimes::new().set_modified(then)).unwrap();
    let version = store.read::<u8>("by-hand").unwrap().unwrap().version;
    let noted = fs::metadata(&path).unwrap();
    assert_eq!(
        noted.accessed().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos() % 1_000_000,
        271_828
    );
    assert_eq!(noted.modified().unwrap(), then);
    assert_eq!(store.read::<u8>("by-hand").unwrap().unwrap().version, version);
}
