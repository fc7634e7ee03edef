//! The watcher's view of a store: its live locks and its most recently written records.
//!
//! The memory is bounded, independent of the size of the store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

use record_store::{FileSystemRecordStore, Key, LockInfo, LockState, RecordStoreExt};
use rustix::fs::OFlags;

/// The maximum number of locks in the view. A listing only counts the others.
const MAX_LOCKS: usize = 1_000;
/// The number of records that are kept: more than any window has rows.
const MAX_RECORDS: usize = 500;

/// The view of a store. The maps are keyed by file name, or by key where there are no files.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) locks: BTreeMap<String, LockInfo>,
    /// The number of listed locks beyond [`MAX_LOCKS`].
    pub(super) more_locks: usize,
    records: BTreeMap<String, Written>,
    /// Records were dropped because of [`MAX_RECORDS`].
    has_dropped: bool,
    /// The number of records in the last listing.
    pub(super) count: u64,
}

/// A version of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) modified: SystemTime,
    pub(super) size: u64,
    /// Of the file, or the version of the record.
    pub(super) inode: u64,
    pub(super) key: String,
}

/// A change of a store.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Locked(LockInfo),
    Unlocked(LockInfo, Cause),
    Written(Written),
    /// The key of the removed record.
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
    /// Reads one file, updates the view and returns the changes.
    pub(super) fn update(&mut self, store: &FileSystemRecordStore, name: &str) -> Vec<Change> {
        let path = store.path().join(name);
        if let Some(stem) = name.strip_suffix(".lock") {
            return self.update_lock(store, &path, name, stem);
        }
        let Some(stem) = name.strip_suffix(".json") else { return vec![] };
        let Some(found) = read_metadata(&path) else {
            let known = self.records.remove(name).map(|known| known.key);
            let key = known.or_else(|| Key::from_file_stem(stem).map(|key| key.as_str().to_owned()));
            // A name that is a hash does not contain the key. Without the file, only the stem is known.
            return vec![Change::Removed(key.unwrap_or_else(|| stem.to_owned()))];
        };
        let same = |known: &Written| {
            (known.modified, known.size, known.inode) == (found.modified, found.size, found.inode)
        };
        if self.records.get(name).is_some_and(same) {
            return vec![];
        }
        let Some(key) = find_key(&path, stem) else { return vec![] };
        let written = Written { key: key.as_str().to_owned(), ..found };
        self.remember(name, &written);
        vec![Change::Written(written)]
    }

    fn update_lock(
        &mut self,
        store: &FileSystemRecordStore,
        path: &Path,
        name: &str,
        stem: &str,
    ) -> Vec<Change> {
        let key = Key::from_file_stem(stem)
            .or_else(|| self.locks.get(name).map(|lock| lock.key().clone()))
            .or_else(|| find_key(path, stem));
        // A file that cannot be read now is read again when it changes.
        let now = key.and_then(|key| store.lock_info(&key).ok().flatten());
        let was = match &now {
            Some(lock) if self.locks.len() < MAX_LOCKS || self.locks.contains_key(name) => {
                self.locks.insert(name.to_owned(), lock.clone())
            }
            Some(_) => None,
            None => self.locks.remove(name),
        };
        let mut changes = Vec::new();
        add_lock_changes(was.as_ref(), now.as_ref(), |was, now| cause(was, now, path), &mut changes);
        changes
    }

    /// Adds the record. Drops the oldest records if there are too many.
    fn remember(&mut self, name: &str, written: &Written) {
        self.records.insert(name.to_owned(), written.clone());
        // Drops many records at a time, because this scans all of them.
        if self.records.len() >= 2 * MAX_RECORDS {
            let mut names: Vec<(SystemTime, String)> =
                self.records.iter().map(|(name, known)| (known.modified, name.clone())).collect();
            let (older, ..) = names.select_nth_unstable(MAX_RECORDS);
            for (_, name) in older {
                self.records.remove(name);
            }
            self.has_dropped = true;
        }
    }

    /// Adds one file of a listing.
    pub(super) fn add_listed(&mut self, store: &FileSystemRecordStore, name: &str) {
        if name.strip_suffix(".lock").is_some() {
            if !self.has_room_for_lock(name) {
                return;
            }
        } else if name.strip_suffix(".json").is_some() {
            self.count += 1;
        }
        self.update(store, name);
    }

    /// Whether this lock is kept. Counts one that is not.
    fn has_room_for_lock(&mut self, name: &str) -> bool {
        let is_full = self.locks.len() >= MAX_LOCKS && !self.locks.contains_key(name);
        self.more_locks += usize::from(is_full);
        !is_full
    }

    /// The changes from `old` to this view, which is a newer listing of the same directory.
    pub(super) fn changes_since(&self, old: &Model, store: &FileSystemRecordStore) -> Vec<Change> {
        let mut changes =
            self.lock_changes_since(old, |name, was, now| cause(was, now, &store.path().join(name)));
        changes
            .extend(self.record_changes_since(old, |name| read_metadata(&store.path().join(name)).is_none()));
        changes
    }

    /// The changes of locks from `old` to this view. `cause`: why a lock is no longer live.
    pub(super) fn lock_changes_since(
        &self,
        old: &Model,
        cause: impl Fn(&str, &LockInfo, Option<&LockInfo>) -> Cause,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let names: BTreeSet<&String> = old.locks.keys().chain(self.locks.keys()).collect();
        for name in names {
            let cause = |was: &LockInfo, now: Option<&LockInfo>| cause(name, was, now);
            add_lock_changes(old.locks.get(name), self.locks.get(name), cause, &mut changes);
        }
        changes
    }

    /// The changes of records from `old` to this view. `is_gone`: whether a record that is in this view no longer does not
    /// exist, or was only dropped because of the bound.
    pub(super) fn record_changes_since(&self, old: &Model, is_gone: impl Fn(&str) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        // An unknown record counts as written only if it is newer than all known records, where an older one may have
        // been dropped because of the bound.
        let latest = old.records.values().map(|known| known.modified).max();
        for (name, now) in &self.records {
            let new = match old.records.get(name) {
                Some(was) => was != now,
                None => !old.has_dropped || latest.is_none_or(|latest| now.modified > latest),
            };
            if new {
                changes.push(Change::Written(now.clone()));
            }
        }
        for (name, was) in &old.records {
            if !self.records.contains_key(name) && is_gone(name) {
                changes.push(Change::Removed(was.key.clone()));
            }
        }
        changes
    }

    /// The most recently written records, the newest first.
    pub(super) fn latest(&self, limit: usize) -> Vec<&Written> {
        let mut latest: Vec<&Written> = self.records.values().collect();
        latest.sort_by(|a, b| b.modified.cmp(&a.modified).then_with(|| a.key.cmp(&b.key)));
        latest.truncate(limit);
        latest
    }
}

