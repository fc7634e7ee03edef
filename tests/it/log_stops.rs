//! A process that is stopped or killed at any system call of its work on the log, or to which a call fails, while others
//! go on.
//!
//! The others change the use of the segments many times meanwhile. So a call that comes late would damage what is in
//! them now.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::libc;
use record_store::{FileSystemRecordStore, RecordStoreExt, WaitOptions};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::commit_log::calls::stopped_before_the_change;
use crate::commit_log::{contains, copy, log_of};
use crate::support::children::{Child, Role, Stage, spawn_until_asleep};
use crate::support::trace::{Traced, perform};
use crate::support::{PATIENCE, as_named, in_memory, millis, named, open};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[("work on the log", work), ("recover by the log", recover)];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Work {
    /// Switches to another segment, and empties the full ones.
    Checkpoint,
    /// Reserves numbers, and switches to the first segment.
    FirstWrite,
    /// Switches to a segment that has to be created.
    Switch,
    Release,
    Break,
    /// Of a lock that is shared with another holder.
    ReleaseOne,
    /// To a lease, where there was none.
    Renew,
}

fn work(stage: &Stage) {
    let (dir, work): (PathBuf, Work) = stage.argument();
    let store = open(&dir);
    let outcome = perform(stage, "", || match work {
        Work::Checkpoint => store.checkpoint().map(drop),
        Work::FirstWrite => store.write("actor's", &1),
        Work::Switch => store.write("actor's", &"x".repeat(45_000)),
        Work::Release => store.release_lock("named", named("job")),
        Work::Break => store.break_lock("named").map(drop),
        Work::ReleaseOne => store.release_lock("shared", named("job")),
        Work::Renew => store.renew("named", named("job"), PATIENCE),
    });
    stage.send(if outcome.is_ok() { "done" } else { "failed" });
}

fn recover(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let outcome = perform(stage, "", || FileSystemRecordStore::open(dir));
    stage.send(if outcome.is_ok() { "done" } else { "failed" });
}

fn fill(store: &FileSystemRecordStore) {
    for round in 0..3 {
        (0..10).for_each(|key| store.write(format!("kept-{key}"), &(round, key)).unwrap());
    }
    store.write("removed", "text").unwrap();
    assert!(store.remove("removed").unwrap());
    store.acquire_lock("named", as_named("job")).unwrap();
}

/// A store, and a process that is about to work on its log.
struct Scene {
    dir: TempDir,
    store: FileSystemRecordStore,
    actor: Traced,
    /// It is stopped in the middle of a change, if there is one.
    writer: Option<Traced>,
}

impl Scene {
    /// `None` where `ptrace` is forbidden.
    fn begin(work: Work, with_writer: bool) -> Option<Self> {
        let dir = in_memory();
        let store = open(dir.path());
        if !matches!(work, Work::FirstWrite) {
            fill(&store);
        }
        if matches!(work, Work::Switch) {
            // Both of the first segments are in use: only one of them can be emptied.
            (0..4).for_each(|_| store.write("bulk", &"x".repeat(45_000)).unwrap());
        }
        let writer = if with_writer {
            store.write("k", "old").unwrap();
            let writer = Some(stopped_before_the_change(dir.path(), false)?);
            // Its segment gets full, so a checkpoint finds a later one that it can empty.
            (0..3).for_each(|_| store.write("bulk", &"x".repeat(45_000)).unwrap());
            store.write("kept-0", &(2, 0)).unwrap();
            writer
        } else {
            None
        };
        let child = Child::start("work on the log", &(dir.path(), work));
        let (actor, _) = Traced::attach(child)?;
        Some(Self { dir, store, actor, writer })
    }

    /// Writes so much that the segments change their use, until what was written first is not in the log any more. Then it
    /// writes until the last record is in this segment, if that is used again while the actor is stopped.
    fn use_segments(&self, stopped_at: Option<&Path>, what: &str) {
        let first = "the first record of those after the stop";
        self.store.write("first", first).unwrap();
        let bulk = "x".repeat(40_000);
        let write = |round: u64| {
            let write = || self.store.write(format!("bulk-{}", round % 4), &bulk).unwrap();
            abort_if_hung(what, write);
        };
        let start = Instant::now();
        for round in 0.. {
            write(round);
            if !contains(&log_of(self.dir.path()), first) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: the log is not emptied");
            std::thread::sleep(millis(20));
        }
        // More than two segments have room for.
        for round in 0..50 {
            write(round);
            self.store.write("last", LAST).unwrap();
            if stopped_at.is_some_and(|segment| contains(&fs::read(segment).unwrap_or_default(), LAST)) {
                break;
            }
        }
    }

