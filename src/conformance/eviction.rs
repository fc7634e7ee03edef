//! Evicting old records.

use std::thread::sleep;
use std::time::Duration;

use super::support::{blocks_until, named, one_attempt, short_lease, wait_for_expiry};
use crate::{EvictionPolicy, LockOptions, RecordChange, RecordStore, RecordStoreExt, WaitOptions};

checks! { "eviction":
    the_records_written_first_are_evicted:
        "`evict` removes the records that were written the longest time ago until the limits are kept, and no other.",
    a_policy_without_limits_evicts_nothing:
        "A policy without a limit, or whose limits are kept, evicts nothing; a dry run only counts.",
    a_locked_record_is_kept:
        "`evict` keeps a record that is locked, also by the caller, and evicts younger ones in its place.",
    an_evicted_record_is_gone_for_watchers:
        "An evicted record reads as absent, and its watchers are woken.",
}

/// Writes records one after the other, so far apart that their times differ.
fn write_in_order(store: &dyn RecordStore, keys: &[&str]) {
    for key in keys {
        store.write(*key, &"x".repeat(1000)).unwrap();
        sleep(Duration::from_millis(15));
    }
}

fn present(store: &dyn RecordStore) -> Vec<String> {
    let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
    keys.sort();
    keys
}

fn the_records_written_first_are_evicted(store: &dyn RecordStore) {
    write_in_order(store, &["a", "b", "c", "d"]);
    // This makes it the youngest.
    write_in_order(store, &["a"]);
    let evicted = store.evict(EvictionPolicy::new().max_records(3)).unwrap();
    assert_eq!((evicted.records, evicted.kept, evicted.records_left), (1, 0, 3));
    assert_eq!(present(store), ["a", "c", "d"]);
    let of_one = evicted.bytes;
    assert!(of_one >= 1000 && evicted.bytes_left >= 3000, "{evicted:?}");
    let evicted = store.evict(EvictionPolicy::new().max_bytes(evicted.bytes_left - 1)).unwrap();
    assert_eq!((evicted.records, evicted.records_left), (1, 2));
    assert_eq!(present(store), ["a", "d"]);
    sleep(Duration::from_millis(200));
    store.write("e", &1).unwrap();
    let evicted = store.evict(EvictionPolicy::new().older_than(Duration::from_millis(200))).unwrap();
    assert_eq!((evicted.records, evicted.records_left), (2, 1));
    assert_eq!(present(store), ["e"]);
}

fn a_policy_without_limits_evicts_nothing(store: &dyn RecordStore) {
    write_in_order(store, &["a", "b"]);
    let kept = [
        EvictionPolicy::new(),
        EvictionPolicy::new().max_records(2),
        EvictionPolicy::new().max_bytes(1 << 20),
        EvictionPolicy::new().older_than(Duration::from_hours(1)),
    ];
    for policy in kept {
        let evicted = store.evict(policy.clone()).unwrap();
        assert_eq!((evicted.records, evicted.bytes, evicted.records_left), (0, 0, 2), "{policy:?}");
    }
    let dry = store.evict(EvictionPolicy::new().max_records(0).dry_run(true)).unwrap();
    assert_eq!((dry.records, dry.records_left), (2, 0));
    assert_eq!(present(store), ["a", "b"]);
}

fn a_locked_record_is_kept(store: &dyn RecordStore) {
    write_in_order(store, &["others", "mine", "expired", "free"]);
    let other = store.lock("others", one_attempt(&named("other"))).unwrap();
    let mine = store.lock("mine", LockOptions::new()).unwrap();
    let expired = store.lock("expired", short_lease(&named("late"))).unwrap();
    wait_for_expiry(store, "expired");
    let dry = store.evict(EvictionPolicy::new().max_records(2).dry_run(true)).unwrap();
    let evicted = store.evict(EvictionPolicy::new().max_records(2)).unwrap();
    assert_eq!((evicted.records, evicted.kept, evicted.records_left), (2, 2, 2));
    assert_eq!(dry, evicted, "a dry run counts the same");
    assert_eq!(present(store), ["mine", "others"]);
    drop((expired, mine, other));
    assert_eq!(store.evict(EvictionPolicy::new().max_records(0)).unwrap().records, 2);
    assert_eq!(present(store), [""; 0]);
}

fn an_evicted_record_is_gone_for_watchers(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let mut watch = store.watch("key").unwrap();
    let evict = || assert_eq!(store.evict(EvictionPolicy::new().max_records(0)).unwrap().records, 1);
    let change = blocks_until(|| watch.next(WaitOptions::new()), evict);
    assert_eq!(change.unwrap(), Some(RecordChange::Removed));
    assert!(store.read::<i64>("key").unwrap().is_none());
    assert!(store.record_info("key").unwrap().is_none());
}
