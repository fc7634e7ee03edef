//! Interleavings of two processes. One process, the actor, is stopped at one of its system calls while the
//! other completes an operation. Then the actor continues. Each test tries every such stop.

mod births;
mod changes;
mod ends;
mod evictions;
mod expiries;
mod sweeps;
#[cfg(all(target_arch = "x86_64", not(record_store_elsewhere)))]
mod wakes;

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::libc;
use record_store::{
    BreakOptions, Cancellation, Claim, Durability, ErrorKind, EvictionPolicy, FileSystemRecordStore,
    LockGuard, LockOptions, ReadOptions, RecordStoreExt, RemoveOptions, Result, WaitOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{At, Traced, perform};
use crate::support::{PATIENCE, as_named, in_memory, millis, named, open, open_with};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("actor", run_actor),
    ("keep alive and drop", ends::keep_alive_and_drop),
    #[cfg(all(target_arch = "x86_64", not(record_store_elsewhere)))]
    ("wait", wakes::wait),
];

type Guard<'a> = LockGuard<'a, FileSystemRecordStore>;

/// Long enough for a few steps, short enough to wait for its end.
const LEASE: Duration = Duration::from_millis(60);
const ZERO: Duration = Duration::ZERO;

/// The operation of the actor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Operation {
    Acquire,
    /// An acquisition that is already cancelled: it clears a blank lock file that was left for it.
    AcquireCancelled,
    Read,
    IsLocked,
    WaitForLock,
    Write,
    Remove,
    /// From `first` to `actor's`.
    CompareAndSwap,
    Break,
    Sweep,
    /// Keeps one record.
    Evict,
    /// These claim by the name `holder`.
    RenewByHolder,
    ReleaseByHolder,
    /// Breaks the lock of the acquisition that it finds, and no later one.
    BreakByToken,
    /// This one and the following ones claim by the token of a lock whose lease expires after [`LEASE`].
    WriteByToken,
    RemoveByToken,
    Renew,
    Release,
}

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    key: String,
    operation: Operation,
    is_durable: bool,
}

/// Performs one task after another.
fn run_actor(stage: &Stage) {
    let mut task: Task = stage.argument();
    let durability = if task.is_durable { Durability::Full } else { Durability::Relaxed };
    let store = open_with(&task.dir, durability);
    loop {
        let (key, operation) = (&task.key, task.operation);
        let fenced = matches!(
            operation,
            Operation::WriteByToken | Operation::RemoveByToken | Operation::Renew | Operation::Release
        );
        let token = fenced.then(|| store.acquire_lock(key, as_named("late").hold_timeout(LEASE)).unwrap());
        let found =
            (operation == Operation::BreakByToken).then(|| store.lock_info(key).unwrap().unwrap().token());
        let claim = token.or(found).map_or_else(Claim::current, Claim::Token);
        let done = perform(stage, "", || describe(execute(&store, key, operation, claim)));
        stage.send(&done);
        // A lock that the actor acquired ends with its process, so stay alive until the parent has checked.
        let next = stage.receive();
        let _ = store.release_lock(key, Claim::current());
        task = serde_json::from_str(&next).unwrap();
    }
}

fn execute(store: &FileSystemRecordStore, key: &str, operation: Operation, claim: Claim) -> Result<String> {
    let answer = match operation {
        Operation::Acquire => {
            store.acquire_lock(key, LockOptions::new().acquire_timeout(ZERO))?;
            "done"
        }
        Operation::AcquireCancelled => {
            let cancellation = Cancellation::new();
            cancellation.cancel();
            store.acquire_lock(key, LockOptions::new().cancellation(&cancellation))?;
            "done"
        }
        Operation::Read => {
            let record = store.read_with::<String>(key, ReadOptions::new().timeout(ZERO))?;
            return Ok(record.map_or_else(|| "nothing".into(), |record| record.result));
        }
        Operation::IsLocked => locked_or_free(store.is_locked(key)?),
        Operation::WaitForLock => locked_or_free(!store.wait_for_lock(key, ZERO)?),
        Operation::Write | Operation::WriteByToken => {
            store.write_with(key, "actor's", WriteOptions::new().claim(claim))?;
            "done"
        }
        Operation::Remove | Operation::RemoveByToken => {
            store.remove_with(key, RemoveOptions::new().claim(claim))?;
            "done"
        }
        Operation::CompareAndSwap => {
            yes_or_no(store.compare_and_swap(key, Some("first"), "actor's", WriteOptions::new())?)
        }
        Operation::Break => yes_or_no(store.break_lock(key)?),
        Operation::BreakByToken => {
            let Claim::Token(token) = claim else { unreachable!() };
            yes_or_no(store.break_lock_with(key, BreakOptions::new().token(token))?)
        }
        Operation::Sweep => {
            store.sweep()?;
            "done"
        }
        Operation::Evict => {
            store.evict(EvictionPolicy::new().max_records(1))?;
            "done"
        }
        Operation::RenewByHolder => {
            store.renew(key, named("holder"), PATIENCE)?;
            "done"
        }
        Operation::ReleaseByHolder => {
            store.release_lock(key, named("holder"))?;
            "done"
        }
        Operation::Renew => {
            store.renew(key, claim, None)?;
            "done"
        }
        Operation::Release => {
            store.release_lock(key, claim)?;
            "done"
        }
    };
    Ok(answer.into())
}

