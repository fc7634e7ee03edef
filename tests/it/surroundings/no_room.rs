//! Disks without room or without inodes, and processes that begin to work on them. A removal makes room, so it
//! must not need any.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use record_store::{
    Durability, Error, ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode,
    RecordStoreExt, WriteOptions,
};

use crate::support::children::{Child, Stage};
use crate::support::{as_named, millis, named, names_in};

/// A small file system in memory. It is unmounted lazily, because owner files stay open.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(dir: &'a Path, options: &str) -> Self {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).status();
        assert!(done.unwrap().success());
        Self(dir)
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Uses up all room, and all inodes.
fn exhaust(dir: &Path) {
    std::fs::create_dir_all(dir.join("filler")).unwrap();
    if let Ok(mut padding) = std::fs::File::create(dir.join("filler/padding")) {
        while padding.write(&[b'x'; 512]).is_ok() {}
    }
    for number in 0.. {
        if std::fs::File::create(dir.join(format!("filler/{number}"))).is_err() {
            break;
        }
    }
}

#[test]
fn a_new_process_can_remove_everything_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let Some(child) = Child::start_in_mount_namespace("work without room", &dir.path()) else {
        eprintln!("SKIPPED: file systems cannot be mounted here, not even in a namespace");
        return;
    };
    child.finish();
}

const HASHED: usize = 400;

/// In a mount namespace of its own.
pub(super) fn work_without_room(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    for options in ["size=1m,nr_inodes=2000", "size=8m,nr_inodes=300"] {
        for durability in [Durability::Full, Durability::Relaxed] {
            let mount = Mount::new(&dir, options);
            let root = dir.join("records");
            fill_store(&root, durability);
            if durability == Durability::Relaxed {
                // A copy may lack the table of waiters, and there is no room for a new one.
                std::fs::remove_file(root.join(".store/events")).unwrap();
            }
            exhaust(&dir);
            Child::start("remove without room", &(&root, durability == Durability::Full)).finish();
            drop(mount);
        }
        {
            let _mount = Mount::new(&dir, options);
            fill_store(&dir.join("records"), Durability::Full);
            upgrade_without_room(&dir.join("records"));
        }
        #[cfg(feature = "cli")]
        {
            let _mount = Mount::new(&dir, options);
            fill_store(&dir.join("records"), Durability::Full);
            remove_by_command_line(&dir);
        }
    }
}

/// An upgrade needs room for the log. Without it, the store stays as it is, and can be read.
fn upgrade_without_room(root: &Path) {
    let private = root.join(".store");
    std::fs::remove_dir_all(private.join("log")).unwrap();
    std::fs::rename(private.join("staged"), private.join("tmp")).unwrap();
    std::fs::write(private.join("format.json"), "{\"version\":1}\n").unwrap();
    exhaust(root.parent().unwrap());
    let before = crate::tree::paths(root);
    assert_full(FileSystemRecordStore::open(root));
    assert_eq!(crate::tree::paths(root), before);
    assert_eq!(std::fs::read_to_string(private.join("format.json")).unwrap(), "{\"version\":1}\n");
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(root).unwrap();
    assert_eq!(reader.read::<String>("record").unwrap().unwrap().result, "record");
    std::fs::remove_dir_all(root.parent().unwrap().join("filler")).unwrap();
    let store = FileSystemRecordStore::open(root).unwrap();
    store.write("record", "new").unwrap();
    assert_eq!(reader.read::<String>("record").unwrap().unwrap().result, "new");
}

/// Records and locks in every state.
fn fill_store(root: &Path, durability: Durability) {
    let store = FileSystemOptions::new().durability(durability).open(root).unwrap();
    let lease = |seconds| as_named("job").hold_timeout(std::time::Duration::from_secs(seconds));
    for key in ["record", "other", "late", "held", "broken", &"h".repeat(HASHED)] {
        store.write(key, key).unwrap();
    }
    store.write_with("expired", &1, WriteOptions::new().time_to_live(millis(1))).unwrap();
    store.acquire_lock("held", lease(1_000)).unwrap();
    store.acquire_lock("broken", lease(1_000)).unwrap();
    store.acquire_lock("late", lease(0)).unwrap();
    if durability == Durability::Relaxed {
        // The next open sweeps them, which makes room for it.
        std::fs::write(root.join(".store/owners/1-deaddeaddeaddead"), "").unwrap();
        std::fs::write(root.join(".store/staged/1-deaddeaddeaddead.0"), "").unwrap();
    }
}

#[cfg(feature = "cli")]
fn remove_by_command_line(dir: &Path) {
    for (arguments, printed) in [
        (&["get", "records", "record"][..], "\"record\"\n"),
        (&["rm", "records", "record"], ""),
        (&["unlock", "records", "broken", "--force"], "KEY"),
        (&["gc", "records"], "1 record and 1 lock removed\n"),
        (&["verify", "records"], ""),
        (&["ls", "records"], "broken"),
    ] {
        exhaust(dir);
        let mut command = Command::new(env!("CARGO_BIN_EXE_record-store"));
        let output = command.args(arguments).current_dir(dir).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains(printed), "{arguments:?}: {output:?}");
    }
    // A write is refused, and that is all.
    let script = format!("echo 1 | {} put records k", env!("CARGO_BIN_EXE_record-store"));
    let output = Command::new("sh").args(["-c", &script]).current_dir(dir).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(74), "{output:?}");
    assert!(message.contains("No space left") && message.contains("free some space"), "{message}");
}

fn assert_full<T: std::fmt::Debug>(result: Result<T, Error>) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull), "{error:?}");
}

/// A process that has never used the store before.
pub(super) fn remove_without_room(stage: &Stage) {
    let (root, full): (PathBuf, bool) = stage.argument();
    let durability = if full { Durability::Full } else { Durability::Relaxed };
    let store = FileSystemOptions::new().durability(durability).open(&root).unwrap();
    // The open may have swept the private files of a dead process, which made room.
    exhaust(root.parent().unwrap());
    assert_eq!(store.read::<String>("record").unwrap().unwrap().result, "record");
    assert!(store.read::<String>("absent").unwrap().is_none());
    assert!(store.exists("record").unwrap() && !store.exists("expired").unwrap());
    assert_eq!(store.keys().unwrap().map(Result::unwrap).count(), 6);
    assert_full(store.write("record", &"x".repeat(10_000)));
    assert_full(store.acquire_lock("record", LockOptions::new()));

    let take_the_room = || exhaust(root.parent().unwrap());
    take_the_room();
    assert!(store.remove("record").unwrap());
    take_the_room();
    assert!(store.break_lock("broken").unwrap());
    take_the_room();
    store.release_lock("held", named("job")).unwrap();
    take_the_room();
    assert!(store.remove("h".repeat(HASHED)).unwrap());
    take_the_room();
    let swept = store.sweep().unwrap();
    assert_eq!((swept.locks, swept.records), (1, 1), "{swept:?}");

    // With room, everything works again.
    std::fs::remove_dir_all(root.parent().unwrap().join("filler")).unwrap();
    let guard = store.lock("record", LockOptions::new()).unwrap();
    guard.write("new").unwrap();
    guard.release().unwrap();
    // The store is durable, and this process has an owner file, now that there is room.
    let own = format!("{}-", std::process::id());
    assert!(names_in(&root.join(".store/owners")).iter().any(|name| name.starts_with(&own)));
    assert_eq!(store.verify().map(Result::unwrap).count(), 0);
    let again = FileSystemRecordStore::open(&root).unwrap();
    assert_eq!(again.read::<String>("record").unwrap().unwrap().result, "new");
}
