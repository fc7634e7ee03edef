//! The lock of a process that has died goes to those who wait for it, for every kind of death, also in another PID
//! namespace. The build without re-checks proves that they are told of the death.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[cfg(not(record_store_elsewhere))]
use record_store::Cancellation;
use record_store::{
    ErrorKind, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions, OpenMode, RecordStoreExt,
};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Sleeping, Stage, spawn_until_asleep, until_asleep};
use crate::support::{PATIENCE, as_named, millis, names_in, open, slots_in_use, storm};

pub(crate) const ROLES: &[Role] = &[
    ("hold and die", hold_and_die),
    ("neighbour", neighbour),
    #[cfg(not(record_store_elsewhere))]
    ("watch for deaths", watch_for_deaths),
];

/// Acquires the lock, then ends as the parent requests. No destructor runs.
fn hold_and_die(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    stage.send("ready");
    stage.expect("go");
    let _guard = store.lock("k", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
    stage.send("held");
    match stage.receive().as_str() {
        "abort" => std::process::abort(),
        _ => std::process::exit(0),
    }
}

fn start(dir: &Path) -> Child {
    let mut child = Child::start("hold and die", &dir);
    child.expect("ready");
    child.send("go");
    child
}

/// Waits for the lock in a thread.
fn wait_in_thread(dir: &Path) -> Sleeping<()> {
    let store = open(dir);
    spawn_until_asleep(move || store.lock("k", as_named("waiter")).unwrap().release().unwrap())
}

#[test]
fn a_waiter_notices_every_kind_of_death_of_the_holder() {
    for manner in ["kill", "abort", "exit"] {
        let dir = tempdir().unwrap();
        for _ in 0..storm(5) {
            let mut holder = start(dir.path());
            holder.expect("held");
            let waiter = wait_in_thread(dir.path());
            if manner == "kill" {
                holder.kill();
            } else {
                holder.send(manner);
            }
            waiter.join();
        }
        open(dir.path()).sweep().unwrap();
        // Only the owner file of this process is left.
        assert_eq!(names_in(&dir.path().join(".store/owners")).len(), 1);
    }
}

#[test]
fn a_waiter_notices_the_death_of_a_later_holder() {
    let dir = tempdir().unwrap();
    for _ in 0..storm(5) {
        let store = open(dir.path());
        let first = store.lock("k", LockOptions::new()).unwrap();
        let mut second = start(dir.path());
        second.until_asleep();
        let third = wait_in_thread(dir.path());
        first.release().unwrap();
        second.expect("held");
        second.kill();
        third.join();
    }
}

#[test]
fn a_notified_waiter_that_is_killed_blocks_nobody() {
    let dir = tempdir().unwrap();
    for _ in 0..storm(5) {
        let store = open(dir.path());
        let first = store.lock("k", LockOptions::new()).unwrap();
        let second = start(dir.path());
        second.until_asleep();
        let third = wait_in_thread(dir.path());
        second.stop_asleep();
        first.release().unwrap();
        second.kill();
        third.join();
    }
}

/// One report wakes all of them, though only one of them can change the table through which they are woken.
#[test]
fn a_read_only_and_a_writable_handle_of_one_process_notice_a_death() {
    let dir = tempdir().unwrap();
    for is_read_only_first in [true, false] {
        let mut holder = start(dir.path());
        holder.expect("held");
        let read = || {
            let store = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(dir.path()).unwrap();
            spawn_until_asleep(move || assert!(store.read::<u8>("k").unwrap().is_none()))
        };
        let threads = if is_read_only_first {
            let reader = read();
            [reader, wait_in_thread(dir.path())]
        } else {
            [wait_in_thread(dir.path()), read()]
        };
        holder.kill();
        for thread in threads {
            thread.join();
        }
    }
}

/// The kernel reports that the owner file of a dying process was closed, and drops its lock just after that. Here, some
/// time passes in between.
#[test]
fn a_death_that_is_proven_only_after_its_report_is_noticed() {
    const OWNER: &str = "1-aaaaaaaaaaaaaaaa";
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    // A file that stands in for the owner file of a process, whose lock can be dropped without a report.
    let path = dir.path().join(".store/owners").join(OWNER);
    std::fs::write(&path, "").unwrap();
    let alive = File::open(&path).unwrap();
    rustix::fs::flock(&alive, rustix::fs::FlockOperation::LockExclusive).unwrap();
    hold_for(&store, OWNER);
    let waiter = wait_in_thread(dir.path());
    drop(File::options().write(true).open(&path).unwrap());
    std::thread::sleep(millis(50));
    assert!(!waiter.is_finished());
    drop(alive);
    waiter.join();
}

/// Makes a lock of the process with this owner file.
fn hold_for(store: &FileSystemRecordStore, owner: &str) {
    store.acquire_lock("k", LockOptions::new()).unwrap();
    let path = store.path().join("k.lock");
    let lock = std::fs::read_to_string(&path).unwrap();
    let (before, after) = lock.split_once("\"owner\":\"").unwrap();
    let (_, after) = after.split_once('"').unwrap();
    std::fs::write(&path, format!("{before}\"owner\":\"{owner}\"{after}")).unwrap();
}

/// A process with pid 1 in its own PID namespace, like the first process of a container.
fn neighbour(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let own = Holder::current();
    stage.send(own.name());
    loop {
        match stage.receive().as_str() {
            "acquire" => {
                std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
                stage.send("acquired");
            }
            "try to steal" => {
                assert!(store.is_locked("k").unwrap());
                assert!(!store.is_lock_holder("k", &own).unwrap());
                let refusal = store.release_lock("k", &own).unwrap_err();
                assert_eq!(refusal.kind(), ErrorKind::NotLockHolder, "{refusal:?}");
                let refusal = store.write("k", "mine").unwrap_err();
                assert_eq!(refusal.kind(), ErrorKind::Locked, "{refusal:?}");
                assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
                store.sweep().unwrap();
                assert!(store.is_locked("k").unwrap());
                stage.send("refused");
            }
            "wait" => {
                let guard = store.lock("k", LockOptions::new()).unwrap();
                stage.send("acquired");
                guard.release().unwrap();
            }
            other => panic!("{other}"),
        }
    }
}

#[test]
fn containers_that_share_a_directory_have_different_identities() {
    let dir = tempdir().unwrap();
    for _ in 0..storm(3) {
        let mut one = Child::start_in_pid_namespace("neighbour", &dir.path());
        let mut two = Child::start_in_pid_namespace("neighbour", &dir.path());
        let names = (one.receive(), two.receive());
        assert_eq!(names.0, names.1, "both are process 1 on the same host, so their default names are equal");
        one.send("acquire");
        one.expect("acquired");
        two.send("try to steal");
        two.expect("refused");
        two.send("wait");
        until_awaited(dir.path());
        one.kill();
        two.expect("acquired");
    }
}

/// Waits until a process waits for a lock, whatever PID namespace it is in.
fn until_awaited(dir: &Path) {
    let start = Instant::now();
    // Elsewhere nobody knows who waits.
    while !cfg!(record_store_elsewhere) && slots_in_use(dir) == 0 {
        assert!(start.elapsed() < PATIENCE, "nobody waits");
        std::thread::sleep(millis(1));
    }
}

/// The directories in which this process watches for deaths, as the kernel lists them.
#[cfg(not(record_store_elsewhere))]
fn watches() -> usize {
    let of_descriptor = |name: String| std::fs::read_to_string(format!("/proc/self/fdinfo/{name}")).ok();
    let infos = names_in("/proc/self/fd".as_ref()).into_iter().filter_map(of_descriptor);
    infos.map(|info| info.lines().filter(|line| line.starts_with("inotify wd:")).count()).sum()
}

#[cfg(not(record_store_elsewhere))]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE / 3, "{what}");
        std::thread::sleep(millis(1));
    }
}

