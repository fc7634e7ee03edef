//! A directory that becomes read-only while the store is in use, and writable again.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{Error, LockOptions, RecordStoreExt};
use rustix::process::Uid;

use crate::support::children::{Child, Stage};
use crate::support::{names_in, open};

/// Nobody's in particular, but not the superuser's, for whom modes mean nothing.
const SOMEBODY: u32 = 65_534;

#[test]
fn a_directory_loses_and_regains_the_right_to_be_written() {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o777);
    let root = dir.path().join("records");
    let mut child = Child::start("read-only", &root);
    child.expect("ready");
    // The records, what is private, and each part of that by itself.
    let parts = ["", ".store", ".store/tmp", ".store/owners"].map(|part| root.join(part));
    for (number, part) in parts.iter().enumerate() {
        set_mode(part, 0o555);
        child.tell(if number == 0 { "records" } else { "part" });
        child.expect("seen");
        set_mode(part, 0o755);
        child.tell("writable");
        child.expect("ready");
    }
    child.tell("end");
    child.finish();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub(super) fn lose_the_right(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    if rustix::process::geteuid().is_root() {
        // Of this thread only, and it is the only one at work.
        rustix::thread::set_thread_uid(Uid::from_raw(SOMEBODY)).unwrap();
    }
    let store = open(&dir);
    loop {
        store.write("k", "old").unwrap();
        let held = store.lock("held", LockOptions::new()).unwrap();
        stage.tell("ready");
        let which = stage.hear();
        if which == "end" {
            return;
        }
        let outcomes = [
            store.write("k", "new"),
            store.lock("free", LockOptions::new()).and_then(record_store::LockGuard::release),
            held.write("new"),
            held.renew(),
            store.remove("none").map(drop),
        ];
        for outcome in &outcomes {
            if let Err(error) = outcome {
                assert_denied(error);
            }
        }
        if which == "records" {
            assert!(outcomes[..4].iter().all(Result::is_err), "{outcomes:?}");
            assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "old");
            assert_denied(&store.remove("k").unwrap_err());
            assert_denied(&store.release_lock("held", held.token()).unwrap_err());
        }
        // Whatever could not be done, the lock is held and all can be looked at.
        assert!(held.is_held().unwrap());
        assert!(store.exists("k").unwrap());
        assert_eq!(store.read::<String>("none").unwrap(), None);
        assert!(!store.wait_for_lock("held", Some(Duration::from_millis(5))).unwrap());
        assert!(store.keys().unwrap().all(|key| key.is_ok()));
        assert!(store.locks().unwrap().all(|lock| lock.is_ok()));
        stage.tell("seen");

        stage.expect("writable");
        held.write("after").unwrap();
        held.release().unwrap();
        assert_eq!(store.read::<String>("held").unwrap().unwrap().result, "after");
        assert_eq!(names_in(&dir.join(".store/tmp")), [""; 0]);
    }
}

fn assert_denied(error: &Error) {
    let Error::Io { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.kind(), std::io::ErrorKind::PermissionDenied, "{error:?}");
}
