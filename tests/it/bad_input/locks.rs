//! Lock files that are none.

use record_store::{Claim, Json, LockToken};

use super::*;

/// What every operation that has to understand the lock says; none of them may change anything.
fn refused(place: &Place) -> Vec<(&'static str, Error)> {
    let store = &place.store;
    let token = LockToken::new(1);
    let before = tree::snapshot(&place.path("k.json"));
    let ask = || {
        vec![
            ("read", store.read::<Json>("k").unwrap_err()),
            ("read by token", store.read_as::<Json>("k", token).unwrap_err()),
            ("write", store.write("k", "no").unwrap_err()),
            ("write by token", store.write_as("k", "no", token).unwrap_err()),
            ("remove", store.remove("k").unwrap_err()),
            ("acquire", store.acquire_lock("k", &LockOptions::new()).unwrap_err()),
            ("try_lock", store.try_lock("k", LockOptions::new()).map(drop).unwrap_err()),
            ("renew", store.renew("k", token, None).unwrap_err()),
            ("release", store.release_lock("k", Claim::current()).unwrap_err()),
            ("lock_info", store.lock_info("k").unwrap_err()),
            ("is_locked", store.is_locked("k").unwrap_err()),
            ("wait_for_lock", store.wait_for_lock("k", None).unwrap_err()),
        ]
    };
    let refused = soon("operations on a bad lock", ask);
    tree::assert_unchanged(&place.path("k.json"), &before, "unchanged");
    place.assert_nothing_staged();
    // What ignores locks goes on.
    assert!(store.exists("k").unwrap());
    assert_eq!(store.keys().unwrap().count(), 1);
    refused
}

fn assert_works_again(place: &Place) {
    let guard = place.store.lock("k", once()).unwrap();
    guard.write("healed").unwrap();
    guard.release().unwrap();
    assert_eq!(place.store.read::<String>("k").unwrap().unwrap().result, "healed");
}

/// A store with a record `k`.
fn with_record(place: &Place) {
    fs::write(place.path("k.json"), sound_record("k", "\"old\"")).unwrap();
}

/// A lock file of `k` as the library writes it.
fn sound_lock() -> String {
    let place = Place::new();
    let lease = once().holder(job()).hold_timeout(Duration::from_mins(5));
    place.store.acquire_lock("k", &lease).unwrap();
    fs::read_to_string(place.path("k.lock")).unwrap()
}

#[test]
fn every_truncation_is_told_by_every_operation() {
    let place = Place::new();
    with_record(&place);
    let text = sound_lock();
    for cut in 1..text.trim_end().len() {
        fs::write(place.path("k.lock"), &text[..cut]).unwrap();
        for (operation, error) in refused(&place) {
            let corrupt = matches!(&error, Error::CorruptLock { source: Some(_), .. });
            assert!(corrupt, "{operation}, cut at {cut}: {error:?}");
            assert_eq!(error.path(), Some(&*place.path("k.lock")));
        }
    }
    assert!(place.store.break_lock("k").unwrap());
    assert_works_again(&place);
}

#[test]
fn an_empty_lock_is_no_lock() {
    let place = Place::new();
    for (size, what) in [(0, "never written"), (267, "lost in a power failure")] {
        fs::write(place.path("k.lock"), vec![0; size]).unwrap();
        assert_eq!(place.store.lock_info("k").unwrap(), None, "{what}");
        assert!(place.store.wait_for_lock("k", None).unwrap(), "{what}");
        assert_eq!(place.store.locks().unwrap().count(), 0, "{what}");
        assert!(matches!(place.store.release_lock("k", job()), Err(Error::NotLocked { .. })), "{what}");
        place.store.write("k", &1).unwrap();
        let guard = place.store.lock("k", once()).unwrap();
        assert_eq!(place.store.locks().unwrap().count(), 1, "{what}");
        guard.release().unwrap();
    }
}

