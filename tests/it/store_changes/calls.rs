//! The system calls of a watch: no change costs a listing, and a system that refuses notifications is polled.

use std::path::PathBuf;

use nix::errno::Errno;
use nix::libc;
use record_store::{ChangesOptions, RecordChange, RecordStoreExt, WaitOptions};

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::{Traced, perform};
use crate::support::{open, tempdir};

pub(crate) const ROLES: &[Role] =
    &[("see one change", see_one_change), ("watch without notifications", watch_without_notifications)];

const RECORDS: usize = 300;

fn see_one_change(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    for number in 0..RECORDS {
        store.write(format!("k{number}"), &0).unwrap();
    }
    let mut changes = store.changes(ChangesOptions::new()).unwrap();
    store.write("k7", &1).unwrap();
    let change = perform(stage, "", || changes.next(WaitOptions::new())).unwrap().unwrap();
    assert_eq!((change.key.as_str(), change.change), ("k7", RecordChange::Changed));
    stage.send("done");
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn a_change_costs_the_look_at_one_record_and_no_listing() {
    let dir = tempdir().unwrap();
    let Some((mut traced, _)) = Traced::attach(Child::start("see one change", &dir.path())) else { return };
    let (mut listings, mut opened) = (0, 0);
    while let Some(call) = traced.next_call() {
        listings += usize::from(call.number == libc::SYS_getdents64);
        opened += usize::from(call.number == libc::SYS_openat);
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("done");
    child.finish();
    assert_eq!(listings, 0, "it lists the directory");
    assert!(opened <= 3, "it opens {opened} files");
}

fn watch_without_notifications(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    store.write("before", &0).unwrap();
    perform(stage, "", || {
        let mut changes = store.changes(ChangesOptions::new()).unwrap();
        store.write("after", &1).unwrap();
        let change = changes.next(WaitOptions::new()).unwrap().unwrap();
        assert_eq!((change.key.as_str(), change.change), ("after", RecordChange::Appeared));
        store.remove("before").unwrap();
        let change = changes.next(WaitOptions::new()).unwrap().unwrap();
        assert_eq!((change.key.as_str(), change.change), ("before", RecordChange::Removed));
    });
    stage.send("done");
}

#[test]
#[cfg(not(record_store_elsewhere))]
fn a_watch_to_which_the_system_refuses_notifications_lists_the_store() {
    let refusals = [
        (libc::SYS_inotify_init1, Errno::EMFILE),
        (libc::SYS_eventfd2, Errno::ENFILE),
        (libc::SYS_inotify_add_watch, Errno::ENOSPC),
    ];
    for (number, errno) in refusals {
        let dir = tempdir().unwrap();
        let child = Child::start("watch without notifications", &dir.path());
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let mut refused = 0;
        while let Some(call) = traced.next_call() {
            if call.number == number {
                refused += 1;
                traced.fail(errno);
            } else {
                traced.execute();
            }
        }
        let mut child = traced.release();
        child.expect("done");
        child.finish();
        assert!(refused > 0, "{errno}");
    }
}
