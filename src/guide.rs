//! What people do with a record store: a page for each, in the order in which one meets them.
//!
//! 1. [Compute once](compute_once): a pool of workers, and each piece of work done by one of them.
//! 2. [Update](update): read, change and write without losing anybody's change.
//! 3. [Records that end](expiry): caches and sessions.
//! 4. [Waiting for a record](watching).
//! 5. [Several keys](several_keys) at once.
//! 6. [Transactions](transactions): work that is committed or rolled back as a whole.
//! 7. [Asynchronous programs](asynchronous), with the feature `tokio`.
//! 8. [Seeing what goes on](observing), with the feature `tracing`.
//! 9. [The command line](command_line), with the feature `cli`.

/// # Memoising an expensive job across a worker pool
///
/// Every worker asks for what it needs. The first one computes it under the key's lock, all others
/// wait for it, and whoever comes later reads it.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::time::Duration;
/// use record_store::{Error, FileSystemRecordStore, LockOptions, RecordStoreExt};
///
/// // Each worker may as well be a process of its own: they share nothing but the directory.
/// fn thumbnail(dir: &std::path::Path, image: &str, rendered: &AtomicU32) -> Result<String, Error> {
///     let store = FileSystemRecordStore::open(dir)?;
///     let wait = LockOptions::new().acquire_timeout(Duration::from_secs(60));
///     store.get_or_compute(image, wait, || {
///         rendered.fetch_add(1, Ordering::Relaxed);
///         Ok(format!("{image}, very small"))
///     })
/// }
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let rendered = AtomicU32::new(0);
/// std::thread::scope(|pool| {
///     for _ in 0..8 {
///         pool.spawn(|| thumbnail(dir, "cat.png", &rendered).expect("a thumbnail"));
///     }
/// });
/// assert_eq!(rendered.into_inner(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// ## When it goes wrong
///
/// | what happens | what follows |
/// | --- | --- |
/// | the closure fails or panics | nothing is stored, the key is free, the next one in the pool tries; the error is the caller's own |
/// | the computing process dies | so it is free at once, by whatever it died: the kernel tells |
/// | the computing process is stopped | with a hold timeout the lease runs out and the next one tries; the late result is refused |
/// | the pool waits too long | [`Error::LockTimeout`](crate::Error::LockTimeout), which names the holder |
/// | the result is stored, but of another type | [`Error::Decode`](crate::Error::Decode); nothing is computed |
///
/// Exactly-once means: one result is stored. A process can die after its work had effects elsewhere
/// and before the result was stored, and then the work is done again. Work whose effects are
/// elsewhere takes the guard's [token](crate::LockGuard::token) along, so that the other side can
/// refuse a late comer.
pub mod compute_once {}

/// # Read, change, write
///
/// [`update`](crate::RecordStoreExt::update) holds the lock while it calls the closure, so no change
/// is lost:
///
/// ```
/// use record_store::{Error, FileSystemRecordStore, LockOptions, RecordStoreExt};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// for name in ["ada", "grace"] {
///     store.update("members", LockOptions::new(), |members: Option<Vec<String>>| {
///         let mut members = members.unwrap_or_default();
///         members.push(name.to_owned());
///         Ok::<_, Error>(members)
///     })?;
/// }
/// assert_eq!(store.read::<Vec<String>>("members")?.unwrap().result, ["ada", "grace"]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Where nobody should wait for the caller's code, look and swap instead. The loop does the work again
/// if another was faster:
///
/// ```
/// use record_store::{FileSystemRecordStore, RecordStoreExt, WriteOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// let next = loop {
///     let seen = store.read::<u64>("ticket")?.map(|record| record.result);
///     let next = seen.unwrap_or(0) + 1;
///     if store.compare_and_swap("ticket", seen.as_ref(), &next, WriteOptions::new())? {
///         break next;
///     }
/// };
/// assert_eq!(next, 1);
/// assert!(!store.write_if_absent("ticket", &7, WriteOptions::new())?, "it is there");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod update {}