    /// After a power loss, all records are there, also if only the log tells them.
    fn assert_recoverable(&self, work: Work, what: &str) {
        let lost = copy(self.dir.path());
        fs::write(lost.path().join("last.json"), [0; 600]).unwrap();
        let recovered = open(lost.path());
        assert_eq!(recovered.read::<String>("last").unwrap().unwrap().result, LAST, "{what}");
        assert_kept(&recovered, work, what);
    }
}

const LAST: &str = "the last record";

fn assert_kept(store: &FileSystemRecordStore, work: Work, what: &str) {
    if matches!(work, Work::FirstWrite) {
        return;
    }
    for key in 0..10 {
        let kept = store.read::<(u8, u8)>(format!("kept-{key}")).unwrap();
        assert_eq!(kept.unwrap().result, (2, key), "{what}");
    }
    assert!(!store.exists("removed").unwrap(), "{what}");
    assert!(store.is_locked("named").unwrap(), "{what}");
}

/// The calls before which a stop or a kill is tried: those that change something, or lock a file. A stop at another one
/// has the same effect as one at the next of these.
const CALLS: [i64; 9] = [
    libc::SYS_flock,
    libc::SYS_pwrite64,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
];

/// A checkpoint beside a stopped writer tries again until its time is over.
const MOST: usize = 80;

/// Runs the actor to the entry of one of these calls. `false`: it has ended before.
fn run_to(actor: &mut Traced, number: usize) -> bool {
    let mut left = number;
    while let Some(call) = actor.next_call() {
        if CALLS.contains(&call.number) {
            if left == 0 {
                return number < MOST;
            }
            left -= 1;
        }
        actor.execute();
    }
    false
}

/// `None`: the work has fewer calls, or `ptrace` is forbidden.
fn stop_at(work: Work, with_writer: bool, call: usize) -> Option<()> {
    let mut scene = Scene::begin(work, with_writer)?;
    if !run_to(&mut scene.actor, call) {
        return None;
    }
    let what = format!("{work:?}, call {call}: {}", scene.actor.describe());
    let segment = scene.actor.file_of_call().filter(|path| path.parent().unwrap().ends_with(".store/log"));
    scene.use_segments(segment.as_deref(), &what);
    scene.actor.execute();
    assert!(contains(&log_of(scene.dir.path()), LAST), "{what}: the last frame is gone");
    scene.assert_recoverable(work, &what);
    let mut child = scene.actor.detach();
    child.expect("done");
    child.finish();
    // The actor may have emptied its segment, too.
    if contains(&log_of(scene.dir.path()), LAST) {
        scene.assert_recoverable(work, &what);
    }
    let Scene { dir, store, writer, .. } = scene;
    if let Some(writer) = writer {
        // Its change is not made, so nothing else may tell it when it is.
        assert!(contains(&log_of(dir.path()), "\"late\""), "{what}: the frame of the stopped writer is gone");
        let mut child = writer.release();
        child.expect("done");
        child.finish();
        assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "late", "{what}");
    }
    assert_kept(&open(copy(dir.path()).path()), work, &what);
    assert!(abort_if_hung(&what, || store.checkpoint().unwrap()), "{what}");
    assert_kept(&store, work, &what);
    assert_kept(&open(copy(dir.path()).path()), work, &what);
    Some(())
}

/// The fate of the actor at a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Killed,
    /// The call fails.
    Fails,
}

impl Fate {
    fn befall(self, mut actor: Traced) {
        if self == Self::Killed {
            return actor.kill();
        }
        actor.fail(Errno::EIO);
        let mut child = actor.release();
        assert!(matches!(&*child.receive(), "done" | "failed"));
        child.finish();
    }
}

