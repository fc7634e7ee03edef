//! No descriptor of a store reaches the programs that its process starts. A program that inherits one keeps a lock of
//! its dead parent alive, or a latch.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use record_store::{
    Cancellation, ChangesOptions, FileSystemOptions, IsolationLevel, LockOptions, OpenMode, RecordStoreExt,
    WriteOptions,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, latch_of, open};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("be in every state", be_in_every_state),
    ("hold and start a program", hold_and_start_a_program),
    #[cfg(target_arch = "x86_64")]
    ("use everything", every_call::use_everything),
];

/// Starts a program that does nothing until it is killed.
fn start_program() -> std::process::Child {
    let mut program = Command::new("sleep");
    program.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let program = program.spawn().unwrap();
    // The kernel closes descriptors a moment after the start is reported, and then it changes the name.
    while !is_program(program.id()) {
        std::thread::yield_now();
    }
    program
}

fn is_program(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|name| name == "sleep\n")
}

/// The files of a process that belong to the store or report deaths in it, by descriptor.
fn files_of_store(process: u32, dir: &Path) -> Vec<(String, PathBuf)> {
    let descriptors = format!("/proc/{process}/fd");
    let link = |name: String| Some((name.clone(), std::fs::read_link(format!("{descriptors}/{name}")).ok()?));
    let links = crate::support::names_in(descriptors.as_ref()).into_iter().filter_map(link);
    links
        .filter(|(_, file)| {
            let is_event = ["anon_inode:inotify", "anon_inode:[eventfd]"].map(Path::new).contains(&&**file);
            file.starts_with(dir) || is_event
        })
        .collect()
}

/// The files of the store that a program inherits which this process starts now.
fn inherited(dir: &Path) -> Vec<PathBuf> {
    let mut program = start_program();
    let files = files_of_store(program.id(), dir).into_iter().map(|(_, file)| file).collect();
    program.kill().unwrap();
    program.wait().unwrap();
    files
}

/// Waits until this process has so many descriptors of a file.
fn until_open(file: &Path, dir: &Path, count: usize) {
    let is_it = |(_, open): &(String, PathBuf)| open == file;
    while files_of_store(std::process::id(), dir).iter().filter(|open| is_it(open)).count() < count {
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_program_inherits_no_descriptor_of_a_store_in_any_state() {
    let dir = tempdir().unwrap();
    let mut child = Child::start("be in every state", &dir.path());
    abort_if_hung("a process that is in every state", || child.expect("done"));
    child.finish();
}

fn be_in_every_state(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let dir = &*dir;
    let store = open(dir);
    let leaks = std::cell::RefCell::new(Vec::new());
    // Asserted at the end: a panic would wait for the threads that wait.
    let check = |state: &'static str| {
        leaks.borrow_mut().extend(inherited(dir).into_iter().map(|file| (state, file)));
    };
    check("opened");
    store.write("record", &1).unwrap();
    store.remove("record").unwrap();
    store.write_with("record", &1, WriteOptions::new().time_to_live(PATIENCE)).unwrap();
    // Its watcher keeps a record open that does not expire.
    store.write("lasting", &1).unwrap();
    check("used");
    let guard = store.lock("held", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
    check("holding");
    guard.keep_alive(|error| panic!("{error}")).unwrap();
    check("keeping alive");

    let inotify = Path::new("anon_inode:inotify");
    let cancellation = Cancellation::new();
    let latch = std::fs::File::open(dir.join(latch_of("record"))).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| store.lock("held", as_named("waiter").cancellation(&cancellation)).unwrap_err());
        if cfg!(not(record_store_elsewhere)) {
            until_open(inotify, dir, 1);
        }
        check("waiting for a lock");
        scope.spawn(|| store.wait_for_lock("held", &cancellation).unwrap_err());
        scope.spawn(|| store.watch("record").unwrap().next(&cancellation).unwrap_err());
        scope.spawn(|| store.watch("lasting").unwrap().next(&cancellation).unwrap_err());
        until_open(&dir.join("lasting.json"), dir, 1);
        check("watching a record");
        scope.spawn(|| store.changes(ChangesOptions::new()).unwrap().next(&cancellation).unwrap_err());
        if cfg!(not(record_store_elsewhere)) {
            until_open(inotify, dir, 2);
        }
        check("watching the store");
        latch.lock().unwrap();
        let write = WriteOptions::new().cancellation(&cancellation);
        scope.spawn(|| store.write_with("record", &2, write).unwrap_err());
        until_open(&dir.join(latch_of("record")), dir, 2);
        check("waiting for a latch");
        cancellation.cancel();
    });
    drop(latch);
    check("after all waits");

    let transaction = store.transaction("new").unwrap().isolation_level(IsolationLevel::Serializable);
    let transaction = transaction.begin().unwrap();
    check("in a transaction");
    transaction.rollback().unwrap();
    let mut listings = (store.keys().unwrap(), store.locks().unwrap(), store.verify());
    assert!(listings.0.next().is_some() && listings.1.next().is_some() && listings.2.next().is_none());
    check("in the middle of listings");
    drop(listings);
    let _reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir).unwrap();
    check("opened read-only");

    let shared = store.share_owner().unwrap();
    let [owner] = &inherited(dir)[..] else { panic!("{:?}", inherited(dir)) };
    assert!(owner.starts_with(dir.join(".store/owners")), "{}", owner.display());
    drop(shared);
    check("not shared any more");
    guard.release().unwrap();
    assert_eq!(leaks.take(), []);
    stage.send("done");
}

