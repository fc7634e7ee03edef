//! The store's own files, below `.store/`.

use record_store::{Json, OpenMode};

use super::*;

const MODES: [OpenMode; 3] = [OpenMode::Create, OpenMode::Existing, OpenMode::ReadOnly];

fn open(place: &Place, mode: OpenMode) -> Result<FileSystemRecordStore, Error> {
    relaxed().mode(mode).open(place.store.path())
}

#[test]
fn something_irregular_in_the_place_of_a_latch() {
    let latch = latch_of("k");
    for_each_irregular(&latch, |place, what| {
        let (store, path) = (&place.store, place.path(&latch));
        assert_irregular(store.write("k", &1), &path, what);
        assert_irregular(store.remove("k"), &path, what);
        assert_irregular(store.acquire_lock("k", &LockOptions::new()), &path, what);
        assert_irregular(store.release_lock("k", job()), &path, what);
        assert_irregular(store.renew("k", job(), None), &path, what);
        assert_irregular(store.break_lock("k"), &path, what);
        assert_irregular(store.read::<Json>("k"), &path, what);
        place.assert_nothing_staged();
        // A record that is there is read without a latch, and other keys have other latches.
        fs::write(place.path("k.json"), sound_record("k", "7")).unwrap();
        assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 7);
        assert!(store.exists("k").unwrap());
        assert_eq!(store.lock_info("k").unwrap(), None);
        assert!(store.wait_for_lock("k", None).unwrap());
        store.write("other", &1).unwrap();
    });
}

#[test]
fn a_key_that_has_no_token_left_says_so() {
    let place = Place::new();
    let expired = place.store.acquire_lock("k", &once().hold_timeout(Duration::ZERO)).unwrap();
    let text = fs::read_to_string(place.path("k.lock")).unwrap();
    let last = ((1_u64 << 53) - 1).to_string();
    fs::write(place.path("k.lock"), text.replace(&expired.to_string(), &last)).unwrap();
    match place.store.acquire_lock("k", &once()) {
        Err(Error::CorruptStore { path, .. }) => assert_eq!(path, place.path(&latch_of("k"))),
        other => panic!("{other:?}"),
    }
    assert!(!place.store.is_locked("k").unwrap());
    place.store.write("k", &1).unwrap();
}

#[test]
fn something_irregular_in_the_place_of_the_format() {
    for_each_irregular(".store/format.json", |place, what| {
        let path = place.path(".store/format.json");
        for mode in MODES {
            let before = tree::snapshot(place.store.path());
            assert_irregular(open(place, mode), &path, what);
            tree::assert_unchanged(place.store.path(), &before, &format!("{what}, {mode:?}"));
        }
    });
}

#[test]
fn something_irregular_in_the_place_of_the_event_counters() {
    for_each_irregular(".store/events", |place, what| {
        let path = place.path(".store/events");
        assert_irregular(open(place, OpenMode::Create), &path, what);
        assert_irregular(open(place, OpenMode::Existing), &path, what);
        // A reader does without them, also where it has to wait.
        let reader = open(place, OpenMode::ReadOnly).unwrap();
        place.store.acquire_lock("k", &once().holder(job())).unwrap();
        let error = reader.try_read::<Json>("k", Duration::from_millis(30)).unwrap_err();
        assert!(error.is_timeout(), "{what}: {error:?}");
    });
}

#[test]
fn short_and_long_event_counters() {
    let usual = fs::metadata(Place::new().path(".store/events")).unwrap().len();
    for size in [0, 1, usual - 1, usual, 1 << 40] {
        let place = Place::new();
        // Not truncated: the store that is open has it mapped.
        fs::remove_file(place.path(".store/events")).unwrap();
        fs::File::create(place.path(".store/events")).unwrap().set_len(size).unwrap();
        for mode in [OpenMode::ReadOnly, OpenMode::Existing] {
            let store = open(&place, mode).unwrap();
            assert!(store.wait_for_lock("k", Some(Duration::ZERO)).unwrap());
        }
        let store = open(&place, OpenMode::Existing).unwrap();
        store.lock("k", once()).unwrap().release().unwrap();
    }
}

