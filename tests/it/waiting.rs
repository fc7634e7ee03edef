//! Waiting: woken and not polling, in turn, bounded, and without wasting the processor.
//!
//! `RUSTFLAGS="--cfg record_store_elsewhere"` tests how it is done where there is no futex: by naps,
//! and in no order.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use record_store::{FileSystemOptions, Holder, LockOptions, OpenMode, RecordStoreExt};
use rustix::process::Signal;
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage, until_asleep};
use crate::support::{PATIENCE, as_named, millis, open, storm};

pub(crate) const ROLES: &[Role] =
    &[("take turns", take_turns), ("wait once", wait_once), ("wait to read", wait_to_read)];

/// Takes and releases the lock in a tight loop, and tells how often and how long it waited.
fn take_turns(stage: &Stage) {
    let (dir, time): (PathBuf, Duration) = stage.argument();
    let store = open(&dir);
    stage.tell("ready");
    stage.expect("go");
    let start = Instant::now();
    let (mut turns, mut longest, mut total) = (0_u32, Duration::ZERO, Duration::ZERO);
    while start.elapsed() < time {
        let asked = Instant::now();
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let waited = asked.elapsed();
        (turns, longest, total) = (turns + 1, longest.max(waited), total + waited);
        guard.release().unwrap();
    }
    stage.tell(&format!("{turns} {} {}", longest.as_micros(), (total / turns).as_micros()));
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn no_one_starves_where_many_take_turns() {
    let dir = tempdir().unwrap();
    let time = millis(storm(1_500));
    let mut children: Vec<_> = (0..8).map(|_| Child::start("take turns", &(dir.path(), time))).collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.tell("go");
    }
    let told: Vec<[u64; 3]> = children
        .iter_mut()
        .map(|child| {
            let line = child.hear();
            let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
            numbers.try_into().unwrap()
        })
        .collect();
    let turns = || told.iter().map(|[turns, ..]| *turns);
    let (most, least) = (turns().max().unwrap(), turns().min().unwrap());
    assert!(most <= 2 * least, "{told:?}");
}

#[test]
fn looking_on_never_sees_a_part_of_a_lock() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", "there").unwrap();
    let time = millis(storm(1_000));
    let mut children: Vec<_> = (0..3).map(|_| Child::start("take turns", &(dir.path(), time))).collect();
    for child in &mut children {
        child.expect("ready");
        child.tell("go");
    }
    let start = Instant::now();
    let (mut held, mut listed) = (0, 0);
    while start.elapsed() < time {
        held += u32::from(store.lock_info("k").unwrap().is_some());
        listed += store.locks().unwrap().map(Result::unwrap).count();
        match store.try_read::<String>("k", Duration::ZERO) {
            Ok(record) => assert_eq!(record.unwrap().result, "there"),
            Err(error) => assert!(error.is_timeout(), "{error}"),
        }
    }
    assert!(held > 0 && listed > 0, "nobody took a turn");
    for child in &mut children {
        child.hear();
    }
    assert_eq!(crate::support::names_in(dir.path()).len(), 2, "no lock file stays");
}

/// The next lock is written into the file of the last one where it fits. Where it does not, there is
/// a new file: while a file grows, a reader can find its text cut off.
#[test]
#[cfg(not(record_store_elsewhere))]
fn a_lock_file_changes_hands_in_place_but_never_grows() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let inode = || std::fs::metadata(dir.path().join("k.lock")).unwrap().ino();
    for (next, fits) in [("next".to_owned(), true), ("n".repeat(Holder::MAX_BYTES), false)] {
        let guard = store.lock("k", as_named("first")).unwrap();
        let before = inode();
        std::thread::scope(|scope| {
            let (sender, thread) = channel();
            let store = &store;
            let waiter = scope.spawn(move || {
                sender.send(rustix::thread::gettid().as_raw_pid()).unwrap();
                store.acquire_lock("k", &as_named(&next)).unwrap()
            });
            until_asleep(std::process::id(), thread.recv().unwrap());
            guard.release().unwrap();
            let token = waiter.join().unwrap();
            assert_eq!(inode() == before, fits);
            store.release_lock("k", token).unwrap();
        });
    }
}

/// Waits for the lock, tells that it has it, and releases when told.
fn wait_once(stage: &Stage) {
    let (dir, timeout): (PathBuf, Option<Duration>) = stage.argument();
    let store = open(&dir);
    stage.tell("ready");
    stage.expect("go");
    let mut options = LockOptions::new();
    if let Some(timeout) = timeout {
        options = options.acquire_timeout(timeout);
    }
    match store.lock("k", options) {
        Ok(guard) => {
            stage.tell("got it");
            stage.expect("release");
            guard.release().unwrap();
            stage.tell("released");
        }
        Err(error) => stage.tell(if error.is_timeout() { "timed out" } else { "failed" }),
    }
}

/// Starts a process that waits for the lock, and sees it wait: its place in line is taken.
fn start_waiting(dir: &Path, timeout: Option<Duration>) -> Child {
    let mut child = Child::start("wait once", &(dir, timeout));
    child.expect("ready");
    child.tell("go");
    child.until_asleep();
    child
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn who_waits_is_served_in_the_order_of_arrival() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let mut waiters: Vec<_> = (0..5).map(|_| start_waiting(dir.path(), None)).collect();
    guard.release().unwrap();
    for waiter in &mut waiters {
        waiter.expect("got it");
        // The one who has it is the only one.
        assert!(store.try_lock("k", as_named("another")).unwrap().is_none());
        waiter.tell("release");
        waiter.expect("released");
    }
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn who_releases_and_asks_again_does_not_overtake() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let mut waiter = start_waiting(dir.path(), None);
    guard.release().unwrap();
    let asker = std::thread::spawn({
        let store = store.clone();
        move || store.lock("k", as_named("again").acquire_timeout(PATIENCE)).map(drop)
    });
    waiter.expect("got it");
    assert!(!asker.is_finished());
    waiter.tell("release");
    asker.join().unwrap().unwrap();
}

