//! A sweep beside the operations that replace what it removes.

use super::ends::leave_blank;
use super::*;

/// The lock file that a sweep has found stale or blank is the lock of another process when it enters the latch.
fn sweep_against_acquisition(before: impl Fn(&FileSystemRecordStore, &str)) {
    at_every_later_step(Operation::Sweep, before, |store, key, mut actor, step| {
        actor.advance(step);
        let guard = actor.run_beside(|| store.lock(key, as_named("next").acquire_timeout(PATIENCE)).unwrap());
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        assert!(guard.is_held().unwrap(), "{}", outcome.position);
        guard.release().unwrap();
        outcome
    });
}

#[test]
fn a_sweep_of_an_expired_lock_removes_no_new_lock() {
    sweep_against_acquisition(leave_expired);
}

#[test]
fn a_sweep_of_a_blank_lock_removes_no_new_lock() {
    sweep_against_acquisition(leave_blank);
}

/// An expired record is written again while a sweep removes it.
#[test]
fn a_sweep_of_an_expired_record_removes_no_new_record() {
    let leave_expired = |store: &FileSystemRecordStore, key: &str| {
        let expires_at_once = WriteOptions::new().time_to_live(Duration::from_nanos(1));
        store.write_with(key, "first", expires_at_once).unwrap();
    };
    at_every_later_step(Operation::Sweep, leave_expired, |store, key, mut actor, step| {
        actor.advance(step);
        actor.run_beside(|| store.write(key, "other's").unwrap());
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        let left = store.read::<String>(key).unwrap().map(|record| record.result);
        assert_eq!(left.as_deref(), Some("other's"), "{}", outcome.position);
        store.remove(key).unwrap();
        outcome
    });
}
