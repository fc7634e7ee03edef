//! Arbitrary bytes as file names: each name belongs to exactly one key or to none.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{Durability, Key, RecordStoreExt};

use super::{cases, mutations};
use crate::support::{in_memory, open_with};

/// Ordinary keys, unusual keys, and keys around the length at which file names become hashes.
fn any_key() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9_.-]{1,40}",
        "[\\x00-\\x7f]{1,80}",
        "[%/.~\\x00é尺a]{60,260}",
        any::<String>().prop_filter("empty", |key| !key.is_empty()),
    ]
}

/// A file name without its suffix: arbitrary bytes, text that resembles an escape, or the mutated name of
/// a key.
fn any_stem() -> impl Strategy<Value = Vec<u8>> {
    let near = any_key().prop_flat_map(|key| {
        let stem = Key::new(key).unwrap().file_stem().as_bytes().to_vec();
        prop_oneof![Just(stem.clone()), mutations(stem)]
    });
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        "[%a-f0-9A-F.~é\\x01 k]{1,40}".prop_map(String::into_bytes),
        near,
    ]
    .prop_map(|mut stem| {
        stem.retain(|byte| !matches!(byte, 0 | b'/'));
        stem.truncate(240);
        stem
    })
}

/// The key of a stem that is not a hash, decoded as the format is documented.
fn documented_key(stem: &[u8]) -> Option<Key> {
    let mut bytes = Vec::new();
    let mut rest = stem;
    while let [byte, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(escaped) if *byte == b'%' => {
                bytes.push(escaped);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    let key = Key::new(String::from_utf8(bytes).ok()?).ok()?;
    (key.file_stem().as_bytes() == stem).then_some(key)
}

#[test]
fn any_name_in_the_directory_is_one_key_or_none() {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    store.write("mine", &1).unwrap();
    let path_of = |stem: &[u8], suffix: &str| -> PathBuf {
        dir.path().join(OsStr::from_bytes(&[stem, suffix.as_bytes()].concat()))
    };
    let outcome = TestRunner::new(cases(1_500)).run(&any_stem(), |stem| {
        prop_assume!(stem != b"mine");
        let paths = [path_of(&stem, ".json"), path_of(&stem, ".lock")];
        for path in &paths {
            std::fs::write(path, "theirs").unwrap();
        }
        let (mut found, mut unknown) = (Vec::new(), 0);
        for key in store.keys().unwrap() {
            match key {
                Ok(key) if key.as_str() == "mine" => {}
                Ok(key) => found.push(key),
                Err(error) => {
                    // The name is a hash, and the file contains no key.
                    prop_assert!(error.is_corrupt() && error.path() == Some(&paths[0]), "{error:?}");
                    unknown += 1;
                }
            }
        }
        prop_assert!(unknown == 0 || String::from_utf8_lossy(&stem).contains("%~"));
        prop_assert_eq!(found, documented_key(&stem).into_iter().collect::<Vec<_>>());
        for lock in store.locks().unwrap() {
            let error = lock.expect_err("nothing is locked");
            prop_assert_eq!(error.path(), Some(&*paths[1]));
        }
        // Files that are not understood belong to others and stay.
        store.sweep().unwrap();
        for path in &paths {
            prop_assert_eq!(std::fs::read_to_string(path).unwrap(), "theirs");
            std::fs::remove_file(path).unwrap();
        }
        Ok(())
    });
    outcome.unwrap();
    assert_eq!(store.read::<u8>("mine").unwrap().unwrap().result, 1);
}

#[test]
fn any_keys_coexist() {
    let keys = proptest::collection::btree_set(any_key(), 1..8);
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    let outcome = TestRunner::new(cases(300)).run(&keys, |keys| {
        for key in &keys {
            store.write(key, key).unwrap();
        }
        let listed: BTreeSet<_> = store.keys().unwrap().map(|key| key.unwrap().as_str().to_owned()).collect();
        prop_assert_eq!(&listed, &keys);
        for key in &keys {
            prop_assert_eq!(&store.read::<String>(key).unwrap().unwrap().result, key);
            let file = dir.path().join(format!("{}.json", Key::new(key).unwrap().file_stem()));
            prop_assert!(file.is_file(), "{}", file.display());
            prop_assert!(store.remove(key).unwrap());
        }
        prop_assert_eq!(store.keys().unwrap().count(), 0);
        Ok(())
    });
    outcome.unwrap();
}
