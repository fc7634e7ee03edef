//! Operations built on locks and records, used by several processes at once: `get_or_compute`,
//! `compare_and_swap`, `lock_all` and `watch`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use record_store::{
    Acquired, Cancellation, Claim, CorruptRecords, Durability, Error, ErrorKind, Json, Key, LockOptions,
    MemoryRecordStore, RawRecord, ReadOptions, RecordChange, RecordStore, RecordStoreExt, Result,
    UpdateOptions, WaitOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis, named, names_in, open, open_with, storm, tempdir};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("compute", compute),
    ("compute-stale", compute_stale),
    ("swap", swap),
    ("transfer", transfer),
    ("watch", watch),
    ("watch-read-only", watch_read_only),
];

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    times: u64,
}

fn start(role: &'static str, dir: &Path, times: u64) -> Child {
    let mut child = Child::start(role, &Task { dir: dir.to_owned(), times });
    child.expect("ready");
    child
}

/// Calls `get_or_compute` for each key that it receives. The computation sends `computing` and receives
/// how it must end. Afterwards the child sends the outcome of the call.
fn compute(stage: &Stage) {
    compute_with(stage, &UpdateOptions::new());
}

/// [`compute`] with options for stale results.
fn compute_stale(stage: &Stage) {
    compute_with(stage, &stale_options());
}

fn compute_with(stage: &Stage, options: &UpdateOptions) {
    let task: Task = stage.argument();
    let store = open(&task.dir);
    stage.send("ready");
    loop {
        let key = stage.receive();
        let options = options.clone().lock(LockOptions::new().acquire_timeout(PATIENCE));
        let got = store.get_or_compute(key, options, || {
            stage.send("computing");
            match stage.receive().as_str() {
                "fail" => Err(Error::new(ErrorKind::Other, "").with_detail("failed on purpose")),
                "panic" => panic!("on purpose"),
                result => Ok(result.to_owned()),
            }
        });
        stage.send(&got.unwrap_or_else(|error| error.to_string()));
    }
}

/// Waits until one child computes, and takes it out of `children`.
fn take_computing_child(children: &mut Vec<Child>) -> Child {
    let start = Instant::now();
    loop {
        for at in 0..children.len() {
            if let Some(line) = children[at].try_receive() {
                assert_eq!(line, "computing");
                return children.swap_remove(at);
            }
        }
        assert!(start.elapsed() < PATIENCE, "no child computes");
        std::thread::sleep(millis(1));
    }
}

#[test]
fn one_process_computes_and_all_get_the_result() {
    let dir = tempdir().unwrap();
    let mut children: Vec<_> = (0..8).map(|_| start("compute", dir.path(), 0)).collect();
    for round in 0..storm(5) {
        let key = format!("key {round}");
        for child in &mut children {
            child.send(&key);
        }
        let mut first = take_computing_child(&mut children);
        for child in &children {
            child.until_asleep();
        }
        first.send("42");
        children.push(first);
        for child in &mut children {
            // A child that computed too would send `computing` first.
            child.expect("42");
        }
    }
}

#[test]
fn a_process_that_dies_or_fails_computing_is_replaced_at_once() {
    let dir = tempdir().unwrap();
    let mut children: Vec<_> = (0..6).map(|_| start("compute", dir.path(), 0)).collect();
    for child in &mut children {
        child.send("key");
    }
    let mut failing = take_computing_child(&mut children);
    failing.send("fail");
    failing.expect("failed on purpose");
    let killed = Instant::now();
    take_computing_child(&mut children).kill();
    let mut panicking = take_computing_child(&mut children);
    let replaced = killed.elapsed();
    panicking.send("panic");
    let mut stopped = take_computing_child(&mut children);
    stopped.stop();
    stopped.resume();
    stopped.send("7");
    stopped.expect("7");
    for child in &mut children {
        child.expect("7");
    }
    assert!(replaced < Duration::from_secs(10), "{replaced:?}");
    assert_eq!(open(dir.path()).read::<String>("key").unwrap().unwrap().result, "7");
}

/// Options with which any record that expires is stale, unless it was written with them.
pub(crate) fn stale_options() -> UpdateOptions {
    UpdateOptions::new().time_to_live(60 * PATIENCE).stale_for(60 * PATIENCE)
}

/// Writes a result that is stale for [`stale_options`].
pub(crate) fn stale_write() -> WriteOptions {
    WriteOptions::new().time_to_live(30 * PATIENCE)
}

