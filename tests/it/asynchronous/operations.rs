//! Each asynchronous operation does the same as its blocking counterpart.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use record_store::asynchronous::{AsyncRecordStore, current_holder};
use record_store::{
    BreakOptions, Cancellation, Durability, Error, ErrorKind, EvictionPolicy, IsolationLevel, Json, Key,
    ListOptions, Listing, LockInfo, LockOptions, MemoryRecordStore, RawRecord, ReadOptions, RecordChange,
    RecordInfo, RecordStore, RecordStoreExt, RemoveOptions, Result, UpdateOptions, WriteOptions,
};
use tempfile::tempdir;
use tokio::sync::oneshot;

use super::{multi_threaded, single_threaded};
use crate::compute::{Slow, assert_limited, stale_options, stale_write};
use crate::support::{PATIENCE, as_named, millis, named, open_with};

pub(super) type AnyStore = AsyncRecordStore<Arc<dyn RecordStore>>;

pub(super) fn with_each_store<F: Future<Output = ()>>(check: impl Fn(AnyStore) -> F) {
    let dir = tempdir().unwrap();
    #[allow(unused_mut, reason = "only with the feature `postgres`")]
    let mut stores: Vec<Arc<dyn RecordStore>> =
        vec![Arc::new(open_with(dir.path(), Durability::Relaxed)), Arc::new(MemoryRecordStore::new())];
    #[cfg(feature = "postgres")]
    if let Some(url) = crate::postgres::new_url() {
        stores.push(Arc::new(crate::postgres::open(&url)));
    }
    for store in stores {
        single_threaded().block_on(check(AsyncRecordStore::new(store)));
    }
}

#[test]
fn records_can_be_read_written_and_removed() {
    with_each_store(async |store| {
        assert!(store.read::<u8>("k").await.unwrap().is_none());
        // A borrowed value need not be `'static`.
        let text = String::from("one");
        store.write("k", text.as_str()).await.unwrap();
        assert_eq!(store.read::<String>("k").await.unwrap().unwrap().result, "one");
        assert!(store.exists("k").await.unwrap());
        assert!(!store.write_if_absent("k", "two", WriteOptions::new()).await.unwrap());
        let swap = |from, to| store.compare_and_swap("k", Some(from), to, WriteOptions::new());
        assert!(!swap("two", "three").await.unwrap());
        assert!(swap("one", "two").await.unwrap());
        let version = store.read::<String>("k").await.unwrap().unwrap().version;
        let write = |to| store.write_if_version("k", version, to, WriteOptions::new());
        assert!(write("three").await.unwrap());
        assert!(!write("four").await.unwrap());
        assert_eq!(store.read::<String>("k").await.unwrap().unwrap().result, "three");
        let short = WriteOptions::new().time_to_live(Duration::ZERO);
        store.write_with("brief", &1, short).await.unwrap();
        assert!(!store.exists("brief").await.unwrap());
        assert!(store.remove("k").await.unwrap());
        assert!(!store.remove("k").await.unwrap());
        assert_eq!(store.write("k", &f64::NAN).await.unwrap_err().kind(), ErrorKind::Encode);
        assert_eq!(store.read::<u8>("").await.unwrap_err().kind(), ErrorKind::InvalidKey);
        assert!(store.supports_isolation_level(IsolationLevel::Serializable));
    });
}

