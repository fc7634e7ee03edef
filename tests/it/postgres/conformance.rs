//! The conformance suite on a server.

use std::process::Command;

use record_store::conformance::{self, Need, Suite};
use record_store::{Key, PostgresOptions, PostgresRecordStore};

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
