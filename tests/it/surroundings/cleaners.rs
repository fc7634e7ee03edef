//! Files that were removed by a program that cleans up old files.

use std::fs;

use record_store::{Holder, LockOptions, RecordStoreExt, WriteOptions};
use tempfile::tempdir;

use crate::support::{as_named, names_in, open};

/// Without its owner file a live process looks dead, so others may have seen its lock free. They left no trace if
/// they only read. So the lock is lost, and nothing revives it.
#[test]
fn a_lock_whose_owner_file_was_removed_is_lost_and_the_process_can_work_on() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    guard.write(&1).unwrap();
    store.acquire_lock("named", as_named("job")).unwrap();
    let owners = dir.path().join(".store/owners");
    for name in names_in(&owners) {
        fs::remove_file(owners.join(name)).unwrap();
    }

    let error = guard.write(&2).unwrap_err();
    assert!(error.is_lock_lost(), "{error:?}");
    assert_eq!(store.read::<u64>("k").unwrap().unwrap().result, 1);
    assert!(guard.release().unwrap_err().is_lock_lost());

    // The process gets a new owner file. A lock of a named holder did not depend on the old one.
    let guard = store.lock("k", LockOptions::new()).unwrap();
    guard.write(&3).unwrap();
    guard.release().unwrap();
    assert_eq!(names_in(&owners).len(), 1);
    let job = Holder::named("job").unwrap();
    store.write_with("named", &1, WriteOptions::new().claim(job.clone())).unwrap();
    store.release_lock("named", job).unwrap();
}
