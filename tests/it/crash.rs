//! A crash between any two system calls leaves a state from which the next process can continue.
//!
//! For each operation, a real process is killed at its first stop, a second process at its second stop, and
//! so on, until one process completes the operation. After each kill this process checks the store.

use std::path::PathBuf;
use std::time::Duration;

use record_store::{
    Durability, ErrorKind, FileSystemRecordStore, LockOptions, LockState, LockToken, ReadOptions,
    RecordStoreExt, RemoveOptions, WaitOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};
use tempfile::{TempDir, tempdir};

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{At, Traced, perform};
use crate::support::{as_named, millis, named, names_in, open, open_with};

pub(crate) const ROLES: &[Role] = &[("victim", victim), ("abandon", abandon)];

/// The short and the long lease of a named holder.
const SHORT: Duration = Duration::from_mins(15);
const LONG: Duration = Duration::from_mins(150);

/// The content of a file of another program.
const FOREIGN: &str = "{\"name\":\"demo\"}";

/// An upper bound of the steps of any operation.
const MAX_STEPS: usize = 400;

/// The operation of the victim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Operation {
    Acquire,
    AcquireNamed,
    AcquireAgain,
    Renew,
    AcquireExpired,
    AcquireAbandoned,
    Release,
    ReleaseNamed,
    /// This process shares the lock.
    Join,
    JoinNamed,
    LeaveNamed,
    WriteNew,
    Overwrite,
    WriteWithoutLock,
    Remove,
    /// A file of another program is in the place of the record.
    WriteOverForeign,
    RemoveForeign,
}

#[derive(Serialize, Deserialize)]
struct Task {
    dir: PathBuf,
    key: String,
    operation: Operation,
}

/// Prepares the operation, then performs it. The operation returns a token, or zero if it has none.
fn victim(stage: &Stage) {
    let Task { dir, key, operation } = stage.argument();
    let store = open(&dir);
    let long = LockOptions::new().hold_timeout(LONG);
    let job = named("job");
    let acquire = |options: LockOptions| store.acquire_lock(&key, options).unwrap();
    // The lock is bound to this process, so it is free for the next process after the kill.
    let with_lock = |work: &dyn Fn(LockToken)| {
        let token = acquire(LockOptions::new());
        run(stage, token, || {
            work(token);
            token
        })
    };
    let done = match operation {
        Operation::Acquire => run(stage, LockToken::new(0), || acquire(long)),
        Operation::AcquireNamed => run(stage, LockToken::new(0), || acquire(long.holder(job))),
        Operation::AcquireAgain => {
            let token = acquire(as_named("job").hold_timeout(SHORT));
            run(stage, token, || acquire(long.holder(job)))
        }
        Operation::Renew => {
            let token = acquire(as_named("job").hold_timeout(SHORT));
            run(stage, token, || {
                store.renew(&key, token, LONG).unwrap();
                token
            })
        }
        Operation::AcquireExpired => {
            let token = acquire(as_named("gone").hold_timeout(millis(1)));
            assert!(store.wait_for_lock(&key, WaitOptions::new()).unwrap());
            run(stage, token, || acquire(LockOptions::new()))
        }
        Operation::AcquireAbandoned => {
            let abandoned =
                store.locks().unwrap().map(Result::unwrap).find(|lock| lock.key().as_str() == key);
            let abandoned = abandoned.unwrap();
            assert_eq!(abandoned.state(), LockState::Abandoned);
            run(stage, abandoned.token(), || acquire(LockOptions::new()))
        }
        Operation::Release => with_lock(&|token| store.release_lock(&key, token).unwrap()),
        Operation::ReleaseNamed => {
            let token = acquire(as_named("job").hold_timeout(SHORT));
            run(stage, token, || {
                store.release_lock(&key, &job).unwrap();
                token
            })
        }
        Operation::Join => run(stage, LockToken::new(0), || acquire(long.shared())),
        Operation::JoinNamed => run(stage, LockToken::new(0), || acquire(long.holder(job).shared())),
        Operation::LeaveNamed => {
            let token = acquire(as_named("job").hold_timeout(SHORT).shared());
            run(stage, token, || {
                store.release_lock(&key, &job).unwrap();
                token
            })
        }
        Operation::WriteNew | Operation::Overwrite => {
            with_lock(&|token| store.write_with(&key, "new", WriteOptions::new().claim(token)).unwrap())
        }
        Operation::WriteWithoutLock | Operation::WriteOverForeign => run(stage, LockToken::new(0), || {
            store.write(&key, "new").unwrap();
            LockToken::new(0)
        }),
        Operation::Remove | Operation::RemoveForeign => {
            with_lock(&|token| assert!(store.remove_with(&key, RemoveOptions::new().claim(token)).unwrap()))
        }
    };
    stage.send(&done.to_string());
}