#[test]
fn other_processes_get_the_stale_result_until_its_successor_is_stored() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", "old", stale_write()).unwrap();
    let mut children: Vec<_> = (0..4).map(|_| start("compute-stale", dir.path(), 0)).collect();
    let mut first = children.pop().unwrap();
    first.send("key");
    first.expect("computing");
    for child in &mut children {
        child.send("key");
    }
    for child in &mut children {
        child.expect("old");
        child.send("key");
        child.expect("old");
    }
    // An observer sees it too. Other readers wait for the lock, as ever.
    let observed = ReadOptions::new().ignore_lock();
    assert_eq!(store.read_with::<String>("key", observed).unwrap().unwrap().result, "old");
    let at_once = ReadOptions::new().timeout(Duration::ZERO);
    assert!(store.read_with::<String>("key", at_once).unwrap_err().is_timeout());
    first.send("new");
    first.expect("new");
    for child in &mut children {
        child.send("key");
        child.expect("new");
    }
    assert!(!store.is_locked("key").unwrap());
    let left = store.record_info("key").unwrap().unwrap().time_left().unwrap();
    assert!(left > 60 * PATIENCE && left <= 120 * PATIENCE, "{left:?}");
}

#[test]
fn a_stale_result_stays_if_its_successor_is_not_computed() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", "old", stale_write()).unwrap();
    let mut children: Vec<_> = (0..4).map(|_| start("compute-stale", dir.path(), 0)).collect();
    let mut last = children.pop().unwrap();
    for (at, end) in ["fail", "kill", "panic"].into_iter().enumerate() {
        let mut child = children.pop().unwrap();
        child.send("key");
        child.expect("computing");
        last.send("key");
        last.expect("old");
        match end {
            "fail" => {
                child.send(end);
                child.expect("failed on purpose");
            }
            "kill" => drop(child.kill()),
            _ => {
                child.send(end);
                // Not the end of the process, which would also free the lock.
                assert!(store.wait_for_lock("key", PATIENCE).unwrap());
            }
        }
        assert_eq!(children.len(), 2 - at);
        assert!(store.wait_for_lock("key", PATIENCE).unwrap());
        assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "old", "after: {end}");
    }
    last.send("key");
    last.expect("computing");
    last.send("new");
    last.expect("new");
}

/// A user who may not write cannot compute the next result, but gets the stale one.
#[test]
fn a_reader_of_a_read_only_store_gets_the_stale_result() {
    let dir = tempdir().unwrap();
    open(dir.path()).write_with("key", "old", stale_write()).unwrap();
    let options = record_store::FileSystemOptions::new().mode(record_store::OpenMode::ReadOnly);
    let store = options.open(dir.path()).unwrap();
    let never = || -> Result<String> { panic!("a reader computes") };
    assert_eq!(store.get_or_compute("key", stale_options(), never).unwrap(), "old");
}

#[test]
fn a_damaged_record_is_computed_again_also_if_stale_results_are_wanted() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write_with("key", "old", stale_write()).unwrap();
    std::fs::write(dir.path().join("key.json"), "damaged").unwrap();
    let fails = stale_options().corrupt_records(CorruptRecords::Fail);
    let error = store.get_or_compute("key", fails, || Ok(String::new())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptRecord);
    assert_eq!(store.get_or_compute("key", stale_options(), || Ok("new".to_owned())).unwrap(), "new");
}

#[test]
fn a_result_becomes_stale_after_its_time_to_live() {
    let memory = MemoryRecordStore::new();
    let dir = tempdir().unwrap();
    let files = open(dir.path());
    for store in [&memory as &dyn RecordStore, &files] {
        let options = |time| UpdateOptions::new().time_to_live(time).stale_for(60 * PATIENCE);
        assert_eq!(store.get_or_compute("fresh", options(60 * PATIENCE), || Ok(1)).unwrap(), 1);
        assert_eq!(store.get_or_compute("fresh", options(60 * PATIENCE), || Ok(2)).unwrap(), 1);
        assert_eq!(store.update("stale", options(millis(1)), |_: Option<i32>| Ok(1)).unwrap(), 1);
        std::thread::sleep(millis(2));
        // Plain reads do not see a difference.
        assert_eq!(store.read::<i32>("stale").unwrap().unwrap().result, 1);
        assert_eq!(store.get_or_compute("stale", options(millis(1)), || Ok(2)).unwrap(), 2);
        // A record that never expires is never stale.
        store.write("forever", &1).unwrap();
        assert_eq!(store.get_or_compute("forever", options(millis(1)), || Ok(2)).unwrap(), 1);
    }
}

