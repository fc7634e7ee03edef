//! What becomes of a lock when its process is killed, stopped or forked, and how its release reaches
//! another process.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use record_store::{
    Claim, Durability, Error, FileSystemRecordStore, Holder, LockGuard, LockOptions, RecordStoreExt,
};
use rustix::process::Signal;
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::{PATIENCE, as_named, latch_of, millis, named, open, open_with};

pub(crate) const ROLES: &[Role] = &[
    ("hold", hold),
    ("wait-for-it", wait_for_it),
    ("oversleep", oversleep),
    ("fork", fork),
    ("fork-while-writing", fork_while_writing),
    ("sit-in-latch", sit_in_latch),
];

/// What a busy machine may add to anything.
const SLACK: Duration = Duration::from_secs(10);

/// Takes the lock, under a name or the default holder, and keeps it.
fn hold(stage: &Stage) {
    let (dir, name, lease): (PathBuf, Option<String>, Option<u64>) = stage.argument();
    let store = open(&dir);
    let mut options = LockOptions::new();
    if let Some(name) = name {
        options = options.holder(named(&name));
    }
    if let Some(lease) = lease {
        options = options.hold_timeout(millis(lease));
    }
    stage.tell("ready");
    stage.expect("go");
    let guard = store.lock("k", options).unwrap();
    stage.tell("held");
    stage.expect("release");
    guard.release().unwrap();
}

/// Starts a child that [`hold`]s. The moment before it took the lock comes along.
fn start_holding(dir: &Path, name: Option<&str>, lease: Option<u64>) -> (Child, Instant) {
    let mut child = Child::start("hold", &(dir, name, lease));
    child.expect("ready");
    let before = Instant::now();
    child.tell("go");
    child.expect("held");
    (child, before)
}

/// Acquires again and again, and says when it has.
fn wait_for_it(stage: &Stage) {
    let (dir, rounds): (PathBuf, u32) = stage.argument();
    let store = open(&dir);
    stage.tell(&rustix::thread::gettid().as_raw_pid().to_string());
    for _ in 0..rounds {
        stage.expect("go");
        let guard = store.lock("k", LockOptions::new()).unwrap();
        stage.tell("got it");
        stage.expect("release");
        guard.release().unwrap();
        stage.tell("released");
    }
}

/// A waiting process: its thread sleeps in the kernel.
struct Waiter {
    child: Child,
    thread: String,
}

impl Waiter {
    fn start(dir: &Path, rounds: u32) -> Self {
        let mut child = Child::start("wait-for-it", &(dir, rounds));
        let thread = child.hear();
        Self { child, thread }
    }

