//! A directory that becomes read-only and then writable again while the store is in use.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{Error, ErrorKind, LockOptions, RecordStoreExt};
use rustix::process::Uid;

use crate::support::children::{Child, Stage};
use crate::support::{names_in, open};

/// Any user but root, for whom file modes have no effect.
const UNPRIVILEGED_USER: u32 = 65_534;

#[test]
fn a_store_works_again_when_its_directory_regains_write_permission() {
    let dir = tempfile::tempdir().unwrap();
    set_mode(dir.path(), 0o777);
    let root = dir.path().join("records");
    let mut child = Child::start("read-only", &root);
    child.expect("ready");
    // The records, the private directory, and two of its subdirectories.
    let parts = ["", ".store", ".store/staged", ".store/owners"].map(|part| root.join(part));
    for (number, part) in parts.iter().enumerate() {
        set_mode(part, 0o555);
        child.send(if number == 0 { "records" } else { "part" });
        child.expect("checked");
        set_mode(part, 0o755);
        child.send("writable");
        child.expect("ready");
    }
    child.send("end");
    child.finish();
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

pub(super) fn lose_write_permission(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    if rustix::process::geteuid().is_root() {
        // This changes the user of this thread only, but no other thread uses the store.
        rustix::thread::set_thread_uid(Uid::from_raw(UNPRIVILEGED_USER)).unwrap();
    }
    let store = open(&dir);
    loop {
        store.write("k", "old").unwrap();
        let held = store.lock("held", LockOptions::new()).unwrap();
        stage.send("ready");
        let which = stage.receive();
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
        // Whichever operations failed, the lock is still held and everything can be read.
        assert!(held.is_held().unwrap());
        assert!(store.exists("k").unwrap());
        assert_eq!(store.read::<String>("none").unwrap(), None);
        assert!(!store.wait_for_lock("held", Duration::from_millis(5)).unwrap());
        assert!(store.keys().unwrap().all(|key| key.is_ok()));
        assert!(store.locks().unwrap().all(|lock| lock.is_ok()));
        stage.send("checked");

        stage.expect("writable");
        held.write("after").unwrap();
        held.release().unwrap();
        assert_eq!(store.read::<String>("held").unwrap().unwrap().result, "after");
        assert_eq!(names_in(&dir.join(".store/staged")), [""; 0]);
    }
}

fn assert_denied(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::PermissionDenied), "{error:?}");
}