/// Increments a counter with `compare_and_swap` only.
fn swap(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    let mut attempts = 0;
    for _ in 0..task.times {
        loop {
            attempts += 1;
            let seen = store.read::<u64>("count").unwrap().map(|record| record.result);
            let next = seen.map_or(1, |count| count + 1);
            if store.compare_and_swap("count", seen.as_ref(), &next, WriteOptions::new()).unwrap() {
                break;
            }
        }
    }
    stage.send(&attempts.to_string());
}

#[test]
fn no_swap_is_lost() {
    let dir = tempdir().unwrap();
    let times = storm(200);
    let mut children: Vec<_> = (0..4).map(|_| start("swap", dir.path(), times)).collect();
    for child in &mut children {
        child.send("go");
    }
    for child in &mut children {
        assert!(child.receive().parse::<u64>().unwrap() >= times);
    }
    assert_eq!(open(dir.path()).read::<u64>("count").unwrap().unwrap().result, 4 * times);
}

const ACCOUNTS: [&str; 4] = ["a", "b", "c", "d"];
const BALANCE: i64 = 1_000;

/// Moves money between two accounts at a time, in all directions, under both locks.
fn transfer(stage: &Stage) {
    let task: Task = stage.argument();
    let store = open_with(&task.dir, Durability::Relaxed);
    stage.send("ready");
    stage.expect("go");
    for round in 0..task.times {
        let at = usize::try_from(round + u64::from(std::process::id())).unwrap();
        let (from, to) = (ACCOUNTS[at % 4], ACCOUNTS[(at / 4 + at + 1) % 4]);
        if from == to {
            continue;
        }
        let options = LockOptions::new().acquire_timeout(PATIENCE);
        let guards = store.lock_all([from, to], options).unwrap();
        let change = |key: &str, by: i64| {
            let guard = guards.get(key).unwrap();
            let old = guard.read::<i64>().unwrap().unwrap().result;
            guard.write(&(old + by)).unwrap();
        };
        change(from, -1);
        change(to, 1);
        guards.release().unwrap();
    }
    stage.send("done");
}

#[test]
fn several_locks_are_acquired_without_deadlock_or_lost_update() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for account in ACCOUNTS {
        store.write(account, &BALANCE).unwrap();
    }
    let mut children: Vec<_> = (0..6).map(|_| start("transfer", dir.path(), storm(100))).collect();
    for child in &mut children {
        child.send("go");
    }
    for child in &mut children {
        child.expect("done");
    }
    let total: i64 = ACCOUNTS.iter().map(|key| store.read::<i64>(*key).unwrap().unwrap().result).sum();
    assert_eq!(total, BALANCE * 4);
    assert_eq!(store.locks().unwrap().count(), 0);
}

#[test]
fn a_lock_that_lock_all_loses_while_it_waits_is_acquired_again() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.acquire_lock("b", as_named("other")).unwrap();
    std::thread::scope(|scope| {
        let both = scope.spawn(|| {
            let options = LockOptions::new().hold_timeout(PATIENCE).acquire_timeout(PATIENCE);
            let guards = store.lock_all(["b", "a"], options).unwrap();
            assert!(guards.iter().all(|guard| guard.is_held().unwrap()));
        });
        while !store.is_locked("a").unwrap() {}
        assert!(store.break_lock("a").unwrap());
        store.release_lock("b", named("other")).unwrap();
        both.join().unwrap();
    });
}

#[test]
fn a_lost_lock_is_reported_and_the_others_are_renewed_and_released() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guards = store.lock_all(["a", "b", "c"], LockOptions::new().hold_timeout(PATIENCE)).unwrap();
    guards.renew().unwrap();
    assert!(store.break_lock("a").unwrap());
    // Much shorter than the lease to which the guard renews it.
    store.renew("c", guards.get("c").unwrap().token(), PATIENCE / 4).unwrap();
    assert!(guards.renew().unwrap_err().is_lock_lost());
    let left = store.lock_info("c").unwrap().unwrap().remaining().unwrap();
    assert!(left > PATIENCE / 2, "the last one was not renewed: {left:?}");
    let error = guards.release().unwrap_err();
    assert_eq!((error.kind(), error.key().map(Key::as_str)), (ErrorKind::LockLost, Some("a")));
    assert!(!store.is_locked("b").unwrap() && !store.is_locked("c").unwrap());
}

