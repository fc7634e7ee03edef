//! Recovery by the store: a tree is materialized in memory, then the store in it is opened, read and used.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use record_store::{
    Error, ErrorKind, FileSystemRecordStore, Holder, LockInfo, LockOptions, ReadOptions, RecordStoreExt,
};
use tempfile::TempDir;

use super::disk::{DIRECTORY, IS, Interner, LINK, Tree, is_file};
use super::recorder::Event;
use super::sequences::{FOREIGN, Job, KEYS};
use crate::support::{as_named, names_in};

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
    Acquired,
    /// Held by a [`Job`], with this token and the lease of this number.
    Held(u64, usize),
    /// `CorruptLock`, until it was broken.
    Corrupt,
}

/// The state of a key after a power loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Recovered {
    pub(crate) read: ReadOutcome,
    pub(crate) lock: LockOutcome,
}

/// A directory in memory where trees are materialized, one after the other.
pub(crate) struct ScratchDir {
    dir: TempDir,
}

/// The recoveries that moved something aside that was no file of another program.
pub(crate) static MOVED_ASIDE: AtomicU64 = AtomicU64::new(0);

impl ScratchDir {
    pub(crate) fn new() -> Self {
        Self { dir: crate::support::in_memory() }
    }

    /// Opens the store in this tree and checks that it is usable. Also returns whether the recovery has changed a file.
    /// The error describes a failure that no guarantee allows.
    pub(crate) fn recover(
        &self,
        tree: &Tree,
        interner: &Interner,
        below: &str,
    ) -> Result<([Recovered; 2], bool), String> {
        materialize(self.dir.path(), tree, interner);
        let root = self.dir.path().join(below);
        let store = FileSystemRecordStore::open(&root).map_err(|error| format!("open: {error:?}"))?;
        for key in store.keys().map_err(|error| format!("keys: {error:?}"))? {
            key.map_err(|error| format!("keys: {error:?}"))?;
        }
        // Also with a clock that is behind, and although the memory that processes share is lost.
        let high = interner.high(tree);
        let recovered = [inspect(&store, KEYS[0], high)?, inspect(&store, KEYS[1], high)?];
        for key in KEYS {
            use_key(&store, key, high)?;
        }
        check_kept(tree, interner, &store)?;
        let private = root.join(".store");
        let staged = names_in(&private.join("staged"));
        if !staged.is_empty() || private.join("tmp").exists() || names_in(&private.join("owners")).len() != 1
        {
            return Err(format!("files of a dead process are left: {staged:?}"));
        }
        let last = store.last_recovery().map_err(|error| format!("last_recovery: {error:?}"))?;
        Ok((recovered, last.is_some()))
    }
}

/// Makes a directory contain this tree. Directories that are part of the last tree keep their identity: the process
/// keeps one owner open per store, and all trees have to be one store to it.
pub(crate) fn materialize(base: &Path, tree: &Tree, interner: &Interner) {
    let in_dir = |path: &str| base.join(path.trim_start_matches('/'));
    let mut dirs = Vec::new();
    for (path, _) in tree.iter().filter(|(_, image)| *image == DIRECTORY) {
        dirs.push(in_dir(&interner.path_of(*path)));
    }
    dirs.sort();
    clear(base, &dirs);
    for dir in dirs.iter().filter(|dir| !dir.exists()) {
        std::fs::create_dir(dir).unwrap();
    }
    for &(path, image) in tree {
        let path = interner.path_of(path);
        match image {
            DIRECTORY => {}
            LINK => {
                let (first, second) = path.split_once(IS).unwrap();
                std::fs::remove_file(in_dir(second)).unwrap();
                std::fs::hard_link(in_dir(first), in_dir(second)).unwrap();
            }
            image => interner.content_of(image).materialize(&in_dir(&path)),
        }
    }
}

