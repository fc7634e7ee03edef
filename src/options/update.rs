//! How an update, or a result that is computed once, locks and writes.

use std::time::Duration;

use super::{LockOptions, WriteOptions};
use crate::Error;

/// How [`update`](crate::RecordStoreExt::update) and
/// [`get_or_compute`](crate::RecordStoreExt::get_or_compute) lock and write. [`LockOptions`] convert
/// into these.
///
/// ```
/// use std::time::Duration;
/// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt, UpdateOptions};
///
/// let store = MemoryRecordStore::new();
/// let options = UpdateOptions::new()
///     .lock(LockOptions::new().acquire_timeout(Duration::from_secs(5)))
///     .time_to_live(Duration::from_secs(3600));
/// let rate: f64 = store.get_or_compute("exchange-rate", options, || Ok(1.09))?;
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until an operation is called with them"]
pub struct UpdateOptions {
    lock: LockOptions,
    time_to_live: Option<Duration>,
    stale_for: Option<Duration>,
    corrupt_records: CorruptRecords,
}

/// A thousand years. With more of them, a record would never expire, and then it would never be stale either.
const MAX_STALE: Duration = Duration::from_hours(1_000 * 365 * 24);

/// How [`get_or_compute`](crate::RecordStoreExt::get_or_compute) treats a file in the place of the record that is no
/// record of the key: it is damaged, the record of another key, larger than the store's limit, or no regular file.
///
/// Two cases are an error in any case: a directory, which is not moved, and the record of a key that differs only in
/// case or Unicode form, because on some file systems both keys have this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CorruptRecords {
    /// Computes the result again, as if there were no record. The feature `tracing` reports it. A file store
    /// keeps the file: see [`damaged`](crate::FileSystemRecordStore::damaged).
    #[default]
    Recompute,
    /// Returns the error.
    Fail,
}

impl CorruptRecords {
    /// Whether the result is computed again after a read has failed with this error.
    #[must_use]
    pub fn recomputes(self, error: &Error) -> bool {
        self == Self::Recompute && error.is_no_record()
    }
}

impl UpdateOptions {
    /// The default options: those of [`LockOptions`], and a result that never expires. A damaged record is computed
    /// again.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acquires the lock with these options, but exclusively in any case.
    pub fn lock(mut self, options: LockOptions) -> Self {
        self.lock = options.exclusive();
        self
    }

    /// Gives the result a [time to live](WriteOptions::time_to_live).
    pub fn time_to_live(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.time_to_live = time.into();
        self
    }

    /// Keeps the result for this much longer than its [time to live](UpdateOptions::time_to_live). In this time it is
    /// stale: it can be read as before, and [`get_or_compute`](crate::RecordStoreExt::get_or_compute) gives it out while
    /// one caller computes the next one. So nobody else waits for the computation.
    ///
    /// All callers of a key need the same two times: a record does not say when it becomes stale, but only when it
    /// expires. Without a time to live, this has no meaning. More than a thousand years count as a thousand.
    ///
    /// ```
    /// use std::time::Duration;
    /// use record_store::{MemoryRecordStore, RecordStoreExt, UpdateOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// let moment = Duration::from_millis(1);
    /// let options = UpdateOptions::new().time_to_live(moment).stale_for(Duration::from_secs(3600));
    /// store.get_or_compute("exchange-rate", options.clone(), || Ok(1.09))?;
    /// std::thread::sleep(2 * moment);
    /// let rate = store.get_or_compute("exchange-rate", options.clone(), || {
    ///     // Until this caller is done, the others get the stale rate.
    ///     std::thread::scope(|threads| {
    ///         let other = threads.spawn(|| store.get_or_compute("exchange-rate", options, || Ok(9.99)));
    ///         assert_eq!(other.join().unwrap()?, 1.09);
    ///         Ok(1.10)
    ///     })
    /// })?;
    /// assert_eq!(rate, 1.10);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    pub fn stale_for(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.stale_for = time.into().map(|time| time.min(MAX_STALE));
        self
    }

    /// Sets what [`get_or_compute`](crate::RecordStoreExt::get_or_compute) does if the stored record is damaged.
    /// [`update`](crate::RecordStoreExt::update) returns the error in any case, because it needs the old result.
    pub fn corrupt_records(mut self, corrupt_records: CorruptRecords) -> Self {
        self.corrupt_records = corrupt_records;
        self
    }

    /// How the lock is acquired.
    pub fn get_lock(&self) -> &LockOptions {
        &self.lock
    }

    /// How long the result lives, without the time in which it is stale. `None`: forever.
    #[must_use]
    pub fn get_time_to_live(&self) -> Option<Duration> {
        self.time_to_live
    }

    /// How long the result is stale after its time to live. `None`: not at all.
    #[must_use]
    pub fn get_stale_for(&self) -> Option<Duration> {
        self.stale_for
    }

    /// The treatment of a damaged record.
    #[must_use]
    pub fn get_corrupt_records(&self) -> CorruptRecords {
        self.corrupt_records
    }

    /// The last part of the result's life, in which it is stale. `None`: it is always fresh.
    pub(crate) fn stale_time(&self) -> Option<Duration> {
        self.time_to_live.and(self.stale_for)
    }

    /// How the result is written. The acquire timeout is over by then, but a cancellation must not throw the
    /// result away: so the write waits forever.
    pub(crate) fn write(&self) -> WriteOptions {
        let stale_for = self.stale_for.unwrap_or_default();
        WriteOptions::new().time_to_live(self.time_to_live.map(|time| time.saturating_add(stale_for)))
    }
}

impl From<LockOptions> for UpdateOptions {
    fn from(lock: LockOptions) -> Self {
        Self::new().lock(lock)
    }
}