#[test]
fn all_locks_of_a_killed_process_become_free() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for account in ACCOUNTS {
        store.write(account, &BALANCE).unwrap();
    }
    for _ in 0..storm(5) {
        let mut child = start("transfer", dir.path(), u64::MAX);
        child.send("go");
        while store.locks().unwrap().count() < 2 {}
        child.kill();
        let guards = store.lock_all(ACCOUNTS, LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
        guards.release().unwrap();
    }
}

fn watch(stage: &Stage) {
    watch_with(stage, &open(&stage.argument::<Task>().dir));
}

fn watch_read_only(stage: &Stage) {
    let options = record_store::FileSystemOptions::new().mode(record_store::OpenMode::ReadOnly);
    watch_with(stage, &options.open(stage.argument::<Task>().dir).unwrap());
}

/// Sends every change of the record.
fn watch_with(stage: &Stage, store: &impl record_store::RecordStore) {
    let mut watch = store.watch("key").unwrap();
    stage.send("ready");
    loop {
        let change = watch.next(WaitOptions::new()).unwrap().unwrap();
        stage.send(&format!("{change:?}"));
    }
}

#[test]
fn watchers_are_woken_by_the_write_of_another_process() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let mut children: Vec<_> = (0..3).map(|_| start("watch", dir.path(), 0)).collect();
    // A killed watcher must not delay the others.
    start("watch", dir.path(), 0).kill();
    for round in 0..storm(30) {
        children.iter().for_each(Child::until_asleep);
        store.write("key", &round).unwrap();
        for child in &mut children {
            child.expect(if round == 0 { "Appeared" } else { "Changed" });
        }
    }
    children.iter().for_each(Child::until_asleep);
    store.remove("key").unwrap();
    for child in &mut children {
        child.expect("Removed");
    }
}

#[test]
fn a_watcher_that_cannot_be_woken_polls() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut reader = start("watch-read-only", dir.path(), 0);
    store.write("key", &1).unwrap();
    reader.expect("Appeared");
    store.remove("key").unwrap();
    reader.expect("Removed");
}

/// It wakes no watcher. They notice it when they check again.
#[test]
#[cfg(not(record_store_no_recheck))]
fn a_manual_change_in_place_is_noticed_by_watchers() {
    let dir = tempdir().unwrap();
    open(dir.path()).write("key", &1).unwrap();
    let mut watchers = ["watch", "watch-read-only"].map(|role| start(role, dir.path(), 0));
    watchers.iter().for_each(Child::until_asleep);
    std::fs::write(dir.path().join("key.json"), "{\"key\":\"key\",\"result\":12345}").unwrap();
    for watcher in &mut watchers {
        watcher.expect("Changed");
    }
}

#[test]
fn a_watch_distinguishes_all_versions() {
    let dir = tempdir().unwrap();
    for durability in [Durability::Relaxed, Durability::Full] {
        let store = open_with(dir.path(), durability);
        store.write("key", &0).unwrap();
        let mut watch = store.watch("key").unwrap();
        for _ in 0..storm(200) {
            // Two writes: the second one could reuse the inode number of the version that was seen.
            store.write("key", &1).unwrap();
            store.write("key", &2).unwrap();
            assert_eq!(watch.next(Duration::ZERO).unwrap(), Some(RecordChange::Changed));
            assert_eq!(watch.next(Duration::ZERO).unwrap(), None);
        }
    }
    assert!(names_in(&dir.path().join(".store/staged")).is_empty());
}

#[test]
fn a_fast_computation_runs_only_once_too() {
    let dir = tempdir().unwrap();
    for round in 0..storm(150) {
        let computed = std::sync::atomic::AtomicU32::new(0);
        let key = format!("key {round}");
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let store = open_with(dir.path(), Durability::Relaxed);
                    let compute = || Ok(computed.fetch_add(1, std::sync::atomic::Ordering::SeqCst));
                    assert_eq!(store.get_or_compute(&key, LockOptions::new(), compute).unwrap(), 0);
                });
            }
        });
        assert_eq!(computed.into_inner(), 1, "round {round}");
    }
}

