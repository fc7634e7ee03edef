//! Records: reading, writing, removing, listing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::support::{Done, assert_matches, at_once, join, long, named, result_of};
use crate::{Claim, Error, Holder, IsolationLevel, Json, RecordStore, RecordStoreExt};

checks! { "records":
    absent_is_none:
        "A read of a key without a record is `Ok(None)`.",
    a_read_returns_what_was_written:
        "A read returns the key and the result that were written.",
    a_write_replaces:
        "A write replaces the record.",
    json_is_kept_to_the_byte:
        "The result's JSON text is kept to the byte.",
    a_large_result:
        "A result of a megabyte is written and read like any other.",
    a_wrong_type_is_refused:
        "A result of another type than asked for is `Decode`, and stays.",
    what_json_cannot_hold_is_refused:
        "A result that JSON cannot hold is `Encode`, and the old record stays.",
    an_invalid_key_is_refused:
        "A string that is no key is `InvalidKey` in every method.",
    exists_ignores_locks:
        "`exists` tells whether there is a record, and ignores locks.",
    a_holder_writes_its_record:
        "The holder of the lock writes its record, by name and by default.",
    others_are_refused:
        "A write or removal while another holder's lock is live is `Locked`, at once, and the old record stays.",
    no_lock_is_needed:
        "A write or removal needs no lock, whoever asks.",
    remove_tells_whether_there_was_one:
        "`remove` removes the record, and tells whether there was one.",
    removal_leaves_the_lock:
        "Writing and removing the record leave its lock alone.",
    keys_lists_each_record_once:
        "`keys` lists every key that has a record once, and no key that has only a lock.",
    a_reader_sees_old_or_new:
        "At every moment a reader sees a whole old record or a whole new one, and never an older one after a newer.",
    isolation_levels:
        "`ReadCommitted` and `Serializable` are supported.",
}

fn absent_is_none(store: &dyn RecordStore) {
    assert_matches!(store.read::<i64>("nothing"), Ok(None));
    assert!(!store.exists("nothing").unwrap(), "a read made a record");
    assert!(!store.is_locked("nothing").unwrap(), "a read made a lock");
}

fn a_read_returns_what_was_written(store: &dyn RecordStore) {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Invoice {
        number: u64,
        items: Vec<(String, Option<f64>)>,
    }
    let written = Invoice {
        number: u64::MAX,
        items: vec![("naïve \0 \"tea\"".into(), Some(0.1)), (String::new(), None)],
    };
    store.write("invoice-42", &written).unwrap();
    let record = store.read::<Invoice>("invoice-42").unwrap().expect("a record");
    assert_eq!(record.key.as_str(), "invoice-42");
    assert_eq!(record.result, written);
}

fn a_write_replaces(store: &dyn RecordStore) {
    store.write("key", "a longer text than the next").unwrap();
    store.write("key", "short").unwrap();
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "short");
    store.write("key", &()).unwrap();
    assert_eq!(
        store.read::<Option<String>>("key").unwrap().expect("a record whose result is null").result,
        None
    );
}

fn json_is_kept_to_the_byte(store: &dyn RecordStore) {
    for text in [
        "123456789012345678901234567890",
        "-0.1000",
        "1e400",
        "{ \"b\" : 1,\n  \"a\": [ 2.50 , \"\\u00e9\" ] }",
        "{\"same\":1,\"same\":2}",
        "\"\\ud83d\\ude00 \u{1f600} \u{2028}\"",
        "null",
    ] {
        let json = RawValue::from_string(text.to_owned()).unwrap();
        store.write("key", &json).unwrap();
        let record = store.read::<Json>("key").unwrap().unwrap();
        assert_eq!(record.result.get(), text);
    }
}

fn a_large_result(store: &dyn RecordStore) {
    let large = "0123456789abcdef".repeat(65_536);
    store.write("key", &large).unwrap();
    assert!(store.read::<String>("key").unwrap().unwrap().result == large, "not what was written");
}

fn a_wrong_type_is_refused(store: &dyn RecordStore) {
    store.write("key", "text").unwrap();
    assert_matches!(store.read::<i64>("key"), Err(Error::Decode { operation: "read", .. }));
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "text");
}

fn what_json_cannot_hold_is_refused(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let me = Holder::current();
    for bad in [f64::NAN, f64::INFINITY] {
        assert_matches!(store.write("key", &bad), Err(Error::Encode { operation: "write", .. }));
        assert_matches!(store.write_as("key", &[Some(bad)], &me), Err(Error::Encode { .. }));
    }
    assert_eq!(result_of(store, "key", &me), Some(1), "the old record did not stay");
    assert_matches!(store.write("other", &f64::NAN), Err(Error::Encode { .. }));
    assert!(!store.exists("other").unwrap(), "a refused write made a record");
}

