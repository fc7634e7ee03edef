//! Two processes, every order. One is stopped between two of its system calls while the other does
//! something whole; then the first goes on. Tried at each of its stops.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use record_store::{
    Claim, Durability, Error, FileSystemRecordStore, Holder, LockGuard, LockOptions, RecordStoreExt, Result,
};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{At, Traced, perform};
use crate::support::{PATIENCE, as_named, millis, open_with};

pub(crate) const ROLES: &[Role] = &[("act", act)];

type Guard<'a> = LockGuard<'a, FileSystemRecordStore>;

/// Long enough to take a few steps in, short enough to wait for.
const LEASE: Duration = Duration::from_millis(60);
const ZERO: Duration = Duration::ZERO;

/// What the stopped process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Act {
    Acquire,
    /// As long as it takes.
    Await,
    Read,
    Look,
    WaitForLock,
    Write,
    Remove,
    /// The rest is claimed by the token of a lock whose lease is over soon.
    WriteAs,
    RemoveAs,
    Renew,
    Release,
}

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    key: String,
    act: Act,
}

fn act(stage: &Stage) {
    let Task { dir, key, act } = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    let fenced = matches!(act, Act::WriteAs | Act::RemoveAs | Act::Renew | Act::Release);
    let token = fenced.then(|| store.acquire_lock(&key, &as_named("late").hold_timeout(LEASE)).unwrap());
    let claim = token.map_or_else(|| Claim::Holder(Holder::current()), Claim::Token);
    let done = perform(stage, "", || told(play(&store, &key, act, claim)));
    stage.tell(&done);
    // A lock that it took is its own until the parent has looked.
    stage.hear();
}

fn play(store: &FileSystemRecordStore, key: &str, act: Act, claim: Claim) -> Result<String> {
    let answer = match act {
        Act::Acquire => {
            store.acquire_lock(key, &LockOptions::new().acquire_timeout(ZERO))?;
            "done"
        }
        Act::Await => {
            store.acquire_lock(key, &LockOptions::new())?;
            "done"
        }
        Act::Read => {
            let record = store.try_read::<String>(key, ZERO)?;
            return Ok(record.map_or_else(|| "nothing".into(), |record| record.result));
        }
        Act::Look => locked_or_free(store.is_locked(key)?),
        Act::WaitForLock => locked_or_free(!store.wait_for_lock(key, Some(ZERO))?),
        Act::Write | Act::WriteAs => {
            store.write_as(key, "actor's", claim)?;
            "done"
        }
        Act::Remove | Act::RemoveAs => {
            store.remove_as(key, claim)?;
            "done"
        }
        Act::Renew => {
            store.renew(key, claim, None)?;
            "done"
        }
        Act::Release => {
            store.release_lock(key, claim)?;
            "done"
        }
    };
    Ok(answer.into())
}

fn locked_or_free(locked: bool) -> &'static str {
    if locked { "locked" } else { "free" }
}

/// How an act went, in a word.
fn told(outcome: Result<String>) -> String {
    match outcome {
        Ok(answer) => answer,
        Err(Error::Locked { .. }) => "refused".into(),
        Err(Error::LockTimeout { .. }) => "timeout".into(),
        Err(Error::LockLost { .. }) => "lost".into(),
        Err(other) => format!("{other}: {other:?}"),
    }
}

/// A process in the middle of an act.
struct Actor {
    act: Act,
    traced: Traced,
    /// The act has returned.
    over: bool,
}

/// What an act told in the end.
struct Outcome {
    told: String,
    /// Where it had stood, for messages.
    at: String,
    over: bool,
    /// Ends, and with it the locks that it took, when dropped.
    _child: Child,
}

impl Actor {
    fn advance(&mut self, steps: usize) {
        self.over = self.over || self.traced.advance(steps) == At::End;
    }

    /// Does `work`, and moves the actor on only where that has to wait for it: for its latch.
    fn beside<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let (sender, done) = channel();
            scope.spawn(move || sender.send(work()));
            loop {
                match done.recv_timeout(millis(10)) {
                    Err(RecvTimeoutError::Timeout) => self.advance(1),
                    done => return done.unwrap(),
                }
            }
        })
    }

    fn finish(self) -> Outcome {
        let at = format!("{:?} at system call {}", self.act, self.traced.describe().trim_end());
        let mut child = self.traced.release();
        Outcome { told: child.hear(), at, over: self.over, _child: child }
    }
}