/// A store in memory in which every acquisition takes this long, and that remembers the limits of the reads.
#[derive(Debug)]
pub(crate) struct Slow(MemoryRecordStore, Duration, pub(crate) Arc<Mutex<Vec<WaitOptions>>>);

impl Slow {
    pub(crate) fn new(acquisition: Duration) -> Self {
        Self(MemoryRecordStore::new(), acquisition, Arc::default())
    }
}

impl RecordStore for Slow {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.2.lock().unwrap().push(options.get_wait().clone());
        self.0.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.0.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.0.exists_raw(key)
    }
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        std::thread::sleep(self.1);
        self.0.acquire_lock_raw(key, options)
    }
    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        self.0.renew_raw(key, claim, hold_timeout, options)
    }
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.0.release_lock_raw(key, claim, options)
    }
}

/// Asserts that the reads of one operation had the limits of the operation, less the time of the acquisition.
pub(crate) fn assert_limited(reads: &Mutex<Vec<WaitOptions>>, limits: &LockOptions, acquisition: Duration) {
    let reads = std::mem::take(&mut *reads.lock().unwrap());
    let of_operation = limits.get_acquire_timeout().unwrap();
    assert!(reads.iter().all(|read| read.get_timeout().is_some_and(|timeout| timeout <= of_operation)));
    // A future has a cancellation of its own, which its drop uses too.
    assert!(reads.iter().all(|read| read.get_cancellation().is_some()));
    let last = reads.last().unwrap().get_timeout().unwrap();
    assert!(last + acquisition <= of_operation, "{last:?}: the acquisition did not count");
}

/// Also the read under the lock: in a directory it may meet a process that is stopped in the latch.
#[test]
fn the_reads_of_a_computation_and_of_an_update_have_their_limits() {
    let acquisition = millis(20);
    let store = Slow::new(acquisition);
    let limits = LockOptions::new().acquire_timeout(PATIENCE).cancellation(&Cancellation::new());
    assert_eq!(store.get_or_compute("computed", limits.clone(), || Ok(1)).unwrap(), 1);
    assert_limited(&store.2, &limits, acquisition);
    assert_eq!(store.update("updated", limits.clone(), |old| Ok(old.unwrap_or(1))).unwrap(), 1);
    assert_limited(&store.2, &limits, acquisition);
}

/// Of the store, the error knows only the last wait.
#[test]
fn a_timeout_names_the_time_of_the_whole_call() {
    let (acquisition, timeout) = (millis(20), millis(10));
    let store = Slow::new(acquisition);
    let _held = store.lock("key", as_named("holder")).unwrap();
    let waiter = || as_named("waiter").acquire_timeout(timeout);
    for error in [
        store.lock("key", waiter()).unwrap_err(),
        store.acquire_lock("key", waiter()).unwrap_err(),
        store.lock_all(["key", "other"], waiter()).unwrap_err(),
        store.update("key", waiter(), |_| Ok(1)).unwrap_err(),
    ] {
        assert!(error.is_timeout(), "{error:?}");
        assert!(error.waited().is_some_and(|waited| waited >= acquisition + timeout), "{error:?}");
    }
}

/// All keys are free, but to acquire them takes longer than a lease.
#[test]
fn lock_all_renews_its_leases_while_it_acquires_free_locks() {
    let lease = millis(1_500);
    let store = Slow::new(lease / 4);
    let keys: Vec<_> = (0..8).map(|number| format!("k{number}")).collect();
    let guards = store.lock_all(&keys, LockOptions::new().hold_timeout(lease)).unwrap();
    for guard in &guards {
        guard.write(&1).unwrap();
    }
    guards.release().unwrap();
}

/// Leases that expire at once: no attempt can succeed, and each finds all keys free.
#[test]
fn lock_all_gives_up_if_its_leases_are_too_short() {
    fn check(store: &dyn RecordStore) {
        let keys = ["a", "b", "c"];
        for timeout in [None, Some(millis(500)), Some(Duration::ZERO)] {
            let options = LockOptions::new().hold_timeout(Duration::ZERO).acquire_timeout(timeout);
            let error = abort_if_hung("lock_all", || store.lock_all(keys, options).unwrap_err());
            assert!(error.is_lock_lost() || error.is_timeout(), "{error:?}");
            for key in keys {
                assert!(!store.is_locked(key).unwrap(), "{key} stayed locked");
            }
        }
    }
    check(&MemoryRecordStore::new());
    let dir = tempdir().unwrap();
    check(&open(dir.path()));
}
