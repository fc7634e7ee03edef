//! Records with a time to live.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::{LEASE, assert_error, assert_matches, join, named, one_attempt, write_by};
use crate::{
    ErrorKind, Key, LockOptions, ReadOptions, RecordStore, RecordStoreExt, UpdateOptions, WriteOptions,
};

checks! { "expiry":
    a_record_expires_on_time:
        "A record with a time to live exists until it expires, and then reads as absent, does not exist and is not listed.",
    each_write_sets_the_time_to_live:
        "Each write sets the time to live; a record that is written without one never expires.",
    each_swap_sets_the_time_to_live:
        "A swap that writes sets the time to live, in each form; one that does not write changes none.",
    a_read_says_how_long_a_record_lives:
        "A read says how much of a record's time to live is left, and that a record without one does not expire.",
    changes_treat_an_expired_record_as_absent:
        "`remove`, a swap and a computation treat an expired record as absent.",
    expiry_of_a_record_keeps_its_lock:
        "The expiry of a record does not affect its lock, and the holder can write the next record.",
    a_stale_result_is_given_out_while_one_caller_computes:
        "While one caller computes the successor of a stale result, `get_or_compute` gives that result to the others at once.",
    one_of_many_callers_computes_the_successor:
        "Of many callers of `get_or_compute` that find a stale result, one computes its successor.",
    no_result_is_given_out_after_its_stale_time:
        "When the time is over in which a result is stale, `get_or_compute` gives it to nobody, also while another holder has the lock.",
}

/// Options for a record that expires during the check.
fn expiring() -> WriteOptions {
    WriteOptions::new().time_to_live(LEASE)
}

fn wait_for_expiry(store: &dyn RecordStore, key: &str) {
    let mut watch = store.watch(key).unwrap();
    while store.exists(key).unwrap() {
        assert_matches!(watch.next(PATIENCE), Ok(Some(_)));
    }
}

fn a_record_expires_on_time(store: &dyn RecordStore) {
    let listed = || store.keys().unwrap().map(|key| key.unwrap().to_string()).collect::<Vec<_>>();
    store.write("stays", &0).unwrap();
    store.write_with("long", &1, WriteOptions::new().time_to_live(PATIENCE * 100)).unwrap();
    assert_eq!(store.read::<i64>("long").unwrap().unwrap().result, 1);
    assert!(store.exists("long").unwrap());
    let start = Instant::now();
    store.write_with("key", &1, expiring()).unwrap();
    wait_for_expiry(store, "key");
    assert!(start.elapsed() >= LEASE, "the record expired too early");
    assert_matches!(store.read::<i64>("key"), Ok(None));
    assert_matches!(store.read_with::<i64>("key", ReadOptions::new().ignore_lock()), Ok(None));
    let mut keys = listed();
    keys.sort();
    assert_eq!(keys, ["long", "stays"]);
}

fn each_write_sets_the_time_to_live(store: &dyn RecordStore) {
    store.write_with("key", &1, expiring()).unwrap();
    store.write_with("other", &1, expiring()).unwrap();
    store.write("key", &2).unwrap();
    let guard = store.lock("third", LockOptions::new()).unwrap();
    guard.write_with(&1, expiring()).unwrap();
    guard.write(&2).unwrap();
    wait_for_expiry(store, "other");
    assert_eq!(store.read::<i64>("key").unwrap().expect("a record that never expires").result, 2);
    assert_eq!(guard.read::<i64>().unwrap().expect("a record that never expires").result, 2);
    store.write_with("key", &3, expiring()).unwrap();
    wait_for_expiry(store, "key");
}

fn changes_treat_an_expired_record_as_absent(store: &dyn RecordStore) {
    for key in ["removed", "swapped", "computed", "absent"] {
        store.write_with(key, &1, expiring()).unwrap();
    }
    for key in ["removed", "swapped", "computed", "absent"] {
        wait_for_expiry(store, key);
    }
    assert_matches!(store.remove("removed"), Ok(false));
    assert_matches!(store.compare_and_swap("swapped", Some(&1), &2, WriteOptions::new()), Ok(false));
    assert_matches!(store.write_if_absent("absent", &2, WriteOptions::new()), Ok(true));
    let options = || UpdateOptions::new().time_to_live(LEASE);
    let computed = store.get_or_compute("computed", options(), || Ok(2));
    assert_matches!(computed, Ok(2));
    wait_for_expiry(store, "computed");
    let updated = store.update("computed", options(), |old: Option<i64>| {
        assert_eq!(old, None, "`update` received an expired result");
        Ok(3)
    });
    assert_matches!(updated, Ok(3));
}

fn a_read_says_how_long_a_record_lives(store: &dyn RecordStore) {
    let key = Key::new("key").unwrap();
    let left = |options| store.read_raw(&key, options).unwrap().unwrap().time_left;
    store.write_with("key", &1, WriteOptions::new().time_to_live(PATIENCE * 100)).unwrap();
    for options in [ReadOptions::new(), ReadOptions::new().ignore_lock()] {
        let left = left(options).expect("the record expires");
        assert!(left <= PATIENCE * 100 && left > PATIENCE * 90, "{left:?} are left");
    }
    let token = store.acquire_lock("key", one_attempt(&named("me"))).unwrap();
    assert!(left(ReadOptions::new().claim(token)).is_some(), "a holder's read says nothing");
    store.write_with("key", &2, write_by(token)).unwrap();
    assert_matches!(left(ReadOptions::new().claim(token)), None);
}

