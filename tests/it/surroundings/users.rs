//! One store, several users with different rights and umasks. No operation fails by the chance of which process
//! used a latch, a lock or a record first. Only root can run these tests.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use record_store::{
    Durability, ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, Problem,
    RecordStoreExt, WriteOptions,
};
use tempfile::TempDir;

use crate::support::children::{Child, Stage, User};
use crate::support::{as_named, named};
use crate::tree;

const TEAM: u32 = 5_000;
const ROOT: User = User { id: 0, group: 0, team: None };
const ANN: User = User { id: 5_001, group: 5_001, team: Some(TEAM) };
const BOB: User = User { id: 5_002, group: 5_002, team: Some(TEAM) };
/// In the same group, and in no other.
const CAT: User = User { id: 5_003, group: TEAM, team: None };
const DAN: User = User { id: 5_004, group: TEAM, team: None };

fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("SKIPPED: only root can change the user");
    }
    is_root
}

/// A directory that everyone may enter, with an empty directory that belongs to a user and a group.
fn directory_of(user: u32, group: u32, mode: u32) -> (TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = parent.path().join("records");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(user), Some(group)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    (parent, dir)
}

/// The keys of this range, and whether the store is to be created as a shared one.
type Work = (PathBuf, std::ops::Range<u32>, bool);

/// Uses every operation on each key.
pub(super) fn work_as_user(stage: &Stage) {
    let (dir, keys, shared): Work = stage.argument();
    let options = FileSystemOptions::new().durability(Durability::Relaxed);
    let options = if shared { options.shared_group() } else { options };
    let store = options.open(&dir).unwrap();
    for number in keys {
        work_on(&store, &format!("key-{number}"));
    }
    store.sweep().unwrap();
    // A lock file that stays.
    let left = format!("left-by-{}-{}", rustix::process::geteuid().as_raw(), std::process::id());
    store.acquire_lock(left, as_named("left")).unwrap();
}

fn work_on(store: &FileSystemRecordStore, key: &str) {
    let done = || {
        store.write(key, &1)?;
        let guard = store.lock(key, LockOptions::new())?;
        assert!(guard.read::<u32>()?.is_some());
        guard.write_with(&2, WriteOptions::new().time_to_live(std::time::Duration::from_hours(1)))?;
        guard.renew()?;
        guard.release()?;
        assert!(store.remove(key)?);
        assert!(store.read::<u32>(key)?.is_none());
        store.write(key, &3)?;
        // A lock of a named holder is left, for whoever comes next.
        store.break_lock(key)?;
        store.acquire_lock(key, as_named("left"))?;
        store.renew(key, named("left"), None)?;
        store.write_with(key, &4, WriteOptions::new().claim(named("left")))?;
        store.release_lock(key, named("left"))?;
        Ok::<_, record_store::Error>(())
    };
    done().unwrap_or_else(|error| panic!("{key}: {error}: {:?}", std::error::Error::source(&error)));
}

fn work(user: User, umask: &str, dir: &Path, keys: std::ops::Range<u32>, shared: bool) {
    Child::start_as(user, umask, "work as a user", &(dir, keys, shared)).finish();
}

/// The owners, groups and modes of all files and directories of the store, by path.
fn rights(dir: &Path) -> BTreeMap<PathBuf, (u32, u32, u32)> {
    let all = tree::paths(dir).into_iter().chain([PathBuf::new()]);
    all.map(|path| {
        let about = fs::symlink_metadata(dir.join(&path)).unwrap();
        (path, (about.uid(), about.gid(), about.mode() & 0o7777))
    })
    .collect()
}

fn assert_no_findings(dir: &Path) {
    let store = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir).unwrap();
    let found: Vec<_> = store
        .verify()
        .map(Result::unwrap)
        .filter(|finding| matches!(finding.problem, Problem::Permissions { .. }))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn root_gives_what_it_creates_to_the_owner_of_the_store() {
    if !is_root() {
        return;
    }
    for umask in ["022", "077"] {
        // Created by its user, or by root in an empty directory of that user.
        for creator in [ANN, ROOT] {
            let (_parent, dir) = directory_of(ANN.id, ANN.group, 0o755);
            work(creator, umask, &dir, 0..1, false);
            work(ROOT, umask, &dir, 0..60, false);
            for (path, (user, group, _)) in rights(&dir) {
                assert_eq!((user, group), (ANN.id, ANN.group), "{}", path.display());
            }
            work(ANN, "022", &dir, 0..300, false);
            assert_no_findings(&dir);
        }
    }
}

/// Their files differ in what the group may do, and the directories are writable for it.
#[test]
fn members_of_a_group_with_different_umasks_can_work_on_every_key() {
    if !is_root() {
        return;
    }
    let (_parent, dir) = directory_of(CAT.id, TEAM, 0o775);
    work(CAT, "002", &dir, 0..1, false);
    work(DAN, "022", &dir, 0..60, false);
    work(CAT, "002", &dir, 0..300, false);
    work(DAN, "022", &dir, 0..300, false);
}

