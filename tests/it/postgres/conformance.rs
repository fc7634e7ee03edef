//! The conformance suite on a server.

use std::process::Command;

use record_store::conformance::{self, Need, Suite};
use record_store::{ErrorKind, Key, LockOptions, PostgresOptions, PostgresRecordStore, RecordStoreExt};

use super::server::Server;
use super::sessions::Stalled;
use super::{new_url, open};

/// The other process of a check.
pub(crate) fn program(store: &PostgresRecordStore) -> Command {
    let url = format!("{}?schema={}", Server::shared().unwrap().url(), store.schema());
    crate::conformance::program(url)
}

/// Stops all changes of a key.
pub(crate) fn stall(store: &PostgresRecordStore, key: &Key) -> Stalled {
    Stalled::of(Server::shared().unwrap(), store, key.as_str())
}

#[test]
fn two_handles_keep_the_contract() {
    let Some(_) = new_url() else { return };
    let handles = || {
        let url = new_url().unwrap();
        conformance::by_turns([open(&url), open(&url)])
    };
    Suite::new(handles).stall(|store, key| stall(&store.handles()[0], key)).run();
}

/// It says so, instead of giving out an exclusive lock.
#[test]
fn a_shared_lock_is_refused() {
    let Some(url) = new_url() else { return };
    let store = open(&url);
    for options in [LockOptions::new().shared(), LockOptions::new().slots(2)] {
        let error = store.acquire_lock("k", options).unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Unsupported, "acquire_lock"), "{error}");
        assert!(!store.is_locked("k").unwrap());
    }
    // What changes a record locks exclusively in any case.
    let update = |old: Option<u8>| Ok(old.unwrap_or(0) + 1);
    assert_eq!(store.update("k", LockOptions::new().shared(), update).unwrap(), 1);
}

#[test]
fn a_store_with_one_connection_keeps_the_contract() {
    let Some(_) = new_url() else { return };
    let options = PostgresOptions::new().connections(1);
    let open = || PostgresRecordStore::connect(&new_url().unwrap(), options.clone()).unwrap();
    Suite::new(open).run();
}

#[test]
fn several_processes_keep_the_contract() {
    let Some(_) = new_url() else { return };
    let report = Suite::new(|| open(&new_url().unwrap()))
        .other_process(program)
        .select(|check| check.needs() == Some(Need::OtherProcess))
        .run();
    assert!(!report.ran().is_empty());
}
