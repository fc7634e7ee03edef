//! The store's private files, below `.store/`.

use record_store::{Json, OpenMode};

use super::*;

const MODES: [OpenMode; 3] = [OpenMode::Create, OpenMode::Existing, OpenMode::ReadOnly];

fn open(setup: &Setup, mode: OpenMode) -> Result<FileSystemRecordStore, Error> {
    relaxed().mode(mode).open(setup.store.path())
}

#[test]
fn a_file_that_is_not_regular_in_place_of_a_latch_is_refused() {
    let latch = latch_of("k");
    for_each_not_regular(&latch, |setup, what| {
        let (store, path) = (&setup.store, setup.path(&latch));
        assert_not_regular(store.write("k", &1), &path, what);
        assert_not_regular(store.remove("k"), &path, what);
        assert_not_regular(store.acquire_lock("k", LockOptions::new()), &path, what);
        assert_not_regular(store.release_lock("k", job()), &path, what);
        assert_not_regular(store.renew("k", job(), None), &path, what);
        assert_not_regular(store.break_lock("k"), &path, what);
        assert_not_regular(store.read::<Json>("k"), &path, what);
        setup.assert_nothing_staged();
        // An existing record is read without a latch, and other keys have other latches.
        fs::write(setup.path("k.json"), sound_record("k", "7")).unwrap();
        assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 7);
        assert!(store.exists("k").unwrap());
        assert_eq!(store.lock_info("k").unwrap(), None);
        assert!(store.wait_for_lock("k", WaitOptions::new()).unwrap());
        store.write("other", &1).unwrap();
    });
}

#[test]
fn a_key_without_a_token_left_is_an_error() {
    let setup = Setup::new();
    let expired = setup.store.acquire_lock("k", once().hold_timeout(Duration::ZERO)).unwrap();
    let text = fs::read_to_string(setup.path("k.lock")).unwrap();
    let last = ((1_u64 << 53) - 1).to_string();
    fs::write(setup.path("k.lock"), text.replace(&expired.to_string(), &last)).unwrap();
    let acquired = setup.store.acquire_lock("k", once());
    assert_refused(acquired, ErrorKind::CorruptStore, &setup.path(&latch_of("k")), "no token is left");
    assert!(!setup.store.is_locked("k").unwrap());
    setup.store.write("k", &1).unwrap();
}

#[test]
fn a_file_that_is_not_regular_in_place_of_the_format_is_refused() {
    for_each_not_regular(".store/format.json", |setup, what| {
        let path = setup.path(".store/format.json");
        for mode in MODES {
            let before = tree::snapshot(setup.store.path());
            assert_not_regular(open(setup, mode), &path, what);
            tree::assert_unchanged(setup.store.path(), &before, &format!("{what}, {mode:?}"));
        }
    });
}

#[test]
fn a_file_that_is_not_regular_in_place_of_the_event_counters_is_refused_except_to_read() {
    for_each_not_regular(".store/events", |setup, what| {
        let path = setup.path(".store/events");
        assert_not_regular(open(setup, OpenMode::Create), &path, what);
        assert_not_regular(open(setup, OpenMode::Existing), &path, what);
        // A reader does not need them, even to wait.
        let reader = open(setup, OpenMode::ReadOnly).unwrap();
        setup.store.acquire_lock("k", once().holder(job())).unwrap();
        let error =
            reader.read_with::<Json>("k", ReadOptions::new().timeout(Duration::from_millis(30))).unwrap_err();
        assert!(error.is_timeout(), "{what}: {error:?}");
    });
}

#[test]
fn event_counters_of_any_size_are_usable() {
    let usual = fs::metadata(Setup::new().path(".store/events")).unwrap().len();
    for size in [0, 1, usual - 1, usual, 1 << 40] {
        let setup = Setup::new();
        // Replaced instead of truncated, because the open store has the file mapped.
        fs::remove_file(setup.path(".store/events")).unwrap();
        fs::File::create(setup.path(".store/events")).unwrap().set_len(size).unwrap();
        for mode in [OpenMode::ReadOnly, OpenMode::Existing] {
            let store = open(&setup, mode).unwrap();
            assert!(store.wait_for_lock("k", Duration::ZERO).unwrap());
        }
        let store = open(&setup, OpenMode::Existing).unwrap();
        store.lock("k", once()).unwrap().release().unwrap();
    }
}

