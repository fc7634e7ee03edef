//! Shared locks on a server: those that wait are notified as soon as they may share. What holds on files, too, is in
//! `sharing`.

use std::collections::BTreeSet;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use record_store::{
    BreakOptions, Cancellation, Error, ErrorKind, LockInfo, LockOptions, PostgresRecordStore, RecordStoreExt,
};

use super::processes::until_queued;
use super::{new_url, open, swept};
use crate::support::{PATIENCE, as_named, millis, named, storm};

/// Makes room for a reader, and returns when that was.
type LetIn = Box<dyn FnOnce() -> Instant>;

/// Lets a reader wait until there is room for it. `begin` brings about all that it waits behind. Returns how long the reader
/// took to notice, the shortest of several times: without a notification it would look again only after 250 ms.
fn shortest_delay(url: &str, begin: impl Fn(&PostgresRecordStore, &str) -> (usize, LetIn)) -> Duration {
    let store = open(url);
    let round = |number| {
        let key = format!("k{number}");
        let (ahead, let_in) = begin(&store, &key);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let options = as_named("reader").shared().acquire_timeout(PATIENCE);
                let guard = store.lock(&*key, options).unwrap();
                let end = Instant::now();
                guard.release().unwrap();
                end
            });
            until_queued(store.schema(), ahead + 1);
            let start = let_in();
            reader.join().unwrap().saturating_duration_since(start)
        })
    };
    (0..storm(8)).map(round).min().unwrap()
}

/// Begins an acquisition that waits. Returns its error, if it ends with one.
fn waiter(store: &PostgresRecordStore, key: &str, options: LockOptions) -> JoinHandle<Option<Error>> {
    let (other, key) = (store.clone(), key.to_owned());
    let waiter = std::thread::spawn(move || other.acquire_lock(key, options).err());
    until_queued(store.schema(), 1);
    waiter
}

#[test]
fn a_reader_is_notified_when_the_writer_ahead_of_it_is_cancelled() {
    let Some(url) = new_url() else { return };
    let shortest = shortest_delay(&url, |store, key| {
        store.acquire_lock(key, as_named("first").shared()).unwrap();
        let cancellation = Cancellation::new();
        let writer = waiter(store, key, as_named("writer").cancellation(&cancellation));
        let let_in = move || {
            let start = Instant::now();
            cancellation.cancel();
            assert!(writer.join().unwrap().unwrap().is_cancelled());
            start
        };
        (1, Box::new(let_in))
    });
    assert!(shortest < millis(60), "{shortest:?}");
}

#[test]
fn a_reader_is_notified_when_the_writer_ahead_of_it_times_out() {
    let Some(url) = new_url() else { return };
    let shortest = shortest_delay(&url, |store, key| {
        store.acquire_lock(key, as_named("first").shared()).unwrap();
        let writer = waiter(store, key, as_named("writer").acquire_timeout(millis(600)));
        let let_in = move || {
            assert_eq!(writer.join().unwrap().unwrap().kind(), ErrorKind::LockTimeout);
            Instant::now()
        };
        (1, Box::new(let_in))
    });
    assert!(shortest < millis(60), "{shortest:?}");
}

#[test]
fn a_reader_is_notified_when_the_reader_ahead_of_it_has_acquired() {
    let Some(url) = new_url() else { return };
    let shortest = shortest_delay(&url, |store, key| {
        let token = store.acquire_lock(key, as_named("first")).unwrap();
        let ahead = waiter(store, key, as_named("ahead").shared());
        let (store, key) = (store.clone(), key.to_owned());
        let let_in = move || {
            let start = Instant::now();
            store.release_lock(key, token).unwrap();
            assert!(ahead.join().unwrap().is_none());
            start
        };
        (1, Box::new(let_in))
    });
    assert!(shortest < millis(60), "{shortest:?}");
}

#[test]
fn a_reader_is_notified_when_a_slot_is_released_or_broken() {
    let Some(url) = new_url() else { return };
    for breaks in [false, true] {
        let shortest = shortest_delay(&url, |store, key| {
            let tokens =
                ["first", "second"].map(|name| store.acquire_lock(key, as_named(name).slots(2)).unwrap());
            let (store, key) = (store.clone(), key.to_owned());
            let let_in = move || {
                let start = Instant::now();
                if breaks {
                    assert!(store.break_lock_with(key, BreakOptions::new().token(tokens[1])).unwrap());
                } else {
                    store.release_lock(key, tokens[1]).unwrap();
                }
                start
            };
            (0, Box::new(let_in))
        });
        assert!(shortest < millis(60), "breaks: {breaks}: {shortest:?}");
    }
}

/// Those that come later ask it whether it is stopped.
#[test]
fn a_writer_that_cannot_have_the_lock_yet_keeps_its_place() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let first = store.acquire_lock("k", as_named("first").shared()).unwrap();
    let writer = waiter(&store, "k", as_named("writer").acquire_timeout(PATIENCE));
    let end = Instant::now() + millis(1_500);
    while Instant::now() < end {
        // Each attempt finds the writer ahead.
        assert!(store.try_lock("k", as_named("late").shared()).unwrap().is_none());
        std::thread::sleep(millis(50));
    }
    store.release_lock("k", first).unwrap();
    assert!(store.try_lock("k", as_named("late").shared()).unwrap().is_none());
    assert!(writer.join().unwrap().is_none());
    assert!(store.is_lock_holder("k", &named("writer")).unwrap());
}

/// More than a lock file has room for, and more than the rows of one page of a listing.
#[test]
fn any_number_of_holders_share_a_lock_and_are_one_lock() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    let tokens: BTreeSet<_> =
        (0..600).map(|n| store.acquire_lock("k", as_named(&format!("{n}")).shared()).unwrap()).collect();
    store.acquire_lock("other", as_named("job")).unwrap();
    let listed: Vec<_> = store.locks().unwrap().map(Result::unwrap).collect();
    assert_eq!(listed.len(), 2);
    let of_key = listed.iter().find(|lock| lock.is_shared()).unwrap();
    assert_eq!(of_key.holders().map(LockInfo::token).collect::<BTreeSet<_>>(), tokens);
}

#[test]
fn a_sweep_removes_only_the_holders_whose_lease_is_over() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    for number in 0..3 {
        let hold = if number == 1 { PATIENCE } else { Duration::ZERO };
        store.acquire_lock("k", as_named(&format!("{number}")).hold_timeout(hold).shared()).unwrap();
    }
    assert!(store.is_lock_holder("k", &named("1")).unwrap());
    // The acquisition of the second one has removed the first one.
    assert_eq!(swept(&store), (0, 1));
    let info = store.lock_info("k").unwrap().unwrap();
    assert_eq!(info.holders().map(|it| it.holder().name()).collect::<Vec<_>>(), ["1"]);
}