#[test]
fn a_shared_store_has_the_rights_of_its_group_whatever_the_umask() {
    if !is_root() {
        return;
    }
    // A new directory, an empty one that the option makes shared, and one that was prepared without the option.
    for (mode, shared, expected) in [(0o750, true, (0o660, 0o2770)), (0o2775, false, (0o664, 0o2775))] {
        let (_parent, dir) = directory_of(ANN.id, TEAM, mode);
        work(ANN, "077", &dir, 0..1, shared);
        // Others need no option: the store says that it is shared.
        for user in [BOB, CAT, ROOT, ANN] {
            work(user, "077", &dir, 0..40, false);
        }
        let shared_dir = expected.1 | if shared { 0o750 } else { 0 };
        for (path, (_, group, mode)) in rights(&dir) {
            let is_dir = dir.join(&path).is_dir();
            let expected = if !is_dir {
                expected.0
            } else if path == Path::new("") {
                shared_dir
            } else {
                expected.1
            };
            assert_eq!((group, mode), (TEAM, expected), "{} {mode:o}", path.display());
        }
        assert_no_findings(&dir);
    }
}

#[test]
fn a_new_shared_store_belongs_to_the_group_of_its_creator() {
    if !is_root() {
        return;
    }
    let (_parent, dir) = directory_of(CAT.id, TEAM, 0o700);
    let dir = dir.join("new/store");
    work(CAT, "077", &dir, 0..3, true);
    for (path, (_, group, mode)) in rights(&dir) {
        let expected = if dir.join(&path).is_dir() { 0o2770 } else { 0o660 };
        assert_eq!((group, mode), (TEAM, expected), "{} {mode:o}", path.display());
    }
}

/// A file of another user in the place of a private one, without rights for the owner of the store.
#[test]
fn a_latch_that_cannot_be_used_and_a_directory_that_cannot_be_written_are_clear_errors() {
    if !is_root() {
        return;
    }
    let (_parent, dir) = directory_of(ANN.id, ANN.group, 0o755);
    work(ANN, "022", &dir, 0..300, false);
    let latches = dir.join(".store/latches");
    let closed = latches.join("07");
    chown(&closed, Some(0), Some(0)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o600)).unwrap();
    let refused = Child::start_as(ANN, "022", "verify as a user", &(&dir, ".store/latches/07"));
    refused.finish();
    // And by name for root, who may use it.
    let store = FileSystemRecordStore::open(&dir).unwrap();
    let findings: Vec<_> = store.verify().map(Result::unwrap).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].path, closed);
    assert_eq!(
        findings[0].problem.to_string(),
        format!(
            "the owner of the store may not use it: set its owner to {} and its group to {}",
            ANN.id, ANN.group
        )
    );
    assert!(findings[0].problem.is_damage());
}

/// Verifies the store, in which only this file cannot be used.
pub(super) fn verify_as_user(stage: &Stage) {
    let (dir, file): (PathBuf, PathBuf) = stage.argument();
    let store = FileSystemOptions::new().durability(Durability::Relaxed).open(&dir).unwrap();
    let findings: Vec<_> = store.verify().map(Result::unwrap).collect();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].path, dir.join(&file));
    assert!(matches!(findings[0].problem, Problem::Permissions { .. }), "{findings:?}");
    // Each operation names the file, or does not need it.
    for number in 0..300 {
        if let Err(error) = store.write(format!("key-{number}"), &1) {
            assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(&*dir.join(&file))), "{error:?}");
        }
    }
}

/// Each kind of file, with rights that exclude somebody, and what `verify` says of it.
#[test]
fn verify_names_every_file_that_somebody_may_not_use() {
    if !is_root() {
        return;
    }
    let (_parent, dir) = directory_of(ANN.id, TEAM, 0o2770);
    work(ANN, "022", &dir, 0..3, false);
    let store = FileSystemRecordStore::open(&dir).unwrap();
    store.acquire_lock("key-1", as_named("job")).unwrap();
    let latch = tree::files(&dir).into_iter().find(|file| file.starts_with(".store/latches/")).unwrap();
    for (file, mode, remedy) in [
        (".store/events", 0o640, "set its mode to 660"),
        (".store/format.json", 0o600, "set its mode to 640"),
        (&latch, 0o600, "set its mode to 640"),
        ("key-2.json", 0o600, "set its mode to 640"),
        ("key-1.lock", 0o600, "set its mode to 640"),
        (".store/owners", 0o770, "set its mode to 2770"),
        (".store/staged", 0o2700, "set its mode to 2770"),
        ("", 0o2750, "set its mode to 2770"),
    ] {
        let path = dir.join(file);
        let before = fs::metadata(&path).unwrap().permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let found: Vec<_> = store.verify().map(Result::unwrap).collect();
        assert_eq!(found.len(), 1, "{file}: {found:?}");
        assert_eq!(found[0].path.join(""), path.join(""), "{file}");
        let text = found[0].problem.to_string();
        assert_eq!(text, format!("the group of the store may not use it: {remedy}"), "{file}");
        fs::set_permissions(&path, before).unwrap();
        assert_no_findings(&dir);
    }
    // A private directory that the owner of the store's directory may not use.
    chown(dir.join(".store"), Some(0), Some(0)).unwrap();
    fs::set_permissions(dir.join(".store"), fs::Permissions::from_mode(0o755)).unwrap();
    let found: Vec<_> = store.verify().map(Result::unwrap).collect();
    assert!(found.iter().any(|finding| finding.path.join("") == dir.join(".store").join("")), "{found:?}");
}