fn an_invalid_key_is_refused(store: &dyn RecordStore) {
    let me = named("me");
    assert_matches!(store.read::<i64>(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.write("", &1), Err(Error::InvalidKey { .. }));
    assert_matches!(store.remove(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.exists(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.acquire_lock("", &at_once(&me)), Err(Error::InvalidKey { .. }));
    assert_matches!(store.release_lock("", &me), Err(Error::InvalidKey { .. }));
    assert_matches!(store.renew("", &me, None), Err(Error::InvalidKey { .. }));
    assert_matches!(store.lock("", at_once(&me)), Err(Error::InvalidKey { .. }));
    assert_matches!(store.is_locked(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.wait_for_lock("", None), Err(Error::InvalidKey { .. }));
    assert_matches!(store.break_lock(""), Err(Error::InvalidKey { .. }));
}

fn exists_ignores_locks(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.exists("key").unwrap());
    store.acquire_lock("key", &at_once(&other)).unwrap();
    assert!(!store.exists("key").unwrap(), "a lock is not a record");
    store.write_as("key", &1, &other).unwrap();
    assert!(store.exists("key").unwrap(), "a record is there, locked or not");
    store.release_lock("key", &other).unwrap();
    assert!(store.exists("key").unwrap());
    store.remove_as("key", &me).unwrap();
    assert!(!store.exists("key").unwrap());
}

fn a_holder_writes_its_record(store: &dyn RecordStore) {
    let me = named("me");
    store.acquire_lock("by name", &at_once(&me)).unwrap();
    store.write_as("by name", &1, &me).unwrap();
    assert_eq!(result_of(store, "by name", &me), Some(1));

    store.acquire_lock("by default", &long(&Holder::current())).unwrap();
    store.write("by default", &2).unwrap();
    assert_eq!(store.read::<i64>("by default").unwrap().unwrap().result, 2);
    assert!(store.remove("by default").unwrap());
}

fn others_are_refused(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    store.acquire_lock("key", &long(&other)).unwrap();
    for claim in [Claim::from(&me), Claim::current()] {
        match store.write_as("key", &2, claim.clone()) {
            Err(Error::Locked { operation: "write", key, holder, .. }) => {
                assert_eq!((key.as_str(), holder), ("key", other.clone()), "the error names another");
            }
            outcome => panic!("a write by another: {outcome:?}"),
        }
        match store.remove_as("key", claim) {
            Err(Error::Locked { operation: "remove", key, holder, .. }) => {
                assert_eq!((key.as_str(), holder), ("key", other.clone()), "the error names another");
            }
            outcome => panic!("a removal by another: {outcome:?}"),
        }
    }
    assert_eq!(result_of(store, "key", &other), Some(1), "the old record did not stay");
    assert!(store.is_lock_holder("key", &other).unwrap(), "the lock did not stay");
}

fn no_lock_is_needed(store: &dyn RecordStore) {
    let me = named("me");
    store.write_as("key", &1, &me).unwrap();
    store.write("key", &2).unwrap();
    assert_eq!(result_of(store, "key", &me), Some(2));
    assert!(!store.is_locked("key").unwrap(), "a write made a lock");
    assert!(store.remove_as("key", &me).unwrap());
}

fn remove_tells_whether_there_was_one(store: &dyn RecordStore) {
    assert!(!store.remove("key").unwrap(), "there was none");
    store.write("key", &1).unwrap();
    assert!(store.remove("key").unwrap(), "there was one");
    assert!(!store.exists("key").unwrap());
    assert_matches!(store.read::<i64>("key"), Ok(None));
    assert!(!store.remove("key").unwrap(), "there was none any more");
    store.write("key", &2).unwrap();
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}

fn removal_leaves_the_lock(store: &dyn RecordStore) {
    let me = named("me");
    let token = store.acquire_lock("key", &at_once(&me)).unwrap();
    store.write_as("key", &1, &me).unwrap();
    assert!(store.remove_as("key", &me).unwrap());
    let info = store.lock_info("key").unwrap().expect("the lock is still there");
    assert_eq!((info.holder(), info.token()), (&me, token));
}

fn keys_lists_each_record_once(store: &dyn RecordStore) {
    assert_eq!(listed(store), Vec::<String>::new());
    let me = named("me");
    for key in ["b", "a", "c"] {
        store.write(key, &1).unwrap();
        store.write(key, &2).unwrap();
    }
    store.acquire_lock("a", &at_once(&me)).unwrap();
    store.acquire_lock("only locked", &at_once(&me)).unwrap();
    assert_eq!(listed(store), ["a", "b", "c"]);
    store.remove("b").unwrap();
    assert_eq!(listed(store), ["a", "c"]);
}

fn listed(store: &dyn RecordStore) -> Vec<String> {
    let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
    keys.sort();
    keys
}

fn a_reader_sees_old_or_new(store: &dyn RecordStore) {
    const WRITES: usize = 40;
    let done = AtomicBool::new(false);
    store.write("key", &(0, "")).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut last, mut is_last_look) = (0, false);
            while !is_last_look {
                is_last_look = done.load(Ordering::Acquire);
                let record =
                    store.read::<(usize, String)>("key").unwrap().expect("a record, at every moment");
                let (number, text) = record.result;
                assert_eq!(text.len(), number * 500, "neither an old record nor a new one");
                assert!(number >= last, "record {number} after record {last}");
                last = number;
            }
            assert_eq!(last, WRITES, "not the newest record after the last write");
        });
        let writer = scope.spawn(|| {
            let _done = Done(&done);
            for number in 1..=WRITES {
                store.write("key", &(number, "x".repeat(number * 500))).unwrap();
            }
        });
        join(writer);
        join(reader);
    });
}

fn isolation_levels(store: &dyn RecordStore) {
    assert!(store.supports_isolation_level(IsolationLevel::ReadCommitted));
    assert!(store.supports_isolation_level(IsolationLevel::Serializable));
}