fn run(stage: &Stage, known: LockToken, operation: impl FnOnce() -> LockToken) -> LockToken {
    perform(stage, &known.to_string(), operation)
}

/// Acquires a lock on the key. The parent then kills this process.
fn abandon(stage: &Stage) {
    let (dir, key): (PathBuf, String) = stage.argument();
    let store = open(&dir);
    store.acquire_lock(key, LockOptions::new()).unwrap();
    stage.send("done");
    stage.receive();
}

/// One crash: the position of the kill, and the store afterwards.
struct Scene {
    dir: TempDir,
    store: FileSystemRecordStore,
    operation: Operation,
    step: usize,
    key: String,
    /// The greatest token that is known to have been issued for the key.
    known: LockToken,
    /// Whether the operation returned before the kill.
    returned: bool,
    /// The system call at which the victim was stopped.
    call: String,
}

/// Kills a victim at every step of an operation. `check` checks the store after each kill, and returns
/// whether the operation took effect.
fn crash_everywhere(operation: Operation, check: impl Fn(&Scene) -> bool) {
    let dir = tempdir().unwrap();
    // Only the victim needs syncs.
    let store = open_with(dir.path(), Durability::Relaxed);
    let keys: Vec<_> = (0..MAX_STEPS).map(|step| format!("key-{step}")).collect();
    let mut scene = Scene {
        dir,
        store,
        operation,
        step: 0,
        key: String::new(),
        known: LockToken::new(0),
        returned: false,
        call: String::new(),
    };
    let mut effects = Vec::new();
    for (step, key) in (1..).zip(keys) {
        (scene.step, scene.key) = (step, key);
        // So that the log makes the same calls at each step.
        assert!(scene.store.checkpoint().unwrap());
        if matches!(operation, Operation::Overwrite | Operation::WriteWithoutLock | Operation::Remove) {
            scene.store.write(&scene.key, "old").unwrap();
        }
        if scene.is_foreign() {
            std::fs::write(scene.place(), FOREIGN).unwrap();
        }
        if operation == Operation::AcquireAbandoned {
            // One per step, because the sweep after each crash removes abandoned locks.
            let mut child = Child::start("abandon", &(scene.dir.path(), &scene.key));
            child.expect("done");
            child.kill();
        }
        if matches!(operation, Operation::Join | Operation::JoinNamed | Operation::LeaveNamed) {
            scene.store.acquire_lock(&scene.key, as_named("sharer").shared()).unwrap();
        }
        let task = Task { dir: scene.dir.path().to_owned(), key: scene.key.clone(), operation };
        let Some((mut traced, known)) = Traced::attach(Child::start("victim", &task)) else { return };
        scene.known = LockToken::new(known.parse().unwrap());
        scene.returned = traced.advance(step) == At::End;
        scene.call = traced.describe();
        scene.check_while_stopped();
        traced.kill();
        effects.push(check(&scene));
        scene.check_next_process();
        if scene.returned {
            break;
        }
    }
    // A kill at the first step leaves no effect, the completed operation has its effect, and in between the
    // effect appears only once.
    assert!(scene.returned, "{operation:?} has more than {MAX_STEPS} steps");
    assert!(effects.is_sorted() && !effects[0] && effects[effects.len() - 1], "{operation:?}: {effects:?}");
}

impl Scene {
    /// A stopped process blocks nobody, except by its lock and its latch.
    fn check_while_stopped(&self) {
        let lock_free = self.store.lock_info(&self.key).and_then(|_| self.store.exists(&self.key));
        lock_free.unwrap_or_else(|error| panic!("{self}: {error}"));
        match self.store.read_with::<String>(&self.key, ReadOptions::new().timeout(Duration::ZERO)) {
            Ok(record) => {
                assert!(record.is_none_or(|record| matches!(&*record.result, "old" | "new")), "{self}");
            }
            Err(error) => {
                let is_foreign = error.kind() == ErrorKind::CorruptRecord && self.is_foreign();
                assert!(error.is_timeout() || is_foreign, "{self}: {error}");
            }
        }
    }

