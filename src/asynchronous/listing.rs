//! Listings.

use std::fmt;
use std::sync::Arc;
use std::vec;

use tokio::sync::mpsc;

use super::AsyncRecordStore;
use super::blocking::Outcome;
use crate::{Listing, RecordStore, Result};

/// A stream of items, created by [`AsyncRecordStore::keys`](super::AsyncRecordStore::keys),
/// [`records`](super::AsyncRecordStore::records) and [`locks`](super::AsyncRecordStore::locks).
///
/// A thread reads a little ahead until the listing ends or is dropped. If no thread is available, the whole
/// listing is read at once.
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
/// # Ok(())
/// # }
/// ```
#[must_use = "a listing does nothing until its items are requested"]
pub struct AsyncListing<T> {
    operation: &'static str,
    batch: vec::IntoIter<Result<T>>,
    batches: mpsc::Receiver<Vec<Result<T>>>,
    /// Of the call that reads. `None`: it has ended.
    outcome: Option<Outcome<()>>,
}

/// The items of one batch, if they are small.
pub(super) const BATCH: usize = 64;

impl<T: Send + 'static> AsyncListing<T> {
    pub(super) async fn begin<S: RecordStore + ?Sized + 'static>(
        operation: &'static str,
        store: &AsyncRecordStore<S>,
        batch: usize,
        list: impl Fn(&S) -> Result<Listing<'_, T>> + Clone + Send + 'static,
    ) -> Result<Self> {
        // One batch is read ahead. So the whole listing as one batch never blocks the pool.
        let (sender, batches) = mpsc::channel(1);
        let of = Arc::clone(&store.store);
        let read = move |batch_size| {
            let mut items = list(&of)?;
            loop {
                let batch: Vec<_> = items.by_ref().take(batch_size).collect();
                if batch.is_empty() || sender.blocking_send(batch).is_err() {
                    return Ok(());
                }
            }
        };
        let outcome = Outcome::long(&*store.blocking(), |has_thread| {
            let read = read.clone();
            async move { read(if has_thread { batch } else { usize::MAX }) }
        });
        // The last sender is that of the call, and its end is that of the listing.
        drop(read);
        let mut listing = Self { operation, batch: Vec::new().into_iter(), batches, outcome: Some(outcome) };
        // Reports if the listing cannot begin.
        listing.next_batch().await?;
        Ok(listing)
    }

    /// The next item. `None`: there are no more. Cancel safe: no item is lost.
    ///
    /// # Errors
    ///
    /// An item is an error if that one record or lock cannot be identified; the listing continues after it.
    pub async fn next(&mut self) -> Option<Result<T>> {
        if self.batch.len() == 0
            && let Err(error) = self.next_batch().await
        {
            return Some(Err(error));
        }
        self.batch.next()
    }

    /// The batch is empty after the last one.
    async fn next_batch(&mut self) -> Result<()> {
        if let Some(batch) = self.batches.recv().await {
            self.batch = batch.into_iter();
        } else if let Some(outcome) = &mut self.outcome {
            let outcome = outcome.receive(self.operation, None).await;
            self.outcome = None;
            return outcome;
        }
        Ok(())
    }
}

impl<T> fmt::Debug for AsyncListing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncListing").finish_non_exhaustive()
    }
}
