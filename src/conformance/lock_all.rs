//! `lock_all`: several locks at once.

use std::thread;
use std::time::Duration;

use super::PATIENCE;
use super::support::{
    LEASE, SHORT_WAIT, assert_error, assert_matches, assert_names, blocks_until, join, long_lease, named,
};
use crate::{Error, ErrorKind, LockOptions, RecordStore, RecordStoreExt};

checks! { "lock_all":
    all_locks_or_none:
        "`lock_all` acquires all locks, or none if the time runs out; the error names the missing key.",
    different_orders_do_not_deadlock:
        "Threads that request several locks in different orders do not deadlock: each acquires them all.",
    leases_do_not_expire_during_the_call:
        "The leases of the first locks do not expire while `lock_all` waits for the last one.",
}

fn all_locks_or_none(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("b", long_lease(&other)).unwrap();
    let options = || LockOptions::new().acquire_timeout(SHORT_WAIT);
    let error = assert_error(store.lock_all(["c", "a", "b"], options()), ErrorKind::LockTimeout);
    assert_names(&error, "b", &other);
    for key in ["a", "c"] {
        assert!(!store.is_locked(key).unwrap(), "{key} is still locked");
    }
    let guards = blocks_until(
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

fn different_orders_do_not_deadlock(store: &dyn RecordStore) {
    thread::scope(|scope| {
        let threads: Vec<_> = [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]]
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
        for thread in threads {
            join(thread).unwrap();
        }
    });
    assert_eq!(store.read::<u32>("b").unwrap().unwrap().result, 30, "updates were lost");
}

fn leases_do_not_expire_during_the_call(store: &dyn RecordStore) {
    let other = named("other");
    store.acquire_lock("b", long_lease(&other)).unwrap();
    let options = LockOptions::new().hold_timeout(LEASE).acquire_timeout(PATIENCE);
    let remaining = blocks_until(
        || {
            let guards = store.lock_all(["a", "b"], options.clone())?;
            let remaining = guards.get("a").expect("a guard").remaining()?;
            guards.release().map(|()| remaining.expect("a lease"))
        },
        || {
            thread::sleep(LEASE * 2);
            store.release_lock("b", &other).unwrap();
        },
    );
    assert_matches!(remaining, Ok(remaining) if remaining > Duration::ZERO);
}
