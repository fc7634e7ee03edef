//! Every version reads the files of earlier versions, to the byte: all files in `fixtures/`.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use record_store::{
    Error, ErrorKind, FileSystemOptions, FileSystemRecordStore, Finding, Holder, Json, Key, LockOptions,
    LockState, LockToken, OpenMode, ReadOptions, RecordStoreExt, RecordVersion, WaitOptions, WriteOptions,
};

use crate::tree;
use crate::watchdog::abort_if_hung;

const FORMAT_FILE: &str = ".store/format.json";
const EXPIRING: &str = ".store/expiring";

/// The first token in the fixtures; the other tokens follow it. It is also the time at which all locks
/// were acquired, in microseconds.
const FIRST_TOKEN: u64 = 1_715_938_200_000_000;

/// The first version in the fixtures.
const FIRST_VERSION: u64 = 1_795_670_157_217_280;

/// A format version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    V1,
    V2,
}

use Format::{V1, V2};

const FORMATS: [Format; 2] = [V1, V2];

fn fixture(format: Format, name: &str) -> PathBuf {
    let folder = if format == V1 { "v1" } else { "v2" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder).join(name)
}

/// Runs `check` on the fixture itself, opened read-only, and on a writable copy.
fn check_both(format: Format, name: &str, check: impl Fn(&FileSystemRecordStore)) {
    let fixture = fixture(format, name);
    let before = tree::snapshot(&fixture);
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&fixture).unwrap();
    abort_if_hung("checks of a reader", || check(&reader));
    tree::assert_unchanged(&fixture, &before, "reading changed the fixture");

    let (_dir, store) = copy_of(format, name);
    abort_if_hung("checks of a copy", || check(&store));
}

/// A writable copy. One of version 1 is upgraded when it is opened.
fn copy_of(format: Format, name: &str) -> (tempfile::TempDir, FileSystemRecordStore) {
    let dir = tempfile::tempdir().unwrap();
    tree::copy(&fixture(format, name), dir.path());
    let store = FileSystemOptions::new().mode(OpenMode::Existing).open(dir.path()).unwrap();
    (dir, store)
}

