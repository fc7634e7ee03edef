//! Recovery by the store: a tree is materialized in memory, then the store in it is opened, read and used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{
    Error, ErrorKind, FileSystemRecordStore, Holder, LockOptions, LockToken, ReadOptions, RecordStoreExt,
};
use tempfile::TempDir;

use super::disk::{DIRECTORY, Interner, Tree};
use super::sequences::{FOREIGN, JOB, KEYS};
use crate::support::{as_named, named, names_in};

/// The outcome of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReadOutcome {
    Absent,
    Value(String),
    /// `CorruptRecord`.
    Corrupt,
}

/// The outcome of an attempt to acquire the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockOutcome {
    Acquired(LockToken),
    HeldByJob,
    /// `CorruptLock`, until it was broken.
    Corrupt,
}

/// The state of a key after a power loss.
#[derive(Clone, Debug)]
pub(crate) struct Recovered {
    pub(crate) read: ReadOutcome,
    pub(crate) lock: LockOutcome,
}

/// A directory in memory where trees are materialized, one after the other.
pub(crate) struct ScratchDir {
    dir: TempDir,
}

impl ScratchDir {
    pub(crate) fn new() -> Self {
        Self { dir: crate::support::in_memory() }
    }

    /// Opens the store in this tree and checks that it is usable. The error describes a failure that no
    /// guarantee allows.
    pub(crate) fn recover(
        &self,
        tree: &Tree,
        interner: &Interner,
        below: &str,
    ) -> Result<[Recovered; 2], String> {
        self.materialize(tree, interner);
        let root = self.dir.path().join(below);
        let store = FileSystemRecordStore::open(&root).map_err(|error| format!("open: {error:?}"))?;
        for key in store.keys().map_err(|error| format!("keys: {error:?}"))? {
            key.map_err(|error| format!("keys: {error:?}"))?;
        }
        let recovered = [inspect(&store, KEYS[0])?, inspect(&store, KEYS[1])?];
        for key in KEYS {
            use_key(&store, key).map_err(|error| format!("{key} is no longer usable: {error:?}"))?;
        }
        check_kept(tree, interner, &store)?;
        let private = root.join(".store");
        let staged = names_in(&private.join("tmp"));
        if !staged.is_empty() || names_in(&private.join("owners")).len() != 1 {
            return Err(format!("files of a dead process are left: {staged:?}"));
        }
        Ok(recovered)
    }

    /// Directories that are part of both trees keep their identity. The process keeps one owner open per
    /// store, and all trees have to be one store to it.
    fn materialize(&self, tree: &Tree, interner: &Interner) {
        let in_dir = |path: &str| self.dir.path().join(path.trim_start_matches('/'));
        let of_kind =
            |directory: bool| tree.iter().filter(move |(_, image)| (*image == DIRECTORY) == directory);
        let mut dirs: Vec<PathBuf> =
            of_kind(true).map(|(path, _)| in_dir(&interner.path_of(*path))).collect();
        dirs.sort();
        clear(self.dir.path(), &dirs);
        for dir in dirs.iter().filter(|dir| !dir.exists()) {
            std::fs::create_dir(dir).unwrap();
        }
        for (path, image) in of_kind(false) {
            std::fs::write(in_dir(&interner.path_of(*path)), interner.content_of(*image)).unwrap();
        }
    }
}

/// A file of another program is moved aside, wherever the power loss left it. Nothing else is.
fn check_kept(tree: &Tree, interner: &Interner, store: &FileSystemRecordStore) -> Result<(), String> {
    let is_foreign = |image| image != DIRECTORY && *interner.content_of(image) == *FOREIGN.as_bytes();
    let was_there = tree.iter().any(|&(_, image)| is_foreign(image));
    let kept: Vec<_> = store
        .damaged()
        .map_err(|error| format!("damaged: {error:?}"))?
        .iter()
        .map(|file| std::fs::read(&file.path).unwrap())
        .collect();
    let is_kept = kept.iter().any(|content| content == FOREIGN.as_bytes());
    if is_kept == was_there {
        Ok(())
    } else {
        Err(format!("a foreign file was there: {was_there}, but {kept:?} was kept"))
    }
}

/// Removes everything except these directories.
fn clear(dir: &Path, keep: &[PathBuf]) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if !entry.file_type().unwrap().is_dir() {
            std::fs::remove_file(path).unwrap();
        } else if keep.contains(&path) {
            clear(&path, keep);
        } else {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

/// Acquires the lock, reads the record, and releases the lock.
fn inspect(store: &FileSystemRecordStore, key: &str) -> Result<Recovered, String> {
    let once = LockOptions::new().acquire_timeout(Duration::ZERO);
    let wrong = |operation: &str, error: &Error| Err(format!("{key}: {operation}: {error:?}"));
    let (lock, reader) = match store.acquire_lock(key, once) {
        Ok(token) => (LockOutcome::Acquired(token), Holder::current()),
        Err(error) if error.kind() == ErrorKind::LockTimeout && error.holder() == Some(&named(JOB)) => {
            (LockOutcome::HeldByJob, named(JOB))
        }
        Err(error) if error.kind() == ErrorKind::CorruptLock => {
            match store.break_lock(key) {
                Ok(true) => {}
                other => return Err(format!("{key}: break_lock: {other:?}")),
            }
            (LockOutcome::Corrupt, Holder::current())
        }
        Err(error) => return wrong("acquire", &error),
    };
    let read = match store.read_with::<String>(key, ReadOptions::new().claim(&reader)) {
        Ok(None) => ReadOutcome::Absent,
        Ok(Some(record)) => ReadOutcome::Value(record.result),
        Err(error) if error.kind() == ErrorKind::CorruptRecord => ReadOutcome::Corrupt,
        Err(error) => return wrong("read", &error),
    };
    match store.exists(key) {
        Ok(exists) if exists == (read != ReadOutcome::Absent) => {}
        other => return Err(format!("{key}: read as {read:?}, but exists: {other:?}")),
    }
    if lock != LockOutcome::Corrupt
        && let Err(error) = store.release_lock(key, reader)
    {
        return wrong("release", &error);
    }
    Ok(Recovered { read, lock })
}

/// Checks that the key works like a new one.
fn use_key(store: &FileSystemRecordStore, key: &str) -> Result<(), Error> {
    let guard = store.lock(key, as_named("next").acquire_timeout(Duration::ZERO))?;
    guard.write("next")?;
    assert_eq!(guard.read::<String>()?.expect("a record").result, "next", "{key}");
    guard.release()?;
    assert!(store.remove(key)?, "{key}");
    assert_eq!(store.lock_info(key)?, None, "{key}");
    Ok(())
}
