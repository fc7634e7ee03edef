//! Records that are none.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use record_store::{Json, Key};

use super::*;

#[test]
fn a_corrupt_record_stops_nobody() {
    let place = Place::new();
    fs::write(place.path("k.json"), "garbage").unwrap();
    let store = &place.store;
    assert!(store.exists("k").unwrap());
    assert_eq!(store.keys().unwrap().map(Result::unwrap).collect::<Vec<_>>(), [Key::new("k").unwrap()]);

    let guard = store.lock("k", once()).unwrap();
    assert!(matches!(guard.read::<Json>(), Err(Error::CorruptRecord { .. })));
    guard.renew().unwrap();
    guard.write("healed").unwrap();
    guard.release().unwrap();
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "healed");

    fs::write(place.path("k.json"), "garbage").unwrap();
    assert!(store.remove("k").unwrap());
    assert!(!store.remove("k").unwrap());
}

#[test]
fn deep_and_strange_json_is_an_error_or_a_value_but_no_crash() {
    let place = Place::new();
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    fs::write(place.path("k.json"), sound_record("k", &deep)).unwrap();
    assert_eq!(place.store.read::<Json>("k").unwrap().unwrap().result.get(), deep);
    let error = place.store.read::<serde_json::Value>("k").unwrap_err();
    assert!(matches!(error, Error::Decode { .. }), "{error:?}");
    // In a field that nobody asked for.
    fs::write(place.path("k.json"), format!("{{\"key\":\"k\",\"x\":{deep},\"result\":1}}")).unwrap();
    assert!(matches!(place.store.read::<u8>("k"), Ok(Some(_)) | Err(Error::CorruptRecord { .. })));
}

#[test]
fn something_irregular_in_the_place_of_a_record() {
    for_each_irregular("k.json", |place, what| {
        let (store, path) = (&place.store, place.path("k.json"));
        store.write("other", &1).unwrap();
        assert_irregular(store.read::<Json>("k"), &path, what);
        assert_irregular(store.try_read::<Json>("k", Duration::ZERO), &path, what);
        assert_irregular(store.exists("k"), &path, what);
        assert_eq!(store.lock_info("k").unwrap(), None);

        let guard = store.lock("k", once()).unwrap();
        assert_irregular(guard.read::<Json>(), &path, what);
        guard.renew().unwrap();
        guard.release().unwrap();
    });
}

#[test]
fn something_irregular_is_one_bad_item_of_a_listing() {
    for_each_irregular("k.json", |place, what| {
        place.store.write("a", &1).unwrap();
        place.store.write("z", &1).unwrap();
        let (good, mut bad): (Vec<_>, Vec<_>) = place.store.keys().unwrap().partition(Result::is_ok);
        let mut good: Vec<_> = good.into_iter().map(|key| key.unwrap().as_str().to_owned()).collect();
        good.sort();
        assert_eq!((good, bad.len()), (vec!["a".into(), "z".into()], 1), "{what}");
        assert_irregular(bad.remove(0), &place.path("k.json"), what);
    });
}

#[test]
fn a_write_replaces_what_is_no_directory() {
    for_each_irregular("k.json", |place, what| {
        let path = place.path("k.json");
        if what.starts_with("a directory") {
            assert_io(place.store.write("k", &1), &path, what);
            assert!(path.is_dir());
        } else {
            place.store.write("k", &1).unwrap();
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{what}");
            assert_eq!(place.store.read::<u8>("k").unwrap().unwrap().result, 1);
        }
        place.assert_nothing_staged();
    });
}

#[test]
fn a_removal_removes_what_is_no_directory() {
    for_each_irregular("k.json", |place, what| {
        let path = place.path("k.json");
        if what.starts_with("a directory") {
            assert_io(place.store.remove("k"), &path, what);
            assert!(path.is_dir());
        } else {
            assert!(place.store.remove("k").unwrap(), "{what}");
            assert!(place.store.read::<Json>("k").unwrap().is_none());
        }
    });
}

const LIMIT: u64 = 4096;

#[test]
fn a_huge_file_is_refused_by_its_size() {
    let place = Place::with(relaxed().max_record_bytes(LIMIT));
    let long = "long/".repeat(100);
    for key in ["k", &long] {
        let path = place.path(&format!("{}.json", Key::new(key).unwrap().file_stem()));
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        match soon("read", || place.store.read::<Json>(key)) {
            Err(Error::RecordTooLarge { size, limit, path: Some(at), .. }) => {
                assert_eq!((size, limit, at), (1 << 40, LIMIT, path));
            }
            other => panic!("{other:?}"),
        }
        assert!(place.store.exists(key).unwrap());
    }
    let (good, bad): (Vec<_>, Vec<_>) = soon("keys", || place.store.keys().unwrap().partition(Result::is_ok));
    assert_eq!((good.len(), bad.len()), (1, 1), "the hashed name is the one that needs a look inside");

    for key in ["k", &long] {
        place.store.write(key, &1).unwrap();
        assert_eq!(place.store.read::<u8>(key).unwrap().unwrap().result, 1);
    }
}

#[test]
fn the_limit_holds_for_writes_to_the_byte() {
    let place = Place::with(relaxed().max_record_bytes(LIMIT));
    let frame = sound_record("k", "\"\"").len();
    let fits = "x".repeat(usize::try_from(LIMIT).unwrap() - frame);
    place.store.write("k", &fits).unwrap();
    assert_eq!(place.store.read::<String>("k").unwrap().unwrap().result, fits);
    match place.store.write("k", &format!("{fits}x")) {
        Err(Error::RecordTooLarge { size, .. }) => assert_eq!(size, LIMIT + 1),
        other => panic!("{other:?}"),
    }
    assert_eq!(place.store.read::<String>("k").unwrap().unwrap().result, fits);
    place.assert_nothing_staged();
}

#[test]
fn foreign_files_are_ignored() {
    let place = Place::new();
    place.store.write("mine", &1).unwrap();
    place.store.acquire_lock("mine", &once()).unwrap();
    for foreign in [
        "README",
        "notes.txt",
        "a%2fb.json",
        "%zz.json",
        ".hidden.json",
        "%41.lock",
        ".json",
        ".lock",
        "json",
    ] {
        fs::write(place.path(foreign), "theirs").unwrap();
    }
    fs::write(place.store.path().join(OsStr::from_bytes(b"caf\xe9.json")), "theirs").unwrap();
    let before = tree::files(place.store.path());
    let keys: Vec<_> = place.store.keys().unwrap().map(|key| key.unwrap().as_str().to_owned()).collect();
    let locks: Vec<_> =
        place.store.locks().unwrap().map(|lock| lock.unwrap().key().as_str().to_owned()).collect();
    assert_eq!((keys, locks), (vec!["mine".to_owned()], vec!["mine".to_owned()]));
    relaxed().open(place.store.path()).unwrap();
    assert_eq!(tree::files(place.store.path()), before, "opening sweeps only what is its own");
}