fn locked_or_free(locked: bool) -> &'static str {
    if locked { "locked" } else { "free" }
}

fn yes_or_no(is_so: bool) -> &'static str {
    if is_so { "yes" } else { "no" }
}

/// The outcome of an operation as one word.
fn describe(outcome: Result<String>) -> String {
    match outcome {
        Ok(answer) => answer,
        Err(error) => match error.kind() {
            ErrorKind::Locked => "refused".into(),
            ErrorKind::LockTimeout => "timeout".into(),
            ErrorKind::LockLost => "lost".into(),
            ErrorKind::NotLocked => "not locked".into(),
            ErrorKind::Cancelled => "cancelled".into(),
            _ => format!("{error:?}"),
        },
    }
}

/// A process that is stopped in the middle of its operation.
struct Actor {
    operation: Operation,
    traced: Traced,
    /// The operation has returned.
    has_returned: bool,
    /// It has returned before the step at which the schedule stops it: there are no more steps.
    completed: bool,
    /// It had to be advanced, or was, while the other process worked.
    helped: bool,
}

/// The outcome of the actor's operation.
struct Outcome {
    answer: String,
    /// The system call at which the actor was stopped, for messages.
    position: String,
    completed: bool,
    /// Ends when dropped. The locks that it acquired end with it.
    child: Child,
}

impl Actor {
    fn new(operation: Operation, traced: Traced) -> Self {
        Self { operation, traced, has_returned: false, completed: false, helped: false }
    }

    fn advance(&mut self, steps: usize) {
        if !self.has_returned {
            self.step(steps);
            self.completed = self.has_returned;
        }
    }

    fn step(&mut self, steps: usize) {
        self.has_returned = self.has_returned || self.traced.advance(steps) == At::End;
    }

    /// Runs `work`. If `work` makes no progress because the actor holds the latch, advances the actor step by
    /// step.
    fn run_beside<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let (sender, done) = channel();
            scope.spawn(move || sender.send(work()));
            loop {
                match done.recv_timeout(millis(10)) {
                    Err(RecvTimeoutError::Timeout) => {
                        // On a busy machine the work may only be slow. This schedule is another one then.
                        self.helped = true;
                        self.step(1);
                    }
                    done => return done.unwrap(),
                }
            }
        })
    }

    fn finish(self) -> Outcome {
        let position = format!("{:?} at system call {}", self.operation, self.traced.describe().trim_end());
        let mut child = self.traced.release();
        Outcome { answer: child.receive(), position, completed: self.completed, child }
    }
}

/// Runs one schedule for each step of the operation, each with a new key, until the operation completes
/// before the stop. `before` prepares the key before the actor starts.
fn at_every_step(
    operation: Operation,
    before: impl Fn(&FileSystemRecordStore, &str),
    run: impl Fn(&FileSystemRecordStore, &str, Actor, usize) -> Outcome,
) {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    for step in 1.. {
        let key = format!("key-{step}");
        before(&store, &key);
        let task = Task { dir: dir.path().to_owned(), key: key.clone(), operation, is_durable: false };
        let Some((traced, _)) = Traced::attach(Child::start("actor", &task)) else { return };
        let outcome = run(&store, &key, Actor::new(operation, traced), step);
        if outcome.completed {
            assert!(step > 5, "{operation:?} completed after {step} steps");
            return;
        }
    }
}

