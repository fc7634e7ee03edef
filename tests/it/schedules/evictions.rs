//! An eviction beside the operations that make a record one that has to stay.

use super::*;

/// The youngest record, which makes the other one the oldest.
const YOUNGEST: &str = "youngest";

fn write_the_oldest(store: &FileSystemRecordStore, key: &str) {
    for (key, value) in [(key, "first"), (YOUNGEST, "stays")] {
        store.write(key, value).unwrap();
        // The clock of a file system has ticks.
        std::thread::sleep(millis(15));
    }
}

/// The eviction has chosen the oldest record, which is then written again.
#[test]
fn an_eviction_removes_no_record_that_is_written_meanwhile() {
    at_every_later_step(Operation::Evict, write_the_oldest, |store, key, mut actor, step| {
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

/// The holder of a lock finds the record as it was when the lock was acquired.
#[test]
fn an_eviction_removes_no_record_that_is_locked_meanwhile() {
    at_every_later_step(Operation::Evict, write_the_oldest, |store, key, mut actor, step| {
        actor.advance(step);
        let (guard, found) = actor.run_beside(|| {
            let guard = store.lock(key, as_named("next").acquire_timeout(PATIENCE)).unwrap();
            let found = value(&guard);
            (guard, found)
        });
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        assert_eq!(value(&guard), found, "{}", outcome.position);
        guard.remove().unwrap();
        guard.release().unwrap();
        outcome
    });
}
