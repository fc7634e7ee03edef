//! Invalid records.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use record_store::{Json, Key};

use super::*;

#[test]
fn a_corrupt_record_can_be_locked_replaced_and_removed() {
    let setup = Setup::new();
    fs::write(setup.path("k.json"), "garbage").unwrap();
    let store = &setup.store;
    assert!(store.exists("k").unwrap());
    assert_eq!(store.keys().unwrap().map(Result::unwrap).collect::<Vec<_>>(), [Key::new("k").unwrap()]);

    let guard = store.lock("k", once()).unwrap();
    assert!(is_kind(&guard.read::<Json>(), ErrorKind::CorruptRecord));
    guard.renew().unwrap();
    guard.write("replaced").unwrap();
    guard.release().unwrap();
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "replaced");

    fs::write(setup.path("k.json"), "garbage").unwrap();
    assert!(store.remove("k").unwrap());
    assert!(!store.remove("k").unwrap());
}

#[test]
fn deeply_nested_json_is_an_error_or_a_value_and_never_a_crash() {
    let setup = Setup::new();
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    fs::write(setup.path("k.json"), sound_record("k", &deep)).unwrap();
    assert!(is_kind(&setup.store.read::<Json>("k"), ErrorKind::Decode));
    assert!(is_kind(&setup.store.read::<serde_json::Value>("k"), ErrorKind::Decode));
    // In an unknown field.
    fs::write(setup.path("k.json"), format!("{{\"key\":\"k\",\"x\":{deep},\"result\":1}}")).unwrap();
    let read = setup.store.read::<u8>("k");
    assert!(matches!(read, Ok(Some(_))) || is_kind(&read, ErrorKind::CorruptRecord), "{read:?}");
}

#[test]
fn a_file_that_is_not_regular_in_place_of_a_record_is_reported() {
    for_each_not_regular("k.json", |setup, what| {
        let (store, path) = (&setup.store, setup.path("k.json"));
        store.write("other", &1).unwrap();
        assert_not_regular(store.read::<Json>("k"), &path, what);
        assert_not_regular(
            store.read_with::<Json>("k", ReadOptions::new().timeout(Duration::ZERO)),
            &path,
            what,
        );
        assert_not_regular(store.exists("k"), &path, what);
        assert_eq!(store.lock_info("k").unwrap(), None);

        let guard = store.lock("k", once()).unwrap();
        assert_not_regular(guard.read::<Json>(), &path, what);
        guard.renew().unwrap();
        guard.release().unwrap();
    });
}

#[test]
fn a_file_that_is_not_regular_is_one_error_in_a_listing() {
    for_each_not_regular("k.json", |setup, what| {
        setup.store.write("a", &1).unwrap();
        setup.store.write("z", &1).unwrap();
        let (good, mut bad): (Vec<_>, Vec<_>) = setup.store.keys().unwrap().partition(Result::is_ok);
        let mut good: Vec<_> = good.into_iter().map(|key| key.unwrap().as_str().to_owned()).collect();
        good.sort();
        assert_eq!((good, bad.len()), (vec!["a".into(), "z".into()], 1), "{what}");
        assert_not_regular(bad.remove(0), &setup.path("k.json"), what);
    });
}

#[test]
fn a_write_replaces_anything_but_a_directory() {
    for_each_not_regular("k.json", |setup, what| {
        let path = setup.path("k.json");
        if what.starts_with("a directory") {
            assert_not_regular(setup.store.write("k", &1), &path, what);
            assert!(path.is_dir());
        } else {
            setup.store.write("k", &1).unwrap();
            setup.assert_kept("k.json", what);
            assert!(fs::symlink_metadata(&path).unwrap().is_file(), "{what}");
            assert_eq!(setup.store.read::<u8>("k").unwrap().unwrap().result, 1);
        }
        setup.assert_nothing_staged();
    });
}

#[test]
fn a_removal_removes_anything_but_a_directory() {
    for_each_not_regular("k.json", |setup, what| {
        let path = setup.path("k.json");
        if what.starts_with("a directory") {
            assert_not_regular(setup.store.remove("k"), &path, what);
            assert!(path.is_dir());
        } else {
            assert!(setup.store.remove("k").unwrap(), "{what}");
            setup.assert_kept("k.json", what);
            assert!(setup.store.read::<Json>("k").unwrap().is_none());
        }
    });
}

const LIMIT: u64 = 4096;

fn over_limit(size: u64) -> String {
    format!("{size} bytes, over the limit of {LIMIT}")
}

#[test]
fn a_huge_file_is_refused_by_its_size() {
    let setup = Setup::with(relaxed().max_record_bytes(LIMIT));
    let long = "long/".repeat(100);
    for key in ["k", &long] {
        let path = setup.path(&format!("{}.json", Key::new(key).unwrap().file_stem()));
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        let read = abort_if_hung("read", || setup.store.read::<Json>(key));
        let error = assert_refused(read, ErrorKind::RecordTooLarge, &path, key);
        assert_eq!(error.detail(), Some(&*over_limit(1 << 40)));
        assert!(setup.store.exists(key).unwrap());
    }
    let (good, bad): (Vec<_>, Vec<_>) =
        abort_if_hung("keys", || setup.store.keys().unwrap().partition(Result::is_ok));
    assert_eq!((good.len(), bad.len()), (1, 1), "only a hashed name requires reading the file");

    for key in ["k", &long] {
        setup.store.write(key, &1).unwrap();
        assert_eq!(setup.store.read::<u8>(key).unwrap().unwrap().result, 1);
    }
}

#[test]
fn the_size_limit_of_writes_is_exact_to_the_byte() {
    let setup = Setup::with(relaxed().max_record_bytes(LIMIT));
    let frame = sound_record("k", "\"\"").len();
    let fits = "x".repeat(usize::try_from(LIMIT).unwrap() - frame);
    setup.store.write("k", &fits).unwrap();
    assert_eq!(setup.store.read::<String>("k").unwrap().unwrap().result, fits);
    let written = setup.store.write("k", &format!("{fits}x"));
    let error = assert_refused(written, ErrorKind::RecordTooLarge, &setup.path("k.json"), "one byte more");
    assert_eq!(error.detail(), Some(&*over_limit(LIMIT + 1)));
    assert_eq!(setup.store.read::<String>("k").unwrap().unwrap().result, fits);
    setup.assert_nothing_staged();
}

#[test]
fn foreign_files_are_ignored() {
    let setup = Setup::new();
    setup.store.write("mine", &1).unwrap();
    setup.store.acquire_lock("mine", once()).unwrap();
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
        fs::write(setup.path(foreign), "theirs").unwrap();
    }
    fs::write(setup.store.path().join(OsStr::from_bytes(b"caf\xe9.json")), "theirs").unwrap();
    let before = tree::files(setup.store.path());
    let keys: Vec<_> = setup.store.keys().unwrap().map(|key| key.unwrap().as_str().to_owned()).collect();
    let locks: Vec<_> =
        setup.store.locks().unwrap().map(|lock| lock.unwrap().key().as_str().to_owned()).collect();
    assert_eq!((keys, locks), (vec!["mine".to_owned()], vec!["mine".to_owned()]));
    relaxed().open(setup.store.path()).unwrap();
    assert_eq!(tree::files(setup.store.path()), before, "opening removes only the library's own files");
}
