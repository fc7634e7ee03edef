//! JSON records and crash-safe locks in one directory, shared by the processes of one host.
//!
//! A *record* is one JSON file. A *lock* is a sidecar file beside it that says who holds the record and until
//! when. Advisory `flock` keeps the processes apart. There is no daemon and no server. A background
//! thread exists only for calls that wait and for [`keep_alive`](LockGuard::keep_alive).
//!
//! ```
//! use std::time::Duration;
//! use record_store::{FileSystemRecordStore, LockOptions, RecordStoreExt};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("records");
//! let store = FileSystemRecordStore::open(&path)?;
//!
//! // One process at a time, whatever happens to the others.
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
//! [`lock`], [`read`] and [`write`] are the foundation. Beside them are [`get_or_compute`] (work done once, for
//! all callers), [`update`] and [`write_if_version`], records with a [time to live], [`watch`], [`changes`] of the
//! whole store, [`lock_all`] and [`transaction`]. The [guide] has a page with an example for each.
//!
//! # Layers
//!
//! ```text
//!    your program        record-store (command line)
//!          │                      │
//!          ▼                      ▼
//!    RecordStoreExt   typed methods: read, write, lock, update, …   asynchronous::AsyncRecordStore
//!          │          guards, get_or_compute, watches, transactions     the same as futures
//!          ▼
//!    RecordStore      the object-safe core: JSON text, complete options, one method per operation
//!          │
//!          ├── MemoryRecordStore        threads of one process
//!          ├── FileSystemRecordStore    processes of one host
//!          │      operations ─ claims, leases, latches, owners ─ files, wait queue
//!          ├── PostgresRecordStore      processes of several hosts (feature `postgres`)
//!          └── your own store           `conformance` tests it
//! ```
//!
//! The page [design] describes the files, the protocol and the invariants (I1, I2, …) that the comments in the
//! source name.
//!
//! # Guarantees
//!
//! * **One holder.** At no moment do two live holders exist for one key, whatever process is killed, stopped or
//!   forked, and whenever a lease expires.
//! * **Whole records.** A reader sees an old record or a new one, never a mixture.
//! * **No late writers.** Changes through a [`LockGuard`] carry its fencing token. A holder whose lease expired
//!   gets [`ErrorKind::LockLost`] and changes nothing, even if nobody acquired the lock since.
//! * **No lost writes.** A write or a removal that returned `Ok` survives the crash of any process and, under
//!   [`Durability::Full`], the default, also a [power loss](guide::durability).
//! * **Stale locks free themselves.** A lock of the default holder or of a [bound](Holder::bound) one is free as
//!   soon as its process is gone, also after `kill -9`: the kernel reports it. A lock of a named holder is free
//!   when its lease expires.
//! * **Committed reads.** A read returns a result that was current at a moment at which no other holder's lock
//!   was live. It writes nothing and works in a directory that cannot be written.
//! * **Nothing foreign is lost.** A directory with other files becomes a store only if the
//!   [caller says so](OpenMode::Adopt). A file in the place of a record or a lock that is neither, such as a damaged
//!   record, is never overwritten or deleted, but [moved aside](FileSystemRecordStore::damaged).
//! * **Bounded calls.** A call that has a timeout returns by then, also while a process is stopped in the middle of
//!   an operation.
//! * **Clocks.** Within one boot and time namespace of Linux, leases follow the boot clock: stepping the wall clock
//!   changes nothing, and suspended time counts. Across them, and on other systems, the wall clock decides.
//!
//! # Limitations
//!
//! * Unix only, Linux first. One host: containers may share a directory, machines may not (the feature `postgres` has a
//!   [store for several](guide::postgres)). No network file systems
//!   and no FUSE: [`open`](FileSystemOptions::open) refuses them by name, unless the caller
//!   [allows](FileSystemOptions::allow_any_file_system) them.
//! * No protection from programs that remove old files: without its owner file, a process loses its locks. Keep a
//!   store out of `/tmp`, or see [where a store lives](guide::surroundings).
//! * No protection from hostile processes of the same user: they can change the files.
//! * Several records cannot be changed atomically.
//! * Without a timeout, a change or a release waits while a process is stopped in the middle of an operation on
//!   a key of the same latch, one of 256. The drop of a guard or a transaction waits for at most a second.
//! * On other systems than Linux there is no commit log. After a power loss, the lock of a named holder may be gone there,
//!   and a token or a version may repeat if the wall clock is behind.
//! * A child that is forked without the C library's `fork` keeps the locks of its dead parent alive until it uses a
//!   store, calls [`after_fork`], or ends.
//! * A checksum detects damage of a record. A record with neither a checksum nor a version counts as handwritten and
//!   is accepted. So is a record in which the names of both are damaged. A handwritten record must not have a number
//!   as its `version`: that counts as damage.
//! * On a file system that ignores case or normalizes Unicode, keys that differ only in that share one file
//!   name. Reading the second key is [`ErrorKind::KeyMismatch`], but writing it moves the record of the first
//!   [aside](FileSystemRecordStore::damaged).
//!
//! # Pitfalls
//!
//! * A lease is a promise to finish in time. Work that may take longer [renews](LockGuard::renew) it, and
//!   changes outside of the guard must check the [token](LockGuard::token).
//! * A [named](Holder::named) holder without a hold timeout keeps its lock forever if it forgets to release it:
//!   that is the purpose of naming. [`break_lock`](RecordStoreExt::break_lock) helps. A
//!   [bound](Holder::bound) holder has a name of its own, too, but its lock ends with the process.
//! * The default holder is the thread. Two guards of one thread for one key are one lock; so are two tasks that
//!   share a thread. The module `asynchronous`, behind the feature `tokio`, has a holder for each task, and
//!   futures that do not block.
//!
//! # Crate features
//!
//! None is enabled by default.
//!
//! | feature | provides |
//! | --- | --- |
//! | `tokio` | the module `asynchronous`: the operations as futures |
//! | `tracing` | spans and events for waits, takeovers, dead owners and lost locks |
//! | `conformance` | the module `conformance`: the contract as a test suite for any store |
//! | `cli` | the program `record-store` |
//! | `postgres` | `PostgresRecordStore`: the same contract for several hosts, on a [PostgreSQL server](guide::postgres) |
//!
//! # For those who know Prefect
//!
//! The contract is that of `RecordStore` in `prefect.records.base`. It is stricter where Prefect's own file
//! store failed its users.
//!
//! | Prefect | here | stricter in |
//! | --- | --- | --- |
//! | `TransactionRecord(key, result)` | [`TransactionRecord`] | |
//! | `read(key, holder)` | [`read`], [`read_with`], [`LockGuard::read`] | waits for another holder's lock also if there is no record yet, because that holder may be about to write it; a timeout is an error, never a silent `None` |
//! | `write(key, result, holder)` | [`write`], [`write_with`], [`LockGuard::write`] | the check and the change are one step, so no write happens inside another holder's lock; a record is never torn |
//! | `exists(key)` | [`exists`] | |
//! | `supports_isolation_level(level)` | [`supports_isolation_level`] | |
//! | `acquire_lock(key, holder, acquire_timeout, hold_timeout)` | [`acquire_lock`] | returns the token, and an error that names the holder where Prefect returned `False`, which is easy to ignore; a timeout of zero makes one attempt, where Prefect waited forever; an expired lock is taken over atomically, so there are never two holders |
//! | `release_lock(key, holder)` | [`release_lock`], [`release_lock_with`] | releasing a key that is not locked is an error, too |
//! | `is_locked(key)`, `is_lock_holder(key, holder)` | [`is_locked`], [`is_lock_holder`] | the check never writes; a dead process's lock is not a lock |
//! | `wait_for_lock(key, timeout)` | [`wait_for_lock`] | woken by the release, not by polling |
//! | `lock(key, …)` | [`lock`] → [`LockGuard`] | a lock that cannot be acquired is an error, where Prefect ran the body nevertheless; the guard's changes are fenced |
//! | `generate_default_holder()` | [`Holder::current`] | bound to the process: its death frees the lock |
//! | `NotImplementedError` | [`ErrorKind::Unsupported`] | names the method |
//! | `prefect.transactions` | [`transaction`] | see the table at [`Transaction`] |
//! | | [`remove`], [`renew`], [`try_lock`], [`lock_info`], [`break_lock`], [`keys`], [`locks`] | not in Prefect |
//!
//! [`lock`]: RecordStoreExt::lock
//! [`read`]: RecordStoreExt::read
//! [`write`]: RecordStoreExt::write
//! [`get_or_compute`]: RecordStoreExt::get_or_compute
//! [`update`]: RecordStoreExt::update
//! [`write_if_version`]: RecordStoreExt::write_if_version
//! [`watch`]: RecordStoreExt::watch
//! [`changes`]: RecordStoreExt::changes
//! [`lock_all`]: RecordStoreExt::lock_all
//! [`transaction`]: RecordStoreExt::transaction
//! [`read_with`]: RecordStoreExt::read_with
//! [`write_with`]: RecordStoreExt::write_with
//! [`exists`]: RecordStoreExt::exists
//! [`supports_isolation_level`]: RecordStoreExt::supports_isolation_level
//! [`acquire_lock`]: RecordStoreExt::acquire_lock
//! [`release_lock`]: RecordStoreExt::release_lock
//! [`release_lock_with`]: RecordStoreExt::release_lock_with
//! [`is_locked`]: RecordStoreExt::is_locked
//! [`is_lock_holder`]: RecordStoreExt::is_lock_holder
//! [`wait_for_lock`]: RecordStoreExt::wait_for_lock
//! [`try_lock`]: RecordStoreExt::try_lock
//! [`remove`]: RecordStoreExt::remove
//! [`renew`]: RecordStoreExt::renew
//! [`lock_info`]: RecordStoreExt::lock_info
//! [`break_lock`]: RecordStoreExt::break_lock
//! [`keys`]: RecordStoreExt::keys
//! [`locks`]: RecordStoreExt::locks
//! [time to live]: WriteOptions::time_to_live

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(unix))]
compile_error!("record-store needs a Unix: it is built on flock");

