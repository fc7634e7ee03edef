//! The commit log: what is synced before somebody acts on it, what a killed or a stopped writer leaves, and how a store
//! is recovered.
//!
//! A copy of a store is a store after a power loss, as far as the log is concerned: the shared memory of the log is not
//! of this directory, so the first open recovers it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, SystemTime};

use record_store::{
    BreakOptions, Durability, ErrorKind, FileSystemOptions, LockInfo, LockOptions, LockToken, OpenMode,
    ReadOptions, RecordStoreExt, WriteOptions,
};
use tempfile::TempDir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{as_named, in_memory, named, names_in, open, open_with};
use crate::tree;

#[cfg(target_arch = "x86_64")]
pub(crate) mod calls;
#[cfg(target_arch = "x86_64")]
pub(crate) mod failed_syncs;
#[cfg(target_arch = "x86_64")]
pub(crate) mod handwritten;

pub(crate) const ROLES: &[Role] = &[("write until told", write_until_told)];

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

/// A directory is in the place of each record and lock that the log tells.
#[test]
fn a_recovery_leaves_directories_alone() {
    let dir = in_memory();
    let store = open(dir.path());
    store.write("record", "text").unwrap();
    store.write("large", &"x".repeat(100_000)).unwrap();
    store.write("removed", "text").unwrap();
    assert!(store.remove("removed").unwrap());
    for key in ["locked", "unlocked"] {
        store.acquire_lock(key, as_named("job")).unwrap();
    }
    store.release_lock("unlocked", named("job")).unwrap();
    let lost = copy(dir.path());
    let places = ["record.json", "large.json", "removed.json", "locked.lock", "unlocked.lock"]
        .map(|it| lost.path().join(it));
    for place in &places {
        let _ = fs::remove_file(place);
        fs::create_dir(place).unwrap();
    }
    let store = open(lost.path());
    assert!(places.iter().all(|place| place.is_dir()));
    for key in ["record", "large", "removed"] {
        assert_eq!(store.read::<String>(key).unwrap_err().kind(), ErrorKind::NotARegularFile, "{key}");
    }
    assert_eq!(store.damaged().unwrap().len(), 0);
}

/// The log tells the whole lock with each change. The power loss has left the lock file that was there before, or none.
#[test]
fn a_recovery_knows_who_still_shares_a_lock() {
    let dir = in_memory();
    let store = open(dir.path());
    let place = dir.path().join("k.lock");
    let assert_recovers = |before: Option<Vec<u8>>, expected: &[LockToken]| {
        for left in [None, before] {
            let lost = copy(dir.path());
            let _ = fs::remove_file(lost.path().join("k.lock"));
            if let Some(left) = left {
                fs::write(lost.path().join("k.lock"), left).unwrap();
            }
            let info = open(lost.path()).lock_info("k").unwrap();
            let tokens = info.iter().flat_map(LockInfo::holders).map(LockInfo::token);
            assert_eq!(tokens.collect::<BTreeSet<_>>(), expected.iter().copied().collect());
        }
    };
    let mut held = Vec::new();
    for name in ["first", "second", "third"] {
        let before = fs::read(&place).ok();
        held.push(store.acquire_lock("k", as_named(name).shared()).unwrap());
        assert_recovers(before, &held);
    }
    let before = || Some(fs::read(&place).unwrap());
    let shared_by_all = before();
    store.release_lock("k", held.pop().unwrap()).unwrap();
    assert_recovers(shared_by_all, &held);
    let shared_by_two = before();
    assert!(store.break_lock_with("k", BreakOptions::new().token(held.remove(0))).unwrap());
    assert_recovers(shared_by_two, &held);
    let last = before();
    store.release_lock("k", held.remove(0)).unwrap();
    assert_recovers(last, &[]);
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

/// A copy of a store after a relaxed change of `k`, whose frame never reached the disk: the staged name tells of it. The
/// record has two sectors.
fn copy_without_frames() -> TempDir {
    copy_without_frames_of(Some(&"old ".repeat(150)), &"new ".repeat(150))
}

fn copy_without_frames_of(old: Option<&str>, new: &str) -> TempDir {
    let dir = in_memory();
    let store = open_with(dir.path(), Durability::Relaxed);
    if let Some(old) = old {
        store.write("k", old).unwrap();
    }
    assert!(store.checkpoint().unwrap());
    store.write("k", new).unwrap();
    let lost = copy(dir.path());
    assert_eq!(names_in(&lost.path().join(".store/staged")).len(), 1);
    for name in ["00", "01"] {
        fs::remove_file(lost.path().join(".store/log").join(name)).unwrap();
    }
    lost
}

/// Its staged name says whose it is, although a long record is not staged under that name.
#[test]
fn a_torn_record_without_a_frame_is_taken_back_however_long_it_is() {
    for length in [100, 1_000, 5_000] {
        for old in [None, Some("old ".repeat(length))] {
            let lost = copy_without_frames_of(old.as_deref(), &"new ".repeat(length));
            let path = lost.path().join("k.json");
            let mut torn = fs::read(&path).unwrap();
            let last_sector = (torn.len() - 1) / 512 * 512;
            torn[last_sector..].fill(0);
            fs::write(&path, torn).unwrap();
            let store = open(lost.path());
            let read = store.read::<String>("k").unwrap().map(|record| record.result);
            assert_eq!(read, old, "{length}");
            assert_eq!(store.damaged().unwrap().len(), 0, "{length}");
        }
    }
}

/// A part of a long record could look torn.
#[test]
fn a_recovery_by_a_process_with_a_small_limit_leaves_longer_records_alone() {
    for limit in [511, 8_191, 8_192] {
        let lost = copy_without_frames_of(Some(&"x".repeat(20_000)), &"y".repeat(20_001));
        drop(FileSystemOptions::new().max_record_bytes(limit).open(lost.path()).unwrap());
        let store = open(lost.path());
        let read = store.read::<String>("k").unwrap().unwrap().result;
        assert_eq!(read.len(), 20_001, "limit {limit}");
        assert!(read.starts_with('y'), "limit {limit}");
    }
}

/// The text of a removed or replaced record is gone, however long it was: nobody deletes a file that is kept as damaged.
#[test]
fn a_recovery_keeps_no_record_that_it_replaces_or_removes() {
    for length in [100, 60_000, 70_000, 300_000] {
        let dir = in_memory();
        let store = open(dir.path());
        let secret = "secret".repeat(length / 6);
        for key in ["replaced", "removed"] {
            store.write(key, &secret).unwrap();
        }
        let old =
            ["replaced", "removed"].map(|key| fs::read(dir.path().join(format!("{key}.json"))).unwrap());
        store.write("replaced", "new").unwrap();
        assert!(store.remove("removed").unwrap());
        let lost = copy(dir.path());
        for (key, text) in ["replaced", "removed"].iter().zip(old) {
            fs::write(lost.path().join(format!("{key}.json")), text).unwrap();
        }
        let store = open(lost.path());
        assert_eq!(store.read::<String>("replaced").unwrap().unwrap().result, "new", "{length}");
        assert!(!store.exists("removed").unwrap(), "{length}");
        assert_eq!(store.damaged().unwrap().len(), 0, "{length}");
        for file in tree::files(lost.path()) {
            let text = fs::read(lost.path().join(&file)).unwrap();
            assert!(length < 1_000 || !contains(&text, "secretsecret"), "{length}: {file}");
        }
    }
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