#[test]
fn locks_can_be_acquired_renewed_released_and_broken() {
    with_each_store(async |store| {
        let (me, other) = (current_holder(), named("other"));
        let token = store.acquire_lock("k", LockOptions::new()).await.unwrap();
        assert_eq!(
            store.acquire_lock("k", LockOptions::new()).await.unwrap(),
            token,
            "the holder has the lock already"
        );
        assert!(store.is_locked("k").await.unwrap());
        assert!(store.is_lock_holder("k", &me).await.unwrap());
        assert!(!store.is_lock_holder("k", &other).await.unwrap());
        assert!(store.try_lock("k", as_named("other")).await.unwrap().is_none());
        let write = store.write_with("k", &1, WriteOptions::new().claim(&other)).await;
        assert_eq!(write.unwrap_err().kind(), ErrorKind::Locked);
        let remove = store.remove_with("k", RemoveOptions::new().claim(&other)).await;
        assert_eq!(remove.unwrap_err().kind(), ErrorKind::Locked);
        store.write("k", &1).await.unwrap();
        store.write_with("k", &2, WriteOptions::new().claim(token)).await.unwrap();
        let read = store.read_with::<u8>("k", ReadOptions::new().claim(token)).await;
        assert_eq!(read.unwrap().unwrap().result, 2);
        assert_eq!(store.release_lock("k", &other).await.unwrap_err().kind(), ErrorKind::NotLockHolder);
        store.renew("k", token, PATIENCE).await.unwrap();
        let info = store.lock_info("k").await.unwrap().unwrap();
        assert!(info.remaining().is_some() && info.holder() == &me);
        assert!(!store.wait_for_lock("k", Duration::ZERO).await.unwrap());
        store.release_lock("k", me).await.unwrap();
        assert_eq!(store.release_lock("k", token).await.unwrap_err().kind(), ErrorKind::LockLost);
        store.acquire_lock("k", as_named("other")).await.unwrap();
        assert!(!store.break_lock_with("k", BreakOptions::new().token(token)).await.unwrap());
        assert!(store.break_lock("k").await.unwrap());
        assert!(store.wait_for_lock("k", None).await.unwrap());
    });
}

#[test]
fn listings_return_all_keys_and_locks() {
    with_each_store(async |store| {
        let keys: BTreeSet<_> = (0..300).map(|number| format!("k{number}")).collect();
        for key in &keys {
            store.write_with(key, &1, WriteOptions::new()).await.unwrap();
        }
        let mut listed = BTreeSet::new();
        let mut listing = store.keys().await.unwrap();
        while let Some(key) = listing.next().await {
            listed.insert(key.unwrap().to_string());
        }
        assert!(listing.next().await.is_none());
        assert_eq!(listed, keys);
        // Any number of listings that are not read to the end must not block others.
        let mut unread = Vec::new();
        for _ in 0..70 {
            unread.push(store.keys().await.unwrap());
        }
        assert!(unread[69].next().await.is_some());
        let _guard = store.lock("k1", LockOptions::new()).await.unwrap();
        let mut locks = store.locks().await.unwrap();
        assert_eq!(locks.next().await.unwrap().unwrap().key().as_str(), "k1");
        assert!(locks.next().await.is_none());
    });
}

#[test]
fn records_can_be_described_listed_and_evicted() {
    with_each_store(async |store| {
        assert!(store.record_info("k1").await.unwrap().is_none());
        for number in 0..4 {
            store.write(format!("k{number}"), &number).await.unwrap();
        }
        store.write("other", "a result").await.unwrap();
        let info = store.record_info("k1").await.unwrap().unwrap();
        let version = store.read::<u8>("k1").await.unwrap().unwrap().version;
        assert_eq!((info.key().as_str(), info.version()), ("k1", version));
        for has_results in [false, true] {
            let options = ListOptions::new().prefix("k").results(has_results);
            let (mut listing, mut listed) = (store.records(options).await.unwrap(), BTreeSet::new());
            while let Some(record) = listing.next().await {
                let record = record.unwrap();
                let number = record.result().map(Json::as_str);
                assert_eq!(number, has_results.then(|| &record.key().as_str()[1..]));
                listed.insert(record.key().to_string());
            }
            assert_eq!(listed.iter().map(String::as_str).collect::<Vec<_>>(), ["k0", "k1", "k2", "k3"]);
        }
        let _guard = store.lock("k0", LockOptions::new()).await.unwrap();
        let policy = EvictionPolicy::new().max_records(2);
        let dry_run = store.evict(policy.clone().dry_run(true)).await.unwrap();
        assert_eq!((dry_run.records, dry_run.kept), (3, 1));
        assert_eq!(store.evict(policy.clone()).await.unwrap(), dry_run);
        // The locked one, and one more.
        assert!(store.exists("k0").await.unwrap());
        let (mut listing, mut left) = (store.records(ListOptions::new()).await.unwrap(), 0);
        while let Some(record) = listing.next().await {
            record.unwrap();
            left += 1;
        }
        assert_eq!(left, 2);
    });
}

/// A store of any number of records with results. Counts those that were read.
#[derive(Clone, Debug, Default)]
struct Endless {
    store: MemoryRecordStore,
    read: Arc<AtomicU32>,
}

impl RecordStore for Endless {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.store.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.store.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.store.exists_raw(key)
    }
    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        assert!(options.reads_results());
        Ok(Box::new(std::iter::repeat_with(|| {
            self.read.fetch_add(1, Ordering::Relaxed);
            Ok(self.store.record_info("k").unwrap().unwrap())
        })))
    }
}