/// Of two waits in one process, the first to end leaves the watch to the other one. After the last one, nothing is
/// watched, and the thread that reads the reports ends.
#[cfg(not(record_store_elsewhere))]
#[test]
fn deaths_are_watched_for_as_long_as_anybody_waits() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let _guard = store.lock("k", LockOptions::new()).unwrap();
    let mut child = Child::start("watch for deaths", &dir.path());
    child.expect("done");
    child.finish();
}

#[cfg(not(record_store_elsewhere))]
fn watch_for_deaths(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = &open(&dir);
    let cancellations = [Cancellation::new(), Cancellation::new()];
    std::thread::scope(|scope| {
        let wait = |cancellation| {
            let (tid, started) = std::sync::mpsc::channel();
            let waiter = scope.spawn(move || {
                tid.send(rustix::thread::gettid().as_raw_pid()).unwrap();
                store.lock("k", LockOptions::new().cancellation(cancellation)).unwrap_err()
            });
            until_asleep(std::process::id(), started.recv().unwrap());
            // As above. If this is too short, the test proves less, and passes.
            std::thread::sleep(millis(50));
            waiter
        };
        let [first, second] = cancellations.each_ref().map(wait);
        until("nobody watches for deaths", || watches() == 1);
        cancellations[0].cancel();
        first.join().unwrap();
        until("the first wait to end has ended the watch", || watches() == 1);
        cancellations[1].cancel();
        second.join().unwrap();
    });
    until("the watch outlasts the last wait", || watches() == 0);
    let name_of = |thread: String| std::fs::read_to_string(format!("/proc/self/task/{thread}/comm"));
    until("the thread outlasts the last wait", || {
        let names = names_in("/proc/self/task".as_ref()).into_iter().map(name_of);
        !names.flatten().any(|name| name == "record-store\n")
    });
    stage.send("done");
}
