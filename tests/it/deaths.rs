//! How soon a lock follows its process, whatever ended it and wherever it lived.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Error, Holder, LockOptions, RecordStoreExt};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage, until_asleep};
use crate::support::{PATIENCE, millis, names_in, open, storm};

pub(crate) const ROLES: &[Role] = &[("hold and die", hold_and_die), ("neighbour", neighbour)];

/// Takes the lock when told, and ends as told, without any destructor.
fn hold_and_die(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    stage.tell("ready");
    stage.expect("go");
    let _guard = store.lock("k", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
    stage.tell("held");
    match stage.hear().as_str() {
        "abort" => std::process::abort(),
        _ => std::process::exit(0),
    }
}

fn start(dir: &Path) -> Child {
    let mut child = Child::start("hold and die", &dir);
    child.expect("ready");
    child.tell("go");
    child
}

/// Waits for the lock in a thread, and tells when it was got.
fn wait_in_thread(dir: &Path) -> std::thread::JoinHandle<Instant> {
    let store = open(dir);
    let (tid, started) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        tid.send(rustix::thread::gettid().as_raw_pid()).unwrap();
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let got = Instant::now();
        guard.release().unwrap();
        got
    });
    until_asleep(std::process::id(), started.recv().unwrap());
    // Deaths are reported to those who wait for longer than a moment.
    std::thread::sleep(millis(20));
    waiter
}

/// Who finds out only by looking from time to time needs 125 ms on average.
fn assert_reported(mut times: Vec<Duration>) {
    times.sort_unstable();
    assert!(times[times.len() / 2] < millis(60), "{times:?}");
}

#[test]
fn every_death_of_a_holder_is_noticed_at_once() {
    for manner in ["kill", "abort", "exit"] {
        let dir = tempdir().unwrap();
        let times = (0..storm(5)).map(|_| {
            let mut holder = start(dir.path());
            holder.expect("held");
            let waiter = wait_in_thread(dir.path());
            let start = Instant::now();
            if manner == "kill" {
                holder.kill();
            } else {
                holder.tell(manner);
            }
            waiter.join().unwrap() - start
        });
        assert_reported(times.collect());
        open(dir.path()).sweep().unwrap();
        // Only this process is left, and it has one owner file.
        assert_eq!(names_in(&dir.path().join(".store/owners")).len(), 1);
    }
}

#[test]
fn the_death_of_a_later_holder_is_noticed_as_well() {
    let dir = tempdir().unwrap();
    let times = (0..storm(5)).map(|_| {
        let store = open(dir.path());
        let first = store.lock("k", LockOptions::new()).unwrap();
        let mut second = start(dir.path());
        second.until_asleep();
        let third = wait_in_thread(dir.path());
        first.release().unwrap();
        second.expect("held");
        let start = Instant::now();
        second.kill();
        third.join().unwrap() - start
    });
    assert_reported(times.collect());
}

#[test]
fn one_who_was_called_and_killed_holds_nobody_up() {
    let dir = tempdir().unwrap();
    let times = (0..storm(5)).map(|_| {
        let store = open(dir.path());
        let first = store.lock("k", LockOptions::new()).unwrap();
        let second = start(dir.path());
        second.until_asleep();
        let third = wait_in_thread(dir.path());
        second.stop();
        first.release().unwrap();
        let start = Instant::now();
        second.kill();
        third.join().unwrap() - start
    });
    assert_reported(times.collect());
}

/// A process that is number 1 of its own world, as every container's is.
fn neighbour(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let me = Holder::current();
    stage.tell(me.name());
    loop {
        match stage.hear().as_str() {
            "take" => {
                std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
                stage.tell("taken");
            }
            "steal" => {
                assert!(store.is_locked("k").unwrap());
                assert!(!store.is_lock_holder("k", &me).unwrap());
                let release = store.release_lock("k", &me);
                assert!(matches!(release, Err(Error::NotLockHolder { .. })), "{release:?}");
                let write = store.write("k", "mine");
                assert!(matches!(write, Err(Error::Locked { .. })), "{write:?}");
                assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
                store.sweep().unwrap();
                assert!(store.is_locked("k").unwrap());
                stage.tell("cannot");
            }
            "wait" => {
                let guard = store.lock("k", LockOptions::new()).unwrap();
                stage.tell("got it");
                guard.release().unwrap();
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn containers_on_one_directory_do_not_take_each_other_for_themselves() {
    let dir = tempdir().unwrap();
    let mut times = Vec::new();
    for _ in 0..storm(3) {
        let mut one = Child::start_in_pid_namespace("neighbour", &dir.path());
        let mut two = Child::start_in_pid_namespace("neighbour", &dir.path());
        let names = (one.hear(), two.hear());
        assert_eq!(names.0, names.1, "both are process 1 of one host: nothing in the name differs");
        one.tell("take");
        one.expect("taken");
        two.tell("steal");
        two.expect("cannot");
        two.tell("wait");
        std::thread::sleep(millis(50));
        let start = Instant::now();
        one.kill();
        two.expect("got it");
        times.push(start.elapsed());
    }
    assert_reported(times);
}
