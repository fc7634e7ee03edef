//! The commit log: what is synced before somebody acts on it, what a killed or a stopped writer leaves, and how a store
//! is recovered.
//!
//! A copy of a store is a store after a power loss, as far as the log is concerned: the shared memory of the log is not
//! of this directory, so the first open recovers it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::libc;
use record_store::{
    BreakOptions, Durability, ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, LockToken,
    OpenMode, ReadOptions, RecordStoreExt, WriteOptions,
};
use tempfile::TempDir;

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{Traced, perform};
use crate::support::{as_named, in_memory, millis, named, names_in, open, open_with};
use crate::tree;
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("change one record", change),
    ("write and tell the outcome", write_and_tell),
    ("checkpoint the log", checkpoint),
    ("read durably", read_durably),
    ("recover a store", recover),
    ("write a large record", write_a_large_record),
    ("write until told", write_until_told),
];

/// A copy of a store, as a backup makes it.
pub(crate) fn copy(of: &Path) -> TempDir {
    let dir = in_memory();
    tree::copy(of, dir.path());
    dir
}

/// The bytes of the log.
pub(crate) fn log_of(dir: &Path) -> Vec<u8> {
    let log = dir.join(".store/log");
    names_in(&log).iter().flat_map(|name| fs::read(log.join(name)).unwrap()).collect()
}

pub(crate) fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn what_the_log_tells_wins_over_a_file_that_is_torn_or_missing() {
    let dir = in_memory();
    let store = open(dir.path());
    for key in ["torn", "missing", "kept", "removed", "by hand"] {
        store.write(key, "old").unwrap();
    }
    let old = fs::read(dir.path().join("removed.json")).unwrap();
    assert!(store.checkpoint().unwrap());
    for key in ["torn", "missing", "kept"] {
        store.write(key, "new").unwrap();
    }
    assert!(store.remove("removed").unwrap());
    let token = store.acquire_lock("torn", as_named("job")).unwrap();
    store.acquire_lock("kept", as_named("job")).unwrap();
    store.release_lock("kept", named("job")).unwrap();
    let released = fs::read(dir.path().join("torn.lock")).unwrap();

    // A power loss may have left these files.
    let lost = copy(dir.path());
    let at = |name: &str| lost.path().join(name);
    fs::write(at("torn.json"), "").unwrap();
    fs::remove_file(at("missing.json")).unwrap();
    fs::write(at("removed.json"), old).unwrap();
    fs::write(at("by hand.json"), "{\"key\":\"by hand\",\"result\":\"edited\"}").unwrap();
    fs::write(at("torn.lock"), vec![0; released.len()]).unwrap();
    fs::write(at("kept.lock"), String::from_utf8(released).unwrap().replace("\"torn\"", "\"kept\"")).unwrap();

    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(lost.path()).unwrap_err();
    assert_eq!(reader.kind(), ErrorKind::NeedsRecovery, "{reader}");
    for round in 0..2 {
        let store = open(lost.path());
        let read = |key: &str| store.read_with::<String>(key, ReadOptions::new().claim(named("job")));
        for (key, expected) in [("torn", "new"), ("missing", "new"), ("kept", "new"), ("by hand", "edited")] {
            assert_eq!(read(key).unwrap().unwrap().result, expected, "{key}, round {round}");
        }
        assert!(!store.exists("removed").unwrap(), "round {round}");
        assert_eq!(store.lock_info("torn").unwrap().unwrap().token(), token, "round {round}");
        assert_eq!(store.lock_info("kept").unwrap(), None, "round {round}");
        assert_eq!(store.verify().map(Result::unwrap).count(), 0, "round {round}");
        assert_eq!(store.damaged().unwrap().len(), 0, "round {round}");
    }
    FileSystemOptions::new().mode(OpenMode::ReadOnly).open(lost.path()).unwrap();
}

#[test]
fn a_damaged_file_that_no_power_loss_explains_is_kept() {
    let dir = in_memory();
    let store = open(dir.path());
    store.write("k", "mine").unwrap();
    let lost = copy(dir.path());
    fs::write(lost.path().join("k.json"), "{\"name\":\"a file of another program\"}").unwrap();
    let store = open(lost.path());
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "mine");
    let damaged = store.damaged().unwrap();
    assert_eq!(damaged.len(), 1);
    assert!(contains(&fs::read(&damaged[0].path).unwrap(), "another program"));
}

