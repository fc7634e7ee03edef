//! What is known of a store: its live locks, and the records that were written last.
//!
//! Bounded, however large the store is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use record_store::{FileSystemRecordStore, Key, LockInfo, RecordStoreExt};
use rustix::fs::OFlags;

/// So many locks are known one by one; the others are counted only when the store is listed.
const MAX_LOCKS: usize = 1_000;
/// More rows than any window has.
const MAX_RECORDS: usize = 500;

/// What is known, by the names of the files.
#[derive(Default)]
pub(super) struct Model {
    pub(super) locks: BTreeMap<String, LockInfo>,
    /// Those beyond the bound.
    pub(super) more_locks: usize,
    records: BTreeMap<String, Written>,
    /// How many record files there are, as of the last listing.
    pub(super) count: u64,
}

/// A record that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) modified: SystemTime,
    pub(super) size: u64,
    inode: u64,
    pub(super) key: String,
}

/// What happened.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Locked(LockInfo),
    Unlocked(LockInfo, Cause),
    Written(Written),
    /// The record of this key.
    Removed(String),
}

/// Why a lock is no longer live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Released,
    Expired,
    Abandoned,
}

impl Model {
    /// Looks at one file, and tells what changed.
    pub(super) fn look(&mut self, store: &FileSystemRecordStore, name: &str) -> Vec<Change> {
        let path = store.path().join(name);
        if let Some(stem) = name.strip_suffix(".lock") {
            return self.look_at_lock(store, &path, name, stem);
        }
        let Some(stem) = name.strip_suffix(".json") else { return vec![] };
        let Some(about) = about(&path) else {
            let known = self.records.remove(name).map(|known| known.key);
            let key = known.or_else(|| Key::from_file_stem(stem).map(|key| key.as_str().to_owned()));
            // Of a key that is a hash only the file knows more.
            return vec![Change::Removed(key.unwrap_or_else(|| stem.to_owned()))];
        };
        let same = |known: &Written| {
            (known.modified, known.size, known.inode) == (about.modified, about.size, about.inode)
        };
        if self.records.get(name).is_some_and(same) {
            return vec![];
        }
        let Some(key) = key_of(&path, stem) else { return vec![] };
        let written = Written { key: key.as_str().to_owned(), ..about };
        self.remember(name, &written);
        vec![Change::Written(written)]
    }

    fn look_at_lock(
        &mut self,
        store: &FileSystemRecordStore,
        path: &Path,
        name: &str,
        stem: &str,
    ) -> Vec<Change> {
        let key = Key::from_file_stem(stem)
            .or_else(|| self.locks.get(name).map(|lock| lock.key().clone()))
            .or_else(|| key_of(path, stem));
        // What cannot be read now is looked at again when it changes.
        let now = key.and_then(|key| store.lock_info(&key).ok().flatten());
        let was = match &now {
            Some(lock) if self.locks.len() < MAX_LOCKS || self.locks.contains_key(name) => {
                self.locks.insert(name.to_owned(), lock.clone())
            }
            Some(_) => None,
            None => self.locks.remove(name),
        };
        let mut changes = Vec::new();
        let same = |a: &LockInfo, b: &LockInfo| (a.token(), a.holder()) == (b.token(), b.holder());
        if was.as_ref().zip(now.as_ref()).is_some_and(|(was, now)| same(was, now)) {
            return changes;
        }
        if let Some(was) = was {
            let cause = cause(&was, now.as_ref(), path);
            changes.push(Change::Unlocked(was, cause));
        }
        changes.extend(now.map(Change::Locked));
        changes
    }

    /// Keeps the record in mind, if it is one of the last.
    fn remember(&mut self, name: &str, written: &Written) {
        self.records.insert(name.to_owned(), written.clone());
        // Not at every turn: it takes a look at all.
        if self.records.len() >= 2 * MAX_RECORDS {
            let mut names: Vec<(SystemTime, String)> =
                self.records.iter().map(|(name, known)| (known.modified, name.clone())).collect();
            let (older, ..) = names.select_nth_unstable(MAX_RECORDS);
            for (_, name) in older {
                self.records.remove(name);
            }
        }
    }

    /// One file of a listing.
    pub(super) fn list(&mut self, store: &FileSystemRecordStore, name: &str) {
        if name.strip_suffix(".lock").is_some() {
            let full = self.locks.len() >= MAX_LOCKS && !self.locks.contains_key(name);
            self.more_locks += usize::from(full);
            if full {
                return;
            }
        } else if name.strip_suffix(".json").is_some() {
            self.count += 1;
        }
        self.look(store, name);
    }

    /// What changed since `old`, of which this is a new listing.
    pub(super) fn since(&self, old: &Model, store: &FileSystemRecordStore) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, was) in &old.locks {
            let now = self.locks.get(name);
            if now.is_none_or(|now| now.token() != was.token()) {
                changes.push(Change::Unlocked(was.clone(), cause(was, now, &store.path().join(name))));
            }
        }
        for (name, now) in &self.locks {
            if old.locks.get(name).is_none_or(|was| now.token() != was.token()) {
                changes.push(Change::Locked(now.clone()));
            }
        }
        // Of the others it is not known whether they are new.
        let latest = old.records.values().map(|known| known.modified).max();
        for (name, now) in &self.records {
            let new = match old.records.get(name) {
                Some(was) => was != now,
                None => latest.is_none_or(|latest| now.modified > latest),
            };
            if new {
                changes.push(Change::Written(now.clone()));
            }
        }
        for (name, was) in &old.records {
            if !self.records.contains_key(name) && about(&store.path().join(name)).is_none() {
                changes.push(Change::Removed(was.key.clone()));
            }
        }
        changes
    }

    /// The records that were written last, the last one first.
    pub(super) fn latest(&self, rows: usize) -> Vec<&Written> {
        let mut latest: Vec<&Written> = self.records.values().collect();
        latest.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.key.cmp(&b.key)));
        latest.truncate(rows);
        latest
    }
}

/// How a lock came to its end, as far as it can be told from what is left of it.
fn cause(was: &LockInfo, now: Option<&LockInfo>, path: &Path) -> Cause {
    if now.is_some() {
        // Another lock has taken its place, and nothing is left of it.
        return Cause::Released;
    }
    let over = was.expires_at().is_some_and(|end| end <= SystemTime::now());
    match key_inside(path) {
        _ if over => Cause::Expired,
        // A release leaves no lock in the file.
        None => Cause::Released,
        Some(_) if was.holder().is_process_bound() => Cause::Abandoned,
        // Its lease was cut short unseen.
        Some(_) => Cause::Expired,
    }
}

/// A record file, without its key. `None`: there is none.
fn about(path: &Path) -> Option<Written> {
    let about = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    let modified = about.modified().ok()?;
    Some(Written { modified, size: about.len(), inode: about.ino(), key: String::new() })
}

fn key_of(path: &Path, stem: &str) -> Option<Key> {
    Key::from_file_stem(stem).or_else(|| key_inside(path).filter(|key| key.file_stem() == stem))
}

/// The key inside a record or lock file, which begins with it. Small, whatever the file's size.
fn key_inside(path: &Path) -> Option<Key> {
    const ENOUGH: u64 = 64 * 1024;
    let safe = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(safe).open(path).ok()?;
    let mut text = Vec::new();
    file.take(ENOUGH).read_to_end(&mut text).ok()?;
    let rest = text.strip_prefix(b"{\"key\":")?;
    serde_json::Deserializer::from_slice(rest).into_iter::<Key>().next()?.ok()
}
