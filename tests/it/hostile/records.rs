//! Record files: an error or the right value, never a wrong one.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{FileSystemRecordStore, Key, RecordStore, RecordStoreExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tempfile::TempDir;

use super::{Vandalised, cases, changed};
use crate::support::{in_memory, open};

const KEY: &str = "in\"voice é 42";

/// A record file of this size, and the result in it.
fn record_of(size: usize) -> (TempDir, FileSystemRecordStore, Vandalised, String) {
    let dir = in_memory();
    let store = open(dir.path());
    let write = |result: &str| {
        store.write(KEY, &serde_json::json!({"total": 12, "of": [1, 2.5, null], "text": result})).unwrap();
        Vandalised::new(&dir.path().join(format!("{}.json", Key::new(KEY).unwrap().file_stem())))
    };
    let bare = write("").sound.len();
    let vandalised = write(&"0aZ~".repeat(size)[..size.saturating_sub(bare)]);
    let result = store.read_json(&Key::new(KEY).unwrap(), &record_store::Claim::current(), None);
    let result = result.unwrap().unwrap().get().to_owned();
    (dir, store, vandalised, result)
}

/// Reads the record: the right result to the byte, or `None` for an error that says what is wrong.
fn right_or_none(store: &FileSystemRecordStore, right: &str, how: impl Fn() -> String) -> Option<()> {
    match store.read_json(&Key::new(KEY).unwrap(), &record_store::Claim::current(), None) {
        Ok(Some(json)) => {
            assert_eq!(json.get(), right, "{}", how());
            Some(())
        }
        Ok(None) => panic!("{}: the record is there", how()),
        Err(error) => {
            assert!(error.is_corrupt() && error.path().is_some(), "{}: {error:?}", how());
            assert_eq!(error.key().map(Key::as_str), Some(KEY), "{}: {error:?}", how());
            None
        }
    }
}

/// The checksum finds every flipped bit of the result, and all else that matters is compared. Two
/// things remain: the case of a digit of the checksum says nothing, and without its name the file
/// looks like one written by hand, which has no checksum. Its result is the right one then, because
/// the damage is elsewhere.
#[test]
fn every_flipped_bit() {
    let (_dir, store, record, right) = record_of(4096);
    assert_eq!(record.sound.len(), 4096);
    let text = String::from_utf8(record.sound.clone()).unwrap();
    let name = text.find("crc32").unwrap();
    let (name, digits) = (name..name + 5, name + 8..name + 16);
    let (mut without_name, mut flips) = (0, 0);
    record.with_each_bit_flipped(|at, bytes| {
        let how = || format!("byte {at} is {:#04x}", bytes[at]);
        if right_or_none(&store, &right, how).is_some() {
            let case = digits.contains(&at) && bytes[at].eq_ignore_ascii_case(&record.sound[at]);
            assert!(name.contains(&at) || case, "{}: not noticed", how());
            without_name += usize::from(name.contains(&at));
        }
        flips += 1;
    });
    assert_eq!(flips, 4096 * 8);
    assert!(without_name > 0, "then the checksum need not be optional");
    right_or_none(&store, &right, || "restored".into()).unwrap();
}

#[test]
fn every_truncation() {
    let (_dir, store, record, right) = record_of(4096);
    record.with_each_end(|bytes| {
        let outcome = right_or_none(&store, &right, || format!("{} bytes", bytes.len()));
        // Only the last newline may be missing.
        assert_eq!(outcome.is_some(), bytes.len() == 4095, "{} bytes", bytes.len());
    });
    record.set(&record.sound[..2000]);
    store.write(KEY, "healed").unwrap();
    assert_eq!(store.read::<String>(KEY).unwrap().unwrap().result, "healed");
}

#[test]
fn a_listing_with_a_flipped_bit() {
    let dir = in_memory();
    let store = open(dir.path());
    // Named by a hash: only what is inside tells the key.
    let key = "k".repeat(300);
    store.write(&key, "result").unwrap();
    let name = Key::new(&key).unwrap().file_stem().to_owned();
    Vandalised::new(&dir.path().join(format!("{name}.json"))).with_each_bit_flipped(|at, _| {
        let keys: Vec<_> = store.keys().unwrap().collect();
        match &keys[..] {
            [Ok(found)] => assert_eq!(found.as_str(), key),
            [Err(error)] => assert!(error.is_corrupt(), "byte {at}: {error:?}"),
            other => panic!("byte {at}: {other:?}"),
        }
    });
}

/// What a record file says, to those who read it by the description of the format.
#[derive(Deserialize)]
struct Described<'a> {
    key: String,
    #[serde(default)]
    crc32: Option<String>,
    #[serde(borrow)]
    result: &'a RawValue,
}

#[test]
fn any_bytes() {
    let (_dir, store, record, _) = record_of(200);
    let key = Key::new(KEY).unwrap();
    let outcome = TestRunner::new(cases(3_000)).run(&changed(record.sound.clone()), |bytes| {
        record.set(&bytes);
        let described = serde_json::from_slice::<Described<'_>>(&bytes).ok().filter(|record| {
            let crc32 = crc32fast::hash(record.result.get().as_bytes());
            record.key == KEY
                && record.crc32.as_ref().is_none_or(|hex| u32::from_str_radix(hex, 16) == Ok(crc32))
        });
        match store.read_json(&key, &record_store::Claim::current(), None) {
            Ok(Some(json)) => {
                let described = described.map(|record| record.result.get());
                prop_assert_eq!(Some(json.get()), described);
            }
            Ok(None) => prop_assert!(false, "the record is there"),
            Err(error) => {
                prop_assert!(error.is_corrupt(), "{error:?}");
                prop_assert!(described.is_none(), "a sound record was refused: {error:?}");
            }
        }
        // Whatever is there may be written over, and looked at.
        prop_assert!(store.exists(&key).unwrap());
        prop_assert_eq!(store.keys().unwrap().count(), 1);
        Ok(())
    });
    outcome.unwrap();
    store.write(&key, "sound").unwrap();
    assert_eq!(store.read::<String>(&key).unwrap().unwrap().result, "sound");
}
