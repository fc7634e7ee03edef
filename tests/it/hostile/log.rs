//! The files of the commit log with any content: a call answers with what is stored or with an error, and none hangs,
//! panics or loses a record that stands.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{
    ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt, WriteOptions,
};

use super::{cases, mutations};
use crate::support::{as_named, in_memory, millis, open};
use crate::tree;
use crate::watchdog::abort_if_hung;

/// A store whose log tells of a record, of a removed one and of a lock.
fn logged() -> tempfile::TempDir {
    let dir = in_memory();
    let store = open(dir.path());
    store.write("k", "whole").unwrap();
    store.write("removed", "old").unwrap();
    assert!(store.remove("removed").unwrap());
    store.acquire_lock("locked", as_named("job")).unwrap();
    dir
}

/// Every kind of operation, each with a limit. Those that fail have an error of the log.
fn use_all(dir: &Path, store: &FileSystemRecordStore, what: &str) {
    let limited = || LockOptions::new().acquire_timeout(millis(100));
    let written = store.write_with("k", "newer", WriteOptions::new().timeout(millis(100)));
    let result = store.read::<String>("k");
    match (&written, &result) {
        (Ok(()), Ok(Some(record))) => assert_eq!(record.result, "newer", "{what}"),
        (Err(_), Ok(Some(record))) => assert!(["whole", "newer"].contains(&&*record.result), "{what}"),
        (_, Ok(None)) => panic!("{what}: the record is gone"),
        (_, Err(error)) => assert_of_log(error, what),
    }
    written.err().iter().for_each(|error| assert_of_log(error, what));
    match store.lock("other", limited()) {
        Ok(guard) => drop(guard.release()),
        Err(error) => assert_of_log(&error, what),
    }
    let _ = store.checkpoint();
    let _ = store.sweep();
    assert!(fs::read_to_string(dir.join("k.json")).unwrap().contains("\"k\""), "{what}");
}

fn assert_of_log(error: &record_store::Error, what: &str) {
    assert!(
        matches!(error.kind(), ErrorKind::Io | ErrorKind::LockTimeout | ErrorKind::CorruptStore),
        "{what}: {error:?}"
    );
}

/// A power loss, a bad disk or another program may leave this in the log of a store that is recovered.
#[test]
fn any_content_of_a_segment_leaves_the_records_that_stand() {
    let original = logged();
    let segment = fs::read(original.path().join(".store/log/00")).unwrap();
    let used = segment.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let check = |bytes: &[u8]| {
        let dir = in_memory();
        tree::copy(original.path(), dir.path());
        fs::write(dir.path().join(".store/log/00"), bytes).unwrap();
        let opened =
            abort_if_hung("the recovery of a damaged log", || FileSystemOptions::new().open(dir.path()));
        let store = opened.unwrap();
        let record = store.read::<String>("k").unwrap().unwrap();
        assert_eq!(record.result, "whole");
        // The damage may have taken the removal from the log.
        assert!(store.read::<String>("removed").unwrap().is_none_or(|record| record.result == "old"));
        store.write("k", "newer").unwrap();
    };
    for end in (0..used).step_by(37) {
        check(&segment[..end]);
        let mut zeroed = segment.clone();
        zeroed[end / 512 * 512..][..512].fill(0);
        check(&zeroed);
    }
    for byte in (0..used).step_by(11) {
        let mut flipped = segment.clone();
        flipped[byte] ^= 1 << (byte % 8);
        check(&flipped);
    }
    let outcome = TestRunner::new(cases(100)).run(&mutations(segment[..used].to_vec()), |bytes| {
        check(&bytes);
        Ok(())
    });
    outcome.unwrap();
}

/// The words of the shared memory in the middle of the work of a process.
#[test]
fn any_words_in_the_shared_memory_of_the_log_are_an_error_or_do_no_harm() {
    let original = logged();
    let words = fs::metadata(original.path().join(".store/log/state")).unwrap().len() / 8;
    let numbers = prop_oneof![
        any::<u64>(),
        Just(0),
        Just(1),
        Just(u64::MAX),
        0_u64..2_000,
        (0_u64..64).prop_map(|bit| 1 << bit),
    ];
    let check = |changes: &[(u64, u64)]| {
        let dir = in_memory();
        tree::copy(original.path(), dir.path());
        let store = open(dir.path());
        let state = File::options().write(true).open(dir.path().join(".store/log/state")).unwrap();
        for (word, number) in changes {
            // The magic number and the identity of the boot stay.
            if *word > 1 {
                state.write_all_at(&number.to_ne_bytes(), word * 8).unwrap();
            }
        }
        let what = format!("{changes:?}");
        abort_if_hung(&what, || use_all(dir.path(), &store, &what));
        assert_whole(dir.path(), &what);
    };
    // The words of the head and of the first two segments.
    for word in (2..7).chain(8..14).chain(16..22) {
        for number in [1, 646, 1 << 30, 1 << 40, u64::MAX] {
            check(&[(word, number)]);
        }
    }
    let changes = proptest::collection::vec((prop_oneof![0..words, 0_u64..24, 136_u64..144], numbers), 1..6);
    let outcome = TestRunner::new(cases(150)).run(&changes, |changes| {
        check(&changes);
        Ok(())
    });
    outcome.unwrap();
}

/// A copy is recovered from the segments.
fn assert_whole(dir: &Path, what: &str) {
    let copied = in_memory();
    tree::copy(dir, copied.path());
    let store = abort_if_hung(what, || FileSystemOptions::new().open(copied.path())).unwrap();
    assert!(store.read::<String>("k").unwrap().is_some(), "{what}");
}

/// No use of a segment can get a greater number, so nothing could be made durable any more.
#[test]
fn an_impossible_number_of_a_use_is_reported() {
    for number in [1 << 40, u64::MAX] {
        let dir = logged();
        let store = open(dir.path());
        store.write("k", "newer").unwrap();
        let state = File::options().write(true).open(dir.path().join(".store/log/state")).unwrap();
        // The greatest number that was given, the fourth word.
        state.write_all_at(&u64::to_ne_bytes(number), 3 * 8).unwrap();
        let error = store.checkpoint().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptStore, "{error}");
        assert!(error.to_string().ends_with("stop all processes that use the store, then remove the file"));
    }
}