/// Tries schedules, each with a key of its own, until one does not stop the act any more. `before`
/// makes the key ready, before the actor does.
fn at_every_step(
    act: Act,
    before: impl Fn(&FileSystemRecordStore, &str),
    run: impl Fn(&FileSystemRecordStore, &str, Actor, usize) -> Outcome,
) {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    for step in 1.. {
        let key = format!("key-{step}");
        before(&store, &key);
        let task = Task { dir: dir.path().to_owned(), key: key.clone(), act };
        let Some((traced, _)) = Traced::attach(Child::start("act", &task)) else { return };
        let outcome = run(&store, &key, Actor { act, traced, over: false }, step);
        if outcome.over {
            assert!(step > 5, "{act:?} was over after {step} steps");
            return;
        }
    }
}

fn nothing(_: &FileSystemRecordStore, _: &str) {}

fn leave_record(store: &FileSystemRecordStore, key: &str) {
    store.write(key, "first").unwrap();
}

fn leave_expired(store: &FileSystemRecordStore, key: &str) {
    store.acquire_lock(key, &as_named("gone").hold_timeout(millis(1))).unwrap();
    assert!(store.wait_for_lock(key, None).unwrap());
}

fn try_lock<'a>(store: &'a FileSystemRecordStore, key: &str) -> Option<Guard<'a>> {
    store.try_lock(key, LockOptions::new()).unwrap()
}

fn value(guard: &Guard<'_>) -> Option<String> {
    guard.read().unwrap().map(|record| record.result)
}

/// One of two gets the lock, never both.
fn one_lock_for_two(before: impl Fn(&FileSystemRecordStore, &str)) {
    at_every_step(Act::Acquire, before, |store, key, mut actor, step| {
        actor.advance(step);
        let mine = try_lock(store, key);
        let outcome = actor.finish();
        assert_eq!(outcome.told, if mine.is_some() { "timeout" } else { "done" }, "{}", outcome.at);
        if let Some(guard) = mine {
            guard.release().unwrap();
        }
        outcome
    });
}

#[test]
fn two_acquire() {
    one_lock_for_two(nothing);
}

#[test]
fn two_take_over() {
    one_lock_for_two(leave_expired);
}

/// A change without the lock happens before the lock is taken, or not at all.
fn change_against_lock(act: Act) {
    at_every_step(act, leave_record, |store, key, mut actor, step| {
        actor.advance(step);
        let mine = try_lock(store, key);
        let before = mine.as_ref().map(|guard| {
            let before = value(guard);
            guard.write("holder's").unwrap();
            before
        });
        let outcome = actor.finish();
        match (&mine, before) {
            (Some(guard), Some(before)) => {
                let was_first = before.as_deref() != Some("first");
                assert_eq!(outcome.told, if was_first { "done" } else { "refused" }, "{}", outcome.at);
                assert_eq!(value(guard).as_deref(), Some("holder's"), "{}", outcome.at);
            }
            _ => assert_eq!(outcome.told, "done", "{}", outcome.at),
        }
        outcome
    });
}

#[test]
fn a_write_against_a_lock() {
    change_against_lock(Act::Write);
}

#[test]
fn a_removal_against_a_lock() {
    change_against_lock(Act::Remove);
}

