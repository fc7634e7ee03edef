//! The wait queue: sleeping in the kernel until the holder notifies, in the order of arrival.
//!
//! On Linux the processes of a store share a small mapped file. A waiter for a lock has a *slot* in it and is
//! *notified* when it is its turn. A watcher, of a lock or of a record, sleeps on a counter. Every
//! notification is a hint, and so is its absence: a sleeper always checks the files again, at the latest
//! after `RECHECK_INTERVAL`. So a slot may be lost, stale or garbage; the worst result is a late turn.
//!
//! A killed process notifies nobody. So a waiter that waits for long has the kernel report the end of every
//! process that uses the store.

// Linux can be built without the queue as well, to test the other implementation.
#[cfg(all(target_os = "linux", not(record_store_elsewhere)))]
mod linux;
#[cfg(not(all(target_os = "linux", not(record_store_elsewhere))))]
mod polling;

#[cfg(all(target_os = "linux", not(record_store_elsewhere)))]
pub(crate) use linux::{DeathReports, Events, Turn, Waiter};
#[cfg(not(all(target_os = "linux", not(record_store_elsewhere))))]
pub(crate) use polling::{DeathReports, Events, Turn, Waiter};
