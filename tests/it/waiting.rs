//! Waiting: waiters are woken instead of polling, acquire in FIFO order, return by their timeout, and use
//! almost no processor time.
//!
//! `RUSTFLAGS="--cfg record_store_elsewhere"` tests the implementation for systems without futexes: it
//! polls, and keeps no order.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use record_store::{
    BreakOptions, FileSystemOptions, Holder, LockOptions, OpenMode, ReadOptions, RecordStoreExt, WaitOptions,
};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage, spawn_until_asleep, until_asleep};
use crate::support::{PATIENCE, as_named, millis, open, slots_in_use, storm};

pub(crate) const ROLES: &[Role] =
    &[("compete", compete), ("wait once", wait_once), ("wait to read", wait_to_read), ("crowd", crowd)];

/// Acquires and releases the lock in a tight loop, until the parent requests its end. After each acquisition it notes
/// how many others had the lock since it called. Sends a line when it has acquired the lock this often, and the median
/// of its notes at the end.
fn compete(stage: &Stage) {
    use std::os::unix::fs::FileExt;
    let (dir, times): (PathBuf, usize) = stage.argument();
    let store = open(&dir);
    let counter =
        File::options().read(true).write(true).create(true).truncate(false).open(dir.join(COUNTER)).unwrap();
    let count = || {
        let mut bytes = [0; 8];
        let _ = counter.read_at(&mut bytes, 0).unwrap();
        u64::from_ne_bytes(bytes)
    };
    stage.send("ready");
    stage.expect("go");
    let end = std::thread::spawn(|| std::io::stdin().read_line(&mut String::new()).unwrap());
    let mut others = Vec::new();
    while !end.is_finished() {
        let before = count();
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let now = count();
        others.push(now - before);
        counter.write_all_at(&(now + 1).to_ne_bytes(), 0).unwrap();
        guard.release().unwrap();
        if others.len() == times {
            stage.send("often enough");
        }
    }
    others.sort_unstable();
    stage.send(&others[others.len() / 2].to_string());
}

/// The file in which competitors count the acquisitions. Only the lock holder changes it.
const COUNTER: &str = ".count";

fn start_competitors(dir: &Path, count: usize, times: usize) -> Vec<Child> {
    let mut children: Vec<_> = (0..count).map(|_| Child::start("compete", &(dir, times))).collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.send("go");
    }
    children
}

/// All compete until each has had its turns. Most of the time, everybody else has one turn in between. A process that
/// does not run for a while is skipped, so on a busy machine that may differ for a few turns.
#[test]
#[cfg(not(record_store_elsewhere))]
fn nobody_starves_when_many_processes_compete() {
    const COUNT: usize = 8;
    let dir = tempdir().unwrap();
    let mut children = start_competitors(dir.path(), COUNT, usize::try_from(storm(200)).unwrap());
    for child in &mut children {
        child.expect("often enough");
    }
    for child in &mut children {
        child.send("end");
    }
    let medians: Vec<usize> = children.iter_mut().map(|child| child.receive().parse().unwrap()).collect();
    assert!(medians.iter().all(|&others| others < 2 * COUNT), "{medians:?}");
}

#[test]
fn an_observer_never_sees_a_partial_lock_file() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", "value").unwrap();
    let mut children = start_competitors(dir.path(), 3, usize::try_from(storm(200)).unwrap());
    let (mut held, mut listed, mut finished) = (0, 0, 0);
    while finished < children.len() || held == 0 || listed == 0 {
        finished += children.iter_mut().filter_map(Child::try_receive).count();
        held += u32::from(store.lock_info("k").unwrap().is_some());
        listed += store.locks().unwrap().map(Result::unwrap).count();
        match store.read_with::<String>("k", ReadOptions::new().timeout(Duration::ZERO)) {
            Ok(record) => assert_eq!(record.unwrap().result, "value"),
            Err(error) => assert!(error.is_timeout(), "{error}"),
        }
    }
    for child in &mut children {
        child.send("end");
        child.receive();
    }
    let mut left = crate::support::names_in(dir.path());
    left.sort_unstable();
    assert_eq!(left, [".count", ".store", "k.json"], "no lock file is left");
}

