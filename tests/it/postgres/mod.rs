//! The store on a PostgreSQL server, on a server that these tests start themselves.

#[cfg(feature = "tokio")]
pub(crate) mod asynchronous;
mod clocks;
#[cfg(feature = "cli")]
mod command_line;
mod conformance;
pub(crate) mod eviction;
mod failover;
mod faults;
pub(crate) mod opening;
pub(crate) mod processes;
mod relay;
mod server;
mod sessions;
mod sharing;
pub(crate) mod storms;
mod upgrade;
mod verify;

use std::sync::atomic::{AtomicU64, Ordering};

use record_store::{PostgresOptions, PostgresRecordStore};
use server::Server;

/// The URL of a new store on the server that all tests share. `None`: there is no server program, and the test is
/// skipped.
pub(crate) fn new_url() -> Option<String> {
    Server::shared().map(new_url_on)
}

fn new_url_on(server: &Server) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{}?schema=store_{}_{number}", server.url(), std::process::id())
}

/// The numbers of records and locks that a sweep removed.
fn swept(store: &PostgresRecordStore) -> (u64, u64) {
    let swept = store.sweep().unwrap();
    (swept.records, swept.locks)
}

pub(crate) fn open(url: &str) -> PostgresRecordStore {
    PostgresRecordStore::connect(url, PostgresOptions::new()).unwrap()
}
