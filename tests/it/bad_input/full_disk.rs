//! A full disk: old values stay intact, nothing is left behind, and all operations work again once there
//! is room.

use std::io::Write as _;

use super::*;

/// A separate small file system. Only root may mount one.
struct SmallDisk {
    at: TempDir,
}

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let at = crate::support::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(at.path()).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self { at });
        }
        eprintln!("SKIPPED: mounting a small file system is not permitted");
        None
    }

    /// Uses up all free room.
    fn fill(&self) {
        let mut file = fs::File::create(self.at.path().join("filler")).unwrap();
        while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn make_room(&self) {
        let filler = self.at.path().join("filler");
        let size = fs::metadata(&filler).unwrap().len();
        fs::remove_file(filler).unwrap();
        // A process that another test has just forked may have the file open until it executes its program.
        let free = || rustix::fs::statvfs(self.at.path()).map(|disk| disk.f_bfree * disk.f_frsize).unwrap();
        abort_if_hung("the room is not free", || {
            while free() < size {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.at.path()).status();
    }
}

#[track_caller]
fn assert_full<T: std::fmt::Debug>(result: Result<T, Error>, below: &Path) {
    match result {
        Err(error) if error.kind() == ErrorKind::Io => {
            assert_eq!(error.io_kind(), Some(std::io::ErrorKind::StorageFull), "{error:?}");
            assert!(error.path().is_some_and(|path| path.starts_with(below)), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

fn leases() -> LockOptions {
    once().holder(job()).hold_timeout(Duration::from_hours(1))
}

#[test]
fn a_full_disk_damages_nothing() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let root = disk.at.path().join("records");
    let store = FileSystemRecordStore::open(&root).unwrap();
    let big = "x".repeat(10_000);
    store.write("k", "old").unwrap();
    store.write("gone", "old").unwrap();
    let token = store.acquire_lock("mine", leases()).unwrap();
    store.acquire_lock("broken", leases()).unwrap();
    disk.fill();
    let before = tree::files(&root);
    abort_if_hung("a full disk", || {
        assert_full(store.write("k", &big), &root.join(".store/staged"));
        assert_full(store.write("new", "small"), &root.join(".store/staged"));
        assert_full(store.renew("mine", token, None), &root.join(".store/staged"));
        assert_full(store.acquire_lock("k", once()), &root);
        assert_full(store.acquire_lock("x".repeat(5_000), once()), &root);
    });
    // The first use of a latch may create its file, which is still empty.
    let created: Vec<_> = tree::files(&root).into_iter().filter(|file| !before.contains(file)).collect();
    assert!(created.iter().all(|file| file.starts_with(".store/latches/")), "{created:?}");
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "old");
    assert_eq!(store.lock_info("k").unwrap(), None);
    let lease = store.lock_info("mine").unwrap().unwrap();
    assert!(lease.remaining().is_some(), "a renewal that failed has changed the lease");

    // Operations that need no room must work.
    assert!(store.remove("gone").unwrap());
    assert!(store.break_lock("broken").unwrap());
    disk.fill();
    store.release_lock("mine", token).unwrap();

    disk.make_room();
    let guard = store.lock("k", once()).unwrap();
    guard.write(&big).unwrap();
    guard.release().unwrap();
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, big);
}

#[test]
fn a_store_cannot_be_created_until_the_disk_has_room() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    disk.fill();
    let root = disk.at.path().join("records");
    for _ in 0..2 {
        assert_full(abort_if_hung("open", || FileSystemRecordStore::open(&root)), &root);
        // Not even the directories that it could create.
        assert!(!root.exists());
    }
    disk.make_room();
    FileSystemRecordStore::open(&root).unwrap().write("k", &1).unwrap();
}

/// A backup may restore the event counters as a sparse file. Advancing a counter in a hole would kill the
/// process if the disk has no room for it.
#[test]
fn event_counters_in_a_sparse_file_do_not_kill_the_process() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let root = disk.at.path().join("records");
    drop(FileSystemRecordStore::open(&root).unwrap());
    let events = root.join(".store/events");
    let size = fs::metadata(&events).unwrap().len();
    fs::remove_file(&events).unwrap();
    fs::File::create(&events).unwrap().set_len(size).unwrap();
    assert_child_passes(child("bad_input::full_disk::child_wakes_on_a_full_disk", disk.at.path(), ""));
}

#[test]
#[ignore = "run in a separate process, which it may kill"]
fn child_wakes_on_a_full_disk() {
    let Some(dir) = child_dir() else { return };
    let store = FileSystemRecordStore::open(dir.join("records")).unwrap();
    let mut filler = fs::File::create(dir.join("filler")).unwrap();
    while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    // This is the first access to the key's counter, and it removes no lock file, which would make room.
    assert!(!store.break_lock("k").unwrap());
}
