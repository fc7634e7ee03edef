//! The guide: one page per use, in the order in which most programs need them.
//!
//! 1. [Lock a record](locking): guards, leases, timeouts and errors.
//! 2. [Readers, and a limited number of holders](sharing): shared locks and slots.
//! 3. [Compute once](compute_once): many workers need a result, one of them computes it.
//! 4. [Update](update): read, change and write a record without losing concurrent changes.
//! 5. [Records that expire](expiry): caches and sessions; stale results.
//! 6. [A cache that stays small](eviction): remove the oldest records, and see what there is.
//! 7. [Waiting for a record](watching): sleep until another process changes it, or any record of the store.
//! 8. [Several keys](several_keys): acquire several locks without a deadlock.
//! 9. [Transactions](transactions): commit or roll back a piece of work as a whole.
//! 10. [Asynchronous programs](asynchronous), with the feature `tokio`.
//! 11. [Observability](observing): whom a call waits for; spans and events, with the feature `tracing`.
//! 12. [The command line](command_line), with the feature `cli`.
//! 13. [Where a store lives](surroundings): file systems, several users, full disks, programs that clean up.
//! 14. [Power loss, restarts and backups](durability): what survives, what it costs, how to copy a store.
//! 15. [When one host is not enough](postgres): the same store on a PostgreSQL server, with the feature `postgres`.
//!
//! Three complete programs of several processes are in `tests/examples`. Each ends by itself within a few
//! seconds and prints what it did:
//!
//! * `cargo run --example worker_pool`: a pool of processes works through jobs with retries. Some workers
//!   are killed in the middle of a job; every job is done and stored exactly once.
//! * `cargo run --example sessions`: the workers of a server share sessions that expire.
//! * `cargo run --example build_cache`: several builders ask for the same artifacts by content hash. Each
//!   artifact is built once, and a failed build is tried again by the next builder.

#[doc = include_str!("locking.md")]
pub mod locking {}

#[doc = include_str!("sharing.md")]
pub mod sharing {}

#[doc = include_str!("compute_once.md")]
pub mod compute_once {}

#[doc = include_str!("update.md")]
pub mod update {}

#[doc = include_str!("expiry.md")]
pub mod expiry {}

#[doc = include_str!("eviction.md")]
pub mod eviction {}

#[doc = include_str!("watching.md")]
pub mod watching {}

#[doc = include_str!("several_keys.md")]
pub mod several_keys {}

#[doc = include_str!("transactions.md")]
pub mod transactions {}

#[doc = include_str!("asynchronous.md")]
pub mod asynchronous {}

#[doc = include_str!("observing.md")]
pub mod observing {}

#[doc = include_str!("command_line.md")]
pub mod command_line {}

#[doc = include_str!("surroundings.md")]
pub mod surroundings {}

#[doc = include_str!("durability.md")]
pub mod durability {}

#[cfg_attr(
    not(feature = "postgres"),
    allow(rustdoc::broken_intra_doc_links, reason = "its names are behind the feature")
)]
#[doc = include_str!("postgres.md")]
pub mod postgres {}