/// The lock of the next waiter is written into the existing lock file if it fits. Otherwise a new file is
/// created, because a reader can find a truncated text while a file grows.
#[test]
#[cfg(not(record_store_elsewhere))]
fn a_lock_file_is_reused_in_place_but_never_grows() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let inode = || std::fs::metadata(dir.path().join("k.lock")).unwrap().ino();
    let [long, other] = ["n", "m"].map(|name| name.repeat(Holder::MAX_BYTES));
    // One that is larger than a sector could be torn by a power loss.
    for (first, next, fits) in [("first", "next", true), ("first", &*long, false), (&*other, &*long, false)] {
        let guard = store.lock("k", as_named(first)).unwrap();
        let before = inode();
        // While it is open, no other file has its inode number.
        let _open = std::fs::File::open(dir.path().join("k.lock")).unwrap();
        std::thread::scope(|scope| {
            let (sender, thread) = channel();
            let store = &store;
            let waiter = scope.spawn(move || {
                sender.send(rustix::thread::gettid().as_raw_pid()).unwrap();
                store.acquire_lock("k", as_named(next)).unwrap()
            });
            until_asleep(std::process::id(), thread.recv().unwrap());
            guard.release().unwrap();
            let token = waiter.join().unwrap();
            assert_eq!(inode() == before, fits);
            store.release_lock("k", token).unwrap();
        });
    }
}

/// Waits for the lock, reports the outcome, and releases the lock when the parent requests it.
fn wait_once(stage: &Stage) {
    let (dir, timeout): (PathBuf, Option<Duration>) = stage.argument();
    let store = open(&dir);
    stage.send("ready");
    stage.expect("go");
    match store.lock("k", LockOptions::new().acquire_timeout(timeout)) {
        Ok(guard) => {
            stage.send("acquired");
            stage.expect("release");
            guard.release().unwrap();
            stage.send("released");
        }
        Err(error) => stage.send(if error.is_timeout() { "timed out" } else { "failed" }),
    }
}

/// Starts a process that waits for the lock, and returns when it sleeps: it is in the wait queue then.
fn start_waiting(dir: &Path, timeout: Option<Duration>) -> Child {
    let mut child = Child::start("wait once", &(dir, timeout));
    child.expect("ready");
    child.send("go");
    child.until_asleep();
    child
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn waiters_acquire_in_the_order_of_arrival() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let mut waiters: Vec<_> = (0..5).map(|_| start_waiting(dir.path(), None)).collect();
    guard.release().unwrap();
    for waiter in &mut waiters {
        waiter.expect("acquired");
        // Nobody else can acquire it now.
        assert!(store.try_lock("k", as_named("another")).unwrap().is_none());
        waiter.send("release");
        waiter.expect("released");
    }
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn a_holder_that_releases_and_acquires_again_does_not_overtake_a_waiter() {
    // Others go first if a notified waiter does not react within this time.
    const GRACE: Duration = Duration::from_millis(50);
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for _ in 0..20 {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let mut waiter = start_waiting(dir.path(), None);
        let start = Instant::now();
        guard.release().unwrap();
        let again = std::thread::spawn({
            let store = store.clone();
            move || store.lock("k", as_named("again").acquire_timeout(PATIENCE)).map(drop)
        });
        waiter.expect("acquired");
        let (is_overtaken, is_late) = (again.is_finished(), start.elapsed() >= GRACE);
        waiter.send("release");
        again.join().unwrap().unwrap();
        // On a busy machine the waiter may have been late.
        if !is_late || !is_overtaken {
            assert!(!is_overtaken);
            return;
        }
    }
    panic!("the waiter was overtaken each time");
}

#[test]
fn the_wait_queue_survives_killed_stopped_and_timed_out_waiters() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let killed = start_waiting(dir.path(), None);
    let mut stopped = start_waiting(dir.path(), None);
    let mut timed_out = start_waiting(dir.path(), Some(millis(300)));
    let mut last = start_waiting(dir.path(), None);
    killed.kill();
    stopped.stop_asleep();
    timed_out.expect("timed out");
    let start = Instant::now();
    guard.release().unwrap();
    last.expect("acquired");
    // A queue that waited for the stopped process would wait forever.
    assert!(start.elapsed() < PATIENCE / 2);
    stopped.resume();
    last.send("release");
    last.expect("released");
    stopped.expect("acquired");
    stopped.send("release");
    stopped.expect("released");
    // The wait queue is empty.
    store.try_lock("k", LockOptions::new()).unwrap().expect("a free lock without waiters").release().unwrap();
    assert_eq!(crate::support::names_in(dir.path()), [".store"], "no lock file is left");
}

