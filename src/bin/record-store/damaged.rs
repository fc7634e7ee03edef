//! The files that a change has moved aside, because they were in the place of a record or a lock and were
//! neither.

use std::path::Path;

use record_store::{DamagedFile, FileSystemOptions, FileSystemRecordStore, Key, OpenMode};

use crate::remarks::remark;
use crate::store::Store;

/// The files that were already moved aside at one moment.
pub(crate) struct Before(Vec<DamagedFile>);

impl Before {
    /// Best effort: the change itself is not affected.
    fn of(store: &FileSystemRecordStore) -> Self {
        Self(store.damaged().unwrap_or_default())
    }

    /// Call this before the store is opened for writing: that moves aside what dead processes have displaced. To
    /// open it for reading moves nothing.
    pub(crate) fn open(dir: &Path) -> Self {
        let store = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir);
        Self(store.and_then(|store| store.damaged()).unwrap_or_default())
    }

    /// Prints where the files are that were moved aside since then. Returns how many.
    pub(crate) fn warn_of_new(&self, store: &FileSystemRecordStore) -> usize {
        self.warn_of(store, |_| true)
    }

    fn warn_of(&self, store: &FileSystemRecordStore, is_meant: impl Fn(&DamagedFile) -> bool) -> usize {
        let mut now = store.damaged().unwrap_or_default();
        now.retain(|file| !self.0.contains(file) && is_meant(file));
        for DamagedFile { original_name, path, .. } in &now {
            warn(&format!("{original_name} was damaged or foreign, and is kept as {}", path.display()));
        }
        now.len()
    }
}

/// Prints, when it is dropped, where the files of a key are that were moved aside meanwhile.
#[must_use = "it watches until it is dropped"]
pub(crate) struct Damaged {
    /// `None`: nothing is moved aside on a server.
    store: Option<FileSystemRecordStore>,
    /// The names of the key's files. `None`: of all keys.
    names: Option<[String; 2]>,
    before: Before,
}

impl Damaged {
    pub(crate) fn watch(store: &Store, key: Option<&Key>) -> Self {
        let names = key.map(|key| [".json", ".lock"].map(|suffix| format!("{}{suffix}", key.file_stem())));
        let store = store.files().cloned();
        let before = store.as_ref().map_or(Before(Vec::new()), Before::of);
        Self { store, names, before }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        let is_meant =
            |file: &DamagedFile| self.names.as_ref().is_none_or(|names| names.contains(&file.original_name));
        if let Some(store) = &self.store {
            self.before.warn_of(store, is_meant);
        }
    }
}

/// Prints a warning on standard error, unless only errors are wanted.
pub(crate) fn warn(message: &str) {
    remark(&format!("warning: {message}"));
}