mod changes;
mod compute;
mod error;
mod eviction;
mod filesystem;
mod holder;
mod json;
mod key;
mod lock;
mod lock_info;
mod locking;
mod memory;
mod options;
mod pauses;
#[cfg(feature = "postgres")]
mod postgres;
mod process;
mod record;
mod record_info;
mod recovery;
mod rfc3339;
mod store;
mod trace;
mod transaction;
mod version;
mod waiter_info;
mod waiting;
mod watch;

#[cfg(feature = "tokio")]
#[cfg_attr(docsrs, doc(cfg(feature = "tokio")))]
pub mod asynchronous;
#[cfg(feature = "conformance")]
#[cfg_attr(docsrs, doc(cfg(feature = "conformance")))]
pub mod conformance;

#[cfg(any(doc, doctest))]
#[doc = include_str!("guide/design.md")]
pub mod design {}
#[cfg(any(doc, doctest))]
pub mod guide;

pub use changes::{Change, ChangesOptions, SeenRecords, StoreChanges};
pub use error::{Error, ErrorKind, Place, Result};
pub use eviction::{Evicted, EvictionPolicy};
pub use filesystem::{Checked, DamagedFile, Durability, FileSystemOptions, FileSystemRecordStore};
pub use filesystem::{Finding, OpenMode, Problem, Swept, Verification};
pub use holder::Holder;
pub use json::Json;
pub use key::{IntoKey, Key};
pub use lock::{Acquired, Claim, LockToken};
pub use lock_info::{LockInfo, LockState};
pub use locking::{Cancellation, LockGuard, LockGuards, OnCancel, OwnedLockGuard, OwnedLockGuards};
pub use memory::MemoryRecordStore;
pub use options::{BreakOptions, CorruptRecords, LockOptions, ReadOptions, RemoveOptions, UpdateOptions};
pub use options::{WaitOptions, WriteOptions};
#[cfg(feature = "postgres")]
#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
pub use postgres::{
    PostgresChecked, PostgresFinding, PostgresOptions, PostgresProblem, PostgresRecordStore, PostgresSwept,
    PostgresVerification,
};
pub use process::after_fork;
pub use record::{RawRecord, TransactionRecord};
pub use record_info::{ListOptions, RecordInfo};
pub use recovery::Recovery;
pub use store::ext::RecordStoreExt;
pub use store::{Expected, IsolationLevel, Listing, RecordStore, StoreIdentity};
pub use transaction::{CommitMode, PendingTransaction, Transaction, TransactionState};
pub use version::RecordVersion;
pub use waiter_info::WaiterInfo;
pub use waiting::{WaitObserver, WaitReport, WaitReports};
pub use watch::{RecordChange, RecordWatch};

/// Runs the README's examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
