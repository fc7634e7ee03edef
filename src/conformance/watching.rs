//! Watching records.

use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::{A_WHILE, LEASE, assert_matches, long, named, waits_until_freed};
use crate::{RecordChange, RecordStore, RecordStoreExt, WriteOptions};

checks! { "watching":
    a_watch_tells_what_became_of_the_record:
        "A watch tells that the record appeared, changed and was removed.",
    nothing_new_is_none:
        "A watch of what does not change is `None` at the timeout, not before; zero looks once.",
    a_watch_wakes:
        "A watch returns as soon as the record changes, also one written with the same result.",
    a_watch_sees_the_end:
        "A watch tells that the record's time to live is over.",
    waiting_for_a_record:
        "`wait_for_record` returns when the record appears or changes, and not for its removal.",
    a_watch_ignores_locks:
        "A watch tells of changes that the holder of the lock makes.",
}

fn a_watch_tells_what_became_of_the_record(store: &dyn RecordStore) {
    let mut watch = store.watch("key").unwrap();
    store.write("other", &1).unwrap();
    assert_matches!(watch.next(Some(Duration::ZERO)), Ok(None));
    store.write("key", &1).unwrap();
    assert_matches!(watch.next(Some(PATIENCE)), Ok(Some(RecordChange::Appeared)));
    store.write("key", &2).unwrap();
    store.write("key", &3).unwrap();
    assert_matches!(watch.next(Some(PATIENCE)), Ok(Some(RecordChange::Changed)));
    assert_matches!(watch.next(Some(Duration::ZERO)), Ok(None));
    store.remove("key").unwrap();
    assert_matches!(watch.next(Some(PATIENCE)), Ok(Some(RecordChange::Removed)));
    assert_matches!(watch.next(Some(Duration::ZERO)), Ok(None));
}

fn nothing_new_is_none(store: &dyn RecordStore) {
    store.write("with", &1).unwrap();
    for key in ["with", "without"] {
        let mut watch = store.watch(key).unwrap();
        let start = Instant::now();
        assert_matches!(watch.next(Some(A_WHILE)), Ok(None));
        assert!(start.elapsed() >= A_WHILE, "too early");
        assert_matches!(store.wait_for_record(key, Some(Duration::ZERO)), Ok(false));
    }
}

fn a_watch_wakes(store: &dyn RecordStore) {
    for _ in 0..3 {
        let mut watch = store.watch("key").unwrap();
        let change = waits_until_freed(|| watch.next(None), || store.write("key", &1).unwrap());
        assert_matches!(change, Ok(Some(RecordChange::Appeared | RecordChange::Changed)));
    }
    let mut watch = store.watch("key").unwrap();
    let change = waits_until_freed(|| watch.next(None), || assert!(store.remove("key").unwrap()));
    assert_matches!(change, Ok(Some(RecordChange::Removed)));
}

fn a_watch_sees_the_end(store: &dyn RecordStore) {
    store.write_with("key", &1, WriteOptions::new().time_to_live(LEASE)).unwrap();
    let mut watch = store.watch("key").unwrap();
    assert_matches!(watch.next(Some(PATIENCE)), Ok(Some(RecordChange::Removed)));
    assert_matches!(store.read::<i64>("key"), Ok(None));
}

fn waiting_for_a_record(store: &dyn RecordStore) {
    let wait = || store.wait_for_record("key", Some(PATIENCE));
    for result in 0..2 {
        assert_matches!(waits_until_freed(wait, || store.write("key", &result).unwrap()), Ok(true));
    }
    let changes = || {
        store.remove("key").unwrap();
        std::thread::sleep(A_WHILE);
        store.write("key", &2).unwrap();
    };
    assert_matches!(waits_until_freed(wait, changes), Ok(true));
    assert!(store.exists("key").unwrap(), "came back for the removal");
}

fn a_watch_ignores_locks(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", &long(&other)).unwrap();
    let mut watch = store.watch("key").unwrap();
    let change = waits_until_freed(|| watch.next(None), || store.write_as("key", &1, &other).unwrap());
    assert_matches!(change, Ok(Some(RecordChange::Appeared)));
}
