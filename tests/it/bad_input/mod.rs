//! Invalid files, missing permissions, bad keys and full disks. Every call returns quickly with a typed
//! error that names the path, and intact data stays intact.

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
    Durability, Error, ErrorKind, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions, ReadOptions,
    RecordStoreExt, WaitOptions,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;

use crate::support::latch_of;
use crate::tree;
use crate::watchdog::{abort_if_hung, watch_test};

/// A store in `records/`, and files beside it that must not be touched.
struct Setup {
    parent: TempDir,
    store: FileSystemRecordStore,
}

impl Setup {
    fn new() -> Self {
        Self::with(relaxed())
    }

    fn with(options: FileSystemOptions) -> Self {
        watch_test();
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

    /// The files outside the store, including the names in the directory above it.
    fn outside(&self) -> tree::Snapshot {
        let mut all = tree::snapshot(self.parent.path());
        all.retain(|path, _| !path.starts_with(self.store.path()));
        all
    }

    #[track_caller]
    fn assert_outside(&self, before: &tree::Snapshot, what: &str) {
        assert!(self.outside() == *before, "{what}: something changed outside the store");
    }

    /// Asserts that the only file that was moved aside is one with this original name.
    #[track_caller]
    fn assert_kept(&self, name: &str, what: &str) {
        let damaged = self.store.damaged().unwrap();
        let names: Vec<_> = damaged.iter().map(|file| &*file.original_name).collect();
        assert_eq!(names, [name], "{what}");
        assert!(fs::symlink_metadata(&damaged[0].path).is_ok(), "{what}");
    }

    #[track_caller]
    fn assert_nothing_staged(&self) {
        // The staged names of relaxed changes stay until the log is synced.
        let _ = self.store.sweep();
        assert_eq!(tree::paths(&self.path(".store/staged")), Vec::<PathBuf>::new());
    }
}

/// Most of these tests do not depend on durability, and syncs take time.
fn relaxed() -> FileSystemOptions {
    FileSystemOptions::new().durability(Durability::Relaxed)
}

/// A record as the library writes it.
fn sound_record(key: &str, json: &str) -> String {
    let version = "1795670157217280";
    format!(
        "{{\"key\":{},\"version\":{version},\"record_crc32\":\"{:08x}\",\"result\":{json}}}\n",
        serde_json::to_string(key).unwrap(),
        crc32fast::hash(format!("{version}\0\0{json}").as_bytes())
    )
}

fn job() -> Holder {
    Holder::named("job").unwrap()
}

/// Options for a single attempt.
fn once() -> LockOptions {
    LockOptions::new().acquire_timeout(Duration::ZERO)
}

/// Creates a file at a path.
type Create = fn(&Setup, &Path);

/// The kinds of files that may be found in place of a regular file, and how to create each.
const NOT_REGULAR: [(&str, Create); 7] = [
    ("a directory", |_, path| fs::create_dir(path).unwrap()),
    ("a directory with something in it", |_, path| fs::create_dir_all(path.join("inner")).unwrap()),
    ("a link to a file", |setup, path| symlink(setup.parent.path().join("bystander"), path).unwrap()),
    ("a link to a directory", |setup, path| symlink(setup.parent.path().join("elsewhere"), path).unwrap()),
    ("a dangling link", |setup, path| symlink(setup.parent.path().join("nowhere"), path).unwrap()),
    ("a FIFO", |_, path| make_node(path, FileType::Fifo)),
    ("a socket", |_, path| make_node(path, FileType::Socket)),
];

fn make_node(path: &Path, kind: FileType) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), 0).unwrap();
}

/// Calls `check` with a new store for each kind of file that is not regular, which is created at `name`.
fn for_each_not_regular(name: &str, check: impl Fn(&Setup, &str)) {
    for (what, create) in NOT_REGULAR {
        let setup = Setup::new();
        clear(&setup.path(name));
        create(&setup, &setup.path(name));
        let outside = setup.outside();
        abort_if_hung(what, || check(&setup, what));
        setup.assert_outside(&outside, &format!("{what} at {name}"));
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

fn is_kind<T>(result: &Result<T, Error>, kind: ErrorKind) -> bool {
    result.as_ref().is_err_and(|error| error.kind() == kind)
}

/// Checks kind and path of the error, and returns it.
#[track_caller]
fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Error>,
    kind: ErrorKind,
    path: &Path,
    what: &str,
) -> Error {
    match result {
        Err(error) if error.kind() == kind => {
            assert_eq!(error.path(), Some(path), "{what}");
            error
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[track_caller]
fn assert_not_regular<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path, what: &str) {
    assert_refused(result, ErrorKind::NotARegularFile, path, what);
}

#[track_caller]
fn assert_io<T: std::fmt::Debug>(result: Result<T, Error>, path: &Path, what: &str) {
    assert_refused(result, ErrorKind::Io, path, what);
}

/// Runs one ignored test of this binary in a separate process that works in `dir`. The commands in `shell`
/// run first, for instance to set a umask or a limit.
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

/// The directory in which a child works. `None` if a person runs all ignored tests by hand.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os(CHILD_DIR).map(PathBuf::from)
}

#[track_caller]
fn assert_child_passes(mut command: Command) {
    let output = abort_if_hung("a child process", || command.output()).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{}\n{text}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
}