/// Kills the program when dropped.
struct Program(rustix::process::Pid);

impl Program {
    fn is_running(&self) -> bool {
        is_program(self.0.as_raw_pid().unsigned_abs())
    }

    fn kill(&self) {
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts a holder that has started a program, and kills it. The program lives on.
fn kill_holder(dir: &Path, shares: bool) -> Program {
    let mut holder = Child::start("hold and start a program", &(dir, shares));
    let program = holder.receive().parse().unwrap();
    let program = Program(rustix::process::Pid::from_raw(program).unwrap());
    holder.signal(Signal::KILL);
    waitid(WaitId::Pid(holder.pid()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .unwrap()
        .expect("its end");
    program
}

#[test]
fn a_killed_holder_whose_program_lives_on_holds_no_lock() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let program = kill_holder(dir.path(), false);
    let is_locked = store.is_locked("k").unwrap();
    assert!(program.is_running());
    assert!(!is_locked, "the program keeps the lock");
    store.try_lock("k", LockOptions::new()).unwrap().expect("the lock").write(&1).unwrap();
}

#[test]
fn a_program_that_the_owner_is_shared_with_keeps_the_lock_until_it_ends() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let program = kill_holder(dir.path(), true);
    assert!(store.is_locked("k").unwrap());
    assert_eq!(store.sweep().unwrap().owners, 0);
    assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
    program.kill();
    assert!(store.wait_for_lock("k", PATIENCE).unwrap());
}

fn hold_and_start_a_program(stage: &Stage) {
    let (dir, shares): (PathBuf, bool) = stage.argument();
    let store = open(&dir);
    std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
    let owner = shares.then(|| store.share_owner().unwrap());
    let mut program = start_program();
    drop(owner);
    stage.send(&program.id().to_string());
    // Killed meanwhile.
    stage.receive();
    program.kill().unwrap();
    program.wait().unwrap();
}

/// At each system call of each operation.
#[cfg(target_arch = "x86_64")]
mod every_call {
    use nix::errno::Errno;
    use nix::libc;

    use record_store::{Durability, FileSystemRecordStore, ReadOptions, RecordVersion};

    use super::*;
    use crate::support::trace::{Traced, perform};

    /// A key whose file names are hashes.
    fn long_key() -> String {
        "x".repeat(300)
    }

    /// The operations, one after another. A store is created by it, too.
    pub(super) fn use_everything(stage: &Stage) {
        let (dir, mode): (PathBuf, Option<u32>) = stage.argument();
        let options = |durability| {
            let options = FileSystemOptions::new().durability(durability);
            mode.map_or(options.clone(), |mode| options.file_mode(mode))
        };
        let short = Duration::from_millis(6);
        perform(stage, "", || {
            let relaxed = options(Durability::Relaxed).open(&dir).unwrap();
            let full = options(Durability::Full).open(&dir).unwrap();
            for store in [&relaxed, &full] {
                change_records(store, &dir);
                use_locks(store, &dir, short);
            }
            leave_garbage(&dir);
            let swept = full.sweep().unwrap();
            assert_eq!((swept.owners, swept.staged, swept.locks), (1, 1, 2), "{swept:?}");
            assert!(full.keys().unwrap().count() > 0 && full.locks().unwrap().count() == 0);
            assert!(full.verify().all(|finding| !finding.unwrap().problem.is_damage()));
            let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&dir).unwrap();
            assert!(reader.read::<u8>("absent").unwrap().is_none());
            assert!(reader.exists("record").unwrap());
        });
        stage.send("done");
    }

    fn change_records(store: &FileSystemRecordStore, dir: &Path) {
        for key in ["record", &*long_key()] {
            store.write(key, &1).unwrap();
            store.write(key, &2).unwrap();
            let record = store.read::<u8>(key).unwrap().unwrap();
            assert!(store.compare_and_swap(key, Some(&2), &3, WriteOptions::new()).unwrap());
            assert!(!store.compare_and_swap(key, Some(&2), &4, WriteOptions::new()).unwrap());
            assert_ne!(record.version, RecordVersion::ABSENT);
        }
        store.write_with("short", &1, WriteOptions::new().time_to_live(Duration::from_nanos(1))).unwrap();
        assert!(!store.exists("short").unwrap());
        let place = dir.join("foreign.json");
        for _ in 0..2 {
            std::fs::write(&place, "foreign").unwrap();
            store.write("foreign", &1).unwrap();
            std::fs::write(&place, "foreign").unwrap();
            assert!(store.remove("foreign").unwrap());
        }
        assert_eq!(store.damaged().unwrap().len(), 4);
        assert_eq!(store.clear_damaged().unwrap(), 4);
    }

    fn use_locks(store: &FileSystemRecordStore, dir: &Path, short: Duration) {
        for key in ["lock", &*long_key()] {
            let guard = store.lock(key, LockOptions::new().hold_timeout(PATIENCE)).unwrap();
            guard.renew().unwrap();
            guard.write(&1).unwrap();
            assert!(guard.read::<u8>().unwrap().is_some() && guard.remove().unwrap());
            // Longer than a wait without reports of deaths.
            let other = as_named("other");
            assert!(store.lock(key, other.clone().acquire_timeout(short)).unwrap_err().is_timeout());
            assert!(
                store.read_with::<u8>(key, ReadOptions::new().claim(named_other()).timeout(short)).is_err()
            );
            assert!(!store.wait_for_lock(key, short).unwrap());
            assert!(store.watch(key).unwrap().next(short).unwrap().is_none());
            guard.release().unwrap();
            // A release leaves a blank file for a waiter.
            let place = dir.join(format!("{}.lock", record_store::Key::new(key).unwrap().file_stem()));
            std::fs::write(&place, [0; 1_000]).unwrap();
            store.acquire_lock(key, other.clone()).unwrap();
            crate::support::enqueue_dead_waiter(dir, key);
            store.release_lock(key, named_other()).unwrap();
            store.acquire_lock(key, other).unwrap();
            assert!(store.break_lock(key).unwrap());
            std::fs::write(&place, "foreign").unwrap();
            assert!(store.break_lock(key).unwrap());
        }
        assert_eq!(store.clear_damaged().unwrap(), 2);
    }

    fn named_other() -> record_store::Holder {
        crate::support::named("other")
    }

    /// The leftovers of killed processes. The key of one lock is unknown: it is swept under all latches at once.
    fn leave_garbage(dir: &Path) {
        let stem = |key: String| record_store::Key::new(key).unwrap().file_stem().to_string();
        for name in [
            ".store/owners/1-deaddeaddeaddead",
            ".store/staged/1-deaddeaddeaddead.0",
            "blank.lock",
            &format!("{}.lock", stem("y".repeat(300))),
        ] {
            std::fs::write(dir.join(name), "").unwrap();
        }
    }

    /// The files of the store that a program would inherit which the process started now.
    fn inheritable(process: u32, dir: &Path) -> Vec<PathBuf> {
        let is_inheritable = |descriptor: &str| {
            let Ok(info) = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{descriptor}")) else {
                return false;
            };
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("the flags");
            let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
            flags & libc::O_CLOEXEC == 0
        };
        let files = files_of_store(process, dir).into_iter();
        files.filter(|(descriptor, _)| is_inheritable(descriptor)).map(|(_, file)| file).collect()
    }