    /// Lets it begin to wait, and sees it sleep on the event counter.
    fn wait(&mut self) {
        self.child.tell("go");
        let call = format!("/proc/{}/task/{}/syscall", self.child.pid().as_raw_pid(), self.thread);
        let futex = nix::libc::SYS_futex.to_string();
        let start = Instant::now();
        while std::fs::read_to_string(&call).unwrap().split(' ').next() != Some(&futex) {
            assert!(start.elapsed() < PATIENCE, "does not sleep on a futex");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_killed_holder_makes_way_for_the_next() {
    let dir = tempdir().unwrap();
    let (holder, _) = start_holding(dir.path(), None, None);
    let mut waiter = Waiter::start(dir.path(), 1);
    waiter.wait();
    let store = open(dir.path());
    let token = store.lock_info("k").unwrap().expect("the holder's lock").token();
    let start = Instant::now();
    holder.kill();
    // Free as soon as the process is gone; by now the waiter may have it.
    let lock = store.lock_info("k").unwrap();
    assert!(lock.is_none_or(|lock| lock.token() > token), "still the dead one's");
    waiter.child.expect("got it");
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    waiter.child.tell("release");
    waiter.child.expect("released");
    waiter.child.finish();
}

#[test]
fn a_named_lock_outlives_its_process_until_its_lease_is_over() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let lease = millis(1_500);
    let (holder, before) = start_holding(dir.path(), Some("job"), Some(1_500));
    holder.kill();
    store.sweep().unwrap();
    // Both fail early only where this machine is so slow that the lease is over.
    assert!(store.is_locked("k").unwrap() || before.elapsed() >= lease);
    match store.acquire_lock("k", &LockOptions::new().acquire_timeout(Duration::ZERO)) {
        Err(Error::LockTimeout { holder, .. }) => assert_eq!(holder, Some(named("job"))),
        other => assert!(before.elapsed() >= lease, "{other:?}"),
    }
    store.acquire_lock("k", &LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
    assert!(before.elapsed() >= lease, "taken before the lease was over");
    assert!(before.elapsed() < lease + SLACK);
}

#[test]
fn a_named_lock_passes_to_another_process_of_that_name() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let (holder, _) = start_holding(dir.path(), Some("job"), None);
    let token = store.lock_info("k").unwrap().unwrap().token();
    holder.kill();
    store.sweep().unwrap();
    let stranger = store.acquire_lock("k", &LockOptions::new().acquire_timeout(Duration::ZERO));
    assert!(stranger.unwrap_err().is_timeout());
    assert_eq!(store.acquire_lock("k", &as_named("job")).unwrap(), token);
    store.release_lock("k", named("job")).unwrap();
    assert!(!store.is_locked("k").unwrap());
}

#[test]
fn a_release_wakes_a_waiting_process() {
    const ROUNDS: u32 = 9;
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut waiter = Waiter::start(dir.path(), ROUNDS);
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let guard = store.lock("k", LockOptions::new()).unwrap();
            waiter.wait();
            let start = Instant::now();
            guard.release().unwrap();
            waiter.child.expect("got it");
            let time = start.elapsed();
            waiter.child.tell("release");
            waiter.child.expect("released");
            time
        })
        .collect();
    waiter.child.finish();
    times.sort_unstable();
    // Without a wake it would look again only after 250 ms.
    assert!(times[times.len() / 2] < millis(100), "{times:?}");
}

/// Every way to use a guard, each refused because the lock is lost.
fn assert_worthless(guard: LockGuard<'_, FileSystemRecordStore>) {
    let lost = |error: Error| assert!(error.is_lock_lost(), "{error}: {error:?}");
    lost(guard.read::<String>().unwrap_err());
    lost(guard.write("late").unwrap_err());
    lost(guard.remove().unwrap_err());
    lost(guard.renew().unwrap_err());
    lost(guard.remaining().unwrap_err());
    lost(guard.release().unwrap_err());
}

#[test]
fn a_holder_that_overslept_its_lease_changes_nothing() {
    // A named successor is kept apart by its token alone.
    for (name, next) in
        [(None, named("next")), (Some("job"), named("next")), (Some("job"), Holder::current())]
    {
        let dir = tempdir().unwrap();
        let store = open(dir.path());
        let mut sleeper = Child::start("oversleep", &(dir.path(), name));
        sleeper.expect("held");
        sleeper.stop();
        let options = LockOptions::new().holder(next).acquire_timeout(PATIENCE);
        let successor = store.lock("k", options).unwrap();
        successor.write("successor").unwrap();
        sleeper.resume();
        sleeper.tell("go");
        sleeper.expect("all refused");
        sleeper.finish();
        let info = store.lock_info("k").unwrap().expect("the successor's lock");
        assert_eq!(info.token(), successor.token());
        assert_eq!(successor.read::<String>().unwrap().unwrap().result, "successor");
        successor.release().unwrap();
    }
}

fn oversleep(stage: &Stage) {
    let (dir, name): (PathBuf, Option<String>) = stage.argument();
    let store = open(&dir);
    let holder = name.map_or_else(Holder::current, |name| named(&name));
    let options = LockOptions::new().holder(holder.clone()).hold_timeout(millis(200));
    let guard = store.lock("k", options.clone()).unwrap();
    let other = store.lock("dropped", options).unwrap();
    stage.tell("held");
    stage.expect("go");
    for outcome in [store.release_lock("k", &holder), store.renew("k", &holder, None)] {
        assert!(matches!(outcome, Err(Error::NotLockHolder { .. })), "{outcome:?}");
    }
    let write = store.write_as("k", "late", &holder);
    assert!(matches!(write, Err(Error::Locked { .. })), "{write:?}");
    assert_worthless(guard);
    drop(other);
    stage.tell("all refused");
}

