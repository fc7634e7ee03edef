//! Error texts: they name operation, key and path, and leave the cause to `source`.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;

use record_store::{Claim, Json, LockToken, OpenMode};

use super::*;

/// An error, and the parts that its text must contain.
type Sample = (Error, Vec<String>);

/// At least one error of each kind that a file store can return, each from a real operation.
fn samples() -> Vec<Sample> {
    let setup = Setup::with(relaxed().max_record_bytes(300));
    let store = &setup.store;
    let key = "a\nb \"c\"";
    let shown = format!("{key:?}");
    let (record, lock) = (setup.path("a%0Ab \"c\".json"), setup.path("a%0Ab \"c\".lock"));
    let mut samples: Vec<Sample> = Vec::new();
    let mut add = |error: Error, parts: &[&str], path: Option<&Path>| {
        let parts = parts.iter().map(|part| (*part).to_owned());
        samples.push((error, parts.chain(path.map(|path| path.display().to_string())).collect()));
    };

    add(store.read::<Json>("").unwrap_err(), &["invalid key"], None);
    add(Holder::named("").unwrap_err(), &["invalid holder"], None);
    add(store.write(key, &f64::NAN).unwrap_err(), &["write", &shown], None);
    add(store.write(key, &"x".repeat(300)).unwrap_err(), &["write", &shown, "300"], Some(&record));
    add(store.release_lock(key, Claim::current()).unwrap_err(), &["release_lock", &shown], Some(&lock));
    add(store.renew(key, LockToken::new(77), None).unwrap_err(), &["renew", &shown, "77"], Some(&lock));
    store.write(key, "text").unwrap();
    add(store.read::<u8>(key).unwrap_err(), &["read", &shown], None);

    store.acquire_lock(key, once().holder(job())).unwrap();
    add(store.write(key, &1).unwrap_err(), &["write", &shown, "\"job\""], Some(&lock));
    add(store.acquire_lock(key, once()).unwrap_err(), &["acquire_lock", &shown, "\"job\""], Some(&lock));
    add(
        store.release_lock(key, Claim::current()).unwrap_err(),
        &["release_lock", &shown, "\"job\""],
        Some(&lock),
    );
    fs::write(&lock, "{\"key\":").unwrap();
    add(store.lock_info(key).unwrap_err(), &["lock_info", &shown], Some(&lock));
    store.break_lock(key).unwrap();

    fs::write(&record, "{\"key\":").unwrap();
    add(store.read::<Json>(key).unwrap_err(), &["read", &shown], Some(&record));
    fs::write(&record, sound_record(key, "12").replace("12", "13")).unwrap();
    add(store.read::<Json>(key).unwrap_err(), &["read", &shown, "checksum"], Some(&record));
    fs::write(&record, sound_record("else", "12")).unwrap();
    add(store.read::<Json>(key).unwrap_err(), &["read", &shown, "\"else\""], Some(&record));
    clear(&record);
    fs::create_dir(&record).unwrap();
    add(store.read::<Json>(key).unwrap_err(), &["read", &shown, "a directory"], Some(&record));
    add(store.write(key, &1).unwrap_err(), &["write", &shown, "a directory"], Some(&record));

    let reader = relaxed().mode(OpenMode::ReadOnly).open(store.path()).unwrap();
    add(reader.write(key, &1).unwrap_err(), &["write", &shown, "read-only"], Some(store.path()));
    let empty = setup.parent.path().join("elsewhere");
    let open = |path: &Path| relaxed().mode(OpenMode::Existing).open(path).map(drop).unwrap_err();
    add(open(&empty), &["open"], Some(&empty));
    let format = setup.path(".store/format.json");
    fs::write(&format, "{\"version\":9}").unwrap();
    add(open(store.path()), &["open", "9"], Some(&format));
    fs::write(&format, "{\"version\":").unwrap();
    add(open(store.path()), &["open"], Some(&format));

    let create = |path: &Path| relaxed().open(path).map(drop).unwrap_err();
    let long = setup.parent.path().join("x".repeat(300));
    add(create(&long), &["open", "directory"], Some(&long));
    add(create(setup.parent.path()), &["open", "not empty", "Adopt"], Some(setup.parent.path()));
    let (owners, latches) = (setup.path(".store/owners"), setup.path(".store/latches"));
    fs::remove_file(&format).unwrap();
    add(store.read::<Json>("gone").unwrap_err(), &["read", "\"gone\"", "removed"], Some(store.path()));
    fs::remove_dir_all(owners).unwrap();
    fs::remove_dir_all(latches).unwrap();
    add(
        store.acquire_lock(key, once()).unwrap_err(),
        &["acquire_lock", &shown, "removed"],
        Some(store.path()),
    );
    samples
}

