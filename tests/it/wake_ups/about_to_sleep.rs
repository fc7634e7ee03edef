//! A sleeper is stopped at each of its system calls, until just before it sleeps, while the event happens for which it
//! is about to sleep.

use std::path::PathBuf;

use nix::libc;
use record_store::{Durability, FileSystemRecordStore, RecordStoreExt};
use tempfile::tempdir;

use super::{Sleeper, begin, finish};
use crate::support::children::{Child, Stage};
use crate::support::trace::{At, Traced, perform};
use crate::support::{as_named, millis, open_with};
use crate::watchdog::abort_if_hung;

/// The event that ends the sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Release,
    /// The lease is renewed for a moment.
    Shorten,
    /// The holder is killed.
    Kill,
}

/// Sleeps on each key that it receives.
pub(super) fn run_sleeper(stage: &Stage) {
    let (dir, sleeper): (PathBuf, Sleeper) = stage.argument();
    let store = sleeper.open(dir);
    loop {
        let key = stage.receive();
        let sleep = sleeper.prepare(&store, &key);
        perform(stage, "", sleep).unwrap();
        stage.send("done");
    }
}

impl Event {
    /// Prepares a key whose lock is held until the event happens. Returns what makes it happen.
    fn prepare<'a>(self, store: &'a FileSystemRecordStore, key: &'a str) -> Box<dyn FnOnce() + 'a> {
        let acquire = || store.acquire_lock(key, as_named("holder")).unwrap();
        match self {
            Event::Release => {
                let token = acquire();
                Box::new(move || store.release_lock(key, token).unwrap())
            }
            Event::Shorten => {
                let token = acquire();
                Box::new(move || store.renew(key, token, millis(1)).unwrap())
            }
            Event::Kill => {
                let mut holder = Child::start("hold until killed", &(store.path(), key));
                holder.expect("held");
                Box::new(move || {
                    holder.kill();
                })
            }
        }
    }
}

/// Runs this many steps, or up to the sleep. Returns whether it is reached.
fn advance_to_sleep(traced: &mut Traced, steps: usize, sleeper: Sleeper) -> bool {
    // Before it registers for reports of deaths, it sleeps for no time at all.
    let mut is_registered = false;
    for _ in 0..steps {
        assert_eq!(traced.step(), At::Call, "{sleeper:?} does not sleep");
        let call = traced.describe();
        let mut words = call.split(' ');
        let number: i64 = words.next().unwrap().parse().unwrap();
        is_registered |= number == libc::SYS_inotify_add_watch;
        // The table is shared. The mutexes of the process use private futexes.
        let is_sleep = number == libc::SYS_futex && words.nth(1) == Some("0x0");
        if is_registered && is_sleep {
            return true;
        }
    }
    false
}

fn at_every_step(sleeper: Sleeper, event: Event) {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    let mut child = Child::start("sleep", &(dir.path(), sleeper));
    for step in 0.. {
        let key = format!("key-{step}");
        let happen = event.prepare(&store, &key);
        let Some(mut traced) = begin(child, &key) else { return };
        let is_last = advance_to_sleep(&mut traced, step, sleeper);
        let call = traced.describe();
        let what = format!("{sleeper:?} misses {event:?} at step {step}, system call {}", call.trim_end());
        child = abort_if_hung(&what, || {
            happen();
            finish(traced)
        });
        if is_last {
            assert!(step > 5, "{sleeper:?} slept after {step} steps");
            return;
        }
    }
}

#[test]
fn a_release_wakes_a_reader_of_a_read_only_store_that_is_about_to_sleep() {
    at_every_step(Sleeper::ReadOnly, Event::Release);
}

#[test]
fn a_shortened_lease_wakes_whoever_is_about_to_sleep() {
    for sleeper in [Sleeper::Lock, Sleeper::WaitForLock, Sleeper::ReadOnly] {
        at_every_step(sleeper, Event::Shorten);
    }
}

#[test]
fn the_death_of_the_holder_wakes_whoever_is_about_to_sleep() {
    for sleeper in [Sleeper::Lock, Sleeper::WaitForLock, Sleeper::ReadOnly] {
        at_every_step(sleeper, Event::Kill);
    }
}