/// The clock of the copy is right, so only the high-water mark can be ahead of it.
#[test]
fn tokens_and_versions_continue_after_the_high_water_mark() {
    let dir = in_memory();
    let store = open(dir.path());
    let token = store.acquire_lock("k", LockOptions::new()).unwrap();
    store.write_with("k", &1, WriteOptions::new().claim(token)).unwrap();
    let lost = copy(dir.path());
    fs::remove_file(lost.path().join(".store/events")).unwrap();
    let store = open(lost.path());
    let ahead = SystemTime::now() + Duration::from_hours(23);
    let ahead = ahead.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
    assert!(u128::from(store.acquire_lock("l", LockOptions::new()).unwrap().get()) > ahead);
    store.write("m", &1).unwrap();
    let version = store.read::<u8>("m").unwrap().unwrap().version.number().unwrap();
    assert!(u128::from(version) > ahead);
}

#[test]
fn a_copy_of_a_store_in_use_opens_and_every_record_in_it_is_whole() {
    let dir = in_memory();
    let mut writers: Vec<_> = (0..3).map(|n| Child::start("write until told", &(dir.path(), n))).collect();
    for writer in &mut writers {
        writer.expect("begun");
    }
    for _ in 0..5 {
        let copied = in_memory();
        let status = std::process::Command::new("cp")
            .args(["-a", "--"])
            .args([dir.path().join("."), copied.path().to_owned()])
            // A file may disappear before it is copied.
            .stderr(std::process::Stdio::null())
            .status();
        assert!(status.is_ok(), "{status:?}");
        let store = open(copied.path());
        for key in store.keys().unwrap() {
            let record = store.read::<u64>(key.unwrap()).unwrap();
            assert!(record.is_some());
        }
        assert!(store.verify().map(Result::unwrap).all(|finding| !finding.problem.is_damage()));
        store.write("k-0", &0).unwrap();
    }
    for mut writer in writers {
        writer.send("end");
        writer.finish();
    }
}

/// A backup is made twice to the same place, as rsync does it. The locks of processes are of the original only.
#[test]
fn the_copies_that_usual_programs_make_are_sound_stores() {
    let programs = [
        ("cp", "cp -a -- \"$1/.\" \"$2\""),
        ("tar", "rm -rf -- \"$2\" && mkdir -- \"$2\" && tar -C \"$1\" -cf - . | tar -C \"$2\" -xf -"),
        ("rsync", "rsync -a --delete -- \"$1/\" \"$2\""),
    ];
    for (program, command) in programs {
        let run = |arguments: &[&std::ffi::OsStr]| {
            let status = std::process::Command::new("sh").arg("-c").args(arguments).status().unwrap();
            status.success()
        };
        if !run(&[format!("command -v {program} >/dev/null").as_ref()]) {
            eprintln!("SKIPPED: {program} is not installed");
            continue;
        }
        let (dir, backups) = (in_memory(), in_memory());
        let backup = backups.path().join("backup");
        let store = open(dir.path());
        let _bound = store.lock("bound", LockOptions::new()).unwrap();
        let named_token = store.acquire_lock("named", as_named("job")).unwrap();
        for round in 0..2_u8 {
            store.write("new", &round).unwrap();
            store.write(format!("removed-{round}"), &round).unwrap();
            store.write("large", &"x".repeat(100_000 + usize::from(round))).unwrap();
            if round == 1 {
                assert!(store.remove("removed-0").unwrap());
            }
            let last = store.read::<u8>("new").unwrap().unwrap().version.number().unwrap();
            fs::create_dir_all(&backup).unwrap();
            assert!(run(&[command.as_ref(), "sh".as_ref(), dir.path().as_os_str(), backup.as_os_str()]));
            let copy = open(&backup);
            let what = format!("{program}, round {round}");
            assert_eq!(copy.read::<u8>("new").unwrap().unwrap().result, round, "{what}");
            assert_eq!(copy.exists("removed-0").unwrap(), round == 0, "{what}");
            let large = copy.read::<String>("large").unwrap().unwrap().result;
            assert_eq!(large.len(), 100_000 + usize::from(round), "{what}");
            assert_eq!(copy.lock_info("named").unwrap().unwrap().token(), named_token, "{what}");
            assert!(!copy.is_locked("bound").unwrap() && store.is_locked("bound").unwrap(), "{what}");
            assert_eq!(copy.verify().map(Result::unwrap).filter(|it| it.problem.is_damage()).count(), 0);
            copy.write("new", &99).unwrap();
            assert!(copy.read::<u8>("new").unwrap().unwrap().version.number().unwrap() > last, "{what}");
        }
    }
}

