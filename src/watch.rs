//! Watching a record for changes.

use std::fmt;
use std::time::{Duration, Instant};

use crate::{Key, RecordStore, RecordVersion, Result, WaitOptions};

#[cfg(doc)]
use crate::ErrorKind;

/// How a watched record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordChange {
    /// There was none, and now there is.
    Appeared,
    /// It was written again.
    Changed,
    /// It was removed, or it expired.
    Removed,
}

impl RecordChange {
    /// The change between two different versions.
    pub(crate) fn between(seen: RecordVersion, now: RecordVersion) -> Self {
        match (seen.is_absent(), now.is_absent()) {
            (true, _) => RecordChange::Appeared,
            (false, true) => RecordChange::Removed,
            (false, false) => RecordChange::Changed,
        }
    }
}

/// Watches one record. Created by [`RecordStoreExt::watch`](crate::RecordStoreExt::watch).
///
/// It remembers the version that it last saw, so no change between two waits is missed. Of several changes
/// between two waits, only the last is reported. The watch reports that the record changed, not its result.
/// [Reading](crate::RecordStoreExt::read) it waits, as always, while another holder's lock is live.
///
/// ```
/// use std::time::Duration;
/// use record_store::{MemoryRecordStore, RecordChange, RecordStoreExt, WaitOptions};
///
/// let store = MemoryRecordStore::new();
/// let mut watch = store.watch("status")?;
/// assert_eq!(watch.next(Duration::ZERO)?, None);
/// store.write("status", "building")?;
/// assert_eq!(watch.next(WaitOptions::new())?, Some(RecordChange::Appeared));
/// store.write("status", "done")?;
/// assert_eq!(watch.next(WaitOptions::new())?, Some(RecordChange::Changed));
/// # Ok::<(), record_store::Error>(())
/// ```
#[must_use = "a watch reports a change only when `next` is called"]
pub struct RecordWatch<'a, S: RecordStore + ?Sized> {
    store: &'a S,
    key: Key,
    seen: RecordVersion,
}

impl<'a, S: RecordStore + ?Sized> RecordWatch<'a, S> {
    pub(crate) fn begin(store: &'a S, key: Key) -> Result<Self> {
        let seen = store.version_raw(&key)?;
        Ok(Self { store, key, seen })
    }

    /// The watched record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Waits until the record has another version than the last one that was seen, and returns how it
    /// changed. `Ok(None)` at the timeout. [`WaitOptions::new`] waits forever; a timeout of zero checks
    /// once.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Cancelled`], and as for [`RecordStoreExt::exists`](crate::RecordStoreExt::exists). The
    /// watch can be used again.
    pub fn next(&mut self, options: impl Into<WaitOptions>) -> Result<Option<RecordChange>> {
        let changed = self.store.wait_for_change_raw(&self.key, self.seen, options.into())?;
        let Some(now) = changed else { return Ok(None) };
        let change = RecordChange::between(self.seen, now);
        self.seen = now;
        Ok(Some(change))
    }

    /// See [`RecordStoreExt::wait_for_record`](crate::RecordStoreExt::wait_for_record).
    pub(crate) fn wait_for_record(&mut self, options: &WaitOptions) -> Result<bool> {
        let start = Instant::now();
        let left = |timeout: Duration| timeout.saturating_sub(start.elapsed());
        loop {
            match self.next(options.clone().timeout(options.get_timeout().map(left)))? {
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
