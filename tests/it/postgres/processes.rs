//! Several processes on one server: killed, stopped, forked, and with a runtime of their own.

use std::time::{Duration, Instant};

use record_store::{
    Claim, ErrorKind, Holder, LockOptions, PostgresOptions, PostgresRecordStore, ReadOptions,
    RecordStore as _, RecordStoreExt, RemoveOptions, WriteOptions,
};

use super::{new_url, open, swept};
use crate::forks::{assert_succeeds, fork, raw_fork};
use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis, named, storm};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("postgres: hold", hold),
    ("postgres: count", count),
    ("postgres: wait", wait),
    ("postgres: fork an idle child", fork_an_idle_child),
    ("postgres: fork with a guard", fork_with_a_guard),
];

/// Acquires the lock of `k`, says so, and holds it.
fn hold(stage: &Stage) {
    let store = open(&stage.argument::<String>());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    stage.send("held");
    stage.expect("release");
    guard.release().unwrap();
    stage.send("released");
}

#[test]
fn the_lock_of_a_killed_process_is_free_within_a_second() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    for _ in 0..storm(3) {
        let mut holder = Child::start("postgres: hold", &url);
        holder.expect("held");
        assert!(store.is_locked("k").unwrap());
        let waits = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let guard = store.lock("k", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
                let end = Instant::now();
                guard.release().unwrap();
                end
            });
            std::thread::sleep(millis(100));
            holder.kill();
            let killed = Instant::now();
            waiter.join().unwrap().saturating_duration_since(killed)
        });
        assert!(waits < Duration::from_secs(1), "{waits:?}");
    }
}

#[test]
fn the_token_of_a_bound_lock_is_refused_in_another_process_unless_it_was_passed_on() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let mut holder = Child::start("postgres: hold", &url);
    holder.expect("held");
    let token = store.lock_info("k").unwrap().unwrap().token();
    let write = |claim: Claim| store.write_with("k", &1, WriteOptions::new().claim(claim));
    assert!(write(token.into()).unwrap_err().is_lock_lost());
    assert!(store.remove_with("k", RemoveOptions::new().claim(token)).unwrap_err().is_lock_lost());
    let read = store.read_with::<u8>("k", ReadOptions::new().claim(token));
    assert!(read.unwrap_err().is_lock_lost());
    assert!(store.renew("k", token, None).unwrap_err().is_lock_lost());
    assert!(store.release_lock("k", token).unwrap_err().is_lock_lost());
    write(Claim::Delegated(token)).unwrap();
    holder.send("release");
    holder.expect("released");
    holder.finish();
    assert!(write(Claim::Delegated(token)).unwrap_err().is_lock_lost());
    // A named holder's token is worth the same everywhere.
    let token = store.acquire_lock("k", as_named("job")).unwrap();
    write(token.into()).unwrap();
}

#[test]
fn a_release_in_another_process_wakes_a_waiter() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let mut holder = Child::start("postgres: hold", &url);
    holder.expect("held");
    let read = std::thread::scope(|scope| {
        let reader = scope.spawn(|| store.read::<u8>("k").unwrap());
        let waiter = scope.spawn(|| drop(store.lock("k", as_named("waiter")).unwrap()));
        std::thread::sleep(millis(100));
        holder.send("release");
        holder.expect("released");
        waiter.join().unwrap();
        reader.join().unwrap()
    });
    assert!(read.is_none());
    holder.finish();
}

/// Increments a number under the lock, and another one by swaps.
fn count(stage: &Stage) {
    let (url, rounds): (String, u64) = stage.argument();
    let store = open(&url);
    stage.send("ready");
    stage.expect("go");
    for _ in 0..rounds {
        store.update("locked", LockOptions::new(), |old: Option<u64>| Ok(old.unwrap_or(0) + 1)).unwrap();
        loop {
            let seen = store.read::<u64>("swapped").unwrap();
            let version = seen.as_ref().map_or(record_store::RecordVersion::ABSENT, |it| it.version);
            let next = seen.map_or(1, |record| record.result + 1);
            if store.write_if_version("swapped", version, &next, record_store::WriteOptions::new()).unwrap() {
                break;
            }
        }
    }
    stage.send("done");
}

