//! A process with a limit on its open files, or on the size of its files.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use record_store::{
    ErrorKind, FileSystemRecordStore, LockGuard, LockOptions, ReadOptions, RecordStoreExt, Result,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::children::{Child, Stage};
use crate::support::{as_named, names_in, open};

#[test]
fn a_limit_on_open_files_is_reported_and_does_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    Child::start("few descriptors", &dir.path()).finish();
}

#[test]
fn a_limit_on_file_sizes_is_reported_and_does_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    Child::start("short files", &dir.path()).finish();
}

/// More files than any operation has open at the same time.
const MAX_OPEN_FILES: usize = 12;

pub(super) fn few_descriptors(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    store.write("k", "old").unwrap();
    // This opens the files that a process opens once and keeps open.
    loop {
        let unlimited = every_operation(&store, &dir);
        assert!(unlimited.iter().all(Result::is_ok), "{unlimited:?}");
        if watches_for_deaths() {
            break;
        }
        // The call was so late that its deadline passed before it could wait.
        store.write("k", "old").unwrap();
    }
    let mut ever_failed = false;
    for spare in 0..MAX_OPEN_FILES {
        store.write("k", "old").unwrap();
        let open_before = open_files();
        let results = with_limit(Resource::Nofile, open_before + spare, || every_operation(&store, &dir));
        let failed = results.iter().any(Result::is_err);
        ever_failed |= failed;
        assert_cause(&results, libc::EMFILE);
        let limit = open_before + second_owner_file(&dir);
        assert!(!stay_open_beyond(limit), "with {spare} spare descriptors: files are left open");
        check_recovery(&store, &dir);
        let _ = std::fs::remove_dir_all(dir.join("elsewhere"));
        assert!(!failed || spare < MAX_OPEN_FILES - 1, "{MAX_OPEN_FILES} are not enough: {results:?}");
    }
    assert!(ever_failed, "the limit had no effect");
}

pub(super) fn short_files(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    // The signal that accompanies the error would kill the process.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGXFSZ);
    signals.thread_block().unwrap();
    let mut ever_failed = false;
    for bytes in [0, 1, 20, 21, 22, 50, 100, 200, 1_000, 2_048, 4_096] {
        store.write("k", "old").unwrap();
        let results = with_limit(Resource::Fsize, bytes, || every_operation(&store, &dir));
        ever_failed |= results.iter().any(Result::is_err);
        assert_cause(&results, libc::EFBIG);
        let record = store.read::<String>("k").unwrap().unwrap().result;
        assert!(matches!(record.as_str(), "old" | "new"), "{record}");
        check_recovery(&store, &dir);
        let _ = std::fs::remove_dir_all(dir.join("elsewhere"));
    }
    assert!(ever_failed, "the limit had no effect");
}

/// Runs one operation of each kind and returns the results. Opening a new store comes last.
fn every_operation(store: &FileSystemRecordStore, dir: &Path) -> Vec<Result<()>> {
    let read = store.read::<String>("k").map(|record| assert_eq!(record.unwrap().result, "old"));
    let absent = store.read::<String>("none").map(|record| assert_eq!(record, None));
    let exists = store.exists("k").map(|exists| assert!(exists));
    let keys = store.keys().and_then(Iterator::collect::<Result<Vec<_>>>);
    let locks = store.locks().and_then(Iterator::collect::<Result<Vec<_>>>);
    let guarded = store.lock("k", LockOptions::new()).and_then(|guard| {
        guard.renew()?;
        let other = as_named("other").acquire_timeout(Duration::from_millis(5));
        match store.acquire_lock("k", other) {
            Ok(_) => panic!("two holders"),
            Err(error) if error.is_timeout() => {}
            Err(error) => return Err(error),
        }
        let written = guard.write("new");
        guard.release().and(written)
    });
    let other =
        store.read_with::<String>("k", ReadOptions::new().timeout(Duration::from_millis(5))).map(drop);
    let waited = store.wait_for_lock("k", Duration::from_millis(5)).map(drop);
    let long = store.lock("y".repeat(3_000), LockOptions::new()).and_then(LockGuard::release);
    let longer = store.lock("z".repeat(5_000), LockOptions::new()).and_then(LockGuard::release);
    let big = store.write("big", &"x".repeat(10_000));
    let removed = store.remove("none").map(|removed| assert!(!removed));
    let swept = store.sweep().map(drop);
    let opened = FileSystemRecordStore::open(dir.join("elsewhere")).map(drop);
    let done = [guarded, other, waited, long, longer, big, removed, swept, opened];
    [read, absent, exists, keys.map(drop), locks.map(drop)].into_iter().chain(done).collect()
}

/// Each error must carry the expected system error.
fn assert_cause(results: &[Result<()>], errno: i32) {
    let kind = std::io::Error::from_raw_os_error(errno).kind();
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!((error.kind(), error.io_kind()), (ErrorKind::Io, Some(kind)), "{error:?}");
    }
}

/// Everything must work as if there had been no limit.
fn check_recovery(store: &FileSystemRecordStore, dir: &Path) {
    // A release fails if it cannot open a file. The lock that it leaves must be intact.
    for lock in store.locks().unwrap() {
        assert!(store.break_lock(lock.expect("an intact lock").key()).unwrap());
    }
    let guard = store.lock("k", as_named("next")).unwrap();
    guard.write("next").unwrap();
    assert_eq!(guard.read::<String>().unwrap().unwrap().result, "next");
    guard.release().unwrap();
    FileSystemRecordStore::open(dir.join("elsewhere")).unwrap();
    assert_eq!(names_in(&dir.join(".store/staged")), [""; 0]);
    assert_eq!(names_in(&dir.join(".store/owners")).len(), 1);
}

fn with_limit<T>(resource: Resource, limit: usize, work: impl FnOnce() -> T) -> T {
    let old = getrlimit(resource);
    setrlimit(resource, Rlimit { current: Some(limit as u64), maximum: old.maximum }).unwrap();
    let done = work();
    setrlimit(resource, old).unwrap();
    done
}

fn open_files() -> usize {
    // Without the descriptor that is used for the listing.
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// Whether the inotify instance is open, which a wait for a lock opens and keeps open.
fn watches_for_deaths() -> bool {
    let mut open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.any(|file| {
        std::fs::read_link(file.unwrap().path()).is_ok_and(|path| path.ends_with("anon_inode:inotify"))
    })
}

/// Whether more files than `limit` stay open. The thread that watches for the death of owners may have
/// one open for a moment, so this retries.
fn stay_open_beyond(limit: usize) -> bool {
    for _ in 0..100 {
        if open_files() <= limit {
            return false;
        }
        sleep(Duration::from_millis(1));
    }
    true
}

/// One if a second store was created beside the first: its owner file stays open.
fn second_owner_file(dir: &Path) -> usize {
    let owners = dir.join("elsewhere/.store/owners");
    usize::from(owners.exists() && !names_in(&owners).is_empty())
}