fn write_until_told(stage: &Stage) {
    let (dir, number): (PathBuf, u32) = stage.argument();
    let store = open(&dir);
    store.write(format!("k-{number}"), &0).unwrap();
    stage.send("begun");
    let told = std::thread::scope(|scope| {
        let end = scope.spawn(|| stage.receive());
        for round in 1_u64.. {
            store.write(format!("k-{}", (u64::from(number) + round) % 20), &round).unwrap();
            if round % 7 == 0 {
                store.remove(format!("k-{}", round % 20)).unwrap();
            }
            if end.is_finished() {
                break;
            }
        }
        end.join().unwrap()
    });
    assert_eq!(told, "end");
}

#[test]
fn the_log_keeps_nothing_of_what_was_removed() {
    let dir = in_memory();
    let store = open(dir.path());
    for round in 0..600 {
        store.write(format!("k-{}", round % 10), &format!("value {round}")).unwrap();
    }
    store.write("secret", "do not keep this").unwrap();
    assert!(store.remove("secret").unwrap());
    assert!(contains(&log_of(dir.path()), "do not keep this"), "it was not in the log");
    assert!(store.checkpoint().unwrap());
    let log = log_of(dir.path());
    assert!(!contains(&log, "do not keep this") && !contains(&log, "value"));
    assert_eq!(names_in(&dir.path().join(".store/staged")), [""; 0]);
}

fn change(stage: &Stage) {
    let (dir, remove): (PathBuf, bool) = stage.argument();
    let store = open(&dir);
    perform(stage, "", || if remove { store.remove("k").map(drop) } else { store.write("k", "late") })
        .unwrap();
    stage.send("done");
}

/// Runs a change in a child up to the moment at which the log is told and the change is not made. `None` where `ptrace`
/// is forbidden.
pub(crate) fn stopped_before_the_change(dir: &Path, remove: bool) -> Option<Traced> {
    let (mut traced, _) = Traced::attach(Child::start("change one record", &(dir, remove)))?;
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

/// A process locks the file of a segment before it empties it or uses it again. So those that this test has locked stay as they
/// are.
#[test]
fn changes_wait_until_their_timeout_when_no_segment_can_be_emptied() {
    let dir = in_memory();
    let store = open(dir.path());
    let log = dir.path().join(".store/log");
    let lock = |segment| {
        let path = log.join(format!("{segment:02}"));
        let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
        fs2::FileExt::lock_exclusive(&file).unwrap();
        file
    };
    let locked: Vec<_> = (0..16).map(lock).collect();
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

fn write_and_tell(stage: &Stage) {
    let (dir, key): (PathBuf, String) = stage.argument();
    let store = open(&dir);
    let outcome = perform(stage, "", || store.write(&key, "new"));
    stage.send(&outcome.map_or_else(
        |error| format!("{:?} {}", error.kind(), error.is_outcome_unknown()),
        |()| "done".into(),
    ));
}

/// The kernel reports it to one process that what it had to write is lost. All others that wait for the same segment have to
/// fail too, although their own sync succeeds, and the old records are back.
#[test]
fn all_who_wait_for_a_sync_that_fails_get_the_error() {
    let dir = in_memory();
    let store = open(dir.path());
    let keys = ["k-0", "k-1", "k-2"];
    for key in keys {
        store.write(key, "old").unwrap();
    }
    let mut writers = Vec::new();
    for key in keys {
        let child = Child::start("write and tell the outcome", &(dir.path(), key));
        let Some((mut writer, _)) = Traced::attach(child) else { return };
        while writer.next_call().expect("a sync of the log").number != libc::SYS_fdatasync {
            writer.execute();
        }
        writers.push(writer);
    }
    assert!(fs::read_to_string(dir.path().join("k-1.json")).unwrap().contains("new"));
    for (number, mut writer) in writers.into_iter().enumerate() {
        if number == 0 {
            writer.fail(Errno::EIO);
        } else {
            writer.execute();
        }
        let mut child = writer.release();
        child.expect("Io false");
        child.finish();
        // A durable reader would wait for a sync of the same segment.
        let relaxed = open_with(dir.path(), Durability::Relaxed);
        assert_eq!(relaxed.read::<String>(keys[number]).unwrap().unwrap().result, "old");
    }
    let copy = copy(dir.path());
    for key in keys {
        assert_eq!(open(copy.path()).read::<String>(key).unwrap().unwrap().result, "old");
        store.write(key, "newer").unwrap();
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, "newer");
    }
}

/// The other threads append while the checkpoint begins.
#[test]
fn a_checkpoint_includes_every_change_before_it() {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    let is_over = AtomicBool::new(false);
    let (mut done, mut missed) = (0, Vec::new());
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (store, is_over) = (&store, &is_over);
            scope.spawn(move || {
                for round in 0_u64.. {
                    store.write(format!("other-{thread}"), &round).unwrap();
                    if is_over.load(SeqCst) {
                        break;
                    }
                }
            });
        }
        for round in 0..200 {
            let value = format!("value {round};");
            store.write("k", &value).unwrap();
            if store.checkpoint().unwrap() {
                done += 1;
                if contains(&log_of(dir.path()), &value) {
                    missed.push(round);
                }
            }
        }
        is_over.store(true, SeqCst);
    });
    assert!(done > 0 && missed.is_empty(), "{missed:?} of {done}");
}

