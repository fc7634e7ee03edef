//! Every future can be spawned, whatever the type of the store is.

use std::sync::Arc;
use std::time::Duration;

use record_store::asynchronous::{AsyncRecordStore, current_holder};
use record_store::{
    BreakOptions, ChangesOptions, Claim, Durability, Error, EvictionPolicy, FileSystemRecordStore, Holder,
    IsolationLevel, Key, ListOptions, LockOptions, MemoryRecordStore, ReadOptions, RecordStore,
    RemoveOptions, UpdateOptions, WaitOptions, WriteOptions,
};
use tempfile::tempdir;

use super::multi_threaded;
use crate::support::{PATIENCE, open_with};

/// Spawns a future that owns a clone of the store, and returns its output.
macro_rules! spawn {
    ($store:ident, $call:expr) => {{
        let $store = $store.clone();
        tokio::spawn(async move { $call.await }).await.unwrap()
    }};
}

/// Calls every method in a task of its own. It is a macro and not a generic function, because each type of a store is an
/// own question to the compiler: whether a future can be spawned depends on the lifetimes in it and on the type.
macro_rules! spawns_every_method_of {
    ($name:ident, $store:ty) => {
        async fn $name(store: AsyncRecordStore<$store>) {
            async fn records(store: &AsyncRecordStore<$store>) {
                let (key, short) = (Key::new("k").unwrap(), Duration::ZERO);
                spawn!(store, store.write("k", "one")).unwrap();
                let version = spawn!(store, store.read::<String>("k")).unwrap().unwrap().version;
                spawn!(store, store.read_with::<String>(key, ReadOptions::new())).unwrap();
                let options = || WriteOptions::new().time_to_live(PATIENCE);
                spawn!(store, store.write_with(String::from("k"), &1, options().timeout(short))).unwrap();
                assert!(!spawn!(store, store.write_if_absent("k", &2, options())).unwrap());
                assert!(!spawn!(store, store.write_if_version("k", version, &2, options())).unwrap());
                assert!(spawn!(store, store.compare_and_swap("k", Some(&1), &2, options())).unwrap());
                assert!(spawn!(store, store.exists("k")).unwrap());
                assert!(spawn!(store, store.record_info("k")).unwrap().is_some());
                assert_eq!(spawn!(store, store.evict(EvictionPolicy::new())).unwrap().records, 0);
                assert!(spawn!(store, store.remove("k")).unwrap());
                assert!(!spawn!(store, store.remove_with("k", RemoveOptions::new())).unwrap());
            }

            async fn computations(store: &AsyncRecordStore<$store>) {
                let options = || UpdateOptions::new().stale_for(PATIENCE);
                let computed = spawn!(store, store.get_or_compute("k", options(), async || Ok(1)));
                assert_eq!(computed.unwrap(), 1);
                let computed = spawn!(
                    store,
                    store.get_or_try_compute("k", LockOptions::new(), async || Ok::<_, Error>(2))
                );
                assert_eq!(computed.unwrap(), 1);
                let add = async |old: Option<u32>| Ok::<_, Error>(old.unwrap_or(0) + 1);
                assert_eq!(spawn!(store, store.update("k", LockOptions::new(), add)).unwrap(), 2);
                assert_eq!(spawn!(store, store.try_update("k", LockOptions::new(), add)).unwrap(), 3);
            }

            async fn locks(store: &AsyncRecordStore<$store>) {
                let named = || LockOptions::new().holder(Holder::named("one").unwrap());
                let claim = || Claim::Holder(Holder::named("one").unwrap());
                let token = spawn!(store, store.acquire_lock("k", named())).unwrap();
                assert!(spawn!(store, store.is_locked("k")).unwrap());
                assert!(
                    !spawn!(store, async { store.is_lock_holder("k", &current_holder()).await }).unwrap()
                );
                assert_eq!(spawn!(store, store.lock_info("k")).unwrap().unwrap().token(), token);
                assert!(!spawn!(store, store.wait_for_lock("k", Duration::ZERO)).unwrap());
                assert!(spawn!(store, store.try_lock("k", LockOptions::new())).unwrap().is_none());
                spawn!(store, store.renew("k", claim(), None)).unwrap();
                spawn!(store, store.renew_with("k", claim(), None, WaitOptions::new())).unwrap();
                spawn!(store, store.release_lock("k", claim())).unwrap();
                assert!(spawn!(store, store.release_lock_with("k", claim(), Duration::ZERO)).is_err());
                assert!(!spawn!(store, store.break_lock("k")).unwrap());
                assert!(!spawn!(store, store.break_lock_with("k", BreakOptions::new())).unwrap());
            }

            async fn guards(store: &AsyncRecordStore<$store>) {
                let guard = spawn!(store, store.lock("k", LockOptions::new())).unwrap();
                let guard = Arc::new(guard);
                spawn!(guard, guard.write(&1)).unwrap();
                spawn!(guard, guard.write_with(&2, WriteOptions::new())).unwrap();
                assert_eq!(spawn!(guard, guard.read::<u32>()).unwrap().unwrap().result, 2);
                spawn!(guard, guard.read_with::<u32>(ReadOptions::new())).unwrap();
                spawn!(guard, guard.renew()).unwrap();
                spawn!(guard, guard.renew_with(PATIENCE)).unwrap();
                assert_eq!(spawn!(guard, guard.remaining()).unwrap(), None);
                assert!(spawn!(guard, guard.is_held()).unwrap());
                assert!(spawn!(guard, guard.remove()).unwrap());
                assert!(!spawn!(guard, guard.remove_with(RemoveOptions::new())).unwrap());
                let guard = Arc::into_inner(guard).unwrap();
                tokio::spawn(guard.release()).await.unwrap().unwrap();
                let leased = LockOptions::new().hold_timeout(PATIENCE);
                let guard = spawn!(store, store.lock("k", leased)).unwrap();
                let release = async move {
                    guard.keep_alive(|_| ()).await?;
                    guard.release_with(WaitOptions::new()).await
                };
                tokio::spawn(release).await.unwrap().unwrap();

                let guards = spawn!(store, store.lock_all(["a", "b"], LockOptions::new())).unwrap();
                let guards = Arc::new(guards);
                spawn!(guards, guards.renew()).unwrap();
                spawn!(guards, guards.renew_with(WaitOptions::new())).unwrap();
                let guards = Arc::into_inner(guards).unwrap();
                tokio::spawn(guards.release()).await.unwrap().unwrap();
                let guards = spawn!(store, store.lock_all(["a", "b"], LockOptions::new())).unwrap();
                tokio::spawn(guards.release_with(WaitOptions::new())).await.unwrap().unwrap();
            }

            async fn streams(store: &AsyncRecordStore<$store>) {
                store.write("k", &1).await.unwrap();
                let mut keys = spawn!(store, store.keys()).unwrap();
                tokio::spawn(async move { keys.next().await.unwrap() }).await.unwrap().unwrap();
                let mut records = spawn!(store, store.records(ListOptions::new().results(true))).unwrap();
                tokio::spawn(async move { records.next().await.unwrap() }).await.unwrap().unwrap();
                let mut locks = spawn!(store, store.locks()).unwrap();
                assert!(tokio::spawn(async move { locks.next().await.is_none() }).await.unwrap());
                let mut watch = spawn!(store, store.watch("k")).unwrap();
                let change = tokio::spawn(async move { watch.next(Duration::ZERO).await });
                assert_eq!(change.await.unwrap().unwrap(), None);
                assert!(!spawn!(store, store.wait_for_record("k", Duration::ZERO)).unwrap());
                let mut all = spawn!(store, store.changes(ChangesOptions::new())).unwrap();
                assert!(tokio::spawn(async move { all.next(Duration::ZERO).await }).await.unwrap().is_ok());
            }

            records(&store).await;
            computations(&store).await;
            locks(&store).await;
            guards(&store).await;
            streams(&store).await;
        }
    };
}