    fn opens(call: libc::c_long) -> bool {
        let calls =
            [libc::SYS_openat, libc::SYS_open, libc::SYS_fcntl, libc::SYS_dup, libc::SYS_inotify_init1];
        calls.contains(&call)
    }

    #[test]
    fn a_program_that_is_started_at_any_system_call_inherits_no_descriptor_of_a_store() {
        for mode in [None, Some(0o660)] {
            for renames_exchange in [true, false] {
                let dir = tempdir().unwrap();
                // No path to the store contains a link.
                let root = dir.path().canonicalize().unwrap().join("store");
                let child = Child::start("use everything", &(&root, mode));
                let process = child.pid().as_raw_pid().unsigned_abs();
                // The directory is examined before it becomes a store.
                std::fs::create_dir(&root).unwrap();
                let Some((mut traced, _)) = Traced::attach(child) else { return };
                let mut checked = 0;
                while let Some(call) = traced.next_call() {
                    match call.number {
                        libc::SYS_renameat2 if !renames_exchange => traced.fail(Errno::EINVAL),
                        libc::SYS_linkat if !renames_exchange => traced.fail(Errno::EPERM),
                        _ => traced.execute(),
                    }
                    if !opens(call.number) {
                        continue;
                    }
                    let found = inheritable(process, &root);
                    assert!(found.is_empty(), "{found:?} after {call:?}, mode {mode:?}, {renames_exchange}");
                    checked += 1;
                }
                assert!(checked > 400, "only {checked} calls were checked");
                traced.release().expect("done");
            }
        }
    }
}
