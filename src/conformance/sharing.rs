//! Shared locks: readers, and a limited number of holders.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use super::PATIENCE;
use super::support::{
    LEASE, SHORT_WAIT, assert_error, assert_names, blocks_until, break_by, in_order_of_arrival, join,
    long_lease, named, one_attempt, read_by, short_lease, write_by,
};
use crate::{
    CommitMode, ErrorKind, Holder, IsolationLevel, LockInfo, LockOptions, LockState, LockToken, RecordStore,
    RecordStoreExt, UpdateOptions,
};

checks! { "sharing":
    several_holders_share_a_lock:
        "Holders that ask for a shared lock have it at the same time, each with its token, and `lock_info` and `locks` name all of them.",
    a_shared_lock_and_an_exclusive_one_exclude_each_other:
        "An exclusive lock is acquired when the last holder of a shared one has released it, and a shared one when the exclusive one is released.",
    nobody_changes_a_record_whose_lock_is_shared:
        "While a lock is shared, a change by one of its holders is `LockShared`, by anybody else `Locked`, and a read does not wait.",
    slots_limit_the_holders:
        "At most so many holders share a lock as each of them asked for, and the next one is woken when one releases it.",
    each_holder_releases_its_own_acquisition:
        "A release ends the acquisition of that holder or token, and leaves the others as they are.",
    each_acquisition_has_a_lease_of_its_own:
        "When the lease of one holder ends, the others keep the lock, and the next one acquires the slot.",
    a_renewal_is_of_one_holder:
        "A renewal, or a repeated acquisition, restarts the lease of that holder, and keeps its token.",
    a_shared_lock_does_not_become_exclusive:
        "A holder that shares a lock and asks for an exclusive one gets `LockShared` at once, and keeps what it has; one that has an exclusive lock keeps that.",
    a_break_by_token_is_of_one_holder:
        "`break_lock` with a token breaks the acquisition of one holder, and without a token the whole lock.",
    readers_and_writers_are_served_in_order:
        "Shared and exclusive acquisitions are served in the order of their arrival: a writer is not overtaken by later readers, and readers that wait one behind the other acquire together.",
    what_changes_a_record_locks_it_exclusively:
        "`update`, `get_or_compute` and a transaction lock exclusively, also with the options of a shared lock.",
    many_threads_never_exceed_the_slots:
        "Of many threads that compete for a few slots, never more hold one, and each gets its turn.",
}

fn shared(name: &str) -> LockOptions {
    one_attempt(&named(name)).hold_timeout(PATIENCE).shared()
}

fn slots(name: &str, count: u32) -> LockOptions {
    shared(name).slots(count)
}

/// Whether the store has shared locks. It may answer that it has none.
fn has_shared_locks(store: &dyn RecordStore) -> bool {
    match store.acquire_lock("probe", shared("probe")) {
        Err(error) if error.kind() == ErrorKind::Unsupported => false,
        acquired => store.release_lock("probe", acquired.unwrap()).is_ok(),
    }
}

/// The names of those that hold the lock, in the order of their tokens.
fn holders(store: &dyn RecordStore, key: &str) -> Vec<String> {
    let info = store.lock_info(key).unwrap();
    let held = info.iter().flat_map(LockInfo::holders).filter(|it| it.state() == LockState::Held);
    let mut held: Vec<_> = held.map(|it| (it.token(), it.holder().name().to_owned())).collect();
    held.sort();
    held.into_iter().map(|(_, name)| name).collect()
}

fn several_holders_share_a_lock(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let first = store.acquire_lock("key", shared("first").note("reads the index")).unwrap();
    let second = store.acquire_lock("key", slots("second", 7)).unwrap();
    let third = store.acquire_lock("key", shared("third")).unwrap();
    assert!(first < second && second < third, "the tokens do not grow");
    assert_eq!(holders(store, "key"), ["first", "second", "third"]);
    let info = store.lock_info("key").unwrap().expect("a held lock");
    assert!(info.is_shared() && info.sharers().len() == 2);
    let of = |name: &str| info.holders().find(|it| it.holder() == &named(name)).expect("a holder");
    assert_eq!((of("first").slots(), of("second").slots()), (Some(NonZeroU32::MAX), NonZeroU32::new(7)));
    assert_eq!((of("first").note(), of("second").note()), (Some("reads the index"), None));
    assert_eq!((of("first").token(), of("third").token()), (first, third));
    let listed: Vec<_> = store.locks().unwrap().map(Result::unwrap).collect();
    assert_eq!(listed.len(), 1, "one lock is listed several times");
    assert_eq!(
        listed[0].holders().map(LockInfo::token).collect::<BTreeSet<_>>(),
        [first, second, third].into()
    );
    for name in ["first", "second", "third"] {
        assert!(store.is_lock_holder("key", &named(name)).unwrap(), "{name}");
    }
    assert!(!store.is_lock_holder("key", &named("fourth")).unwrap());
    assert!(store.is_locked("key").unwrap());
    assert!(!store.wait_for_lock("key", Duration::ZERO).unwrap());
}

