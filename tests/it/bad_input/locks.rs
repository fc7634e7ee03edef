//! Invalid lock files.

use std::error::Error as _;
use std::os::unix::fs::MetadataExt as _;

use record_store::{Claim, Finding, Json, LockToken, Problem, WriteOptions};

use super::*;

/// Runs every operation that must understand the lock, and returns their errors. None may change anything.
fn refused(setup: &Setup) -> Vec<(&'static str, Error)> {
    let store = &setup.store;
    let token = LockToken::new(1);
    let before = tree::snapshot(&setup.path("k.json"));
    let run_all = || {
        vec![
            ("read", store.read::<Json>("k").unwrap_err()),
            ("read by token", store.read_with::<Json>("k", ReadOptions::new().claim(token)).unwrap_err()),
            ("write", store.write("k", "no").unwrap_err()),
            ("write by token", store.write_with("k", "no", WriteOptions::new().claim(token)).unwrap_err()),
            ("remove", store.remove("k").unwrap_err()),
            ("acquire", store.acquire_lock("k", LockOptions::new()).unwrap_err()),
            ("try_lock", store.try_lock("k", LockOptions::new()).map(drop).unwrap_err()),
            ("renew", store.renew("k", token, None).unwrap_err()),
            ("release", store.release_lock("k", Claim::current()).unwrap_err()),
            ("lock_info", store.lock_info("k").unwrap_err()),
            ("is_locked", store.is_locked("k").unwrap_err()),
            ("wait_for_lock", store.wait_for_lock("k", WaitOptions::new()).unwrap_err()),
        ]
    };
    let refused = abort_if_hung("operations on a bad lock", run_all);
    tree::assert_unchanged(&setup.path("k.json"), &before, "unchanged");
    setup.assert_nothing_staged();
    // Operations that ignore locks must work.
    assert!(store.exists("k").unwrap());
    assert_eq!(store.keys().unwrap().count(), 1);
    refused
}

fn assert_works_again(setup: &Setup) {
    let guard = setup.store.lock("k", once()).unwrap();
    guard.write("replaced").unwrap();
    guard.release().unwrap();
    assert_eq!(setup.store.read::<String>("k").unwrap().unwrap().result, "replaced");
}

/// Writes a sound record `k`.
fn with_record(setup: &Setup) {
    fs::write(setup.path("k.json"), sound_record("k", "\"old\"")).unwrap();
}

/// A lock file of `k` as the library writes it.
fn sound_lock() -> String {
    let setup = Setup::new();
    let lease = once().holder(job()).hold_timeout(Duration::from_mins(5));
    setup.store.acquire_lock("k", lease).unwrap();
    fs::read_to_string(setup.path("k.lock")).unwrap()
}

#[test]
fn every_operation_reports_every_truncation() {
    let setup = Setup::new();
    with_record(&setup);
    let text = sound_lock();
    for cut in 1..text.trim_end().len() {
        fs::write(setup.path("k.lock"), &text[..cut]).unwrap();
        for (operation, error) in refused(&setup) {
            let corrupt = error.kind() == ErrorKind::CorruptLock && error.source().is_some();
            assert!(corrupt, "{operation}, cut at {cut}: {error:?}");
            assert_eq!(error.path(), Some(&*setup.path("k.lock")));
        }
    }
    assert!(setup.store.break_lock("k").unwrap());
    assert_works_again(&setup);
}

#[test]
fn an_empty_or_zeroed_lock_file_is_no_lock() {
    let setup = Setup::new();
    for (size, what) in [(0, "never written"), (267, "lost in a power failure")] {
        fs::write(setup.path("k.lock"), vec![0; size]).unwrap();
        assert_eq!(setup.store.lock_info("k").unwrap(), None, "{what}");
        assert!(setup.store.wait_for_lock("k", WaitOptions::new()).unwrap(), "{what}");
        assert_eq!(setup.store.locks().unwrap().count(), 0, "{what}");
        assert!(is_kind(&setup.store.release_lock("k", job()), ErrorKind::NotLocked), "{what}");
        setup.store.write("k", &1).unwrap();
        let guard = setup.store.lock("k", once()).unwrap();
        assert_eq!(setup.store.locks().unwrap().count(), 1, "{what}");
        guard.release().unwrap();
    }
}

/// The least that a disk writes at once.
const SECTOR: usize = 512;