#[test]
fn a_subdirectory_of_the_private_directory_that_is_no_directory_is_refused() {
    for name in ["latches", "owners", "staged"] {
        let name = format!(".store/{name}");
        for (what, create) in NOT_REGULAR.into_iter().filter(|(what, _)| !what.starts_with("a directory")) {
            let setup = Setup::new();
            clear(&setup.path(&name));
            create(&setup, &setup.path(&name));
            for mode in [OpenMode::Create, OpenMode::Existing] {
                let before = tree::snapshot(setup.parent.path());
                let error = abort_if_hung(what, || open(&setup, mode)).map(drop).unwrap_err();
                assert_eq!(error.path(), Some(&*setup.path(&name)), "{what}, {mode:?}: {error:?}");
                tree::assert_unchanged(setup.parent.path(), &before, &format!("{what} at {name}, {mode:?}"));
            }
        }
    }
}

#[test]
fn a_private_directory_that_is_no_directory_is_refused() {
    for (what, create) in NOT_REGULAR.into_iter().filter(|(what, _)| !what.starts_with("a directory")) {
        for mode in MODES {
            let setup = Setup::new();
            clear(&setup.path(".store"));
            create(&setup, &setup.path(".store"));
            let before = tree::snapshot(setup.parent.path());
            let error = abort_if_hung(what, || open(&setup, mode)).map(drop).unwrap_err();
            assert_eq!(error.path(), Some(&*setup.path(".store")), "{what}, {mode:?}: {error:?}");
            tree::assert_unchanged(setup.parent.path(), &before, &format!("{what}, {mode:?}"));
        }
    }
}

#[test]
fn a_sweep_removes_leftovers_of_dead_processes_and_nothing_else() {
    let setup = Setup::new();
    // So that this process has its owner file, and does not remove others when it creates one.
    setup.store.write("k", &1).unwrap();
    for left in ["owners/1-deaddeaddeaddead", "staged/1-deaddeaddeaddead.0", "staged/2-gonegonegonegone.1"] {
        fs::write(setup.path(".store").join(left), "x").unwrap();
    }
    for (at, (what, create)) in NOT_REGULAR.into_iter().enumerate() {
        create(&setup, &setup.path(&format!(".store/owners/3-notregularfiles{at}")));
        abort_if_hung(what, || setup.store.write("k", &1)).unwrap();
    }
    fs::create_dir(setup.path(".store/staged/4-dirdirdirdirdirx.0")).unwrap();
    let outside = setup.outside();
    let swept = abort_if_hung("sweep", || setup.store.sweep()).unwrap();
    assert_eq!((swept.owners, swept.staged), (1, 2));
    setup.assert_outside(&outside, "afterwards");
    assert_eq!(tree::paths(&setup.path(".store/staged")), [Path::new("4-dirdirdirdirdirx.0")]);
    assert_eq!(fs::read_dir(setup.path(".store/owners")).unwrap().count(), 1 + NOT_REGULAR.len());
    setup.store.lock("k", once()).unwrap().release().unwrap();
}

#[test]
fn missing_private_directories_are_created_again_at_the_next_open() {
    let setup = Setup::new();
    setup.store.write("k", &1).unwrap();
    fs::remove_dir_all(setup.path(".store/latches")).unwrap();
    fs::remove_dir_all(setup.path(".store/staged")).unwrap();
    // The store that is already open cannot work, and its errors name the missing path.
    let error = setup.store.write("k", &2).unwrap_err();
    assert_eq!(error.path(), Some(&*setup.path(".store/staged")), "{error:?}");
    assert_io(setup.store.acquire_lock("k", once()), &setup.path(&latch_of("k")), "no latches");
    assert_eq!(setup.store.read::<u8>("k").unwrap().unwrap().result, 1);

    open(&setup, OpenMode::Existing).unwrap().write("k", &2).unwrap();
    assert_eq!(setup.store.read::<u8>("k").unwrap().unwrap().result, 2);
}

#[test]
fn a_store_that_is_moved_while_open_keeps_working() {
    let setup = Setup::new();
    setup.store.write("k", &1).unwrap();
    let moved = setup.parent.path().join("moved");
    let mv = Command::new("mv").arg(setup.store.path()).arg(&moved).status();
    assert!(mv.unwrap().success());
    assert_eq!(setup.store.read::<u8>("k").unwrap().unwrap().result, 1);
    // Another store is created under the old name. The first store must not touch it.
    let other = relaxed().open(setup.store.path()).unwrap();
    let before = tree::snapshot(other.path());
    setup.store.write("k", &2).unwrap();
    setup.store.lock("k", once()).unwrap().write(&3).unwrap();
    tree::assert_unchanged(other.path(), &before, "unchanged");
    assert_eq!(setup.store.read::<u8>("k").unwrap().unwrap().result, 3);
    assert!(!other.exists("k").unwrap());
}