#[test]
fn a_listing_with_results_reads_few_of_them_ahead() {
    let endless = Endless::default();
    endless.store.write("k", &1).unwrap();
    let store = AsyncRecordStore::new(endless.clone());
    single_threaded().block_on(async {
        let mut listing = store.records(ListOptions::new().results(true)).await.unwrap();
        for _ in 0..5 {
            listing.next().await.unwrap().unwrap();
        }
        tokio::time::sleep(millis(50)).await;
    });
    let read = endless.read.load(Ordering::Relaxed);
    assert!((5..10).contains(&read), "{read}");
}

#[test]
fn an_eviction_does_not_wait_for_the_pool() {
    let dir = tempdir().unwrap();
    let store = AsyncRecordStore::new(open_with(dir.path(), Durability::Relaxed));
    single_threaded().block_on(async {
        store.write("k", &1).await.unwrap();
        // Keeps the pool's only thread.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || ended.recv());
        let policy = EvictionPolicy::new().max_records(0);
        let evicted = tokio::time::timeout(PATIENCE, store.evict(policy.clone())).await.unwrap().unwrap();
        assert_eq!((evicted.records, evicted.records_left), (1, 0));
        drop(end);
    });
}

#[test]
fn an_unsupported_operation_is_an_error() {
    #[derive(Clone, Debug)]
    struct Minimal;
    impl RecordStore for Minimal {
        fn read_raw(&self, _: &Key, _: ReadOptions) -> Result<Option<RawRecord>> {
            panic!("on purpose");
        }
        fn write_raw(&self, _: &Key, _: &Json, _: WriteOptions) -> Result<()> {
            Ok(())
        }
        fn exists_raw(&self, _: &Key) -> Result<bool> {
            Ok(false)
        }
        fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
            Ok(Box::new(std::iter::from_fn(|| panic!("on purpose"))))
        }
    }
    let store = AsyncRecordStore::new(Minimal);
    single_threaded().block_on(async {
        let keys = store.keys().await.unwrap_err();
        assert_eq!((keys.kind(), keys.operation()), (ErrorKind::Unsupported, "keys"));
        let lock = store.lock("k", LockOptions::new()).await.unwrap_err();
        assert_eq!((lock.kind(), lock.operation()), (ErrorKind::Unsupported, "acquire_lock"));
        let locks = store.clone();
        let panics = tokio::spawn(async move { store.read::<u8>("k").await.map(drop) });
        assert!(panics.await.unwrap_err().is_panic(), "a panic reaches the caller");
        let panics = tokio::spawn(async move { locks.locks().await.unwrap().next().await.is_some() });
        assert!(panics.await.unwrap_err().is_panic(), "also that of a listing");
    });
}

#[test]
fn operations_fail_in_a_runtime_that_is_shut_down() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    let (runtime, options) = (multi_threaded(), LockOptions::new);
    let handle = runtime.handle().clone();
    let guard = handle.block_on(store.lock("held", options())).unwrap();
    runtime.shutdown_background();
    handle.block_on(async {
        for error in [
            store.exists("k").await.unwrap_err(),
            store.read::<u8>("k").await.unwrap_err(),
            store.lock("k", options()).await.unwrap_err(),
            store.lock_all(["k"], options()).await.unwrap_err(),
            store.update("k", options(), async |_: Option<u8>| Ok(1)).await.unwrap_err(),
            guard.renew().await.unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Thread, "{error}");
        }
        let unstored = guard.write(&1).await.unwrap_err();
        assert_eq!((unstored.kind(), unstored.unstored().map(Json::as_str)), (ErrorKind::Thread, Some("1")));
    });
    drop(guard);
    assert!(!store.inner().is_locked("held").unwrap() && !store.inner().is_locked("k").unwrap());
}

#[test]
fn lock_all_acquires_all_locks_or_none() {
    with_each_store(async |store| {
        let hold = LockOptions::new().hold_timeout(PATIENCE);
        let guards = store.lock_all(["b", "a", "b"], hold).await.unwrap();
        let keys: Vec<_> = guards.iter().map(|guard| guard.key().as_str()).collect();
        assert_eq!(keys, ["a", "b"]);
        guards.get("a").unwrap().write(&1).await.unwrap();
        assert!(guards.get("c").is_none());
        guards.renew().await.unwrap();
        let late = as_named("other").acquire_timeout(millis(20));
        let error = store.lock_all(["0", "b"], late).await.unwrap_err();
        assert!(error.is_timeout() && error.key().unwrap().as_str() == "b");
        guards.release().await.unwrap();
        super::wait_until("the locks of a failed lock_all to be released", async || {
            !store.is_locked("0").await.unwrap()
        })
        .await;
        assert!(!store.is_locked("a").await.unwrap());
    });
}

