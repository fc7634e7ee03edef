//! The leftovers of killed and ended processes, and when they disappear.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use record_store::{Key, LockOptions, RecordStoreExt, Swept, WriteOptions};
use tempfile::tempdir;

use crate::support::children::{Child, Stage};
use crate::support::{as_named, in_memory, names_in, open, open_with, storm};

/// The file name of a key of this length is a hash.
fn long_key(number: usize) -> String {
    format!("{number}/").repeat(200)
}

#[test]
fn blank_locks_are_swept_whatever_their_names() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let zeros = [0; 512];
    // The key of such a lock is known if there is a record.
    store.write(long_key(1), &1).unwrap();
    for number in 0..4 {
        let name = format!("{}.lock", Key::new(long_key(number)).unwrap().file_stem());
        assert!(name.contains("%~"));
        fs::write(dir.path().join(name), if number % 2 == 0 { &zeros[..] } else { &[] }).unwrap();
    }
    fs::write(dir.path().join("short.lock"), "").unwrap();
    store.acquire_lock(long_key(5), as_named("job")).unwrap();
    assert_eq!(store.sweep().unwrap().locks, 5);
    let locks = || names_in(dir.path()).iter().filter(|name| name.contains(".lock")).count();
    assert_eq!(locks(), 1);
    assert!(store.is_locked(long_key(5)).unwrap());
    for number in 0..4 {
        store.lock(long_key(number), LockOptions::new()).unwrap().release().unwrap();
    }
    assert_eq!(locks(), 1);
}

/// A different number of each kind, so that none is mistaken for another.
#[test]
fn a_sweep_returns_how_many_files_of_each_kind_it_removed() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let (private, dead) = (dir.path().join(".store"), |number: usize| format!("1-deaddeaddeaddea{number}"));
    let expires_at_once = WriteOptions::new().time_to_live(Duration::from_nanos(1));
    for number in 0..5 {
        store.write_with(format!("expired-{number}"), &1, expires_at_once.clone()).unwrap();
    }
    store.write_with(long_key(9), &1, expires_at_once).unwrap();
    store.write("record", &1).unwrap();
    for number in 0..4 {
        fs::write(private.join("owners").join(dead(number)), "").unwrap();
    }
    for number in 0..3 {
        fs::write(private.join(format!("staged/{}.{number}", dead(0))), "half").unwrap();
    }
    // Files that a dead process displaced: the record of its name, and two files of other programs.
    let displaced =
        |number: usize, name: &str| private.join(format!("staged/{}.9{number}.{name}.json", dead(1)));
    fs::copy(dir.path().join("record.json"), displaced(0, "record")).unwrap();
    for number in 1..3 {
        fs::write(displaced(number, "notes"), "foreign").unwrap();
    }
    for number in 0..2 {
        let expired = as_named("gone").hold_timeout(Duration::from_nanos(1));
        store.acquire_lock(format!("stale-{number}"), expired.clone()).unwrap();
        store.acquire_lock(long_key(number), expired).unwrap();
        fs::write(dir.path().join(format!("blank-{number}.lock")), "").unwrap();
        let hashed = format!("{}.lock", Key::new(long_key(number + 2)).unwrap().file_stem());
        fs::write(dir.path().join(hashed), [0; 100]).unwrap();
    }
    let _held = store.lock("held", LockOptions::new()).unwrap();

    let Swept { owners, staged, damaged, locks, records, .. } = store.sweep().unwrap();
    assert_eq!((owners, staged, damaged, locks, records), (4, 4, 2, 8, 6));
    assert_eq!(store.sweep().unwrap(), Swept::default());
    assert_eq!(store.damaged().unwrap().len(), 2);
    assert!(store.is_locked("held").unwrap() && store.exists("record").unwrap());
}

