//! JSON records and crash-safe locks in one directory, shared by the processes of one host.
//!
//! A *record* is one JSON file. A *lock* is a sidecar file beside it that says who holds the record
//! and until when. Advisory `flock` keeps the processes out of each other's way: there is no daemon,
//! no server and, while nobody waits, no background thread.
//!
//! ```
//! use std::time::Duration;
//! use record_store::{FileSystemRecordStore, LockOptions, RecordStoreExt};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("records");
//! let store = FileSystemRecordStore::open(&path)?;
//!
//! // One process at a time, whatever becomes of the others.
//! let options = LockOptions::new()
//!     .acquire_timeout(Duration::from_secs(5))
//!     .hold_timeout(Duration::from_secs(30));
//! let guard = store.lock("visits", options)?;
//! let visits: u64 = guard.read()?.map_or(0, |record| record.result);
//! guard.write(&(visits + 1))?;
//! guard.release()?;
//!
//! assert_eq!(store.read::<u64>("visits")?.map(|record| record.result), Some(1));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`lock`] and [`read`] and [`write`] are the ground. On it stand [`get_or_compute`] (work done once,
//! for all who ask), [`update`] and [`compare_and_swap`], records with a [time to live], [`watch`],
//! [`lock_all`] and [`transaction`]. The [guide] has a page with an example for each.
//!
//! # Guarantees
//!
//! * **One holder.** At no moment do two live holders exist for one key, whatever is killed, stopped,
//!   forked or expired.
//! * **Whole records.** A reader sees an old record or a new one, never something between.
//! * **No late writers.** Changes through a [`LockGuard`] carry its token. A holder whose lease ran
//!   out gets [`Error::LockLost`] and changes nothing, even if nobody took the lock since.
//! * **No lost writes.** What returned `Ok` survives the crash of any process and, under
//!   [`Durability::Full`], the default, also a power loss.
//! * **No dead locks.** A lock of the default holder is free as soon as its process is gone, however
//!   it went: the kernel tells. A named holder's lock is free when its lease runs out.
//! * **Committed reads.** A read returns what was current at a moment at which no other's lock was
//!   live. It writes nothing and works in a directory that cannot be written.
//! * **Bounded calls.** A call with a timeout returns by it, also while some process is stopped in
//!   the middle of an operation.
//! * **Clocks.** Leases are kept by the boot clock: stepping the wall clock changes nothing, and
//!   time spent suspended counts.
//!
//! # Limitations
//!
//! * Unix only, Linux first. One host: containers may share a directory, machines may not. No network
//!   file systems; [`open`](FileSystemOptions::open) refuses where `flock` can be seen not to work.
//! * Nothing protects from hostile processes of the same user: they can change the files.
//! * Several records are not changed in one step.
//! * A forked child that goes on without `exec` keeps the locks of its dead parent alive until it
//!   changes the store itself, or ends. If another thread was just changing the store when it was
//!   forked and the parent is killed in that moment, the keys of that latch stay blocked until the
//!   child ends.
//! * A checksum finds damage to a result. A record without one counts as written by hand and is taken
//!   as it stands; so does one in which both the checksum's name and the result are damaged.
//! * On a file system that ignores case or normalises Unicode, keys that differ only so share one
//!   file name. Using the second is [`Error::KeyMismatch`], but writing it replaces the first.
//!
//! # Pitfalls
//!
//! * A lease is a promise to be done by then. Work that may take longer [renews](LockGuard::renew)
//!   it, and what is not written through the guard must check the [token](LockGuard::token).
//! * A [named](Holder::named) holder without a hold timeout keeps its lock for ever if it forgets to
//!   release, for that is what naming is for. [`break_lock`](RecordStoreExt::break_lock) helps.
//! * The default holder is the thread. Two guards of one thread for one key are one lock; so are two
//!   tasks that share a thread. The module `tokio`, behind the feature of that name, has a holder for
//!   each task, and futures that do not block.
//!
//! # For those who know Prefect
//!
//! The contract is that of `RecordStore` in `prefect.records.base`. Where it is stricter, users of
//! Prefect's own file store had paid for the difference.
//!
//! | Prefect | here | stricter in |
//! | --- | --- | --- |
//! | `TransactionRecord(key, result)` | [`TransactionRecord`] | |
//! | `read(key, holder)` | [`read`], [`read_as`], [`try_read`], [`LockGuard::read`] | waits for another's lock also while there is no record yet, because its holder may be about to write it; a timeout is an error, never a silent `None` |
//! | `write(key, result, holder)` | [`write`], [`write_as`], [`LockGuard::write`] | the check and the change are one step, so no write lands inside another's lock; in place of a torn file there is the old record or the new |
//! | `exists(key)` | [`exists`] | |
//! | `supports_isolation_level(level)` | [`supports_isolation_level`] | |
//! | `acquire_lock(key, holder, acquire_timeout, hold_timeout)` | [`acquire_lock`] | returns the token, and an error that names the holder where Prefect returned `False`, which is easy to ignore; a timeout of zero tries once, where Prefect waited for ever; an expired lock is taken over in one step, so there are never two holders |
//! | `release_lock(key, holder)` | [`release_lock`] | releasing what is not locked is an error too |
//! | `is_locked(key)`, `is_lock_holder(key, holder)` | [`is_locked`], [`is_lock_holder`] | asking never writes; a dead process's lock is no lock |
//! | `wait_for_lock(key, timeout)` | [`wait_for_lock`] | woken by the release, not by polling |
//! | `lock(key, …)` | [`lock`] → [`LockGuard`] | a lock that cannot be had is an error, where Prefect ran the body all the same; the guard's changes are fenced |
//! | `generate_default_holder()` | [`Holder::current`] | bound to the process: its death frees the lock |
//! | `NotImplementedError` | [`Error::Unsupported`] | names the method |
//! | `prefect.transactions` | [`transaction`] | see the table at [`Transaction`] |
//! | | [`remove`], [`renew`], [`try_lock`], [`lock_info`], [`break_lock`], [`keys`], [`locks`] | not in Prefect |
//!
//! [`get_or_compute`]: RecordStoreExt::get_or_compute
//! [`update`]: RecordStoreExt::update
//! [`compare_and_swap`]: RecordStoreExt::compare_and_swap
//! [`watch`]: RecordStoreExt::watch
//! [`lock_all`]: RecordStoreExt::lock_all
//! [`transaction`]: RecordStoreExt::transaction
//! [time to live]: WriteOptions::time_to_live
//! [`read`]: RecordStoreExt::read
//! [`read_as`]: RecordStoreExt::read_as
//! [`try_read`]: RecordStoreExt::try_read
//! [`write`]: RecordStoreExt::write
//! [`write_as`]: RecordStoreExt::write_as
//! [`exists`]: RecordStoreExt::exists
//! [`supports_isolation_level`]: RecordStoreExt::supports_isolation_level
//! [`acquire_lock`]: RecordStoreExt::acquire_lock
//! [`release_lock`]: RecordStoreExt::release_lock
//! [`is_locked`]: RecordStoreExt::is_locked
//! [`is_lock_holder`]: RecordStoreExt::is_lock_holder
//! [`wait_for_lock`]: RecordStoreExt::wait_for_lock
//! [`lock`]: RecordStoreExt::lock
//! [`try_lock`]: RecordStoreExt::try_lock
//! [`remove`]: RecordStoreExt::remove
//! [`renew`]: RecordStoreExt::renew
//! [`lock_info`]: RecordStoreExt::lock_info
//! [`break_lock`]: RecordStoreExt::break_lock
//! [`keys`]: RecordStoreExt::keys
//! [`locks`]: RecordStoreExt::locks

