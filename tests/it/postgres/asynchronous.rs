//! The store as futures.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use record_store::asynchronous::AsyncRecordStore;
use record_store::{
    Cancellation, EvictionPolicy, ListOptions, LockOptions, PostgresOptions, PostgresRecordStore,
    RecordStoreExt, Result,
};
use tokio::time::{sleep, timeout};

use super::server::Server;
use super::{new_url, open};
use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, millis};

pub(crate) const ROLES: &[Role] = &[("postgres: many tasks", many_tasks)];

type Store = AsyncRecordStore<PostgresRecordStore>;

fn runtimes() -> [tokio::runtime::Runtime; 2] {
    let single = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    [single.unwrap(), multi.unwrap()]
}

/// Polls the future at most this many times, then drops it.
async fn poll_then_drop<T>(times: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    let polls = poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    });
    timeout(millis(50), polls).await.unwrap_or(None)
}

async fn drop_after_each_poll<T, F: Future<Output = T>>(store: &Store, make: impl Fn() -> F) {
    for times in 0..60 {
        for pause in [Duration::ZERO, Duration::from_micros(300)] {
            let done = poll_then_drop(times, make()).await.is_some();
            sleep(pause).await;
            let guard = store.lock("k", LockOptions::new().acquire_timeout(PATIENCE)).await.unwrap();
            // A late release on behalf of the dropped future would happen now.
            sleep(millis(5)).await;
            guard.write(&1).await.unwrap();
            guard.release().await.unwrap();
            assert!(!store.is_locked("k").await.unwrap());
            if done {
                return;
            }
        }
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a computation may fail")]
fn old_or_one(old: Option<u8>) -> Result<u8> {
    Ok(old.unwrap_or(1))
}

#[test]
fn every_operation_can_be_dropped_at_every_await() {
    let Some(url) = new_url() else { return };
    let store = AsyncRecordStore::new(open(&url));
    for runtime in runtimes() {
        runtime.block_on(async {
            let options = LockOptions::new;
            drop_after_each_poll(&store, || store.lock("k", options())).await;
            drop_after_each_poll(&store, || store.try_lock("k", options())).await;
            drop_after_each_poll(&store, async || store.lock("k", options()).await?.release().await).await;
            drop_after_each_poll(&store, || {
                store.update("k", options(), async |old: Option<u8>| old_or_one(old))
            })
            .await;
            drop_after_each_poll(&store, async || {
                store.remove("k").await?;
                store.get_or_compute("k", options(), async || old_or_one(None)).await
            })
            .await;
            drop_after_each_poll(&store, async || {
                let guard = store.lock("k", options().hold_timeout(PATIENCE)).await?;
                guard.keep_alive(|_| ()).await?;
                guard.renew().await
            })
            .await;
            drop_after_each_poll(&store, || store.write("k", &2)).await;
            drop_after_each_poll(&store, || store.read::<u8>("k")).await;
            drop_after_each_poll(&store, || store.record_info("k")).await;
            let policy = EvictionPolicy::new().max_records(0);
            drop_after_each_poll(&store, || store.evict(policy.clone())).await;
        });
    }
}

/// A connection whose bytes a blocking call moves is of no use to a future, and the other way round.
#[test]
fn blocking_calls_and_futures_share_the_limit_of_connections() {
    let Some(url) = new_url() else { return };
    let name = format!("limit-{}", std::process::id());
    let options = PostgresOptions::new().connections(1);
    let store = PostgresRecordStore::connect(&format!("{url}&application_name={name}"), options).unwrap();
    let (futures, [runtime, _]) = (AsyncRecordStore::new(store.clone()), runtimes());
    for number in 0..5 {
        store.write("k", &number).unwrap();
        runtime.block_on(futures.write("k", &-number)).unwrap();
        assert_eq!(store.read::<i32>("k").unwrap().unwrap().result, -number);
    }
    // A session ends a moment after its connection. One more stands for the process.
    let sessions = format!("SELECT count(*) <= 2 FROM pg_stat_activity WHERE application_name = '{name}'");
    let start = Instant::now();
    while Server::shared().unwrap().sql(&sessions) != "t" {
        assert!(start.elapsed() < PATIENCE, "more connections than the options allow");
        std::thread::sleep(millis(10));
    }
}

#[test]
fn records_are_described_and_evicted_without_a_thread() {
    let Some(url) = new_url() else { return };
    let store = AsyncRecordStore::new(open(&url));
    let [single_threaded, _] = runtimes();
    single_threaded.block_on(async {
        for key in ["old", "young"] {
            store.write(key, &1).await.unwrap();
        }
        // Keeps the only thread of the pool.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || ended.recv());
        let info = timeout(PATIENCE, store.record_info("old")).await.unwrap().unwrap().unwrap();
        assert_eq!((info.key().as_str(), info.size()), ("old", 1));
        let policy = EvictionPolicy::new().max_records(1);
        let evicted = timeout(PATIENCE, store.evict(policy.clone())).await.unwrap().unwrap();
        assert_eq!((evicted.records, evicted.records_left), (1, 1));
        let mut left = store.records(ListOptions::new().results(true)).await.unwrap();
        let young = left.next().await.unwrap().unwrap();
        assert_eq!((young.key().as_str(), young.result().unwrap().as_str()), ("young", "1"));
        assert!(left.next().await.is_none());
        drop(end);
    });
}

#[test]
fn a_dropped_or_cancelled_wait_leaves_no_waiter() {
    let Some(url) = new_url() else { return };
    let store = AsyncRecordStore::new(open(&url));
    for runtime in runtimes() {
        runtime.block_on(async {
            for times in 0..8 {
                let guard = store.lock("k", as_named("other")).await.unwrap();
                assert!(poll_then_drop(times, store.lock("k", LockOptions::new())).await.is_none());
                assert!(poll_then_drop(times, store.wait_for_lock("k", None)).await.is_none());
                let cancellation = Cancellation::new();
                let cancel = async {
                    sleep(millis(20)).await;
                    cancellation.cancel();
                };
                let options = as_named("cancelled").cancellation(&cancellation);
                let (cancelled, ()) = tokio::join!(store.lock("k", options), cancel);
                assert!(cancelled.unwrap_err().is_cancelled());
                guard.release().await.unwrap();
                let next = store.lock("k", as_named("next").acquire_timeout(PATIENCE));
                drop(timeout(millis(900), next).await.expect("an abandoned waiter is ahead").unwrap());
            }
        });
    }
}

/// Many tasks count, and others are aborted in between.
fn many_tasks(stage: &Stage) {
    const TASKS: u64 = 60;
    let url: String = stage.argument();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = PostgresRecordStore::connect_async(&url, PostgresOptions::new()).await.unwrap();
        let store = AsyncRecordStore::new(store);
        store.write("record", &1).await.unwrap();
        let guard = store.lock("count", as_named("holder")).await.unwrap();
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        let tasks: Vec<_> =
            (0..TASKS)
                .map(|_| {
                    let store = store.clone();
                    tokio::spawn(async move {
                        store
                            .update("count", LockOptions::new(), async |old: Option<u64>| {
                                Ok(old.unwrap_or(0) + 1)
                            })
                            .await
                    })
                })
                .collect();
        let aborted: Vec<_> = (0..TASKS)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.lock("count", LockOptions::new()).await.map(drop) })
            })
            .collect();
        let readers: Vec<_> = (0..TASKS)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.read::<u64>("count").await })
            })
            .collect();
        sleep(millis(300)).await;
        assert!(threads() <= before, "{} threads for waits, before {before}", threads());
        aborted.iter().for_each(tokio::task::JoinHandle::abort);
        guard.release().await.unwrap();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        assert_eq!(store.read::<u64>("count").await.unwrap().unwrap().result, TASKS);
    });
    // Outside of a runtime as well.
    assert!(!open(&url).is_locked("count").unwrap());
    stage.send("done");
}

#[test]
fn many_tasks_wait_without_threads() {
    let Some(url) = new_url() else { return };
    let mut child = Child::start("postgres: many tasks", &url);
    child.expect("done");
    child.finish();
}
