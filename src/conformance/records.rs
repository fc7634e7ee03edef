//! Records: reading, writing, removing and listing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::support::{Done, assert_matches, join, long_lease, named, one_attempt, result_of};
use crate::{Claim, Error, Holder, IsolationLevel, Json, RecordStore, RecordStoreExt};

checks! { "records":
    absent_is_none:
        "A read of a key without a record is `Ok(None)`.",
    a_read_returns_what_was_written:
        "A read returns the key and the result that were written.",
    a_write_replaces_the_record:
        "A write replaces the record.",
    json_text_is_kept_byte_for_byte:
        "The JSON text of a result is kept byte for byte.",
    a_large_result_is_kept:
        "A result of one megabyte is written and read like any other.",
    a_wrong_type_is_refused:
        "Reading a result as a wrong type is `Decode`, and the record stays.",
    a_result_that_json_cannot_represent_is_refused:
        "A result that JSON cannot represent is `Encode`, and the old record stays.",
    an_invalid_key_is_refused:
        "A string that is not a valid key is `InvalidKey` in every method.",
    exists_ignores_locks:
        "`exists` reports whether a record exists, and ignores locks.",
    the_lock_holder_can_write:
        "The holder of the lock can write the record, as a named holder and as the default holder.",
    other_holders_cannot_write_or_remove:
        "While another holder's lock is live, a write or removal is `Locked`, without a wait, and the old record stays.",
    writes_need_no_lock:
        "A write or removal needs no lock, whichever holder makes it.",
    remove_reports_whether_a_record_existed:
        "`remove` removes the record, and reports whether one existed.",
    writes_and_removals_keep_the_lock:
        "Writing and removing the record do not affect its lock.",
    keys_lists_each_record_once:
        "`keys` lists every key that has a record exactly once, and no key that has only a lock.",
    concurrent_readers_see_whole_records_in_order:
        "A concurrent reader sees a whole old record or a whole new one, and never an older record after a newer one.",
    both_isolation_levels_are_supported:
        "`ReadCommitted` and `Serializable` are supported.",
}

fn absent_is_none(store: &dyn RecordStore) {
    assert_matches!(store.read::<i64>("nothing"), Ok(None));
    assert!(!store.exists("nothing").unwrap(), "a read created a record");
    assert!(!store.is_locked("nothing").unwrap(), "a read created a lock");
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

fn a_write_replaces_the_record(store: &dyn RecordStore) {
    store.write("key", "a text that is longer than the next one").unwrap();
    store.write("key", "short").unwrap();
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "short");
    store.write("key", &()).unwrap();
    assert_eq!(
        store.read::<Option<String>>("key").unwrap().expect("a record whose result is null").result,
        None
    );
}

fn json_text_is_kept_byte_for_byte(store: &dyn RecordStore) {
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

fn a_large_result_is_kept(store: &dyn RecordStore) {
    let large = "0123456789abcdef".repeat(65_536);
    store.write("key", &large).unwrap();
    assert!(
        store.read::<String>("key").unwrap().unwrap().result == large,
        "the result differs from the written one"
    );
}

fn a_wrong_type_is_refused(store: &dyn RecordStore) {
    store.write("key", "text").unwrap();
    assert_matches!(store.read::<i64>("key"), Err(Error::Decode { operation: "read", .. }));
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "text");
}

fn a_result_that_json_cannot_represent_is_refused(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let me = Holder::current();
    for bad in [f64::NAN, f64::INFINITY] {
        assert_matches!(store.write("key", &bad), Err(Error::Encode { operation: "write", .. }));
        assert_matches!(store.write_as("key", &[Some(bad)], &me), Err(Error::Encode { .. }));
    }
    assert_eq!(result_of(store, "key", &me), Some(1), "the old record was changed");
    assert_matches!(store.write("other", &f64::NAN), Err(Error::Encode { .. }));
    assert!(!store.exists("other").unwrap(), "a refused write created a record");
}

