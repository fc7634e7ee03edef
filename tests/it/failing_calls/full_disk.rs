//! A disk that fills up: a small file system in memory, visible to the child only.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use record_store::{Error, ErrorKind, FileSystemRecordStore, LockOptions, RecordStoreExt};

use crate::support::children::{Child, Stage};
use crate::support::{as_named, named, names_in};

#[test]
fn a_full_disk_is_reported_and_does_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let Some(child) = Child::start_in_mount_namespace("full disk", &dir.path()) else {
        eprintln!("SKIPPED: file systems cannot be mounted here, not even in a namespace");
        return;
    };
    child.finish();
}

pub(super) fn fill(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    for options in ["size=1m", "size=8m,nr_inodes=60"] {
        let mount = Mount::new(&dir, options);
        check_full_disk(&dir.join("store"));
        drop(mount);
    }
    // At some of these sizes everything that a new store needs fits; at others something does not.
    for pages in 0..24 {
        let mount = Mount::new(&dir, &format!("size={}k", 4 * (pages + 1)));
        check_small_disk(&dir.join("store"), &dir);
        drop(mount);
    }
}

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
        // Lazily, because owner files stay open for the life of this process.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Fills the disk with records, checks the operations that must still work, and checks that all
/// operations work once there is room again.
fn check_full_disk(dir: &Path) {
    let store = FileSystemRecordStore::open(dir).unwrap();
    let job = as_named("job").hold_timeout(Duration::from_secs(1_000));
    let token = store.acquire_lock("held", job).unwrap();
    store.write("kept", "old").unwrap();
    let fillers = thread::scope(|scope| {
        let writers = [0, 1, 2].map(|number| scope.spawn(move || fill_with_records(dir, number)));
        writers.map(|writer| writer.join().unwrap()).concat()
    });
    fill_the_rest(dir);

    assert_eq!(names_in(&dir.join(".store/staged")), [""; 0], "a staged file is left behind");
    for key in &fillers {
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, long_value());
    }
    assert_full(&store.write("kept", &long_value()).unwrap_err());
    assert_eq!(store.read::<String>("kept").unwrap().unwrap().result, "old");
    assert_eq!(store.keys().unwrap().count(), fillers.len() + 1);
    assert_eq!(store.locks().unwrap().count(), 1);
    for number in 0..20 {
        acquire_if_room(&store, &format!("lock-{number}"));
    }
    // The renewal may fail, but the lock must be unchanged.
    if let Err(error) = store.renew("held", named("job"), None) {
        assert_full(&error);
    }
    assert_eq!(store.lock_info("held").unwrap().unwrap().token(), token);

    // A release needs no room.
    store.release_lock("held", token).unwrap();
    assert!(store.remove(&fillers[0]).unwrap());
    let _ = std::fs::remove_file(dir.join("padding"));
    let guard = store.lock("kept", LockOptions::new()).unwrap();
    guard.write("new").unwrap();
    assert_eq!(guard.read::<String>().unwrap().unwrap().result, "new");
    guard.release().unwrap();
}

/// Writes records, each under its lock, until a write is refused. Returns the keys of the written
/// records.
fn fill_with_records(dir: &Path, writer: usize) -> Vec<String> {
    let store = FileSystemRecordStore::open(dir).unwrap();
    let mut written = Vec::new();
    for number in 0..10_000 {
        let key = format!("filler-{writer}-{number}");
        let done = store.lock(key.clone(), LockOptions::new()).and_then(|guard| {
            let done = guard.write(&long_value());
            guard.release()?;
            done
        });
        if let Err(error) = done {
            assert_full(&error);
            assert!(!store.exists(key).unwrap());
            return written;
        }
        written.push(key);
    }
    panic!("the disk does not fill up");
}

fn long_value() -> String {
    "x".repeat(3_000)
}

/// Acquires and releases a lock, or gets a clear error. A partial lock is never visible.
fn acquire_if_room(store: &FileSystemRecordStore, key: &str) {
    match store.lock(key, LockOptions::new()) {
        Ok(guard) => guard.release().unwrap(),
        Err(error) => assert_full(&error),
    }
    assert_eq!(store.lock_info(key).unwrap(), None);
}

/// Opens a store on a disk that may be too small for it, and waits for a lock there.
fn check_small_disk(dir: &Path, mount: &Path) {
    let opened = FileSystemRecordStore::open(dir);
    if let Err(error) = &opened {
        assert_full(error);
        assert!(!dir.exists(), "a half-made store is left");
    }
    // The second open must cope with the leftovers of the first.
    for store in [opened, FileSystemRecordStore::open(dir)].into_iter().flatten() {
        fill_the_rest(mount);
        // Waiting writes to the mapped table. If the disk had no room for one of its pages, that would
        // kill the process.
        let waited = store.lock("k", LockOptions::new()).and_then(|guard| {
            let other = as_named("other").acquire_timeout(Duration::from_millis(5));
            assert!(store.acquire_lock("k", other).unwrap_err().is_timeout());
            guard.release()
        });
        if let Err(error) = waited {
            assert_full(&error);
        }
    }
}

/// Uses up the remaining room, to the last byte. Does nothing if no inode is left.
fn fill_the_rest(dir: &Path) {
    if let Ok(mut padding) = File::create(dir.join("padding")) {
        while padding.write(&[b'x'; 512]).is_ok() {}
    }
}

fn assert_full(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull), "{error:?}");
}
