//! The names of this crate do not hide the crate `tokio`: a program can import them all.

use record_store::*;

async fn lock_and_write(store: AsyncStore, key: String) -> Result<u64> {
    let guard = store.lock(key, LockOptions::new()).await?;
    guard.write(&1_u64).await?;
    let record = guard.read::<u64>().await?;
    guard.release().await?;
    Ok(record.expect("it was just written").result)
}

type AsyncStore = asynchronous::AsyncRecordStore<MemoryRecordStore>;

#[tokio::test]
async fn a_program_can_import_every_name_and_use_tokio() {
    let store = AsyncStore::new(MemoryRecordStore::new());
    let task = tokio::spawn(lock_and_write(store.clone(), "spawned".to_owned()));
    assert_eq!(task.await.expect("the task does not panic").expect("a write"), 1);
    assert!(store.exists("spawned").await.expect("a check"));
    tokio::task::yield_now().await;
}

/// As the `main` of a program.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let store = AsyncStore::new(MemoryRecordStore::new());
    let joined = tokio::join!(store.exists("a"), lock_and_write(store.clone(), "b".to_owned()));
    assert_eq!((joined.0?, joined.1?), (false, 1));
    Ok(())
}

/// The operations as futures do not make those that block ambiguous.
#[cfg(feature = "postgres")]
fn write_and_read(store: &PostgresRecordStore) -> Result<bool> {
    store.write("k", &1)?;
    Ok(store.exists("k")? && store.read::<u8>("k")?.is_some())
}

#[cfg(feature = "postgres")]
#[test]
fn a_program_can_import_every_name_and_use_a_server() {
    let Some(url) = crate::postgres::new_url() else { return };
    assert!(write_and_read(&crate::postgres::open(&url)).expect("a write"));
}

#[test]
fn the_macro_for_main_works_too() {
    main().expect("a program");
}
