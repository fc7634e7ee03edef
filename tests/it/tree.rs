//! Directory trees: to copy one, and to see that nothing in one has changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// All that can be seen of one file without opening what may hang, except when it was last read.
#[derive(PartialEq, Eq)]
pub(crate) struct Seen {
    mode: u32,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// What a regular file holds, or where a link points.
    content: Vec<u8>,
}

/// A tree as it was.
pub(crate) type Snapshot = BTreeMap<PathBuf, Seen>;

/// Sees that nothing below `dir` has come, gone or changed, and names what has.
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

/// Everything below `dir`, and `dir` itself.
pub(crate) fn snapshot(dir: &Path) -> Snapshot {
    let mut seen = BTreeMap::new();
    let mut to_visit = vec![dir.to_owned()];
    while let Some(path) = to_visit.pop() {
        let about = fs::symlink_metadata(&path).unwrap();
        let content = if about.is_file() && about.len() < 1 << 20 {
            fs::read(&path).unwrap_or_default()
        } else if about.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            Vec::new()
        };
        if about.is_dir() {
            to_visit.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let (modified, changed) = ((about.mtime(), about.mtime_nsec()), (about.ctime(), about.ctime_nsec()));
        let (mode, inode, size) = (about.mode(), about.ino(), about.len());
        seen.insert(path, Seen { mode, inode, size, modified, changed, content });
    }
    seen
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