/// A release leaves a blank lock file for a waiter, which writes its lock into it. A sweep must not remove that.
#[test]
fn a_concurrent_sweep_does_not_remove_a_lock_with_a_hashed_name() {
    let dir = in_memory();
    let store = open_with(dir.path(), record_store::Durability::Relaxed);
    let done = AtomicBool::new(false);
    let (rounds, threads) = (storm(300), 4);
    std::thread::scope(|scope| {
        let sweeper = scope.spawn(|| {
            let mut sweeps = 0_u32;
            while !done.load(Ordering::Relaxed) {
                store.sweep().unwrap();
                sweeps += 1;
            }
            sweeps
        });
        let saboteur = scope.spawn(|| {
            // As a power loss leaves it, for keys that nobody uses.
            while !done.load(Ordering::Relaxed) {
                let name = format!("{}.lock", Key::new(long_key(99)).unwrap().file_stem());
                fs::write(dir.path().join(name), [0; 512]).unwrap();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..rounds {
                        let guard = store.lock(long_key(7), LockOptions::new()).unwrap();
                        let count = guard.read::<u64>().unwrap().map_or(0, |record| record.result);
                        guard.write(&(count + 1)).unwrap();
                        guard.release().unwrap();
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok), "a worker failed");
        saboteur.join().unwrap();
        assert!(sweeper.join().unwrap() > 1);
    });
    assert_eq!(store.read::<u64>(long_key(7)).unwrap().unwrap().result, rounds * threads);
}

#[cfg(target_arch = "x86_64")]
pub(super) fn acquire_under_a_long_key(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let token =
        crate::support::trace::perform(stage, "", || store.acquire_lock(long_key(0), as_named("job")));
    stage.send(&token.unwrap().to_string());
}

/// A lock file is blank until its creator has written it. A sweep that finds it so waits for the latch.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_lock_that_is_just_being_acquired_is_not_swept() {
    use crate::support::trace::{At, Traced};
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let lock = dir.path().join(format!("{}.lock", Key::new(long_key(0)).unwrap().file_stem()));
    let child = Child::start("acquire under a long key", &dir.path());
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    let mut was_blank = false;
    while traced.step() != At::End {
        if fs::metadata(&lock).is_ok_and(|about| about.len() == 0) {
            was_blank = true;
            assert_eq!(store.sweep().unwrap().locks, 0);
        }
    }
    assert!(was_blank);
    let mut child = traced.release();
    let token = child.receive();
    child.finish();
    assert_eq!(store.lock_info(long_key(0)).unwrap().unwrap().token().to_string(), token);
}

/// Forks one child after another. Each writes once, through the store that its parent has opened, and ends.
#[expect(unsafe_code, reason = "fork")]
pub(super) fn write_in_forks(stage: &Stage) {
    let (dir, children): (PathBuf, u32) = stage.argument();
    let store = open(&dir);
    store.write("parent", &1).unwrap();
    for number in 0..children {
        // SAFETY: the child only uses the store, which must work in a forked child of a process with threads.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let done = store.write(format!("child-{}", number % 10), &number);
                crate::forks::exit(i32::from(done.is_err()));
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }
    // The parent's own file is not one of a dead process.
    let guard = store.lock("k", LockOptions::new()).unwrap();
    let own = format!("{}-", std::process::id());
    let owners = names_in(&dir.join(".store/owners"));
    assert!(owners.iter().any(|name| name.starts_with(&own)), "{owners:?}");
    guard.release().unwrap();
    stage.send(&owners.len().to_string());
}

#[test]
fn the_owner_files_of_ended_children_do_not_pile_up() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("write in forks", &(dir.path(), 60));
    let left: usize = parent.receive().parse().unwrap();
    parent.finish();
    assert!(left <= 10, "{left} owner files");
}

/// A power loss leaves blocks of other files in the staged file of a dead process. The version in its name proves that it is
/// the file that was staged, and not one that it has displaced.
#[test]
fn a_staged_record_with_blocks_of_other_files_is_removed_and_a_displaced_one_is_kept() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", &"x".repeat(1_400)).unwrap();
    let record = store.read::<String>("k").unwrap().unwrap();
    let version = record.version.number().unwrap();
    let mut stale = fs::read(dir.path().join("k.json")).unwrap();
    stale[512..1_024].fill(b'?');
    let place = |number: u32, version: u64| {
        dir.path().join(format!(".store/staged/1-deaddeaddeaddead.{number}{version:014x}.k.json"))
    };
    fs::write(place(1, version), &stale).unwrap();
    let swept = store.sweep().unwrap();
    assert_eq!((swept.staged, swept.damaged), (1, 0), "{swept:?}");
    // A later version was staged under these names, so the file may be one that somebody has edited.
    fs::write(place(2, version + 1), &stale).unwrap();
    fs::write(place(3, version), &stale[512..]).unwrap();
    let swept = store.sweep().unwrap();
    assert_eq!((swept.staged, swept.damaged), (0, 2), "{swept:?}");
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, record.result);
}

/// A power loss tears the staged file of a dead process. Under the same name, there may be a file of another program that
/// the process displaced.
#[test]
fn a_torn_staged_record_is_removed_and_a_torn_file_of_another_program_is_kept() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", &"x".repeat(1_400)).unwrap();
    let whole = fs::read(dir.path().join("k.json")).unwrap();
    let torn = |from: usize, to: usize| {
        let mut torn = whole.clone();
        torn[from..to].fill(0);
        torn
    };
    let place = |number: usize, original: &str| {
        dir.path().join(format!(".store/staged/1-deaddeaddeaddead.{number}11c37937e08000.{original}.json"))
    };
    let ours = [torn(512, 1_024), torn(1_024, whole.len()), whole[..512].to_vec(), vec![0; 700], Vec::new()];
    for (number, text) in ours.iter().enumerate() {
        fs::write(place(number, "k"), text).unwrap();
    }
    let swept = store.sweep().unwrap();
    assert_eq!((swept.staged, swept.damaged), (ours.len() as u64, 0), "{swept:?}");
    assert!(store.damaged().unwrap().is_empty());

    let others = [torn(0, 512), whole[..700].to_vec(), [b"\x7fELF\x01", &[0; 1_019][..]].concat()];
    for (number, text) in others.iter().enumerate() {
        fs::write(place(number, "k"), text).unwrap();
    }
    // Of another key.
    fs::write(place(9, "other"), &ours[0]).unwrap();
    let swept = store.sweep().unwrap();
    assert_eq!((swept.staged, swept.damaged), (0, others.len() as u64 + 1), "{swept:?}");
    let kept: Vec<_> = store.damaged().unwrap().iter().map(|file| fs::read(&file.path).unwrap()).collect();
    for text in others.iter().chain([&ours[0]]) {
        assert!(kept.contains(text));
    }
}