/// [`at_every_step`] in one process, which has done everything that a process does only once: fewer steps, and faster.
/// `run` leaves nothing that a later schedule would find. The store is durable, so that no change leaves a staged name for a
/// while.
fn at_every_later_step(
    operation: Operation,
    before: impl Fn(&FileSystemRecordStore, &str),
    run: impl Fn(&FileSystemRecordStore, &str, Actor, usize) -> Outcome,
) {
    let dir = in_memory();
    let store = open(dir.path());
    let mut free: Option<Child> = None;
    for step in 1.. {
        let key = format!("key-{step}");
        before(&store, &key);
        let task = Task { dir: dir.path().to_owned(), key: key.clone(), operation, is_durable: true };
        let child = match free.take() {
            Some(mut child) => {
                child.send(&serde_json::to_string(&task).unwrap());
                child
            }
            None => Child::start("actor", &task),
        };
        let Some((traced, _)) = Traced::attach(child) else { return };
        let what = format!("step {step} of {operation:?}");
        let outcome = abort_if_hung(&what, || run(&store, &key, Actor::new(operation, traced), step));
        if outcome.completed {
            assert!(step > 5, "{operation:?} completed after {step} steps");
            return;
        }
        free = Some(outcome.child);
    }
}

fn prepare_nothing(_: &FileSystemRecordStore, _: &str) {}

fn write_first(store: &FileSystemRecordStore, key: &str) {
    store.write(key, "first").unwrap();
}

fn leave_expired(store: &FileSystemRecordStore, key: &str) {
    store.acquire_lock(key, as_named("gone").hold_timeout(millis(1))).unwrap();
    assert!(store.wait_for_lock(key, WaitOptions::new()).unwrap());
}

fn try_lock<'a>(store: &'a FileSystemRecordStore, key: &str) -> Option<Guard<'a>> {
    store.try_lock(key, LockOptions::new()).unwrap()
}

fn value(guard: &Guard<'_>) -> Option<String> {
    guard.read().unwrap().map(|record| record.result)
}

/// Exactly one of two concurrent acquires gets the lock.
fn one_lock_for_two_acquires(before: impl Fn(&FileSystemRecordStore, &str)) {
    at_every_step(Operation::Acquire, before, |store, key, mut actor, step| {
        actor.advance(step);
        let guard = try_lock(store, key);
        let outcome = actor.finish();
        assert_eq!(outcome.answer, if guard.is_some() { "timeout" } else { "done" }, "{}", outcome.position);
        if let Some(guard) = guard {
            guard.release().unwrap();
        }
        outcome
    });
}

#[test]
fn only_one_of_two_acquires_gets_the_lock() {
    one_lock_for_two_acquires(prepare_nothing);
}

#[test]
fn only_one_of_two_acquires_gets_an_expired_lock() {
    one_lock_for_two_acquires(leave_expired);
}

/// A change without the lock takes effect before another process acquires the lock, or is refused.
fn change_against_lock(operation: Operation) {
    at_every_step(operation, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        let guard = try_lock(store, key);
        let before = guard.as_ref().map(|guard| {
            let before = value(guard);
            guard.write("holder's").unwrap();
            before
        });
        let outcome = actor.finish();
        match (&guard, before) {
            (Some(guard), Some(before)) => {
                let was_first = before.as_deref() != Some("first");
                assert_eq!(
                    outcome.answer,
                    if was_first { "done" } else { "refused" },
                    "{}",
                    outcome.position
                );
                assert_eq!(value(guard).as_deref(), Some("holder's"), "{}", outcome.position);
            }
            _ => assert_eq!(outcome.answer, "done", "{}", outcome.position),
        }
        outcome
    });
}

#[test]
fn a_write_takes_effect_before_a_concurrent_lock_or_is_refused() {
    change_against_lock(Operation::Write);
}

#[test]
fn a_removal_takes_effect_before_a_concurrent_lock_or_is_refused() {
    change_against_lock(Operation::Remove);
}

/// A version is chosen before the latch is entered. If another write is faster, it has the smaller version
/// nevertheless.
#[test]
fn the_later_of_two_concurrent_writes_has_the_greater_version() {
    at_every_step(Operation::Write, write_first, |store, key, mut actor, step| {
        let read = || store.read::<String>(key).unwrap().expect("a record");
        let first = read().version.number();
        actor.advance(step);
        let between = actor.run_beside(|| {
            store.write(key, "other's").unwrap();
            read()
        });
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        let last = read();
        if last.result == "other's" {
            assert_eq!(last.version, between.version, "{}", outcome.position);
        } else if between.result == "other's" {
            assert!(last.version.number() > between.version.number(), "{}", outcome.position);
        }
        assert!(between.version.number() > first, "{}", outcome.position);
        outcome
    });
}

