//! The files of the commit log in places where they are not as a process has left them: of another program, removed,
//! with a second name, without a known boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use record_store::{
    Durability, ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, RecordStoreExt,
};

use crate::support::children::{Child, Role, Stage};
use crate::support::{in_memory, names_in, open, open_with};
use crate::tree;

pub(crate) const ROLES: &[Role] = &[
    ("use a store until told", use_until_told),
    ("use a store without proc", use_without_proc),
    ("read a store without proc", read_without_proc),
    #[cfg(target_arch = "x86_64")]
    ("sweep old files", sweep_old_files),
];

/// Writes a record, and keeps a lock until the parent has seen it.
fn use_until_told(stage: &Stage) {
    let (dir, key): (PathBuf, String) = stage.argument();
    let store = open(&dir);
    store.write(&key, "written").unwrap();
    let guard = store.lock("held", LockOptions::new()).unwrap();
    stage.send("written");
    stage.expect("end");
    guard.release().unwrap();
}

fn result_of(store: &FileSystemRecordStore, key: &str) -> Option<String> {
    store.read::<String>(key).unwrap().map(|record| record.result)
}

fn kept(store: &FileSystemRecordStore) -> Vec<(String, Vec<u8>)> {
    let damaged = store.damaged().unwrap();
    damaged.iter().map(|file| (file.original_name.clone(), fs::read(&file.path).unwrap())).collect()
}

fn segments(dir: &Path) -> Vec<Vec<u8>> {
    ["00", "01"].map(|name| fs::read(dir.join(".store/log").join(name)).unwrap()).to_vec()
}

#[test]
fn a_file_of_another_program_in_the_place_of_one_of_the_log_is_moved_aside() {
    let text = &b"2024-05-17 09:30:00 started\n"[..];
    for name in ["state", "00", "01"] {
        for content in [text.to_owned(), text.repeat(1_000), text.repeat(10_000)] {
            let what = format!("{name}, {} bytes", content.len());
            let dir = in_memory();
            open(dir.path()).write("k", "whole").unwrap();
            let copied = in_memory();
            tree::copy(dir.path(), copied.path());
            let path = copied.path().join(".store/log").join(name);
            fs::write(&path, &content).unwrap();
            let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(copied.path()).unwrap();
            assert_eq!(result_of(&reader, "k").as_deref(), Some("whole"), "{what}");
            assert_eq!(fs::read(&path).unwrap(), content, "{what}, by a reader");
            let store = open(copied.path());
            assert_eq!(kept(&store), [(name.to_owned(), content.clone())], "{what}");
            assert_eq!(result_of(&store, "k").as_deref(), Some("whole"), "{what}");
            store.write("k", "newer").unwrap();
            drop(store);
            let store = open(copied.path());
            assert_eq!(result_of(&store, "k").as_deref(), Some("newer"), "{what}");
            assert_eq!(kept(&store).len(), 1, "{what}");
        }
    }
}

/// Processes that use the log, and others that do not, would not wait for each other's syncs.
#[test]
fn a_store_whose_state_of_the_log_cannot_be_opened_is_not_used_without_a_log() {
    for what in ["a directory", "a symbolic link"] {
        let dir = in_memory();
        open(dir.path()).write("k", "whole").unwrap();
        let state = dir.path().join(".store/log/state");
        fs::remove_file(&state).unwrap();
        if what == "a directory" {
            fs::create_dir(&state).unwrap();
        } else {
            std::os::unix::fs::symlink("../events", &state).unwrap();
        }
        let error = FileSystemOptions::new().open(dir.path()).unwrap_err();
        assert_eq!(
            (error.kind(), error.path()),
            (ErrorKind::NotARegularFile, Some(&*state)),
            "{what}: {error}"
        );
        let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
        assert_eq!(result_of(&reader, "k").as_deref(), Some("whole"), "{what}");
    }
}

#[test]
fn a_foreign_state_of_the_log_makes_no_unfinished_store() {
    let dir = in_memory();
    let log = dir.path().join(".store/log");
    fs::create_dir_all(&log).unwrap();
    fs::write(log.join("state"), "a file of another program").unwrap();
    let before = tree::snapshot(dir.path());
    for mode in [OpenMode::Create, OpenMode::Adopt] {
        let error = FileSystemOptions::new().mode(mode).open(dir.path()).unwrap_err();
        assert_eq!(
            (error.kind(), error.path()),
            (ErrorKind::NotAStore, Some(&*log.join("state"))),
            "{mode:?}"
        );
        tree::assert_unchanged(dir.path(), &before, &format!("{mode:?}"));
    }
}