#[test]
fn something_irregular_in_the_place_of_a_private_directory() {
    for name in ["latches", "owners", "tmp"] {
        let name = format!(".store/{name}");
        for (what, put) in IRREGULAR.into_iter().filter(|(what, _)| !what.starts_with("a directory")) {
            let place = Place::new();
            clear(&place.path(&name));
            put(&place, &place.path(&name));
            for mode in [OpenMode::Create, OpenMode::Existing] {
                let before = tree::snapshot(place.parent.path());
                let error = soon(what, || open(&place, mode)).map(drop).unwrap_err();
                assert_eq!(error.path(), Some(&*place.path(&name)), "{what}, {mode:?}: {error:?}");
                tree::assert_unchanged(place.parent.path(), &before, &format!("{what} at {name}, {mode:?}"));
            }
        }
    }
}

#[test]
fn something_irregular_in_the_place_of_the_private_directory() {
    for (what, put) in IRREGULAR.into_iter().filter(|(what, _)| !what.starts_with("a directory")) {
        for mode in MODES {
            let place = Place::new();
            clear(&place.path(".store"));
            put(&place, &place.path(".store"));
            let before = tree::snapshot(place.parent.path());
            let error = soon(what, || open(&place, mode)).map(drop).unwrap_err();
            assert_eq!(error.path(), Some(&*place.path(".store")), "{what}, {mode:?}: {error:?}");
            tree::assert_unchanged(place.parent.path(), &before, &format!("{what}, {mode:?}"));
        }
    }
}

#[test]
fn a_sweep_takes_what_the_dead_left_and_nothing_else() {
    let place = Place::new();
    for left in ["owners/1-dead", "tmp/1-dead.aaaaaa", "tmp/2-gone.bbbbbb"] {
        fs::write(place.path(".store").join(left), "x").unwrap();
    }
    for (at, (what, put)) in IRREGULAR.into_iter().enumerate() {
        put(&place, &place.path(&format!(".store/owners/3-{at}")));
        soon(what, || place.store.write("k", &1)).unwrap();
    }
    fs::create_dir(place.path(".store/tmp/4-dir.cccccc")).unwrap();
    let outside = place.outside();
    let swept = soon("sweep", || place.store.sweep()).unwrap();
    assert_eq!((swept.owners, swept.staged), (1, 2));
    place.assert_outside(&outside, "afterwards");
    assert_eq!(tree::paths(&place.path(".store/tmp")), [Path::new("4-dir.cccccc")]);
    assert_eq!(fs::read_dir(place.path(".store/owners")).unwrap().count(), 1 + IRREGULAR.len());
    place.store.lock("k", once()).unwrap().release().unwrap();
}

#[test]
fn private_directories_that_are_gone_are_made_again_at_the_next_opening() {
    let place = Place::new();
    place.store.write("k", &1).unwrap();
    fs::remove_dir_all(place.path(".store/latches")).unwrap();
    fs::remove_dir_all(place.path(".store/tmp")).unwrap();
    // The store that is open now cannot work, and says what it misses.
    let error = place.store.write("k", &2).unwrap_err();
    assert_eq!(error.path(), Some(&*place.path(".store/tmp")), "{error:?}");
    assert_io(place.store.acquire_lock("k", &once()), &place.path(&latch_of("k")), "no latches");
    assert_eq!(place.store.read::<u8>("k").unwrap().unwrap().result, 1);

    open(&place, OpenMode::Existing).unwrap().write("k", &2).unwrap();
    assert_eq!(place.store.read::<u8>("k").unwrap().unwrap().result, 2);
}

#[test]
fn a_store_that_is_moved_while_open_stays_itself() {
    let place = Place::new();
    place.store.write("k", &1).unwrap();
    let moved = place.parent.path().join("moved");
    let mv = Command::new("mv").arg(place.store.path()).arg(&moved).status();
    assert!(mv.unwrap().success());
    assert_eq!(place.store.read::<u8>("k").unwrap().unwrap().result, 1);
    // Another store takes its name. It is none of the first one's business.
    let other = relaxed().open(place.store.path()).unwrap();
    let before = tree::snapshot(other.path());
    place.store.write("k", &2).unwrap();
    place.store.lock("k", once()).unwrap().write(&3).unwrap();
    tree::assert_unchanged(other.path(), &before, "unchanged");
    assert_eq!(place.store.read::<u8>("k").unwrap().unwrap().result, 3);
    assert!(!other.exists("k").unwrap());
}
