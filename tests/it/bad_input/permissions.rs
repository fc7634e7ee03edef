//! Files that must not be opened, and the modes of new files.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;

use record_store::{Json, OpenMode};

use super::*;

/// A user without any rights.
const NOBODY: u32 = 65_534;

pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes everything below `dir` readable for everyone, and writable only for its owner.
pub(super) fn open_to_all(dir: &Path) {
    for path in std::iter::once(dir.to_owned()).chain(tree::paths(dir).into_iter().map(|path| dir.join(path)))
    {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
}

/// Runs an ignored test as the user `NOBODY`.
#[track_caller]
pub(super) fn assert_nobody_passes(test: &str, dir: &Path) {
    let mut command = child(test, dir, "");
    assert_child_passes({
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
        command
    });
}

#[test]
fn a_file_without_permission_is_named_in_the_error() {
    if !is_root() {
        eprintln!("SKIPPED: only root can change the user");
        return;
    }
    let setup = Setup::new();
    setup.store.write("k", &1).unwrap();
    setup.store.write("locked", &1).unwrap();
    setup.store.acquire_lock("locked", once().holder(job())).unwrap();
    let closed_store = setup.parent.path().join("closed");
    relaxed().open(&closed_store).unwrap();
    open_to_all(setup.parent.path());
    for path in [setup.path("k.json"), setup.path("locked.lock"), closed_store] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    }
    assert_nobody_passes("bad_input::permissions::child_without_permission", setup.store.path());
}

#[test]
#[ignore = "run in a separate process, as a user without rights"]
fn child_without_permission() {
    let Some(dir) = child_dir() else { return };
    let store = relaxed().mode(OpenMode::ReadOnly).open(&dir).unwrap();
    assert_io(store.read::<Json>("k"), &dir.join("k.json"), "record");
    assert!(store.exists("k").unwrap());
    assert_io(store.read::<Json>("locked"), &dir.join("locked.lock"), "lock");
    assert_io(store.lock_info("locked"), &dir.join("locked.lock"), "lock");
    assert_io(store.wait_for_lock("locked", WaitOptions::new()), &dir.join("locked.lock"), "lock");
    assert_eq!(store.keys().unwrap().map(Result::unwrap).count(), 2);
    let locks: Vec<_> = store.locks().unwrap().collect();
    assert!(matches!(&locks[..], [refused] if is_kind(refused, ErrorKind::Io)), "{locks:?}");
    let closed = dir.parent().unwrap().join("closed");
    for mode in [OpenMode::Create, OpenMode::Existing, OpenMode::ReadOnly] {
        let error = relaxed().mode(mode).open(&closed).map(drop).unwrap_err();
        assert!(error.path().is_some_and(|path| path.starts_with(&closed)), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    }
}

#[test]
fn new_files_have_the_configured_mode_without_the_bits_of_the_umask() {
    for (umask, mode, file, dir) in [
        ("000", "666", 0o666, 0o777),
        ("022", "666", 0o644, 0o755),
        ("027", "664", 0o640, 0o750),
        ("077", "666", 0o600, 0o700),
        ("000", "600", 0o600, 0o700),
    ] {
        let parent = tempfile::tempdir().unwrap();
        let mut command =
            child("bad_input::permissions::child_creates_files", parent.path(), &format!("umask {umask}"));
        command.env("RECORD_STORE_TEST_MODE", mode);
        assert_child_passes(command);
        let root = parent.path().join("records");
        let mut seen = 0;
        for path in tree::paths(&root) {
            let about = fs::metadata(root.join(&path)).unwrap();
            let expected = if about.is_dir() { dir } else { file };
            assert_eq!(about.mode() & 0o7777, expected, "{}, umask {umask}, mode {mode}", path.display());
            seen += 1;
        }
        // Two records, two locks, two latches, owner, events, format and four directories.
        assert!(seen >= 13, "only {seen} files");
    }
}

#[test]
#[ignore = "run in a separate process, which has its own umask"]
fn child_creates_files() {
    let Some(dir) = child_dir() else { return };
    let mode = std::env::var("RECORD_STORE_TEST_MODE").unwrap();
    let mode = u32::from_str_radix(&mode, 8).unwrap();
    let store = FileSystemOptions::new().file_mode(mode).open(dir.join("records")).unwrap();
    // One lock as it was created, and one that was replaced.
    for key in ["created", "replaced"] {
        store.write(key, &1).unwrap();
        store.acquire_lock(key, once().holder(job())).unwrap();
    }
    store.renew("replaced", job(), None).unwrap();
}