/// A recovery would take away what the other process is doing.
#[test]
fn a_store_whose_shared_memory_was_removed_is_recovered_when_nobody_uses_it() {
    let dir = in_memory();
    let mut child = Child::start("use a store until told", &(dir.path(), "k"));
    child.expect("written");
    fs::remove_file(dir.path().join(".store/log/state")).unwrap();
    let before = segments(dir.path());
    let error = FileSystemOptions::new().open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptStore, "{error}");
    let owners = dir.path().join(".store/owners");
    let owner = owners.join(names_in(&owners).pop().unwrap());
    assert_eq!(error.path(), Some(&*owner));
    assert!(error.to_string().ends_with("stop that process, then open the store again"), "{error}");
    assert!(segments(dir.path()) == before, "the log of the other process was changed");
    child.send("end");
    child.finish();
    let store = open(dir.path());
    assert_eq!(result_of(&store, "k").as_deref(), Some("written"));
}

/// `cp -al` makes no copy: both directories have the same files. But no store may destroy the log of the other one.
#[test]
fn stores_that_share_files_by_hard_links_do_not_share_a_log() {
    let dir = in_memory();
    let [original, linked] = ["original", "linked"].map(|name| dir.path().join(name));
    let mut child = Child::start("use a store until told", &(&original, "k"));
    child.expect("written");
    let copied = Command::new("cp").args(["-al", "--"]).arg(&original).arg(&linked).status();
    assert!(copied.unwrap().success());
    // The process of the first one seems to use the second one, too.
    let error = FileSystemOptions::new().open(&linked).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptStore, "{error}");
    assert!(error.to_string().contains("hard-linked copy"), "{error}");
    child.send("end");
    child.finish();
    let store = open(&original);
    let other = open(&linked);
    for round in 0..50 {
        store.write("k", &format!("original {round}")).unwrap();
        other.write("k", &format!("linked {round}")).unwrap();
    }
    for (path, expected) in [(&original, "original 49"), (&linked, "linked 49")] {
        // The log tells it, and not only the file.
        let recovered = in_memory();
        tree::copy(path, recovered.path());
        fs::remove_file(recovered.path().join("k.json")).unwrap();
        assert_eq!(result_of(&open(recovered.path()), "k").as_deref(), Some(expected));
        assert_eq!(result_of(&open(path), "k").as_deref(), Some(expected));
    }
}

/// A power loss before the first change. The number of the first store would have to be given again.
#[test]
fn a_copy_by_hard_links_continues_the_numbers_of_the_original() {
    let dir = in_memory();
    let [original, linked] = ["original", "linked"].map(|name| dir.path().join(name));
    let mut child = Child::start("use a store until told", &(&original, "k"));
    child.expect("written");
    child.send("end");
    child.finish();
    let copied = Command::new("cp").args(["-al", "--"]).arg(&original).arg(&linked).status();
    assert!(copied.unwrap().success());
    drop(open(&linked));
    let lost = in_memory();
    tree::copy(&linked, lost.path());
    fs::remove_file(lost.path().join(".store/events")).unwrap();
    let ahead = SystemTime::now() + Duration::from_hours(23);
    let ahead = ahead.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros();
    let token = open(lost.path()).acquire_lock("l", LockOptions::new()).unwrap();
    assert!(u128::from(token.get()) > ahead, "{token} may have been given before");
}

fn hide_proc() {
    assert!(Command::new("mount").args(["-t", "tmpfs", "none", "/proc"]).status().unwrap().success());
    assert!(!Path::new("/proc/sys").exists());
}

fn use_without_proc(stage: &Stage) {
    hide_proc();
    use_until_told(stage);
}

fn read_without_proc(stage: &Stage) {
    hide_proc();
    let dir: PathBuf = stage.argument();
    let store = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir).unwrap();
    assert_eq!(result_of(&store, "removed"), None);
    assert_eq!(result_of(&store, "k").as_deref(), Some("written"));
}

/// As in a `chroot`: nothing says whether the machine was restarted.
#[test]
fn processes_that_do_not_know_the_boot_share_a_store() {
    let dir = in_memory();
    for round in 0..2 {
        let start = |key: &str| {
            let argument = (dir.path(), format!("{key} {round}"));
            Child::start_in_mount_namespace("use a store without proc", &argument)
        };
        let Some(mut first) = start("first") else { return };
        first.expect("written");
        let mut second = start("second").unwrap();
        let store = open(dir.path());
        store.write(format!("third {round}"), "written").unwrap();
        // The second one waits for the lock of the first one.
        first.send("end");
        first.finish();
        second.expect("written");
        second.send("end");
        second.finish();
        store.write(format!("last {round}"), "written").unwrap();
    }
    let store = open(dir.path());
    for round in 0..2 {
        for key in ["first", "second", "third", "last"] {
            assert_eq!(
                result_of(&store, &format!("{key} {round}")).as_deref(),
                Some("written"),
                "{key} {round}"
            );
        }
    }
}

