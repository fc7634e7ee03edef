//! The descriptions of records.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::PATIENCE;
use super::support::{LEASE, named, one_attempt};
use crate::{ListOptions, RecordInfo, RecordStore, RecordStoreExt, WriteOptions};

checks! { "listing":
    every_record_is_described:
        "`records` describes every record: key, version, size, time of the write and time to live.",
    a_prefix_selects:
        "`records` with a prefix describes exactly the records whose key begins with it.",
    results_are_listed_if_asked_for:
        "`records` reads results only if it is asked to, and also those of locked records.",
    an_expired_record_is_not_described:
        "Neither `records` nor `record_info` describes a record that has expired.",
}

fn described(store: &dyn RecordStore, options: ListOptions) -> BTreeMap<String, RecordInfo> {
    let described = store.records(options).unwrap().map(|record| record.unwrap());
    described.map(|record| (record.key().to_string(), record)).collect()
}

fn every_record_is_described(store: &dyn RecordStore) {
    let long = "k".repeat(500);
    let before = SystemTime::now();
    store.write("small", &1).unwrap();
    store.write(&long, "2").unwrap();
    store.write("large", &"x".repeat(10_000)).unwrap();
    store.write_with("short-lived", &3, WriteOptions::new().time_to_live(PATIENCE * 100)).unwrap();
    assert!(store.records(ListOptions::new()).unwrap().count() == 4);
    let all = described(store, ListOptions::new());
    assert_eq!(all.keys().collect::<Vec<_>>(), [&long, "large", "short-lived", "small"]);
    for (key, record) in &all {
        assert_eq!(record.version(), store.read::<crate::Json>(key).unwrap().unwrap().version, "{key}");
        // The clock of a file system may be a tick behind.
        assert!(record.modified() + Duration::from_secs(2) >= before, "{key}: {:?}", record.modified());
        assert!(record.modified() <= SystemTime::now() + Duration::from_secs(2), "{key}");
        assert!(record.result().is_none(), "{key}");
        let alone = store.record_info(key).unwrap().expect("a description");
        assert_eq!((alone.version(), alone.size()), (record.version(), record.size()), "{key}");
        assert_eq!(alone.modified(), record.modified(), "{key}");
    }
    assert!(all["large"].size() > 10_000 && all["small"].size() < all["large"].size());
    assert_eq!(all["small"].time_left(), None);
    let left = all["short-lived"].time_left().expect("a time to live");
    assert!(left <= PATIENCE * 100 && left > PATIENCE, "{left:?}");
    assert!(store.record_info("absent").unwrap().is_none());
}

fn a_prefix_selects(store: &dyn RecordStore) {
    for key in ["a", "a/1", "a/2", "ab", "b", "A/1", "a/größe"] {
        store.write(key, &1).unwrap();
    }
    let with =
        |prefix: &str| described(store, ListOptions::new().prefix(prefix)).into_keys().collect::<Vec<_>>();
    assert_eq!(with("a/"), ["a/1", "a/2", "a/größe"]);
    assert_eq!(with("a/gr"), ["a/größe"]);
    assert_eq!(with("c"), [""; 0]);
    assert_eq!(with("").len(), 7);
}

fn results_are_listed_if_asked_for(store: &dyn RecordStore) {
    store.write("key", "value").unwrap();
    let _guard = store.lock("key", one_attempt(&named("other"))).unwrap();
    let all = described(store, ListOptions::new().results(true));
    let result = all["key"].result().expect("a result");
    assert_eq!(result.decode::<String>().unwrap(), "value");
    assert_eq!(all["key"].version(), described(store, ListOptions::new())["key"].version());
}

fn an_expired_record_is_not_described(store: &dyn RecordStore) {
    store.write("stays", &1).unwrap();
    store.write_with("key", &1, WriteOptions::new().time_to_live(LEASE)).unwrap();
    let mut watch = store.watch("key").unwrap();
    while store.exists("key").unwrap() {
        assert!(watch.next(PATIENCE).unwrap().is_some());
    }
    for results in [false, true] {
        let listed = described(store, ListOptions::new().results(results));
        assert_eq!(listed.into_keys().collect::<Vec<_>>(), ["stays"]);
    }
    assert!(store.record_info("key").unwrap().is_none());
}
