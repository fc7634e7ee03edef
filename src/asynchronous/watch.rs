//! Watching a record for changes.

use std::fmt;
use std::sync::Arc;

use super::blocking::Wait;
use crate::{Key, RecordChange, RecordStore, RecordVersion, Result, WaitOptions};

/// Watches one record, as a [`RecordWatch`](crate::RecordWatch) does: no change between two waits is missed. Created by
/// [`AsyncRecordStore::watch`](super::AsyncRecordStore::watch).
///
/// ```
/// use record_store::asynchronous::AsyncRecordStore;
/// use record_store::{MemoryRecordStore, RecordChange, WaitOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> record_store::Result<()> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// let mut watch = store.watch("status").await?;
/// store.write("status", "building").await?;
/// assert_eq!(watch.next(WaitOptions::new()).await?, Some(RecordChange::Appeared));
/// # Ok(())
/// # }
/// ```
#[must_use = "a watch reports a change only when `next` is called"]
pub struct AsyncRecordWatch<S: ?Sized> {
    store: Arc<S>,
    key: Key,
    seen: RecordVersion,
}

impl<S: RecordStore + ?Sized + 'static> AsyncRecordWatch<S> {
    pub(super) fn new(store: Arc<S>, key: Key, seen: RecordVersion) -> Self {
        Self { store, key, seen }
    }

    /// The watched record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    #[doc = same_as!("RecordWatch::next", "the next call reports a change that this one did not")]
    pub async fn next(&mut self, options: impl Into<WaitOptions>) -> Result<Option<RecordChange>> {
        let wait = Wait::new("watch", Some(&self.key), &options.into());
        let (store, key, seen) = (Arc::clone(&self.store), self.key.clone(), self.seen);
        let call = move |options| store.wait_for_change_raw(&key, seen, options);
        let Some(now) = wait.run_or_none(call).await? else { return Ok(None) };
        let change = RecordChange::between(self.seen, now);
        self.seen = now;
        Ok(Some(change))
    }
}

impl<S: ?Sized> fmt::Debug for AsyncRecordWatch<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncRecordWatch")
            .field("key", &self.key)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}