/// A lock that is live: its key, its token, and the text of its file, of one sector, two and four. The name of the
/// last one is a hash.
fn live_locks() -> Vec<(String, LockToken, Vec<u8>)> {
    let cases = [("k", "job"), ("k", &*"h".repeat(Holder::MAX_BYTES)), (&*"k".repeat(1_500), "job")];
    let mut sectors = vec![1, 2, 4];
    let lock = |(key, holder): (&str, &str)| {
        let setup = Setup::new();
        let token = setup.store.acquire_lock(key, once().holder(Holder::named(holder).unwrap())).unwrap();
        let text = fs::read(setup.path(&lock_name(key))).unwrap();
        assert_eq!(text.len(), sectors.remove(0) * SECTOR);
        (key.to_owned(), token, text)
    };
    cases.map(lock).into()
}

fn lock_name(key: &str) -> String {
    format!("{}.lock", record_store::Key::new(key).unwrap().file_stem())
}

/// Runs `check` for each case, a few at a time: a file that looks torn is read again for a while.
fn at_the_same_time<T: Send>(cases: Vec<T>, check: impl Fn(T) + Sync) {
    let cases = std::sync::Mutex::new(cases);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let Some(case) = cases.lock().unwrap().pop() else { return };
                    check(case);
                }
            });
        }
    });
}

/// After a power loss, each sector of a file may be missing that was not synced. A process that is killed in the
/// middle of a write may leave any part of it.
#[test]
fn a_lock_file_of_which_a_part_is_zeros_is_no_lock() {
    let mut cases = Vec::new();
    for (key, token, text) in live_locks() {
        let sectors = text.len() / SECTOR;
        for missing in 1..1_u32 << sectors {
            let mut torn = text.clone();
            for sector in (0..sectors).filter(|sector| missing & 1 << sector != 0) {
                torn[sector * SECTOR..][..SECTOR].fill(0);
            }
            cases.push((key.clone(), token, torn, format!("{sectors} sectors without {missing:b}")));
        }
        for at in [1, 100, text.len() / 2 + 1, text.len() - 1] {
            let (mut first, mut last) = (text.clone(), text.clone());
            first[at..].fill(0);
            last[..at].fill(0);
            cases.push((key.clone(), token, first, format!("{sectors} sectors cut to zeros at {at}")));
            cases.push((key.clone(), token, last, format!("{sectors} sectors, zeros before {at}")));
        }
    }
    at_the_same_time(cases, |(key, token, torn, what)| {
        abort_if_hung(&what, || check_unfinished(&key, token, &torn, &what));
    });
}

/// A file grows on the disk by whole pages, and a lock with a long key has several.
#[test]
fn a_lock_file_of_which_the_last_pages_are_missing_is_no_lock() {
    let (setup, key) = (Setup::new(), "k".repeat(9_000));
    let token = setup.store.acquire_lock(&key, once().holder(job())).unwrap();
    let text = fs::read(setup.path(&lock_name(&key))).unwrap();
    let cases = [4_096, 8_192].map(|at| (&text[..at], format!("cut at {at}")));
    for (torn, what) in &cases {
        abort_if_hung(what, || check_unfinished(&key, token, torn, what));
    }
    let other = Setup::new();
    fs::write(other.path(&lock_name(&key)), &text[..8_191]).unwrap();
    assert!(is_kind(&other.store.lock_info(&key), ErrorKind::CorruptLock));
}

