//! The guide: one page per use, in the order in which most programs need them.
//!
//! 1. [Compute once](compute_once): many workers need a result, one of them computes it.
//! 2. [Update](update): read, change and write a record without losing concurrent changes.
//! 3. [Records that expire](expiry): caches and sessions.
//! 4. [Waiting for a record](watching): sleep until another process changes it.
//! 5. [Several keys](several_keys): acquire several locks without a deadlock.
//! 6. [Transactions](transactions): commit or roll back a piece of work as a whole.
//! 7. [Asynchronous programs](asynchronous), with the feature `tokio`.
//! 8. [Observability](observing): spans and events, with the feature `tracing`.
//! 9. [The command line](command_line), with the feature `cli`.

#[doc = include_str!("compute_once.md")]
pub mod compute_once {}

#[doc = include_str!("update.md")]
pub mod update {}

#[doc = include_str!("expiry.md")]
pub mod expiry {}

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
