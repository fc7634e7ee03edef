//! Listings and watches are streams, and a dropped one leaves nothing behind.

use std::collections::BTreeSet;
use std::iter;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::{self, Either};
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use record_store::asynchronous::AsyncRecordStore;
use record_store::{
    Error, ErrorKind, Json, Key, ListOptions, Listing, LockOptions, MemoryRecordStore, RawRecord,
    ReadOptions, RecordChange, RecordStore, RecordVersion, Result, WaitOptions, WriteOptions,
};
use tokio::time::timeout;

use super::operations::with_each_store;
use super::{multi_threaded, single_threaded, wait_until};
use crate::support::{PATIENCE, millis};

/// The next item, which must come.
async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    timeout(PATIENCE, StreamExt::next(stream)).await.expect("an item in time").expect("an item")
}

#[test]
fn listings_are_streams() {
    with_each_store(async |store| {
        let written: BTreeSet<_> = (0..150).map(|number| format!("k{number}")).collect();
        for key in &written {
            store.write(key, &1).await.unwrap();
        }
        let keys = store.keys().await.unwrap().map_ok(|key| key.to_string());
        assert_eq!(keys.try_collect::<BTreeSet<_>>().await.unwrap(), written);
        let with_results = store.records(ListOptions::new().results(true)).await.unwrap();
        let ones = with_results.try_filter(|record| {
            let is_one = record.result().is_some_and(|result| result.as_str() == "1");
            async move { is_one }
        });
        assert_eq!(ones.count().await, 150);
        assert_eq!(store.locks().await.unwrap().count().await, 0);
        let _guard = store.lock("k1", LockOptions::new()).await.unwrap();
        // Two streams as one, in one task.
        let keys = store.keys().await.unwrap().map_ok(|key| key.to_string());
        let locks = store.locks().await.unwrap().map_ok(|lock| lock.key().to_string());
        assert_eq!(stream::select(keys, locks).count().await, 151);
    });
}

#[test]
fn a_watch_is_a_stream_that_misses_no_change() {
    with_each_store(async |store| {
        let mut watch = store.watch("k").await.unwrap();
        assert!(StreamExt::next(&mut watch).now_or_never().is_none());
        for expected in [RecordChange::Appeared, RecordChange::Changed] {
            store.write("k", &1).await.unwrap();
            assert_eq!(next(&mut watch).await.unwrap(), expected);
        }
        // The stream waits, and then `next` does.
        assert!(StreamExt::next(&mut watch).now_or_never().is_none());
        store.write("k", &1).await.unwrap();
        assert_eq!(watch.next(PATIENCE).await.unwrap(), Some(RecordChange::Changed));
        assert_eq!(watch.next(Duration::ZERO).await.unwrap(), None);
        // A dropped item of the stream does not consume the change after it.
        assert!(StreamExt::next(&mut watch).now_or_never().is_none());
        store.remove("k").await.unwrap();
        let mut changes = watch.map_ok(|change| change == RecordChange::Removed);
        assert!(next(&mut changes).await.unwrap());
    });
}

#[test]
fn a_stream_can_be_moved_to_another_task_while_it_waits() {
    with_each_store(async |store| {
        let mut watch = store.watch("k").await.unwrap();
        let mut keys = store.keys().await.unwrap();
        assert!(StreamExt::next(&mut watch).now_or_never().is_none());
        let moved = tokio::spawn(async move { (keys.next().await.is_none(), next(&mut watch).await) });
        tokio::task::yield_now().await;
        store.write("k", &1).await.unwrap();
        let (has_ended, change) = moved.await.unwrap();
        assert_eq!((has_ended, change.unwrap()), (true, RecordChange::Appeared));
    });
}

/// A store whose listing reads an item when the test allows it, and that counts what is in use.
#[derive(Clone, Debug)]
struct Counted {
    /// Each message allows one item.
    allowed: Arc<Mutex<Receiver<()>>>,
    read: Arc<AtomicUsize>,
    /// The listings and the waits that have not ended.
    in_use: Arc<AtomicUsize>,
    memory: MemoryRecordStore,
}

impl Counted {
    fn new() -> (Self, Sender<()>) {
        let (allow, allowed) = channel();
        let (read, in_use) = (Arc::default(), Arc::default());
        let memory = MemoryRecordStore::new();
        (Self { allowed: Arc::new(Mutex::new(allowed)), read, in_use, memory }, allow)
    }

    fn read(&self) -> usize {
        self.read.load(Ordering::SeqCst)
    }

    fn uses(&self) -> InUse {
        self.in_use.fetch_add(1, Ordering::SeqCst);
        InUse(Arc::clone(&self.in_use))
    }

    async fn wait_until_unused(&self) {
        wait_until("all listings and waits to end", async || self.in_use.load(Ordering::SeqCst) == 0).await;
    }
}

struct InUse(Arc<AtomicUsize>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
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
    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        self.memory.version_raw(key)
    }
    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        // Not the attempt before it.
        let _in_use = (options.get_timeout() != Some(Duration::ZERO)).then(|| self.uses());
        self.memory.wait_for_change_raw(key, seen, options)
    }
    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        let in_use = self.uses();
        let items = iter::from_fn(move || {
            let _ = &in_use;
            self.allowed.lock().unwrap().recv().ok()?;
            let number = self.read.fetch_add(1, Ordering::SeqCst);
            // The third item cannot be identified.
            Some(if number == 2 { Err(Error::new(ErrorKind::Io, "keys")) } else { Key::new("k") })
        });
        Ok(Box::new(items))
    }
}

