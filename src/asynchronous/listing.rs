//! Listings.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::vec;

use futures_core::Stream;
use tokio::sync::mpsc;
use tokio::task::yield_now;

use super::blocking::{Outcome, Thread};
use super::{AsyncRecordStore, Futures};
use crate::{Listing, RecordStore, Result};

/// A stream of items, created by [`AsyncRecordStore::keys`](super::AsyncRecordStore::keys),
/// [`records`](super::AsyncRecordStore::records) and [`locks`](super::AsyncRecordStore::locks).
///
/// The items are read in batches of at most 64, or 4 with results, on a thread that ends with the batch. The next batch is
/// read when the last one is used up and another item is requested. So a listing that nobody polls reads nothing, has no
/// thread, and keeps at most one batch in memory. A listing that is dropped while it reads ends after the present item.
///
/// As in the blocking form, an item is an error if that one record or lock cannot be identified or read, and the listing
/// continues after it. [`ErrorKind::Thread`](crate::ErrorKind::Thread), because no thread is available while the
/// runtime shuts down, is the last item. After the end there are no more items: `None` is followed by `None`.
///
/// ```
/// use record_store::MemoryRecordStore;
/// use record_store::asynchronous::AsyncRecordStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> record_store::Result<()> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// store.write("greeting", "hello").await?;
/// let mut keys = store.keys().await?;
/// while let Some(key) = keys.next().await {
///     println!("{}", key?);
/// }
///
/// // With the combinators of the crate `futures` or `tokio-stream`.
/// use futures_util::TryStreamExt;
/// let keys: Vec<_> = store.keys().await?.try_collect().await?;
/// assert_eq!(keys.len(), 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "a listing does nothing until its items are requested"]
pub struct AsyncListing<T> {
    operation: &'static str,
    store: Futures,
    batch: vec::IntoIter<Result<T>>,
    batches: mpsc::Receiver<Vec<Result<T>>>,
    /// Between two batches. The mutex is never locked: it makes the stream `Sync`.
    reader: Option<Mutex<Reader>>,
    /// The call that reads a batch. It returns the reader if there may be more.
    reading: Option<Outcome<Option<Reader>>>,
}

/// Reads one batch each time it is polled, and blocks meanwhile.
type Reader = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// The items of one batch, if they are small.
pub(super) const BATCH: usize = 64;

/// The same for items with results. Results may be large.
pub(super) const BATCH_OF_RESULTS: usize = 4;

impl<T: Send + 'static> AsyncListing<T> {
    pub(super) async fn begin<S: RecordStore + ?Sized + 'static>(
        operation: &'static str,
        store: &AsyncRecordStore<S>,
        batch_size: usize,
        list: impl FnOnce(&S) -> Result<Listing<'_, T>> + Send + 'static,
    ) -> Result<Self> {
        let (sender, batches) = mpsc::channel(1);
        let of = Arc::clone(&store.store);
        // It is a future because a future can pause and keep the listing, which borrows the store.
        let reader: Reader = Box::pin(async move {
            let mut items = list(&of)?;
            loop {
                // The receiver is dropped with the stream.
                let next = items.by_ref().take_while(|_| !sender.is_closed());
                let batch: Vec<_> = next.take(batch_size).collect();
                if batch.is_empty() || sender.try_send(batch).is_err() {
                    return Ok(());
                }
                yield_now().await;
            }
        });
        let (store, batch, reader) = (store.blocking(), Vec::new().into_iter(), Some(Mutex::new(reader)));
        let mut listing = Self { operation, store, batch, batches, reader, reading: None };
        // Reports if the listing cannot begin.
        poll_fn(|context| listing.poll_batch(context)).await?;
        Ok(listing)
    }

    /// The next item. `None`: there are no more. Cancel safe: no item is lost.
    ///
    /// # Errors
    ///
    /// An item is an error if that one record or lock cannot be identified or read; the listing continues after it.
    /// [`ErrorKind::Thread`](crate::ErrorKind::Thread) is the last item.
    pub async fn next(&mut self) -> Option<Result<T>> {
        poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Reads the next batch. It is empty after the last one.
    fn poll_batch(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let reading = self.reading.take().or_else(|| self.read());
        let Some(mut reading) = reading else { return Poll::Ready(Ok(())) };
        // After an error or a panic there is no reader any more.
        let Poll::Ready(reader) = Pin::new(&mut reading).poll(context) else {
            self.reading = Some(reading);
            return Poll::Pending;
        };
        self.reader = reader?.map(Mutex::new);
        self.batch = self.batches.try_recv().unwrap_or_default().into_iter();
        Poll::Ready(Ok(()))
    }

    /// `None`: there are no more batches.
    fn read(&mut self) -> Option<Outcome<Option<Reader>>> {
        let mut reader = self.reader.take()?.into_inner().unwrap_or_else(PoisonError::into_inner);
        let read = async move {
            match reader.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => Ok(Some(reader)),
                Poll::Ready(ended) => ended.map(|()| None),
            }
        };
        Some(Outcome::of(self.operation, None, &*self.store, Thread::try_start(), read))
    }
}

/// No field is ever pinned.
impl<T> Unpin for AsyncListing<T> {}

impl<T: Send + 'static> Stream for AsyncListing<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        if self.batch.len() == 0
            && let Err(error) = ready!(self.poll_batch(context))
        {
            return Poll::Ready(Some(Err(error)));
        }
        Poll::Ready(self.batch.next())
    }
}

impl<T> fmt::Debug for AsyncListing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncListing").field("operation", &self.operation).finish_non_exhaustive()
    }
}
