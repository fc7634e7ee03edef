//! A record that somebody has written by hand, without a version, and its change. A recovery that finds such a file takes it
//! for a later one, whatever the log tells. So the change has to be in the directory on the disk before somebody acts on it.

use std::fs;
use std::path::{Path, PathBuf};

use nix::libc;
use record_store::{Durability, RecordStoreExt};

use super::calls::{Look, calls_of};
use crate::support::children::{Child, Role, Stage};
use crate::support::trace::tamper::Call;
use crate::support::trace::{Traced, perform};
use crate::support::{in_memory, open, open_with};

pub(crate) const ROLES: &[Role] = &[("change a record written by hand", change)];

#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
enum Change {
    Write,
    WriteRelaxed,
    WriteLarge,
    Remove,
    RemoveRelaxed,
}

impl Change {
    const ALL: [Self; 5] =
        [Self::Write, Self::WriteRelaxed, Self::WriteLarge, Self::Remove, Self::RemoveRelaxed];

    /// Whether this call takes the old file away.
    fn is_made_by(self, call: &Call) -> bool {
        let removes = matches!(self, Self::Remove | Self::RemoveRelaxed);
        call.number == if removes { libc::SYS_renameat } else { libc::SYS_renameat2 }
    }

    fn look(self) -> Look {
        if matches!(self, Self::Remove | Self::RemoveRelaxed) { Look::Gone } else { Look::There }
    }
}

fn change(stage: &Stage) {
    let (dir, change): (PathBuf, Change) = stage.argument();
    let is_relaxed = matches!(change, Change::WriteRelaxed | Change::RemoveRelaxed);
    let store = open_with(&dir, if is_relaxed { Durability::Relaxed } else { Durability::Full });
    let large = "x".repeat(60_000);
    perform(stage, "", || match change {
        Change::Write | Change::WriteRelaxed => store.write("k", "new"),
        Change::WriteLarge => store.write("k", &large),
        Change::Remove | Change::RemoveRelaxed => store.remove("k").map(drop),
    })
    .unwrap();
    stage.send("done");
}

/// Writes a record by hand, and runs its change in a child until the old file is taken away. `None` where `ptrace` is
/// forbidden.
fn stopped_after_the_change(dir: &Path, change: Change) -> Option<Traced> {
    drop(open(dir));
    fs::write(dir.join("k.json"), "{\"key\":\"k\",\"result\":\"by hand\"}").unwrap();
    let (mut traced, _) = Traced::attach(Child::start("change a record written by hand", &(dir, change)))?;
    loop {
        let call = traced.next_call().expect("the change");
        traced.execute();
        if change.is_made_by(&call) {
            return Some(traced);
        }
    }
}

#[test]
fn the_change_is_on_the_disk_before_the_latch_is_left() {
    for change in Change::ALL {
        let dir = in_memory();
        let Some(mut traced) = stopped_after_the_change(dir.path(), change) else { return };
        let (mut is_log_synced, mut is_dir_synced) = (false, false);
        loop {
            let call = traced.next_call().expect("the end of the latch");
            let is_of_dir = || traced.file_of_call().is_some_and(|file| file == dir.path());
            match call.number {
                libc::SYS_fdatasync => is_log_synced = true,
                libc::SYS_fsync if is_of_dir() => {
                    assert!(is_log_synced, "{change:?}: the text of the record is only in the log");
                    is_dir_synced = true;
                }
                libc::SYS_flock => break,
                _ => {}
            }
            traced.execute();
        }
        assert!(is_dir_synced, "{change:?}");
        let mut child = traced.release();
        child.expect("done");
        child.finish();
        assert_eq!(calls_of(dir.path(), change.look(), libc::SYS_fsync), Some(0), "{change:?}");
    }
}

#[test]
fn nobody_acts_on_a_change_of_a_stopped_or_killed_writer_that_is_not_on_the_disk() {
    for change in Change::ALL {
        for is_killed in [false, true] {
            let dir = in_memory();
            let Some(traced) = stopped_after_the_change(dir.path(), change) else { return };
            let mut stopped = Some(traced);
            if is_killed {
                stopped.take().unwrap().kill();
            }
            let what = format!("{change:?}, killed: {is_killed}");
            let syncs = || calls_of(dir.path(), change.look(), libc::SYS_fsync).unwrap();
            assert!(syncs() > 0, "{what}");
            if let Some(traced) = stopped {
                let mut child = traced.release();
                child.expect("done");
                child.finish();
            }
            assert_eq!(syncs(), 0, "{what}: the change is on the disk since the last look");
        }
    }
}

/// The next process that changes something may be one that never syncs.
#[test]
fn the_change_of_a_killed_writer_is_on_the_disk_before_the_next_change_of_the_latch() {
    let dir = in_memory();
    let Some(traced) = stopped_after_the_change(dir.path(), Change::Write) else { return };
    traced.kill();
    let Some((mut next, _)) =
        Traced::attach(Child::start("change a record written by hand", &(dir.path(), Change::WriteRelaxed)))
    else {
        return;
    };
    let mut syncs = 0;
    loop {
        let call = next.next_call().expect("a change");
        if call.number == libc::SYS_pwrite64 {
            break;
        }
        syncs += u32::from(call.number == libc::SYS_fsync);
        next.execute();
    }
    assert_eq!(syncs, 1);
    let mut child = next.release();
    child.expect("done");
    child.finish();
}