#[test]
fn no_increment_of_several_processes_is_lost() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let rounds = storm(40);
    let mut children: Vec<_> =
        (0..4).map(|_| Child::start("postgres: count", &(url.as_str(), rounds))).collect();
    for child in &mut children {
        child.expect("ready");
    }
    for child in &mut children {
        child.send("go");
    }
    for mut child in children {
        child.expect("done");
        child.finish();
    }
    for key in ["locked", "swapped"] {
        assert_eq!(store.read::<u64>(key).unwrap().unwrap().result, 4 * rounds, "{key}");
    }
}

/// Waits for the lock of `k` as a named holder, and releases it when it is told so.
fn wait(stage: &Stage) {
    let (url, name): (String, String) = stage.argument();
    let store = open(&url);
    stage.send("ready");
    stage.expect("go");
    store.acquire_lock("k", as_named(&name)).unwrap();
    stage.send("held");
    stage.expect("release");
    store.release_lock("k", named(&name)).unwrap();
}

/// The number of waiters in the queue of the only key.
fn queued(schema: &str) -> usize {
    let server = super::Server::shared().unwrap();
    server.sql(&format!("SELECT count(*) FROM {schema}.waiters WHERE kind = 'l'")).parse().unwrap()
}

pub(super) fn until_queued(schema: &str, count: usize) {
    let start = Instant::now();
    while queued(schema) != count {
        assert!(start.elapsed() < PATIENCE, "{} of {count} wait", queued(schema));
        std::thread::sleep(millis(5));
    }
}

#[test]
fn processes_get_the_lock_in_the_order_in_which_they_came() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let guard = store.lock("k", as_named("first")).unwrap();
    let mut waiters = Vec::new();
    for number in 0..4 {
        let mut waiter = Child::start("postgres: wait", &(url.as_str(), format!("waiter {number}")));
        waiter.expect("ready");
        waiter.send("go");
        until_queued(store.schema(), number + 1);
        waiters.push(waiter);
    }
    guard.release().unwrap();
    assert!(store.try_lock("k", as_named("early")).unwrap().is_none(), "a newcomer passes those that wait");
    for mut waiter in waiters {
        waiter.expect("held");
        // Nobody passes those that wait.
        assert!(store.try_lock("k", as_named("late")).unwrap().is_none());
        waiter.send("release");
        waiter.finish();
    }
    assert!(store.try_lock("k", as_named("late")).unwrap().is_some());
}

/// The waiter is stopped, so it cannot have the lock yet.
#[test]
fn a_newcomer_does_not_pass_a_waiter_that_was_notified() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let round = || {
        let guard = store.lock("k", as_named("first")).unwrap();
        let mut waiter = Child::start("postgres: wait", &(url.as_str(), "waiter"));
        waiter.expect("ready");
        waiter.send("go");
        until_queued(store.schema(), 1);
        waiter.stop();
        let start = Instant::now();
        guard.release().unwrap();
        let newcomer = store.try_lock("k", as_named("newcomer")).unwrap();
        let is_in_time = start.elapsed() < Duration::from_secs(1);
        waiter.resume();
        assert!(newcomer.is_none() || !is_in_time, "a newcomer passes the first waiter");
        drop(newcomer);
        waiter.expect("held");
        waiter.send("release");
        waiter.finish();
        is_in_time
    };
    // After a second, the waiter counts as stopped.
    assert!((0..5).any(|_| round()), "the machine is too slow");
}

