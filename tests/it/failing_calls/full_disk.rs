//! A disk that fills up: a small file system in memory, which only the child sees.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use record_store::{Error, FileSystemRecordStore, LockOptions, RecordStoreExt};

use crate::support::children::{Child, Stage};
use crate::support::{as_named, named, names_in};

#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let Some(child) = Child::start_in_mount_namespace("full disk", &dir.path()) else {
        eprintln!("SKIPPED: no file system may be mounted here, neither by us nor in a namespace");
        return;
    };
    child.finish();
}

pub(super) fn fill(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    for options in ["size=1m", "size=8m,nr_inodes=60"] {
        let mounted = Mounted::new(&dir, options);
        until_full(&dir.join("store"));
        drop(mounted);
    }
    // Everything that a new store needs fits, or something does not.
    for pages in 0..24 {
        let mounted = Mounted::new(&dir, &format!("size={}k", 4 * (pages + 1)));
        open_in_little_room(&dir.join("store"), &dir);
        drop(mounted);
    }
}

struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(dir: &'a Path, options: &str) -> Self {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir).status();
        assert!(done.unwrap().success());
        Self(dir)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Owner files stay open as long as this process lives.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// Fills the disk by the store's own records, sees what still works, and that all does once there is
/// room again.
fn until_full(dir: &Path) {
    let store = FileSystemRecordStore::open(dir).unwrap();
    let job = as_named("job").hold_timeout(Duration::from_secs(1_000));
    let token = store.acquire_lock("held", &job).unwrap();
    store.write("kept", "old").unwrap();
    let fillers = thread::scope(|scope| {
        let writers = [0, 1, 2].map(|number| scope.spawn(move || fill_by_records(dir, number)));
        writers.map(|writer| writer.join().unwrap()).concat()
    });
    fill_the_rest(dir);

    assert_eq!(names_in(&dir.join(".store/tmp")), [""; 0], "a staged file is left");
    for key in &fillers {
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, long());
    }
    assert_full(&store.write("kept", &long()).unwrap_err());
    assert_eq!(store.read::<String>("kept").unwrap().unwrap().result, "old");
    assert_eq!(store.keys().unwrap().count(), fillers.len() + 1);
    assert_eq!(store.locks().unwrap().count(), 1);
    for number in 0..20 {
        take_or_not(&store, &format!("lock-{number}"));
    }
    // The lease cannot be renewed, but the lock is what it was.
    if let Err(error) = store.renew("held", named("job"), None) {
        assert_full(&error);
    }
    assert_eq!(store.lock_info("held").unwrap().unwrap().token(), token);

    // To give back takes no room.
    store.release_lock("held", token).unwrap();
    assert!(store.remove(&fillers[0]).unwrap());
    let _ = std::fs::remove_file(dir.join("brim"));
    let guard = store.lock("kept", LockOptions::new()).unwrap();
    guard.write("new").unwrap();
    assert_eq!(guard.read::<String>().unwrap().unwrap().result, "new");
    guard.release().unwrap();
}

/// Writes records, each under its lock, until one is refused. Returns the keys of those that are
/// there.
fn fill_by_records(dir: &Path, writer: usize) -> Vec<String> {
    let store = FileSystemRecordStore::open(dir).unwrap();
    let mut written = Vec::new();
    for number in 0..10_000 {
        let key = format!("filler-{writer}-{number}");
        let done = store.lock(key.clone(), LockOptions::new()).and_then(|guard| {
            let done = guard.write(&long());
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
    panic!("the disk is not small");
}

fn long() -> String {
    "x".repeat(3_000)
}

/// A lock is had, or it is not; what is half made is never seen.
fn take_or_not(store: &FileSystemRecordStore, key: &str) {
    match store.lock(key, LockOptions::new()) {
        Ok(guard) => guard.release().unwrap(),
        Err(error) => assert_full(&error),
    }
    assert_eq!(store.lock_info(key).unwrap(), None);
}

fn open_in_little_room(dir: &Path, mount: &Path) {
    let opened = FileSystemRecordStore::open(dir);
    if let Err(error) = &opened {
        assert_full(error);
    }
    // Who finds what the first one left must be none the worse for it.
    for store in [opened, FileSystemRecordStore::open(dir)].into_iter().flatten() {
        fill_the_rest(mount);
        // Waiting writes to the mapped table: where the disk has no room for a page of it, that kills.
        let waited = store.lock("k", LockOptions::new()).and_then(|guard| {
            let other = as_named("other").acquire_timeout(Duration::from_millis(5));
            assert!(store.acquire_lock("k", &other).unwrap_err().is_timeout());
            guard.release()
        });
        if let Err(error) = waited {
            assert_full(&error);
        }
    }
}

/// Takes what little room is left, down to the last byte. Without an inode there is none to take.
fn fill_the_rest(dir: &Path) {
    if let Ok(mut brim) = File::create(dir.join("brim")) {
        while brim.write(&[b'x'; 512]).is_ok() {}
    }
}

fn assert_full(error: &Error) {
    let Error::Io { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error:?}");
}