#[test]
fn the_line_survives_the_killed_the_stopped_and_the_timed_out() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let killed = start_waiting(dir.path(), None);
    let mut stopped = start_waiting(dir.path(), None);
    let mut timed_out = start_waiting(dir.path(), Some(millis(300)));
    let mut last = start_waiting(dir.path(), None);
    killed.kill();
    stopped.stop();
    timed_out.expect("timed out");
    let start = Instant::now();
    guard.release().unwrap();
    last.expect("got it");
    // Whoever would have to wait for the stopped one waits for ever.
    assert!(start.elapsed() < PATIENCE / 2);
    stopped.resume();
    last.tell("release");
    last.expect("released");
    stopped.expect("got it");
    stopped.tell("release");
    stopped.expect("released");
    // Nobody is left whose turn it could be.
    store.try_lock("k", LockOptions::new()).unwrap().expect("free, and nobody waits").release().unwrap();
    assert_eq!(crate::support::names_in(dir.path()), [".store"], "no lock file stays");
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn idle_waiters_use_no_processor() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let _guard = store.lock("k", LockOptions::new()).unwrap();
    let count = 10 * storm(1);
    let waiters: Vec<_> = (0..count).map(|_| start_waiting(dir.path(), None)).collect();
    let used = |waiters: &[Child]| waiters.iter().map(Child::processor_time).sum::<Duration>();
    let (before, start) = (used(&waiters), Instant::now());
    // Time is the subject here.
    std::thread::sleep(Duration::from_secs(3));
    let (used, time) = (used(&waiters).saturating_sub(before), start.elapsed());
    // 1 % of a core for 50, in an optimised build. The clock ticks in steps of 10 ms, and this build
    // may not be optimised: allow for both. Polling every millisecond takes ten times as much.
    let bound = time / 100 * u32::try_from(count).unwrap() / 10;
    assert!(used <= bound, "{count} waiters used {used:?} in {time:?}, more than {bound:?}");
}

/// Waits for a record with a handle that cannot write.
fn wait_to_read(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir).unwrap();
    stage.tell("ready");
    stage.expect("go");
    let record = store.read::<String>("k").unwrap().expect("a record");
    assert!(store.wait_for_lock("k", None).unwrap());
    stage.tell(&record.result);
}

#[test]
fn a_read_only_store_is_woken_too() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut times: Vec<_> = (0..7)
        .map(|_| {
            let guard = store.lock("k", LockOptions::new()).unwrap();
            let mut reader = Child::start("wait to read", &dir.path());
            reader.expect("ready");
            reader.tell("go");
            reader.until_asleep();
            guard.write("at last").unwrap();
            let start = Instant::now();
            guard.release().unwrap();
            reader.expect("at last");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    assert!(times[times.len() / 2] < millis(100), "not by looking every 250 ms: {times:?}");
}

#[test]
fn waiting_for_one_key_does_not_hold_up_another_of_the_same_hash() {
    // The CRC-32 of these two is the same.
    let (key, twin) = ("plumless", "buckeroo");
    assert_eq!(crc32fast::hash(key.as_bytes()), crc32fast::hash(twin.as_bytes()));
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock(key, LockOptions::new()).unwrap();
    let (tid, started) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn({
        let store = store.clone();
        move || {
            tid.send(rustix::thread::gettid().as_raw_pid()).unwrap();
            store.lock(key, LockOptions::new()).map(drop).unwrap();
        }
    });
    crate::support::children::until_asleep(std::process::id(), started.recv().unwrap());
    for _ in 0..3 {
        store.try_lock(twin, LockOptions::new()).unwrap().expect("nobody has it").release().unwrap();
    }
    guard.release().unwrap();
    waiter.join().unwrap();
}

#[test]
fn a_thread_is_woken_by_a_thread() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut times: Vec<_> = (0..7)
        .map(|_| {
            let guard = store.lock("k", LockOptions::new()).unwrap();
            let (tid, started) = std::sync::mpsc::channel();
            let waiter = std::thread::spawn({
                let store = store.clone();
                move || {
                    tid.send(rustix::thread::gettid().as_raw_pid()).unwrap();
                    store.lock("k", LockOptions::new()).map(drop).unwrap();
                    Instant::now()
                }
            });
            crate::support::children::until_asleep(std::process::id(), started.recv().unwrap());
            let start = Instant::now();
            guard.release().unwrap();
            waiter.join().unwrap() - start
        })
        .collect();
    times.sort_unstable();
    assert!(times[times.len() / 2] < millis(100), "not by looking every 250 ms: {times:?}");
}

#[test]
fn an_expired_lease_wakes_who_waits_for_it() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let start = Instant::now();
    let lease = millis(700);
    store.acquire_lock("k", &as_named("gone").hold_timeout(lease)).unwrap();
    store.lock("k", LockOptions::new()).unwrap().release().unwrap();
    assert!(start.elapsed() >= lease);
    assert!(start.elapsed() < lease + PATIENCE / 2);
}

#[test]
fn a_broken_lock_wakes_who_waits_for_it() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.acquire_lock("k", &as_named("for ever")).unwrap();
    let mut waiter = start_waiting(dir.path(), None);
    assert!(store.break_lock("k").unwrap());
    waiter.expect("got it");
    waiter.signal(Signal::KILL);
}