#[test]
fn a_forked_child_has_no_part_in_its_parents_locks() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork", &dir.path());
    parent.expect("unharmed");
    parent.finish();
}

fn fork(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let bound = store.lock("bound", LockOptions::new()).unwrap();
    let named_guard = store.lock("named", as_named("job")).unwrap();
    let dropped = store.lock("dropped", LockOptions::new()).unwrap();
    bound.write("parent").unwrap();
    named_guard.write("parent").unwrap();
    let me = Holder::current();
    let [bound, named_guard, dropped] =
        in_fork([bound, named_guard, dropped], |[bound, named_guard, dropped]| {
            let zero = LockOptions::new().acquire_timeout(Duration::ZERO);
            // The parent's holder, by name: not even that helps.
            for claim in [Claim::Holder(me.clone()), Claim::Token(bound.token())] {
                assert!(store.release_lock("bound", claim.clone()).is_err());
                assert!(store.renew("bound", claim.clone(), None).is_err());
                assert!(store.write_as("bound", "child", claim.clone()).is_err());
                assert!(store.remove_as("bound", claim).is_err());
            }
            assert!(!store.is_lock_holder("bound", &me).unwrap());
            assert!(store.acquire_lock("bound", &zero).unwrap_err().is_timeout());
            assert!(store.acquire_lock("bound", &zero.clone().holder(me)).unwrap_err().is_timeout());
            assert_worthless(bound);
            assert_worthless(named_guard);
            drop(dropped);
            let own = store.lock("child's own", zero).unwrap();
            own.write("child").unwrap();
            // Left locked: the lock must end with the child.
            std::mem::forget(own);
        });
    for guard in [&bound, &named_guard, &dropped] {
        assert!(store.is_lock_holder(guard.key(), guard.holder()).unwrap(), "{guard:?}");
        guard.renew().unwrap();
        guard.write("parent again").unwrap();
    }
    assert_eq!(store.read::<String>("child's own").unwrap().unwrap().result, "child");
    for guard in [bound, named_guard, dropped] {
        guard.release().unwrap();
    }
    stage.tell("unharmed");
}

/// Forks; the child does its work with its copy of `shared` and ends, the parent gets the original
/// back.
#[expect(unsafe_code, reason = "fork")]
fn in_fork<T>(shared: T, work: impl FnOnce(T)) -> T {
    // SAFETY: of the other threads, only the test runner's is there, and it waits on a channel: it
    // holds no lock that the child could need.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            // Whatever becomes of it, it is not left behind.
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(shared)));
            std::process::exit(i32::from(done.is_err()));
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            shared
        }
    }
}

#[test]
fn a_forked_child_keeps_no_latch() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork-while-writing", &dir.path());
    parent.expect("unharmed");
    parent.finish();
}