fn a_shared_lock_and_an_exclusive_one_exclude_each_other(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let writer = named("writer");
    let waiting = || long_lease(&writer).acquire_timeout(PATIENCE);
    let (first, second) = (
        store.acquire_lock("key", shared("first")).unwrap(),
        store.acquire_lock("key", shared("second")).unwrap(),
    );
    assert_error(store.acquire_lock("key", one_attempt(&writer)), ErrorKind::LockTimeout);
    let acquires = || {
        store.release_lock("key", first).unwrap();
        store.acquire_lock("key", waiting())
    };
    let token = blocks_until(acquires, || store.release_lock("key", second).unwrap()).unwrap();
    assert!(second < token);
    assert!(!store.lock_info("key").unwrap().expect("a held lock").is_shared());
    let error = assert_error(store.acquire_lock("key", shared("first")), ErrorKind::LockTimeout);
    assert_names(&error, "key", &writer);
    let acquires = || store.acquire_lock("key", shared("first").acquire_timeout(PATIENCE));
    let again = blocks_until(acquires, || store.release_lock("key", &writer).unwrap()).unwrap();
    assert!(token < again);
    let freed = blocks_until(
        || store.wait_for_lock("key", PATIENCE).unwrap(),
        || store.release_lock("key", again).unwrap(),
    );
    assert!(freed && !store.is_locked("key").unwrap());
}

fn nobody_changes_a_record_whose_lock_is_shared(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    store.write("key", &1).unwrap();
    let (me, other) = (named("me"), named("other"));
    let guard = store.lock("key", shared("me")).unwrap();
    let token = store.acquire_lock("key", shared("second")).unwrap();
    assert_error(guard.write(&2), ErrorKind::LockShared);
    assert_error(guard.remove(), ErrorKind::LockShared);
    assert_error(store.write_with("key", &2, write_by(&me)), ErrorKind::LockShared);
    let error = assert_error(store.write_with("key", &2, write_by(token)), ErrorKind::LockShared);
    assert_eq!(error.key().map(crate::Key::as_str), Some("key"));
    assert_error(store.write_with("key", &2, write_by(&other)), ErrorKind::Locked);
    assert_error(store.compare_and_swap("key", Some(&1), &2, write_by(&me)), ErrorKind::LockShared);
    for claim in [crate::Claim::from(&me), crate::Claim::from(token), crate::Claim::from(&other)] {
        let read = store.read_with::<i64>("key", read_by(claim).timeout(Duration::ZERO)).unwrap();
        assert_eq!(read.expect("the record").result, 1);
    }
    let absent = store.acquire_lock("absent", shared("me")).unwrap();
    let read = store.read_with::<i64>("absent", read_by(&other).timeout(Duration::ZERO)).unwrap();
    assert!(read.is_none());
    store.release_lock("absent", absent).unwrap();
    assert_eq!(guard.read::<i64>().unwrap().expect("the record").result, 1);
    guard.release().unwrap();
    store.release_lock("key", token).unwrap();
    store.write_with("key", &2, write_by(&other)).unwrap();
}

fn slots_limit_the_holders(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let first = store.acquire_lock("key", slots("first", 2)).unwrap();
    store.acquire_lock("key", slots("second", 2)).unwrap();
    assert_error(store.acquire_lock("key", slots("third", 2)), ErrorKind::LockTimeout);
    // The least number counts, whoever asked for it.
    for options in [slots("third", 3), shared("third")] {
        assert_error(store.acquire_lock("key", options), ErrorKind::LockTimeout);
    }
    let acquires = || store.acquire_lock("key", slots("third", 2).acquire_timeout(PATIENCE));
    blocks_until(acquires, || store.release_lock("key", first).unwrap()).unwrap();
    assert_eq!(holders(store, "key"), ["second", "third"]);
    store.acquire_lock("other", shared("first")).unwrap();
    store.acquire_lock("other", slots("second", 2)).unwrap();
    assert_error(store.acquire_lock("other", slots("third", 2)), ErrorKind::LockTimeout);
    store.acquire_lock("one", slots("first", 0)).unwrap();
    assert_error(store.acquire_lock("one", slots("second", 2)), ErrorKind::LockTimeout);
}