/// # Records that end
///
/// A record with a time to live reads as absent when it is over, and does not exist. Its file goes at
/// the next write, or when somebody [sweeps](crate::FileSystemRecordStore::sweep).
///
/// ```
/// use std::time::Duration;
/// use record_store::{Error, FileSystemRecordStore, LockOptions, RecordStoreExt, UpdateOptions, WriteOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// let moment = Duration::from_millis(1);
/// store.write_with("session-7", "signed in", WriteOptions::new().time_to_live(moment))?;
/// std::thread::sleep(2 * moment);
/// assert!(store.read::<String>("session-7")?.is_none());
/// assert_eq!(store.sweep()?.records, 1);
///
/// // A cache: computed once an hour, by one process.
/// let hourly = UpdateOptions::new()
///     .lock(LockOptions::new().acquire_timeout(Duration::from_secs(10)))
///     .time_to_live(Duration::from_secs(3600));
/// let rate: f64 = store.get_or_compute("exchange-rate", hourly, || Ok::<_, Error>(1.09))?;
/// assert!(rate > 1.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Time is kept as it is for leases: by the boot clock within one boot, so that stepping the wall clock
/// changes nothing, and by the wall clock across boots.
pub mod expiry {}

/// # Waiting for a record
///
/// Asleep until another process writes, without polling:
///
/// ```
/// use record_store::{FileSystemRecordStore, RecordChange, RecordStoreExt};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// // From here on nothing is missed, so look after this, not before.
/// let mut watch = store.watch("config")?;
/// let other = std::thread::spawn({
///     let store = store.clone();
///     move || store.write("config", "verbose")
/// });
/// assert_eq!(watch.next(None)?, Some(RecordChange::Appeared));
/// assert_eq!(store.read::<String>("config")?.unwrap().result, "verbose");
/// # other.join().expect("no panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`wait_for_record`](crate::RecordStoreExt::wait_for_record) is the short form, for one change. A
/// file that was changed by hand is noticed within a quarter of a second; so is every change by a store
/// that was opened read-only, because it cannot say that it wants to be woken.
pub mod watching {}

/// # Several keys at once
///
/// The locks are taken in one global order, so two that want the same keys never wait for each other
/// in a circle:
///
/// ```
/// use std::time::Duration;
/// use record_store::{FileSystemRecordStore, LockOptions, RecordStoreExt};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// store.write("savings", &100)?;
/// store.write("checking", &0)?;
///
/// let both = store.lock_all(
///     ["savings", "checking"],
///     LockOptions::new().acquire_timeout(Duration::from_secs(5)),
/// )?;
/// for (account, change) in [("savings", -30), ("checking", 30)] {
///     let guard = both.get(account).expect("it is locked");
///     let balance = guard.read::<i64>()?.map_or(0, |record| record.result);
///     guard.write(&(balance + change))?;
/// }
/// both.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// All locks or none, by the deadline. The two writes are not one: a crash between them leaves the
/// first without the second.
pub mod several_keys {}

/// # Transactions
///
/// After Prefect's `prefect.transactions`: do the work, stage the result, say how to undo what has
/// effects elsewhere. What is not committed is rolled back, on error, on panic, on drop.
/// [`Transaction`](crate::Transaction) has the rules, and a table of Prefect's names.
///
/// ```
/// use record_store::{Error, FileSystemRecordStore, IsolationLevel, RecordStoreExt};
///
/// fn publish(store: &FileSystemRecordStore, page: &str, fails: bool) -> Result<(), Error> {
///     let transaction = store.transaction(page)?.isolation_level(IsolationLevel::Serializable);
///     transaction.run(|transaction| {
///         if transaction.is_committed() {
///             return Ok(()); // done before, perhaps by another process
///         }
///         transaction.on_rollback(|page| {
///             println!("take {page} down again");
///             Ok(())
///         });
///         transaction.child(format!("{page}/images"))?.run(|images| images.stage(&["cat.png"]))?;
///         if fails {
///             return Err(Error::Unsupported { method: "publishing on Fridays" });
///         }
///         transaction.stage("published")
///     })
/// }
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// assert!(publish(&store, "front", true).is_err());
/// assert!(!store.exists("front/images")?, "rolled back with its parent");
/// publish(&store, "front", false)?;
/// assert!(store.exists("front")? && store.exists("front/images")?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod transactions {}

