//! Watching the whole store for changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::protocol::{Answer, Request, Who};
use super::subject::Subject;
use super::support::{
    Done, LEASE, SHORT_WAIT, assert_error_of, assert_matches, blocks_until, long_lease, named, write_by,
};
use crate::{
    Cancellation, Change, ChangesOptions, ErrorKind, EvictionPolicy, Key, RecordChange, RecordStore,
    RecordStoreExt, RecordVersion, StoreChanges, WaitOptions, WriteOptions,
};

checks! { "store_changes":
    each_kind_of_change_is_reported_with_its_key:
        "A watch of the store reports that a record appeared, changed and was removed: its key and its version, and only the last of several changes.",
    what_was_there_is_no_change:
        "A watch of the store reports no record that was there when it began, and nothing of a record that is again as it was.",
    a_prefix_selects_the_records:
        "A watch of the store with a prefix reports the changes of the records whose key begins with it, and no others.",
    without_a_change_it_times_out:
        "If nothing changes, a watch of the store returns `None` at the timeout, and not before; a timeout of zero does not wait.",
    a_change_wakes_it:
        "A watch of the store returns as soon as a record changes, also if the holder of a lock changes it.",
    expiry_is_reported:
        "A watch of the store reports the expiry of a record as its removal.",
    an_eviction_is_reported:
        "A watch of the store reports the eviction of a record as its removal.",
    it_ends_with_the_present_state:
        "Whatever several threads change, the reports of a watch of the store make sense in their order for each key, and end with the present state.",
    it_can_be_cancelled_and_used_again:
        "A watch of the store that is cancelled returns `Cancelled` promptly, and reports the next change when it is used again.",
    changes_of_another_process_are_reported(processes):
        "A watch of the store reports the changes of another process, and what a forked child changes.",
}

fn begin(store: &dyn RecordStore) -> StoreChanges<'_, dyn RecordStore + '_> {
    store.changes(ChangesOptions::new()).unwrap()
}

fn next(changes: &mut StoreChanges<'_, dyn RecordStore + '_>) -> Change {
    changes.next(PATIENCE).unwrap().expect("a change was not reported")
}

/// Asserts that the next change is this one, and that its version is the present one.
#[track_caller]
fn expect(
    store: &dyn RecordStore,
    changes: &mut StoreChanges<'_, dyn RecordStore + '_>,
    key: &str,
    kind: RecordChange,
) {
    let change = next(changes);
    assert_eq!((change.key.as_str(), change.change), (key, kind), "another change");
    let now = store.version_raw(&change.key).unwrap();
    assert_eq!(change.version, now, "the version of {key} is another one");
}

fn each_kind_of_change_is_reported_with_its_key(store: &dyn RecordStore) {
    use RecordChange::{Appeared, Changed, Removed};
    let mut changes = begin(store);
    let long = "long/".repeat(200);
    for key in ["key", "with/a slash", &long] {
        store.write(key, &1).unwrap();
        expect(store, &mut changes, key, Appeared);
        store.write(key, &2).unwrap();
        store.write(key, &2).unwrap();
        expect(store, &mut changes, key, Changed);
        assert_matches!(changes.next(Duration::ZERO), Ok(None));
        store.remove(key).unwrap();
        expect(store, &mut changes, key, Removed);
        assert_matches!(changes.next(Duration::ZERO), Ok(None));
    }
}

fn what_was_there_is_no_change(store: &dyn RecordStore) {
    store.write("before", &1).unwrap();
    let mut changes = begin(store);
    assert_matches!(changes.next(SHORT_WAIT), Ok(None));
    store.write("for a moment", &1).unwrap();
    store.remove("for a moment").unwrap();
    store.write("after", &1).unwrap();
    expect(store, &mut changes, "after", RecordChange::Appeared);
    store.write("before", &2).unwrap();
    expect(store, &mut changes, "before", RecordChange::Changed);
    assert_matches!(changes.next(Duration::ZERO), Ok(None));
}

fn a_prefix_selects_the_records(store: &dyn RecordStore) {
    for key in ["a/1", "b/1"] {
        store.write(key, &1).unwrap();
    }
    let mut changes = store.changes(ChangesOptions::new().prefix("a/")).unwrap();
    for key in ["b/1", "b/2", "a", "a/1", "a/2"] {
        store.write(key, &2).unwrap();
    }
    let mut reported = [next(&mut changes), next(&mut changes)].map(|it| (it.key.to_string(), it.change));
    reported.sort_by(|a, b| a.0.cmp(&b.0));
    let [first, second] = reported;
    assert_eq!((first.0.as_str(), first.1), ("a/1", RecordChange::Changed));
    assert_eq!((second.0.as_str(), second.1), ("a/2", RecordChange::Appeared));
    for key in ["b/1", "a"] {
        assert!(store.remove(key).unwrap());
    }
    assert_matches!(changes.next(SHORT_WAIT), Ok(None));
}

fn without_a_change_it_times_out(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let mut changes = begin(store);
    let start = Instant::now();
    assert_matches!(changes.next(SHORT_WAIT), Ok(None));
    assert!(start.elapsed() >= SHORT_WAIT, "timed out early");
    assert_matches!(changes.next(Duration::ZERO), Ok(None));
}