fn check_unfinished(key: &str, token: LockToken, torn: &[u8], what: &str) {
    let setup = Setup::new();
    let (store, place) = (&setup.store, setup.path(&lock_name(key)));
    let tear = || fs::write(&place, torn).unwrap();
    tear();
    store.write(key, "no lock keeps it out").unwrap();
    assert_eq!(store.lock_info(key).unwrap(), None, "{what}");
    assert!(store.wait_for_lock(key, WaitOptions::new()).unwrap(), "{what}");
    assert!(store.read::<String>(key).unwrap().is_some(), "{what}");
    assert_eq!(store.locks().unwrap().count(), 0, "{what}");
    let found: Vec<_> = store.verify().map(Result::unwrap).collect();
    let [Finding { path, problem: Problem::BlankLock, .. }] = &found[..] else { panic!("{what}: {found:?}") };
    assert_eq!(path, &place, "{what}");
    assert!(is_kind(&store.release_lock(key, job()), ErrorKind::NotLocked), "{what}");
    assert!(is_kind(&store.renew(key, token, None), ErrorKind::LockLost), "{what}");
    assert!(!store.break_damaged_lock(&record_store::Key::new(key).unwrap(), WaitOptions::new()).unwrap());
    assert_eq!(fs::read(&place).unwrap(), torn, "{what}: nobody has acquired the lock");
    assert_eq!(store.sweep().unwrap().locks, 1, "{what}");
    assert!(!place.exists(), "{what}");

    tear();
    let before = fs::metadata(&place).unwrap().ino();
    let next = Holder::named("next").unwrap();
    let guard = store.lock(key, once().holder(next.clone())).unwrap();
    assert!(guard.token() > token, "{what}");
    assert!(store.lock_info(key).unwrap().unwrap().is_held_by(&next), "{what}");
    // The old text and the new one are never in one file.
    let is_blank = torn.iter().all(|&byte| byte == 0);
    assert!(is_blank || fs::metadata(&place).unwrap().ino() != before, "{what}");
    guard.release().unwrap();

    tear();
    assert!(store.break_lock(key).unwrap(), "{what}");
    assert!(!place.exists() && store.damaged().unwrap().is_empty(), "{what}");
}

/// A zero in the middle of a sector comes from no power loss. It may be a space with a flipped bit.
#[test]
fn a_lock_file_with_a_zero_byte_in_it_is_corrupt() {
    for (key, _, text) in live_locks() {
        let cases: Vec<_> = (1..text.len() - 1).step_by(text.len() / 16).collect();
        at_the_same_time(cases, |at| {
            let setup = Setup::new();
            let mut zero = text.clone();
            zero[at] = 0;
            fs::write(setup.path(&lock_name(&key)), zero).unwrap();
            assert!(is_kind(&setup.store.lock_info(&key), ErrorKind::CorruptLock), "{at}");
            assert!(is_kind(&setup.store.acquire_lock(&key, once()), ErrorKind::CorruptLock), "{at}");
            assert_eq!(setup.store.sweep().unwrap().locks, 0, "{at}");
            let key = record_store::Key::new(&*key).unwrap();
            assert!(setup.store.break_damaged_lock(&key, WaitOptions::new()).unwrap(), "{at}");
            assert!(setup.store.acquire_lock(&key, once()).is_ok(), "{at}");
        });
    }
}

#[test]
fn impossible_field_values_are_refused() {
    let text = sound_lock();
    let mut lock: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
    for (field, value) in [
        ("key", "".into()),
        ("key", "x".repeat(10_001).into()),
        ("holder", "".into()),
        ("holder", "x".repeat(513).into()),
        ("token", (1_u64 << 53).into()),
        ("token", u64::MAX.into()),
        ("token", (-1).into()),
        ("token", 1.5.into()),
        ("acquired_at", "yesterday".into()),
        ("acquired_at", "é-01-01T00:00:00Z".into()),
        ("expires_at", "2024-02-31T00:00:00Z".into()),
        ("expires_at", "2024-01-01T00:00:00+00:00Z".into()),
        ("expires_at", "1969-12-31T23:59:59Z".into()),
        ("expires_at", "99999-01-01T00:00:00Z".into()),
        ("expires_at", 7.into()),
        ("deadline_ns", (-1).into()),
        ("deadline_ns", 1e300.into()),
        ("time_ns", "one".into()),
        ("owner", "../../x".into()),
        ("owner", "/etc/passwd".into()),
        ("owner", "".into()),
        ("owner", ".".into()),
        ("owner", "a\0b".into()),
        ("owner", "x".repeat(65).into()),
        ("bound", 1.into()),
    ] {
        let setup = Setup::new();
        with_record(&setup);
        let what = format!("{field} {value:.60}");
        let good = lock.insert(field.into(), value).unwrap();
        fs::write(setup.path("k.lock"), serde_json::to_string(&lock).unwrap()).unwrap();
        lock.insert(field.into(), good);
        for (operation, error) in refused(&setup) {
            assert_eq!(error.kind(), ErrorKind::CorruptLock, "{what}, {operation}: {error:?}");
            assert_eq!(error.path(), Some(&*setup.path("k.lock")), "{what}, {operation}");
        }
        assert!(setup.store.break_lock("k").unwrap());
        assert_works_again(&setup);
    }
}