/// Forks again and again while another thread is in and out of a latch. The children have copies of
/// all that is open, and live on.
fn fork_while_writing(stage: &Stage) {
    const CHILDREN: usize = 40;
    let dir: PathBuf = stage.argument();
    let store = Arc::new(open_with(&dir, Durability::Relaxed));
    let writes = Arc::new(AtomicU64::new(0));
    std::thread::spawn({
        let (store, writes) = (Arc::clone(&store), Arc::clone(&writes));
        move || {
            loop {
                store.write("k", &0).unwrap();
                writes.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let mut children = Vec::new();
    for _ in 0..CHILDREN {
        let goal = writes.load(Ordering::Relaxed) + 3;
        children.push(fork_a_sleeper());
        let start = Instant::now();
        while writes.load(Ordering::Relaxed) < goal {
            assert!(start.elapsed() < SLACK, "a child has the latch");
            std::thread::yield_now();
        }
    }
    for child in children {
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
    }
    stage.tell("unharmed");
}

#[expect(unsafe_code, reason = "fork")]
fn fork_a_sleeper() -> nix::unistd::Pid {
    // SAFETY: the child makes two system calls and nothing else, whatever its parent's threads were
    // at.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => {
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            loop {
                nix::unistd::pause();
            }
        }
    }
}

/// Enters a key's latch as the library does, and stays.
#[expect(clippy::disallowed_methods, reason = "this stands in for the library")]
fn sit_in_latch(stage: &Stage) {
    let (dir, key): (PathBuf, String) = stage.argument();
    let file = File::options().read(true).write(true).open(dir.join(latch_of(&key))).unwrap();
    file.lock().unwrap();
    stage.tell("inside");
    stage.hear();
}

/// Runs `work` while a process is stopped inside the key's latch. Whatever happens, the
/// latch is free again in the end, so that a call without a bound fails instead of hanging.
fn while_stopped_in_latch(dir: &Path, key: &str, work: impl FnOnce()) {
    let mut sitter = Child::start("sit-in-latch", &(dir, key));
    sitter.expect("inside");
    sitter.stop();
    let pid = sitter.pid();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let rescue = std::thread::spawn(move || {
        if is_done.recv_timeout(PATIENCE).is_err() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    });
    work();
    done.send(()).unwrap();
    rescue.join().unwrap();
    sitter.kill();
}

/// The time that a call took, which must be at least `from` and not much more.
fn assert_bounded(from: Duration, call: impl FnOnce()) {
    let start = Instant::now();
    call();
    let took = start.elapsed();
    assert!(took >= from && took < from + SLACK, "{took:?}, not {from:?}");
}

#[test]
fn calls_with_a_timeout_return_by_it_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    // So that the latch exists, and one record does not.
    store.write("k", "old").unwrap();
    store.remove("k").unwrap();
    let options = |timeout| LockOptions::new().acquire_timeout(timeout);
    while_stopped_in_latch(dir.path(), "k", || {
        for timeout in [Duration::ZERO, millis(300)] {
            let timed_out = |error: Error| {
                assert!(matches!(error, Error::LockTimeout { holder: None, .. }), "{error:?}");
            };
            assert_bounded(timeout, || timed_out(store.acquire_lock("k", &options(timeout)).unwrap_err()));
            assert_bounded(timeout, || timed_out(store.lock("k", options(timeout)).unwrap_err()));
            // That there is no record can only be told under the latch.
            assert_bounded(timeout, || timed_out(store.try_read::<String>("k", timeout).unwrap_err()));
        }
        assert_bounded(Duration::ZERO, || {
            assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
        });
        assert_bounded(Duration::ZERO, || assert!(store.wait_for_lock("k", None).unwrap()));
    });
    store.acquire_lock("k", &options(Duration::ZERO)).unwrap();
}

#[test]
fn looking_and_reading_need_no_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", "old").unwrap();
    while_stopped_in_latch(dir.path(), "k", || {
        assert_bounded(Duration::ZERO, || {
            assert!(!store.is_locked("k").unwrap());
            assert_eq!(store.lock_info("k").unwrap(), None);
            assert!(store.exists("k").unwrap());
            assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "old");
        });
    });
    let guard = store.lock("k", LockOptions::new()).unwrap();
    while_stopped_in_latch(dir.path(), "k", || {
        assert_bounded(Duration::ZERO, || {
            assert!(store.is_lock_holder("k", guard.holder()).unwrap());
            assert_eq!(guard.read::<String>().unwrap().unwrap().result, "old");
            assert_eq!(guard.remaining().unwrap(), None);
        });
        let (timeout, other) = (millis(300), as_named("other"));
        assert_bounded(timeout, || {
            // Held, so the latch does not matter, and the error names the holder.
            let error = store.acquire_lock("k", &other.acquire_timeout(timeout)).unwrap_err();
            assert!(
                matches!(&error, Error::LockTimeout { holder: Some(holder), .. } if holder == guard.holder())
            );
        });
        assert_bounded(timeout, || assert!(!store.wait_for_lock("k", Some(timeout)).unwrap()));
    });
    guard.release().unwrap();
}
