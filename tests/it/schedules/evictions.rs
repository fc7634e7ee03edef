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

/// Two processes that evict at the same time remove as many records as one.
#[test]
fn an_eviction_takes_no_other_record_for_one_that_is_removed_meanwhile() {
    at_every_later_step(Operation::Evict, write_the_oldest, |store, key, mut actor, step| {
        actor.advance(step);
        let evicted = actor.run_beside(|| store.evict(EvictionPolicy::new().max_records(1)).unwrap());
        let is_in_latch = actor.helped;
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        assert!(!store.exists(key).unwrap(), "{}", outcome.position);
        // While a process is stopped in the latch, nobody can know that it removes the record.
        if !is_in_latch {
            assert_eq!((evicted.kept, evicted.records_left), (0, 1), "{}", outcome.position);
            let left = store.read::<String>(YOUNGEST).unwrap().map(|record| record.result);
            assert_eq!(left.as_deref(), Some("stays"), "{}", outcome.position);
        }
        outcome
    });
}