/// A holder is stopped until its lease has expired and a successor has the lock. From then on its operation
/// is refused. If it reports success, it took effect before.
fn late_against_successor(operation: Operation) {
    at_every_step(operation, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        std::thread::sleep(LEASE);
        // Both holders are named, so only the token distinguishes the late one.
        let successor = store.try_lock(key, as_named("successor")).unwrap();
        let before = successor.as_ref().map(|guard| {
            let before = value(guard);
            guard.write("successor's").unwrap();
            before
        });
        let outcome = actor.finish();
        if let (Some(guard), Some(before)) = (&successor, before) {
            let took_effect = match operation {
                Operation::Renew => false,
                // Both answers are correct: the lock is free after the release, and after its lease expired.
                Operation::Release => outcome.answer == "done",
                _ => before.as_deref() != Some("first"),
            };
            assert_eq!(outcome.answer, if took_effect { "done" } else { "lost" }, "{}", outcome.position);
            let info = store.lock_info(key).unwrap().expect("the successor's lock");
            assert_eq!(info.token(), guard.token(), "{}", outcome.position);
            assert_eq!(value(guard).as_deref(), Some("successor's"), "{}", outcome.position);
        } else {
            // No successor: the lock was renewed in time, or the actor is inside the latch.
            assert!(matches!(&*outcome.answer, "done" | "lost"), "{}: {}", outcome.position, outcome.answer);
        }
        outcome
    });
}

#[test]
fn a_late_write_is_refused_after_a_successor_acquired_the_lock() {
    late_against_successor(Operation::WriteByToken);
}

#[test]
fn a_late_removal_is_refused_after_a_successor_acquired_the_lock() {
    late_against_successor(Operation::RemoveByToken);
}

#[test]
fn a_late_renewal_is_refused_after_a_successor_acquired_the_lock() {
    late_against_successor(Operation::Renew);
}

#[test]
fn a_late_release_is_refused_after_a_successor_acquired_the_lock() {
    late_against_successor(Operation::Release);
}

/// A holder is stopped in the middle of a write until its lease has expired. A reader then sees the final
/// value: the write took effect before the read, or is refused.
#[test]
fn a_late_write_does_not_take_effect_after_a_read_has_seen_the_old_record() {
    at_every_step(Operation::WriteByToken, write_first, |store, key, mut actor, step| {
        actor.advance(step);
        assert!(store.wait_for_lock(key, WaitOptions::new()).unwrap());
        let patient = ReadOptions::new().timeout(PATIENCE);
        let seen = actor.run_beside(|| store.read_with::<String>(key, patient).unwrap().unwrap().result);
        let outcome = actor.finish();
        let expected = if seen == "first" { "lost" } else { "done" };
        assert_eq!(outcome.answer, expected, "{}: {seen} was read", outcome.position);
        outcome
    });
}

/// The reader is stopped at one step while a holder acquires the lock and changes the record from `initial`
/// to `uncommitted`. It is stopped at a later step while the holder changes the record to `committed` and
/// releases.
fn read_against_holder(initial: Option<&str>, uncommitted: Option<&str>, committed: Option<&str>) {
    let put = |guard: &Guard<'_>, value: Option<&str>| match value {
        Some(value) => guard.write(value).unwrap(),
        None => assert!(guard.remove().unwrap()),
    };
    let allowed = [initial, committed].map(|value| value.unwrap_or("nothing"));
    let before = |store: &FileSystemRecordStore, key: &str| {
        if let Some(initial) = initial {
            store.write(key, initial).unwrap();
        }
    };
    for distance in [1, 2, 4, 7, 12] {
        at_every_step(Operation::Read, before, |store, key, mut actor, step| {
            actor.advance(step - 1);
            let guard = try_lock(store, key);
            if let Some(guard) = &guard {
                put(guard, uncommitted);
            }
            actor.advance(distance);
            if let Some(guard) = guard {
                actor.run_beside(|| {
                    put(&guard, committed);
                    guard.release().unwrap();
                });
            }
            let outcome = actor.finish();
            let answer = &*outcome.answer;
            assert!(answer == "timeout" || allowed.contains(&answer), "{}: {answer}", outcome.position);
            outcome
        });
    }
}

#[test]
fn a_read_never_returns_an_uncommitted_write() {
    read_against_holder(Some("first"), Some("halfway"), Some("second"));
}

#[test]
fn a_read_never_returns_an_uncommitted_removal() {
    read_against_holder(Some("first"), None, Some("second"));
}

