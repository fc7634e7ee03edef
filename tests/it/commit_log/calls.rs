//! Processes that are stopped or killed at a system call of their work with the log, and what they have synced before.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::libc;
use record_store::{
    BreakOptions, Cancellation, ChangesOptions, Durability, ErrorKind, FileSystemRecordStore, Json, LockInfo,
    LockOptions, LockToken, ReadOptions, RecordStoreExt, WriteOptions,
};

use super::{copy, copy_without_frames};
use crate::support::children::{Child, Role, Stage, spawn_until_asleep};
use crate::support::trace::tamper::Call;
use crate::support::trace::{Traced, perform};
use crate::support::{PATIENCE, as_named, in_memory, latch_of, millis, named, names_in, open, open_with};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("change one lock", change_lock),
    ("change one record", change),
    ("checkpoint the log", checkpoint),
    ("read durably", read_durably),
    ("recover a store", recover),
    ("write a large record", write_a_large_record),
];

fn change(stage: &Stage) {
    let (dir, remove): (PathBuf, bool) = stage.argument();
    let store = open(&dir);
    perform(stage, "", || if remove { store.remove("k").map(drop) } else { store.write("k", "late") })
        .unwrap();
    stage.send("done");
}

/// Kills the child before the first call for which this is true. `false`: there is none, and the child has ended.
fn kill_at(mut traced: Traced, mut is_here: impl FnMut(&Call) -> bool) -> bool {
    while let Some(call) = traced.next_call() {
        if is_here(&call) {
            traced.kill();
            return true;
        }
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    false
}

/// Runs a change in a child up to the moment at which the log is told and the change is not made. `None` where `ptrace`
/// is forbidden.
pub(crate) fn stopped_before_the_change(dir: &Path, remove: bool) -> Option<Traced> {
    stopped_when_told(Child::start("change one record", &(dir, remove)))
}

fn stopped_when_told(child: Child) -> Option<Traced> {
    let (mut traced, _) = Traced::attach(child)?;
    loop {
        let call = traced.next_call().expect("a change that the log is told");
        traced.execute();
        if call.number == libc::SYS_pwrite64 {
            return Some(traced);
        }
    }
}

/// The writer may come back to life when its lease is over, so its change must not be made by anybody else.
#[test]
fn a_change_of_a_killed_writer_that_was_only_told_is_not_made_by_a_recovery() {
    for remove in [false, true] {
        let dir = in_memory();
        let store = open(dir.path());
        store.write("k", "old").unwrap();
        let Some(traced) = stopped_before_the_change(dir.path(), remove) else { return };
        traced.kill();
        // The next process that enters the latch finds the frame.
        let token = store.acquire_lock("k", LockOptions::new()).unwrap();
        store.release_lock("k", token).unwrap();
        let recovered = open(copy(dir.path()).path()).read::<String>("k").unwrap();
        assert_eq!(recovered.map(|record| record.result).as_deref(), Some("old"), "remove: {remove}");
        store.write("k", "new").unwrap();
        let recovered = open(copy(dir.path()).path()).read::<String>("k").unwrap();
        assert_eq!(recovered.map(|record| record.result).as_deref(), Some("new"), "remove: {remove}");
    }
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum LockChange {
    Acquire,
    Renew,
    Release,
}

fn change_lock(stage: &Stage) {
    let (dir, change): (PathBuf, LockChange) = stage.argument();
    let store = open(&dir);
    let job = || named("job");
    perform(stage, "", || match change {
        LockChange::Acquire => store.acquire_lock("k", LockOptions::new().holder(job())).map(drop),
        LockChange::Renew => store.renew("k", job(), Duration::from_hours(2)),
        LockChange::Release => store.release_lock("k", job()),
    })
    .unwrap();
    stage.send("done");
}

#[test]
fn a_change_of_a_lock_that_a_killed_process_has_only_told_is_not_made_by_a_recovery() {
    for change in [LockChange::Acquire, LockChange::Renew, LockChange::Release] {
        let dir = in_memory();
        let store = open(dir.path());
        let token = store.acquire_lock("k", as_named("job").hold_timeout(Duration::from_hours(1))).unwrap();
        if let LockChange::Acquire = change {
            store.release_lock("k", token).unwrap();
        }
        let before = store.lock_info("k").unwrap();
        let Some(traced) = stopped_when_told(Child::start("change one lock", &(dir.path(), change))) else {
            return;
        };
        traced.kill();
        // The next process that enters the latch finds the frame.
        let mut others = (0..).map(|number| format!("other-{number}"));
        store.write(others.find(|key| latch_of(key) == latch_of("k")).unwrap(), &1).unwrap();
        let recovered = open(copy(dir.path()).path()).lock_info("k").unwrap();
        let seen = |info: &Option<LockInfo>| info.as_ref().map(|info| (info.token(), info.expires_at()));
        assert_eq!(seen(&recovered), seen(&before), "{change:?}");
    }
}

/// The lock file stays, because a bound holder shares the lock. The log is told nothing of it.
#[test]
fn a_release_beside_a_bound_holder_that_a_killed_process_has_made_is_made_by_a_recovery() {
    let dir = in_memory();
    let store = open(dir.path());
    store.acquire_lock("k", as_named("job").shared()).unwrap();
    store.acquire_lock("k", LockOptions::new().shared()).unwrap();
    let child = Child::start("change one lock", &(dir.path(), LockChange::Release));
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    loop {
        let call = traced.next_call().expect("a change of the lock file");
        traced.execute();
        if call.number == libc::SYS_renameat2 {
            break;
        }
    }
    traced.kill();
    let names = |store: &FileSystemRecordStore| {
        let info = store.lock_info("k").unwrap();
        info.iter().flat_map(LockInfo::holders).map(|it| it.holder().name().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&store).len(), 1);
    // The next process that enters the latch finds the frame.
    let mut others = (0..).map(|number| format!("other-{number}"));
    store.write(others.find(|key| latch_of(key) == latch_of("k")).unwrap(), &1).unwrap();
    let lost = copy(dir.path());
    std::fs::remove_file(lost.path().join("k.lock")).unwrap();
    assert_eq!(names(&open(lost.path())), [""; 0]);
}

/// It keeps one segment of the log. All others are emptied, so others may write as much as they want.
#[test]
fn a_stopped_writer_delays_no_other_key_however_much_is_written() {
    let dir = in_memory();
    let store = open(dir.path());
    store.write("k", "old").unwrap();
    let Some(traced) = stopped_before_the_change(dir.path(), false) else { return };
    let result = "x".repeat(40_000);
    // More than all segments have room for.
    for round in 0..(90 << 20) / result.len() {
        let write = || store.write(format!("other-{}", round % 10), &(round, &result)).unwrap();
        abort_if_hung("a write beside a stopped writer", write);
    }
    assert!(!store.checkpoint().unwrap(), "the checkpoint has not waited for the writer");
    assert!(store.remove("other-0").unwrap());
    let copy = copy(dir.path());
    let recovered = open(copy.path());
    assert!(!recovered.exists("other-0").unwrap());
    let last = recovered.read::<(usize, String)>("other-8").unwrap().unwrap().result.0;
    assert_eq!(last, (90 << 20) / result.len() - 1);
    assert!(added_segments(dir.path()).iter().any(|length| *length > 512));
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert!(abort_if_hung("a checkpoint", || store.checkpoint().unwrap()));
    // Their headers stay: one of them may be the only one that says which numbers were given.
    let lengths = added_segments(dir.path());
    assert!(
        lengths.iter().all(|length| *length == 512),
        "the log keeps room that it does not need: {lengths:?}"
    );
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "late");
}

/// The lengths of the segments but the first two.
fn added_segments(dir: &Path) -> Vec<u64> {
    let log = dir.join(".store/log");
    let added = names_in(&log).into_iter().filter(|name| name.parse::<u8>().is_ok_and(|number| number > 1));
    added.map(|name| fs::metadata(log.join(name)).unwrap().len()).collect()
}

fn lock_segment(dir: &Path, segment: u8) -> File {
    let path = dir.join(format!(".store/log/{segment:02}"));
    let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
    fs2::FileExt::lock_exclusive(&file).unwrap();
    file
}

/// A process locks the file of a segment before it empties it or uses it again. So those that this test has locked stay as they
/// are.
#[test]
fn changes_wait_until_their_timeout_when_no_segment_can_be_emptied() {
    let dir = in_memory();
    let store = open(dir.path());
    let locked: Vec<_> = (0..16).map(|segment| lock_segment(dir.path(), segment)).collect();
    let result = "x".repeat(40_000);
    let write = |timeout| store.write_with("k", &result, WriteOptions::new().timeout(timeout));
    let error =
        abort_if_hung("a write to a store whose segments are locked", || write(millis(200)).unwrap_err());
    assert_eq!((error.kind(), error.is_outcome_unknown()), (ErrorKind::LockTimeout, false), "{error}");
    assert!(error.to_string().contains("a process is stopped in the middle of an operation"), "{error}");
    assert!(!store.exists("k").unwrap());
    drop(locked);
    let write = || write(Duration::from_mins(1)).unwrap();
    abort_if_hung("writes after the end of the locks", || (0..20).for_each(|_| write()));
    assert!(store.exists("k").unwrap());
}

#[test]
fn a_change_that_waits_for_a_segment_can_be_cancelled() {
    let dir = in_memory();
    let store = open(dir.path());
    let _locked: Vec<_> = (0..16).map(|segment| lock_segment(dir.path(), segment)).collect();
    let cancellation = Cancellation::new();
    let options = WriteOptions::new().timeout(PATIENCE).cancellation(&cancellation);
    let writing = spawn_until_asleep({
        let store = store.clone();
        move || store.write_with("k", &1, options)
    });
    cancellation.cancel();
    let begun = Instant::now();
    let error = writing.join().unwrap_err();
    assert!(error.is_cancelled() && begun.elapsed() < PATIENCE / 2, "{error}");
    assert!(!store.exists("k").unwrap());
}

/// The next power loss may come at any moment.
#[test]
fn a_file_that_a_recovery_replaces_is_kept_on_the_disk_before() {
    let dir = in_memory();
    open(dir.path()).write("k", "told").unwrap();
    let lost = copy(dir.path());
    fs::write(lost.path().join("k.json"), "what somebody else has written").unwrap();
    let Some((mut traced, _)) = Traced::attach(Child::start("recover a store", &lost.path())) else { return };
    let (mut is_kept, mut is_replaced) = (false, false);
    while let Some(call) = traced.next_call() {
        let file = traced.file_of_call();
        is_kept |=
            call.number == libc::SYS_fsync && file.is_some_and(|file| file.ends_with(".store/damaged"));
        if matches!(call.number, libc::SYS_rename | libc::SYS_renameat | libc::SYS_renameat2) {
            is_replaced = true;
            assert!(is_kept, "{}", traced.describe());
        }
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert!(is_replaced);
    let store = open(lost.path());
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "told");
    assert_eq!(store.damaged().unwrap().len(), 1);
}

fn read_durably(stage: &Stage) {
    let (dir, read): (PathBuf, Look) = stage.argument();
    let store = open(&dir);
    perform(stage, "", || read.run(&store));
    stage.send("done");
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Look {
    /// A read without the latch that finds a record, of any type.
    There,
    /// One that finds none.
    Gone,
    Read,
    IgnoringTheLock,
    Exists,
    Absent,
    Swap,
    Remove,
    Compute,
    Watch,
    /// A watch of the whole store that begins.
    Changes,
    WaitForLock,
    /// Of a process, for which the log is told nothing.
    Acquire,
    Break,
    BreakByToken,
}

impl Look {
    const ALL: [Self; 13] = [
        Self::Read,
        Self::IgnoringTheLock,
        Self::Exists,
        Self::Absent,
        Self::Swap,
        Self::Remove,
        Self::Compute,
        Self::Watch,
        Self::Changes,
        Self::WaitForLock,
        Self::Acquire,
        Self::Break,
        Self::BreakByToken,
    ];

    fn run(self, store: &FileSystemRecordStore) {
        match self {
            Look::There | Look::Gone => {
                let found = store.read_with::<Json>("k", ReadOptions::new().ignore_lock()).unwrap();
                assert_eq!(found.is_some(), matches!(self, Look::There));
            }
            Look::Read => assert!(store.read::<u8>("k").unwrap().is_some()),
            Look::IgnoringTheLock => {
                let options = ReadOptions::new().ignore_lock();
                assert!(store.read_with::<u8>("k", options).unwrap().is_some());
            }
            Look::Exists => assert!(store.exists("k").unwrap()),
            Look::Absent => assert!(store.read::<u8>("gone").unwrap().is_none()),
            Look::Swap => {
                assert!(!store.compare_and_swap("k", Some(&7), &8, WriteOptions::new()).unwrap());
            }
            Look::Remove => assert!(!store.remove("gone").unwrap()),
            Look::Compute => {
                let found = store.get_or_compute("k", LockOptions::new(), || -> record_store::Result<u8> {
                    unreachable!()
                });
                assert_eq!(found.unwrap(), 1);
            }
            Look::Watch => drop(store.watch("k").unwrap()),
            Look::Changes => drop(store.changes(ChangesOptions::new()).unwrap()),
            Look::WaitForLock => assert!(store.wait_for_lock("released", Duration::ZERO).unwrap()),
            Look::Acquire => drop(store.acquire_lock("released", LockOptions::new()).unwrap()),
            Look::Break => assert!(!store.break_lock("released").unwrap()),
            Look::BreakByToken => {
                assert!(
                    !store.break_lock_with("released", BreakOptions::new().token(LockToken::new(1))).unwrap()
                );
            }
        }
    }
}

fn write_a_large_record(stage: &Stage) {
    let (dir, is_durable): (PathBuf, bool) = stage.argument();
    let store = open_with(&dir, if is_durable { Durability::Full } else { Durability::Relaxed });
    let large = "x".repeat(LARGE);
    perform(stage, "", || store.write("k", &large)).unwrap();
    stage.send("done");
}

/// The log tells only where such a record is.
const LARGE: usize = 60_000;

/// The version of a record is chosen before the latch is entered. Inside, it may have to be replaced.
#[test]
fn a_large_record_is_on_the_disk_before_the_log_tells_it_also_if_its_version_is_replaced() {
    for is_durable in [true, false] {
        let dir = in_memory();
        drop(open(dir.path()));
        let then = SystemTime::now() + Duration::from_hours(1);
        let version = then.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros().try_into().unwrap();
        crate::versions::versioned(dir.path(), "k", version);
        let file = fs::File::options().write(true).open(dir.path().join("k.json")).unwrap();
        file.set_modified(then).unwrap();
        let child = Child::start("write a large record", &(dir.path(), is_durable));
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let (mut writes, mut is_synced) = (0, true);
        while let Some(call) = traced.next_call() {
            match call.number {
                libc::SYS_write | libc::SYS_pwrite64 if call.arguments[2] > LARGE as u64 => {
                    writes += 1;
                    is_synced = false;
                }
                libc::SYS_fdatasync => is_synced = true,
                libc::SYS_pwrite64 => assert!(is_synced, "durable: {is_durable}"),
                _ => {}
            }
            traced.execute();
        }
        let mut child = traced.release();
        child.expect("done");
        child.finish();
        assert_eq!(writes, 2, "the version was not replaced");
        let read = open(dir.path()).read::<String>("k").unwrap().unwrap();
        assert!(read.version.number().unwrap() > version);
    }
}

/// The changes of a relaxed process are not on the disk. A durable one that sees it syncs the log before it goes on.
#[test]
fn nobody_acts_on_what_is_not_on_the_disk() {
    for look in Look::ALL {
        let dir = in_memory();
        let relaxed = open_with(dir.path(), Durability::Relaxed);
        relaxed.write("gone", &1_u8).unwrap();
        let token = relaxed.acquire_lock("released", as_named("job")).unwrap();
        assert!(relaxed.checkpoint().unwrap());
        assert!(relaxed.remove("gone").unwrap());
        relaxed.release_lock("released", token).unwrap();
        relaxed.write("k", &1_u8).unwrap();
        for expected in [1, 0] {
            let Some(syncs) = syncs_of(dir.path(), look) else { return };
            assert_eq!(syncs, expected, "{look:?}: only the first one has something to wait for");
        }
    }
}

/// How often a durable process syncs the log that looks at something. `None` where `ptrace` is forbidden.
fn syncs_of(dir: &Path, look: Look) -> Option<u32> {
    calls_of(dir, look, libc::SYS_fdatasync)
}

/// How often a durable process makes this call that looks at something. `None` where `ptrace` is forbidden.
pub(super) fn calls_of(dir: &Path, look: Look, number: libc::c_long) -> Option<u32> {
    let (mut traced, _) = Traced::attach(Child::start("read durably", &(dir, look)))?;
    let mut syncs = 0;
    while let Some(call) = traced.next_call() {
        syncs += u32::from(call.number == number);
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    Some(syncs)
}

fn checkpoint(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    assert!(perform(stage, "", || store.checkpoint()).unwrap());
    stage.send("done");
}

/// A checkpoint syncs the segments that get no more frames. The others are not on the disk.
#[test]
fn nobody_acts_on_a_change_that_was_made_while_the_log_was_emptied() {
    let dir = in_memory();
    let relaxed = open_with(dir.path(), Durability::Relaxed);
    relaxed.write("before", &1_u8).unwrap();
    let child = Child::start("checkpoint the log", &dir.path());
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    let mut is_written = false;
    while let Some(call) = traced.next_call() {
        if call.number == libc::SYS_fdatasync && !is_written {
            relaxed.write("k", &1_u8).unwrap();
            is_written = true;
        }
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert!(is_written, "the checkpoint has synced no segment");
    assert_eq!(syncs_of(dir.path(), Look::Read), Some(1));
}

/// At each call of the checkpoint, the change is on the disk, or whoever acts on it syncs it.
#[test]
fn nobody_acts_on_what_a_killed_checkpoint_has_not_synced() {
    let syncs = [libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_syncfs];
    for stop in 0.. {
        let dir = in_memory();
        let relaxed = open_with(dir.path(), Durability::Relaxed);
        relaxed.write("k", &1_u8).unwrap();
        let child = Child::start("checkpoint the log", &dir.path());
        let Some((traced, _)) = Traced::attach(child) else { return };
        let (mut left, mut is_synced) = (stop, false);
        let is_killed = kill_at(traced, |call| {
            let is_here = left == 0;
            if !is_here {
                left -= 1;
                is_synced |= syncs.contains(&call.number);
            }
            is_here
        });
        let by_reader = syncs_of(dir.path(), Look::Read).unwrap();
        assert!(is_synced || by_reader > 0, "killed at call {stop}");
        if !is_killed {
            assert!(stop > 10, "only {stop} calls");
            return;
        }
    }
}

fn recover(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    perform(stage, "", || drop(open(&dir)));
    stage.send("done");
}

/// The torn file has not the form of a record of ours, so it is kept. But its place must not be empty in between: a second
/// recovery would take the record for a removed one.
#[test]
fn a_recovery_that_is_killed_before_any_change_of_a_name_keeps_the_record() {
    let lost = copy_without_frames();
    let path = lost.path().join("k.json");
    let mut torn = fs::read(&path).unwrap();
    torn[..512].fill(0);
    fs::write(&path, &torn).unwrap();
    let changes =
        [libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_linkat, libc::SYS_unlinkat, libc::SYS_rename];
    for kept in 0.. {
        let dir = copy(lost.path());
        let child = Child::start("recover a store", &dir.path());
        let Some((traced, _)) = Traced::attach(child) else { return };
        let mut left = kept;
        let is_killed = kill_at(traced, |call| {
            let is_change = changes.contains(&call.number);
            let is_here = is_change && left == 0;
            left -= u32::from(is_change && !is_here);
            is_here
        });
        let read = open(dir.path()).read::<String>("k").unwrap();
        assert_eq!(read.map(|record| record.result), Some("old ".repeat(150)), "killed before change {kept}");
        if !is_killed {
            assert!(kept > 2, "only {kept} changes");
            return;
        }
    }
}

/// More files than are synced one by one. No segment is emptied meanwhile, because this test has the first one locked.
#[test]
fn many_files_are_on_the_disk_before_a_recovery_empties_the_log() {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    let _locked = [0, 1].map(|segment| lock_segment(dir.path(), segment));
    (0..1_200).for_each(|key| store.write(format!("k-{key}"), &key).unwrap());
    let lost = copy(dir.path());
    let Some((mut traced, _)) = Traced::attach(Child::start("recover a store", &lost.path())) else { return };
    let (mut is_synced, mut is_emptied) = (false, false);
    while let Some(call) = traced.next_call() {
        is_synced |= call.number == libc::SYS_syncfs;
        let is_of_segment = || traced.file_of_call().is_some_and(|file| file.ends_with(".store/log/00"));
        if call.number == libc::SYS_pwrite64 && is_of_segment() {
            assert!(is_synced, "the first segment is emptied, and the files are not synced");
            is_emptied = true;
        }
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert!(is_emptied);
    let store = open(lost.path());
    assert!((0..1_200).all(|key| store.read::<u32>(format!("k-{key}")).unwrap().unwrap().result == key));
}
