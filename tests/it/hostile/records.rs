//! Record files: a read returns an error or the right value, never a wrong one.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{FileSystemRecordStore, Key, ReadOptions, RecordStore, RecordStoreExt};
use serde::Deserialize;
use serde_json::value::RawValue;
use tempfile::TempDir;

use super::{Tampered, cases, mutations};
use crate::support::{in_memory, open};

const KEY: &str = "in\"voice é 42";

/// A store with a record file of this size, and the JSON text of its result.
fn record_of(size: usize) -> (TempDir, FileSystemRecordStore, Tampered, String) {
    let dir = in_memory();
    let store = open(dir.path());
    let write = |result: &str| {
        store.write(KEY, &serde_json::json!({"total": 12, "of": [1, 2.5, null], "text": result})).unwrap();
        Tampered::new(&dir.path().join(format!("{}.json", Key::new(KEY).unwrap().file_stem())))
    };
    let bare = write("").original.len();
    let record = write(&"0aZ~".repeat(size)[..size.saturating_sub(bare)]);
    let result = store.read_raw(&Key::new(KEY).unwrap(), ReadOptions::new());
    let result = result.unwrap().unwrap().json.as_str().to_owned();
    (dir, store, record, result)
}

/// Reads the record. Returns `Some` for the right result, compared to the byte, and `None` for an error
/// that names the damaged file and its key.
fn check_read(store: &FileSystemRecordStore, right: &str, context: impl Fn() -> String) -> Option<()> {
    match store.read_raw(&Key::new(KEY).unwrap(), ReadOptions::new()) {
        Ok(Some(record)) => {
            assert_eq!(record.json.as_str(), right, "{}", context());
            Some(())
        }
        Ok(None) => panic!("{}: the record is there", context()),
        Err(error) => {
            assert!(error.is_corrupt() && error.path().is_some(), "{}: {error:?}", context());
            assert_eq!(error.key().map(Key::as_str), Some(KEY), "{}: {error:?}", context());
            None
        }
    }
}

/// The checksum detects every flipped bit of the result, and everything else that matters is compared.
/// Three kinds of flips are not detected. The case of a hexadecimal digit of the checksum has no meaning.
/// If the name of the checksum field changes, the file looks like a hand-written record, which has no
/// checksum. If the name or a digit of the version changes, the record has another version. The result is then
/// still the right one, because the damage is elsewhere.
#[test]
fn every_flipped_bit_is_detected_or_harmless() {
    let (_dir, store, record, right) = record_of(4096);
    assert_eq!(record.original.len(), 4096);
    let text = String::from_utf8(record.original.clone()).unwrap();
    let name = text.find("crc32").unwrap();
    let version = text.find("version").unwrap();
    let version = version..version + "version\":1795670157217280".len();
    let (name, digits) = (name..name + 5, name + 8..name + 16);
    let (mut without_name, mut flips) = (0, 0);
    record.with_each_bit_flipped(|at, bytes| {
        let context = || format!("byte {at} is {:#04x}", bytes[at]);
        if check_read(&store, &right, context).is_some() {
            let case = digits.contains(&at) && bytes[at].eq_ignore_ascii_case(&record.original[at]);
            let harmless = name.contains(&at) || version.contains(&at) || case;
            assert!(harmless, "{}: not detected", context());
            without_name += usize::from(name.contains(&at));
        }
        flips += 1;
    });
    assert_eq!(flips, 4096 * 8);
    assert!(without_name > 0, "every flip in the name of the checksum field was detected");
    check_read(&store, &right, || "restored".into()).unwrap();
}

#[test]
fn every_truncation_is_detected() {
    let (_dir, store, record, right) = record_of(4096);
    record.with_each_truncation(|bytes| {
        let outcome = check_read(&store, &right, || format!("{} bytes", bytes.len()));
        // Only the final newline may be missing.
        assert_eq!(outcome.is_some(), bytes.len() == 4095, "{} bytes", bytes.len());
    });
    record.set(&record.original[..2000]);
    store.write(KEY, "replaced").unwrap();
    assert_eq!(store.read::<String>(KEY).unwrap().unwrap().result, "replaced");
}

#[test]
fn a_flipped_bit_in_a_listing_is_detected_or_harmless() {
    let dir = in_memory();
    let store = open(dir.path());
    // The file name is a hash, so only the content of the file gives the key.
    let key = "k".repeat(300);
    store.write(&key, "result").unwrap();
    let name = Key::new(&key).unwrap().file_stem().to_owned();
    Tampered::new(&dir.path().join(format!("{name}.json"))).with_each_bit_flipped(|at, _| {
        let keys: Vec<_> = store.keys().unwrap().collect();
        match &keys[..] {
            [Ok(found)] => assert_eq!(found.as_str(), key),
            [Err(error)] => assert!(error.is_corrupt(), "byte {at}: {error:?}"),
            other => panic!("byte {at}: {other:?}"),
        }
    });
}

/// A record file, read independently of the library, as the format is documented.
#[derive(Deserialize)]
struct Documented<'a> {
    key: String,
    #[serde(default)]
    crc32: Option<String>,
    #[serde(borrow)]
    result: &'a RawValue,
}

#[test]
fn any_bytes_as_a_record_are_an_error_or_the_documented_value() {
    let (_dir, store, record, _) = record_of(200);
    let key = Key::new(KEY).unwrap();
    let outcome = TestRunner::new(cases(3_000)).run(&mutations(record.original.clone()), |bytes| {
        record.set(&bytes);
        let documented = serde_json::from_slice::<Documented<'_>>(&bytes).ok().filter(|record| {
            let crc32 = crc32fast::hash(record.result.get().as_bytes());
            record.key == KEY
                && record.crc32.as_ref().is_none_or(|hex| u32::from_str_radix(hex, 16) == Ok(crc32))
        });
        match store.read_raw(&key, ReadOptions::new()) {
            Ok(Some(read)) => {
                let documented = documented.map(|record| record.result.get());
                prop_assert_eq!(Some(read.json.as_str()), documented);
            }
            Ok(None) => prop_assert!(false, "the record is there"),
            Err(error) => {
                prop_assert!(error.is_corrupt(), "{error:?}");
                prop_assert!(documented.is_none(), "a sound record was refused: {error:?}");
            }
        }
        // The record exists and is listed, whatever the file contains.
        prop_assert!(store.exists(&key).unwrap());
        prop_assert_eq!(store.keys().unwrap().count(), 1);
        Ok(())
    });
    outcome.unwrap();
    store.write(&key, "sound").unwrap();
    assert_eq!(store.read::<String>(&key).unwrap().unwrap().result, "sound");
}
