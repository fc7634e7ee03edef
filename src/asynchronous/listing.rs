//! Listings.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread;
use std::vec;

use tokio::sync::mpsc;

use super::blocking::{permits, short, start_thread};
use crate::{Listing, RecordStore, Result};

/// A stream of items, created by [`AsyncRecordStore::keys`](super::AsyncRecordStore::keys) and
/// [`locks`](super::AsyncRecordStore::locks).
///
/// A thread reads a little ahead until the listing ends or is dropped. If no thread is available, the whole
/// listing is read at once.
#[must_use = "a listing does nothing until its items are requested"]
pub struct AsyncListing<T> {
    batch: vec::IntoIter<Result<T>>,
    /// `None`: there are no further batches.
    more: Option<mpsc::Receiver<Message<T>>>,
}

/// Items, or the error with which the listing could not begin, or a panic of the store.
type Message<T> = thread::Result<Result<Vec<Result<T>>>>;

/// The items of one batch, and the batches that are read ahead.
const BATCH: usize = 64;
const AHEAD: usize = 1;

impl<T: Send + 'static> AsyncListing<T> {
    pub(super) async fn begin<S: RecordStore + ?Sized + 'static>(
        operation: &'static str,
        store: &Arc<S>,
        list: fn(&S) -> Result<Listing<'_, T>>,
    ) -> Result<Self> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let started = permits().try_acquire_owned().is_ok_and(|permit| {
            let store = Arc::clone(store);
            let read = move || {
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| read_ahead(&*store, list, &sender))) {
                    let _ = sender.blocking_send(Err(panic));
                }
            };
            start_thread(permit, read)
        });
        if !started {
            let store = Arc::clone(store);
            let all = short(operation, None, move || Ok(list(&store)?.collect::<Vec<_>>())).await?;
            return Ok(Self { batch: all.into_iter(), more: None });
        }
        let mut listing = Self { batch: Vec::new().into_iter(), more: Some(receiver) };
        // The first batch is empty: it says whether the listing can begin.
        listing.next_batch().await.transpose()?;
        Ok(listing)
    }

    /// The next item. `None`: there are no more. Cancel safe: no item is lost.
    ///
    /// # Errors
    ///
    /// An item is an error if that one record or lock cannot be identified; the listing continues after it.
    pub async fn next(&mut self) -> Option<Result<T>> {
        loop {
            if let Some(item) = self.batch.next() {
                return Some(item);
            }
            if let Err(error) = self.next_batch().await? {
                return Some(Err(error));
            }
        }
    }

    /// `None`: there are no more.
    async fn next_batch(&mut self) -> Option<Result<()>> {
        match self.more.as_mut()?.recv().await? {
            Ok(batch) => Some(batch.map(|batch| self.batch = batch.into_iter())),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Sends the items until the receiver is dropped.
fn read_ahead<S: ?Sized, T>(
    store: &S,
    list: fn(&S) -> Result<Listing<'_, T>>,
    sender: &mpsc::Sender<Message<T>>,
) {
    let mut items = match list(store) {
        Ok(items) => items,
        Err(error) => return drop(sender.blocking_send(Ok(Err(error)))),
    };
    let mut batch = Vec::new();
    while sender.blocking_send(Ok(Ok(batch))).is_ok() {
        batch = items.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return;
        }
    }
}

impl<T> fmt::Debug for AsyncListing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncListing").finish_non_exhaustive()
    }
}
