//! Two changes of one record.

use super::*;
use crate::support::names_in;

/// Nothing is left of a record that was replaced or removed, and none was taken for somebody else's.
fn assert_nothing_left(store: &FileSystemRecordStore, position: &str) {
    assert_eq!(names_in(&store.path().join(".store/staged")), [""; 0], "{position}");
    assert!(store.damaged().unwrap().is_empty(), "{position}");
}

fn read(store: &FileSystemRecordStore, key: &str) -> Option<String> {
    store.read(key).unwrap().map(|record| record.result)
}

/// A write that comes between the comparison and the swap is not overwritten.
#[test]
fn a_compare_and_swap_overwrites_no_concurrent_write() {
    at_every_later_step(Operation::CompareAndSwap, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        actor.run_beside(|| store.write(key, "other's").unwrap());
        let outcome = actor.finish();
        assert!(matches!(&*outcome.answer, "yes" | "no"), "{}: {}", outcome.position, outcome.answer);
        assert_eq!(read(store, key).as_deref(), Some("other's"), "{}", outcome.position);
        assert_nothing_left(store, &outcome.position);
        outcome
    });
}

#[test]
fn one_of_two_compare_and_swaps_succeeds() {
    at_every_later_step(Operation::CompareAndSwap, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        let swap = || store.compare_and_swap(key, Some("first"), "other's", WriteOptions::new()).unwrap();
        let is_ours = actor.run_beside(swap);
        let outcome = actor.finish();
        let (answer, result) = if is_ours { ("no", "other's") } else { ("yes", "actor's") };
        assert_eq!(outcome.answer, answer, "{}", outcome.position);
        assert_eq!(read(store, key).as_deref(), Some(result), "{}", outcome.position);
        outcome
    });
}

/// A removal takes away the record that it finds, and no later one.
#[test]
fn a_removal_leaves_a_record_that_is_written_after_it() {
    at_every_later_step(Operation::Remove, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        let is_removed = !store.exists(key).unwrap();
        actor.run_beside(|| store.write(key, "other's").unwrap());
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        let left = read(store, key);
        assert!(left.as_deref().unwrap_or("other's") == "other's", "{}: {left:?}", outcome.position);
        assert!(left.is_some() || !is_removed, "{}: a later record was removed", outcome.position);
        assert_nothing_left(store, &outcome.position);
        outcome
    });
}

/// The other way round.
#[test]
fn a_write_after_a_removal_leaves_its_record() {
    at_every_later_step(Operation::Write, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        let is_published = read(store, key).as_deref() == Some("actor's");
        let is_removed = actor.run_beside(|| store.remove(key).unwrap());
        let helped = actor.helped;
        let outcome = actor.finish();
        assert!(is_removed && outcome.answer == "done", "{}: {}", outcome.position, outcome.answer);
        let left = read(store, key);
        assert!(left.as_deref().unwrap_or("actor's") == "actor's", "{}: {left:?}", outcome.position);
        if !helped {
            assert_eq!(left.is_none(), is_published, "{}", outcome.position);
        }
        assert_nothing_left(store, &outcome.position);
        outcome
    });
}
