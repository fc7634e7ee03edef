//! A sync of the log that fails: who gets the error, and who has to go another way because the frames may be lost.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use record_store::{Durability, ErrorKind, FileSystemRecordStore, RecordStoreExt};
use tempfile::TempDir;

use super::copy;
use crate::support::children::{Child, Role, Stage};
use crate::support::trace::tamper::Call;
use crate::support::trace::{Traced, perform};
use crate::support::{in_memory, open, open_with};

pub(crate) const ROLES: &[Role] = &[("write and tell the outcome", write_and_tell)];

fn write_and_tell(stage: &Stage) {
    let (dir, key, text): (PathBuf, String, String) = stage.argument();
    let store = open(&dir);
    let outcome = perform(stage, "", || store.write(&key, &text));
    stage.send(&outcome.map_or_else(
        |error| format!("{:?} {}", error.kind(), error.is_outcome_unknown()),
        |()| "done".into(),
    ));
}

/// The kernel reports it to one process that what it had to write is lost. All others that wait for the same segment have to
/// fail too, although their own sync succeeds, and the old records are back.
#[test]
fn all_who_wait_for_a_sync_that_fails_get_the_error() {
    let dir = in_memory();
    let store = open(dir.path());
    let keys = ["k-0", "k-1", "k-2"];
    for key in keys {
        store.write(key, "old").unwrap();
    }
    let mut writers = Vec::new();
    for key in keys {
        let child = Child::start("write and tell the outcome", &(dir.path(), key, "new"));
        let Some((mut writer, _)) = Traced::attach(child) else { return };
        while writer.next_call().expect("a sync of the log").number != libc::SYS_fdatasync {
            writer.execute();
        }
        writers.push(writer);
    }
    assert!(fs::read_to_string(dir.path().join("k-1.json")).unwrap().contains("new"));
    for (number, mut writer) in writers.into_iter().enumerate() {
        if number == 0 {
            writer.fail(Errno::EIO);
        } else {
            writer.execute();
        }
        let mut child = writer.release();
        child.expect("Io false");
        child.finish();
        // A durable reader would wait for a sync of the same segment.
        let relaxed = open_with(dir.path(), Durability::Relaxed);
        assert_eq!(relaxed.read::<String>(keys[number]).unwrap().unwrap().result, "old");
    }
    let copy = copy(dir.path());
    for key in keys {
        assert_eq!(open(copy.path()).read::<String>(key).unwrap().unwrap().result, "old");
        store.write(key, "newer").unwrap();
        assert_eq!(store.read::<String>(key).unwrap().unwrap().result, "newer");
    }
}

/// Two keys with the same latch.
fn twins() -> [String; 2] {
    let latch = |key: &str| crc32fast::hash(key.as_bytes()) & 0xff;
    let mut twins = (0..100_000).map(|number| format!("k-{number}")).filter(|key| latch(key) == latch("k"));
    ["k".to_owned(), twins.next().unwrap()]
}

/// Starts a durable write in a child. `None` where `ptrace` is forbidden.
fn writer(dir: &Path, key: &str) -> Option<Traced> {
    Some(Traced::attach(Child::start("write and tell the outcome", &(dir, key, "new")))?.0)
}

/// Runs a child up to the first call for which this is true.
fn run_to(traced: &mut Traced, mut is_here: impl FnMut(&Traced, &Call) -> bool) {
    loop {
        let call = traced.next_call().expect("the call");
        if is_here(traced, &call) {
            return;
        }
        traced.execute();
    }
}

/// A store in which the sync of a segment has failed that has a relaxed change of the first key. `None` where `ptrace` is
/// forbidden.
fn with_failed_segment(keys: &[String; 2]) -> Option<(TempDir, FileSystemRecordStore)> {
    let dir = in_memory();
    let relaxed = open_with(dir.path(), Durability::Relaxed);
    relaxed.write(&*keys[0], "relaxed").unwrap();
    let mut other = writer(dir.path(), "other")?;
    run_to(&mut other, |_, call| call.number == libc::SYS_fdatasync);
    other.fail(Errno::EIO);
    let mut child = other.release();
    child.expect("Io false");
    child.finish();
    Some((dir, relaxed))
}

/// The frame of the relaxed change may be lost. After the next frame of the same latch, nobody would ask for it any more.
#[test]
fn changes_of_a_segment_that_cannot_be_synced_are_on_the_disk_before_the_next_frame_of_the_latch() {
    let keys = twins();
    let Some((dir, _)) = with_failed_segment(&keys) else { return };
    assert_eq!(open(dir.path()).read::<String>(&*keys[0]).unwrap_err().kind(), ErrorKind::Io);
    let mut traced = writer(dir.path(), &keys[1]).unwrap();
    let mut is_synced = false;
    while let Some(call) = traced.next_call() {
        is_synced |= call.number == libc::SYS_syncfs;
        assert!(is_synced || call.number != libc::SYS_renameat2 && call.number != libc::SYS_linkat);
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert!(is_synced);
    assert_eq!(open(dir.path()).read::<String>(&*keys[0]).unwrap().unwrap().result, "relaxed");
}

#[test]
fn a_change_fails_if_those_before_it_can_be_synced_in_no_way() {
    let keys = twins();
    let Some((dir, relaxed)) = with_failed_segment(&keys) else { return };
    let mut traced = writer(dir.path(), &keys[1]).unwrap();
    run_to(&mut traced, |_, call| call.number == libc::SYS_syncfs);
    traced.fail(Errno::EIO);
    let mut child = traced.release();
    child.expect("Io false");
    child.finish();
    assert!(relaxed.read::<String>(&*keys[1]).unwrap().is_none());
    assert_eq!(open(dir.path()).read::<String>(&*keys[0]).unwrap_err().kind(), ErrorKind::Io);
}

/// Durable readers have seen the change since then, so it is not taken back.
#[test]
fn a_change_whose_sync_failed_stays_if_another_process_has_synced_it_meanwhile() {
    let dir = in_memory();
    let (store, keys) = (open(dir.path()), twins());
    store.write(&*keys[0], "old").unwrap();
    let Some(mut traced) = writer(dir.path(), &keys[0]) else { return };
    run_to(&mut traced, |_, call| call.number == libc::SYS_fdatasync);
    traced.fail(Errno::EIO);
    run_to(&mut traced, |_, call| call.number == libc::SYS_openat);
    store.write(&*keys[1], "other").unwrap();
    assert_eq!(store.read::<String>(&*keys[0]).unwrap().unwrap().result, "new");
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert_eq!(store.read::<String>(&*keys[0]).unwrap().unwrap().result, "new");
}

/// The text of a large record is in its own file, and the log says only where. The record is in its place, and durable readers
/// may have seen it, when the directory is synced.
#[test]
fn the_outcome_is_unknown_if_a_large_record_is_published_and_its_directory_cannot_be_synced() {
    let dir = in_memory();
    let (store, large) = (open(dir.path()), "x".repeat(60_000));
    store.write("k", "old").unwrap();
    let child = Child::start("write and tell the outcome", &(dir.path(), "k", &large));
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    run_to(&mut traced, |traced, call| {
        call.number == libc::SYS_fsync && traced.file_of_call().is_some_and(|file| file == dir.path())
    });
    traced.fail(Errno::EIO);
    let mut child = traced.release();
    child.expect("Io true");
    child.finish();
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, large);
    let recovered = copy(dir.path());
    assert_eq!(open(recovered.path()).read::<String>("k").unwrap().unwrap().result, large);
}
