//! The conformance suite on a server.

use record_store::conformance;

use super::server::Server;
use super::{new_url, new_url_on, open};

#[test]
fn the_store_keeps_the_contract() {
    let Some(server) = Server::shared() else { return };
    conformance::run(|| open(&new_url_on(server)));
}

#[test]
fn a_store_with_one_connection_keeps_the_contract() {
    let Some(_) = new_url() else { return };
    let options = record_store::PostgresOptions::new().connections(1);
    conformance::run(|| {
        record_store::PostgresRecordStore::connect(&new_url().unwrap(), options.clone()).unwrap()
    });
}
