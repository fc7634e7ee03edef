//! A store that is opened to read.

use record_store::{Json, LockState, LockToken, OpenMode};

use super::*;

/// Records and locks of every standing.
fn furnished() -> Place {
    let place = Place::new();
    let lease = |seconds| once().holder(job()).hold_timeout(Duration::from_secs(seconds));
    for key in ["free", "held", "expired", "abandoned"] {
        place.store.write(key, key).unwrap();
    }
    place.store.acquire_lock("held", &lease(3600)).unwrap();
    place.store.acquire_lock("expired", &lease(0)).unwrap();
    place.store.acquire_lock("abandoned", &once()).unwrap();
    let text = fs::read_to_string(place.path("abandoned.lock")).unwrap();
    let mut lock: serde_json::Value = serde_json::from_str(&text).unwrap();
    lock["owner"] = "1-gone".into();
    fs::write(place.path("abandoned.lock"), lock.to_string()).unwrap();
    fs::write(place.path(".store/tmp/1-gone.aaaaaa"), "left by the dead").unwrap();
    fs::write(place.path("corrupt.json"), "garbage").unwrap();
    fs::write(place.path("corrupt.lock"), "garbage").unwrap();
    place
}

/// Everything that can be asked.
fn ask_everything(store: &FileSystemRecordStore) {
    for key in ["free", "expired", "abandoned"] {
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, key);
        assert_eq!(store.lock_info(key).unwrap(), None);
        assert!(!store.is_locked(key).unwrap());
        assert!(store.wait_for_lock(key, None).unwrap());
    }
    assert!(store.read::<Json>("absent").unwrap().is_none());
    assert!(!store.exists("absent").unwrap());
    assert!(store.try_read::<Json>("held", Duration::from_millis(5)).unwrap_err().is_timeout());
    assert!(!store.wait_for_lock("held", Some(Duration::from_millis(5))).unwrap());
    assert!(store.is_lock_holder("held", &job()).unwrap());
    assert_eq!(store.read_as::<String>("held", job()).unwrap().unwrap().result, "held");
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

/// Everything that would be a change.
fn refuse_everything(store: &FileSystemRecordStore) {
    let token = LockToken::new(1);
    for key in ["free", "held", "expired", "abandoned", "corrupt", "absent"] {
        let refused = [
            store.write(key, &1),
            store.write_as(key, &1, job()),
            store.remove(key).map(drop),
            store.acquire_lock(key, &LockOptions::new()).map(drop),
            store.lock(key, LockOptions::new()).map(drop),
            store.try_lock(key, LockOptions::new()).map(drop),
            store.renew(key, job(), None),
            store.release_lock(key, token),
            store.break_lock(key).map(drop),
            store.sweep().map(drop),
            store.share_owner().map(drop),
        ];
        for (at, result) in refused.into_iter().enumerate() {
            match result {
                Err(Error::ReadOnly { path, .. }) => assert_eq!(path, store.path()),
                other => panic!("{key}, operation {at}: {other:?}"),
            }
        }
    }
}

#[test]
fn reading_changes_nothing_and_changing_is_refused() {
    let place = furnished();
    let before = tree::snapshot(place.parent.path());
    let reader = relaxed().mode(OpenMode::ReadOnly).open(place.store.path()).unwrap();
    soon("questions", || ask_everything(&reader));
    soon("changes", || refuse_everything(&reader));
    drop(reader);
    tree::assert_unchanged(place.parent.path(), &before, "a reader");
}

#[test]
fn nothing_but_records_and_the_format_is_needed() {
    let place = furnished();
    for name in ["latches", "owners", "tmp", "events"] {
        clear(&place.path(".store").join(name));
    }
    let before = tree::snapshot(place.parent.path());
    let reader = relaxed().mode(OpenMode::ReadOnly).open(place.store.path()).unwrap();
    soon("questions", || ask_everything(&reader));
    tree::assert_unchanged(place.parent.path(), &before, "a reader");
}

#[test]
fn a_reader_sees_what_is_written_meanwhile() {
    let place = furnished();
    let reader = relaxed().mode(OpenMode::ReadOnly).open(place.store.path()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| reader.read::<String>("held"));
        place.store.write_as("held", "committed", job()).unwrap();
        place.store.release_lock("held", job()).unwrap();
        let seen = soon("the reader", || waiting.join()).unwrap().unwrap().unwrap();
        assert_eq!(seen.result, "committed");
    });
}

/// The directory belongs to another user, and nobody else may write.
#[test]
fn a_directory_that_cannot_be_written_is_enough_to_read() {
    let place = furnished();
    if !super::permissions::is_root() {
        eprintln!("SKIPPED: only root can become somebody else");
        return;
    }
    super::permissions::open_to_all(place.parent.path());
    let before = tree::snapshot(place.parent.path());
    super::permissions::assert_nobody_passes("bad_input::read_only::child_reads", place.store.path());
    tree::assert_unchanged(place.parent.path(), &before, "a reader without rights");
}

#[test]
#[ignore = "run in a process of its own, as a user without rights"]
fn child_reads() {
    let Some(dir) = child_dir() else { return };
    let reader = relaxed().mode(OpenMode::ReadOnly).open(&dir).unwrap();
    ask_everything(&reader);
    refuse_everything(&reader);
    for mode in [OpenMode::Create, OpenMode::Existing] {
        let error = relaxed().mode(mode).open(&dir).map(drop).unwrap_err();
        assert_io::<()>(Err(error), &dir.join(".store/owners"), "open to write");
    }
}