/// The name of each file, its key, and the exact text of its result.
fn records(format: Format) -> Vec<(String, String, &'static str)> {
    let spaced = "{\n    \"of\": [ 1,\t2 ],\n    \"spaces\": true\n  }";
    let exact = r#"[null,true,-0.0,1.50,1e400,123456789012345678901234567890,"\u00e9\ud83d\ude00\u0000",{"a":{},"a b":[]}]"#;
    let invoice = r#"{"lines":[{"price":3.5,"text":"tea"}],"paid":false,"total":12}"#;
    let rows = [
        ("invoice-42", "invoice-42", invoice),
        // Keys of every kind. The result of each is the key itself.
        ("a.b", "a.b", r#""a.b""#),
        ("a.c", "a.c", r#""a.c""#),
        ("%2E.%2Fx", "../x", r#""../x""#),
        ("%2E.", "..", r#""..""#),
        ("%2Ehidden", ".hidden", r#"".hidden""#),
        ("a%2Fb", "a/b", r#""a/b""#),
        ("a%00b%0A%7F", "a\0b\n\x7f", "\"a\\u0000b\\n\x7f\""),
        ("100%25", "100%", r#""100%""#),
        ("größe 尺", "größe 尺", r#""größe 尺""#),
        (" spaces and 'quotes' ", " spaces and 'quotes' ", r#"" spaces and 'quotes' ""#),
        ("x.lock", "x.lock", r#""x.lock""#),
        ("x.json", "x.json", r#""x.json""#),
        // Results of every kind.
        ("null", "null", "null"),
        ("exact-json", "exact-json", exact),
        // Not written by the library.
        ("by-hand", "by-hand", r#"["written", "in", "an", "editor"]"#),
        ("more-fields", "more-fields", r#"{"kept":true}"#),
        ("spaced", "spaced", spaced),
        // Beside locks that are not live.
        ("expired", "expired", "2"),
        ("abandoned", "abandoned", "3"),
        ("unfinished", "unfinished", "4"),
        ("zeroed", "zeroed", "5"),
    ];
    let new = [
        ("by-hand-version", "by-hand-version", r#""a version of the writer's own""#),
        ("of-version-1", "of-version-1", r#""written by version 1""#),
        ("of-version-1-first", "of-version-1-first", r#""written before there were versions""#),
        ("torn-first", "torn-first", "6"),
        ("torn-last", "torn-last", "7"),
    ];
    let mut records: Vec<_> =
        rows.map(|(stem, key, json)| (format!("{stem}.json"), key.to_owned(), json)).into();
    if format == V2 {
        records.extend(new.map(|(stem, key, json)| (format!("{stem}.json"), key.to_owned(), json)));
    }
    records.push((report_name(), "report/".repeat(100), r#""hashed""#));
    records.push((
        format!("{}%~925f7d1a6a94bfaa7e6779313135d6980efe33069dd9e7ad4269b254d9452703.json", "尺".repeat(44)),
        "尺".repeat(10_000),
        r#""the longest key""#,
    ));
    records
}

fn report_name() -> String {
    let hash = "aab1dcde9460ec8cd68589102845be3e733250ce05981f313d032f2785299cc2";
    format!("{}report%~{hash}.json", "report%2F".repeat(14))
}

struct Locked {
    file: String,
    key: String,
    token: u64,
    state: LockState,
    bound: bool,
    /// Seconds after `acquired_at`.
    expires: Option<u64>,
}

fn locks() -> Vec<Locked> {
    const YEAR_2977: u64 = 31_778_697_600 - FIRST_TOKEN / 1_000_000;
    let hash = "efdb7a05fbbadfdb19cc9f6cb141f6a8966356e7728323fb11dad3dcf3e4e64d";
    let hashed = format!("{}locked%~{hash}", "locked%2F".repeat(14));
    let row = |stem: &str, key: &str, number, state, expires| Locked {
        file: format!("{stem}.lock"),
        key: key.to_owned(),
        token: FIRST_TOKEN + number,
        state,
        bound: key == "abandoned",
        expires,
    };
    vec![
        row("%2E.%2Flocked", "../locked", 0, LockState::Held, None),
        row("abandoned", "abandoned", 1, LockState::Abandoned, None),
        row("expired", "expired", 2, LockState::Expired, Some(30)),
        row("held", "held", 3, LockState::Held, None),
        row("leased", "leased", 4, LockState::Held, Some(YEAR_2977)),
        row("lock-of-later-version", "lock-of-later-version", 3, LockState::Held, None),
        row(&hashed, &"locked/".repeat(100), 5, LockState::Held, None),
    ]
}

/// Lock files that are no locks: their creator died, or the power failed, before all of them was written.
fn unfinished(format: Format) -> &'static [&'static str] {
    const ALL: [&str; 4] = ["unfinished.lock", "zeroed.lock", "torn-first.lock", "torn-last.lock"];
    if format == V1 { &ALL[..2] } else { &ALL }
}

fn job() -> Holder {
    Holder::named("nightly-report").unwrap()
}

#[test]
fn every_sound_record_reads_back_to_the_byte() {
    for format in FORMATS {
        check_both(format, "sound", |store| read_back(store, format));
    }
}

fn read_back(store: &FileSystemRecordStore, format: Format) {
    for (file, key, json) in records(format) {
        assert_eq!(format!("{}.json", Key::new(&*key).unwrap().file_stem()), file);
        assert!(store.exists(&key).unwrap(), "{file}");
        let record =
            store.read_with::<Json>(&key, ReadOptions::new().timeout(Duration::ZERO)).unwrap().expect(&file);
        assert_eq!((record.key.as_str(), record.result.as_str()), (&*key, json), "{file}");
        // In files of version 2, and of the last programs that wrote version 1.
        let has_version = format == V2 && !key.starts_with("by-hand") && key != "of-version-1-first";
        let version = record.version.number().unwrap();
        assert_eq!((FIRST_VERSION..FIRST_VERSION + 100).contains(&version), has_version, "{file}");
    }
}

#[test]
fn every_sound_record_is_listed() {
    for format in FORMATS {
        check_both(format, "sound", |store| {
            let listed: BTreeSet<String> =
                store.keys().unwrap().map(|key| key.unwrap().as_str().to_owned()).collect();
            let expected = records(format).into_iter().map(|(_, key, _)| key).chain(["held".to_owned()]);
            assert_eq!(listed, expected.collect());
            let is_damage = |finding: &Finding| finding.problem.is_damage();
            assert_eq!(store.verify().map(Result::unwrap).filter(is_damage).count(), 0);
        });
    }
}

#[test]
fn records_expire_at_the_time_in_their_file() {
    let large = format!("\"{}\"", "large ".repeat(900));
    for (format, ended, lives) in [
        (V1, &["ended"][..], &[("lives", "\"still here\"")][..]),
        (
            V2,
            &["ended", "ended-large", "ended-of-version-1"],
            &[("lives", "\"still here\""), ("lives-large", &*large)],
        ),
    ] {
        check_both(format, "expiring", |store| {
            let read = |key: &str| store.read_with::<Json>(key, ReadOptions::new().timeout(Duration::ZERO));
            for key in ended {
                assert!(read(key).unwrap().is_none(), "{key}");
                assert!(!store.exists(*key).unwrap(), "{key}");
            }
            for (key, result) in lives {
                assert_eq!(read(key).unwrap().expect("it has not expired").result.as_str(), *result);
                assert!(store.exists(*key).unwrap(), "{key}");
            }
            let listed: BTreeSet<_> = store.keys().unwrap().map(|key| key.unwrap().to_string()).collect();
            assert_eq!(listed, lives.iter().map(|(key, _)| (*key).to_owned()).collect());
        });
        let (dir, store) = copy_of(format, "expiring");
        assert_eq!(store.sweep().unwrap().records, ended.len() as u64);
        assert!(lives.iter().all(|(key, _)| dir.path().join(format!("{key}.json")).exists()));
        assert!(ended.iter().all(|key| !dir.path().join(format!("{key}.json")).exists()));
    }
}

#[test]
fn a_version_is_read_from_its_file() {
    let of_42 = RecordVersion::new(FIRST_VERSION + 14);
    for (format, name, version) in
        [(V1, "versioned", RecordVersion::new(FIRST_VERSION)), (V2, "sound", of_42)]
    {
        check_both(format, name, |store| {
            assert_eq!(store.read::<Json>("invoice-42").unwrap().unwrap().version, version);
        });
        let (_dir, store) = copy_of(format, name);
        assert!(store.write_if_version("invoice-42", version, "next", WriteOptions::new()).unwrap());
        assert!(store.read::<String>("invoice-42").unwrap().unwrap().version.number() > version.number());
        assert!(!store.write_if_version("invoice-42", version, "late", WriteOptions::new()).unwrap());
    }
    let (_dir, store) = copy_of(V1, "versioned");
    assert_eq!(store.read::<Json>("invoice-42").unwrap().unwrap().result.as_str(), "{\"total\":12}");
}

#[test]
fn every_sound_lock_is_understood() {
    for format in FORMATS {
        check_both(format, "sound", understand_locks);
    }
}

fn understand_locks(store: &FileSystemRecordStore) {
    let mut listed: Vec<_> = store.locks().unwrap().map(Result::unwrap).collect();
    for expected in locks() {
        let file = &expected.file;
        let at = listed.iter().position(|info| info.key().as_str() == expected.key).expect(file);
        let info = listed.swap_remove(at);
        assert_eq!((info.state(), info.token().get()), (expected.state, expected.token), "{file}");
        assert_eq!(info.holder().is_process_bound(), expected.bound, "{file}");
        let holder = if expected.bound { "build-host:4242:4242:main" } else { "nightly-report" };
        assert_eq!(info.holder().name(), holder, "{file}");
        assert_eq!(info.owner_alive(), Some(false), "{file}");
        let acquired = SystemTime::UNIX_EPOCH + Duration::from_micros(FIRST_TOKEN);
        assert_eq!(info.acquired_at(), acquired, "{file}");
        let expires = expected.expires.map(|seconds| acquired + Duration::from_secs(seconds));
        assert_eq!(info.expires_at(), expires, "{file}");
        assert_eq!(info.remaining().is_some(), expires.is_some(), "{file}");

        let held = expected.state == LockState::Held;
        let live = store.lock_info(&expected.key).unwrap();
        assert_eq!(live.map(|live| live.token()), held.then_some(info.token()), "{file}");
        assert_eq!(store.wait_for_lock(&expected.key, Duration::ZERO).unwrap(), !held, "{file}");
    }
    assert_eq!(listed, [], "locks that are missing from the table");
}

#[test]
fn only_the_holder_can_read_a_held_record() {
    for format in FORMATS {
        check_both(format, "sound", |store| {
            let error =
                store.read_with::<u8>("held", ReadOptions::new().timeout(Duration::ZERO)).unwrap_err();
            assert_eq!((error.kind(), error.holder()), (ErrorKind::LockTimeout, Some(&job())), "{error}");
            for claim in [record_store::Claim::from(job()), LockToken::new(FIRST_TOKEN + 3).into()] {
                assert_eq!(
                    store.read_with::<u8>("held", ReadOptions::new().claim(claim)).unwrap().unwrap().result,
                    1
                );
            }
        });
    }
}

#[test]
fn every_sound_lock_can_be_renewed_released_and_acquired() {
    for format in FORMATS {
        let (_dir, store) = copy_of(format, "sound");
        for Locked { key, token, state, .. } in locks() {
            if state == LockState::Held {
                let now = LockOptions::new().acquire_timeout(Duration::ZERO);
                assert!(store.acquire_lock(&key, now.clone()).unwrap_err().is_timeout(), "{key}");
                store.renew(&key, LockToken::new(token), Duration::from_mins(5)).unwrap();
                assert_eq!(store.acquire_lock(&key, now.holder(job())).unwrap().get(), token, "{key}");
                store.write_with(&key, "mine", WriteOptions::new().claim(job())).unwrap();
                store.release_lock(&key, job()).unwrap();
            }
            let next = store.acquire_lock(&key, LockOptions::new()).unwrap();
            assert!(next.get() > token, "{key}");
            store.write_with(&key, "next", WriteOptions::new().claim(next)).unwrap();
        }
        for file in unfinished(format) {
            store.lock(file.trim_end_matches(".lock"), LockOptions::new()).unwrap().release().unwrap();
        }
        let (dir, store) = copy_of(format, "sound");
        assert_eq!(
            store.sweep().unwrap().locks,
            unfinished(format).len() as u64 + 2,
            "with those that are not live"
        );
        assert!(unfinished(format).iter().all(|file| !dir.path().join(file).exists()));
    }
}

/// Whether an error is the expected one.
type Shape = fn(&Error) -> bool;

/// Whether the error says that the file belongs to the key `found`.
fn is_mismatch(error: &Error, found: &str) -> bool {
    error.kind() == ErrorKind::KeyMismatch && error.detail() == Some(&*format!("{found:?}"))
}

/// The file, its key, and a check of its error.
type Damaged = (String, String, Shape);

fn damaged_records(format: Format) -> Vec<Damaged> {
    fn no_json(error: &Error) -> bool {
        error.kind() == ErrorKind::CorruptRecord && error.source().is_some()
    }
    fn unsound(error: &Error) -> bool {
        error.kind() == ErrorKind::CorruptRecord && error.source().is_none()
    }
    fn another_key(error: &Error) -> bool {
        is_mismatch(error, "Wrong-Key")
    }
    fn another_long_key(error: &Error) -> bool {
        is_mismatch(error, "report/2024")
    }
    let rows: [(&str, Shape); 13] = [
        ("truncated", no_json),
        ("empty", no_json),
        ("zeroed", no_json),
        ("garbage", no_json),
        ("no-object", no_json),
        ("no-result", no_json),
        ("two-results", no_json),
        ("trailing", no_json),
        ("invalid-utf8", no_json),
        ("empty-key", unsound),
        ("wrong-checksum", unsound),
        ("checksum-no-hex", unsound),
        ("wrong-key", another_key),
    ];
    // In a file of version 1, nobody notices these faults, or they cannot occur.
    let new = [
        "wrong-version",
        "wrong-expiry",
        "wrong-expiry-large",
        "version-name",
        "expiry-name",
        "checksum-name",
        "checksum-case",
        "two-checksums",
    ];
    let mut damaged: Vec<Damaged> =
        rows.map(|(key, shape)| (format!("{key}.json"), key.to_owned(), shape)).into();
    if format == V2 {
        damaged.extend(new.map(|key| (format!("{key}.json"), key.to_owned(), unsound as Shape)));
    }
    damaged.push((report_name(), "report/".repeat(100), another_long_key));
    damaged
}

fn damaged_locks() -> Vec<Damaged> {
    fn no_json(error: &Error) -> bool {
        error.kind() == ErrorKind::CorruptLock && error.source().is_some()
    }
    fn unsound(error: &Error) -> bool {
        error.kind() == ErrorKind::CorruptLock && error.source().is_none()
    }
    fn another_key(error: &Error) -> bool {
        is_mismatch(error, "Lock-Wrong-Key")
    }
    let rows: [(&str, Shape); 8] = [
        ("lock-truncated", no_json),
        ("lock-garbage", no_json),
        ("lock-invalid-utf8", no_json),
        ("lock-big-token", unsound),
        ("lock-no-date", unsound),
        ("lock-hostile-owner", unsound),
        ("lock-no-holder", unsound),
        ("lock-wrong-key", another_key),
    ];
    rows.map(|(key, shape)| (format!("{key}.lock"), key.to_owned(), shape)).into()
}

#[track_caller]
fn assert_damage(error: &Error, shape: Shape, store: &FileSystemRecordStore, file: &str) {
    assert!(shape(error) && error.is_corrupt(), "{file}: {error:?}");
    assert_eq!(error.path(), Some(&*store.path().join(file)), "{error}");
}

#[test]
fn every_damaged_record_is_reported_and_can_be_replaced() {
    for format in FORMATS {
        check_both(format, "damaged", |store| {
            for (file, key, shape) in damaged_records(format) {
                assert_damage(&store.read::<Json>(&key).unwrap_err(), shape, store, &file);
                assert!(store.exists(&key).unwrap(), "{file}");
            }
            assert_eq!(store.read::<String>("good").unwrap().unwrap().result, "unharmed");
        });
        let (_dir, store) = copy_of(format, "damaged");
        assert_eq!(store.sweep().unwrap().records, 0);
        for (_, key, _) in damaged_records(format) {
            store.write(&key, "replaced").unwrap();
            assert_eq!(store.read::<String>(&key).unwrap().unwrap().result, "replaced");
        }
        assert_eq!(store.damaged().unwrap().len(), damaged_records(format).len());
    }
}

#[test]
fn every_damaged_lock_is_reported_and_can_be_broken() {
    for format in FORMATS {
        check_both(format, "damaged", |store| {
            for (file, key, shape) in damaged_locks() {
                let read = store.read::<Json>(&key).unwrap_err();
                let info = store.lock_info(&key).unwrap_err();
                let waited = store.wait_for_lock(&key, WaitOptions::new()).unwrap_err();
                for error in [read, info, waited] {
                    assert_damage(&error, shape, store, &file);
                }
            }
        });
        let (_dir, store) = copy_of(format, "damaged");
        let now = LockOptions::new().acquire_timeout(Duration::ZERO);
        for (file, key, shape) in damaged_locks() {
            assert_damage(&store.acquire_lock(&key, now.clone()).unwrap_err(), shape, &store, &file);
            assert_damage(&store.write(&key, "never").unwrap_err(), shape, &store, &file);
            assert!(store.break_lock(&key).unwrap(), "{file}");
            store.lock(&key, LockOptions::new()).unwrap().write("replaced").unwrap();
        }
    }
}

#[test]
fn damage_does_not_end_a_listing() {
    for format in FORMATS {
        check_both(format, "damaged", |store| list_damaged(store, format));
    }
}

fn list_damaged(store: &FileSystemRecordStore, format: Format) {
    let (mut keys, mut errors) = (BTreeSet::new(), Vec::new());
    for item in store.keys().unwrap() {
        match item {
            Ok(key) => drop(keys.insert(key.as_str().to_owned())),
            Err(error) => errors.push(error),
        }
    }
    // A plain name gives the key without reading the file; a hashed name does not.
    let hashed = "report/".repeat(100);
    let expected = damaged_records(format).into_iter().map(|(_, key, _)| key).chain(["good".to_owned()]);
    assert_eq!(keys, expected.filter(|key| *key != hashed).collect());
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0].path(), Some(&*store.path().join(report_name())));
    assert!(errors[0].is_corrupt());

    let (mut locked, mut errors) = (Vec::new(), Vec::new());
    for item in store.locks().unwrap() {
        match item {
            Ok(info) => locked.push(info.key().as_str().to_owned()),
            Err(error) => errors.push(error),
        }
    }
    assert_eq!(locked, ["lock-good"]);
    for (file, _, shape) in damaged_locks() {
        let path = store.path().join(&file);
        let error = errors.iter().find(|error| error.path() == Some(&path)).expect(&file);
        assert_damage(error, shape, store, &file);
    }
    assert_eq!(errors.len(), damaged_locks().len());
}

/// A store after a power loss. A reader may not use it; the first writer makes the files agree with the log.
#[test]
fn what_the_log_tells_is_found_in_the_files_after_a_recovery() {
    let fixture = fixture(V2, "log");
    let before = tree::snapshot(&fixture);
    let error = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&fixture).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NeedsRecovery, "{error:?}");
    tree::assert_unchanged(&fixture, &before, "reading changed the fixture");

    let (dir, store) = copy_of(V2, "log");
    let text = |text: &str| format!("\"{text:-<800}\"");
    for (key, result, version) in [
        ("missing", text("missing"), 1),
        ("torn", text("torn"), 2),
        ("older", text("new"), 3),
        ("newer", text("new"), 50),
    ] {
        let record = store.read::<Json>(key).unwrap().expect(key);
        assert_eq!(record.result.as_str(), result, "{key}");
        assert_eq!(record.version, RecordVersion::new(FIRST_VERSION + version), "{key}");
    }
    let by_hand = store.read::<Json>("by-hand").unwrap().unwrap();
    assert_eq!(by_hand.result.as_str(), r#"["written", "in", "an", "editor"]"#);
    // The frame of the last one is torn.
    for key in ["removed", "unfinished"] {
        assert!(store.read::<Json>(key).unwrap().is_none(), "{key}");
    }
    let held = store.lock_info("held").unwrap().unwrap();
    assert_eq!((held.holder(), held.token().get()), (&job(), FIRST_TOKEN + 3));
    assert_eq!(store.lock_info("released").unwrap(), None);
    assert!(!dir.path().join("released.lock").exists() && store.damaged().unwrap().is_empty());
    // All numbers before the power loss were less than that in the header of the segment.
    let high = FIRST_VERSION + 86_400_000_000;
    assert!(store.acquire_lock("next", LockOptions::new()).unwrap().get() > high);
    store.write("older", "next").unwrap();
    assert!(store.read::<String>("older").unwrap().unwrap().version.number() > Some(high));
    assert_eq!(store.verify().map(Result::unwrap).filter(|it| it.problem.is_damage()).count(), 0);
}

#[test]
fn every_sound_or_damaged_fixture_is_in_a_table() {
    for format in FORMATS {
        let names = |rows: Vec<Damaged>| rows.into_iter().map(|(file, ..)| file);
        let damaged = names(damaged_records(format)).chain(names(damaged_locks()));
        let expiring = (format == V2).then_some(EXPIRING);
        let more = [FORMAT_FILE, "good.json", "lock-good.lock"].into_iter().chain(expiring);
        let damaged = damaged.chain(more.map(str::to_owned));
        assert_eq!(BTreeSet::from_iter(tree::files(&fixture(format, "damaged"))), damaged.collect());

        let sound = records(format).into_iter().map(|(file, ..)| file);
        let sound = sound.chain(locks().into_iter().map(|lock| lock.file));
        let more = unfinished(format).iter().copied().chain([FORMAT_FILE, "held.json"]);
        let sound = sound.chain(more.map(str::to_owned));
        assert_eq!(BTreeSet::from_iter(tree::files(&fixture(format, "sound"))), sound.collect());
    }

    // A new format version needs new tables.
    let versions = std::fs::read_dir(fixture(V1, "..")).unwrap();
    let versions = versions.map(|entry| entry.unwrap().file_name());
    let versions: BTreeSet<_> =
        versions.filter(|name| name.to_str().is_some_and(|n| n.starts_with('v'))).collect();
    assert_eq!(versions, BTreeSet::from(["v1".into(), "v2".into()]));
}