#[test]
fn lock_all_can_wait_longer_than_its_lease() {
    with_each_store(async |store| {
        let blocker = store.lock("b", as_named("other")).await.unwrap();
        let waits = tokio::spawn({
            let store = store.clone();
            async move { store.lock_all(["a", "b"], LockOptions::new().hold_timeout(millis(300))).await }
        });
        tokio::time::sleep(millis(500)).await;
        blocker.release().await.unwrap();
        let guards = waits.await.unwrap().unwrap();
        guards.release().await.unwrap();
    });
}

#[test]
fn a_watch_misses_no_change() {
    with_each_store(async |store| {
        let mut watch = store.watch("k").await.unwrap();
        assert_eq!(watch.next(Duration::ZERO).await.unwrap(), None);
        store.write("k", &1).await.unwrap();
        assert_eq!(watch.next(None).await.unwrap(), Some(RecordChange::Appeared));
        store.write("k", &1).await.unwrap();
        assert_eq!(watch.next(None).await.unwrap(), Some(RecordChange::Changed));
        // A wait that was dropped does not consume a later change.
        assert!(tokio::time::timeout(millis(20), watch.next(None)).await.is_err());
        store.remove("k").await.unwrap();
        assert_eq!(watch.next(None).await.unwrap(), Some(RecordChange::Removed));
        assert_eq!(watch.key().as_str(), "k");
        let waits = tokio::spawn({
            let store = store.clone();
            async move { store.wait_for_record("k", PATIENCE).await }
        });
        tokio::time::sleep(millis(20)).await;
        store.write("k", &1).await.unwrap();
        // The first write may have come before the wait began.
        store.write("k", &2).await.unwrap();
        assert!(waits.await.unwrap().unwrap());
    });
}

#[test]
fn fifty_tasks_compute_a_result_once() {
    let dir = tempdir().unwrap();
    for runtime in [single_threaded(), multi_threaded()] {
        let store = super::open(dir.path());
        runtime.block_on(async {
            store.remove("k").await.unwrap();
            let computed = Arc::new(AtomicU32::new(0));
            let tasks: Vec<_> = (0..50)
                .map(|_| {
                    let (store, computed) = (store.clone(), Arc::clone(&computed));
                    tokio::spawn(async move {
                        let options = UpdateOptions::new().lock(super::long_timeout());
                        let compute = async || {
                            tokio::time::sleep(millis(30)).await;
                            Ok(7 + computed.fetch_add(1, Ordering::Relaxed))
                        };
                        store.get_or_compute("k", options, compute).await
                    })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap().unwrap(), 7);
            }
            assert_eq!(computed.load(Ordering::Relaxed), 1);
            assert!(!store.is_locked("k").await.unwrap());
        });
    }
}

/// Lets a task compute the next result, and others ask for it meanwhile.
async fn compute_while_others_ask<S: RecordStore + 'static>(store: AsyncRecordStore<S>) {
    store.write_with("k", &1, stale_write()).await.unwrap();
    let (computing, is_computing) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let computes = store.clone();
    let first = tokio::spawn(async move {
        let compute = || async {
            computing.send(()).unwrap();
            may_go_on.await.unwrap();
            Ok(2)
        };
        computes.get_or_compute("k", stale_options(), compute).await
    });
    is_computing.await.unwrap();
    // These wait for the lock, in the queue of this process.
    let waiting = [3, 4].map(|number| {
        let store = store.clone();
        tokio::spawn(async move { store.get_or_compute("k", LockOptions::new(), async || Ok(number)).await })
    });
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    for _ in 0..3 {
        let store = store.clone();
        let never = async || -> Result<u8> { panic!("two tasks compute") };
        let other = tokio::spawn(async move { store.get_or_compute("k", stale_options(), never).await });
        let got = tokio::time::timeout(PATIENCE, other).await.expect("the stale result");
        assert_eq!(got.unwrap().unwrap(), 1);
    }
    go_on.send(()).unwrap();
    assert_eq!(first.await.unwrap().unwrap(), 2);
    for task in waiting {
        assert_eq!(task.await.unwrap().unwrap(), 2);
    }
    let never = async || panic!("the result is fresh");
    assert_eq!(store.get_or_compute::<u8, _>("k", stale_options(), never).await.unwrap(), 2);
    assert!(!store.is_locked("k").await.unwrap());
}

