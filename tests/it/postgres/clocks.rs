//! The clock of the server is set while leases run. A lease may end early or late, but whoever has lost the lock changes
//! nothing.
//!
//! The server runs with a library that adds an offset to the wall clock. That is what `clock_timestamp()` returns, and
//! what the server's own time limits are computed from. Other clocks stay as they are, those of the clients too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use record_store::{LockOptions, PostgresRecordStore, RecordStoreExt, WriteOptions};

use super::server::{Clock, Server};
use super::{new_url_on, open};
use crate::support::{PATIENCE, as_named, millis};
use crate::watchdog::abort_if_hung;

const HOUR: i64 = 3_600_000;

fn own_server() -> Option<(Server, Clock, PostgresRecordStore)> {
    let (server, clock) = Server::with_clock()?;
    let store = open(&new_url_on(&server));
    Some((server, clock, store))
}

fn seconds(server: &Server) -> i64 {
    server.sql("SELECT extract(epoch FROM clock_timestamp())::bigint").parse().unwrap()
}

#[test]
fn the_clock_of_a_server_can_be_set() {
    let Some((server, clock, _)) = own_server() else { return };
    let start = seconds(&server);
    for hours in [2, -3, 0] {
        clock.set(hours * HOUR);
        let moved = seconds(&server) - start - hours * HOUR / 1_000;
        assert!((0..60).contains(&moved), "{moved} s beside {hours} h");
    }
}

#[test]
fn a_clock_that_is_set_forward_ends_a_lease_early_and_its_token_is_refused() {
    let Some((_server, clock, store)) = own_server() else { return };
    let lease = Duration::from_hours(1);
    let guard = store.lock("k", as_named("first").hold_timeout(lease)).unwrap();
    guard.write(&1).unwrap();
    store.write_with("brief", &1, WriteOptions::new().time_to_live(lease)).unwrap();
    let next = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| store.lock("k", as_named("next").acquire_timeout(PATIENCE)));
        std::thread::sleep(millis(100));
        assert!(!waiter.is_finished());
        clock.set(2 * HOUR);
        // It had meant to sleep for an hour.
        abort_if_hung("a waiter", || waiter.join().unwrap().unwrap())
    });
    assert!(next.token() > guard.token());
    assert!(guard.write(&2).unwrap_err().is_lock_lost());
    assert!(guard.renew().unwrap_err().is_lock_lost());
    assert!(guard.release().unwrap_err().is_lock_lost());
    assert_eq!(next.read::<u8>().unwrap().unwrap().result, 1);
    assert!(!store.exists("brief").unwrap(), "a time to live follows the same clock");
    // The next holder's lease was never.
    clock.set(-2 * HOUR);
    next.write(&3).unwrap();
    next.release().unwrap();
}

#[test]
fn a_clock_that_is_set_back_ends_a_lease_late_and_nobody_acquires_the_lock_before() {
    let Some((_server, clock, store)) = own_server() else { return };
    let holder = store.lock("k", as_named("first").hold_timeout(millis(500))).unwrap();
    clock.set(-HOUR);
    std::thread::sleep(millis(700));
    // A wait ends by the clock of the client.
    let (start, timeout) = (Instant::now(), millis(300));
    let error = store.lock("k", as_named("next").acquire_timeout(timeout)).unwrap_err();
    assert!(error.is_timeout(), "{error}");
    let elapsed = start.elapsed();
    assert!(elapsed >= timeout && elapsed < PATIENCE / 2, "{elapsed:?}");
    holder.write(&1).unwrap();
    let token = holder.token();
    clock.set(0);
    assert!(holder.write(&2).unwrap_err().is_lock_lost());
    let next = store.lock("k", as_named("next").acquire_timeout(PATIENCE)).unwrap();
    assert!(next.token() > token);
    assert_eq!(next.read::<u8>().unwrap().unwrap().result, 1);
}

#[test]
fn tokens_and_versions_grow_whatever_the_clock_says() {
    let Some((_server, clock, store)) = own_server() else { return };
    let (mut token, mut version) = (0, 0);
    for hours in [0, -1, -100_000, 5, -5, 100_000, 0] {
        clock.set(hours * HOUR);
        let guard = store.lock("k", as_named("job")).unwrap();
        guard.write(&hours).unwrap();
        let record = guard.read::<i64>().unwrap().unwrap();
        assert_eq!(record.result, hours);
        let new = (guard.token().get(), record.version.number().unwrap());
        assert!(new.0 > token && new.1 > version, "{new:?} after {token} and {version}, {hours} h");
        (token, version) = new;
        guard.release().unwrap();
    }
}

/// As the check `threads::expiring_leases_never_overlap` of the suite, with a clock that jumps.
#[test]
fn writes_follow_the_order_of_the_tokens_while_the_clock_jumps() {
    const ROUNDS: u64 = 60;
    let Some((_server, clock, store)) = own_server() else { return };
    let (newest, lost, running) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let lease = millis(20);
                    let options = LockOptions::new().hold_timeout(lease).acquire_timeout(PATIENCE);
                    let guard = store.lock("k", options).unwrap();
                    let token = guard.token().get();
                    newest.fetch_max(token, Ordering::SeqCst);
                    if round % 3 == 0 {
                        std::thread::sleep(lease);
                    }
                    let newest_before = newest.load(Ordering::SeqCst);
                    match guard.write(&token) {
                        Ok(()) => assert!(newest_before <= token, "{token} wrote after {newest_before}"),
                        Err(error) => {
                            assert!(error.is_lock_lost(), "{error}");
                            lost.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
                running.fetch_sub(1, Ordering::SeqCst);
            });
        }
        let mut jumps = 0_i64;
        while running.load(Ordering::SeqCst) > 0 {
            jumps += 1;
            clock.set([0, 40, -40, 200, -200][usize::try_from(jumps).unwrap() % 5]);
            std::thread::sleep(millis(7));
        }
        assert!(jumps > 20, "{jumps} jumps");
    });
    let lost = lost.into_inner();
    assert!(lost > 0 && lost < 4 * ROUNDS, "{lost} leases were lost");
    assert!(store.read::<u64>("k").unwrap().unwrap().result <= newest.into_inner());
}
