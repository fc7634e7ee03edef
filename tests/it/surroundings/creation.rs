//! Several processes that create the same store, or the same latch of it, at the same time.

use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
#[cfg(target_arch = "x86_64")]
use record_store::FileSystemOptions;
use record_store::{FileSystemRecordStore, RecordStoreExt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::children::{Child, Stage};
use crate::support::{in_memory, names_in, open, storm};

/// Opens one new store after another. If `fails`, this process cannot write into files, so it cannot complete a
/// store.
pub(super) fn create_stores(stage: &Stage) {
    let fails: bool = stage.argument();
    if fails {
        // The signal that accompanies the error would kill the process.
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGXFSZ);
        signals.thread_block().unwrap();
        let maximum = getrlimit(Resource::Fsize).maximum;
        setrlimit(Resource::Fsize, Rlimit { current: Some(0), maximum }).unwrap();
    }
    loop {
        let dir = PathBuf::from(stage.receive());
        let opened = FileSystemRecordStore::open(dir);
        stage.send(if opened.is_ok() { "opened" } else { "failed" });
        if !fails {
            opened.unwrap();
        }
    }
}

/// A process that fails removes what it has created, and nothing that another one needs.
#[test]
fn creators_of_which_some_fail_leave_a_whole_store_or_nothing() {
    let dir = in_memory();
    let mut children: Vec<_> =
        (0..6).map(|number| Child::start("create stores", &(number % 2 == 0))).collect();
    let mut failures = 0;
    for round in 0..storm(300) {
        let root = dir.path().join(format!("a-{round}/b/records"));
        for child in &mut children {
            child.send(root.to_str().unwrap());
        }
        failures +=
            children.iter_mut().filter_map(|child| (child.receive() == "failed").then_some(())).count();
        let mut names = names_in(&root.join(".store"));
        names.sort_unstable();
        assert_eq!(
            names,
            ["damaged", "events", "format.json", "latches", "log", "owners", "staged"],
            "{root:?}"
        );
        assert_eq!(names_in(&root.join(".store/staged")), [""; 0]);
        open(&root).write("k", &round).unwrap();
    }
    assert!(failures > 0, "the limit had no effect");

    // Without the processes that succeed, no store is left. A directory above it may stay: the process that has
    // created it could not remove it while another one was at work in it.
    let mut failing: Vec<_> = children.into_iter().step_by(2).collect();
    for child in &mut failing {
        child.send(dir.path().join("failed/b/records").to_str().unwrap());
    }
    for child in &mut failing {
        child.expect("failed");
    }
    let failed = dir.path().join("failed");
    let left = if failed.exists() { crate::tree::paths(&failed) } else { Vec::new() };
    assert!(left.iter().all(|path| path.ends_with("b") || path.ends_with("records")), "{left:?}");
}

#[cfg(target_arch = "x86_64")]
pub(super) fn write_to_a_shared_store(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let written = crate::support::trace::perform(stage, "", || store.write("k", "by the child"));
    stage.send(if written.is_ok() { "written" } else { "failed" });
}

/// In a shared store a latch is complete before it gets its name. If another process has given that name to another
/// file meanwhile, that file stays: with two files of one name, two processes would be in the latch.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_latch_of_a_shared_store_is_created_only_once() {
    use crate::support::trace::Traced;
    use nix::libc;
    use std::os::unix::fs::MetadataExt;
    let dir = in_memory();
    let store = FileSystemOptions::new().shared_group().open(dir.path()).unwrap();
    let latch = dir.path().join(crate::support::latch_of("k"));
    let child = Child::start("write to a shared store", &dir.path());
    let Some((mut traced, _)) = Traced::attach(child) else { return };
    let mut first = None;
    while let Some(call) = traced.next_call() {
        let renames = matches!(call.number, libc::SYS_renameat | libc::SYS_renameat2);
        if renames && first.is_none() {
            assert!(!latch.exists(), "the child renames something else");
            store.write("k", "by the parent").unwrap();
            first = Some(std::fs::metadata(&latch).unwrap().ino());
        }
        traced.execute();
    }
    let mut child = traced.release();
    child.expect("written");
    child.finish();
    let after = std::fs::metadata(&latch).unwrap();
    assert_eq!(Some(after.ino()), first);
    assert_eq!(after.mode() & 0o777, 0o660);
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "by the child");
    assert_eq!(names_in(&dir.path().join(".store/staged")), [""; 0]);
}
