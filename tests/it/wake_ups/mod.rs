//! No wake-up is lost, whichever of the two processes is slow: the one that falls asleep, or the one that wakes it.
//!
//! A sleeper looks again from time to time, in case that a notification was lost. This hides every loss from a test that
//! only waits for the sleeper. `RUSTFLAGS="--cfg record_store_no_recheck"` builds a library in which sleepers are woken,
//! or sleep until the end of a lease, of a turn or of their own time. There a lost wake-up is a hang, and a watchdog ends
//! the run with the name of the test. These tests prove nothing in any other build. `schedules::wakes` are those that do.

mod about_to_sleep;
mod about_to_wake;
#[cfg(target_arch = "x86_64")]
mod undone;

use std::path::PathBuf;

use record_store::{
    ChangesOptions, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, RecordStoreExt, Result,
    WaitOptions,
};
use serde::{Deserialize, Serialize};

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::Traced;

pub(crate) const ROLES: &[Role] = &[
    ("sleep", about_to_sleep::run_sleeper),
    ("wake", about_to_wake::run_waker),
    #[cfg(target_arch = "x86_64")]
    ("fail to sync", undone::run_change),
    ("hold until killed", hold_until_killed),
];

/// A call that sleeps until the lock of a key is free or, for the last one, until its record changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Sleeper {
    Lock,
    WaitForLock,
    Read,
    /// On a store that is opened read-only.
    ReadOnly,
    Watch,
    /// A watch of the whole store.
    Changes,
    /// The same, on a store that is opened read-only.
    ReadOnlyChanges,
}

impl Sleeper {
    fn open(self, dir: PathBuf) -> FileSystemRecordStore {
        let is_read_only = matches!(self, Sleeper::ReadOnly | Sleeper::ReadOnlyChanges);
        let mode = if is_read_only { OpenMode::ReadOnly } else { OpenMode::Create };
        FileSystemOptions::new().mode(mode).open(dir).unwrap()
    }

    /// Prepares the call, which then sleeps.
    fn prepare<'a>(
        self,
        store: &'a FileSystemRecordStore,
        key: &'a str,
    ) -> Box<dyn FnOnce() -> Result<()> + Send + 'a> {
        match self {
            Sleeper::Lock => Box::new(move || store.lock(key, LockOptions::new()).map(drop)),
            Sleeper::WaitForLock => Box::new(move || store.wait_for_lock(key, WaitOptions::new()).map(drop)),
            Sleeper::Read | Sleeper::ReadOnly => Box::new(move || store.read::<u8>(key).map(drop)),
            Sleeper::Watch => {
                let mut watch = store.watch(key).unwrap();
                Box::new(move || watch.next(WaitOptions::new()).map(drop))
            }
            Sleeper::Changes | Sleeper::ReadOnlyChanges => {
                let mut changes = store.changes(ChangesOptions::new().prefix(key)).unwrap();
                Box::new(move || changes.next(WaitOptions::new()).map(drop))
            }
        }
    }
}

/// Lets a child begin its operation on a key. It is stopped at the beginning. `None` where tracing is not possible.
fn begin(mut child: Child, key: &str) -> Option<Traced> {
    child.send(key);
    Traced::attach(child).map(|(traced, _)| traced)
}

/// The child continues without the tracer until the end of its operation.
fn finish(traced: Traced) -> Child {
    let mut child = traced.release();
    child.expect("done");
    child
}

/// Acquires the lock of a key, and holds it until this process is killed.
fn hold_until_killed(stage: &Stage) {
    let (dir, key): (PathBuf, String) = stage.argument();
    let store = FileSystemRecordStore::open(dir).unwrap();
    let _guard = store.lock(key, LockOptions::new()).unwrap();
    stage.send("held");
    stage.receive();
}
