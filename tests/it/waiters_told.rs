//! Which calls wait for a lock, as others are told: of threads, of other processes, and of those that have ended.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use record_store::{
    Cancellation, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, RecordStoreExt,
    WaitOptions, WaiterInfo,
};

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, in_memory, open};

pub(crate) const ROLES: &[Role] = &[("wait to be told", wait_to_be_told)];

fn wait_to_be_told(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    // Of the same process, and none that waits to acquire the lock.
    let (watcher, cancellation) = (store.clone(), Cancellation::new());
    let options = WaitOptions::new().timeout(PATIENCE).cancellation(&cancellation);
    let watching = std::thread::spawn(move || watcher.wait_for_lock("k", options));
    let guard = store.lock("k", LockOptions::new()).unwrap();
    stage.send("acquired");
    stage.expect("end");
    guard.release().unwrap();
    // The next waiter may have the lock already.
    cancellation.cancel();
    let _ = watching.join().unwrap();
}

/// The waiters, once there are so many.
fn waiters(store: &FileSystemRecordStore, count: usize) -> Vec<WaiterInfo> {
    let start = Instant::now();
    loop {
        let told = store.lock_info("k").unwrap().and_then(|info| info.waiters().map(<[_]>::to_vec));
        let told = told.expect("a lock whose waiters are known");
        if told.len() == count {
            return told;
        }
        assert!(start.elapsed() < PATIENCE, "not {count} waiters: {told:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn waiters_of_other_processes_are_told_in_their_order_until_they_leave() {
    let dir = in_memory();
    let store = open(dir.path());
    let begun = Instant::now();
    let token = store.acquire_lock("k", as_named("holder")).unwrap();
    assert_eq!(waiters(&store, 0), []);
    // The second process has the place in the table that this thread leaves.
    let cancellation = Cancellation::new();
    let leaving = std::thread::spawn({
        let (store, options) = (store.clone(), as_named("leaving").cancellation(&cancellation));
        move || store.lock("k", options).map(drop)
    });
    waiters(&store, 1);
    let start = |count| {
        let child = Child::start("wait to be told", &dir.path());
        let told = waiters(&store, count);
        assert!(told.iter().all(|waiter| waiter.waited() <= begun.elapsed()), "{told:?}");
        child
    };
    let first = start(2);
    cancellation.cancel();
    assert!(leaving.join().unwrap().unwrap_err().is_cancelled());
    let mut children = vec![first, start(2), start(3)];
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly);
    let reader = reader.open(dir.path()).unwrap();
    let host = hostname::get().unwrap().into_string().unwrap();
    for store in [&store, &reader] {
        let told = waiters(store, 3);
        let processes = told.iter().map(|waiter| waiter.process().unwrap().cast_signed());
        assert!(processes.eq(children.iter().map(|child| child.pid().as_raw_nonzero().get())), "{told:?}");
        assert!(told.iter().all(|waiter| waiter.host() == Some(&host)), "{told:?}");
        assert!(told.is_sorted_by_key(|waiter| std::cmp::Reverse(waiter.waited())), "{told:?}");
    }
    // It cannot leave the queue itself.
    children.remove(1).kill();
    let left = store.lock_info("k").unwrap().unwrap();
    assert_eq!(left.waiters().unwrap().len(), 2, "a killed process waits");
    let listed = store.locks().unwrap().next().unwrap().unwrap();
    assert_eq!(listed.waiters().unwrap().len(), 2);
    store.release_lock("k", token).unwrap();
    for (at, mut child) in children.into_iter().enumerate() {
        child.expect("acquired");
        assert_eq!(waiters(&store, 1 - at).len(), 1 - at);
        child.send("end");
        child.finish();
    }
}
