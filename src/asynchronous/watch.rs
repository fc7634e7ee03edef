//! Watching a record for changes.

use std::time::Instant;

use super::AsyncRecordStore;
use super::wait::{or_none, timeout};
use crate::{IntoKey, Key, RecordChange, RecordStore, RecordVersion, Result, WaitOptions};

/// Watches one record, as a [`RecordWatch`](crate::RecordWatch) does: no change between two waits is missed.
/// Created by [`AsyncRecordStore::watch`].
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
#[derive(Debug)]
#[must_use = "a watch reports a change only when `next` is called"]
pub struct AsyncRecordWatch<S: ?Sized> {
    store: AsyncRecordStore<S>,
    key: Key,
    seen: RecordVersion,
}

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::watch", "a read")]
    pub async fn watch(&self, key: impl IntoKey) -> Result<AsyncRecordWatch<S>> {
        let key = key.into_key()?;
        let seen = self.short("watch", &key, |store, key| store.version(key)).await?;
        Ok(AsyncRecordWatch { store: self.clone(), key, seen })
    }

    #[doc = same_as!("RecordStoreExt::wait_for_record", "a read", "Only changes after the first poll count.")]
    pub async fn wait_for_record(&self, key: impl IntoKey, options: impl Into<WaitOptions>) -> Result<bool> {
        let (start, options) = (Instant::now(), options.into());
        let mut watch = self.watch(key).await?;
        loop {
            match watch.next(options.since(start)).await? {
                Some(RecordChange::Removed) => {}
                change => return Ok(change.is_some()),
            }
        }
    }
}

impl<S: RecordStore + ?Sized + 'static> AsyncRecordWatch<S> {
    /// The watched record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    #[doc = same_as!("RecordWatch::next", "the next call reports a change that this one did not")]
    pub async fn next(&mut self, options: impl Into<WaitOptions>) -> Result<Option<RecordChange>> {
        let (seen, options) = (self.seen, options.into());
        let wait = self.store.wait("watch", &self.key, &options, move |store, key, options| {
            Box::pin(async move {
                let changed = store.wait_for_change(key, seen, options).await?;
                changed.ok_or_else(|| timeout("watch", key))
            })
        });
        let Some(now) = or_none(wait.await)? else { return Ok(None) };
        let change = RecordChange::between(self.seen, now);
        self.seen = now;
        Ok(Some(change))
    }
}
