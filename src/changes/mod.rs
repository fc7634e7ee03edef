//! Watching a whole store for changes.

mod alarm;
mod expiries;
pub(crate) mod polling;
mod seen;

use std::fmt;
use std::time::Instant;

pub(crate) use alarm::Alarm;
pub(crate) use expiries::Expiries;
pub use seen::SeenRecords;

use crate::{Key, RecordChange, RecordStore, RecordVersion, Result, WaitOptions};

#[cfg(doc)]
use crate::{ErrorKind, RecordStoreExt, RecordWatch};

/// The name of the operation, in errors.
pub(crate) const CHANGES: &str = "changes";

/// A change of one record of a store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Change {
    /// The record's key.
    pub key: Key,
    /// How the record changed.
    pub change: RecordChange,
    /// The version of the record now, or [`RecordVersion::ABSENT`].
    pub version: RecordVersion,
}

/// Which changes a watch of a store reports.
///
/// The default reports those of all records.
///
/// ```
/// use std::time::Duration;
/// use record_store::{ChangesOptions, MemoryRecordStore, RecordStoreExt, WaitOptions};
///
/// let store = MemoryRecordStore::new();
/// let mut changes = store.changes(ChangesOptions::new().prefix("report/"))?;
/// store.write("session/7", "signed in")?;
/// store.write("report/monday", "done")?;
/// let change = changes.next(WaitOptions::new())?.expect("there is no timeout");
/// assert_eq!(change.key, "report/monday");
/// assert_eq!(changes.next(Duration::ZERO)?, None);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a store is watched with them"]
pub struct ChangesOptions {
    prefix: String,
}

impl ChangesOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports only the changes of records whose key begins with this text.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// The beginning of the keys.
    #[must_use]
    pub fn get_prefix(&self) -> &str {
        &self.prefix
    }
}

/// Watches all records of a store. Created by [`RecordStoreExt::changes`].
///
/// It remembers the version of each record, so no change between two calls is missed: a record that differs from what was
/// reported last is reported in the end. Of several changes of one record between two calls, only the last is reported,
/// and nothing if the record is as before: it appeared and is gone again. The changes of one record are
/// reported in their order, and those of different records in no particular one. A change is reported once it is
/// [durable](crate::guide::durability), unless the store is relaxed.
///
/// Locks do not matter. The changes of a lock's holder are reported when they are made, as [`RecordWatch`] does, and
/// not when the lock is released. [Reading](RecordStoreExt::read) such a record waits, as always.
///
/// It is also an [`Iterator`], which waits without a timeout and never ends. An error is an item, and the next call
/// tries again.
///
/// ```
/// use record_store::{ChangesOptions, MemoryRecordStore, RecordChange, RecordStoreExt, WaitOptions};
///
/// let store = MemoryRecordStore::new();
/// let mut changes = store.changes(ChangesOptions::new())?;
/// store.write("a", &1)?;
/// store.write("b", &1)?;
/// store.write("a", &2)?;
/// let change = changes.next(WaitOptions::new())?.expect("there is no timeout");
/// assert_eq!((change.key.as_str(), change.change), ("a", RecordChange::Appeared));
/// store.remove("a")?;
/// for change in changes.by_ref().take(2) {
///     let change = change?;
///     println!("{}: {:?}", change.key, change.change);
/// }
/// # Ok::<(), record_store::Error>(())
/// ```
///
/// # Costs
///
/// The memory for each record is the text of its key and about 200 bytes, with a prefix only for the records that
/// have it. The first call and some later ones list the store: [the guide](crate::guide::watching) says when.
#[must_use = "a watch reports a change only when `next` is called"]
pub struct StoreChanges<'a, S: RecordStore + ?Sized> {
    store: &'a S,
    seen: SeenRecords,
}

impl<'a, S: RecordStore + ?Sized> StoreChanges<'a, S> {
    pub(crate) fn begin(store: &'a S, options: ChangesOptions) -> Result<Self> {
        let mut seen = SeenRecords::new(options);
        store.changes_raw(&mut seen, WaitOptions::new())?;
        Ok(Self { store, seen })
    }

    /// The next change. Waits until there is one. `Ok(None)` at the timeout. [`WaitOptions::new`] waits forever; a
    /// timeout of zero does not wait.
    ///
    /// A store that has to list its records to find a change goes on with the listing in the next call, if the timeout is
    /// over before.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`RecordStoreExt::records`]. The watch can be used again: an error
    /// consumes no change.
    pub fn next(&mut self, options: impl Into<WaitOptions>) -> Result<Option<Change>> {
        let (start, options) = (Instant::now(), options.into());
        loop {
            if let Some(cancellation) = options.get_cancellation() {
                cancellation.check(CHANGES, None)?;
            }
            if let Some(change) = self.seen.next_change() {
                return Ok(Some(change));
            }
            if !self.store.changes_raw(&mut self.seen, options.since(start))? {
                return Ok(None);
            }
        }
    }
}

impl<S: RecordStore + ?Sized> Iterator for StoreChanges<'_, S> {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        StoreChanges::next(self, WaitOptions::new()).transpose()
    }
}

impl<S: RecordStore + ?Sized> fmt::Debug for StoreChanges<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreChanges").field("seen", &self.seen).finish_non_exhaustive()
    }
}