fn a_change_wakes_it(store: &dyn RecordStore) {
    let other = named("other");
    let mut changes = begin(store);
    for key in ["a", "b", "a"] {
        let change = blocks_until(|| next(&mut changes), || store.write(key, &1).unwrap());
        assert_eq!(change.key, key);
    }
    let change = blocks_until(|| next(&mut changes), || assert!(store.remove("a").unwrap()));
    assert_eq!((change.key.as_str(), change.change), ("a", RecordChange::Removed));
    store.acquire_lock("locked", long_lease(&other)).unwrap();
    let write = || store.write_with("locked", &1, write_by(&other)).unwrap();
    let change = blocks_until(|| next(&mut changes), write);
    assert_eq!((change.key.as_str(), change.change), ("locked", RecordChange::Appeared));
}

fn expiry_is_reported(store: &dyn RecordStore) {
    store.write_with("first", &1, WriteOptions::new().time_to_live(LEASE)).unwrap();
    let mut changes = begin(store);
    expect(store, &mut changes, "first", RecordChange::Removed);
    store.write("second", &1).unwrap();
    expect(store, &mut changes, "second", RecordChange::Appeared);
    store.write_with("second", &2, WriteOptions::new().time_to_live(LEASE)).unwrap();
    // A store that only looks from time to time may not see it before its end.
    let mut change = next(&mut changes);
    if change.change == RecordChange::Changed {
        change = next(&mut changes);
    }
    assert_eq!((change.key.as_str(), change.change), ("second", RecordChange::Removed));
}

fn an_eviction_is_reported(store: &dyn RecordStore) {
    let mut changes = begin(store);
    store.write("key", &1).unwrap();
    expect(store, &mut changes, "key", RecordChange::Appeared);
    assert_eq!(store.evict(EvictionPolicy::new().max_records(0)).unwrap().records, 1);
    expect(store, &mut changes, "key", RecordChange::Removed);
}

/// The state of the records as a watch has reported it.
type Reported = BTreeMap<Key, RecordVersion>;

/// Asserts that the change makes sense after those that were reported before.
fn apply(change: &Change, reported: &mut Reported) {
    let before = reported.get(&change.key).copied().unwrap_or(RecordVersion::ABSENT);
    assert_ne!(before, change.version, "{change:?} is no change");
    let kind = RecordChange::between(before, change.version);
    assert_eq!(change.change, kind, "{change:?} after {before:?}");
    if change.version.is_absent() {
        reported.remove(&change.key);
    } else {
        reported.insert(change.key.clone(), change.version);
    }
}

fn it_ends_with_the_present_state(store: &dyn RecordStore) {
    const ROUNDS: usize = 25;
    let keys: Vec<_> = (0..4).map(|number| Key::new(format!("key {number}")).unwrap()).collect();
    let mut changes = begin(store);
    let mut reported = Reported::new();
    store.write(&keys[0], &0).unwrap();
    apply(&next(&mut changes), &mut reported);
    let mut has_removed_one = false;
    let is_done = [const { AtomicBool::new(false) }; 3];
    thread::scope(|scope| {
        for (writer, is_done) in is_done.iter().enumerate() {
            let keys = &keys;
            scope.spawn(move || {
                let _done = Done(is_done);
                for round in 0..ROUNDS {
                    let key = &keys[(round + writer) % keys.len()];
                    if round % 3 == writer % 3 {
                        store.remove(key).unwrap();
                    } else {
                        store.write(key, &round).unwrap();
                    }
                }
            });
        }
        let mut last_change = Instant::now();
        loop {
            let are_done = is_done.iter().all(|is_done| is_done.load(Ordering::Acquire));
            if let Some(change) = changes.next(SHORT_WAIT).unwrap() {
                apply(&change, &mut reported);
                last_change = Instant::now();
            } else if are_done && !has_removed_one {
                store.remove(&keys[0]).unwrap();
                has_removed_one = true;
            } else if are_done {
                let present = |key: &Key| Some((key.clone(), store.version_raw(key).unwrap()));
                let present: Reported =
                    keys.iter().filter_map(present).filter(|(_, version)| !version.is_absent()).collect();
                if present == reported {
                    break;
                }
                assert!(last_change.elapsed() < PATIENCE, "reported {reported:?}, but there is {present:?}");
            }
        }
    });
    assert_matches!(changes.next(SHORT_WAIT), Ok(None));
}

fn it_can_be_cancelled_and_used_again(store: &dyn RecordStore) {
    let mut changes = begin(store);
    for timeout in [Some(PATIENCE), None] {
        let cancellation = Cancellation::new();
        let options = WaitOptions::new().timeout(timeout).cancellation(&cancellation);
        let outcome = blocks_until(|| changes.next(options.clone()), || cancellation.cancel());
        assert_error_of(outcome, ErrorKind::Cancelled, "changes");
        store.write("key", &1).unwrap();
        assert_error_of(changes.next(options), ErrorKind::Cancelled, "changes");
        assert_eq!(next(&mut changes).key, "key");
    }
}

fn changes_of_another_process_are_reported(subject: &Subject) {
    let (store, mut other) = (subject.store(), subject.other());
    let mut changes = begin(store);
    other.expect(&Request::write("key", Who::Current, 1), &Answer::Done);
    expect(store, &mut changes, "key", RecordChange::Appeared);
    let write = Request::write("key", Who::Current, 2);
    other.expect(&Request::InForkedChild(Box::new(write)), &Answer::Done);
    expect(store, &mut changes, "key", RecordChange::Changed);
    other.expect(&Request::Remove { key: "key".into(), who: Who::Current }, &Answer::Flag(true));
    expect(store, &mut changes, "key", RecordChange::Removed);
    let mut write = || other.expect(&Request::write("key", Who::Current, 3), &Answer::Done);
    let change = blocks_until(|| next(&mut changes), &mut write);
    assert_eq!((change.key.as_str(), change.change), ("key", RecordChange::Appeared));
}