/// As many waiters as the queue has slots, in one process.
fn crowd(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    std::thread::scope(|scope| {
        for number in 0..SLOTS {
            let store = &store;
            // Of many keys, so that the release of one of them frees only one slot.
            let key = format!("never-released-{number}");
            scope.spawn(move || store.acquire_lock(key, as_named(&number.to_string())).map(drop));
        }
        stage.send("ready");
    });
}

const SLOTS: usize = 256;

#[cfg(not(record_store_elsewhere))]
fn assert_in_order(dir: &Path) {
    let store = open(dir);
    let guard = store.lock("k", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
    let mut waiters: Vec<_> = (0..4).map(|_| start_waiting(dir, None)).collect();
    guard.release().unwrap();
    for waiter in &mut waiters {
        waiter.expect("acquired");
        assert!(store.try_lock("k", as_named("another")).unwrap().is_none());
        waiter.send("release");
        waiter.expect("released");
    }
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn waiters_that_were_all_killed_at_once_leave_room_in_the_queue() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for number in 0..SLOTS {
        store.acquire_lock(format!("never-released-{number}"), as_named("forever")).unwrap();
    }
    let mut crowd = Child::start("crowd", &dir.path());
    crowd.expect("ready");
    let start = Instant::now();
    while slots_in_use(dir.path()) < u32::try_from(SLOTS).unwrap() {
        assert!(start.elapsed() < PATIENCE, "the queue is not full");
        std::thread::sleep(millis(1));
    }
    crowd.kill();
    assert_in_order(dir.path());
}

/// A process that is killed while it takes a slot, or frees one, leaves a slot that names no owner.
#[test]
#[cfg(not(record_store_elsewhere))]
fn slots_that_were_taken_or_freed_only_by_half_are_used_again() {
    use std::os::unix::fs::FileExt;
    const FREE: u32 = 0;
    const CLAIMED: u32 = 4;
    for owner in [None, Some("1-killed")] {
        let dir = tempdir().unwrap();
        drop(open(dir.path()));
        let state = owner.map_or(FREE, |owner| crc32fast::hash(owner.as_bytes()) & !7 | CLAIMED);
        let table = std::fs::File::options().write(true).open(dir.path().join(".store/events")).unwrap();
        for slot in 0..SLOTS as u64 {
            table.write_all_at(&state.to_ne_bytes(), 16 * 1024 + 64 * slot).unwrap();
        }
        table.write_all_at(&[0xff; 32], 32 * 1024).unwrap();
        assert_in_order(dir.path());
    }
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn idle_waiters_use_almost_no_processor_time() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let _guard = store.lock("k", LockOptions::new()).unwrap();
    let count = 10 * storm(1);
    let waiters: Vec<_> = (0..count).map(|_| start_waiting(dir.path(), None)).collect();
    let used = |waiters: &[Child]| waiters.iter().map(Child::processor_time).sum::<Duration>();
    let (before, start) = (used(&waiters), Instant::now());
    // The test measures a rate, so it needs a fixed time.
    std::thread::sleep(Duration::from_secs(3));
    let (used, time) = (used(&waiters).saturating_sub(before), start.elapsed());
    // In an optimised build, 50 waiters use 1 % of a core. The bound also allows for a build that is not optimised.
    // Polling every millisecond would use ten times as much.
    let bound = time / 100 * u32::try_from(count).unwrap() / 10;
    assert!(used <= bound, "{count} waiters used {used:?} in {time:?}, more than {bound:?}");
}

/// Waits for a record on a store that is opened read-only.
fn wait_to_read(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir).unwrap();
    stage.send("ready");
    stage.expect("go");
    let record = store.read::<String>("k").unwrap().expect("a record");
    assert!(store.wait_for_lock("k", WaitOptions::new()).unwrap());
    stage.send(&record.result);
}

