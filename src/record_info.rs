//! The description of a record in a listing.

use std::time::{Duration, SystemTime};

use crate::{Json, Key, RecordVersion};

/// A description of one record at one moment.
#[derive(Clone, Debug)]
pub struct RecordInfo {
    key: Key,
    version: RecordVersion,
    size: u64,
    modified: SystemTime,
    time_left: Option<Duration>,
    result: Option<Json>,
}

impl RecordInfo {
    /// A record that does not expire. Stores create these; the methods that begin with `with_` add the other parts.
    #[must_use]
    pub fn new(key: Key, version: RecordVersion, size: u64, modified: SystemTime) -> Self {
        Self { key, version, size, modified, time_left: None, result: None }
    }

    /// Sets how much of its time to live is left.
    #[must_use]
    pub fn with_time_left(mut self, time_left: impl Into<Option<Duration>>) -> Self {
        self.time_left = time_left.into();
        self
    }

    /// Sets its result.
    #[must_use]
    pub fn with_result(mut self, result: Json) -> Self {
        self.result = Some(result);
        self
    }

    /// The record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The version of the last write. [`write_if_version`](crate::RecordStoreExt::write_if_version) takes it.
    #[must_use]
    pub fn version(&self) -> RecordVersion {
        self.version
    }

    /// The bytes that the record occupies in the store: in a directory the size of its file, on a server that of its JSON
    /// text.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// When it was last written, by the writer's wall clock, or by that of the server.
    #[must_use]
    pub fn modified(&self) -> SystemTime {
        self.modified
    }

    /// How much of its time to live is left. `None`: it does not expire.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        self.time_left
    }

    /// Its result, if the listing was asked for [results](crate::ListOptions::results).
    #[must_use]
    pub fn result(&self) -> Option<&Json> {
        self.result.as_ref()
    }

    /// The key and the result.
    #[must_use]
    pub fn into_parts(self) -> (Key, Option<Json>) {
        (self.key, self.result)
    }
}

/// Which records are listed, and what is told of each.
///
/// The default lists all records, without their results.
///
/// ```
/// use record_store::{ListOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.write("report/monday", "done")?;
/// store.write("session/7", "signed in")?;
/// let reports: Vec<_> = store.records(ListOptions::new().prefix("report/"))?.collect::<Result<_, _>>()?;
/// assert_eq!(reports.len(), 1);
/// assert_eq!(reports[0].key(), "report/monday");
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until records are listed with them"]
pub struct ListOptions {
    prefix: String,
    results: bool,
}

impl ListOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lists only the records whose key begins with this text.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Reads the result of each record, too: the last committed one, whether the record is locked or not.
    pub fn results(mut self, results: bool) -> Self {
        self.results = results;
        self
    }

    /// The beginning of the keys.
    #[must_use]
    pub fn get_prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether the results are read.
    #[must_use]
    pub fn reads_results(&self) -> bool {
        self.results
    }
}
