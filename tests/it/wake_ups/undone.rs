//! A change that could not be synced is taken back. A process that has seen it and
//! sleeps because of it must be woken again.

use std::path::PathBuf;
use std::sync::mpsc::channel;

use nix::errno::Errno;
use nix::libc;
use record_store::{Durability, FileSystemRecordStore, LockOptions, RecordStoreExt, WaitOptions};
use serde::{Deserialize, Serialize};
use tempfile::tempdir;

use super::about_to_wake::until_settled;
use super::{begin, finish};
use crate::support::children::{Child, Stage};
use crate::support::trace::perform;
use crate::support::{as_named, open, open_with};
use crate::watchdog::abort_if_hung;

/// The change of which the sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Change {
    Acquire,
    Write,
}

impl Change {
    fn run(self, store: &FileSystemRecordStore, key: &str) -> record_store::Result<()> {
        match self {
            Change::Acquire => store.acquire_lock(key, as_named("holder")).map(drop),
            Change::Write => store.write(key, &1),
        }
    }
}

pub(super) fn run_change(stage: &Stage) {
    let (dir, change): (PathBuf, Change) = stage.argument();
    let store = open(&dir);
    // The first change also syncs that the log reserves numbers.
    change.run(&store, "before").unwrap();
    let key = stage.receive();
    let error = perform(stage, "", || change.run(&store, &key)).unwrap_err();
    assert!(error.io_kind().is_some(), "{error}");
    stage.send("done");
    stage.receive();
}

/// The change is made, its sync fails when the sleeper has seen it and sleeps, and then it is taken back.
fn sleeper_is_woken(change: Change, sleep: impl FnOnce(&FileSystemRecordStore) + Send) {
    let dir = tempdir().unwrap();
    // It waits for no sync, so it sees a change that is not on the disk.
    let store = &open_with(dir.path(), Durability::Relaxed);
    let Some(mut traced) = begin(Child::start("fail to sync", &(dir.path(), change)), "k") else { return };
    loop {
        let call = traced.next_call().expect("the change is not synced");
        if call.number == libc::SYS_fdatasync {
            break;
        }
        traced.execute();
    }
    std::thread::scope(|scope| {
        let (sender, thread) = channel();
        let sleeper = scope.spawn(move || {
            sender.send(rustix::thread::gettid().as_raw_pid()).unwrap();
            sleep(store);
        });
        let thread = thread.recv().unwrap();
        abort_if_hung(&format!("the sleeper misses the end of {change:?}"), || {
            until_settled(&[thread]);
            assert!(!sleeper.is_finished(), "it has nothing to wait for");
            traced.fail(Errno::EIO);
            // Its end would wake the sleeper, too.
            let _child = finish(traced);
            sleeper.join().unwrap();
        });
    });
}

#[test]
fn a_lock_that_cannot_be_synced_wakes_those_who_wait_for_it() {
    sleeper_is_woken(Change::Acquire, |store| drop(store.lock("k", LockOptions::new()).unwrap()));
    sleeper_is_woken(Change::Acquire, |store| assert!(store.wait_for_lock("k", WaitOptions::new()).unwrap()));
}

#[test]
fn a_record_that_cannot_be_synced_wakes_its_watchers() {
    sleeper_is_woken(Change::Write, |store| {
        let mut watch = store.watch("k").unwrap();
        assert!(watch.next(WaitOptions::new()).unwrap().is_some());
    });
}