    /// The next process gets the lock, a greater token and a whole record. After a sweep, no file of the dead
    /// process is left.
    fn check_next_process(&self) {
        let fail = |error| panic!("{self}: {error}");
        let known = self.known.max(self.token().unwrap_or(self.known));
        let options = as_named("next").acquire_timeout(Duration::from_secs(5));
        let next = self.store.lock(&self.key, options).unwrap_or_else(fail);
        assert!(next.token() > known, "{self}: {} after {known}", next.token());
        next.write("next").unwrap_or_else(|error| panic!("{self}: {error}"));
        assert_eq!(next.read::<String>().unwrap().unwrap().result, "next", "{self}");
        next.release().unwrap_or_else(|error| panic!("{self}: {error}"));
        assert_eq!(self.token(), None, "{self}");

        self.store.sweep().unwrap();
        let private = self.dir.path().join(".store");
        assert_eq!(names_in(&private.join("staged")), [""; 0], "{self}");
        assert_eq!(names_in(&private.join("owners")).len(), 1, "{self}: an owner file is left");
        // A file that a dead process staged is deleted, and not taken for somebody else's.
        let kept = self.store.clear_damaged().unwrap();
        assert!(kept == 0 || self.is_foreign(), "{self}: {kept} files were moved aside");
    }

    fn is_foreign(&self) -> bool {
        matches!(self.operation, Operation::WriteOverForeign | Operation::RemoveForeign)
    }

    /// The token in the lock file, also if the lock is expired or abandoned.
    fn token(&self) -> Option<LockToken> {
        let mut locks =
            self.store.locks().unwrap().map(|lock| lock.unwrap_or_else(|error| panic!("{self}: {error}")));
        locks.find(|lock| lock.key().as_str() == self.key).map(|lock| lock.token())
    }

    /// The place of the record.
    fn place(&self) -> PathBuf {
        self.dir.path().join(format!("{}.json", self.key))
    }

    fn value(&self) -> Option<String> {
        // The victim is dead, so its lock is stale and does not block the read.
        let record = self.store.read_with(&self.key, ReadOptions::new().timeout(Duration::from_secs(5)));
        record.unwrap_or_else(|error| panic!("{self}: {error}")).map(|record| record.result)
    }
}

impl std::fmt::Display for Scene {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, step, call, .. } = self;
        write!(f, "{operation:?}, killed at step {step}, system call {}", call.trim_end())
    }
}

/// Checks after a crash in an operation that acquires a lock bound to the victim's process.
fn check_acquired(scene: &Scene) -> bool {
    assert_eq!(scene.store.lock_info(&scene.key).unwrap(), None, "{scene}: the holder is dead");
    scene.token().is_some_and(|token| token > scene.known)
}

#[test]
fn in_acquire() {
    crash_everywhere(Operation::Acquire, check_acquired);
}

#[test]
fn in_acquire_of_an_expired_lock() {
    crash_everywhere(Operation::AcquireExpired, check_acquired);
}

#[test]
fn in_acquire_of_an_abandoned_lock() {
    crash_everywhere(Operation::AcquireAbandoned, check_acquired);
}

#[test]
fn in_acquire_for_a_named_holder() {
    crash_everywhere(Operation::AcquireNamed, |scene| {
        let held = check_job(scene, LONG);
        assert!(held || !scene.returned, "{scene}: the lock is lost");
        held
    });
}

/// Returns whether the named holder has the lock with this lease. Also releases it: any process may do so
/// with the holder's name.
fn check_job(scene: &Scene, lease: Duration) -> bool {
    let Some(info) = scene.store.lock_info(&scene.key).unwrap() else { return false };
    assert!(info.is_held_by(&named("job")), "{scene}: {info:?}");
    let left = info.remaining().expect("a lease");
    scene.store.release_lock(info.key(), named("job")).unwrap();
    // The difference between the two leases is much longer than a crash takes.
    left + SHORT / 2 > lease && left <= lease
}

fn check_extended(scene: &Scene) -> bool {
    let info = scene.store.lock_info(&scene.key).unwrap();
    let info = info.unwrap_or_else(|| panic!("{scene}: the lock is lost"));
    assert_eq!(info.token(), scene.known, "{scene}");
    let left = info.remaining().expect("a lease");
    assert!(left + SHORT > LONG || left > SHORT / 2 && left <= SHORT, "{scene}: {left:?}");
    check_job(scene, LONG)
}

#[test]
fn in_a_repeated_acquire() {
    crash_everywhere(Operation::AcquireAgain, check_extended);
}

#[test]
fn in_renew() {
    crash_everywhere(Operation::Renew, check_extended);
}

#[test]
fn in_release() {
    crash_everywhere(Operation::Release, |scene| {
        assert_eq!(scene.store.lock_info(&scene.key).unwrap(), None, "{scene}: the holder is dead");
        scene.token().is_none()
    });
}