fn read_durably(stage: &Stage) {
    let (dir, read): (PathBuf, Look) = stage.argument();
    let store = open(&dir);
    perform(stage, "", || read.run(&store));
    stage.send("done");
}

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Look {
    Read,
    IgnoringTheLock,
    Exists,
    Absent,
    Swap,
    Remove,
    Compute,
    Watch,
    WaitForLock,
    /// Of a process, for which the log is told nothing.
    Acquire,
    Break,
    BreakByToken,
}

impl Look {
    const ALL: [Self; 12] = [
        Self::Read,
        Self::IgnoringTheLock,
        Self::Exists,
        Self::Absent,
        Self::Swap,
        Self::Remove,
        Self::Compute,
        Self::Watch,
        Self::WaitForLock,
        Self::Acquire,
        Self::Break,
        Self::BreakByToken,
    ];

    fn run(self, store: &FileSystemRecordStore) {
        match self {
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
    let (mut traced, _) = Traced::attach(Child::start("read durably", &(dir, look)))?;
    let mut syncs = 0;
    while let Some(call) = traced.next_call() {
        syncs += u32::from(call.number == libc::SYS_fdatasync);
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
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let (mut left, mut is_synced) = (stop, false);
        let is_killed = loop {
            let Some(call) = traced.next_call() else { break false };
            if left == 0 {
                break true;
            }
            left -= 1;
            is_synced |= syncs.contains(&call.number);
            traced.execute();
        };
        if is_killed {
            traced.kill();
        } else {
            let mut child = traced.release();
            child.expect("done");
            child.finish();
        }
        let by_reader = syncs_of(dir.path(), Look::Read).unwrap();
        assert!(is_synced || by_reader > 0, "killed at call {stop}");
        if !is_killed {
            assert!(stop > 10, "only {stop} calls");
            return;
        }
    }
}

/// A copy of a store after a relaxed change of `k`, whose frame never reached the disk: the staged name tells of it. The
/// record has two sectors.
fn copy_without_frames() -> TempDir {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    store.write("k", &"old ".repeat(150)).unwrap();
    assert!(store.checkpoint().unwrap());
    store.write("k", &"new ".repeat(150)).unwrap();
    let lost = copy(dir.path());
    assert_eq!(names_in(&lost.path().join(".store/staged")).len(), 1);
    for name in ["00", "01"] {
        fs::remove_file(lost.path().join(".store/log").join(name)).unwrap();
    }
    lost
}

#[test]
fn a_whole_file_of_another_program_stays_although_a_staged_file_has_its_name() {
    let lost = copy_without_frames();
    let path = lost.path().join("k.json");
    let foreign = "{\"name\":\"a file of another program\"}";
    fs::write(&path, foreign).unwrap();
    let store = open(lost.path());
    assert_eq!(fs::read_to_string(path).unwrap(), foreign);
    assert_eq!(store.damaged().unwrap().len(), 0);
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
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let mut left = kept;
        let is_killed = loop {
            let Some(call) = traced.next_call() else { break false };
            if changes.contains(&call.number) {
                if left == 0 {
                    break true;
                }
                left -= 1;
            }
            traced.execute();
        };
        if is_killed {
            traced.kill();
        } else {
            let mut child = traced.release();
            child.expect("done");
            child.finish();
        }
        let read = open(dir.path()).read::<String>("k").unwrap();
        assert_eq!(read.map(|record| record.result), Some("old ".repeat(150)), "killed before change {kept}");
        if !is_killed {
            assert!(kept > 2, "only {kept} changes");
            return;
        }
    }
}