fn each_holder_releases_its_own_acquisition(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let acquire = |name| store.acquire_lock("key", shared(name)).unwrap();
    let (first, second) = (acquire("first"), acquire("second"));
    acquire("third");
    store.release_lock("key", second).unwrap();
    assert_eq!(holders(store, "key"), ["first", "third"]);
    assert_error(store.release_lock("key", second), ErrorKind::LockLost);
    assert_error(store.release_lock("key", named("second")), ErrorKind::NotLockHolder);
    assert_error(store.read_with::<i64>("key", read_by(second)), ErrorKind::LockLost);
    store.release_lock("key", named("third")).unwrap();
    assert_eq!(holders(store, "key"), ["first"]);
    assert!(store.read_with::<i64>("key", read_by(first)).unwrap().is_none());
    store.release_lock("key", first).unwrap();
    assert!(!store.is_locked("key").unwrap());
    assert_error(store.release_lock("key", named("first")), ErrorKind::NotLocked);
    assert!(acquire("first") > second, "the tokens do not grow");
}

fn each_acquisition_has_a_lease_of_its_own(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    store.acquire_lock("key", slots("long", 2)).unwrap();
    let short = store.acquire_lock("key", short_lease(&named("short")).slots(2)).unwrap();
    let start = Instant::now();
    store.acquire_lock("key", slots("next", 2).acquire_timeout(PATIENCE)).unwrap();
    assert!(start.elapsed() < PATIENCE / 2, "the end of the lease was not noticed");
    assert_eq!(holders(store, "key"), ["long", "next"]);
    assert_error(store.renew("key", short, None), ErrorKind::LockLost);
    // The oldest one, too.
    store.acquire_lock("other", short_lease(&named("short")).shared()).unwrap();
    store.acquire_lock("other", shared("long")).unwrap();
    let end = Instant::now() + PATIENCE;
    while holders(store, "other").len() > 1 {
        assert!(Instant::now() < end, "the lease of the oldest holder does not end");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(holders(store, "other"), ["long"]);
    assert_error(store.acquire_lock("other", one_attempt(&named("writer"))), ErrorKind::LockTimeout);
}

fn a_renewal_is_of_one_holder(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let options = |name: &str| short_lease(&named(name)).shared();
    let renewed = store.acquire_lock("key", options("renewed")).unwrap();
    store.acquire_lock("key", options("over")).unwrap();
    let again = store.acquire_lock("key", options("again")).unwrap();
    store.renew("key", renewed, PATIENCE).unwrap();
    assert_eq!(store.acquire_lock("key", shared("again")).unwrap(), again);
    thread::sleep(LEASE);
    let end = Instant::now() + PATIENCE;
    while holders(store, "key").len() > 2 {
        assert!(Instant::now() < end, "all leases were renewed");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(holders(store, "key"), ["renewed", "again"]);
}

fn a_shared_lock_does_not_become_exclusive(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let me = named("me");
    let token = store.acquire_lock("key", shared("me")).unwrap();
    for _ in 0..2 {
        let start = Instant::now();
        assert_error(
            store.acquire_lock("key", one_attempt(&me).acquire_timeout(PATIENCE)),
            ErrorKind::LockShared,
        );
        assert!(start.elapsed() < PATIENCE / 2, "it waits for itself");
        assert!(store.is_lock_holder("key", &me).unwrap(), "it lost what it had");
        // The second time beside another holder.
        let _ = store.acquire_lock("key", shared("other")).unwrap();
    }
    store.release_lock("key", token).unwrap();
    let exclusive = store.acquire_lock("exclusive", long_lease(&me)).unwrap();
    assert_eq!(store.acquire_lock("exclusive", shared("me")).unwrap(), exclusive);
    store.write_with("exclusive", &1, write_by(exclusive)).unwrap();
    assert_error(store.acquire_lock("exclusive", shared("other")), ErrorKind::LockTimeout);
}

fn a_break_by_token_is_of_one_holder(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let tokens: Vec<LockToken> =
        ["a", "b", "c"].map(|name| store.acquire_lock("key", slots(name, 3)).unwrap()).into();
    let acquires = || store.acquire_lock("key", slots("d", 3).acquire_timeout(PATIENCE));
    let breaks = || assert!(store.break_lock_with("key", break_by(tokens[1])).unwrap());
    blocks_until(acquires, breaks).unwrap();
    assert_eq!(holders(store, "key"), ["a", "c", "d"]);
    assert!(!store.break_lock_with("key", break_by(tokens[1])).unwrap());
    assert!(store.break_lock_with("key", break_by(tokens[0])).unwrap());
    assert_eq!(holders(store, "key"), ["c", "d"]);
    let acquires = || store.acquire_lock("key", long_lease(&named("writer")).acquire_timeout(PATIENCE));
    blocks_until(acquires, || assert!(store.break_lock("key").unwrap())).unwrap();
    assert_eq!(holders(store, "key"), ["writer"]);
}

fn readers_and_writers_are_served_in_order(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    in_order_of_arrival(|gap| {
        let (acquired, is_acquired) = channel();
        let first = store.acquire_lock("key", shared("first")).unwrap();
        thread::scope(|scope| {
            let mut waiters = Vec::new();
            for (name, is_shared) in
                [("writer", false), ("reader 1", true), ("reader 2", true), ("last", false)]
            {
                let acquired = acquired.clone();
                waiters.push(scope.spawn(move || {
                    let options = long_lease(&named(name)).acquire_timeout(PATIENCE);
                    let options = if is_shared { options.shared() } else { options };
                    let token = store.acquire_lock("key", options).unwrap();
                    let mut observed = name.trim_end_matches(|it: char| !it.is_alphabetic()).to_owned();
                    if is_shared {
                        // Both readers have it at the same time, unless the last writer has come before one of them.
                        let end = Instant::now() + PATIENCE / 10;
                        while holders(store, "key").len() < 2 && Instant::now() < end {
                            thread::sleep(Duration::from_millis(1));
                        }
                        if Instant::now() >= end {
                            observed.push_str(" alone");
                        }
                        thread::sleep(SHORT_WAIT / 4);
                    }
                    let _ = acquired.send(observed);
                    store.release_lock("key", token).unwrap();
                }));
                thread::sleep(gap);
            }
            drop(acquired);
            let newcomer = store.acquire_lock("key", shared("newcomer"));
            assert_error(newcomer, ErrorKind::LockTimeout);
            store.release_lock("key", first).unwrap();
            waiters.into_iter().for_each(join);
        });
        let expected = ["writer", "reader", "reader", "last"].map(str::to_owned);
        (is_acquired.iter().collect(), expected.to_vec())
    });
}

fn what_changes_a_record_locks_it_exclusively(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let is_exclusive = |key: &str| !store.lock_info(key).unwrap().expect("a held lock").is_shared();
    let options = || UpdateOptions::from(LockOptions::new().shared());
    let update = |old: Option<i64>| {
        assert!(is_exclusive("key"), "`update` shares the lock");
        Ok(old.unwrap_or(0) + 1)
    };
    assert_eq!(store.update("key", options(), update).unwrap(), 1);
    let compute = || {
        assert!(is_exclusive("computed"), "`get_or_compute` shares the lock");
        Ok(7)
    };
    assert_eq!(store.get_or_compute("computed", options(), compute).unwrap(), 7);
    if store.supports_isolation_level(IsolationLevel::Serializable) {
        let transaction = store.transaction("transaction").unwrap();
        let transaction = transaction.isolation_level(IsolationLevel::Serializable);
        let transaction =
            transaction.commit_mode(CommitMode::Eager).lock_options(LockOptions::new().shared());
        let mut transaction = transaction.begin().unwrap();
        assert!(is_exclusive("transaction"), "a transaction shares the lock");
        transaction.stage(&1).unwrap();
        transaction.commit().unwrap();
    }
}

const SLOTS: u32 = 3;

fn many_threads_never_exceed_the_slots(store: &dyn RecordStore) {
    if !has_shared_locks(store) {
        return;
    }
    let inside = AtomicU32::new(0);
    thread::scope(|scope| {
        for number in 0..8 {
            let (inside, me) = (&inside, Holder::bound(format!("worker {number}")).unwrap());
            scope.spawn(move || {
                for _ in 0..10 {
                    let options = LockOptions::new().holder(me.clone()).acquire_timeout(PATIENCE);
                    let guard = store.lock("key", options.hold_timeout(PATIENCE).slots(SLOTS)).unwrap();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < SLOTS, "more holders than slots");
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    guard.release().unwrap();
                }
            });
        }
    });
    assert!(!store.is_locked("key").unwrap());
}
