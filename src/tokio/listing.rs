//! Listings.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;
use std::vec;

use tokio::sync::mpsc;

use super::blocking::{permit_now, short};
use crate::{Error, Listing, RecordStore, Result};

/// Items as a store finds them, one by one, by
/// [`AsyncRecordStore::keys`](super::AsyncRecordStore::keys) and
/// [`locks`](super::AsyncRecordStore::locks).
///
/// While it is there a thread reads ahead, a little. If as many wait already as may, the whole listing
/// is read at once instead.
#[must_use = "a listing does nothing until it is asked for its items"]
pub struct AsyncListing<T> {
    batch: vec::IntoIter<Result<T>>,
    /// `None`: there are no more than those.
    more: Option<mpsc::Receiver<thread::Result<Batch<T>>>>,
}

/// Some items, or why the listing cannot begin.
type Batch<T> = Result<Vec<Result<T>>>;

/// So many items are handed over at a time, and so many batches are read ahead.
const BATCH: usize = 64;
const AHEAD: usize = 1;

impl<T: Send + 'static> AsyncListing<T> {
    pub(super) async fn begin<S: RecordStore + 'static>(
        operation: &'static str,
        store: S,
        list: impl FnOnce(&S) -> Result<Listing<'_, T>> + Send + 'static,
    ) -> Result<Self> {
        let Some(permit) = permit_now() else {
            let all = short(operation, None, move || Ok(list(&store)?.collect::<Vec<_>>())).await?;
            return Ok(Self { batch: all.into_iter(), more: None });
        };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let read = move || {
            let _permit = permit;
            let read = AssertUnwindSafe(|| read_ahead(&store, list, &sender));
            if let Err(panic) = catch_unwind(read) {
                let _ = sender.blocking_send(Err(panic));
            }
        };
        let thread = thread::Builder::new().name("record-store".into());
        thread.spawn(read).map_err(|source| Error::Thread { operation, key: None, source })?;
        let mut listing = Self { batch: Vec::new().into_iter(), more: Some(receiver) };
        // Whether it can begin is the first thing that it says.
        listing.next_batch().await?;
        Ok(listing)
    }

    /// The next item. `None`: that was the last one.
    ///
    /// Cancel safe: no item is lost.
    ///
    /// # Errors
    ///
    /// An item is an error if that one cannot be told; the listing goes on after it.
    pub async fn next(&mut self) -> Option<Result<T>> {
        loop {
            if let Some(item) = self.batch.next() {
                return Some(item);
            }
            match self.next_batch().await {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// `false`: there is none.
    async fn next_batch(&mut self) -> Result<bool> {
        let Some(more) = &mut self.more else { return Ok(false) };
        match more.recv().await {
            Some(Ok(batch)) => self.batch = batch?.into_iter(),
            Some(Err(panic)) => resume_unwind(panic),
            None => return Ok(false),
        }
        Ok(true)
    }
}

/// The thread: hands over the items until nobody wants more.
fn read_ahead<S, T>(
    store: &S,
    list: impl FnOnce(&S) -> Result<Listing<'_, T>>,
    sender: &mpsc::Sender<thread::Result<Batch<T>>>,
) {
    let mut listing = match list(store) {
        Ok(listing) => listing,
        Err(error) => return drop(sender.blocking_send(Ok(Err(error)))),
    };
    let mut batch = Vec::new();
    while sender.blocking_send(Ok(Ok(batch))).is_ok() {
        batch = listing.by_ref().take(BATCH).collect();
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