#[test]
fn a_reader_on_a_read_only_store_is_woken() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for _ in 0..7 {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let mut reader = Child::start("wait to read", &dir.path());
        reader.expect("ready");
        reader.send("go");
        reader.until_asleep();
        guard.write("committed").unwrap();
        guard.release().unwrap();
        reader.expect("committed");
    }
}

#[test]
fn a_waiter_does_not_block_another_key_with_the_same_hash() {
    // These two keys have the same CRC-32.
    let (key, twin) = ("plumless", "buckeroo");
    assert_eq!(crc32fast::hash(key.as_bytes()), crc32fast::hash(twin.as_bytes()));
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock(key, LockOptions::new()).unwrap();
    let waiter = spawn_until_asleep({
        let store = store.clone();
        move || store.lock(key, LockOptions::new()).map(drop).unwrap()
    });
    for _ in 0..3 {
        store.try_lock(twin, LockOptions::new()).unwrap().expect("a free lock").release().unwrap();
    }
    guard.release().unwrap();
    waiter.join();
}

#[test]
fn a_release_wakes_a_thread_of_the_same_process() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for _ in 0..7 {
        let guard = store.lock("k", as_named("holder")).unwrap();
        let waiter = spawn_until_asleep({
            let store = store.clone();
            move || store.lock("k", as_named("waiter")).map(drop).unwrap()
        });
        guard.release().unwrap();
        waiter.join();
    }
}

#[test]
fn an_expired_lease_wakes_its_waiter() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let start = Instant::now();
    let lease = millis(700);
    store.acquire_lock("k", as_named("gone").hold_timeout(lease)).unwrap();
    store.lock("k", LockOptions::new()).unwrap().release().unwrap();
    assert!(start.elapsed() >= lease);
    assert!(start.elapsed() < lease + PATIENCE / 2);
}

/// A release notifies only the first waiter. The second one still sleeps until the end of the lease that it has seen.
#[test]
fn a_shorter_lease_of_the_next_holder_wakes_the_waiters_behind_it() {
    for first_lease in [None, Some(PATIENCE)] {
        let dir = tempdir().unwrap();
        let store = open(dir.path());
        let first = store.lock("k", as_named("first").hold_timeout(first_lease)).unwrap();
        let lease = millis(300);
        let next = spawn_until_asleep({
            let store = store.clone();
            // It never releases the lock.
            move || store.acquire_lock("k", as_named("next").hold_timeout(lease)).map(|_| Instant::now())
        });
        let mut last = start_waiting(dir.path(), None);
        first.release().unwrap();
        let acquired = next.join().unwrap();
        last.expect("acquired");
        assert!(acquired.elapsed() < lease + PATIENCE / 2);
    }
}

#[test]
fn a_broken_lock_wakes_its_waiter() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for by_token in [false, true] {
        let token = store.acquire_lock("k", as_named("forever").acquire_timeout(PATIENCE)).unwrap();
        let mut waiter = start_waiting(dir.path(), None);
        let broken = if by_token {
            store.break_lock_with("k", BreakOptions::new().token(token))
        } else {
            store.break_lock("k")
        };
        assert!(broken.unwrap());
        waiter.expect("acquired");
        waiter.kill();
    }
}

/// A waiter reports a file that is no lock as soon as it sees one. This one sleeps and does not see it.
#[test]
#[cfg(record_store_no_recheck)]
fn a_damaged_lock_that_is_broken_wakes_those_who_wait_for_the_key() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.acquire_lock("k", as_named("forever")).unwrap();
    let mut waiter = start_waiting(dir.path(), None);
    std::fs::write(dir.path().join("k.lock"), "no lock").unwrap();
    assert!(store.break_lock("k").unwrap());
    waiter.expect("acquired");
}
