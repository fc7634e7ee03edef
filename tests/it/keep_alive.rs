//! The lease in the background: kept while the guard lives, and its loss reported.

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use record_store::{FileSystemRecordStore, LockOptions, MemoryRecordStore, RecordStore, RecordStoreExt};
use tempfile::tempdir;

use crate::support::{PATIENCE, as_named, millis, open};

fn with_each_store(check: impl Fn(&dyn Fn() -> Box<dyn Checks>)) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    check(&|| Box::new(store.clone()));
    let store = MemoryRecordStore::new();
    check(&|| Box::new(store.clone()));
}

/// The checks, for stores of either type.
trait Checks {
    fn outlives_its_lease(&self);
    fn ends_with_its_guard(&self);
    fn reports_a_loss(&self);
    fn is_not_needed_without_a_lease(&self);
}

impl<S: RecordStore + Clone + 'static> Checks for S {
    fn outlives_its_lease(&self) {
        let lease = millis(600);
        let mut guard = self.lock("kept", LockOptions::new().hold_timeout(lease)).unwrap();
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
        let start = Instant::now();
        while start.elapsed() < lease * 3 {
            std::thread::sleep(millis(50));
            // A machine that stands still for so long loses the lease, and says so.
            if let Ok(error) = losses.try_recv() {
                assert!(error.is_lock_lost());
                assert!(!guard.is_held().unwrap());
                return;
            }
            assert!(guard.is_held().unwrap());
        }
        assert!(guard.remaining().unwrap().unwrap() <= lease);
        guard.write("done").unwrap();
        guard.release().unwrap();
        assert!(losses.recv().is_err(), "a release is no loss");
    }

    fn ends_with_its_guard(&self) {
        let mut guard = self.lock("ended", LockOptions::new().hold_timeout(millis(30))).unwrap();
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
        drop(guard);
        assert!(!self.is_locked("ended").unwrap());
        let successor = self.lock("ended", as_named("successor")).unwrap();
        std::thread::sleep(millis(100));
        assert_eq!(self.lock_info("ended").unwrap().unwrap().token(), successor.token());
        // The sender went with the thread; it reported at most that a busy machine was too slow.
        while let Ok(error) = losses.recv_timeout(PATIENCE) {
            assert!(error.is_lock_lost());
        }
    }

    fn reports_a_loss(&self) {
        let mut guard = self.lock("lost", LockOptions::new().hold_timeout(millis(300))).unwrap();
        assert!(guard.is_held().unwrap());
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
        assert!(self.break_lock("lost").unwrap());
        assert!(!guard.is_held().unwrap());
        let error = losses.recv_timeout(PATIENCE).unwrap();
        assert!(error.is_lock_lost(), "{error}");
        assert!(guard.keep_alive(|_| ()).unwrap_err().is_lock_lost());
        assert!(guard.write("late").unwrap_err().is_lock_lost());
    }

    fn is_not_needed_without_a_lease(&self) {
        let mut guard = self.lock("for ever", LockOptions::new()).unwrap();
        guard.keep_alive(|error| panic!("{error}")).unwrap();
        assert_eq!(guard.remaining().unwrap(), None::<Duration>);
    }
}

#[test]
fn a_kept_lock_outlives_its_lease() {
    with_each_store(|store| store().outlives_its_lease());
}

#[test]
fn keeping_ends_with_the_guard() {
    with_each_store(|store| store().ends_with_its_guard());
}

#[test]
fn a_loss_is_reported() {
    with_each_store(|store| store().reports_a_loss());
}

#[test]
fn a_lock_without_a_lease_is_kept_anyway() {
    with_each_store(|store| store().is_not_needed_without_a_lease());
}

#[test]
fn a_shared_store_of_any_kind_can_keep_its_locks() {
    let dir = tempdir().unwrap();
    let store: std::sync::Arc<dyn RecordStore> =
        std::sync::Arc::new(FileSystemRecordStore::open(dir.path()).unwrap());
    let mut guard = store.lock("k", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
    guard.keep_alive(|_| ()).unwrap();
    guard.release().unwrap();
}