#[test]
fn every_error_names_operation_key_and_path_and_leaves_the_cause_to_source() {
    for (error, parts) in samples() {
        let text = error.to_string();
        println!("{text}");
        for part in parts {
            assert!(text.contains(&part), "no {part} in: {text}");
        }
        assert!(!text.contains('\n'), "{text}");
        assert!(!text.ends_with('.') && !text.contains("  "), "{text}");
        assert!(error.hint().is_none_or(|hint| text.ends_with(&format!("; {hint}"))), "{text}");
        let mut cause = error.source();
        while let Some(inner) = cause {
            println!("    caused by: {inner}");
            assert!(!text.contains(&inner.to_string()), "repeated: {text}");
            cause = inner.source();
        }
        let with_cause = matches!(error.kind(), ErrorKind::Io | ErrorKind::Encode | ErrorKind::Decode);
        assert!(!with_cause || error.source().is_some(), "{error:?}");
    }
}

#[test]
fn every_kind_of_error_has_a_sample() {
    let kinds: HashSet<ErrorKind> = samples().iter().map(|(error, _)| error.kind()).collect();
    // Two more kinds need a file system without `flock`, or another implementation of a store.
    assert_eq!(kinds.len(), 20, "{kinds:#?}");
}

#[derive(serde::Serialize)]
struct Reading {
    value: Option<f64>,
}

#[test]
fn values_that_json_cannot_represent_are_refused_and_change_nothing() {
    let setup = Setup::new();
    setup.store.write("k", "old").unwrap();
    let before = tree::snapshot(setup.parent.path());
    let pairs = HashMap::from([((1, 2), "a pair cannot be a key")]);
    let refused = [
        setup.store.write("k", &f64::NAN),
        setup.store.write("k", &f32::INFINITY),
        setup.store.write("k", &[1.0, f64::NEG_INFINITY]),
        setup.store.write("k", &Reading { value: Some(f64::NAN) }),
        setup.store.write("k", &vec![HashMap::from([("deep", (0, Some(f64::NAN)))])]),
        setup.store.write("k", &pairs),
    ];
    for (at, result) in refused.into_iter().enumerate() {
        assert!(is_kind(&result, ErrorKind::Encode), "value {at}: {result:?}");
    }
    tree::assert_unchanged(setup.parent.path(), &before, "refused values");
    assert_eq!(setup.store.read::<String>("k").unwrap().unwrap().result, "old");
}

#[test]
fn a_result_of_another_type_is_a_decode_error_and_stays_intact() {
    let setup = Setup::new();
    setup.store.write("k", &300).unwrap();
    assert!(is_kind(&setup.store.read::<u8>("k"), ErrorKind::Decode));
    assert!(is_kind(&setup.store.read::<String>("k"), ErrorKind::Decode));
    let guard = setup.store.lock("k", once()).unwrap();
    assert!(is_kind(&guard.read::<Vec<u8>>(), ErrorKind::Decode));
    drop(guard);
    assert_eq!(setup.store.read::<u16>("k").unwrap().unwrap().result, 300);
}