#[test]
fn fields_beyond_belief() {
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
        let place = Place::new();
        with_record(&place);
        let what = format!("{field} {value:.60}");
        let good = lock.insert(field.into(), value).unwrap();
        fs::write(place.path("k.lock"), serde_json::to_string(&lock).unwrap()).unwrap();
        lock.insert(field.into(), good);
        for (operation, error) in refused(&place) {
            assert!(matches!(error, Error::CorruptLock { .. }), "{what}, {operation}: {error:?}");
            assert_eq!(error.path(), Some(&*place.path("k.lock")), "{what}, {operation}");
        }
        assert!(place.store.break_lock("k").unwrap());
        assert_works_again(&place);
    }
}

#[test]
fn a_hostile_holder_is_only_a_name() {
    let place = Place::new();
    let outside = place.outside();
    for name in ["../../x", "/etc/passwd", "a\0b\n", "\"}", "%2F", &"é".repeat(256)] {
        let holder = Holder::named(name).unwrap();
        let guard = place.store.lock("k", once().holder(holder.clone())).unwrap();
        assert!(place.store.is_lock_holder("k", &holder).unwrap());
        assert_eq!(place.store.lock_info("k").unwrap().unwrap().holder(), &holder);
        guard.release().unwrap();
    }
    place.assert_outside(&outside, "afterwards");
}

#[test]
fn a_huge_lock_is_refused() {
    let place = Place::new();
    with_record(&place);
    let padded = sound_lock().replace("{\"key\"", &format!("{{{}\"key\"", " ".repeat(64 * 1024)));
    for size in [None, Some(1 << 40)] {
        fs::write(place.path("k.lock"), &padded).unwrap();
        if let Some(size) = size {
            fs::File::options().write(true).open(place.path("k.lock")).unwrap().set_len(size).unwrap();
        }
        for (operation, error) in soon("a huge lock", || refused(&place)) {
            // Nobody tried to make sense of it.
            assert!(matches!(error, Error::CorruptLock { source: None, .. }), "{operation}: {error:?}");
        }
        assert!(place.store.break_lock("k").unwrap());
        assert_works_again(&place);
    }
}

#[test]
fn another_keys_lock_is_no_lock_of_this_key() {
    let place = Place::new();
    with_record(&place);
    fs::write(place.path("k.lock"), sound_lock().replace("\"k\"", "\"K\"")).unwrap();
    for (operation, error) in refused(&place) {
        assert!(matches!(error, Error::KeyMismatch { .. }), "{operation}: {error:?}");
        assert_eq!(error.path(), Some(&*place.path("k.lock")), "{operation}");
    }
    let listed: Vec<_> = place.store.locks().unwrap().collect();
    assert!(matches!(&listed[..], [Err(Error::KeyMismatch { .. })]), "{listed:?}");
    assert!(place.store.break_lock("k").unwrap());
    assert_works_again(&place);
}

#[test]
fn something_irregular_in_the_place_of_a_lock() {
    for_each_irregular("k.lock", |place, what| {
        with_record(place);
        let path = place.path("k.lock");
        for (operation, error) in refused(place) {
            assert_irregular::<()>(Err(error), &path, &format!("{what}, {operation}"));
        }
        place.store.acquire_lock("other", &once()).unwrap();
        let (good, mut bad): (Vec<_>, Vec<_>) = place.store.locks().unwrap().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (1, 1), "{what}");
        assert_irregular(bad.remove(0), &path, what);

        if what.starts_with("a directory") {
            assert_io(place.store.break_lock("k"), &path, what);
            clear(&path);
        } else {
            assert!(place.store.break_lock("k").unwrap(), "{what}");
        }
        assert_works_again(place);
    });
}

#[test]
fn an_owner_that_cannot_be_asked_is_not_dead() {
    for_each_irregular(".store/owners/1-x", |place, what| {
        with_record(place);
        let bound = sound_lock().replace("\"bound\":false", "\"bound\":true");
        let mut lock: serde_json::Value = serde_json::from_str(&bound).unwrap();
        lock["owner"] = "1-x".into();
        fs::write(place.path("k.lock"), lock.to_string()).unwrap();
        assert_eq!(place.store.lock_info("k").unwrap().unwrap().owner_alive(), None, "{what}");
        assert!(place.store.acquire_lock("k", &once()).unwrap_err().is_timeout(), "{what}");
        assert!(place.store.write("k", "no").unwrap_err().is_locked(), "{what}");
        assert!(place.store.break_lock("k").unwrap());
        assert_works_again(place);
    });
}