fn expiry_of_a_record_keeps_its_lock(store: &dyn RecordStore) {
    let me = named("me");
    let token = store.acquire_lock("key", one_attempt(&me)).unwrap();
    store.write_with("key", &1, expiring().claim(token)).unwrap();
    wait_for_expiry(store, "key");
    assert!(store.is_lock_holder("key", &me).unwrap(), "the lock disappeared with the record");
    store.write_with("key", &2, write_by(token)).unwrap();
    store.release_lock("key", token).unwrap();
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}

fn each_swap_sets_the_time_to_live(store: &dyn RecordStore) {
    let key = |name: &str| Key::new(name).unwrap();
    let left = |name: &str| store.read_raw(&key(name), ReadOptions::new()).unwrap().unwrap().time_left;
    let brief = || WriteOptions::new().time_to_live(PATIENCE);
    let version = || store.read::<i64>("version").unwrap().unwrap().version;
    store.write("value", &1).unwrap();
    store.write("version", &1).unwrap();
    assert_matches!(store.compare_and_swap("value", Some(&0), &2, brief()), Ok(false));
    assert_matches!(left("value"), None, "after a swap that failed");
    assert_matches!(store.compare_and_swap("value", Some(&1), &2, brief()), Ok(true));
    assert_matches!(store.write_if_version("version", version(), &2, brief()), Ok(true));
    assert_matches!(store.write_if_absent("absent", &2, brief()), Ok(true));
    for name in ["value", "version", "absent"] {
        assert_matches!(left(name), Some(left) if left <= PATIENCE, "after a swap with a time to live");
    }
    assert_matches!(store.compare_and_swap("value", Some(&2), &3, WriteOptions::new()), Ok(true));
    assert_matches!(store.write_if_version("version", version(), &3, WriteOptions::new()), Ok(true));
    for name in ["value", "version"] {
        assert_matches!(left(name), None, "after a swap without a time to live");
    }
    // It is not only said, but kept.
    assert_matches!(store.compare_and_swap("value", Some(&3), &4, expiring()), Ok(true));
    assert_matches!(store.write_if_version("version", version(), &4, expiring()), Ok(true));
    assert_matches!(store.write_if_absent("another", &4, expiring()), Ok(true));
    for name in ["value", "version", "another"] {
        wait_for_expiry(store, name);
    }
}

/// Options with which any record that expires is stale, unless it was written with them.
fn stale_options() -> UpdateOptions {
    let lock = LockOptions::new().acquire_timeout(PATIENCE);
    UpdateOptions::new().lock(lock).time_to_live(PATIENCE * 100).stale_for(PATIENCE * 100)
}

fn write_stale(store: &dyn RecordStore, key: &str) {
    store.write_with(key, &1, WriteOptions::new().time_to_live(PATIENCE * 10)).unwrap();
}

fn a_stale_result_is_given_out_while_one_caller_computes(store: &dyn RecordStore) {
    let other_gets = || {
        thread::scope(|scope| {
            let get = || store.get_or_compute("key", stale_options(), || Ok(-1));
            join(scope.spawn(get))
        })
    };
    write_stale(store, "key");
    let computed = store.get_or_compute("key", stale_options(), || {
        let start = Instant::now();
        for _ in 0..3 {
            assert_matches!(other_gets(), Ok(1), "while another caller computed");
        }
        assert!(start.elapsed() < PATIENCE / 2, "the callers waited for the computation");
        Ok(2)
    });
    assert_matches!(computed, Ok(2));
    assert_matches!(other_gets(), Ok(2), "after the computation");
    assert!(!store.is_locked("key").unwrap(), "a caller has left a lock");
}

fn one_of_many_callers_computes_the_successor(store: &dyn RecordStore) {
    const CALLERS: usize = 4;
    for round in 0..5 {
        let (key, all) = (format!("key {round}"), Barrier::new(CALLERS));
        let (computing, returned) = (AtomicUsize::new(0), AtomicUsize::new(0));
        write_stale(store, &key);
        let get = || {
            all.wait();
            let compute = || {
                computing.fetch_add(1, Ordering::SeqCst);
                // Until each of the others has the stale result, or computes too.
                let start = Instant::now();
                let here = || computing.load(Ordering::SeqCst) + returned.load(Ordering::SeqCst);
                while here() < CALLERS && start.elapsed() < PATIENCE {
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(2)
            };
            let got = store.get_or_compute(&key, stale_options(), compute);
            assert_matches!(got, Ok(1 | 2));
            returned.fetch_add(1, Ordering::SeqCst);
        };
        thread::scope(|scope| [(); CALLERS].map(|()| scope.spawn(get)).map(join));
        assert_eq!(computing.into_inner(), 1, "so many callers computed");
        assert_eq!(store.read::<i64>(&*key).unwrap().unwrap().result, 2);
    }
}

fn no_result_is_given_out_after_its_stale_time(store: &dyn RecordStore) {
    store.write_with("key", &1, expiring()).unwrap();
    wait_for_expiry(store, "key");
    let other = named("other");
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    let at_once = stale_options().lock(one_attempt(&named("me")));
    assert_error(store.get_or_compute("key", at_once, || Ok(-1)), ErrorKind::LockTimeout);
    store.release_lock("key", &other).unwrap();
    assert_matches!(store.get_or_compute("key", stale_options(), || Ok(2)), Ok(2));
}