#[test]
fn other_tasks_get_the_stale_result_while_one_computes() {
    let dir = tempdir().unwrap();
    single_threaded().block_on(compute_while_others_ask(super::open(dir.path())));
    multi_threaded().block_on(compute_while_others_ask(super::open(dir.path())));
    let memory = AsyncRecordStore::new(MemoryRecordStore::new());
    single_threaded().block_on(compute_while_others_ask(memory));
    #[cfg(feature = "postgres")]
    if let Some(url) = crate::postgres::new_url() {
        let server = AsyncRecordStore::new(crate::postgres::open(&url));
        single_threaded().block_on(compute_while_others_ask(server));
    }
}

/// An error type of the caller.
struct OwnError;

impl From<Error> for OwnError {
    fn from(error: Error) -> Self {
        panic!("the store failed: {error}")
    }
}

#[test]
fn a_failed_computation_stores_nothing() {
    with_each_store(async |store| {
        let fails = async || Err::<u8, _>(Error::new(ErrorKind::Unsupported, "compute"));
        assert!(store.get_or_compute("k", LockOptions::new(), fails).await.is_err());
        let fails = async |_: Option<u8>| Err::<u8, _>(Error::new(ErrorKind::Unsupported, "compute"));
        assert!(store.update("k", LockOptions::new(), fails).await.is_err());
        assert!(!store.exists("k").await.unwrap());
        let fails = async || Err::<u8, _>(OwnError);
        assert!(store.get_or_try_compute("k", LockOptions::new(), fails).await.is_err());
        let fails = async |_: Option<u8>| Err::<u8, _>(OwnError);
        assert!(store.try_update("k", LockOptions::new(), fails).await.is_err());
        assert!(!store.exists("k").await.unwrap());
        // A dropped guard releases in the background.
        assert!(store.wait_for_lock("k", PATIENCE).await.unwrap());
        let counts = async |old: Option<u8>| Ok(old.unwrap_or(0) + 1);
        assert_eq!(store.update("k", LockOptions::new(), counts).await.unwrap(), 1);
        assert_eq!(store.update("k", LockOptions::new(), counts).await.unwrap(), 2);
        let never = async || panic!("the record exists");
        assert_eq!(store.get_or_compute::<u8, _>("k", LockOptions::new(), never).await.unwrap(), 2);
    });
}

#[test]
fn the_reads_of_a_computation_and_of_an_update_have_their_limits() {
    let acquisition = millis(20);
    let store = Slow::new(acquisition);
    let reads = Arc::clone(&store.2);
    let store = AsyncRecordStore::new(store);
    let limits = LockOptions::new().acquire_timeout(PATIENCE).cancellation(&Cancellation::new());
    single_threaded().block_on(async {
        assert_eq!(store.get_or_compute("computed", limits.clone(), async || Ok(1)).await.unwrap(), 1);
    });
    assert_limited(&reads, &limits, Duration::ZERO);
    single_threaded().block_on(async {
        let update = async |old: Option<i32>| Ok(old.unwrap_or(1));
        assert_eq!(store.update("updated", limits.clone(), update).await.unwrap(), 1);
    });
    assert_limited(&reads, &limits, acquisition);
}

#[test]
fn a_fast_computation_runs_only_once_too() {
    let dir = tempdir().unwrap();
    let store = AsyncRecordStore::new(open_with(dir.path(), Durability::Relaxed));
    multi_threaded().block_on(async {
        for round in 0..50 {
            let computed = Arc::new(AtomicU32::new(0));
            let tasks: Vec<_> = (0..8)
                .map(|_| {
                    let (store, computed) = (store.clone(), Arc::clone(&computed));
                    tokio::spawn(async move {
                        let compute = async || Ok(computed.fetch_add(1, Ordering::Relaxed));
                        store.get_or_compute(format!("k{round}"), LockOptions::new(), compute).await
                    })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap().unwrap(), 0, "round {round}");
            }
        }
    });
}
