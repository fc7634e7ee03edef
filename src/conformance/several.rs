//! Several locks at once, and transactions: what is built on locks and records.

use std::thread;
use std::time::Duration;

use super::PATIENCE;
use super::support::{A_WHILE, LEASE, assert_matches, join, long, named, waits_until_freed};
use crate::{CommitMode, Error, IsolationLevel, LockOptions, RecordStore, RecordStoreExt, TransactionState};

checks! { "several":
    all_locks_or_none:
        "`lock_all` takes all locks, or none when the time is up, and names the one that is missing.",
    nobody_waits_in_a_circle:
        "Threads that take several locks in different orders all get them.",
    leases_last_until_all_are_there:
        "The leases of the first locks last until the last one is there.",
    a_transaction_writes_at_its_commit:
        "A transaction writes at its commit and not before; dropped, it writes nothing.",
    a_serializable_transaction_holds_the_lock:
        "A serializable transaction holds the lock from begin to end.",
    a_transaction_with_its_children:
        "Children are committed with their parent.",
}

fn all_locks_or_none(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("b", &long(&other)).unwrap();
    let short = || LockOptions::new().acquire_timeout(A_WHILE);
    match store.lock_all(["c", "a", "b"], short()) {
        Err(Error::LockTimeout { key, holder, .. }) => {
            assert_eq!((key.as_str(), holder), ("b", Some(other.clone())));
        }
        outcome => panic!("{outcome:?}"),
    }
    for key in ["a", "c"] {
        assert!(!store.is_locked(key).unwrap(), "{key} is left locked");
    }
    let guards = waits_until_freed(
        || store.lock_all(["c", "a", "b", "a"], LockOptions::new()).map(|guards| guards.iter().count()),
        || store.release_lock("b", &other).unwrap(),
    );
    assert_matches!(guards, Ok(3));
    let guards = store.lock_all(["y", "x"], LockOptions::new()).unwrap();
    guards.get("x").expect("a guard").write(&1).unwrap();
    assert!(guards.get("z").is_none());
    assert!(store.is_locked("x").unwrap() && store.is_locked("y").unwrap());
    guards.release().unwrap();
    assert!(!store.is_locked("x").unwrap() && !store.is_locked("y").unwrap());
}

fn nobody_waits_in_a_circle(store: &dyn RecordStore) {
    thread::scope(|scope| {
        let takes: Vec<_> = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]]
            .map(|keys| {
                scope.spawn(move || {
                    for _ in 0..10 {
                        let options = LockOptions::new().acquire_timeout(PATIENCE);
                        let guards = store.lock_all(keys, options)?;
                        for guard in &guards {
                            let count = guard.read::<u32>()?.map_or(0, |record| record.result);
                            guard.write(&(count + 1))?;
                        }
                    }
                    Ok::<_, Error>(())
                })
            })
            .into();
        for take in takes {
            join(take).unwrap();
        }
    });
    assert_eq!(store.read::<u32>("b").unwrap().unwrap().result, 30, "updates were lost");
}

fn leases_last_until_all_are_there(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("b", &long(&other)).unwrap();
    let options = LockOptions::new().hold_timeout(LEASE).acquire_timeout(PATIENCE);
    let left = waits_until_freed(
        || {
            let guards = store.lock_all(["a", "b"], options.clone())?;
            let left = guards.get("a").expect("a guard").remaining()?;
            guards.release().map(|()| left.expect("a lease"))
        },
        || {
            thread::sleep(LEASE * 2);
            store.release_lock("b", &other).unwrap();
        },
    );
    assert_matches!(left, Ok(left) if left > Duration::ZERO);
}

fn a_transaction_writes_at_its_commit(store: &dyn RecordStore) {
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    assert_eq!(transaction.state(), TransactionState::Active);
    transaction.stage(&1).unwrap();
    assert_eq!(transaction.state(), TransactionState::Staged);
    assert!(!store.exists("key").unwrap(), "written before the commit");
    transaction.commit().unwrap();
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);

    let again = store.transaction("key").unwrap().begin().unwrap();
    assert!(again.is_committed(), "the record exists");
    drop(again);
    let mut again = store.transaction("key").unwrap().overwrite(true).begin().unwrap();
    again.stage(&2).unwrap();
    drop(again);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1, "a dropped transaction wrote");
}

fn a_serializable_transaction_holds_the_lock(store: &dyn RecordStore) {
    let begin = || store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
    let mut transaction = begin().begin().unwrap();
    assert!(store.is_locked("key").unwrap(), "no lock was taken");
    let late = thread::scope(|scope| {
        let options = LockOptions::new().acquire_timeout(A_WHILE);
        join(scope.spawn(|| begin().lock_options(options).begin().map(|other| other.state())))
    });
    assert_matches!(late, Err(Error::LockTimeout { .. }));
    transaction.stage(&1).unwrap();
    transaction.commit().unwrap();
    assert!(!store.is_locked("key").unwrap(), "the lock was left");
    begin().begin().unwrap().rollback().unwrap();
    assert!(!store.is_locked("key").unwrap(), "the lock was left");
}

fn a_transaction_with_its_children(store: &dyn RecordStore) {
    let mut parent = store.transaction("parent").unwrap().begin().unwrap();
    let child = parent.child("child").unwrap().run(|child| child.stage(&1));
    child.unwrap();
    let eager = parent.child("eager").unwrap().commit_mode(CommitMode::Eager).run(|child| child.stage(&1));
    eager.unwrap();
    assert!(!store.exists("child").unwrap(), "committed before its parent");
    assert!(store.exists("eager").unwrap(), "not committed at once");
    parent.stage(&2).unwrap();
    parent.commit().unwrap();
    assert!(store.exists("child").unwrap() && store.exists("parent").unwrap());
}
