//! What the store makes of a tree: the tree is laid out in memory, opened, looked at and used.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{Error, FileSystemRecordStore, Holder, LockOptions, LockToken, RecordStoreExt};
use tempfile::TempDir;

use super::disk::{DIRECTORY, Numbers, Tree};
use super::play::{JOB, KEYS};
use crate::support::{as_named, named, names_in};

/// What a read gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Absent,
    Value(String),
    /// `CorruptRecord`.
    Corrupt,
}

/// What an attempt to take the lock came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// It was given, with this token.
    Free(LockToken),
    /// The job has it.
    Jobs,
    /// `CorruptLock`, until it was broken.
    Corrupt,
}

/// A key, after a power loss.
#[derive(Clone, Debug)]
pub(crate) struct After {
    pub(crate) seen: Seen,
    pub(crate) lock: Lock,
}

/// A place in memory where trees are laid out, one after the other.
pub(crate) struct Ground {
    dir: TempDir,
}

impl Ground {
    pub(crate) fn new() -> Self {
        Self { dir: crate::support::in_memory() }
    }

    /// Opens the store in this tree, and sees that it can be used. The error says what is wrong
    /// whatever was promised.
    pub(crate) fn recover(&self, tree: &Tree, numbers: &Numbers, below: &str) -> Result<[After; 2], String> {
        self.lay_out(tree, numbers);
        let root = self.dir.path().join(below);
        let store = FileSystemRecordStore::open(&root).map_err(|error| format!("open: {error:?}"))?;
        for key in store.keys().map_err(|error| format!("keys: {error:?}"))? {
            key.map_err(|error| format!("keys: {error:?}"))?;
        }
        let after = [look(&store, KEYS[0])?, look(&store, KEYS[1])?];
        for key in KEYS {
            use_it(&store, key).map_err(|error| format!("{key} can no longer be used: {error:?}"))?;
        }
        let private = root.join(".store");
        let left = names_in(&private.join("tmp"));
        if !left.is_empty() || names_in(&private.join("owners")).len() != 1 {
            return Err(format!("something of the dead is left: {left:?}"));
        }
        Ok(after)
    }

    /// Directories that stay keep their identity: the process keeps one owner a store open, and this
    /// is to be one store all the time.
    fn lay_out(&self, tree: &Tree, numbers: &Numbers) {
        let place = |path: &str| self.dir.path().join(path.trim_start_matches('/'));
        let of_kind =
            |directory: bool| tree.iter().filter(move |(_, image)| (*image == DIRECTORY) == directory);
        let mut dirs: Vec<PathBuf> = of_kind(true).map(|(path, _)| place(&numbers.path_of(*path))).collect();
        dirs.sort();
        clear(self.dir.path(), &dirs);
        for dir in dirs.iter().filter(|dir| !dir.exists()) {
            std::fs::create_dir(dir).unwrap();
        }
        for (path, image) in of_kind(false) {
            std::fs::write(place(&numbers.path_of(*path)), numbers.content_of(*image)).unwrap();
        }
    }
}

/// Removes everything but these directories.
fn clear(dir: &Path, stay: &[PathBuf]) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = entry.path();
        if !entry.file_type().unwrap().is_dir() {
            std::fs::remove_file(path).unwrap();
        } else if stay.contains(&path) {
            clear(&path, stay);
        } else {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

fn look(store: &FileSystemRecordStore, key: &str) -> Result<After, String> {
    let once = LockOptions::new().acquire_timeout(Duration::ZERO);
    let wrong = |what: &str, error: &Error| Err(format!("{key}: {what}: {error:?}"));
    let (lock, reader) = match store.acquire_lock(key, &once) {
        Ok(token) => (Lock::Free(token), Holder::current()),
        Err(Error::LockTimeout { holder: Some(holder), .. }) if holder == named(JOB) => (Lock::Jobs, holder),
        Err(Error::CorruptLock { .. }) => {
            match store.break_lock(key) {
                Ok(true) => {}
                other => return Err(format!("{key}: break_lock: {other:?}")),
            }
            (Lock::Corrupt, Holder::current())
        }
        Err(error) => return wrong("acquire", &error),
    };
    let seen = match store.read_as::<String>(key, reader.clone()) {
        Ok(None) => Seen::Absent,
        Ok(Some(record)) => Seen::Value(record.result),
        Err(Error::CorruptRecord { .. }) => Seen::Corrupt,
        Err(error) => return wrong("read", &error),
    };
    match store.exists(key) {
        Ok(exists) if exists == (seen != Seen::Absent) => {}
        other => return Err(format!("{key}: read as {seen:?}, but exists: {other:?}")),
    }
    if lock != Lock::Corrupt
        && let Err(error) = store.release_lock(key, reader)
    {
        return wrong("release", &error);
    }
    Ok(After { seen, lock })
}

/// The key is as good as new.
fn use_it(store: &FileSystemRecordStore, key: &str) -> Result<(), Error> {
    let guard = store.lock(key, as_named("next").acquire_timeout(Duration::ZERO))?;
    guard.write("next")?;
    assert_eq!(guard.read::<String>()?.expect("a record").result, "next", "{key}");
    guard.release()?;
    assert!(store.remove(key)?, "{key}");
    assert_eq!(store.lock_info(key)?, None, "{key}");
    Ok(())
}
