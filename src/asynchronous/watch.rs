//! Watching a record for changes.

use std::fmt;
use std::future::ready;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_core::Stream;

use super::AsyncRecordStore;
use super::wait::{Wait, or_none, timeout};
use crate::store::futures::RecordStoreFuture;
use crate::{IntoKey, Key, RecordChange, RecordStore, RecordVersion, Result, WaitOptions};

/// Watches one record, as a [`RecordWatch`](crate::RecordWatch) does: no change between two waits is missed.
/// Created by [`AsyncRecordStore::watch`].
///
/// It is also a [`Stream`] of these changes. The stream waits without a timeout and never ends;
/// [`next`](AsyncRecordWatch::next) takes a timeout and a cancellation. As in the blocking form, an error consumes no
/// change, and the watch can be used again: an error is an item, and the next poll tries again at once.
///
/// After a poll the stream waits, also while nobody polls it, until it is dropped or `next` is called: each of these ends
/// its wait, and the thread or the waiter of that wait.
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
///
/// // With the combinators of the crate `futures` or `tokio-stream`.
/// use futures_util::TryStreamExt;
/// store.remove("status").await?;
/// let is_removed = |change: &RecordChange| std::future::ready(*change == RecordChange::Removed);
/// let mut removals = watch.try_filter(is_removed);
/// assert!(removals.try_next().await?.is_some());
/// # Ok(())
/// # }
/// ```
#[must_use = "a watch reports a change only when `next` is called or the stream is polled"]
pub struct AsyncRecordWatch<S: ?Sized> {
    store: AsyncRecordStore<S>,
    key: Key,
    seen: RecordVersion,
    /// The wait of the stream.
    waiting: Option<Waiting>,
}

/// Waits for another version. `None` at the timeout.
type Waiting = RecordStoreFuture<'static, Option<RecordVersion>>;

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::watch", "a read")]
    pub async fn watch(&self, key: impl IntoKey) -> Result<AsyncRecordWatch<S>> {
        let key = key.into_key()?;
        let seen = self.short("watch", &key, |store, key| async move { store.version(&key).await }).await?;
        Ok(AsyncRecordWatch { store: self.clone(), key, seen, waiting: None })
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
        self.waiting = None;
        let changed = self.wait(options.into()).await;
        self.change(changed)
    }

    fn wait(&self, options: WaitOptions) -> Waiting {
        let (store, key, seen) = (self.store.clone(), self.key.clone(), self.seen);
        Box::pin(async move {
            let wait = Wait::new("watch", Some(&key), &options, store.futures());
            let changed = wait.run(ready(()), key, |store, key, options| async move {
                store.wait_for_change(&key, seen, options).await?.ok_or_else(|| timeout("watch"))
            });
            or_none(changed.await)
        })
    }

    /// The change that a wait has seen.
    fn change(&mut self, changed: Result<Option<RecordVersion>>) -> Result<Option<RecordChange>> {
        let Some(now) = changed? else { return Ok(None) };
        let change = RecordChange::between(self.seen, now);
        self.seen = now;
        Ok(Some(change))
    }
}

impl<S: RecordStore + ?Sized + 'static> Stream for AsyncRecordWatch<S> {
    type Item = Result<RecordChange>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut waiting = self.waiting.take().unwrap_or_else(|| self.wait(WaitOptions::new()));
        let Poll::Ready(changed) = waiting.as_mut().poll(context) else {
            self.waiting = Some(waiting);
            return Poll::Pending;
        };
        Poll::Ready(self.change(changed).transpose())
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for AsyncRecordWatch<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut watch = f.debug_struct("AsyncRecordWatch");
        watch.field("key", &self.key).field("seen", &self.seen).finish_non_exhaustive()
    }
}
