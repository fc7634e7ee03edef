//! `--ttl` and `gc`.

use record_store::{LockOptions, RecordStoreExt, WriteOptions};

use super::*;

#[test]
fn a_record_with_a_time_to_live_expires() {
    let scratch = Scratch::new();
    assert_prints(&feed(&mut scratch.cli("put", &["k", "--ttl", "1ms"]), b"1"), "");
    assert_prints(&feed(&mut scratch.cli("put", &["stays", "--ttl", "1day"]), b"2"), "");
    scratch.open().wait_for_record("k", std::time::Duration::from_millis(1)).unwrap();
    assert_fails(&output(&mut scratch.cli("get", &["k"])), 1);
    assert_prints(&output(&mut scratch.cli("ls", &[])), "stays\n");
    assert_prints(&output(&mut scratch.cli("gc", &[])), "1 record and 0 locks removed\n");
    assert_prints(&output(&mut scratch.cli("gc", &["--json"])), "{\"records\":0,\"locks\":0}\n");
    assert_prints(&output(&mut scratch.cli("get", &["stays"])), "2\n");
    assert_code(&output(&mut scratch.cli("put", &["k", "--ttl", "soon"])), 2);
}

#[test]
fn an_expired_result_is_computed_again() {
    let scratch = Scratch::new();
    let run = |result: &str| output(&mut scratch.cli("run", &["k", "--ttl", "1ms", "--", "echo", result]));
    assert_prints(&run("1"), "1\n");
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_prints(&run("2"), "2\n");
}

#[test]
fn gc_removes_expired_records_and_locks_but_no_live_locks() {
    let scratch = Scratch::new();
    assert_fails(&output(&mut scratch.cli("gc", &[])), 1);
    assert!(!entry_exists(&scratch.store()));
    let store = scratch.open();
    store.acquire_lock("live", LockOptions::new()).unwrap();
    store.acquire_lock("expired", LockOptions::new().hold_timeout(std::time::Duration::ZERO)).unwrap();
    store.write_with("live", &1, WriteOptions::new().time_to_live(std::time::Duration::ZERO)).unwrap();
    assert_prints(&output(&mut scratch.cli("gc", &[])), "1 record and 1 lock removed\n");
    assert!(store.is_locked("live").unwrap());
}