/// A holder is stopped until its lease is over and a successor has the lock. What it does from then
/// on is refused; what it says is done was done before.
fn late_against_successor(act: Act) {
    at_every_step(act, leave_record, |store, key, mut actor, step| {
        actor.advance(step);
        std::thread::sleep(LEASE);
        // Named: only its token keeps the late one out.
        let successor = store.try_lock(key, as_named("successor")).unwrap();
        let before = successor.as_ref().map(|guard| {
            let before = value(guard);
            guard.write("successor's").unwrap();
            before
        });
        let outcome = actor.finish();
        if let (Some(guard), Some(before)) = (&successor, before) {
            let took_effect = match act {
                Act::Renew => false,
                // Whether by its release or by its lease, the lock was free.
                Act::Release => outcome.told == "done",
                _ => before.as_deref() != Some("first"),
            };
            assert_eq!(outcome.told, if took_effect { "done" } else { "lost" }, "{}", outcome.at);
            let info = store.lock_info(key).unwrap().expect("the successor's lock");
            assert_eq!(info.token(), guard.token(), "{}", outcome.at);
            assert_eq!(value(guard).as_deref(), Some("successor's"), "{}", outcome.at);
        } else {
            // Renewed in time, or inside the latch.
            assert!(matches!(&*outcome.told, "done" | "lost"), "{}: {}", outcome.at, outcome.told);
        }
        outcome
    });
}

#[test]
fn a_late_write_against_a_successor() {
    late_against_successor(Act::WriteAs);
}

#[test]
fn a_late_removal_against_a_successor() {
    late_against_successor(Act::RemoveAs);
}

#[test]
fn a_late_renewal_against_a_successor() {
    late_against_successor(Act::Renew);
}

#[test]
fn a_late_release_against_a_successor() {
    late_against_successor(Act::Release);
}

/// A holder is stopped in the middle of a write until its lease is over. Whoever then reads sees what
/// stays: the write was done before, or is refused.
#[test]
fn a_read_against_a_late_write() {
    at_every_step(Act::WriteAs, leave_record, |store, key, mut actor, step| {
        actor.advance(step);
        assert!(store.wait_for_lock(key, None).unwrap());
        let seen = actor.beside(|| store.try_read::<String>(key, PATIENCE).unwrap().unwrap().result);
        let outcome = actor.finish();
        let expected = if seen == "first" { "lost" } else { "done" };
        assert_eq!(outcome.told, expected, "{}: {seen} was read", outcome.at);
        outcome
    });
}

/// A reader stands at one step when a holder begins and has put `uncommitted` in the place of what
/// was there, and at a later step when the holder ends and leaves `committed`.
fn read_against_section(initial: Option<&str>, uncommitted: Option<&str>, committed: Option<&str>) {
    let put = |guard: &Guard<'_>, value: Option<&str>| match value {
        Some(value) => guard.write(value).unwrap(),
        None => assert!(guard.remove().unwrap()),
    };
    let allowed = [initial, committed].map(|value| value.unwrap_or("nothing"));
    let ready = |store: &FileSystemRecordStore, key: &str| {
        if let Some(initial) = initial {
            store.write(key, initial).unwrap();
        }
    };
    for apart in [1, 2, 4, 7, 12] {
        at_every_step(Act::Read, ready, |store, key, mut actor, step| {
            actor.advance(step - 1);
            let guard = try_lock(store, key);
            if let Some(guard) = &guard {
                put(guard, uncommitted);
            }
            actor.advance(apart);
            if let Some(guard) = guard {
                actor.beside(|| {
                    put(&guard, committed);
                    guard.release().unwrap();
                });
            }
            let outcome = actor.finish();
            let told = &*outcome.told;
            assert!(told == "timeout" || allowed.contains(&told), "{}: {told}", outcome.at);
            outcome
        });
    }
}

#[test]
fn a_read_against_a_section() {
    read_against_section(Some("first"), Some("halfway"), Some("second"));
}

#[test]
fn a_read_against_a_section_that_removes_for_a_while() {
    read_against_section(Some("first"), None, Some("second"));
}

#[test]
fn a_read_against_a_section_that_removes() {
    read_against_section(Some("first"), Some("halfway"), None);
}

#[test]
fn a_read_of_nothing_against_a_section() {
    read_against_section(None, Some("halfway"), None);
}

