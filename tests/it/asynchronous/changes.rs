//! A watch of the whole store as a stream: a dropped future consumes no change and leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::{StreamExt, TryStreamExt};
use record_store::asynchronous::{AsyncRecordStore, AsyncStoreChanges};
use record_store::{
    Cancellation, Change, ChangesOptions, Error, ErrorKind, Json, Key, MemoryRecordStore, RawRecord,
    ReadOptions, RecordChange, RecordStore, Result, SeenRecords, WaitOptions, WriteOptions,
};
use tokio::time::timeout;

use super::operations::with_each_store;
use super::{multi_threaded, open, single_threaded, wait_until};
use crate::support::{PATIENCE, in_memory, millis};

/// The next item, which must come.
async fn next<S: RecordStore + ?Sized + 'static>(changes: &mut AsyncStoreChanges<S>) -> Result<Change> {
    timeout(PATIENCE, StreamExt::next(changes)).await.expect("an item in time").expect("an item")
}

fn of(change: &Change) -> (String, RecordChange) {
    (change.key.to_string(), change.change)
}

#[test]
fn a_watch_of_the_store_is_a_stream_that_misses_no_change() {
    with_each_store(async |store| {
        store.write("b/before", &1).await.unwrap();
        let mut changes = store.changes(ChangesOptions::new().prefix("b/")).await.unwrap();
        assert!(StreamExt::next(&mut changes).now_or_never().is_none());
        for (key, expected) in [
            ("b/before", RecordChange::Changed),
            ("b/k", RecordChange::Appeared),
            ("b/k", RecordChange::Changed),
        ] {
            store.write("a/k", &1).await.unwrap();
            store.write(key, &1).await.unwrap();
            assert_eq!(of(&next(&mut changes).await.unwrap()), (key.to_owned(), expected));
        }
        // The stream waits, and then `next` does.
        assert!(StreamExt::next(&mut changes).now_or_never().is_none());
        store.write("b/k", &2).await.unwrap();
        assert_eq!(of(&changes.next(PATIENCE).await.unwrap().unwrap()).0, "b/k");
        assert_eq!(changes.next(Duration::ZERO).await.unwrap(), None);
        assert_eq!(changes.next(millis(5)).await.unwrap(), None);
        // A dropped item of the stream does not consume the change after it.
        assert!(StreamExt::next(&mut changes).now_or_never().is_none());
        store.remove("b/k").await.unwrap();
        store.remove("b/before").await.unwrap();
        let removed: Vec<_> = changes.take(2).map_ok(|change| of(&change)).try_collect().await.unwrap();
        assert!(removed.iter().all(|(_, change)| *change == RecordChange::Removed), "{removed:?}");
    });
}

#[test]
fn a_future_that_is_dropped_at_any_moment_consumes_no_change() {
    const CHANGES: u64 = 200;
    let dir = in_memory();
    let store = open(dir.path());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let mut changes = store.changes(ChangesOptions::new()).await.unwrap();
            let writer = tokio::spawn({
                let store = store.clone();
                async move {
                    for number in 0..CHANGES {
                        store.write(format!("k{}", number % 20), &number).await.unwrap();
                    }
                }
            });
            let (mut reported, mut round) = (BTreeMap::new(), 0_u64);
            loop {
                round += 1;
                let short = Duration::from_micros(round % 40 * 25);
                let polled = if round % 2 == 0 {
                    timeout(short, StreamExt::next(&mut changes)).await.ok().flatten().transpose().unwrap()
                } else {
                    timeout(short, changes.next(WaitOptions::new())).await.ok().transpose().unwrap().flatten()
                };
                if let Some(change) = polled {
                    reported.insert(change.key, change.version);
                } else if writer.is_finished() {
                    let mut present = BTreeMap::new();
                    let mut records = store.records(record_store::ListOptions::new()).await.unwrap();
                    while let Some(record) = records.next().await {
                        let record = record.unwrap();
                        present.insert(record.key().clone(), record.version());
                    }
                    if present == reported {
                        break;
                    }
                }
            }
            writer.await.unwrap();
            for key in reported.keys() {
                store.remove(key).await.unwrap();
            }
        });
    }
}

#[test]
fn a_cancellation_ends_the_wait_of_a_task() {
    with_each_store(async |store| {
        let mut changes = store.changes(ChangesOptions::new()).await.unwrap();
        let cancellation = Cancellation::new();
        let (waits, cancel) = (changes.next(&cancellation), async {
            tokio::task::yield_now().await;
            cancellation.cancel();
        });
        let (outcome, ()) = tokio::join!(waits, cancel);
        let error = outcome.unwrap_err();
        assert_eq!((error.kind(), error.operation(), error.key()), (ErrorKind::Cancelled, "changes", None));
        store.write("k", &1).await.unwrap();
        assert!(changes.next(&cancellation).await.unwrap_err().is_cancelled());
        assert_eq!(changes.next(PATIENCE).await.unwrap().unwrap().key, "k");
        store.remove("k").await.unwrap();
    });
}

/// A store that counts the waits, and fails once.
#[derive(Clone, Debug, Default)]
struct Counted {
    memory: MemoryRecordStore,
    waits: Arc<AtomicUsize>,
    failures: Arc<AtomicUsize>,
}

impl RecordStore for Counted {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.memory.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.memory.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.memory.exists_raw(key)
    }
    fn changes_raw(&self, seen: &mut SeenRecords, options: WaitOptions) -> Result<bool> {
        if seen.has_begun()
            && self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |it| it.checked_sub(1)).is_ok()
        {
            return Err(Error::new(ErrorKind::Io, "changes"));
        }
        let is_wait = options.get_timeout() != Some(Duration::ZERO);
        self.waits.fetch_add(usize::from(is_wait), Ordering::SeqCst);
        let outcome = self.memory.changes_raw(seen, options);
        self.waits.fetch_sub(usize::from(is_wait), Ordering::SeqCst);
        outcome
    }
}

#[test]
fn a_dropped_watch_of_the_store_ends_its_wait() {
    let counted = Counted::default();
    let store = AsyncRecordStore::new(counted.clone());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let mut changes = store.changes(ChangesOptions::new()).await.unwrap();
            let until = async |waits| {
                wait_until("the waits", async || counted.waits.load(Ordering::SeqCst) == waits).await;
            };
            {
                let (mut waits, mut is_waiting) = (StreamExt::next(&mut changes), std::pin::pin!(until(1)));
                let first = futures_util::future::select(&mut waits, is_waiting.as_mut()).await;
                assert!(matches!(first, futures_util::future::Either::Right(_)), "nothing has changed");
            }
            assert_eq!(changes.next(millis(20)).await.unwrap(), None);
            until(0).await;
            assert!(StreamExt::next(&mut changes).now_or_never().is_none());
            drop(changes);
            until(0).await;
        });
    }
}

#[test]
fn an_error_does_not_end_a_watch_of_the_store() {
    let counted = Counted::default();
    let store = AsyncRecordStore::new(counted.clone());
    single_threaded().block_on(async {
        let mut changes = store.changes(ChangesOptions::new()).await.unwrap();
        store.write("k", &1).await.unwrap();
        counted.failures.store(1, Ordering::SeqCst);
        assert_eq!(next(&mut changes).await.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(of(&next(&mut changes).await.unwrap()), ("k".to_owned(), RecordChange::Appeared));
    });
}