#[test]
fn a_listing_that_nobody_polls_reads_nothing_and_has_no_thread() {
    let (counted, allow) = Counted::new();
    let store = AsyncRecordStore::new(counted.clone());
    single_threaded().block_on(async {
        for _ in 0..1_000 {
            allow.send(()).unwrap();
        }
        let mut keys = store.keys().await.unwrap();
        // A thread would read ahead meanwhile.
        assert!(!store.exists("k").await.unwrap());
        assert_eq!(counted.read(), 64);
        for _ in 0..64 {
            let _ = keys.next().now_or_never().expect("the batch is there").expect("an item");
        }
        assert!(!store.exists("k").await.unwrap());
        assert_eq!(counted.read(), 64);
        keys.next().await.unwrap().unwrap();
        assert_eq!(counted.read(), 128);
        drop(keys);
        // No call has to end first.
        assert_eq!(counted.in_use.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_listing_that_is_dropped_while_it_reads_reads_at_most_one_more_item() {
    let (counted, allow) = Counted::new();
    let store = AsyncRecordStore::new(counted.clone());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            let before = counted.read();
            {
                let mut keys = pin!(store.keys());
                assert!(keys.as_mut().now_or_never().is_none());
                for _ in 0..10 {
                    allow.send(()).unwrap();
                }
                wait_until("ten items to be read", async || counted.read() == before + 10).await;
            }
            for _ in 0..20 {
                allow.send(()).unwrap();
            }
            counted.wait_until_unused().await;
            assert!(counted.read() <= before + 11, "{} items after the drop", counted.read() - before - 10);
            // The rest must not be there for the next round.
            while counted.allowed.lock().unwrap().try_recv().is_ok() {}
        });
    }
}

#[test]
fn an_item_that_is_an_error_does_not_end_a_listing_and_the_end_is_final() {
    let (counted, allow) = Counted::new();
    let store = AsyncRecordStore::new(counted.clone());
    single_threaded().block_on(async {
        for _ in 0..5 {
            allow.send(()).unwrap();
        }
        drop(allow);
        let mut keys = store.keys().await.unwrap();
        let items: Vec<_> = keys.by_ref().map(|item| item.is_ok()).collect().await;
        assert_eq!(items, [true, true, false, true, true]);
        assert!(keys.next().await.is_none() && keys.next().await.is_none());
        counted.wait_until_unused().await;
    });
}

/// A store whose listing panics after its first batch.
#[derive(Clone, Debug)]
struct Panicking;

impl RecordStore for Panicking {
    fn read_raw(&self, _: &Key, _: ReadOptions) -> Result<Option<RawRecord>> {
        Ok(None)
    }
    fn write_raw(&self, _: &Key, _: &Json, _: WriteOptions) -> Result<()> {
        Ok(())
    }
    fn exists_raw(&self, _: &Key) -> Result<bool> {
        Ok(false)
    }
    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        Ok(Box::new((0..).map(|number| if number < 64 { Key::new("k") } else { panic!("on purpose") })))
    }
}

#[test]
fn a_listing_has_ended_after_a_panic() {
    let store = AsyncRecordStore::new(Panicking);
    single_threaded().block_on(async {
        let mut keys = store.keys().await.unwrap();
        for _ in 0..64 {
            keys.next().await.unwrap().unwrap();
        }
        assert!(AssertUnwindSafe(keys.next()).catch_unwind().await.is_err());
        assert!(keys.next().await.is_none());
    });
}

#[test]
fn a_dropped_watch_ends_its_wait() {
    let (counted, _allow) = Counted::new();
    let store = AsyncRecordStore::new(counted.clone());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            for uses_next in [false, true] {
                let mut watch = store.watch("k").await.unwrap();
                {
                    let waits = async || counted.in_use.load(Ordering::SeqCst) == 1;
                    let mut waits = pin!(wait_until("a thread to wait", waits));
                    let polled = future::select(StreamExt::next(&mut watch), waits.as_mut()).await;
                    assert!(matches!(polled, Either::Right(_)), "nothing has changed");
                }
                if uses_next {
                    // The wait of the stream ends, and that of `next` too.
                    assert_eq!(watch.next(millis(20)).await.unwrap(), None);
                    counted.wait_until_unused().await;
                } else {
                    drop(watch);
                    counted.wait_until_unused().await;
                }
            }
        });
    }
}

/// A store whose watches fail once.
#[derive(Clone, Debug, Default)]
struct Failing(MemoryRecordStore, Arc<AtomicUsize>);

impl RecordStore for Failing {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.0.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.0.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.0.exists_raw(key)
    }
    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        self.0.version_raw(key)
    }
    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        if self.1.fetch_add(1, Ordering::SeqCst) == 0 {
            return Err(Error::new(ErrorKind::Io, "watch"));
        }
        self.0.wait_for_change_raw(key, seen, options)
    }
}

#[test]
fn an_error_does_not_end_a_watch_and_consumes_no_change() {
    let store = AsyncRecordStore::new(Failing::default());
    single_threaded().block_on(async {
        let mut watch = store.watch("k").await.unwrap();
        store.write("k", &1).await.unwrap();
        assert_eq!(next(&mut watch).await.unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(next(&mut watch).await.unwrap(), RecordChange::Appeared);
    });
}