/// A reader stands at one step in a section that has removed the record for a while, and at a later
/// step in another one. It may not take the two absences for one that is outside of both.
#[test]
fn a_read_against_two_sections_that_remove_for_a_while() {
    for apart in [1, 2, 4, 7, 12] {
        at_every_step(Act::Read, leave_record, |store, key, mut actor, step| {
            let guard = store.lock(key, LockOptions::new()).unwrap();
            assert!(guard.remove().unwrap());
            actor.advance(step - 1);
            guard.write("second").unwrap();
            guard.release().unwrap();
            actor.advance(apart);
            actor.beside(|| {
                let token = store.acquire_lock(key, &as_named("next")).unwrap();
                assert!(store.remove_as(key, token).unwrap());
            });
            let outcome = actor.finish();
            assert!(matches!(&*outcome.told, "second" | "timeout"), "{}: {}", outcome.at, outcome.told);
            outcome
        });
    }
}

/// A holder is stopped in the middle of a renewal until its lease is over. If anyone sees it over, the
/// renewal is refused.
#[test]
fn a_look_against_a_late_renewal() {
    at_every_step(Act::Renew, nothing, |store, key, mut actor, step| {
        actor.advance(step);
        std::thread::sleep(LEASE);
        let seen_over = !store.is_locked(key).unwrap();
        let outcome = actor.finish();
        assert!(!seen_over || outcome.told == "lost", "{}: {}", outcome.at, outcome.told);
        outcome
    });
}

/// A holder renews its lease while another process is stopped, and that one goes on only after the
/// old lease would have been over. The lock was live all the time.
fn against_renewal(act: Act, expected: &str) {
    at_every_step(act, leave_record, |store, key, mut actor, step| {
        let guard = store.lock(key, as_named("holder").hold_timeout(LEASE)).unwrap();
        actor.advance(step);
        // On a busy machine the lease may be over already: then this says nothing.
        let renewed = actor.beside(|| store.renew(key, guard.token(), Some(PATIENCE)));
        std::thread::sleep(LEASE);
        let outcome = actor.finish();
        if renewed.is_ok() {
            assert_eq!(outcome.told, expected, "{}", outcome.at);
        }
        outcome
    });
}

#[test]
fn a_read_against_a_renewal() {
    against_renewal(Act::Read, "timeout");
}

#[test]
fn a_look_against_a_renewal() {
    against_renewal(Act::Look, "locked");
}

#[test]
fn a_wait_against_a_renewal() {
    against_renewal(Act::WaitForLock, "locked");
}

#[test]
fn an_acquisition_against_a_renewal() {
    against_renewal(Act::Acquire, "timeout");
}

/// How long after the release the waiter has the lock, if the release comes at this step of its way
/// to sleep; and whether that was the last step. `None` where nothing can be traced.
fn time_from_release(store: &FileSystemRecordStore, key: &str, step: usize) -> Option<(Duration, bool)> {
    let task = Task { dir: store.path().to_owned(), key: key.to_owned(), act: Act::Await };
    let (mut traced, _) = Traced::attach(Child::start("act", &task))?;
    let guard = store.lock(key, as_named("holder")).unwrap();
    let (mut watches, mut sleeps) = (false, false);
    for _ in 0..step {
        traced.step();
        let call = traced.describe();
        // The first sleep is a short one, and then deaths are reported.
        watches |= call.starts_with(&format!("{} ", nix::libc::SYS_inotify_add_watch));
        // Among processes: a thread's own locks wait on private ones.
        let futex = (call.split(' ').next(), call.split(' ').nth(2));
        sleeps = watches && futex == (Some(&nix::libc::SYS_futex.to_string()), Some("0x0"));
        if sleeps {
            break;
        }
    }
    guard.release().unwrap();
    let start = Instant::now();
    let mut child = traced.release();
    child.expect("done");
    Some((start.elapsed(), sleeps))
}

/// A release wakes also whoever is just about to sleep.
#[test]
fn a_wait_against_a_release() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    for step in 1.. {
        // Who slept through it looks after 250 ms. A busy machine is so slow once, but not every time.
        let mut times = Vec::new();
        let is_last = loop {
            let key = format!("key-{step}-{}", times.len());
            let Some((time, is_last)) = time_from_release(&store, &key, step) else { return };
            times.push(time);
            if time < millis(200) {
                break is_last;
            }
            assert!(times.len() < 4, "slept through the release at step {step}: {times:?}");
        };
        if is_last {
            assert!(step > 5, "slept after {step} steps");
            return;
        }
    }
}
