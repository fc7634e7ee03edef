//! A damaged record heals: it is computed again, written or removed, and the damaged file is kept.

use std::fs;
use std::path::PathBuf;

use record_store::{
    CorruptRecords, ErrorKind, FileSystemRecordStore, LockOptions, RecordStoreExt, UpdateOptions,
};
use tempfile::{TempDir, tempdir};

use crate::support::open;

/// A store with a record `k`, one bit of which is flipped.
fn damaged_store() -> (TempDir, FileSystemRecordStore, Vec<u8>) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", "the old result").unwrap();
    let mut text = fs::read(place(&store)).unwrap();
    let at = text.windows(3).position(|window| window == b"old").unwrap();
    text[at] ^= 1;
    fs::write(place(&store), &text).unwrap();
    assert_eq!(store.read::<String>("k").unwrap_err().kind(), ErrorKind::CorruptRecord);
    (dir, store, text)
}

fn place(store: &FileSystemRecordStore) -> PathBuf {
    store.path().join("k.json")
}

#[track_caller]
fn assert_healed(store: &FileSystemRecordStore, result: &str, text: &[u8]) {
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, result);
    let damaged = store.damaged().unwrap();
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(fs::read(&damaged[0].path).unwrap(), text);
    assert!(store.verify().all(|finding| !finding.unwrap().problem.is_damage()));
}

#[test]
fn a_damaged_record_is_computed_again() {
    let (_dir, store, text) = damaged_store();
    let compute =
        |result: &str| store.get_or_compute("k", LockOptions::new(), || Ok(result.to_owned())).unwrap();
    assert_eq!(compute("new"), "new");
    assert_eq!(compute("newer"), "new", "only once");
    assert_healed(&store, "new", &text);
}

#[test]
fn a_damaged_record_is_computed_once_by_many_callers() {
    let (dir, store, text) = damaged_store();
    let computed = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let result: String = open(dir.path())
                    .get_or_compute("k", LockOptions::new(), || {
                        computed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        Ok("new".to_owned())
                    })
                    .unwrap();
                assert_eq!(result, "new");
            });
        }
    });
    assert_eq!(computed.into_inner(), 1);
    assert_healed(&store, "new", &text);
}

#[test]
fn a_computation_that_fails_leaves_the_damaged_record_in_its_place() {
    let (_dir, store, text) = damaged_store();
    let failed = store
        .get_or_compute::<String>("k", LockOptions::new(), || Err(record_store::Error::other("no result")));
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Other);
    assert_eq!(fs::read(place(&store)).unwrap(), text);
    assert!(store.damaged().unwrap().is_empty());
    assert!(!store.is_locked("k").unwrap());
}

#[test]
fn an_option_makes_a_damaged_record_an_error() {
    let (_dir, store, text) = damaged_store();
    let options = || UpdateOptions::new().corrupt_records(CorruptRecords::Fail);
    let refused = store.get_or_compute::<String>("k", options(), || panic!("not computed"));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::CorruptRecord);
    // An update needs the old result, whatever the option says.
    for options in [options(), UpdateOptions::new()] {
        let refused = store.update::<String>("k", options, |_| panic!("not computed"));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::CorruptRecord);
    }
    assert_eq!(fs::read(place(&store)).unwrap(), text);
    assert!(!store.is_locked("k").unwrap());
}

#[test]
fn a_file_that_is_no_record_of_the_key_is_computed_again() {
    let dir = tempdir().unwrap();
    let store = record_store::FileSystemOptions::new().max_record_bytes(1_000).open(dir.path()).unwrap();
    store.write("other", "of another key").unwrap();
    let other = dir.path().join("other.json");
    for (number, what) in ["a copy", "a link", "a FIFO", "too large", "of another program"].iter().enumerate()
    {
        match *what {
            "a copy" => drop(fs::copy(&other, place(&store)).unwrap()),
            "a link" => std::os::unix::fs::symlink(&other, place(&store)).unwrap(),
            "a FIFO" => {
                let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
                rustix::fs::mknodat(rustix::fs::CWD, place(&store), kind, mode, 0).unwrap();
            }
            "too large" => fs::write(place(&store), [b' '; 1_001]).unwrap(),
            _ => fs::write(place(&store), "{\"name\": \"demo\"}").unwrap(),
        }
        let fail = UpdateOptions::new().corrupt_records(CorruptRecords::Fail);
        let refused = store.get_or_compute::<String>("k", fail, || panic!("not computed"));
        assert!(CorruptRecords::Recompute.recomputes(&refused.unwrap_err()), "{what}");
        let result: String = store.get_or_compute("k", LockOptions::new(), || Ok("new".to_owned())).unwrap();
        assert_eq!(result, "new", "{what}");
        assert_eq!(store.damaged().unwrap().len(), number + 1, "{what}");
        assert!(store.remove("k").unwrap());
    }
    assert_eq!(store.read::<String>("other").unwrap().unwrap().result, "of another key");
    fs::create_dir(place(&store)).unwrap();
    let refused = store.get_or_compute::<String>("k", LockOptions::new(), || panic!("not computed"));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotARegularFile);
}

/// A file system that ignores case gives both keys the same file: then neither may replace the other's result.
#[test]
fn the_record_of_a_key_that_differs_only_in_case_is_no_damaged_one() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("K", "of another key").unwrap();
    fs::copy(dir.path().join("K.json"), place(&store)).unwrap();
    let refused = store.get_or_compute::<String>("k", LockOptions::new(), || panic!("not computed"));
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::KeyMismatch);
    assert!(place(&store).exists());
}

#[test]
fn a_damaged_record_can_be_written_and_removed() {
    let (_dir, store, text) = damaged_store();
    store.write("k", "new").unwrap();
    assert_healed(&store, "new", &text);
    let (_dir, store, text) = damaged_store();
    assert!(store.remove("k").unwrap());
    store.write("k", "again").unwrap();
    assert_healed(&store, "again", &text);
}

#[cfg(feature = "tokio")]
#[test]
fn a_damaged_record_is_computed_again_by_futures() {
    use record_store::asynchronous::AsyncRecordStore;
    let (_dir, store, text) = damaged_store();
    let futures = AsyncRecordStore::new(store.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let fail = UpdateOptions::new().corrupt_records(CorruptRecords::Fail);
        let refused = futures.get_or_compute::<String, _>("k", fail, async || panic!("not computed")).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::CorruptRecord);
        let compute = async || Ok("new".to_owned());
        assert_eq!(futures.get_or_compute("k", LockOptions::new(), compute).await.unwrap(), "new");
    });
    assert_healed(&store, "new", &text);
}