#[test]
fn in_release_of_a_named_holder() {
    crash_everywhere(Operation::ReleaseNamed, |scene| {
        let held = check_job(scene, SHORT);
        assert!(!(held && scene.returned), "{scene}: not released");
        !held
    });
}

/// Checks after a crash beside another holder of a shared lock. Returns whether the victim's holder has it as well.
fn check_shared(scene: &Scene) -> bool {
    let info = scene.store.lock_info(&scene.key).unwrap();
    let info = info.unwrap_or_else(|| panic!("{scene}: the lock is lost"));
    let sharer = info.holders().find(|it| it.holder() == &named("sharer"));
    let sharer = sharer.unwrap_or_else(|| panic!("{scene}: the other holder lost the lock: {info:?}"));
    assert_eq!(sharer.state(), LockState::Held, "{scene}");
    let others: Vec<_> = info.holders().filter(|it| it.token() != sharer.token()).collect();
    assert!(others.len() < 2, "{scene}: {info:?}");
    let (is_named, state) = match others.first() {
        None => (false, None),
        Some(other) => (other.holder() == &named("job"), Some(other.state())),
    };
    scene.store.renew(&scene.key, sharer.token(), LONG).unwrap_or_else(|error| panic!("{scene}: {error}"));
    scene.store.release_lock(&scene.key, sharer.token()).unwrap_or_else(|error| panic!("{scene}: {error}"));
    let is_held = scene.store.is_lock_holder(&scene.key, &named("job")).unwrap();
    assert_eq!(is_held, is_named, "{scene}: the release of one holder changed the other");
    if is_named {
        scene.store.release_lock(&scene.key, named("job")).unwrap();
    }
    state.is_some()
}

#[test]
fn in_the_acquisition_of_a_shared_lock() {
    crash_everywhere(Operation::Join, check_shared);
}

#[test]
fn in_the_acquisition_of_a_shared_lock_by_a_named_holder() {
    crash_everywhere(Operation::JoinNamed, |scene| {
        let held = check_shared(scene);
        assert!(held || !scene.returned, "{scene}: the lock is lost");
        held
    });
}

#[test]
fn in_the_release_of_a_shared_lock() {
    crash_everywhere(Operation::LeaveNamed, |scene| {
        let held = check_shared(scene);
        assert!(!(held && scene.returned), "{scene}: not released");
        !held
    });
}

/// Checks after a crash in an operation that changes the record from `old` to `new`.
fn check_changed(scene: &Scene, old: Option<&str>, new: Option<&str>) -> bool {
    let value = scene.value();
    assert!(value.as_deref() == old || value.as_deref() == new, "{scene}: {value:?}");
    value.as_deref() == new
}

#[test]
fn in_the_first_write() {
    crash_everywhere(Operation::WriteNew, |scene| check_changed(scene, None, Some("new")));
}

#[test]
fn in_write() {
    crash_everywhere(Operation::Overwrite, |scene| check_changed(scene, Some("old"), Some("new")));
}

#[test]
fn in_write_without_a_lock() {
    crash_everywhere(Operation::WriteWithoutLock, |scene| check_changed(scene, Some("old"), Some("new")));
}

/// Checks after a crash in an operation that finds a file of another program: it is in its place, or moved aside.
/// Only whole files and only this one are moved aside.
fn check_foreign(scene: &Scene) -> bool {
    let in_place = std::fs::read(scene.place()).is_ok_and(|content| content == FOREIGN.as_bytes());
    let swept = scene.store.sweep().unwrap();
    assert!(swept.damaged <= 1, "{scene}: {swept:?}");
    let kept = scene.store.damaged().unwrap();
    assert_eq!(kept.len(), usize::from(!in_place), "{scene}: {kept:?}");
    for file in kept {
        assert_eq!(file.original_name, format!("{}.json", scene.key), "{scene}");
        assert_eq!(std::fs::read(file.path).unwrap(), FOREIGN.as_bytes(), "{scene}");
    }
    scene.store.clear_damaged().unwrap();
    !in_place
}

#[test]
fn in_write_over_a_foreign_file() {
    crash_everywhere(Operation::WriteOverForeign, check_foreign);
}

#[test]
fn in_remove_of_a_foreign_file() {
    crash_everywhere(Operation::RemoveForeign, check_foreign);
}

#[test]
fn in_remove() {
    crash_everywhere(Operation::Remove, |scene| check_changed(scene, Some("old"), None));
}