/// # Asynchronous programs
///
/// With the feature `tokio` the module `record_store::tokio` has the same operations as futures. None of
/// them blocks the executor, however long it waits, and each task is a holder of its own:
///
/// ```
/// # #[cfg(feature = "tokio")]
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use record_store::tokio::AsyncRecordStore;
/// use record_store::{Error, FileSystemRecordStore, LockOptions};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = AsyncRecordStore::new(FileSystemRecordStore::open(dir)?);
/// let mut pool = Vec::new();
/// for worker in 0..20 {
///     let store = store.clone();
///     pool.push(tokio::spawn(async move {
///         // One task computes, the others wait without a thread of their own.
///         let first: u32 =
///             store.get_or_compute("first", LockOptions::new(), async || Ok::<_, Error>(worker)).await?;
///         let guard = store.lock("count", LockOptions::new()).await?;
///         let count = guard.read::<u32>().await?.map_or(0, |record| record.result);
///         guard.write(&(count + 1)).await?;
///         guard.release().await?;
///         Ok::<_, Error>(first)
///     }));
/// }
/// for worker in pool {
///     worker.await??;
/// }
/// assert_eq!(store.read::<u32>("count").await?.unwrap().result, 20);
///
/// // Whoever does not want to wait any longer drops the future: no lock and no place in the line stays.
/// let held = store.lock("report", LockOptions::new()).await?;
/// let other = tokio::spawn({
///     let store = store.clone();
///     async move {
///         let wait = store.lock("report", LockOptions::new());
///         tokio::time::timeout(Duration::from_millis(10), wait).await.is_err()
///     }
/// });
/// assert!(other.await?, "it is held");
/// held.release().await?;
/// # Ok(())
/// # }
/// # #[cfg(not(feature = "tokio"))]
/// # fn main() {}
/// ```
pub mod asynchronous {}

/// # Seeing what goes on
///
/// With the feature `tracing` the store tells of waits (a span, with the key and the holder that is
/// waited for), of locks taken over from late or dead holders, and of locks that were lost. A call that
/// has nothing to wait for is silent. Without the feature none of this is compiled.
///
/// | what | level | fields |
/// | --- | --- | --- |
/// | span `wait`: a call waits for another holder's lock | debug | `operation`, `key`, `holder` |
/// | event in it: the wait is over, or the call gave up | debug | `waited`, `error` |
/// | event: took over a lock whose lease ran out, or that of a dead owner | info | `key`, `token`, `holder` |
/// | event: the lock is lost | warn | `operation`, `key`, `token` |
/// | event: a sweep cleared away what was left behind | debug | `owners`, `staged`, `locks`, `records` |
///
/// The target of all of them is `record_store`. The store in memory tells of lost locks only.
///
/// Without any feature, [`locks`](crate::RecordStoreExt::locks) answers who holds what:
///
/// ```
/// use record_store::{FileSystemRecordStore, LockOptions, RecordStoreExt};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// let _guard = store.lock("report", LockOptions::new())?;
/// for lock in store.locks()? {
///     let lock = lock?;
///     println!("{} is {:?}, by {} (alive: {:?})", lock.key(), lock.state(), lock.holder(), lock.owner_alive());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod observing {}

/// # The command line
///
/// The feature `cli` builds the program `record-store`, for shell scripts and for people:
///
/// ```sh
/// cargo install --path . --features cli
/// record-store run cache report --ttl 1h -- ./report.sh   # once, however many ask
/// record-store get cache report | jq .total
/// record-store locks cache                                # who holds what
/// record-store watch cache                                # the same, as it changes
/// record-store unlock cache report                        # asks first
/// record-store export cache backup.jsonl
/// record-store verify cache && record-store gc cache
/// ```
///
/// A program sees what the command line stored, and the other way round:
///
/// ```
/// use record_store::{FileSystemRecordStore, RecordStoreExt};
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileSystemRecordStore::open(dir)?;
/// store.write("report", &serde_json::json!({"total": 12}))?;
/// // $ record-store get DIR report
/// // {"total":12}
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// `record-store help` and `record-store help run` say the rest.
pub mod command_line {}