#[cfg(not(unix))]
compile_error!("record-store needs a Unix: it is built on flock");

mod cancellation;
mod compute;
mod error;
mod filesystem;
mod finite;
mod guard;
mod holder;
mod keep_alive;
mod key;
mod lock;
mod lock_all;
mod memory;
mod per_process;
mod record;
mod same;
mod store;
mod store_ext;
mod trace;
mod transaction;
mod watch;

#[cfg(feature = "conformance")]
pub mod conformance;
// Pages to read, with nothing to use in them.
#[cfg(any(doc, doctest))]
pub mod guide;
#[cfg(feature = "tokio")]
pub mod tokio;

pub use cancellation::{Cancellation, OnCancel};
pub use compute::UpdateOptions;
pub use error::{Error, Result};
pub use filesystem::{Checked, Durability, FileSystemOptions, FileSystemRecordStore, Finding, OpenMode};
pub use filesystem::{Problem, Swept, Verification};
pub use guard::LockGuard;
pub use holder::Holder;
pub use key::{IntoKey, Key};
pub use lock::{Acquired, Claim, LockInfo, LockOptions, LockState, LockToken};
pub use lock_all::LockGuards;
pub use memory::MemoryRecordStore;
pub use record::{Json, TransactionRecord, WriteOptions};
pub use store::{IsolationLevel, Listing, RecordStore};
pub use store_ext::RecordStoreExt;
pub use transaction::{CommitMode, PendingTransaction, Transaction, TransactionState};
pub use watch::{RecordChange, RecordVersion, RecordWatch};

/// The README's examples, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