#[test]
fn a_read_never_returns_an_uncommitted_write_before_a_removal() {
    read_against_holder(Some("first"), Some("halfway"), None);
}

#[test]
fn a_read_of_a_missing_record_never_returns_an_uncommitted_write() {
    read_against_holder(None, Some("halfway"), None);
}

/// The reader is stopped at one step while one holder has removed the record for a short time, and at a later
/// step while another holder has removed it. The reader must not treat these two uncommitted absences as a
/// committed one (I5).
#[test]
fn a_read_never_returns_one_of_two_uncommitted_removals() {
    for distance in [1, 2, 4, 7, 12] {
        at_every_step(Operation::Read, write_first, |store, key, mut actor, step| {
            let guard = store.lock(key, LockOptions::new()).unwrap();
            assert!(guard.remove().unwrap());
            actor.advance(step - 1);
            guard.write("second").unwrap();
            guard.release().unwrap();
            actor.advance(distance);
            actor.run_beside(|| {
                let token = store.acquire_lock(key, as_named("next")).unwrap();
                assert!(store.remove_with(key, RemoveOptions::new().claim(token)).unwrap());
            });
            let outcome = actor.finish();
            assert!(
                matches!(&*outcome.answer, "second" | "timeout"),
                "{}: {}",
                outcome.position,
                outcome.answer
            );
            outcome
        });
    }
}

/// A holder is stopped in the middle of a renewal until its lease has expired. If another process has seen
/// the lock free, the renewal is refused.
#[test]
fn a_late_renewal_is_refused_after_the_lock_was_seen_free() {
    at_every_step(Operation::Renew, prepare_nothing, |store, key, mut actor, step| {
        actor.advance(step);
        std::thread::sleep(LEASE);
        let seen_free = !store.is_locked(key).unwrap();
        let outcome = actor.finish();
        assert!(!seen_free || outcome.answer == "lost", "{}: {}", outcome.position, outcome.answer);
        outcome
    });
}

/// The same, step by step: the others do not see the lock alive again, although the frame of the renewal is synced before
/// its file is published. One place is left: the holder looks at the clock, and is stopped before the rename. In between
/// are `readlink`, which reads the namespace of the clock, and `stat`.
#[test]
fn a_lock_that_was_seen_free_is_not_seen_alive_again_by_its_late_renewal() {
    at_every_later_step(Operation::Renew, prepare_nothing, |store, key, mut actor, step| {
        actor.advance(step);
        std::thread::sleep(LEASE);
        let call = actor.traced.describe();
        let looks = [
            #[cfg(target_arch = "x86_64")]
            libc::SYS_readlink,
            libc::SYS_readlinkat,
            libc::SYS_newfstatat,
            libc::SYS_renameat2,
        ];
        let has_looked = looks.iter().any(|number| call.starts_with(&format!("{number} ")));
        if !has_looked && !store.is_locked(key).unwrap() {
            while !actor.has_returned {
                actor.step(1);
                let position = actor.traced.describe();
                assert!(!store.is_locked(key).unwrap(), "stopped at step {step}, seen at {position}");
            }
        }
        actor.finish()
    });
}

/// A holder renews its lease while the actor is stopped. The actor continues only after the old lease would
/// have expired. The lock was live all the time, so the actor must see it as held.
fn against_renewal(operation: Operation, expected: &str) {
    at_every_step(operation, write_first, |store, key, mut actor, step| {
        let guard = store.lock(key, as_named("holder").hold_timeout(LEASE)).unwrap();
        actor.advance(step);
        // On a busy machine the lease may have expired before the renewal. Then this schedule proves nothing.
        let renewed = actor.run_beside(|| store.renew(key, guard.token(), PATIENCE));
        std::thread::sleep(LEASE);
        let outcome = actor.finish();
        if renewed.is_ok() {
            assert_eq!(outcome.answer, expected, "{}", outcome.position);
        }
        outcome
    });
}

#[test]
fn a_read_sees_a_concurrently_renewed_lock_as_held() {
    against_renewal(Operation::Read, "timeout");
}

#[test]
fn is_locked_sees_a_concurrently_renewed_lock_as_held() {
    against_renewal(Operation::IsLocked, "locked");
}

#[test]
fn wait_for_lock_sees_a_concurrently_renewed_lock_as_held() {
    against_renewal(Operation::WaitForLock, "locked");
}

#[test]
fn an_acquire_sees_a_concurrently_renewed_lock_as_held() {
    against_renewal(Operation::Acquire, "timeout");
}
