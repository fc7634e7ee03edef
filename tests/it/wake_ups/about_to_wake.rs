//! A process that frees a key, or changes a record, is stopped at each of its system calls. All sleepers that it has
//! woken look, and sleep again if they find nothing. Then it continues, and must wake them again: who is woken before
//! the change can be seen sleeps on. If it is killed instead, they must notice that the key is free.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::libc;
use record_store::{BreakOptions, Durability, FileSystemRecordStore, LockToken, RecordStoreExt};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use super::{Sleeper, begin, finish};
use crate::support::children::{Child, Stage};
use crate::support::trace::{At, perform};
use crate::support::{PATIENCE, as_named, named, open_with};
use crate::watchdog::abort_if_hung;

const LEASE: Duration = Duration::from_millis(20);

/// The operation that wakes sleepers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Waker {
    Release,
    Break,
    BreakByToken,
    /// The lease of the lock expires while it is renewed. Sleepers that have seen the new lease sleep until its end.
    LateRenewal,
    Write,
    Remove,
}

impl Waker {
    fn sleepers(self) -> &'static [Sleeper] {
        match self {
            Waker::Write | Waker::Remove => {
                &[Sleeper::Watch, Sleeper::Watch, Sleeper::Changes, Sleeper::ReadOnlyChanges]
            }
            _ => &[Sleeper::Lock, Sleeper::WaitForLock, Sleeper::Read, Sleeper::ReadOnly],
        }
    }

    /// Acquires the lock or writes the record, if the operation needs it.
    fn prepare(self, store: &FileSystemRecordStore, key: &str) -> Option<LockToken> {
        match self {
            Waker::Write => None,
            Waker::Remove => {
                store.write(key, &0).unwrap();
                None
            }
            Waker::LateRenewal => {
                Some(store.acquire_lock(key, as_named("holder").hold_timeout(LEASE)).unwrap())
            }
            Waker::Release | Waker::Break | Waker::BreakByToken => {
                Some(store.acquire_lock(key, as_named("holder")).unwrap())
            }
        }
    }

    fn run(self, store: &FileSystemRecordStore, key: &str, token: Option<LockToken>) {
        match self {
            Waker::Release => store.release_lock(key, named("holder")).unwrap(),
            Waker::Break => assert!(store.break_lock(key).unwrap()),
            Waker::BreakByToken => {
                assert!(store.break_lock_with(key, BreakOptions::new().token(token.unwrap())).unwrap())
            }
            Waker::LateRenewal => {
                if let Err(error) = store.renew(key, token.unwrap(), None) {
                    assert!(error.is_lock_lost(), "{error}");
                }
            }
            Waker::Write => store.write(key, &1).unwrap(),
            Waker::Remove => assert!(store.remove(key).unwrap()),
        }
    }
}

/// Wakes the sleepers on each key that it receives.
pub(super) fn run_waker(stage: &Stage) {
    let (dir, waker, is_durable): (PathBuf, Waker, bool) = stage.argument();
    let store = open_with(&dir, if is_durable { Durability::Full } else { Durability::Relaxed });
    loop {
        let key = stage.receive();
        let token = waker.prepare(&store, &key);
        perform(stage, "", || waker.run(&store, &key, token));
        stage.send("done");
    }
}

/// Waits until each of these threads sleeps, waits for the latch, or has ended.
pub(super) fn until_settled(threads: &[i32]) {
    let start = Instant::now();
    let blocking = [libc::SYS_futex, libc::SYS_flock, libc::SYS_ppoll].map(|call| call.to_string());
    let is_settled = |thread: &i32| {
        let Ok(call) = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")) else {
            return true;
        };
        blocking.iter().any(|blocking| call.split(' ').next() == Some(blocking))
    };
    while !threads.iter().all(is_settled) {
        assert!(start.elapsed() < PATIENCE, "the sleepers do not sleep");
        std::thread::yield_now();
    }
}

/// How the process goes on after it was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Completes,
    Killed,
}

/// Breaks the lock if it is still there: renewed in time, or not released. Nobody else would wake the sleepers then.
fn break_left(store: &FileSystemRecordStore, key: &str) {
    if let Some(info) = store.lock_info(key).unwrap()
        && info.holder() == &named("holder")
    {
        store.break_lock_with(key, BreakOptions::new().token(info.token())).unwrap();
    }
}

fn at_every_step(waker: Waker) {
    for is_durable in [false, true] {
        at_every_step_in(waker, is_durable, End::Completes);
    }
}

fn at_every_step_in(waker: Waker, is_durable: bool, end: End) {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let start = || Child::start("wake", &(dir.path(), waker, is_durable));
    let mut next = None;
    for step in 0.. {
        let child = next.unwrap_or_else(start);
        let key = &*format!("key-{step}");
        let Some(mut traced) = begin(child, key) else { return };
        let stores = waker.sleepers().iter().map(|sleeper| sleeper.open(dir.path().to_owned()));
        let stores: Vec<_> = stores.collect();
        let is_last;
        (next, is_last) = std::thread::scope(|scope| {
            let (sender, threads) = channel();
            let sleepers: Vec<_> = waker
                .sleepers()
                .iter()
                .zip(&stores)
                .map(|(sleeper, store)| {
                    let (sender, sleep) = (sender.clone(), sleeper.prepare(store, key));
                    scope.spawn(move || {
                        sender.send(rustix::thread::gettid().as_raw_pid()).unwrap();
                        sleep().unwrap();
                    })
                })
                .collect();
            let threads: Vec<_> = threads.iter().take(sleepers.len()).collect();
            until_settled(&threads);
            let is_last = traced.advance(step) == At::End;
            let what = format!(
                "the sleepers miss {waker:?}, {end:?} at step {step}, system call {}",
                traced.describe().trim_end()
            );
            if waker == Waker::LateRenewal {
                std::thread::sleep(LEASE);
            }
            let next = abort_if_hung(&what, || {
                until_settled(&threads);
                let next = match end {
                    End::Completes => Some(finish(traced)),
                    End::Killed => {
                        traced.kill();
                        None
                    }
                };
                if waker == Waker::LateRenewal || end == End::Killed {
                    break_left(&store, key);
                }
                for sleeper in sleepers {
                    sleeper.join().unwrap();
                }
                next
            });
            (next, is_last)
        });
        if is_last {
            assert!(step > 5, "{waker:?} completed after {step} steps");
            return;
        }
    }
}

#[test]
fn a_release_wakes_its_sleepers_when_the_key_is_free() {
    at_every_step(Waker::Release);
}

#[test]
fn a_broken_lock_wakes_its_sleepers_when_the_key_is_free() {
    at_every_step(Waker::Break);
    at_every_step(Waker::BreakByToken);
}

#[test]
fn the_death_of_a_process_that_frees_a_key_wakes_its_sleepers() {
    at_every_step_in(Waker::Release, true, End::Killed);
    at_every_step_in(Waker::Break, false, End::Killed);
}

#[test]
fn a_late_renewal_wakes_those_who_have_seen_the_new_lease() {
    at_every_step(Waker::LateRenewal);
}

#[test]
fn a_change_of_the_record_wakes_its_watchers_when_it_can_be_seen() {
    at_every_step(Waker::Write);
    at_every_step(Waker::Remove);
}
