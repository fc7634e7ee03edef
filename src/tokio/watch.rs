//! Watching a record.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use super::blocking::{in_slices, short};
use crate::{Key, RecordChange, RecordStore, RecordVersion, Result};

/// Watches one record, by [`AsyncRecordStore::watch`](super::AsyncRecordStore::watch), as a
/// [`RecordWatch`](crate::RecordWatch) does: nothing that happens between two waits is missed.
///
/// ```
/// use record_store::tokio::AsyncRecordStore;
/// use record_store::{MemoryRecordStore, RecordChange};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> record_store::Result<()> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// let mut watch = store.watch("status").await?;
/// store.write("status", "building").await?;
/// assert_eq!(watch.next(None).await?, Some(RecordChange::Appeared));
/// # Ok(())
/// # }
/// ```
#[must_use = "a watch tells only what it is asked for"]
pub struct AsyncRecordWatch<S> {
    store: S,
    key: Key,
    seen: RecordVersion,
}

impl<S: RecordStore + Clone + 'static> AsyncRecordWatch<S> {
    pub(super) async fn begin(store: S, key: Key) -> Result<Self> {
        let (looks, of) = (store.clone(), key.clone());
        let seen = short("watch", Some(&key), move || looks.record_version(&of)).await?;
        Ok(Self { store, key, seen })
    }

    /// The watched record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Waits until the record is not as it was last seen, and tells what became of it: `None` when
    /// the time is up first. A timeout of `None` waits for ever; zero looks once.
    ///
    /// Cancel safe: a change that nobody was told of is told next time.
    ///
    /// # Errors
    ///
    /// As for [`AsyncRecordStore::exists`](super::AsyncRecordStore::exists). The watch can go on.
    pub async fn next(&mut self, timeout: Option<Duration>) -> Result<Option<RecordChange>> {
        let (store, key, seen) = (self.store.clone(), self.key.clone(), self.seen.clone());
        let look = move |timeout| match store.wait_for_change(&key, &seen, Some(timeout)) {
            Ok(None) => ControlFlow::Continue(Ok(None)),
            outcome => ControlFlow::Break(outcome),
        };
        let Some(now) = in_slices("watch", &self.key, timeout, look).await?? else { return Ok(None) };
        let change = RecordChange::between(&self.seen, &now);
        self.seen = now;
        Ok(Some(change))
    }

    pub(super) async fn wait_for_record(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let start = Instant::now();
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(start.elapsed()));
            match self.next(left).await? {
                None => return Ok(false),
                Some(RecordChange::Removed) => {}
                Some(RecordChange::Appeared | RecordChange::Changed) => return Ok(true),
            }
        }
    }
}

impl<S> fmt::Debug for AsyncRecordWatch<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncRecordWatch")
            .field("key", &self.key)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}