/// Without a notification, they would notice only at their next check, after 250 ms.
#[test]
fn a_release_and_a_write_notify_those_that_wait() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let server = super::Server::shared().unwrap();
    let waits: [(&str, &(dyn Fn() + Sync)); 3] = [
        ("l", &|| drop(store.lock("k", as_named("next")).unwrap())),
        ("f", &|| assert!(store.wait_for_lock("k", PATIENCE).unwrap())),
        ("c", &|| assert!(store.wait_for_record("k", PATIENCE).unwrap())),
    ];
    for (kind, wait) in waits {
        let round = || {
            let guard = store.lock("k", as_named("first")).unwrap();
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| {
                    wait();
                    Instant::now()
                });
                let count = format!("SELECT count(*) FROM {}.waiters WHERE kind = '{kind}'", store.schema());
                let start = Instant::now();
                while server.sql(&count) == "0" {
                    assert!(start.elapsed() < PATIENCE, "{kind}: nobody waits");
                }
                let changed = Instant::now();
                guard.write(&1).unwrap();
                guard.release().unwrap();
                waiter.join().unwrap().saturating_duration_since(changed)
            })
        };
        let shortest = (0..storm(8)).map(|_| round()).min().unwrap();
        assert!(shortest < millis(60), "{kind}: {shortest:?}");
    }
}

#[test]
fn a_waiter_that_is_stopped_or_killed_holds_up_nobody_for_long() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    for kills in [false, true] {
        let guard = store.lock("k", as_named("first")).unwrap();
        let mut waiter = Child::start("postgres: wait", &(url.as_str(), "stopped"));
        waiter.expect("ready");
        waiter.send("go");
        until_queued(store.schema(), 1);
        if kills {
            waiter.kill();
        } else {
            waiter.stop();
            // The child is killed when the test ends.
            std::mem::forget(waiter);
        }
        guard.release().unwrap();
        let start = Instant::now();
        let next = store.lock("k", as_named("next").acquire_timeout(PATIENCE)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        next.release().unwrap();
    }
}

#[test]
fn a_sweep_removes_the_waiters_of_dead_processes() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let guard = store.lock("k", as_named("first")).unwrap();
    let waiters: Vec<_> = (0..2)
        .map(|number| {
            let mut waiter = Child::start("postgres: wait", &(url.as_str(), format!("waiter {number}")));
            waiter.expect("ready");
            waiter.send("go");
            until_queued(store.schema(), number + 1);
            waiter
        })
        .collect();
    let [killed, mut living] = <[Child; 2]>::try_from(waiters).ok().unwrap();
    killed.kill();
    let start = Instant::now();
    while queued(store.schema()) != 1 {
        // The server notices the death a moment later.
        assert!(start.elapsed() < Duration::from_secs(10), "the waiter of the dead process stays");
        assert_eq!(swept(&store), (0, 0));
    }
    guard.release().unwrap();
    living.expect("held");
    living.send("release");
    living.finish();
}

#[test]
fn an_idle_forked_child_does_not_keep_the_locks_of_its_killed_parent() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let mut parent = Child::start("postgres: fork an idle child", &url);
    parent.expect("forked");
    assert!(store.is_locked("k").unwrap());
    // The child keeps the pipe of the killed parent, and is ended by its end.
    parent.signal(rustix::process::Signal::KILL);
    let free = store.wait_for_lock("k", Duration::from_secs(5)).unwrap();
    assert!(free, "the child has the connection of its parent");
}

fn fork_an_idle_child(stage: &Stage) {
    let store = open(&stage.argument::<String>());
    std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
    fork(|| {
        stage.send("forked");
        std::thread::sleep(Duration::from_secs(10));
    });
    loop {
        nix::unistd::pause();
    }
}

#[test]
fn a_forked_child_has_connections_and_locks_of_its_own() {
    let Some(url) = new_url() else { return };
    let mut parent = Child::start("postgres: fork with a guard", &url);
    parent.expect("done");
    parent.finish();
}

fn fork_with_a_guard(stage: &Stage) {
    let store = open(&stage.argument::<String>());
    store.write("record", &1).unwrap();
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let other = open(&stage.argument::<String>());
    for forks in [fork as fn(Box<dyn FnOnce()>) -> _, raw_fork] {
        let child = forks(Box::new(|| {
            abort_if_hung("a forked child", || {
                assert_eq!(guard.read::<u8>().unwrap_err().kind(), ErrorKind::LockLost);
                assert_eq!(store.read::<u8>("record").unwrap().unwrap().result, 1);
                // The same thread of another process.
                assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
                let own = store.lock("of the child", LockOptions::new()).unwrap();
                own.write(&2).unwrap();
                own.release().unwrap();
                // Dropped without touching the connections of the parent.
                drop(open(&stage.argument::<String>()));
            });
        }));
        assert_succeeds(child);
        guard.write(&3).unwrap();
        assert_eq!(other.read::<u8>("of the child").unwrap().unwrap().result, 2);
    }
    guard.release().unwrap();
    // A child that drops what it has inherited.
    let child = fork(move || drop((store, other)));
    assert_succeeds(child);
    stage.send("done");
}