/// The same after a power loss is asserted of a copy.
fn fate_at(fate: Fate, work: Work, with_writer: bool, call: usize) -> Option<()> {
    let mut scene = Scene::begin(work, with_writer)?;
    if !run_to(&mut scene.actor, call) {
        return None;
    }
    let what = format!("{work:?}, {fate:?} at call {call}: {}", scene.actor.describe());
    let Scene { dir, store, actor, writer } = scene;
    fate.befall(actor);
    assert_kept(&open(copy(dir.path()).path()), work, &what);
    // A writer whose segment could not be synced gets that error.
    let is_killed = call.is_multiple_of(2) || fate == Fate::Fails;
    if let Some(writer) = writer {
        if is_killed {
            writer.kill();
        } else {
            let mut child = writer.release();
            child.expect("done");
            child.finish();
        }
        let expected = if is_killed { "old" } else { "late" };
        assert_eq!(store.read::<String>("k").unwrap().unwrap().result, expected, "{what}");
    }
    (0..10).for_each(|round| store.write("bulk", &(round, "x".repeat(40_000))).unwrap());
    assert!(abort_if_hung(&what, || store.checkpoint().unwrap()), "{what}");
    assert_kept(&store, work, &what);
    assert_kept(&open(copy(dir.path()).path()), work, &what);
    Some(())
}

/// A copy of a store after a power loss that has taken or torn most of its files: only the log tells them.
fn lost_store() -> TempDir {
    let dir = in_memory();
    let store = open(dir.path());
    store.write("removed", "text").unwrap();
    let removed = fs::read(dir.path().join("removed.json")).unwrap();
    fill(&store);
    let lost = copy(dir.path());
    let path = |name: &str| lost.path().join(name);
    (0..4).for_each(|key| fs::write(path(&format!("kept-{key}.json")), [0; 100]).unwrap());
    (4..8).for_each(|key| fs::remove_file(path(&format!("kept-{key}.json"))).unwrap());
    fs::remove_file(path("named.lock")).unwrap();
    fs::write(path("removed.json"), removed).unwrap();
    lost
}

fn recovery_at(fate: Fate, lost: &TempDir, call: usize) -> Option<()> {
    let dir = copy(lost.path());
    let (mut actor, _) = Traced::attach(Child::start("recover by the log", &dir.path()))?;
    if !run_to(&mut actor, call) {
        return None;
    }
    let what = format!("a recovery, {fate:?} at call {call}: {}", actor.describe());
    fate.befall(actor);
    let store = open(dir.path());
    assert_kept(&store, Work::Checkpoint, &what);
    assert_kept(&open(copy(dir.path()).path()), Work::Checkpoint, &what);
    Some(())
}

