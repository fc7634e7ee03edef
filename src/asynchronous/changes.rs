//! Watching a whole store for changes.

use std::fmt;
use std::future::ready;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_core::Stream;
use tokio::sync::Mutex;

use super::AsyncRecordStore;
use super::blocking::Thread;
use super::wait::{Wait, or_none, timeout};
use crate::changes::CHANGES;
use crate::process::ProcessId;
use crate::store::futures::RecordStoreFuture;
use crate::{Change, ChangesOptions, RecordStore, Result, SeenRecords, WaitOptions};

/// Watches all records of a store, as [`StoreChanges`](crate::StoreChanges) does: no change between two waits is missed.
/// Created by [`AsyncRecordStore::changes`].
///
/// It is also a [`Stream`] of these changes. The stream waits without a timeout and never ends;
/// [`next`](AsyncStoreChanges::next) takes a timeout and a cancellation. An error consumes no change: it is an item, and
/// the next poll tries again at once.
///
/// After a poll the stream waits, also while nobody polls it, until it is dropped or `next` is called: each of these ends
/// its wait, and the thread or the waiter of that wait. A forked child begins to watch anew.
///
/// ```
/// use record_store::asynchronous::AsyncRecordStore;
/// use record_store::{ChangesOptions, MemoryRecordStore, RecordChange, WaitOptions};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> record_store::Result<()> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// let mut changes = store.changes(ChangesOptions::new()).await?;
/// store.write("status", "building").await?;
/// let change = changes.next(WaitOptions::new()).await?.expect("there is no timeout");
/// assert_eq!((change.key.as_str(), change.change), ("status", RecordChange::Appeared));
///
/// // With the combinators of the crate `futures` or `tokio-stream`.
/// use futures_util::TryStreamExt;
/// store.remove("status").await?;
/// assert_eq!(changes.try_next().await?.expect("it never ends").change, RecordChange::Removed);
/// # Ok(())
/// # }
/// ```
#[must_use = "a watch reports a change only when `next` is called or the stream is polled"]
pub struct AsyncStoreChanges<S: ?Sized> {
    store: AsyncRecordStore<S>,
    options: ChangesOptions,
    seen: Seen,
    /// The mutex of a parent may be locked by a thread that does not exist here.
    process: ProcessId,
    /// The wait of the stream.
    waiting: Option<Waiting>,
}

type Seen = Arc<Mutex<SeenRecords>>;

/// Waits until there is a change. `None` at the timeout.
type Waiting = RecordStoreFuture<'static, Option<()>>;

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::changes", "a read")]
    pub async fn changes(&self, options: ChangesOptions) -> Result<AsyncStoreChanges<S>> {
        let mut seen = SeenRecords::new(options.clone());
        // If this future is dropped, it ends the call.
        let wait = Wait::new(CHANGES, None, &WaitOptions::new(), self.futures());
        let rest = wait.rest();
        let begin = self.call(CHANGES, None, Thread::try_start, |store| async move {
            store.changes(&mut seen, rest).await?;
            Ok(Arc::new(Mutex::new(seen)))
        });
        let (seen, process) = (begin.await?, ProcessId::current());
        Ok(AsyncStoreChanges { store: self.clone(), options, seen, process, waiting: None })
    }
}

impl<S: RecordStore + ?Sized + 'static> AsyncStoreChanges<S> {
    #[doc = same_as!("StoreChanges::next", "the next call reports a change that this one did not")]
    pub async fn next(&mut self, options: impl Into<WaitOptions>) -> Result<Option<Change>> {
        let (start, options) = (Instant::now(), options.into());
        self.waiting = None;
        loop {
            if let Some(cancellation) = options.get_cancellation() {
                cancellation.check(CHANGES, None)?;
            }
            if let Some(change) = self.known_change() {
                return Ok(Some(change));
            }
            if self.wait(options.since(start)).await?.is_none() {
                return Ok(None);
            }
        }
    }

    /// A change that a wait has noted, unless a wait that was dropped is just ending.
    fn known_change(&mut self) -> Option<Change> {
        self.seen().try_lock().ok()?.next_change()
    }

    fn seen(&mut self) -> &Seen {
        if !self.process.is_here() {
            self.seen = Arc::new(Mutex::new(SeenRecords::new(self.options.clone())));
            self.process = ProcessId::current();
            self.waiting = None;
        }
        &self.seen
    }

    fn wait(&mut self, options: WaitOptions) -> Waiting {
        let (store, seen) = (self.store.clone(), Arc::clone(self.seen()));
        Box::pin(async move {
            let wait = Wait::new(CHANGES, None, &options, store.futures());
            // The call of a wait that was dropped may still use what was seen. It is cancelled, and ends soon.
            let seen = wait.until(pin!(seen.lock_owned()), wait.left()).await?;
            let Some(seen) = seen else { return Ok(None) };
            let changed = wait.run(ready(()), Mutex::new(seen), |store, seen, options| async move {
                let has_changes = store.changes(&mut *seen.lock().await, options).await?;
                has_changes.then_some(()).ok_or_else(|| timeout(CHANGES))
            });
            or_none(changed.await)
        })
    }
}

impl<S: RecordStore + ?Sized + 'static> Stream for AsyncStoreChanges<S> {
    type Item = Result<Change>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(change) = self.known_change() {
                return Poll::Ready(Some(Ok(change)));
            }
            let mut waiting = self.waiting.take().unwrap_or_else(|| self.wait(WaitOptions::new()));
            let Poll::Ready(waited) = waiting.as_mut().poll(context) else {
                self.waiting = Some(waiting);
                return Poll::Pending;
            };
            if let Err(error) = waited {
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

impl<S: fmt::Debug + ?Sized> fmt::Debug for AsyncStoreChanges<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncStoreChanges").field("options", &self.options).finish_non_exhaustive()
    }
}
