//! Listings: the store's directory, read as a stream.

use rustix::fs::{Dir, FileType};

use super::layout::{self, Context, Layout};
use crate::key::Stem;
use crate::{Key, Result};

/// Names of one kind of file in the store's directory.
pub(super) struct Names<'a> {
    layout: &'a Layout,
    dir: Dir,
    context: Context<'static>,
    /// Takes the suffix off a name that is of the kind.
    stem_of: fn(&str) -> Option<&str>,
    failed: bool,
}

/// One file of the kind.
pub(super) enum Entry {
    /// It is named for this key.
    Of(Key),
    /// Its stem is a hash: this is its name, and only the file knows the key.
    Hashed(String),
}

impl Entry {
    /// The name of a record file.
    pub(super) fn record_name(&self) -> String {
        match self {
            Entry::Of(key) => layout::record_name(key),
            Entry::Hashed(name) => name.clone(),
        }
    }

    /// The name of a lock file, and its key if the name tells it.
    pub(super) fn into_lock(self) -> (String, Option<Key>) {
        match self {
            Entry::Of(key) => (layout::lock_name(&key), Some(key)),
            Entry::Hashed(name) => (name, None),
        }
    }
}

impl<'a> Names<'a> {
    /// The record files.
    pub(super) fn records(layout: &'a Layout, context: Context<'static>) -> Result<Self> {
        Self::open(layout, context, layout::record_stem)
    }

    /// The lock files.
    pub(super) fn locks(layout: &'a Layout, context: Context<'static>) -> Result<Self> {
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
                    // The kernel would say the same for ever.
                    self.failed = true;
                    return Some(Err(self.context.io("list the directory", self.layout.root(), errno)));
                }
            };
            let Ok(name) = entry.file_name().to_str() else { continue };
            let Some(stem) = (self.stem_of)(name) else { continue };
            let key = match Stem::parse(stem) {
                Stem::Literal(key) => Some(key),
                Stem::Hashed => None,
                // Somebody else's file.
                Stem::Foreign => continue,
            };
            // Where the file system tells kinds only on request, the request is left to the user.
            if !matches!(entry.file_type(), FileType::RegularFile | FileType::Unknown) {
                let found = layout::irregular_type(entry.file_type()).unwrap_or("a device");
                let context = Context { operation: self.context.operation, key: key.as_ref() };
                return Some(Err(context.refused(
                    layout::Refusal::NotRegular(found),
                    "list",
                    self.layout.root().join(name),
                )));
            }
            return Some(Ok(key.map_or_else(|| Entry::Hashed(name.to_owned()), Entry::Of)));
        }
    }
}