#[test]
fn a_store_works_inside_of_a_runtime_and_may_be_dropped_there() {
    let Some(url) = new_url() else { return };
    let multi_thread = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let current = tokio::runtime::Builder::new_current_thread().enable_all().build();
    for runtime in [multi_thread.unwrap(), current.unwrap()] {
        let url = url.clone();
        let work = async move {
            let store = open(&url);
            // More than the budget of a task.
            for round in 0..200 {
                store.write("k", &round).unwrap();
                assert_eq!(store.read::<i32>("k").unwrap().unwrap().result, round);
            }
            let guard = store.lock("k", LockOptions::new()).unwrap();
            let waits =
                store.read_with::<i32>("k", ReadOptions::new().claim(named("other")).timeout(millis(20)));
            assert!(waits.unwrap_err().is_timeout());
            drop(guard);
            drop(store);
        };
        abort_if_hung("a store inside of a runtime", move || {
            runtime.block_on(async { tokio::spawn(work).await.unwrap() });
        });
    }
}

#[test]
fn handles_of_one_store_in_a_process_share_its_locks() {
    let Some(url) = new_url() else { return };
    let (one, other) = (open(&url), open(&url));
    let guard = one.lock("k", LockOptions::new()).unwrap();
    let shared = other.lock("k", LockOptions::new()).unwrap();
    assert_eq!(guard.token(), shared.token());
    drop(guard);
    assert!(one.is_locked("k").unwrap());
    drop(shared);
    assert!(!one.is_locked("k").unwrap());
}

/// As with files: the lock ends with the process, not with the handle.
#[test]
fn a_lock_that_was_acquired_without_a_guard_outlives_the_handle() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    store.acquire_lock("k", LockOptions::new()).unwrap();
    drop(store);
    std::thread::sleep(millis(300));
    let again = open(&url);
    assert!(again.is_lock_holder("k", &Holder::current()).unwrap());
    again.release_lock("k", Holder::current()).unwrap();
    let schema = again.schema().to_owned();
    drop(again);
    // Without a lock, the session ends.
    let server = super::Server::shared().unwrap();
    let start = Instant::now();
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{schema}%' AND pid <> pg_backend_pid()"
    );
    while server.sql(&sessions) != "0" {
        assert!(start.elapsed() < PATIENCE, "the sessions do not end");
        std::thread::sleep(millis(20));
    }
}

#[test]
fn large_results_and_any_key_and_holder_come_back() {
    let Some(url) = new_url() else { return };
    let store = PostgresRecordStore::connect(&url, PostgresOptions::new().patience(PATIENCE)).unwrap();
    let large = "x".repeat((64 << 20) - 2);
    store.write("large", &large).unwrap();
    assert!(store.read::<String>("large").unwrap().unwrap().result == large);
    let error = store.write("large", &"x".repeat(64 << 20)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::RecordTooLarge);
    for key in ["\0", "a\0b", &"y".repeat(10_000), "'; DROP TABLE x; --"] {
        let holder = Holder::named(format!("h\0{}", &key[..1])).unwrap_or_else(|_| named("h"));
        let guard = store.lock(key, LockOptions::new().holder(holder.clone())).unwrap();
        guard.write(key).unwrap();
        let info = store.lock_info(key).unwrap().unwrap();
        assert_eq!((info.key().as_str(), info.holder()), (key, &holder));
        guard.release().unwrap();
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, key);
    }
    assert_eq!(store.keys().unwrap().count(), 5);
    assert!(store.identity_raw().is_some());
}