/// Everything that is needed to reproduce a failure by hand: the events until the power failed, and the disk then.
pub(crate) fn describe(tree: &Tree, interner: &Interner, log: &[Event]) -> String {
    use std::fmt::Write;
    let mut text = "events until the power failed:\n".to_owned();
    for event in log {
        let mut line = format!("{event:?}");
        line.truncate(line.floor_char_boundary(200));
        writeln!(text, "  {line}").unwrap();
    }
    text.push_str("the disk holds:\n");
    for &(path, image) in tree {
        let content = if is_file(image) {
            let content = interner.content_of(image);
            let shown = &content.bytes()[..content.bytes().len().min(1_600)];
            let shown = String::from_utf8_lossy(shown).replace('\0', "");
            let zeros = content.len() - content.bytes().len();
            format!("{shown:?} of {} bytes, {zeros} zeros at the end", content.len())
        } else {
            if image == DIRECTORY { "a directory" } else { "one file" }.to_owned()
        };
        writeln!(text, "  {}: {content}", interner.path_of(path)).unwrap();
    }
    text
}

/// A file of another program is moved aside, wherever the power loss left it.
fn check_kept(tree: &Tree, interner: &Interner, store: &FileSystemRecordStore) -> Result<(), String> {
    let is_foreign = |image| is_file(image) && interner.content_of(image).bytes() == FOREIGN.as_bytes();
    let was_there = tree.iter().any(|&(_, image)| is_foreign(image));
    let kept: Vec<_> = store
        .damaged()
        .map_err(|error| format!("damaged: {error:?}"))?
        .iter()
        .map(|file| std::fs::read(&file.path).unwrap())
        .collect();
    let is_kept = kept.iter().any(|content| content == FOREIGN.as_bytes());
    MOVED_ASIDE.fetch_add(u64::from(kept.len() > usize::from(is_kept)), Ordering::Relaxed);
    if is_kept == was_there {
        Ok(())
    } else {
        Err(format!("a foreign file was there: {was_there}, but {kept:?} was kept"))
    }
}

/// Leases of normalized locks end in different years.
pub(crate) fn year_of_lease(lease: usize) -> usize {
    2_900 + lease
}

fn lease_of(info: &LockInfo) -> usize {
    let since = info.expires_at().unwrap().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    // In seconds: a year of the calendar, and half of it to round.
    let years = (since.as_secs() + 15_778_476) / 31_556_952;
    1_970 + usize::try_from(years).unwrap() - year_of_lease(0)
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

fn is_job(holder: Option<&Holder>) -> bool {
    Job::ALL.iter().any(|job| holder == Some(&job.holder()))
}

/// Acquires the lock, reads the record, and releases the lock.
fn inspect(store: &FileSystemRecordStore, key: &str, high: u64) -> Result<Recovered, String> {
    let once = LockOptions::new().acquire_timeout(Duration::ZERO);
    let wrong = |operation: &str, error: &Error| Err(format!("{key}: {operation}: {error:?}"));
    let (lock, reader) = match store.acquire_lock(key, once) {
        Ok(token) if token.get() <= high => {
            return Err(format!("{key}: the token {token} is not above {high}"));
        }
        Ok(_) => (LockOutcome::Acquired, Holder::current()),
        Err(error) if error.kind() == ErrorKind::LockTimeout && is_job(error.holder()) => {
            match store.lock_info(key) {
                Ok(Some(info)) => {
                    (LockOutcome::Held(info.token().get(), lease_of(&info)), info.holder().clone())
                }
                other => return Err(format!("{key}: lock_info: {other:?}")),
            }
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
fn use_key(store: &FileSystemRecordStore, key: &str, high: u64) -> Result<(), String> {
    let used = || -> Result<u64, Error> {
        let guard = store.lock(key, as_named("next").acquire_timeout(Duration::ZERO))?;
        guard.write("next")?;
        let record = guard.read::<String>()?.expect("a record");
        assert_eq!(record.result, "next", "{key}");
        guard.release()?;
        assert!(store.remove(key)?, "{key}");
        assert_eq!(store.lock_info(key)?, None, "{key}");
        Ok(record.version.number().expect("a version"))
    };
    let version = used().map_err(|error| format!("{key} is no longer usable: {error:?}"))?;
    if version > high { Ok(()) } else { Err(format!("{key}: the version {version} is not above {high}")) }
}
