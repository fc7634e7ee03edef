//! A store that is opened read-only.

use record_store::{Json, LockState, LockToken, OpenMode, WriteOptions};

use super::*;

/// A store with records and locks in every state.
fn populated() -> Setup {
    let setup = Setup::new();
    let lease = |seconds| once().holder(job()).hold_timeout(Duration::from_secs(seconds));
    for key in ["free", "held", "expired", "abandoned"] {
        setup.store.write(key, key).unwrap();
    }
    setup.store.acquire_lock("held", lease(3600)).unwrap();
    setup.store.acquire_lock("expired", lease(0)).unwrap();
    setup.store.acquire_lock("abandoned", once()).unwrap();
    let text = fs::read_to_string(setup.path("abandoned.lock")).unwrap();
    let mut lock: serde_json::Value = serde_json::from_str(&text).unwrap();
    lock["owner"] = "1-gone".into();
    fs::write(setup.path("abandoned.lock"), lock.to_string()).unwrap();
    fs::write(setup.path(".store/staged/1-gonegonegonegone.0"), "left by a dead process").unwrap();
    fs::write(setup.path("corrupt.json"), "garbage").unwrap();
    fs::write(setup.path("corrupt.lock"), "garbage").unwrap();
    setup
}

/// Makes every call that only reads.
fn check_reads(store: &FileSystemRecordStore) {
    for key in ["free", "expired", "abandoned"] {
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, key);
        assert_eq!(store.lock_info(key).unwrap(), None);
        assert!(!store.is_locked(key).unwrap());
        assert!(store.wait_for_lock(key, WaitOptions::new()).unwrap());
    }
    assert!(store.read::<Json>("absent").unwrap().is_none());
    assert!(!store.exists("absent").unwrap());
    assert!(
        store
            .read_with::<Json>("held", ReadOptions::new().timeout(Duration::from_millis(5)))
            .unwrap_err()
            .is_timeout()
    );
    assert!(!store.wait_for_lock("held", Duration::from_millis(5)).unwrap());
    assert!(store.is_lock_holder("held", &job()).unwrap());
    assert_eq!(
        store.read_with::<String>("held", ReadOptions::new().claim(job())).unwrap().unwrap().result,
        "held"
    );
    assert!(store.read::<Json>("corrupt").unwrap_err().is_corrupt());
    assert_eq!(store.keys().unwrap().map(Result::unwrap).count(), 5);
    let (good, bad): (Vec<_>, Vec<_>) = store.locks().unwrap().partition(Result::is_ok);
    let mut states: Vec<_> =
        good.into_iter().map(Result::unwrap).map(|info| (info.key().to_string(), info.state())).collect();
    states.sort_by(|a, b| a.0.cmp(&b.0));
    let expected =
        [("abandoned", LockState::Abandoned), ("expired", LockState::Expired), ("held", LockState::Held)];
    assert_eq!(states, expected.map(|(key, state)| (key.to_owned(), state)));
    assert_eq!(bad.len(), 1);
}

/// Makes every call that would change something. Each must be refused.
fn check_changes_are_refused(store: &FileSystemRecordStore) {
    let token = LockToken::new(1);
    for key in ["free", "held", "expired", "abandoned", "corrupt", "absent"] {
        let refused = [
            store.write(key, &1),
            store.write_with(key, &1, WriteOptions::new().claim(job())),
            store.remove(key).map(drop),
            store.acquire_lock(key, LockOptions::new()).map(drop),
            store.lock(key, LockOptions::new()).map(drop),
            store.try_lock(key, LockOptions::new()).map(drop),
            store.renew(key, job(), None),
            store.release_lock(key, token),
            store.break_lock(key).map(drop),
            store.sweep().map(drop),
            store.share_owner().map(drop),
        ];
        for (at, result) in refused.into_iter().enumerate() {
            let what = format!("{key}, operation {at}");
            assert_refused(result, ErrorKind::ReadOnly, store.path(), &what);
        }
    }
}

#[test]
fn reads_change_nothing_and_changes_are_refused() {
    let setup = populated();
    let before = tree::snapshot(setup.parent.path());
    let reader = relaxed().mode(OpenMode::ReadOnly).open(setup.store.path()).unwrap();
    abort_if_hung("reads", || check_reads(&reader));
    abort_if_hung("changes", || check_changes_are_refused(&reader));
    drop(reader);
    tree::assert_unchanged(setup.parent.path(), &before, "a reader");
}

#[test]
fn a_reader_needs_no_private_file_but_the_format() {
    let setup = populated();
    for name in ["latches", "owners", "staged", "events"] {
        clear(&setup.path(".store").join(name));
    }
    let before = tree::snapshot(setup.parent.path());
    let reader = relaxed().mode(OpenMode::ReadOnly).open(setup.store.path()).unwrap();
    abort_if_hung("reads", || check_reads(&reader));
    tree::assert_unchanged(setup.parent.path(), &before, "a reader");
}

#[test]
fn a_reader_sees_concurrent_writes() {
    let setup = populated();
    let reader = relaxed().mode(OpenMode::ReadOnly).open(setup.store.path()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reader.read::<String>("held"));
        setup.store.write_with("held", "committed", WriteOptions::new().claim(job())).unwrap();
        setup.store.release_lock("held", job()).unwrap();
        let seen = abort_if_hung("the reader", || waiting.join()).unwrap().unwrap().unwrap();
        assert_eq!(seen.result, "committed");
    });
}

/// The directory belongs to another user, and no other user may write to it.
#[test]
fn a_reader_needs_no_write_permission() {
    let setup = populated();
    if !super::permissions::is_root() {
        eprintln!("SKIPPED: only root can change the user");
        return;
    }
    super::permissions::open_to_all(setup.parent.path());
    let before = tree::snapshot(setup.parent.path());
    super::permissions::assert_nobody_passes("bad_input::read_only::child_reads", setup.store.path());
    tree::assert_unchanged(setup.parent.path(), &before, "a reader without rights");
}

#[test]
#[ignore = "run in a separate process, as a user without rights"]
fn child_reads() {
    let Some(dir) = child_dir() else { return };
    let reader = relaxed().mode(OpenMode::ReadOnly).open(&dir).unwrap();
    check_reads(&reader);
    check_changes_are_refused(&reader);
    for mode in [OpenMode::Create, OpenMode::Existing] {
        let error = relaxed().mode(mode).open(&dir).map(drop).unwrap_err();
        assert_io::<()>(Err(error), &dir.join(".store/events"), "open to write");
    }
}