/// The same for transactions and their hooks.
macro_rules! spawns_transactions_of {
    ($name:ident, $store:ty) => {
        async fn $name(store: &AsyncRecordStore<$store>) {
            store.remove("k").await.unwrap();
            let (inner, pending) = (store.clone(), store.transaction("k").unwrap());
            let pending = pending.isolation_level(IsolationLevel::Serializable);
            let run = pending.run(async move |parent| {
                assert!(parent.read::<u32>().await?.is_none());
                parent.read_with::<u32>(ReadOptions::new()).await?;
                let store = inner.clone();
                parent.on_commit(async move |key| {
                    assert!(!store.exists(key).await?);
                    Ok(())
                });
                let store = inner.clone();
                parent.on_rollback(|key| async move {
                    store.remove(key).await?;
                    Ok(())
                });
                let child = parent.child("child")?.run(async |child| {
                    child.read::<u32>().await?;
                    inner.transaction("own")?.run(async |own| own.stage(&0)).await?;
                    child.stage(&1)
                });
                child.await?;
                parent.stage(&2)
            });
            tokio::spawn(run).await.unwrap().unwrap();
            assert!(store.exists("child").await.unwrap() && store.exists("own").await.unwrap());
            let begin = || tokio::spawn(store.transaction("k").unwrap().overwrite(true).begin());
            tokio::spawn(begin().await.unwrap().unwrap().commit()).await.unwrap().unwrap();
            tokio::spawn(begin().await.unwrap().unwrap().rollback()).await.unwrap().unwrap();
            tokio::spawn(begin().await.unwrap().unwrap().finish()).await.unwrap().unwrap();
        }
    };
}