/// Its owner file proves that the machine was not restarted.
#[test]
fn a_process_that_does_not_know_the_boot_joins_one_that_does() {
    let dir = in_memory();
    let store = open(dir.path());
    store.write("k", "written").unwrap();
    let Some(mut child) = Child::start_in_mount_namespace("use a store without proc", &(dir.path(), "by it"))
    else {
        return;
    };
    child.expect("written");
    store.write("k", "newer").unwrap();
    assert!(store.is_locked("held").unwrap());
    child.send("end");
    child.finish();
    assert_eq!(result_of(&store, "k").as_deref(), Some("newer"));
    assert_eq!(result_of(&store, "by it").as_deref(), Some("written"));
}

/// A recovery would bring the record back, but none is needed.
#[test]
fn a_reader_that_does_not_know_the_boot_sees_what_was_changed_by_hand_since_then() {
    let dir = in_memory();
    let store = open(dir.path());
    for key in ["k", "removed"] {
        store.write(key, "written").unwrap();
    }
    fs::remove_file(dir.path().join("removed.json")).unwrap();
    let Some(child) = Child::start_in_mount_namespace("read a store without proc", &dir.path()) else {
        return;
    };
    child.finish();
}

/// The names under which a relaxed process keeps the old files until the log is synced.
#[test]
fn a_relaxed_process_keeps_a_bounded_number_of_old_files() {
    let dir = in_memory();
    let staged = || names_in(&dir.path().join(".store/staged")).len();
    let store = open_with(dir.path(), Durability::Relaxed);
    let mut most = 0;
    for round in 0..300 {
        store.write(format!("k-{}", round % 7), &round).unwrap();
        most = most.max(staged());
    }
    assert!((2..=64).contains(&most), "{most} names");
    store.write("k-0", &0).unwrap();
    store.write("k-0", &1).unwrap();
    assert!(staged() > 0);
    store.sweep().unwrap();
    assert_eq!(staged(), 0, "after a sweep");
    store.write("k-0", &2).unwrap();
    store.write("k-0", &3).unwrap();
    drop(store);
    assert_eq!(staged(), 0, "after the store was closed");
}

/// The sync of a durable process includes the frames of a relaxed one.
#[test]
fn a_relaxed_process_removes_its_old_files_when_another_one_has_synced_the_log() {
    let dir = in_memory();
    let staged = || names_in(&dir.path().join(".store/staged")).len();
    let (relaxed, durable) =
        (open_with(dir.path(), Durability::Relaxed), open_with(dir.path(), Durability::Full));
    for round in 0..6 {
        relaxed.write("k", &round).unwrap();
    }
    assert!(staged() >= 5, "{} names", staged());
    durable.write("k", &6).unwrap();
    relaxed.write("k", &7).unwrap();
    assert_eq!(staged(), 1, "only that of the last write");
}

#[cfg(target_arch = "x86_64")]
fn sweep_old_files(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    for round in 0..3 {
        store.write("k", &round).unwrap();
    }
    crate::support::trace::perform(stage, "", || store.sweep()).unwrap();
    stage.send("swept");
    stage.expect("end");
}

/// That segment is not trusted any more. A sweep syncs the records themselves, and needs the old files no longer.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_sweep_removes_the_old_files_although_the_log_could_not_be_synced() {
    use crate::support::trace::Traced;
    use nix::{errno::Errno, libc};
    let dir = in_memory();
    let store = open(dir.path());
    let staged = || names_in(&dir.path().join(".store/staged")).len();
    let child = Child::start("sweep old files", &dir.path());
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    assert!(staged() > 1);
    let mut has_failed = false;
    while let Some(call) = traced.next_call() {
        if call.number == libc::SYS_fdatasync && !has_failed {
            has_failed = true;
            traced.fail(Errno::EIO);
        } else {
            traced.execute();
        }
    }
    let mut child = traced.release();
    child.expect("swept");
    assert!(has_failed);
    assert_eq!(staged(), 0);
    child.send("end");
    child.finish();
    assert_eq!(store.read::<u8>("k").unwrap().unwrap().result, 2);
}
