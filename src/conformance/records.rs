//! Records: reading, writing, removing and listing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};

use super::support::{
    Done, assert_error, assert_error_of, assert_matches, assert_names, break_by, join, long_lease, named,
    one_attempt, remove_by, result_of, write_by,
};
use crate::{
    Claim, ErrorKind, Expected, Holder, IsolationLevel, Json, Key, LockOptions, LockToken, ReadOptions,
    RecordStore, RecordStoreExt, WaitOptions, WriteOptions,
};

checks! { "records":
    absent_is_none:
        "A read of a key without a record is `Ok(None)`.",
    a_read_returns_what_was_written:
        "A read returns the key and the result that were written.",
    a_write_replaces_the_record:
        "A write replaces the record.",
    json_text_is_kept_byte_for_byte:
        "The JSON text of a result is kept byte for byte.",
    raw_json_text_is_kept_byte_for_byte:
        "`read_raw` returns exactly the text that `write_raw` or `compare_and_swap_raw` wrote.",
    floats_are_kept_bit_for_bit:
        "A finite float reads back with the same bits.",
    a_deeply_nested_result_is_kept_or_refused:
        "A result that is nested 127 levels deep is kept; a deeper one is `Encode`, and the old record stays.",
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

/// Texts that a store would change if it parsed them and wrote them again.
const EXACT_TEXTS: [&str; 7] = [
    "123456789012345678901234567890",
    "-0.1000",
    "1e400",
    "{ \"b\" : 1,\n  \"a\": [ 2.50 , \"\\u00e9\" ] }",
    "{\"same\":1,\"same\":2}",
    "\"\\ud83d\\ude00 \u{1f600} \u{2028}\"",
    "null",
];

fn json_text_is_kept_byte_for_byte(store: &dyn RecordStore) {
    for text in EXACT_TEXTS {
        let json = Json::parse(text).unwrap();
        store.write("key", &json).unwrap();
        let record = store.read::<Json>("key").unwrap().unwrap();
        assert_eq!(record.result.as_str(), text);
    }
}

fn raw_json_text_is_kept_byte_for_byte(store: &dyn RecordStore) {
    let written = Key::new("written").unwrap();
    let swapped = Key::new("swapped").unwrap();
    let read = |key| store.read_raw(key, ReadOptions::new()).unwrap().expect("a record").json;
    let mut last: Option<Json> = None;
    for text in EXACT_TEXTS {
        let json = Json::parse(text).unwrap();
        store.write_raw(&written, &json, WriteOptions::new()).unwrap();
        assert_eq!(read(&written).as_str(), text);
        assert_eq!(store.read::<Json>(&written).unwrap().unwrap().result.as_str(), text);
        let expected = last.as_ref().map_or(Expected::Absent, Expected::Value);
        let swap = store.compare_and_swap_raw(&swapped, expected, &json, WriteOptions::new());
        assert_matches!(swap, Ok(true));
        assert_eq!(read(&swapped).as_str(), text);
        last = Some(json);
    }
}

fn floats_are_kept_bit_for_bit(store: &dyn RecordStore) {
    let mut doubles =
        vec![0.0, -0.0, 0.1 + 0.2, f64::MAX, f64::MIN_POSITIVE, 5e-324, 1e16, 9_007_199_254_740_993.0];
    let mut singles = vec![0.0, -0.0, 0.1_f32 + 0.2, f32::MAX, f32::MIN_POSITIVE, 1e-45, 16_777_217.0];
    // Arbitrary bits, the same in every run.
    let mut bits = 0x9e37_79b9_7f4a_7c15_u64;
    while doubles.len() < 500 {
        bits = bits.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        doubles.push(f64::from_bits(bits));
        doubles.retain(|float| float.is_finite());
        singles.push(f32::from_bits((bits >> 32) as u32));
        singles.retain(|float| float.is_finite());
    }
    store.write("doubles", &doubles).unwrap();
    store.write("singles", &singles).unwrap();
    let read = store.read::<Vec<f64>>("doubles").unwrap().unwrap().result;
    for (read, written) in read.iter().zip(&doubles) {
        assert_eq!(read.to_bits(), written.to_bits(), "{written:e} became {read:e}");
    }
    let read = store.read::<Vec<f32>>("singles").unwrap().unwrap().result;
    for (read, written) in read.iter().zip(&singles) {
        assert_eq!(read.to_bits(), written.to_bits(), "{written:e} became {read:e}");
    }
}

/// A result that is nested this many levels deep.
fn nested(levels: usize) -> serde_json::Value {
    (1..levels).fold(serde_json::Value::Array(Vec::new()), |inner, _| serde_json::Value::Array(vec![inner]))
}

fn a_deeply_nested_result_is_kept_or_refused(store: &dyn RecordStore) {
    let deepest = nested(127);
    store.write("key", &deepest).unwrap();
    let record = store.read::<serde_json::Value>("key").unwrap().expect("a record");
    assert!(record.result == deepest, "the result was changed");
    assert_matches!(store.compare_and_swap("key", Some(&deepest), &deepest, WriteOptions::new()), Ok(true));
    for levels in [128, 500] {
        let bad = nested(levels);
        let text = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_error(Json::parse(text), ErrorKind::InvalidJson);
        assert_error_of(store.write("key", &bad), ErrorKind::Encode, "write");
        let swap = store.compare_and_swap("key", Some(&deepest), &bad, WriteOptions::new());
        assert_error_of(swap, ErrorKind::Encode, "compare_and_swap");
        assert_error(store.write_if_absent("other", &bad, WriteOptions::new()), ErrorKind::Encode);
        assert_error(store.update("key", LockOptions::new(), |_| Ok(bad.clone())), ErrorKind::Encode);
        assert_error(
            store.get_or_compute("other", LockOptions::new(), || Ok(bad.clone())),
            ErrorKind::Encode,
        );
    }
    let record = store.read::<serde_json::Value>("key").unwrap().expect("a record");
    assert!(record.result == deepest, "the old record did not stay");
    assert!(!store.exists("other").unwrap(), "a refused write created a record");
    assert!(!store.is_locked("key").unwrap() && !store.is_locked("other").unwrap(), "a lock was left behind");
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
    assert_error_of(store.read::<i64>("key"), ErrorKind::Decode, "read");
    assert_eq!(store.read::<String>("key").unwrap().unwrap().result, "text");
}

fn a_result_that_json_cannot_represent_is_refused(store: &dyn RecordStore) {
    store.write("key", &1).unwrap();
    let me = Holder::current();
    for bad in [f64::NAN, f64::INFINITY] {
        assert_error_of(store.write("key", &bad), ErrorKind::Encode, "write");
        assert_error(store.write_with("key", &[Some(bad)], write_by(&me)), ErrorKind::Encode);
    }
    assert_eq!(result_of(store, "key", &me), Some(1), "the old record was changed");
    assert_error(store.write("other", &f64::NAN), ErrorKind::Encode);
    assert!(!store.exists("other").unwrap(), "a refused write created a record");
}

fn an_invalid_key_is_refused(store: &dyn RecordStore) {
    let me = named("me");
    assert_error(store.read::<i64>(""), ErrorKind::InvalidKey);
    assert_error(store.write("", &1), ErrorKind::InvalidKey);
    assert_error(store.remove(""), ErrorKind::InvalidKey);
    assert_error(store.exists(""), ErrorKind::InvalidKey);
    assert_error(store.acquire_lock("", one_attempt(&me)), ErrorKind::InvalidKey);
    assert_error(store.release_lock("", &me), ErrorKind::InvalidKey);
    assert_error(store.renew("", &me, None), ErrorKind::InvalidKey);
    assert_error(store.lock("", one_attempt(&me)), ErrorKind::InvalidKey);
    assert_error(store.is_locked(""), ErrorKind::InvalidKey);
    assert_error(store.wait_for_lock("", WaitOptions::new()), ErrorKind::InvalidKey);
    assert_error(store.break_lock(""), ErrorKind::InvalidKey);
    assert_error(store.break_lock_with("", break_by(LockToken::new(1))), ErrorKind::InvalidKey);
    assert_error(store.compare_and_swap("", Some(&1), &2, WriteOptions::new()), ErrorKind::InvalidKey);
    assert_error(store.update("", LockOptions::new(), |_: Option<i64>| Ok(1)), ErrorKind::InvalidKey);
    assert_error(store.get_or_compute("", LockOptions::new(), || Ok(1)), ErrorKind::InvalidKey);
    assert_error(store.watch(""), ErrorKind::InvalidKey);
    assert_error(store.lock_all(["a", ""], one_attempt(&me)), ErrorKind::InvalidKey);
    assert!(!store.is_locked("a").unwrap(), "a refused call acquired a lock");
}

fn exists_ignores_locks(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    assert!(!store.exists("key").unwrap());
    store.acquire_lock("key", one_attempt(&other)).unwrap();
    assert!(!store.exists("key").unwrap(), "`exists` reports a record where only a lock exists");
    store.write_with("key", &1, write_by(&other)).unwrap();
    assert!(store.exists("key").unwrap(), "`exists` reports no record because it is locked");
    store.release_lock("key", &other).unwrap();
    assert!(store.exists("key").unwrap());
    store.remove_with("key", remove_by(&me)).unwrap();
    assert!(!store.exists("key").unwrap());
}

fn the_lock_holder_can_write(store: &dyn RecordStore) {
    let me = named("me");
    store.acquire_lock("by name", one_attempt(&me)).unwrap();
    store.write_with("by name", &1, write_by(&me)).unwrap();
    assert_eq!(result_of(store, "by name", &me), Some(1));

    store.acquire_lock("by default", long_lease(&Holder::current())).unwrap();
    store.write("by default", &2).unwrap();
    assert_eq!(store.read::<i64>("by default").unwrap().unwrap().result, 2);
    assert!(store.remove("by default").unwrap());
}

fn other_holders_cannot_write_or_remove(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    store.write("key", &1).unwrap();
    store.acquire_lock("key", long_lease(&other)).unwrap();
    for claim in [Claim::from(&me), Claim::current()] {
        let outcome = store.write_with("key", &2, write_by(claim.clone()));
        assert_names(&assert_error_of(outcome, ErrorKind::Locked, "write"), "key", &other);
        let outcome = store.remove_with("key", remove_by(claim));
        assert_names(&assert_error_of(outcome, ErrorKind::Locked, "remove"), "key", &other);
    }
    assert_eq!(result_of(store, "key", &other), Some(1), "the old record was changed");
    assert!(store.is_lock_holder("key", &other).unwrap(), "the lock was released");
}

fn writes_need_no_lock(store: &dyn RecordStore) {
    let me = named("me");
    store.write_with("key", &1, write_by(&me)).unwrap();
    store.write("key", &2).unwrap();
    assert_eq!(result_of(store, "key", &me), Some(2));
    assert!(!store.is_locked("key").unwrap(), "a write created a lock");
    assert!(store.remove_with("key", remove_by(&me)).unwrap());
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
    let token = store.acquire_lock("key", one_attempt(&me)).unwrap();
    store.write_with("key", &1, write_by(&me)).unwrap();
    assert!(store.remove_with("key", remove_by(&me)).unwrap());
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
    store.acquire_lock("a", one_attempt(&me)).unwrap();
    store.acquire_lock("only locked", one_attempt(&me)).unwrap();
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
