//! Keys that look like paths, look like other files, or are too long.

use std::collections::BTreeSet;

use record_store::{Json, Key, LockToken, RemoveOptions, WriteOptions};

use super::*;

/// Keys that differ only slightly, or look like something else.
fn awkward_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        ".",
        "..",
        "...",
        "../x",
        "../../x",
        "/",
        "//",
        "/etc/passwd",
        "a/b",
        "a/../b",
        "a//b",
        "a/",
        "a",
        "a.b",
        "a.c",
        "a.",
        ".a",
        "a.json",
        "a.lock",
        "a.json.json",
        "a.lock.json",
        "a.json.lock",
        ".json",
        ".lock",
        "json",
        "lock",
        ".store",
        ".store/format.json",
        "format.json",
        "%",
        "%%",
        "%2F",
        "%2f",
        "a%2Fb",
        "%25",
        "a%00b",
        "%~",
        "a%~b",
        "\0",
        "a\0b",
        "\n",
        "\r\n",
        "\t",
        "\x1b[31m",
        "\x7f",
        " ",
        "  ",
        " a",
        "a ",
        "~",
        "*",
        "?",
        "[a]",
        "$HOME",
        "`id`",
        "'",
        "\"",
        "\\",
        "\\..\\",
        "|",
        ";",
        "&",
        "-rf",
        "--",
        "#",
        ":",
        "C:\\",
        "nul",
        "é",
        "e\u{301}",
        "ß",
        "SS",
        "İ",
        "i\u{307}",
        "\u{200b}",
        "\u{202e}abc",
        "\u{feff}",
        "\u{fffd}",
        "\u{10ffff}",
        "尺",
        "😀",
        "\u{80}",
        "\u{a0}",
    ]
    .map(str::to_owned)
    .into();
    for length in [195, 199, 200, 201, 255, 256, 9_999, 10_000] {
        keys.push("x".repeat(length));
        keys.push("/".repeat(length));
        keys.push("尺".repeat(length));
        keys.push(format!("{}y", "x".repeat(length - 1)));
    }
    keys
}

#[test]
fn awkward_keys_coexist() {
    let setup = Setup::new();
    let (store, outside) = (&setup.store, setup.outside());
    for key in awkward_keys() {
        assert!(!store.exists(&key).unwrap(), "{key:.50?}");
        assert!(store.read::<Json>(&key).unwrap().is_none(), "{key:.50?}");
        let guard = store.lock(&key, once().holder(job())).unwrap();
        guard.write(&key).unwrap();
        // Not released: all locks must coexist too.
        std::mem::forget(guard);
    }
    let expected: BTreeSet<_> = awkward_keys().into_iter().collect();
    let keys = store.keys().unwrap().map(|key| key.unwrap().as_str().to_owned()).collect();
    let locks = store.locks().unwrap().map(|info| info.unwrap().key().as_str().to_owned()).collect();
    assert_eq!((&keys, &locks), (&expected, &expected));
    for key in awkward_keys() {
        assert!(store.try_lock(&key, LockOptions::new()).unwrap().is_none(), "{key:.50?}");
        assert_eq!(
            store.read_with::<String>(&key, ReadOptions::new().claim(job())).unwrap().unwrap().result,
            key
        );
        store.release_lock(&key, job()).unwrap();
        assert_eq!(store.read::<String>(&key).unwrap().unwrap().result, key);
    }
    for (gone, key) in awkward_keys().into_iter().enumerate() {
        assert!(store.remove(&key).unwrap(), "{key:.50?}");
        if gone % 16 == 0 {
            assert_eq!(store.keys().unwrap().count(), expected.len() - gone - 1);
        }
    }
    setup.assert_outside(&outside, "afterwards");
    let left: Vec<_> =
        tree::files(store.path()).into_iter().filter(|file| !file.starts_with(".store/")).collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn an_invalid_key_is_refused_and_changes_nothing() {
    let setup = Setup::new();
    let before = tree::snapshot(setup.parent.path());
    for key in [String::new(), "x".repeat(10_001), "尺".repeat(10_001)] {
        let (store, key, token) = (&setup.store, &key, LockToken::new(1));
        let refused = [
            store.read::<Json>(key).map(drop),
            store.read_with::<Json>(key, ReadOptions::new().claim(token)).map(drop),
            store.read_with::<Json>(key, ReadOptions::new().timeout(Duration::ZERO)).map(drop),
            store.write(key, &1),
            store.write_with(key, &1, WriteOptions::new().claim(token)),
            store.remove(key).map(drop),
            store.remove_with(key, RemoveOptions::new().claim(token)).map(drop),
            store.exists(key).map(drop),
            store.acquire_lock(key, once()).map(drop),
            store.release_lock(key, token),
            store.renew(key, token, None),
            store.lock(key, once()).map(drop),
            store.try_lock(key, once()).map(drop),
            store.is_locked(key).map(drop),
            store.is_lock_holder(key, &job()).map(drop),
            store.wait_for_lock(key, WaitOptions::new()).map(drop),
            store.lock_info(key).map(drop),
            store.break_lock(key).map(drop),
            Key::new(key.as_str()).map(drop),
        ];
        for (at, result) in refused.into_iter().enumerate() {
            assert!(is_kind(&result, ErrorKind::InvalidKey), "operation {at}: {result:?}");
        }
    }
    tree::assert_unchanged(setup.parent.path(), &before, "invalid keys");
}
