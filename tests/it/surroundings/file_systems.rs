//! File systems with less than the usual: without locks that can be trusted, without `flock`, without hard links.
//! They are simulated by changing the results of system calls, except that FUSE is mounted in earnest.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use record_store::{
    Error, ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, RecordStoreExt,
};

use crate::support::children::{Child, Stage};
use crate::support::trace::tamper::Call;
use crate::support::trace::{Traced, perform};
use crate::support::{as_named, names_in};
use crate::tree;

const NFS: u64 = 0x6969;
const FUSE: u64 = 0x6573_5546;
const XFS: u64 = 0x5846_5342;

const VARIABLE: &str = "RECORD_STORE_ALLOW_FILE_SYSTEM";

/// How the child opens the store.
const DEFAULT: &str = "default";
const READ_ONLY: &str = "read-only";
const OPTION: &str = "option";
const WITH_VARIABLE: &str = "variable";
const EMPTY_VARIABLE: &str = "empty variable";

/// Opens the store and sends what happens.
#[expect(unsafe_code, reason = "an environment variable of a process with one busy thread")]
pub(super) fn open_on_it(stage: &Stage) {
    let (dir, how): (PathBuf, String) = stage.argument();
    if how == WITH_VARIABLE || how == EMPTY_VARIABLE {
        // SAFETY: the other thread of this process, the test runner, waits for this one.
        unsafe { std::env::set_var(VARIABLE, if how == WITH_VARIABLE { "1" } else { "" }) };
    }
    let options = FileSystemOptions::new();
    let options = match &*how {
        READ_ONLY => options.mode(OpenMode::ReadOnly),
        OPTION => options.allow_any_file_system(),
        _ => options,
    };
    let opened = perform(stage, "", || {
        let store = options.open(&dir)?;
        if how == READ_ONLY { Ok(()) } else { store.lock("k", LockOptions::new())?.write(&1) }
    });
    stage.send(&describe(opened));
}

fn describe(outcome: Result<(), Error>) -> String {
    match outcome {
        Ok(()) => "ok".to_owned(),
        Err(error) => format!("{:?} {error}", error.kind()),
    }
}

/// Opens the store in a child, and changes its system calls. Returns what the child reports. `None` where `ptrace`
/// is forbidden.
fn with_calls(dir: &Path, how: &str, change: impl FnMut(&mut Traced, Call)) -> Option<String> {
    let (mut traced, _) = Traced::attach(Child::start("open on a file system", &(dir, how)))?;
    change_calls(&mut traced, change);
    let mut child = traced.release();
    let outcome = child.receive();
    child.finish();
    Some(outcome)
}

fn change_calls(traced: &mut Traced, mut change: impl FnMut(&mut Traced, Call)) {
    while let Some(call) = traced.next_call() {
        change(traced, call);
    }
}

/// Makes the kernel report this type of file system.
fn on_type(number: u64) -> impl FnMut(&mut Traced, Call) {
    move |traced, call| match call.number {
        libc::SYS_statfs | libc::SYS_fstatfs => {
            traced.execute_and_write(call.arguments[1], &number.to_ne_bytes());
        }
        _ => traced.execute(),
    }
}

#[test]
fn a_file_system_whose_locks_cannot_be_trusted_is_refused_by_name_unless_it_is_allowed() {
    for (number, name) in [(NFS, "NFS"), (FUSE, "FUSE")] {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("new/records");
        for how in [DEFAULT, EMPTY_VARIABLE] {
            let Some(refused) = with_calls(&dir, how, on_type(number)) else { return };
            let expected = format!("UnsupportedFileSystem open: unsupported file system: {name}");
            assert!(refused.starts_with(&expected), "{how}: {refused}");
            assert!(refused.contains(VARIABLE) && refused.contains(dir.to_str().unwrap()), "{refused}");
            assert_eq!(names_in(parent.path()), [""; 0], "nothing was created");
        }
        assert_eq!(with_calls(&dir, WITH_VARIABLE, on_type(number)).unwrap(), "ok");
        assert_eq!(with_calls(&dir, OPTION, on_type(number)).unwrap(), "ok");
        // A store that exists is refused as well, also to read: a reader needs latches too.
        let before = tree::snapshot(&dir);
        for how in [DEFAULT, READ_ONLY] {
            let refused = with_calls(&dir, how, on_type(number)).unwrap();
            assert!(refused.starts_with("UnsupportedFileSystem"), "{how}: {refused}");
        }
        tree::assert_unchanged(&dir, &before, "a refused open");
        for how in [DEFAULT, READ_ONLY] {
            assert_eq!(with_calls(&dir, how, on_type(XFS)).unwrap(), "ok");
            assert_eq!(with_calls(&dir, how, on_type(0x1234_5678)).unwrap(), "ok", "an unknown type");
        }
    }
}

#[test]
fn an_unknown_type_of_file_system_is_not_refused() {
    let dir = tempfile::tempdir().unwrap();
    let opened = with_calls(dir.path(), DEFAULT, |traced, call| match call.number {
        libc::SYS_statfs | libc::SYS_fstatfs => traced.fail(Errno::ENOSYS),
        _ => traced.execute(),
    });
    assert!(opened.is_none_or(|opened| opened == "ok"));
}