spawns_every_method_of!(of_any_store, Arc<dyn RecordStore>);
spawns_every_method_of!(of_any_unsized_store, dyn RecordStore);
spawns_every_method_of!(of_the_file_store, FileSystemRecordStore);
spawns_every_method_of!(of_the_memory_store, MemoryRecordStore);
#[cfg(feature = "postgres")]
spawns_every_method_of!(of_the_postgres_store, record_store::PostgresRecordStore);

spawns_transactions_of!(transactions_of_any_store, Arc<dyn RecordStore>);
spawns_transactions_of!(transactions_of_any_unsized_store, dyn RecordStore);
spawns_transactions_of!(transactions_of_the_file_store, FileSystemRecordStore);
spawns_transactions_of!(transactions_of_the_memory_store, MemoryRecordStore);
#[cfg(feature = "postgres")]
spawns_transactions_of!(transactions_of_the_postgres_store, record_store::PostgresRecordStore);

#[test]
fn every_method_of_every_type_of_store_can_be_spawned() {
    let dir = tempdir().unwrap();
    let files = open_with(dir.path(), Durability::Relaxed);
    multi_threaded().block_on(async {
        let store = AsyncRecordStore::new(files.clone());
        of_the_file_store(store.clone()).await;
        transactions_of_the_file_store(&store).await;
        let any: Arc<dyn RecordStore> = Arc::new(files);
        of_any_store(AsyncRecordStore::new(Arc::clone(&any))).await;
        transactions_of_any_store(&AsyncRecordStore::new(any)).await;
        let store = AsyncRecordStore::new(MemoryRecordStore::new());
        of_the_memory_store(store.clone()).await;
        transactions_of_the_memory_store(&store).await;
        let memory: Arc<dyn RecordStore> = Arc::new(MemoryRecordStore::new());
        let store = AsyncRecordStore::from(memory);
        of_any_unsized_store(store.clone()).await;
        transactions_of_any_unsized_store(&store).await;
        #[cfg(feature = "postgres")]
        if let Some(url) = crate::postgres::new_url() {
            let store = AsyncRecordStore::new(crate::postgres::open(&url));
            of_the_postgres_store(store.clone()).await;
            transactions_of_the_postgres_store(&store).await;
        }
    });
}

#[test]
fn the_test_above_has_every_method() {
    let (mut missing, calls) = (Vec::new(), include_str!("spawn.rs"));
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/asynchronous")).unwrap() {
        let source = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for method in source.split("pub async fn ").skip(1) {
            let name = method.split(['(', '<']).next().unwrap();
            if !calls.contains(&format!(".{name}(")) && !calls.contains(&format!(".{name}::<")) {
                missing.push(name.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}
