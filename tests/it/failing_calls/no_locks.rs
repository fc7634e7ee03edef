//! A kernel without room for locks (`ENOLCK`) has not said that anybody holds one. No call reports a held lock, or a timeout,
//! and none waits: it returns the error of the system.

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use record_store::{
    Error, ErrorKind, FileSystemRecordStore, LockOptions, ReadOptions, RecordStoreExt, RemoveOptions,
    WaitOptions, WriteOptions,
};
use tempfile::tempdir;

use crate::support::children::{Child, Stage};
use crate::support::trace::{Traced, perform};
use crate::support::{as_named, named, open};

/// An operation on a store in which `held` and `own` are locked, for whom, and there are no records.
type Operation = (&'static str, fn(&FileSystemRecordStore) -> Option<Error>);

/// A failure needs no time.
const LIMIT: Duration = Duration::from_secs(2);

/// With a time limit, an attempt that fails is repeated.
const CHANGES: [Operation; 9] = [
    ("try_lock", |store| store.try_lock("free", LockOptions::new()).map(drop).err()),
    ("lock", |store| store.lock("free", LockOptions::new().acquire_timeout(LIMIT)).map(drop).err()),
    ("lock without limits", |store| store.lock("free", LockOptions::new()).map(drop).err()),
    ("write", |store| store.write_with("k", &1, WriteOptions::new().timeout(LIMIT)).err()),
    ("remove", |store| store.remove_with("k", RemoveOptions::new().timeout(LIMIT)).map(drop).err()),
    ("read", |store| store.read_with::<u8>("k", ReadOptions::new().timeout(LIMIT)).map(drop).err()),
    ("renew", |store| store.renew("own", named("me"), LIMIT).err()),
    ("break_lock", |store| store.break_lock("own").map(drop).err()),
    ("release_lock", |store| store.release_lock("own", named("me")).err()),
];

/// Sends the outcome of each operation. In a process that is `new`, the first change fails to create the owner file.
pub(super) fn lack_locks(stage: &Stage) {
    let (dir, is_new): (PathBuf, bool) = stage.argument();
    let store = open(&dir);
    store.acquire_lock("own", as_named("me")).unwrap();
    let store = if is_new { open(&dir.join("new")) } else { store };
    let outcomes = perform(stage, "", || {
        let failures = CHANGES.map(|(name, change)| (name, change(&store)));
        let info = store.lock_info("held").unwrap();
        // Of an owner that is unknown, nothing is swept.
        let swept = store.sweep().map_or(0, |swept| swept.owners);
        (failures, info.map(|info| (info.owner_alive(), info.state())), swept)
    });
    let (failures, info, swept) = outcomes;
    for (name, failure) in failures {
        let failure = failure.map(|error| (error.kind(), error.detail().map(str::to_owned)));
        let is_right =
            matches!(&failure, Some((ErrorKind::Io, Some(detail))) if detail.starts_with("flock on "));
        assert!(is_right, "{name}: {failure:?}");
    }
    assert_eq!(swept, 0);
    if !is_new {
        assert_eq!(info, Some((None, record_store::LockState::Held)));
    }
    stage.send("done");
}

#[test]
fn a_kernel_without_room_for_locks_is_no_holder() {
    for is_new in [false, true] {
        let dir = tempdir().unwrap();
        let store = open(dir.path());
        let _held = store.lock("held", LockOptions::new()).unwrap();
        assert!(store.wait_for_lock("free", WaitOptions::new()).unwrap());
        std::fs::write(dir.path().join(".store/owners/1-deaddeaddeaddead"), "").unwrap();
        let Some((mut traced, _)) = Traced::attach(Child::start("lack locks", &(dir.path(), is_new))) else {
            return;
        };
        while let Some(call) = traced.next_call() {
            match call.number {
                libc::SYS_flock => traced.fail(Errno::ENOLCK),
                _ => traced.execute(),
            }
        }
        let mut child = traced.release();
        child.expect("done");
    }
}