/// Tries all calls of some work. They mostly wait, so several are tried at once.
fn at_each_call(attempt: impl Fn(usize) -> Option<()> + Sync) {
    const AT_ONCE: usize = 6;
    let attempt = &attempt;
    let counts = std::thread::scope(|scope| {
        let count =
            |first: usize| (first..).step_by(AT_ONCE).take_while(|call| attempt(*call).is_some()).count();
        let threads: Vec<_> = (0..AT_ONCE).map(|first| scope.spawn(move || count(first))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
    });
    let is_traced =
        Traced::attach(Child::start("work on the log", &(in_memory().path(), Work::FirstWrite))).is_some();
    assert!(counts > 8 || !is_traced, "only {counts} calls");
}

#[test]
fn a_process_that_is_stopped_in_a_checkpoint_delays_and_damages_nothing() {
    at_each_call(|call| stop_at(Work::Checkpoint, false, call));
}

#[test]
fn a_process_that_is_stopped_in_a_checkpoint_beside_a_stopped_writer_damages_nothing() {
    at_each_call(|call| stop_at(Work::Checkpoint, true, call));
}

#[test]
fn a_process_that_is_stopped_while_it_reserves_numbers_delays_and_damages_nothing() {
    at_each_call(|call| stop_at(Work::FirstWrite, false, call));
}

#[test]
fn a_process_that_is_stopped_while_it_adds_a_segment_delays_and_damages_nothing() {
    at_each_call(|call| stop_at(Work::Switch, true, call));
}

#[test]
fn a_process_that_is_killed_in_a_checkpoint_damages_nothing() {
    at_each_call(|call| fate_at(Fate::Killed, Work::Checkpoint, false, call));
    at_each_call(|call| fate_at(Fate::Killed, Work::Checkpoint, true, call));
}

#[test]
fn a_failed_call_in_the_work_on_the_log_damages_nothing() {
    for work in [Work::Checkpoint, Work::Switch, Work::FirstWrite] {
        at_each_call(|call| fate_at(Fate::Fails, work, false, call));
    }
    at_each_call(|call| fate_at(Fate::Fails, Work::Checkpoint, true, call));
}

#[test]
fn a_recovery_that_is_killed_or_fails_is_done_again() {
    let lost = lost_store();
    for fate in [Fate::Killed, Fate::Fails] {
        at_each_call(|call| recovery_at(fate, &lost, call));
    }
}

/// A process is killed before the frames that it has taken out beside a stopped writer are on the disk. The next one does not
/// see them any more. It has to sync the segment before it empties a later one.
#[test]
fn frames_that_another_process_has_taken_out_are_synced_before_later_ones_disappear() {
    // The older frames about each file, and then the newest.
    for syncs in 0..2 {
        let Some(mut scene) = Scene::begin(Work::Checkpoint, true) else { return };
        let taken_out_of = run_to_sync_of_taken(&mut scene.actor, syncs);
        scene.actor.kill();
        let child = Child::start("work on the log", &(scene.dir.path(), Work::Checkpoint));
        let (mut next, _) = Traced::attach(child).unwrap();
        let mut is_synced = false;
        loop {
            let call = next.next_call().expect("a later segment is emptied");
            let segment = next.file_of_call();
            is_synced |= call.number == libc::SYS_fdatasync && segment.as_ref() == Some(&taken_out_of);
            if call.number == libc::SYS_pwrite64
                && segment != Some(taken_out_of.clone())
                && call.arguments[3] == 0
            {
                let mut epoch = [1; 8];
                next.read(call.arguments[1] + 8, &mut epoch);
                if epoch == [0; 8] {
                    assert!(is_synced, "{segment:?} is emptied, killed at sync {syncs}");
                    break;
                }
            }
            next.execute();
        }
    }
}

/// Runs the actor to a sync of frames that it has taken out of a segment, after so many others. Returns the segment.
fn run_to_sync_of_taken(actor: &mut Traced, syncs: usize) -> PathBuf {
    let (mut left, mut taken_out_of) = (syncs, None);
    loop {
        let call = actor.next_call().expect("frames are taken out");
        let segment = actor.file_of_call();
        if call.number == libc::SYS_pwrite64 && call.arguments[3] > 0 {
            taken_out_of = segment;
        } else if call.number == libc::SYS_fdatasync && taken_out_of.is_some() && segment == taken_out_of {
            if left == 0 {
                return segment.unwrap();
            }
            (left, taken_out_of) = (left - 1, None);
        }
        actor.execute();
    }
}

/// A writer has filled a segment, and was killed before it began to empty it. So the next process does.
#[test]
fn those_who_wait_are_notified_before_the_log_is_emptied() {
    for work in [Work::Release, Work::Break, Work::ReleaseOne, Work::Renew, Work::FirstWrite] {
        let dir = in_memory();
        let store = open(dir.path());
        fill(&store);
        for job in ["job", "other"] {
            store.acquire_lock("shared", as_named(job).shared()).unwrap();
        }
        // A third record of this size needs another segment.
        (0..2).for_each(|_| store.write("bulk", &"x".repeat(45_000)).unwrap());
        let child = Child::start("work on the log", &(dir.path(), Work::Switch));
        let Some((mut writer, _)) = Traced::attach(child) else { return };
        while writer.next_call().expect("a sync of the log").number != libc::SYS_fdatasync {
            writer.execute();
        }
        writer.kill();
        let watcher = matches!(work, Work::FirstWrite).then(|| {
            let store = store.clone();
            spawn_until_asleep(move || store.watch("actor's").unwrap().next(WaitOptions::new()).unwrap())
        });

        let child = Child::start("work on the log", &(dir.path(), work));
        let (mut actor, _) = Traced::attach(child).unwrap();
        let mut is_notified = false;
        loop {
            match actor.next_call().expect("a thread that empties the log").number {
                libc::SYS_futex => is_notified = true,
                libc::SYS_clone3 | libc::SYS_clone => break,
                _ => {}
            }
            actor.execute();
        }
        assert!(is_notified, "{work:?}");
        actor.execute();
        let mut child = actor.release();
        child.expect("done");
        child.finish();
        assert!(watcher.is_none_or(|watcher| watcher.join().is_some()));
    }
}
