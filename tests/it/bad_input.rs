//! Whatever lies in the directory and whatever the disk says: the answer comes soon, it is a typed
//! error that names the path, and what was whole before is whole after.

mod errors;
mod full_disk;
mod keys;
mod locks;
mod open;
mod permissions;
mod private_files;
mod read_only;
mod records;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use record_store::{
    Durability, Error, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions, RecordStoreExt,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::soon::soon;
use crate::support::latch_of;
use crate::tree;

/// A store in `records/`, and a bystander beside it that nobody may touch.
struct Place {
    parent: TempDir,
    store: FileSystemRecordStore,
}

impl Place {
    fn new() -> Self {
        Self::with(relaxed())
    }

    fn with(options: FileSystemOptions) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let store = options.open(parent.path().join("records")).unwrap();
        fs::write(parent.path().join("bystander"), sound_record("k", "\"outside\"")).unwrap();
        fs::create_dir(parent.path().join("elsewhere")).unwrap();
        Self { parent, store }
    }

    /// The path of a file of the store.
    fn path(&self, name: &str) -> PathBuf {
        self.store.path().join(name)
    }

    /// What lies outside of the store, the names in the directory above it included.
    fn outside(&self) -> tree::Snapshot {
        let mut all = tree::snapshot(self.parent.path());
        all.retain(|path, _| !path.starts_with(self.store.path()));
        all
    }

    #[track_caller]
    fn assert_outside(&self, before: &tree::Snapshot, what: &str) {
        assert!(self.outside() == *before, "{what}: something changed outside of the store");
    }

    #[track_caller]
    fn assert_nothing_staged(&self) {
        assert_eq!(tree::paths(&self.path(".store/tmp")), Vec::<PathBuf>::new());
    }
}

/// Most of these tests are not about power loss, and syncing costs time.
fn relaxed() -> FileSystemOptions {
    FileSystemOptions::new().durability(Durability::Relaxed)
}

/// A record as the library writes it.
fn sound_record(key: &str, json: &str) -> String {
    format!(
        "{{\"key\":{},\"crc32\":\"{:08x}\",\"result\":{json}}}\n",
        serde_json::to_string(key).unwrap(),
        crc32fast::hash(json.as_bytes())
    )
}

fn job() -> Holder {
    Holder::named("job").unwrap()
}

/// One try.
fn once() -> LockOptions {
    LockOptions::new().acquire_timeout(Duration::ZERO)
}

/// Puts something at a path.
type Put = fn(&Place, &Path);

/// What may stand in the place of a regular file: its name, and how it is put there.
const IRREGULAR: [(&str, Put); 7] = [
    ("a directory", |_, path| fs::create_dir(path).unwrap()),
    ("a directory with something in it", |_, path| fs::create_dir_all(path.join("inner")).unwrap()),
    ("a link to a file", |place, path| symlink(place.parent.path().join("bystander"), path).unwrap()),
    ("a link to a directory", |place, path| symlink(place.parent.path().join("elsewhere"), path).unwrap()),
    ("a dangling link", |place, path| symlink(place.parent.path().join("nowhere"), path).unwrap()),
    ("a FIFO", |_, path| make_node(path, FileType::Fifo)),
    ("a socket", |_, path| make_node(path, FileType::Socket)),
];

fn make_node(path: &Path, kind: FileType) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), 0).unwrap();
}

/// Calls `check` with a fresh store for each thing that may stand at `name`.
fn for_each_irregular(name: &str, check: impl Fn(&Place, &str)) {
    for (what, put) in IRREGULAR {
        let place = Place::new();
        clear(&place.path(name));
        put(&place, &place.path(name));
        let outside = place.outside();
        soon(what, || check(&place, what));
        place.assert_outside(&outside, &format!("{what} at {name}"));
    }
}

/// Removes whatever is at `path`.
fn clear(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(about) if about.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

#[track_caller]
fn assert_irregular<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path, what: &str) {
    match result {
        Err(Error::NotARegularFile { path: at, .. }) => assert_eq!(at, path, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

#[track_caller]
fn assert_io<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path, what: &str) {
    match result {
        Err(Error::Io { path: at, .. }) => assert_eq!(at, path, "{what}"),
        other => panic!("{what}: {other:?}"),
    }
}

/// Runs one ignored test of this binary in a process of its own, told where to work. `shell` is run
/// before it: a place to set a umask or a limit.
fn child(test: &str, dir: &Path, shell: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", &format!("{shell}\nexec \"$@\""), "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1", test])
        .env(CHILD_DIR, dir);
    command
}

const CHILD_DIR: &str = "RECORD_STORE_TEST_DIR";

/// Where a child is to work. `None` if somebody runs all ignored tests by hand.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

#[track_caller]
fn assert_child_passes(mut command: Command) {
    let output = soon("a child process", || command.output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}
