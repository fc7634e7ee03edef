//! Records with a time to live.

use super::PATIENCE;
use super::support::{LEASE, assert_matches, at_once, named};
use crate::{LockOptions, RecordStore, RecordStoreExt, UpdateOptions, WriteOptions};

checks! { "expiry":
    a_record_lives_for_its_time:
        "A record with a time to live is there until it is over, and then reads as absent, does not exist and is not listed.",
    a_write_sets_the_time_anew:
        "Each write says how long the record lives; one without a time to live makes it live for ever.",
    what_is_over_is_absent_to_changes:
        "A record that is over is absent to `remove`, to a swap and to a computation.",
    a_lock_outlives_its_record:
        "A record that is over leaves the lock alone, and its holder writes the next one.",
}

/// A time to live that is over soon.
fn soon() -> WriteOptions {
    WriteOptions::new().time_to_live(LEASE)
}

fn outlive(store: &dyn RecordStore, key: &str) {
    let mut watch = store.watch(key).unwrap();
    while store.exists(key).unwrap() {
        assert_matches!(watch.next(Some(PATIENCE)), Ok(Some(_)));
    }
}

fn a_record_lives_for_its_time(store: &dyn RecordStore) {
    let listed = || store.keys().unwrap().map(|key| key.unwrap().to_string()).collect::<Vec<_>>();
    store.write("stays", &0).unwrap();
    store.write_with("long", &1, WriteOptions::new().time_to_live(PATIENCE * 100)).unwrap();
    assert_eq!(store.read::<i64>("long").unwrap().unwrap().result, 1);
    assert!(store.exists("long").unwrap());
    let start = std::time::Instant::now();
    store.write_with("key", &1, soon()).unwrap();
    outlive(store, "key");
    assert!(start.elapsed() >= LEASE, "it was over too early");
    assert_matches!(store.read::<i64>("key"), Ok(None));
    let mut keys = listed();
    keys.sort();
    assert_eq!(keys, ["long", "stays"]);
}

fn a_write_sets_the_time_anew(store: &dyn RecordStore) {
    store.write_with("key", &1, soon()).unwrap();
    store.write_with("other", &1, soon()).unwrap();
    store.write("key", &2).unwrap();
    let guard = store.lock("third", LockOptions::new()).unwrap();
    guard.write_with(&1, soon()).unwrap();
    guard.write(&2).unwrap();
    outlive(store, "other");
    assert_eq!(store.read::<i64>("key").unwrap().expect("lives for ever").result, 2);
    assert_eq!(guard.read::<i64>().unwrap().expect("lives for ever").result, 2);
    store.write_with("key", &3, soon()).unwrap();
    outlive(store, "key");
}

fn what_is_over_is_absent_to_changes(store: &dyn RecordStore) {
    for key in ["removed", "swapped", "computed", "absent"] {
        store.write_with(key, &1, soon()).unwrap();
    }
    for key in ["removed", "swapped", "computed", "absent"] {
        outlive(store, key);
    }
    assert_matches!(store.remove("removed"), Ok(false));
    assert_matches!(store.compare_and_swap("swapped", Some(&1), &2, WriteOptions::new()), Ok(false));
    assert_matches!(store.write_if_absent("absent", &2, WriteOptions::new()), Ok(true));
    let options = || UpdateOptions::new().time_to_live(LEASE);
    let computed = store.get_or_compute("computed", options(), || Ok::<_, crate::Error>(2));
    assert_matches!(computed, Ok(2));
    outlive(store, "computed");
    let seen = store.update("computed", options(), |old: Option<i64>| {
        assert_eq!(old, None, "what is over was handed over");
        Ok::<_, crate::Error>(3)
    });
    assert_matches!(seen, Ok(3));
}

fn a_lock_outlives_its_record(store: &dyn RecordStore) {
    let me = named("me");
    let token = store.acquire_lock("key", &at_once(&me)).unwrap();
    store.write_with("key", &1, soon().claim(token)).unwrap();
    outlive(store, "key");
    assert!(store.is_lock_holder("key", &me).unwrap(), "the lock went with the record");
    store.write_as("key", &2, token).unwrap();
    store.release_lock("key", token).unwrap();
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}
