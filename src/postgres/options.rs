//! How a store on a PostgreSQL server is opened.

use std::time::Duration;

use super::PostgresRecordStore;
use crate::Result;

/// How a [`PostgresRecordStore`] is opened.
///
/// ```no_run
/// use std::time::Duration;
/// use record_store::{PostgresOptions, PostgresRecordStore};
///
/// let options = PostgresOptions::new().schema("jobs").patience(Duration::from_secs(5));
/// let store = PostgresRecordStore::connect("postgres://app@db.example/app?sslmode=verify-full", options)?;
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "options do nothing until a store is opened with them"]
pub struct PostgresOptions {
    pub(super) schema: Option<String>,
    pub(super) creates: bool,
    pub(super) patience: Duration,
    pub(super) connections: usize,
    pub(super) max_record_bytes: u64,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self {
            schema: None,
            creates: true,
            patience: Duration::from_secs(10),
            connections: 8,
            max_record_bytes: 64 << 20,
        }
    }
}

impl PostgresOptions {
    /// The default options: the schema `record_store`, made if it is missing, and 10 s of patience.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the schema of the database in which the store is. A database has as many stores as schemas. The
    /// parameter `schema` of a URL says the same; this option wins.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Sets that the store must exist: if it does not,
    /// [`connect`](PostgresRecordStore::connect) fails with
    /// [`ErrorKind::NotAStore`](crate::ErrorKind::NotAStore).
    pub fn existing(mut self) -> Self {
        self.creates = false;
        self
    }

    /// Sets how long a call waits for the server to be reached and to answer, where the call has no earlier
    /// timeout of its own. A restart of the server that takes less long is no error, unless an answer is lost.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience.max(Duration::from_millis(1));
        self
    }

    /// Sets how many calls of this process can be at the server at the same time. Each needs a connection, made
    /// when it is first needed. A call that waits for a lock needs none. One more connection stands for the process.
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections.clamp(1, 1_000);
        self
    }

    /// Sets the largest result in bytes. Larger ones are not written
    /// ([`ErrorKind::RecordTooLarge`](crate::ErrorKind::RecordTooLarge)). The default is 64 MiB, and the server
    /// itself stores no more than about 1 GiB.
    pub fn max_record_bytes(mut self, bytes: u64) -> Self {
        self.max_record_bytes = bytes;
        self
    }

    /// Opens the store. See [`PostgresRecordStore::connect`].
    ///
    /// # Errors
    ///
    /// As for [`PostgresRecordStore::connect`].
    pub fn connect(self, url: &str) -> Result<PostgresRecordStore> {
        PostgresRecordStore::connect(url, self)
    }
}
