//! Watching records for changes.

use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::{LEASE, SHORT_WAIT, assert_matches, blocks_until, long_lease, named, write_by};
use crate::{RecordChange, RecordStore, RecordStoreExt, WaitOptions, WriteOptions};

checks! { "watching":
    a_watch_reports_each_kind_of_change:
        "A watch reports that the record appeared, changed and was removed.",
    a_watch_without_a_change_times_out:
        "If nothing changes, a watch returns `None` at the timeout, and not before; a timeout of zero checks once.",
    a_change_wakes_a_watch:
        "A watch returns as soon as the record changes, even if the same result is written again.",
    a_watch_reports_expiry:
        "A watch reports the expiry of a record as its removal.",
    wait_for_record_waits_for_a_write:
        "`wait_for_record` returns when the record appears or changes, and not when it is removed.",
    a_watch_ignores_locks:
        "A watch reports changes that the holder of a lock makes.",
}

fn a_watch_reports_each_kind_of_change(store: &dyn RecordStore) {
    let mut watch = store.watch("key").unwrap();
    store.write("other", &1).unwrap();
    assert_matches!(watch.next(Duration::ZERO), Ok(None));
    store.write("key", &1).unwrap();
    assert_matches!(watch.next(PATIENCE), Ok(Some(RecordChange::Appeared)));
    store.write("key", &2).unwrap();
    store.write("key", &3).unwrap();
    assert_matches!(watch.next(PATIENCE), Ok(Some(RecordChange::Changed)));
    assert_matches!(watch.next(Duration::ZERO), Ok(None));
    store.remove("key").unwrap();
    assert_matches!(watch.next(PATIENCE), Ok(Some(RecordChange::Removed)));
    assert_matches!(watch.next(Duration::ZERO), Ok(None));
}

fn a_watch_without_a_change_times_out(store: &dyn RecordStore) {
    store.write("with", &1).unwrap();
    for key in ["with", "without"] {
        let mut watch = store.watch(key).unwrap();
        let start = Instant::now();
        assert_matches!(watch.next(SHORT_WAIT), Ok(None));
        assert!(start.elapsed() >= SHORT_WAIT, "timed out early");
        assert_matches!(store.wait_for_record(key, Duration::ZERO), Ok(false));
    }
}

fn a_change_wakes_a_watch(store: &dyn RecordStore) {
    for _ in 0..3 {
        let mut watch = store.watch("key").unwrap();
        let change = blocks_until(|| watch.next(WaitOptions::new()), || store.write("key", &1).unwrap());
        assert_matches!(change, Ok(Some(RecordChange::Appeared | RecordChange::Changed)));
    }
    let mut watch = store.watch("key").unwrap();
    let change = blocks_until(|| watch.next(WaitOptions::new()), || assert!(store.remove("key").unwrap()));
    assert_matches!(change, Ok(Some(RecordChange::Removed)));
}

fn a_watch_reports_expiry(store: &dyn RecordStore) {
    store.write_with("key", &1, WriteOptions::new().time_to_live(LEASE)).unwrap();
    let mut watch = store.watch("key").unwrap();
    assert_matches!(watch.next(PATIENCE), Ok(Some(RecordChange::Removed)));
    assert_matches!(store.read::<i64>("key"), Ok(None));
}

fn wait_for_record_waits_for_a_write(store: &dyn RecordStore) {
    let wait = || store.wait_for_record("key", PATIENCE);
    for result in 0..2 {
        assert_matches!(blocks_until(wait, || store.write("key", &result).unwrap()), Ok(true));
    }
    let changes = || {
        store.remove("key").unwrap();
        std::thread::sleep(SHORT_WAIT);
        store.write("key", &2).unwrap();
    };
    assert_matches!(blocks_until(wait, changes), Ok(true));
    assert!(store.exists("key").unwrap(), "returned on the removal");
}

fn a_watch_ignores_locks(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("key", long_lease(&other)).unwrap();
    let mut watch = store.watch("key").unwrap();
    let change = blocks_until(
        || watch.next(WaitOptions::new()),
        || store.write_with("key", &1, write_by(&other)).unwrap(),
    );
    assert_matches!(change, Ok(Some(RecordChange::Appeared)));
}
