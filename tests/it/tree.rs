//! Directory trees: copies, and snapshots that show whether anything has changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The metadata (without the access time) and the content of one file. Only regular files are opened, because
/// opening a FIFO can hang.
#[derive(PartialEq, Eq)]
pub(crate) struct FileState {
    mode: u32,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// The bytes of a regular file, or the target of a symbolic link.
    content: Vec<u8>,
}

/// The state of a directory tree at one moment.
pub(crate) type Snapshot = BTreeMap<PathBuf, FileState>;

/// Asserts that no file below `dir` was added, removed or changed since `before`. The message lists the
/// differences.
#[track_caller]
pub(crate) fn assert_unchanged(dir: &Path, before: &Snapshot, what: &str) {
    let after = snapshot(dir);
    let changed: Vec<_> = before
        .keys()
        .chain(after.keys().filter(|path| !before.contains_key(*path)))
        .filter(|path| before.get(*path) != after.get(*path))
        .collect();
    assert!(changed.is_empty(), "{what}: changed: {changed:#?}");
}

/// Takes a snapshot of `dir` and of everything below it.
pub(crate) fn snapshot(dir: &Path) -> Snapshot {
    let mut states = BTreeMap::new();
    let mut to_visit = vec![dir.to_owned()];
    while let Some(path) = to_visit.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_file() && metadata.len() < 1 << 20 {
            fs::read(&path).unwrap_or_default()
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        if metadata.is_dir() {
            to_visit.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let (modified, changed) =
            ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
        let (mode, inode, size) = (metadata.mode(), metadata.ino(), metadata.len());
        states.insert(path, FileState { mode, inode, size, modified, changed, content });
    }
    states
}

/// The paths below `dir`, relative to it.
pub(crate) fn paths(dir: &Path) -> Vec<PathBuf> {
    snapshot(dir)
        .into_keys()
        .filter_map(|path| {
            Some(path.strip_prefix(dir).unwrap().to_owned()).filter(|path| path != Path::new(""))
        })
        .collect()
}

/// The names of the regular files in `dir`, at any depth, relative to it.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    paths(dir)
        .into_iter()
        .filter(|path| fs::symlink_metadata(dir.join(path)).unwrap().is_file())
        .map(|path| path.to_string_lossy().into_owned())
        .collect()
}

/// Copies directories and regular files.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