#[test]
fn an_error_of_flock_names_the_file_system() {
    for (errno, kind) in [
        (Errno::ENOSYS, "UnsupportedFileSystem"),
        (Errno::EOPNOTSUPP, "UnsupportedFileSystem"),
        (Errno::ENOLCK, "Io"),
    ] {
        // When the store is created, and when an existing one is used.
        for exists in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("records");
            if exists {
                drop(FileSystemRecordStore::open(&dir).unwrap());
            }
            let failed = with_calls(&dir, DEFAULT, |traced, call| match call.number {
                libc::SYS_flock => traced.fail(errno),
                libc::SYS_fstatfs => traced.execute_and_write(call.arguments[1], &XFS.to_ne_bytes()),
                _ => traced.execute(),
            });
            let Some(failed) = failed else { return };
            assert!(failed.starts_with(kind) && failed.contains("xfs"), "{errno}: {failed}");
            if exists {
                assert_eq!(names_in(&dir.join(".store/owners")), [""; 0], "an owner file is left");
            } else {
                assert_eq!(names_in(parent.path()), [""; 0], "a store that cannot be created");
            }
        }
    }
}

/// `flock` succeeds and does nothing, as with an old NFS client.
#[test]
fn a_flock_that_excludes_nobody_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let failed = with_calls(dir.path(), DEFAULT, |traced, call| match call.number {
        libc::SYS_flock => traced.skip(),
        libc::SYS_fstatfs => traced.execute_and_write(call.arguments[1], &0x1234_u64.to_ne_bytes()),
        _ => traced.execute(),
    });
    let Some(failed) = failed else { return };
    assert!(failed.starts_with("UnsupportedFileSystem") && failed.contains("0x1234"), "{failed}");
    assert_eq!(names_in(&dir.path().join(".store/owners")), [""; 0]);
}

#[test]
fn a_fuse_mount_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let Some(child) = Child::start_in_mount_namespace("open on FUSE", &dir.path()) else {
        eprintln!("SKIPPED: file systems cannot be mounted here, not even in a namespace");
        return;
    };
    child.finish();
}

/// Mounts a FUSE file system that nobody serves. The kernel says its type to other users, who may do nothing else.
#[expect(unsafe_code, reason = "a system call that changes the user of one thread")]
pub(super) fn open_on_fuse(stage: &Stage) {
    const NOBODY: u32 = 65_534;
    let dir: PathBuf = stage.argument();
    let Ok(fuse) = std::fs::File::options().read(true).write(true).open("/dev/fuse") else {
        eprintln!("SKIPPED: there is no FUSE here");
        return;
    };
    rustix::io::fcntl_setfd(&fuse, rustix::io::FdFlags::empty()).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let mut mount = Command::new("mount");
    mount.args(["-i", "-t", "fuse", "-o", &options, "fake"]).arg(&dir);
    if !mount.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: FUSE cannot be mounted here");
        return;
    }
    // SAFETY: the call changes the credentials of this thread and touches no memory.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) }, 0);
    for mode in [OpenMode::Create, OpenMode::Existing, OpenMode::ReadOnly] {
        let error = FileSystemOptions::new().mode(mode).open(&dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFileSystem, "{error:?}");
        assert!(error.detail().unwrap().starts_with("FUSE"), "{error}");
    }
}

/// Creates a store and uses every operation that creates a file.
pub(super) fn work_on_a_poor_file_system(stage: &Stage) {
    let (dir, shared): (PathBuf, bool) = stage.argument();
    let options = FileSystemOptions::new();
    let options = if shared { options.shared_group() } else { options };
    let done = perform(stage, "", || {
        let store = options.open(&dir)?;
        for key in ["k", "l", &"long/".repeat(100)] {
            store.write(key, &1)?;
            store.write(key, &2)?;
            let token = store.acquire_lock(key, as_named("job"))?;
            store.renew(key, token, None)?;
            store.release_lock(key, token)?;
        }
        assert!(store.remove("l")?);
        Ok(())
    });
    stage.send(&describe(done));
}

/// Whether a call maps a file that several processes share.
fn maps_a_shared_file(call: Call) -> bool {
    let kind = call.arguments[3] & u64::from((libc::MAP_SHARED | libc::MAP_PRIVATE).cast_unsigned());
    call.number == libc::SYS_mmap && kind == u64::from(libc::MAP_SHARED.cast_unsigned())
}

/// exFAT and Android's storage have no hard links, older file systems no rename with flags, and some of virtual machines no
/// shared mappings: there is no log then.
#[test]
fn a_store_needs_no_hard_links_no_rename_with_flags_and_no_shared_mappings() {
    for number in 0..8 {
        let [is_shared, has_noreplace, has_mappings] = [1, 2, 4].map(|bit| number & bit != 0);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("records");
        let child = Child::start("work on a poor file system", &(&root, is_shared));
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        change_calls(&mut traced, |traced, call| match call.number {
            libc::SYS_link | libc::SYS_linkat => traced.fail(Errno::EPERM),
            libc::SYS_renameat2
                if call.arguments[4] != u64::from(libc::RENAME_NOREPLACE) || !has_noreplace =>
            {
                traced.fail(Errno::EINVAL);
            }
            _ if maps_a_shared_file(call) && !has_mappings => traced.fail(Errno::ENODEV),
            _ => traced.execute(),
        });
        let mut child = traced.release();
        child.expect("ok");
        child.finish();
        let store = FileSystemRecordStore::open(&root).unwrap();
        assert_eq!(store.read::<u32>("k").unwrap().unwrap().result, 2);
        assert_eq!(store.keys().unwrap().count(), 2);
        let left: Vec<_> = store.verify().map(Result::unwrap).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
