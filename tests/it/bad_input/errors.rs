//! What errors say: operation, key and path, and the cause only where it belongs.

use std::collections::HashMap;
use std::error::Error as _;

use record_store::{Claim, Json, LockToken, OpenMode};

use super::*;

/// An error, and what its text has to contain.
type Told = (Error, Vec<String>);

/// One of each kind that a file store has, as it comes about.
fn one_of_each() -> Vec<Told> {
    let place = Place::with(relaxed().max_record_bytes(300));
    let store = &place.store;
    let key = "a\nb \"c\"";
    let shown = format!("{key:?}");
    let (record, lock) = (place.path("a%0Ab \"c\".json"), place.path("a%0Ab \"c\".lock"));
    let mut told: Vec<Told> = Vec::new();
    let mut tell = |error: Error, parts: &[&str], path: Option<&Path>| {
        let parts = parts.iter().map(|part| (*part).to_owned());
        told.push((error, parts.chain(path.map(|path| path.display().to_string())).collect()));
    };

    tell(store.read::<Json>("").unwrap_err(), &["invalid key"], None);
    tell(Holder::named("").unwrap_err(), &["invalid holder"], None);
    tell(store.write(key, &f64::NAN).unwrap_err(), &["write", &shown], None);
    tell(store.write(key, &"x".repeat(300)).unwrap_err(), &["write", &shown, "300"], Some(&record));
    tell(store.release_lock(key, Claim::current()).unwrap_err(), &["release_lock", &shown], Some(&lock));
    tell(store.renew(key, LockToken::new(77), None).unwrap_err(), &["renew", &shown, "77"], Some(&lock));
    store.write(key, "text").unwrap();
    tell(store.read::<u8>(key).unwrap_err(), &["read", &shown], None);

    store.acquire_lock(key, &once().holder(job())).unwrap();
    tell(store.write(key, &1).unwrap_err(), &["write", &shown, "\"job\""], Some(&lock));
    tell(store.acquire_lock(key, &once()).unwrap_err(), &["acquire_lock", &shown, "\"job\""], Some(&lock));
    tell(
        store.release_lock(key, Claim::current()).unwrap_err(),
        &["release_lock", &shown, "\"job\""],
        Some(&lock),
    );
    fs::write(&lock, "{\"key\":").unwrap();
    tell(store.lock_info(key).unwrap_err(), &["lock_info", &shown], Some(&lock));
    store.break_lock(key).unwrap();

    fs::write(&record, "{\"key\":").unwrap();
    tell(store.read::<Json>(key).unwrap_err(), &["read", &shown], Some(&record));
    fs::write(&record, sound_record(key, "12").replace("12", "13")).unwrap();
    tell(store.read::<Json>(key).unwrap_err(), &["read", &shown, "checksum"], Some(&record));
    fs::write(&record, sound_record("else", "12")).unwrap();
    tell(store.read::<Json>(key).unwrap_err(), &["read", &shown, "\"else\""], Some(&record));
    clear(&record);
    fs::create_dir(&record).unwrap();
    tell(store.read::<Json>(key).unwrap_err(), &["read", &shown, "a directory"], Some(&record));
    tell(store.write(key, &1).unwrap_err(), &["write", &shown, "rename"], Some(&record));

    let reader = relaxed().mode(OpenMode::ReadOnly).open(store.path()).unwrap();
    tell(reader.write(key, &1).unwrap_err(), &["write", &shown, "read-only"], Some(store.path()));
    let empty = place.parent.path().join("elsewhere");
    let open = |path: &Path| relaxed().mode(OpenMode::Existing).open(path).map(drop).unwrap_err();
    tell(open(&empty), &["open"], Some(&empty));
    let format = place.path(".store/format.json");
    fs::write(&format, "{\"version\":9}").unwrap();
    tell(open(store.path()), &["open", "9"], Some(&format));
    fs::write(&format, "{\"version\":").unwrap();
    tell(open(store.path()), &["open"], Some(&format));
    told
}

#[test]
fn every_error_names_operation_key_and_path_and_leaves_the_cause_to_source() {
    for (error, parts) in one_of_each() {
        let text = error.to_string();
        println!("{text}");
        for part in parts {
            assert!(text.contains(&part), "no {part} in: {text}");
        }
        assert!(!text.contains('\n'), "{text}");
        assert!(!text.ends_with('.') && !text.contains("  "), "{text}");
        let mut cause = error.source();
        while let Some(inner) = cause {
            println!("    because {inner}");
            assert!(!text.contains(&inner.to_string()), "repeated: {text}");
            cause = inner.source();
        }
        let with_cause = matches!(error, Error::Io { .. } | Error::Encode { .. } | Error::Decode { .. });
        assert!(!with_cause || error.source().is_some(), "{error:?}");
    }
}

#[test]
fn every_kind_is_there() {
    let kinds: std::collections::BTreeSet<String> = one_of_each()
        .iter()
        .map(|(error, _)| format!("{error:?}").split([' ', '{']).next().unwrap().to_owned())
        .collect();
    // Beside these there are two that need a file system without `flock`, or another store.
    assert_eq!(kinds.len(), 19, "{kinds:#?}");
}

#[derive(serde::Serialize)]
struct Reading {
    value: Option<f64>,
}

#[test]
fn what_json_cannot_hold_is_refused_and_changes_nothing() {
    let place = Place::new();
    place.store.write("k", "old").unwrap();
    let before = tree::snapshot(place.parent.path());
    let pairs = HashMap::from([((1, 2), "a pair is no key")]);
    let refused = [
        place.store.write("k", &f64::NAN),
        place.store.write("k", &f32::INFINITY),
        place.store.write("k", &[1.0, f64::NEG_INFINITY]),
        place.store.write("k", &Reading { value: Some(f64::NAN) }),
        place.store.write("k", &vec![HashMap::from([("deep", (0, Some(f64::NAN)))])]),
        place.store.write("k", &pairs),
    ];
    for (at, result) in refused.into_iter().enumerate() {
        assert!(matches!(result, Err(Error::Encode { .. })), "value {at}: {result:?}");
    }
    tree::assert_unchanged(place.parent.path(), &before, "refused values");
    assert_eq!(place.store.read::<String>("k").unwrap().unwrap().result, "old");
}

#[test]
fn a_result_of_another_type_is_a_decode_error_and_stays() {
    let place = Place::new();
    place.store.write("k", &300).unwrap();
    assert!(matches!(place.store.read::<u8>("k"), Err(Error::Decode { .. })));
    assert!(matches!(place.store.read::<String>("k"), Err(Error::Decode { .. })));
    let guard = place.store.lock("k", once()).unwrap();
    assert!(matches!(guard.read::<Vec<u8>>(), Err(Error::Decode { .. })));
    drop(guard);
    assert_eq!(place.store.read::<u16>("k").unwrap().unwrap().result, 300);
}
