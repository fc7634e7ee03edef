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

/// `chmod -R`, unzip and some file systems change the modes of files.
#[test]
fn an_expired_record_is_replaced_and_removed_whatever_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    for key in ["skipped", "swept"] {
        assert_prints(&feed(&mut scratch.cli("put", &[key, "--ttl", "1ms"]), b"1"), "");
        let file = scratch.store().join(format!("{key}.json"));
        fs::set_permissions(file, fs::Permissions::from_mode(0o664)).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(2));
    let line = b"{\"key\":\"skipped\",\"result\":2}\n";
    assert_prints(&feed(&mut scratch.cli("import", &["--existing", "skip"]), line), "");
    assert_prints(&output(&mut scratch.cli("get", &["skipped"])), "2\n");
    assert_prints(&output(&mut scratch.cli("ls", &[])), "skipped\n");
    assert_prints(&output(&mut scratch.cli("gc", &[])), "1 record and 0 locks removed\n");
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

#[test]
fn a_time_to_live_is_given_to_a_stored_result_only_on_request() {
    let scratch = Scratch::new();
    let store = scratch.open();
    let left = || store.record_info("k").unwrap().unwrap().time_left();
    store.write("k", &1).unwrap();
    let kept = output(&mut scratch.run(&["k", "--ttl", "1h"], "echo 2"));
    assert_prints(&kept, "1\n");
    let message = String::from_utf8(kept.stderr).unwrap();
    assert!(message.contains("has no time to live") && message.contains("--refresh-ttl"), "{message}");
    assert_eq!(left(), None);
    let given = output(&mut scratch.run(&["k", "--ttl", "1h", "--refresh-ttl"], "echo 2"));
    assert_prints(&given, "1\n");
    assert_eq!(String::from_utf8_lossy(&given.stderr), "");
    assert!(left().is_some_and(|left| left > Duration::from_mins(50)), "{:?}", left());
    // Without the option, the time that is left stays.
    assert_prints(&output(&mut scratch.run(&["k", "--ttl", "9h"], "echo 2")), "1\n");
    assert!(left().is_some_and(|left| left < Duration::from_hours(2)), "{:?}", left());
    assert_prints(&output(&mut scratch.run(&["k", "--ttl", "9h", "--refresh-ttl"], "echo 2")), "1\n");
    assert!(left().is_some_and(|left| left > Duration::from_hours(8)), "{:?}", left());
    assert_code(&output(&mut scratch.run(&["k", "--refresh-ttl"], "echo 2")), 2);
}

#[test]
fn a_result_whose_time_to_live_cannot_be_restarted_is_printed() {
    let scratch = Scratch::new();
    let store = scratch.open();
    store.write("k", &1).unwrap();
    let _latch = scratch.enter_latch("k");
    let printed = output(&mut scratch.run(&["k", "--ttl", "1h", "--refresh-ttl"], "echo 2"));
    assert_prints(&printed, "1\n");
    let message = String::from_utf8(printed.stderr).unwrap();
    assert!(message.contains("the time to live was not restarted"), "{message}");
}
