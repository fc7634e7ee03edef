//! Listings: the names in the store's directory, as a stream.

use rustix::fs::{Dir, FileType};

use super::layout::{self, Layout, Refusal};
use crate::filesystem::context::Context;
use crate::key::Stem;
use crate::{Key, Result};

/// The names of one kind of file in the store's directory.
pub(crate) struct Names<'a> {
    layout: &'a Layout,
    dir: Dir,
    context: Context<'static>,
    /// Removes the suffix of the kind from a name.
    stem_of: fn(&str) -> Option<&str>,
    failed: bool,
}

/// One file of the kind.
pub(crate) enum Entry {
    /// The name says the key.
    Literal(Key),
    /// The stem of this name is a hash, and only the file contains the key.
    Hashed(String),
}

impl Entry {
    /// The name of a record file.
    pub(crate) fn record_name(&self) -> String {
        match self {
            Entry::Literal(key) => layout::record_name(key),
            Entry::Hashed(name) => name.clone(),
        }
    }

    /// The name of a lock file, and the key if the name says it.
    pub(crate) fn into_lock(self) -> (String, Option<Key>) {
        match self {
            Entry::Literal(key) => (layout::lock_name(&key), Some(key)),
            Entry::Hashed(name) => (name, None),
        }
    }
}

impl<'a> Names<'a> {
    /// The record files.
    pub(crate) fn records(layout: &'a Layout, context: Context<'static>) -> Result<Self> {
        Self::open(layout, context, layout::record_stem)
    }

    /// The lock files.
    pub(crate) fn locks(layout: &'a Layout, context: Context<'static>) -> Result<Self> {
        Self::open(layout, context, layout::lock_stem)
    }

    fn open(
        layout: &'a Layout,
        context: Context<'static>,
        stem_of: fn(&str) -> Option<&str>,
    ) -> Result<Self> {
        let dir = layout::list(&layout.dir)
            .map_err(|errno| context.io("list the directory", layout.root(), errno))?;
        Ok(Self { layout, dir, context, stem_of, failed: false })
    }
}

impl Iterator for Names<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        loop {
            let entry = match self.dir.read()? {
                Ok(entry) => entry,
                Err(errno) => {
                    // A second attempt would fail in the same way, forever.
                    self.failed = true;
                    return Some(Err(self.context.io("list the directory", self.layout.root(), errno)));
                }
            };
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some(stem) = (self.stem_of)(name) else { continue };
            let key = match Stem::parse(stem) {
                Stem::Literal(key) => Some(key),
                Stem::Hashed => None,
                // Not a file of this crate.
                Stem::Foreign => continue,
            };
            // Some file systems do not report the kind in a listing. Then it is checked when the file is opened.
            if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
                let found = layout::irregular_type(entry.file_type()).unwrap_or("a device");
                let context = Context { operation: self.context.operation, key: key.as_ref() };
                let path = self.layout.root().join(name);
                return Some(Err(Refusal::NotRegular(found).into_error(context, "list", path)));
            }
            return Some(Ok(key.map_or_else(|| Entry::Hashed(name.to_owned()), Entry::Literal)));
        }
    }
}
