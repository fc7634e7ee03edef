//! Watching a record.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Key, RecordStore, Result};

/// The state of a record at a look: absent, or one of its versions. Two looks that find the same
/// find equal versions; after each write the version is another, also where the result is not.
///
/// Stores make these; nobody else can tell what is in them.
#[derive(Clone)]
pub struct RecordVersion {
    numbers: Option<[u64; 4]>,
    /// What keeps the numbers from being given to another version.
    kept: Option<Arc<dyn Any + Send + Sync>>,
}

impl RecordVersion {
    /// There is no record.
    #[must_use]
    pub fn absent() -> Self {
        Self { numbers: None, kept: None }
    }

    /// A record that a store tells from its other versions by these numbers.
    #[must_use]
    pub fn new(numbers: [u64; 4]) -> Self {
        Self { numbers: Some(numbers), kept: None }
    }

    /// Keeps something for as long as the version: an open file, for example, whose inode number no
    /// other file has meanwhile.
    #[must_use]
    pub fn keeping(mut self, kept: impl Any + Send + Sync) -> Self {
        self.kept = Some(Arc::new(kept));
        self
    }

    /// True if there was no record.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.numbers.is_none()
    }

    /// The numbers, unless there was no record.
    #[must_use]
    pub fn numbers(&self) -> Option<[u64; 4]> {
        self.numbers
    }
}

impl PartialEq for RecordVersion {
    fn eq(&self, other: &Self) -> bool {
        self.numbers == other.numbers
    }
}

impl Eq for RecordVersion {}

impl fmt::Debug for RecordVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RecordVersion").field(&self.numbers).finish()
    }
}

/// What became of a watched record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordChange {
    /// There was none, and now there is.
    Appeared,
    /// It was written again.
    Changed,
    /// It was removed, or its time to live is over.
    Removed,
}

impl RecordChange {
    /// What became of a record that is not as it was seen.
    pub(crate) fn between(seen: &RecordVersion, now: &RecordVersion) -> Self {
        match (seen.is_absent(), now.is_absent()) {
            (true, _) => RecordChange::Appeared,
            (false, true) => RecordChange::Removed,
            (false, false) => RecordChange::Changed,
        }
    }
}

/// Watches one record, by [`RecordStoreExt::watch`](crate::RecordStoreExt::watch).
///
/// Remembers the state that it last saw, so nothing that happens between two waits is missed. Of
/// several changes between two looks only the last is told. What is told is that the record changed;
/// to [read](crate::RecordStoreExt::read) it is up to the caller, and then as always: a read waits
/// while another holder's lock is live.
///
/// ```
/// use std::time::Duration;
/// use record_store::{MemoryRecordStore, RecordChange, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// let mut watch = store.watch("status")?;
/// assert_eq!(watch.next(Some(Duration::ZERO))?, None);
/// store.write("status", "building")?;
/// assert_eq!(watch.next(None)?, Some(RecordChange::Appeared));
/// store.write("status", "done")?;
/// assert_eq!(watch.next(None)?, Some(RecordChange::Changed));
/// # Ok::<(), record_store::Error>(())
/// ```
#[must_use = "a watch tells only what it is asked for"]
pub struct RecordWatch<'a, S: RecordStore + ?Sized> {
    store: &'a S,
    key: Key,
    seen: RecordVersion,
}

impl<'a, S: RecordStore + ?Sized> RecordWatch<'a, S> {
    pub(crate) fn begin(store: &'a S, key: Key) -> Result<Self> {
        let seen = store.record_version(&key)?;
        Ok(Self { store, key, seen })
    }

    /// The watched record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Waits until the record is not as it was last seen, and tells what became of it: `None` when
    /// the time is up first. A timeout of `None` waits for ever; zero looks once.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::exists`](crate::RecordStoreExt::exists). The watch can go on.
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<RecordChange>> {
        let Some(now) = self.store.wait_for_change(&self.key, &self.seen, timeout)? else { return Ok(None) };
        let change = RecordChange::between(&self.seen, &now);
        self.seen = now;
        Ok(Some(change))
    }

    /// See [`RecordStoreExt::wait_for_record`](crate::RecordStoreExt::wait_for_record).
    pub(crate) fn wait_for_record(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            match self.next(left)? {
                None => return Ok(false),
                Some(RecordChange::Removed) => {}
                Some(RecordChange::Appeared | RecordChange::Changed) => return Ok(true),
            }
        }
    }
}

impl<S: RecordStore + ?Sized> fmt::Debug for RecordWatch<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordWatch")
            .field("key", &self.key)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}
