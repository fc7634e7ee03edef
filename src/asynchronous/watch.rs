//! Watching a record for changes.

use std::sync::Arc;
use std::time::Instant;

use super::wait::{or_none, timeout};
use super::{AsyncRecordStore, RecordStoreFuture, RecordStoreFutures};
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
        let version = self.short("watch", &key, S::version_raw, |futures, key| {
            Box::pin(async move { futures.version(&key).await })
        });
        let seen = version.await?;
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
        let seen = self.seen;
        let wait = move |store: &S, key: &Key, options| {
            store.wait_for_change_raw(key, seen, options)?.ok_or_else(|| timeout("watch", key))
        };
        let by_futures = move |futures: Arc<dyn RecordStoreFutures>, key: Key, options| {
            let wait = async move {
                let changed = futures.wait_for_change(&key, seen, options).await?;
                changed.ok_or_else(|| timeout("watch", &key))
            };
            Box::pin(wait) as RecordStoreFuture<'static, _>
        };
        let changed = self.store.wait("watch", &self.key, &options.into(), wait, by_futures).await;
        let Some(now) = or_none(changed)? else { return Ok(None) };
        let change = RecordChange::between(self.seen, now);
        self.seen = now;
        Ok(Some(change))
    }
}
