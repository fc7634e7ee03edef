//! The files that a change has moved aside, because they were in the place of a record or a lock and were
//! neither.

use std::io::{self, Write as _};

use record_store::{DamagedFile, FileSystemRecordStore, Key};

use crate::style::printable;

/// Prints, when it is dropped, where the files of a key are that were moved aside meanwhile.
#[must_use = "it watches until it is dropped"]
pub(crate) struct Damaged {
    store: FileSystemRecordStore,
    /// The names of the key's files. `None`: of all keys.
    names: Option<[String; 2]>,
    before: Vec<DamagedFile>,
}

impl Damaged {
    pub(crate) fn watch(store: &FileSystemRecordStore, key: Option<&Key>) -> Self {
        let names = key.map(|key| [".json", ".lock"].map(|suffix| format!("{}{suffix}", key.file_stem())));
        // Best effort: the change itself is not affected.
        Self { store: store.clone(), names, before: store.damaged().unwrap_or_default() }
    }
}

impl Drop for Damaged {
    fn drop(&mut self) {
        for file in self.store.damaged().unwrap_or_default() {
            let is_meant = self.names.as_ref().is_none_or(|names| names.contains(&file.original_name));
            if is_meant && !self.before.contains(&file) {
                let path = file.path.display();
                warn(&format!("{} was damaged or foreign, and is kept as {path}", file.original_name));
            }
        }
    }
}

/// Prints a warning on standard error.
pub(crate) fn warn(message: &str) {
    // Ignores write errors, because standard error may be closed.
    let _ = writeln!(io::stderr(), "record-store: warning: {}", printable(message));
}