fn an_invalid_key_is_refused(store: &dyn RecordStore) {
    let me = named("me");
    assert_matches!(store.read::<i64>(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.write("", &1), Err(Error::InvalidKey { .. }));
    assert_matches!(store.remove(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.exists(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.acquire_lock("", &one_attempt(&me)), Err(Error::InvalidKey { .. }));
    assert_matches!(store.release_lock("", &me), Err(Error::InvalidKey { .. }));
    assert_matches!(store.renew("", &me, None), Err(Error::InvalidKey { .. }));
    assert_matches!(store.lock("", one_attempt(&me)), Err(Error::InvalidKey { .. }));
    assert_matches!(store.is_locked(""), Err(Error::InvalidKey { .. }));
    assert_matches!(store.wait_for_lock("", None), Err(Error::InvalidKey { .. }));
    assert_matches!(store.break_lock(""), Err(Error::InvalidKey { .. }));
}

fn exists_ignores_locks(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.exists("key").unwrap());
    store.acquire_lock("key", &one_attempt(&other)).unwrap();
    assert!(!store.exists("key").unwrap(), "`exists` reports a record where only a lock exists");
    store.write_as("key", &1, &other).unwrap();
    assert!(store.exists("key").unwrap(), "`exists` reports no record because it is locked");
    store.release_lock("key", &other).unwrap();
    assert!(store.exists("key").unwrap());
    store.remove_as("key", &me).unwrap();
    assert!(!store.exists("key").unwrap());
}

fn the_lock_holder_can_write(store: &dyn RecordStore) {
    let me = named("me");
    store.acquire_lock("by name", &one_attempt(&me)).unwrap();
    store.write_as("by name", &1, &me).unwrap();
    assert_eq!(result_of(store, "by name", &me), Some(1));

    store.acquire_lock("by default", &long_lease(&Holder::current())).unwrap();
    store.write("by default", &2).unwrap();
    assert_eq!(store.read::<i64>("by default").unwrap().unwrap().result, 2);
    assert!(store.remove("by default").unwrap());
}

fn other_holders_cannot_write_or_remove(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    store.acquire_lock("key", &long_lease(&other)).unwrap();
    for claim in [Claim::from(&me), Claim::current()] {
        match store.write_as("key", &2, claim.clone()) {
            Err(Error::Locked { operation: "write", key, holder, .. }) => {
                assert_eq!(
                    (key.as_str(), holder),
                    ("key", other.clone()),
                    "the error names another key or holder"
                );
            }
            outcome => panic!("a write by another holder: {outcome:?}"),
        }
        match store.remove_as("key", claim) {
            Err(Error::Locked { operation: "remove", key, holder, .. }) => {
                assert_eq!(
                    (key.as_str(), holder),
                    ("key", other.clone()),
                    "the error names another key or holder"
                );
            }
            outcome => panic!("a removal by another holder: {outcome:?}"),
        }
    }
    assert_eq!(result_of(store, "key", &other), Some(1), "the old record was changed");
    assert!(store.is_lock_holder("key", &other).unwrap(), "the lock was released");
}

fn writes_need_no_lock(store: &dyn RecordStore) {
    let me = named("me");
    store.write_as("key", &1, &me).unwrap();
    store.write("key", &2).unwrap();
    assert_eq!(result_of(store, "key", &me), Some(2));
    assert!(!store.is_locked("key").unwrap(), "a write created a lock");
    assert!(store.remove_as("key", &me).unwrap());
}

fn remove_reports_whether_a_record_existed(store: &dyn RecordStore) {
    assert!(!store.remove("key").unwrap(), "no record existed");
    store.write("key", &1).unwrap();
    assert!(store.remove("key").unwrap(), "a record existed");
    assert!(!store.exists("key").unwrap());
    assert_matches!(store.read::<i64>("key"), Ok(None));
    assert!(!store.remove("key").unwrap(), "the record was already removed");
    store.write("key", &2).unwrap();
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 2);
}

fn writes_and_removals_keep_the_lock(store: &dyn RecordStore) {
    let me = named("me");
    let token = store.acquire_lock("key", &one_attempt(&me)).unwrap();
    store.write_as("key", &1, &me).unwrap();
    assert!(store.remove_as("key", &me).unwrap());
    let info = store.lock_info("key").unwrap().expect("the lock is still live");
    assert_eq!((info.holder(), info.token()), (&me, token));
}

fn keys_lists_each_record_once(store: &dyn RecordStore) {
    assert_eq!(listed(store), Vec::<String>::new());
    let me = named("me");
    for key in ["b", "a", "c"] {
        store.write(key, &1).unwrap();
        store.write(key, &2).unwrap();
    }
    store.acquire_lock("a", &one_attempt(&me)).unwrap();
    store.acquire_lock("only locked", &one_attempt(&me)).unwrap();
    assert_eq!(listed(store), ["a", "b", "c"]);
    store.remove("b").unwrap();
    assert_eq!(listed(store), ["a", "c"]);
}

fn listed(store: &dyn RecordStore) -> Vec<String> {
    let mut keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
    keys.sort();
    keys
}

fn concurrent_readers_see_whole_records_in_order(store: &dyn RecordStore) {
    const WRITES: usize = 40;
    let done = AtomicBool::new(false);
    store.write("key", &(0, "")).unwrap();
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut last, mut is_last_read) = (0, false);
            while !is_last_read {
                is_last_read = done.load(Ordering::Acquire);
                let record =
                    store.read::<(usize, String)>("key").unwrap().expect("a record exists at every moment");
                let (number, text) = record.result;
                assert_eq!(text.len(), number * 500, "neither a whole old record nor a whole new one");
                assert!(number >= last, "record {number} after record {last}");
                last = number;
            }
            assert_eq!(last, WRITES, "the reader missed the last write");
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

fn both_isolation_levels_are_supported(store: &dyn RecordStore) {
    assert!(store.supports_isolation_level(IsolationLevel::ReadCommitted));
    assert!(store.supports_isolation_level(IsolationLevel::Serializable));
}