#[test]
fn a_hostile_holder_is_only_a_name() {
    let setup = Setup::new();
    let outside = setup.outside();
    for name in ["../../x", "/etc/passwd", "a\0b\n", "\"}", "%2F", &"é".repeat(256)] {
        let holder = Holder::named(name).unwrap();
        let guard = setup.store.lock("k", once().holder(holder.clone())).unwrap();
        assert!(setup.store.is_lock_holder("k", &holder).unwrap());
        assert_eq!(setup.store.lock_info("k").unwrap().unwrap().holder(), &holder);
        guard.release().unwrap();
    }
    setup.assert_outside(&outside, "afterwards");
}

#[test]
fn a_huge_lock_file_is_refused_by_its_size() {
    let setup = Setup::new();
    with_record(&setup);
    let padded = sound_lock().replace("{\"key\"", &format!("{{{}\"key\"", " ".repeat(64 * 1024)));
    for size in [None, Some(1 << 40)] {
        fs::write(setup.path("k.lock"), &padded).unwrap();
        if let Some(size) = size {
            fs::File::options().write(true).open(setup.path("k.lock")).unwrap().set_len(size).unwrap();
        }
        for (operation, error) in abort_if_hung("a huge lock", || refused(&setup)) {
            // Without a source: no attempt was made to parse the file.
            assert_eq!(error.kind(), ErrorKind::CorruptLock, "{operation}: {error:?}");
            assert!(error.source().is_none(), "{operation}: {error:?}");
        }
        assert!(setup.store.break_lock("k").unwrap());
        assert_works_again(&setup);
    }
}

#[test]
fn a_lock_file_of_another_key_is_refused() {
    let setup = Setup::new();
    with_record(&setup);
    fs::write(setup.path("k.lock"), sound_lock().replace("\"k\"", "\"K\"")).unwrap();
    for (operation, error) in refused(&setup) {
        assert_eq!(error.kind(), ErrorKind::KeyMismatch, "{operation}: {error:?}");
        assert_eq!(error.path(), Some(&*setup.path("k.lock")), "{operation}");
    }
    let listed: Vec<_> = setup.store.locks().unwrap().collect();
    assert!(matches!(&listed[..], [mismatch] if is_kind(mismatch, ErrorKind::KeyMismatch)), "{listed:?}");
    assert!(setup.store.break_lock("k").unwrap());
    assert_works_again(&setup);
}

#[test]
fn a_file_that_is_not_regular_in_place_of_a_lock_is_refused() {
    for_each_not_regular("k.lock", |setup, what| {
        with_record(setup);
        let path = setup.path("k.lock");
        for (operation, error) in refused(setup) {
            assert_not_regular::<()>(Err(error), &path, &format!("{what}, {operation}"));
        }
        setup.store.acquire_lock("other", once()).unwrap();
        let (good, mut bad): (Vec<_>, Vec<_>) = setup.store.locks().unwrap().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (1, 1), "{what}");
        assert_not_regular(bad.remove(0), &path, what);

        if what.starts_with("a directory") {
            assert_not_regular(setup.store.break_lock("k"), &path, what);
            assert!(path.is_dir());
            clear(&path);
        } else {
            assert!(setup.store.break_lock("k").unwrap(), "{what}");
            setup.assert_kept("k.lock", what);
        }
        assert_works_again(setup);
    });
}

#[test]
fn an_owner_that_cannot_be_checked_is_not_dead() {
    for_each_not_regular(".store/owners/1-x", |setup, what| {
        with_record(setup);
        let bound = sound_lock().replace("\"bound\":false", "\"bound\":true");
        let mut lock: serde_json::Value = serde_json::from_str(&bound).unwrap();
        lock["owner"] = "1-x".into();
        fs::write(setup.path("k.lock"), lock.to_string()).unwrap();
        assert_eq!(setup.store.lock_info("k").unwrap().unwrap().owner_alive(), None, "{what}");
        assert!(setup.store.acquire_lock("k", once()).unwrap_err().is_timeout(), "{what}");
        assert!(setup.store.write("k", "no").unwrap_err().is_locked(), "{what}");
        assert!(setup.store.break_lock("k").unwrap());
        assert_works_again(setup);
    });
}