/// A view that is made of listings.
#[cfg(feature = "postgres")]
impl Model {
    /// Adds a live lock of a listing.
    pub(super) fn add_lock(&mut self, lock: LockInfo) {
        let name = lock.key().as_str().to_owned();
        if self.has_room_for_lock(&name) {
            self.locks.insert(name, lock);
        }
    }

    /// Adds a record of a listing.
    pub(super) fn add_record(&mut self, written: &Written) {
        self.count += 1;
        self.remember(&written.key, written);
    }

    /// Takes over the locks of a newer listing.
    pub(super) fn take_locks_of(&mut self, newer: Model) {
        (self.locks, self.more_locks) = (newer.locks, newer.more_locks);
    }

    /// Takes over the records of a newer listing.
    pub(super) fn take_records_of(&mut self, newer: Model) {
        *self = Self { locks: std::mem::take(&mut self.locks), more_locks: self.more_locks, ..newer };
    }
}

/// Adds the changes of the holders of one lock.
fn add_lock_changes(
    was: Option<&LockInfo>,
    now: Option<&LockInfo>,
    cause: impl Fn(&LockInfo, Option<&LockInfo>) -> Cause,
    changes: &mut Vec<Change>,
) {
    let is_of = |lock: Option<&LockInfo>, other: &LockInfo| {
        held(lock).any(|it| (it.token(), it.holder()) == (other.token(), other.holder()))
    };
    let ended = held(was).filter(|was| !is_of(now, was));
    changes.extend(ended.map(|was| Change::Unlocked(was.clone(), cause(was, now))));
    let begun = held(now).filter(|now| !is_of(was, now));
    changes.extend(begun.map(|now| Change::Locked(now.clone())));
}

/// The holders of a lock that have it.
pub(super) fn held(lock: Option<&LockInfo>) -> impl Iterator<Item = &LockInfo> {
    lock.into_iter().flat_map(LockInfo::holders).filter(|it| it.state() == LockState::Held)
}

/// The reason why a holder has no longer the lock, derived from the current lock file. Best effort.
fn cause(was: &LockInfo, now: Option<&LockInfo>, path: &Path) -> Cause {
    let is_expired = was.expires_at().is_some_and(|end| end <= SystemTime::now());
    if let Some(now) = now {
        // The acquisition of a killed process stays in a shared lock until that changes.
        let state = now.holders().find(|it| it.token() == was.token()).map(LockInfo::state);
        return match state {
            Some(LockState::Abandoned) => Cause::Abandoned,
            Some(LockState::Expired) => Cause::Expired,
            _ if now.is_shared() && is_expired => Cause::Expired,
            // A new lock has replaced it, so the reason is unknown.
            _ => Cause::Released,
        };
    }
    match read_key(path) {
        _ if is_expired => Cause::Expired,
        // A release leaves no lock in the file.
        None => Cause::Released,
        Some(_) if was.holder().is_process_bound() => Cause::Abandoned,
        // The lease was shortened after the last read of the lock.
        Some(_) => Cause::Expired,
    }
}

/// The metadata of a record file, with an empty key. `None` if there is no such file.
fn read_metadata(path: &Path) -> Option<Written> {
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    let modified = metadata.modified().ok()?;
    Some(Written { modified, size: metadata.len(), inode: metadata.ino(), key: String::new() })
}

fn find_key(path: &Path, stem: &str) -> Option<Key> {
    Key::from_file_stem(stem).or_else(|| read_key(path).filter(|key| key.file_stem() == stem))
}

/// Reads the key from the beginning of a record or lock file. Reads at most `MAX_BYTES`.
fn read_key(path: &Path) -> Option<Key> {
    const MAX_BYTES: u64 = 64 * 1024;
    // Does not follow a symbolic link and does not block on a named pipe.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path).ok()?;
    let mut text = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut text).ok()?;
    let rest = text.strip_prefix(b"{\"key\":")?;
    serde_json::Deserializer::from_slice(rest).into_iter::<Key>().next()?.ok()
}
