//! Keys: each has its own record and its own lock, whatever characters it contains.

use std::collections::BTreeSet;

use super::support::{assert_error, named, one_attempt, remove_by, result_of, write_by};
use crate::{ErrorKind, Key, RecordStore, RecordStoreExt};

checks! { "keys":
    unusual_keys_do_not_collide:
        "Every key has its own record and its own lock, whatever characters it contains.",
    case_and_unicode_form_are_significant:
        "Keys that differ in case or Unicode form are different keys, or are refused with `KeyMismatch`; one never returns the other's result.",
    locks_are_independent:
        "The lock of one key does not affect any other key.",
}

/// Keys that a store could confuse with each other, with a path, or with its own files.
fn unusual() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "a.b",
        "a.c",
        "a.b.c",
        ".",
        "..",
        "../x",
        "..x",
        ".x",
        "x",
        "/x",
        "a/b",
        "a/",
        "/",
        "//",
        "a\\b",
        "%",
        "%%",
        "%2F",
        "a%2Fb",
        "a%2fb",
        "%00",
        "%~",
        "\0",
        "a\0",
        "a\0b",
        "\n",
        "\r\n",
        "\t",
        " ",
        "  ",
        " a",
        "a ",
        "a.lock",
        "a.json",
        "a.json.lock",
        "a.lock.json",
        ".lock",
        ".json",
        "lock",
        "json",
        "tmp",
        ".store",
        ".store/format.json",
        "*",
        "?",
        "\"",
        "'",
        "{}",
        "null",
        "-",
        "--help",
        "~",
        "CON",
        "é",
        "日本語",
        "\u{1f600}",
        "\u{7f}",
        "\u{feff}",
        "\u{200b}",
        "\u{202e}a",
        "\u{fffd}",
    ]
    .map(str::to_owned)
    .to_vec();
    for unit in ["x", "é", "/", "%", "."] {
        for length in [100, 199, 200, 201, 255, 256, 1000] {
            keys.push(unit.repeat(length));
        }
    }
    // The maximum length, and a difference only in the last character.
    keys.push("k".repeat(Key::MAX_CHARS));
    keys.push("k".repeat(Key::MAX_CHARS - 1) + "l");
    keys
}

fn unusual_keys_do_not_collide(store: &dyn RecordStore) {
    let keys = unusual();
    let holder = |number: usize| named(&format!("holder {number}"));
    for (number, key) in keys.iter().enumerate() {
        assert!(!store.exists(key).unwrap(), "{key:?} exists before it is written");
        assert!(!store.is_locked(key).unwrap(), "{key:?} is locked before it is acquired");
        store
            .acquire_lock(key, one_attempt(&holder(number)))
            .unwrap_or_else(|error| panic!("{key:?}: {error}"));
        store
            .write_with(key, &number, write_by(holder(number)))
            .unwrap_or_else(|error| panic!("{key:?}: {error}"));
    }
    for (number, key) in keys.iter().enumerate() {
        assert!(store.is_lock_holder(key, &holder(number)).unwrap(), "{key:?} is locked by another holder");
        assert_eq!(result_of(store, key, &holder(number)), i64::try_from(number).ok(), "{key:?}");
    }
    let all: BTreeSet<String> = keys.iter().cloned().collect();
    assert_eq!(keys_of(store), all, "`keys` lists other keys");
    let locked = store.locks().unwrap().map(|info| info.unwrap().key().to_string()).collect::<Vec<_>>();
    assert_eq!(locked.len(), keys.len(), "`locks` lists another number of locks");
    assert_eq!(locked.into_iter().collect::<BTreeSet<_>>(), all, "`locks` lists other keys");

    // A change to one key does not affect another key.
    let (removed, kept): (Vec<_>, Vec<_>) = keys.iter().enumerate().partition(|(number, _)| number % 2 == 0);
    for (number, key) in removed {
        assert!(
            store.remove_with(key, remove_by(holder(number))).unwrap(),
            "{key:?} disappeared before it was removed"
        );
        store.release_lock(key, holder(number)).unwrap();
    }
    assert_eq!(keys_of(store), kept.iter().map(|(_, key)| (*key).clone()).collect::<BTreeSet<_>>());
    for (number, key) in kept {
        assert!(store.is_lock_holder(key, &holder(number)).unwrap(), "{key:?} lost its lock");
        assert_eq!(result_of(store, key, &holder(number)), i64::try_from(number).ok(), "{key:?}");
    }
}

fn keys_of(store: &dyn RecordStore) -> BTreeSet<String> {
    let keys: Vec<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
    let count = keys.len();
    let set: BTreeSet<_> = keys.into_iter().collect();
    assert_eq!(set.len(), count, "`keys` lists a key more than once");
    set
}

fn case_and_unicode_form_are_significant(store: &dyn RecordStore) {
    for (one, two) in [("Report", "report"), ("\u{e9}", "e\u{301}"), ("STRASSE", "Strasse")] {
        store.write(one, &1).unwrap();
        match store.read::<i64>(two) {
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::KeyMismatch => {}
            outcome => panic!("a read of {two:?} after a write of {one:?}: {outcome:?}"),
        }
        match store.write(two, &2) {
            Ok(()) => {
                assert_eq!(store.read::<i64>(two).unwrap().unwrap().result, 2);
                assert_eq!(
                    store.read::<i64>(one).unwrap().unwrap().result,
                    1,
                    "a write of {two:?} overwrote {one:?}"
                );
            }
            Err(error) if error.kind() == ErrorKind::KeyMismatch => {
                assert_eq!(
                    store.read::<i64>(one).unwrap().unwrap().result,
                    1,
                    "a refused write changed {one:?}"
                );
            }
            Err(error) => panic!("a write of {two:?} after a write of {one:?}: {error}"),
        }
    }
}

fn locks_are_independent(store: &dyn RecordStore) {
    let (me, other) = (named("me"), named("other"));
    let token = store.acquire_lock("theirs", one_attempt(&other)).unwrap();
    store.acquire_lock("mine", one_attempt(&me)).unwrap();
    store.write_with("mine", &1, write_by(&me)).unwrap();
    store.write_with("nobody's", &1, write_by(&me)).unwrap();
    assert_error(store.write_with("nobody's", &2, write_by(token)), ErrorKind::LockLost);
    assert_error(store.release_lock("nobody's", token), ErrorKind::LockLost);
    store.release_lock("mine", &me).unwrap();
    assert!(store.is_lock_holder("theirs", &other).unwrap());
    assert!(store.break_lock("theirs").unwrap());
    assert_eq!(result_of(store, "nobody's", &me), Some(1));
}
