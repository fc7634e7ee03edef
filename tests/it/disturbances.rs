//! External events that must not affect the store: processes started by other threads, signals, and
//! holders that are stopped for longer than their lease.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, sigaction};
use record_store::{Durability, LockOptions, RecordStoreExt};
use rustix::process::Signal;
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis, open, open_with, storm};

pub(crate) const ROLES: &[Role] =
    &[("be interrupted", be_interrupted), ("outlast lease repeatedly", outlast_lease_repeatedly)];

#[test]
fn starting_processes_never_makes_a_free_lock_appear_held() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
        }
        let held = (0..storm(3_000)).filter(|round| {
            let guard = store.try_lock(format!("k{}", round % 8), LockOptions::new()).unwrap();
            guard.map(|guard| guard.release().unwrap()).is_none()
        });
        let held = held.count();
        done.store(true, Ordering::Relaxed);
        assert_eq!(held, 0);
    });
}

/// Runs operations while signals arrive all the time. The handler has no `SA_RESTART`, so every slow system
/// call is interrupted.
#[expect(unsafe_code, reason = "a signal handler")]
fn be_interrupted(stage: &Stage) {
    extern "C" fn ignore(_: i32) {}
    let (dir, rounds): (PathBuf, u64) = stage.argument();
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(nix::sys::signal::Signal::SIGUSR1, &action) }.unwrap();
    let store = open(&dir);
    stage.send("ready");
    for _ in 0..rounds {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        let count = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
        guard.write(&(count + 1)).unwrap();
        guard.renew().unwrap();
        guard.release().unwrap();
        assert!(store.read::<u64>("k").unwrap().is_some());
        assert!(store.read::<u64>("absent").unwrap().is_none());
    }
    // A wait with a timeout lasts for the whole timeout.
    let start = Instant::now();
    assert!(!store.wait_for_lock("held", millis(300)).unwrap());
    assert!(start.elapsed() >= millis(300));
    stage.send("done");
}

#[test]
fn signals_do_not_break_any_operation() {
    let dir = tempdir().unwrap();
    let rounds = storm(100);
    let store = open(dir.path());
    let _held = store.lock("held", LockOptions::new()).unwrap();
    let mut children: Vec<_> =
        (0..2).map(|_| Child::start("be interrupted", &(dir.path(), rounds))).collect();
    for child in &mut children {
        child.expect("ready");
    }
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let pids: Vec<_> = children.iter().map(Child::pid).collect();
        let done = &done;
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                for pid in &pids {
                    let _ = rustix::process::kill_process(*pid, Signal::USR1);
                }
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for child in &mut children {
                child.expect("done");
            }
        }));
        done.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
    assert_eq!(store.read::<u64>("k").unwrap().unwrap().result, 2 * rounds);
}

/// Acquires a lock with a short lease, is stopped by the parent, and continues after the lease has expired.
fn outlast_lease_repeatedly(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    loop {
        let options = LockOptions::new().acquire_timeout(PATIENCE).hold_timeout(millis(20));
        let guard = store.lock("k", options).unwrap();
        stage.send("held");
        stage.expect("go");
        let outcomes =
            [guard.write("late"), guard.remove().map(drop), guard.renew(), guard.read::<String>().map(drop)];
        for outcome in outcomes.into_iter().chain([guard.release()]) {
            assert!(outcome.unwrap_err().is_lock_lost());
        }
        stage.send("refused");
        stage.expect("again");
    }
}

#[test]
fn a_holder_is_always_refused_after_its_lease_has_expired() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let mut late = Child::start("outlast lease repeatedly", &dir.path());
    for round in 0..200 * storm(1) {
        late.expect("held");
        late.stop();
        let successor = store.lock("k", as_named("successor").acquire_timeout(PATIENCE)).unwrap();
        successor.write(&round).unwrap();
        late.resume();
        late.send("go");
        late.expect("refused");
        assert_eq!(successor.read::<u64>().unwrap().unwrap().result, round);
        assert_eq!(store.lock_info("k").unwrap().unwrap().token(), successor.token());
        successor.release().unwrap();
        late.send("again");
    }
}
