//! Locks of processes that are killed, stopped or forked, and waiters in other processes that are woken by a
//! release.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use record_store::{
    BreakOptions, Cancellation, Claim, Durability, Error, ErrorKind, Expected, FileSystemRecordStore, Holder,
    Json, Key, LockGuard, LockOptions, LockToken, ReadOptions, RecordStore, RecordStoreExt, RemoveOptions,
    WaitOptions, WriteOptions,
};
use rustix::process::Signal;
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage, spawn_until_asleep};
use crate::support::{PATIENCE, as_named, latch_of, millis, named, open, open_with};

pub(crate) const ROLES: &[Role] = &[
    ("hold", hold),
    ("acquire-repeatedly", acquire_repeatedly),
    ("outlast-lease", outlast_lease),
    ("fork", fork),
    ("fork-while-writing", fork_while_writing),
    ("stay-in-latch", stay_in_latch),
];

/// The delay that a busy machine may add to any operation.
const SLACK: Duration = Duration::from_secs(10);

/// Acquires the lock for this holder or the default holder, and keeps it until the parent requests the release.
fn hold(stage: &Stage) {
    let (dir, holder, lease): (PathBuf, Option<Holder>, Option<u64>) = stage.argument();
    let store = open(&dir);
    let mut options = LockOptions::new().hold_timeout(lease.map(millis));
    if let Some(holder) = holder {
        options = options.holder(holder);
    }
    stage.send("ready");
    stage.expect("go");
    let guard = store.lock("k", options).unwrap();
    stage.send("held");
    stage.expect("release");
    guard.release().unwrap();
}

/// Starts a child that runs [`hold`]. Also returns a time before the lock was acquired.
fn start_holding(dir: &Path, holder: Option<Holder>, lease: Option<u64>) -> (Child, Instant) {
    let mut child = Child::start("hold", &(dir, holder, lease));
    child.expect("ready");
    let before = Instant::now();
    child.send("go");
    child.expect("held");
    (child, before)
}

/// Acquires the lock in each round, reports it, and releases it when the parent requests it.
fn acquire_repeatedly(stage: &Stage) {
    let (dir, rounds): (PathBuf, u32) = stage.argument();
    let store = open(&dir);
    stage.send(&rustix::thread::gettid().as_raw_pid().to_string());
    for _ in 0..rounds {
        stage.expect("go");
        let guard = store.lock("k", LockOptions::new()).unwrap();
        stage.send("acquired");
        stage.expect("release");
        guard.release().unwrap();
        stage.send("released");
    }
}

/// A child that waits for the lock, and the thread that sleeps.
struct Waiter {
    child: Child,
    thread: String,
}

impl Waiter {
    fn start(dir: &Path, rounds: u32) -> Self {
        let mut child = Child::start("acquire-repeatedly", &(dir, rounds));
        let thread = child.receive();
        Self { child, thread }
    }

    /// Makes the child wait for the lock, and returns when it sleeps on a futex.
    fn wait(&mut self) {
        self.child.send("go");
        let call = format!("/proc/{}/task/{}/syscall", self.child.pid().as_raw_pid(), self.thread);
        let futex = nix::libc::SYS_futex.to_string();
        let start = Instant::now();
        while std::fs::read_to_string(&call).unwrap().split(' ').next() != Some(&futex) {
            assert!(start.elapsed() < PATIENCE, "the waiter does not sleep on a futex");
            std::thread::yield_now();
        }
    }
}

#[test]
fn the_lock_of_a_killed_holder_goes_to_the_waiter() {
    let dir = tempdir().unwrap();
    let (holder, _) = start_holding(dir.path(), None, None);
    let mut waiter = Waiter::start(dir.path(), 1);
    waiter.wait();
    let store = open(dir.path());
    let token = store.lock_info("k").unwrap().expect("the holder's lock").token();
    let start = Instant::now();
    holder.kill();
    // The lock is free as soon as the process is dead. The waiter may have acquired it already.
    let lock = store.lock_info("k").unwrap();
    assert!(lock.is_none_or(|lock| lock.token() > token), "still held by the dead process");
    waiter.child.expect("acquired");
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    waiter.child.send("release");
    waiter.child.expect("released");
    waiter.child.finish();
}

#[test]
fn a_named_lock_outlives_its_process_until_its_lease_expires() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let lease = millis(1_500);
    let (holder, before) = start_holding(dir.path(), Some(named("job")), Some(1_500));
    holder.kill();
    store.sweep().unwrap();
    // On a very slow machine the lease may have expired already.
    assert!(store.is_locked("k").unwrap() || before.elapsed() >= lease);
    match store.acquire_lock("k", LockOptions::new().acquire_timeout(Duration::ZERO)) {
        Err(error) if error.is_timeout() => assert_eq!(error.holder(), Some(&named("job"))),
        other => assert!(before.elapsed() >= lease, "{other:?}"),
    }
    store.acquire_lock("k", LockOptions::new().acquire_timeout(PATIENCE)).unwrap();
    assert!(before.elapsed() >= lease, "acquired before the lease expired");
    assert!(before.elapsed() < lease + SLACK);
}

#[test]
fn a_named_lock_passes_to_another_process_with_the_same_name() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let (holder, _) = start_holding(dir.path(), Some(named("job")), None);
    let token = store.lock_info("k").unwrap().unwrap().token();
    holder.kill();
    store.sweep().unwrap();
    let stranger = store.acquire_lock("k", LockOptions::new().acquire_timeout(Duration::ZERO));
    assert!(stranger.unwrap_err().is_timeout());
    assert_eq!(store.acquire_lock("k", as_named("job")).unwrap(), token);
    store.release_lock("k", named("job")).unwrap();
    assert!(!store.is_locked("k").unwrap());
}

#[test]
fn a_bound_lock_with_a_name_of_its_own_ends_with_its_process() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let job = Holder::bound("job").unwrap();
    let zero = || LockOptions::new().holder(job.clone()).acquire_timeout(Duration::ZERO);
    let (holder, _) = start_holding(dir.path(), Some(job.clone()), None);
    let info = store.lock_info("k").unwrap().expect("the holder's lock");
    assert_eq!(info.holder(), &job);
    // In this process, a holder of the same name is another holder.
    assert!(!info.is_held_by(&job) && !store.is_lock_holder("k", &job).unwrap());
    let error = store.acquire_lock("k", zero()).unwrap_err();
    assert!(error.is_timeout() && error.holder() == Some(&job), "{error:?}");
    let error = store.write_with("k", &1, WriteOptions::new().claim(&job)).unwrap_err();
    assert_eq!((error.kind(), error.holder()), (ErrorKind::Locked, Some(&job)));
    for error in [store.release_lock("k", &job).unwrap_err(), store.renew("k", &job, None).unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NotLockHolder);
        assert_eq!((error.claimant(), error.holder()), (Some(&job), Some(&job)));
    }
    holder.stop();
    assert!(store.is_locked("k").unwrap(), "a stopped process still holds its lock");
    holder.kill();
    assert!(!store.is_locked("k").unwrap(), "still held by the dead process");
    let token = store.acquire_lock("k", zero()).unwrap();
    assert!(token > info.token() && store.is_lock_holder("k", &job).unwrap());
    store.release_lock("k", &job).unwrap();
}

#[test]
fn a_release_wakes_a_waiting_process() {
    const ROUNDS: u32 = 9;
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut waiter = Waiter::start(dir.path(), ROUNDS);
    for _ in 0..ROUNDS {
        let guard = store.lock("k", LockOptions::new()).unwrap();
        waiter.wait();
        guard.release().unwrap();
        waiter.child.expect("acquired");
        waiter.child.send("release");
        waiter.child.expect("released");
    }
    waiter.child.finish();
}

/// Asserts that every method of the guard fails because the lock is lost.
fn assert_lost(guard: LockGuard<'_, FileSystemRecordStore>) {
    let lost = |error: Error| assert!(error.is_lock_lost(), "{error}: {error:?}");
    lost(guard.read::<String>().unwrap_err());
    lost(guard.write("late").unwrap_err());
    lost(guard.remove().unwrap_err());
    lost(guard.renew().unwrap_err());
    lost(guard.remaining().unwrap_err());
    lost(guard.release().unwrap_err());
}

#[test]
fn a_holder_that_outlasts_its_lease_changes_nothing() {
    // If both holders are named, only the token distinguishes the late one.
    for (name, next) in
        [(None, named("next")), (Some("job"), named("next")), (Some("job"), Holder::current())]
    {
        let dir = tempdir().unwrap();
        let store = open(dir.path());
        let mut late = Child::start("outlast-lease", &(dir.path(), name));
        late.expect("held");
        late.stop();
        let options = LockOptions::new().holder(next).acquire_timeout(PATIENCE);
        let successor = store.lock("k", options).unwrap();
        successor.write("successor").unwrap();
        late.resume();
        late.send("go");
        late.expect("all refused");
        late.finish();
        let info = store.lock_info("k").unwrap().expect("the successor's lock");
        assert_eq!(info.token(), successor.token());
        assert_eq!(successor.read::<String>().unwrap().unwrap().result, "successor");
        successor.release().unwrap();
    }
}

fn outlast_lease(stage: &Stage) {
    let (dir, name): (PathBuf, Option<String>) = stage.argument();
    let store = open(&dir);
    let holder = name.map_or_else(Holder::current, |name| named(&name));
    let options = LockOptions::new().holder(holder.clone()).hold_timeout(millis(200));
    let guard = store.lock("k", options.clone()).unwrap();
    let other = store.lock("dropped", options).unwrap();
    stage.send("held");
    stage.expect("go");
    for outcome in [store.release_lock("k", &holder), store.renew("k", &holder, None)] {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotLockHolder);
    }
    let write = store.write_with("k", "late", WriteOptions::new().claim(&holder));
    assert_eq!(write.unwrap_err().kind(), ErrorKind::Locked);
    assert_lost(guard);
    drop(other);
    stage.send("all refused");
}

#[test]
fn a_forked_child_cannot_use_its_parents_locks() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork", &dir.path());
    parent.expect("unaffected");
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
    let own = Holder::current();
    let [bound, named_guard, dropped] =
        in_fork([bound, named_guard, dropped], |[bound, named_guard, dropped]| {
            let zero = LockOptions::new().acquire_timeout(Duration::ZERO);
            // Claims with the parent's holder name or token are refused too.
            for claim in [Claim::Holder(own.clone()), Claim::Token(bound.token())] {
                assert!(store.release_lock("bound", claim.clone()).is_err());
                assert!(store.renew("bound", claim.clone(), None).is_err());
                assert!(
                    store.write_with("bound", "child", WriteOptions::new().claim(claim.clone())).is_err()
                );
                assert!(store.remove_with("bound", RemoveOptions::new().claim(claim)).is_err());
            }
            // Only a claim that says that it comes from another process is valid here.
            let delegated = |token: LockToken| WriteOptions::new().claim(Claim::Delegated(token));
            let other = LockToken::new(bound.token().get() + 1);
            assert!(store.write_with("bound", "child", delegated(other)).unwrap_err().is_lock_lost());
            store.write_with("bound", "delegated", delegated(bound.token())).unwrap();
            store.renew("bound", Claim::Delegated(bound.token()), None).unwrap();
            assert!(!store.is_lock_holder("bound", &own).unwrap());
            assert!(store.acquire_lock("bound", zero.clone()).unwrap_err().is_timeout());
            assert!(store.acquire_lock("bound", zero.clone().holder(own)).unwrap_err().is_timeout());
            assert_lost(bound);
            assert_lost(named_guard);
            drop(dropped);
            let own = store.lock("child's own", zero).unwrap();
            own.write("child").unwrap();
            // Not released: the lock must become stale when the child ends.
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
    stage.send("unaffected");
}

/// Forks. The child runs `work` with its copy of `shared` and ends. The parent waits for it and gets the
/// original back.
#[expect(unsafe_code, reason = "fork")]
fn in_fork<T>(shared: T, work: impl FnOnce(T)) -> T {
    // SAFETY: the only other thread is the test runner's. It waits on a channel and holds no lock that the
    // child could need.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Child => {
            // The child must not outlive its parent, even if the parent is killed.
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(shared)));
            crate::forks::exit(i32::from(done.is_err()));
        }
        nix::unistd::ForkResult::Parent { child } => {
            let status = nix::sys::wait::waitpid(child, None).unwrap();
            assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
            shared
        }
    }
}

#[test]
fn a_forked_child_does_not_keep_a_latch_held() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork-while-writing", &dir.path());
    parent.expect("unaffected");
    parent.finish();
}

/// Forks repeatedly while another thread enters and leaves a latch. The children inherit all open files, and
/// stay alive.
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
        children.push(fork_idle_child());
        let start = Instant::now();
        while writes.load(Ordering::Relaxed) < goal {
            assert!(start.elapsed() < SLACK, "a child holds the latch");
            std::thread::yield_now();
        }
    }
    for child in children {
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
    }
    stage.send("unaffected");
}

#[expect(unsafe_code, reason = "fork")]
fn fork_idle_child() -> nix::unistd::Pid {
    // SAFETY: the child only makes system calls (`prctl` and `pause`), so the state of its parent's other
    // threads does not matter.
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

/// Enters a key's latch as the library does, and stays inside.
#[expect(clippy::disallowed_methods, reason = "this stands in for the library")]
fn stay_in_latch(stage: &Stage) {
    let (dir, key): (PathBuf, String) = stage.argument();
    let file = File::options().read(true).write(true).open(dir.join(latch_of(&key))).unwrap();
    file.lock().unwrap();
    stage.send("inside");
    stage.receive();
}

/// Runs `work` while a process is stopped inside the key's latch. If `work` hangs, that process is killed
/// after a while, so that the test fails instead of hanging.
fn while_stopped_in_latch(dir: &Path, key: &str, work: impl FnOnce()) {
    let mut child = Child::start("stay-in-latch", &(dir, key));
    child.expect("inside");
    child.stop();
    let pid = child.pid();
    let (done, is_done) = std::sync::mpsc::channel::<()>();
    let rescue = std::thread::spawn(move || {
        if is_done.recv_timeout(PATIENCE).is_err() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    });
    work();
    done.send(()).unwrap();
    rescue.join().unwrap();
    child.kill();
}

/// Asserts that a call takes at least `from`, and at most `SLACK` more.
fn assert_bounded(from: Duration, call: impl FnOnce()) {
    let start = Instant::now();
    call();
    let took = start.elapsed();
    assert!(took >= from && took < from + SLACK, "{took:?}, not {from:?}");
}

#[test]
fn calls_return_by_their_timeout_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    // After this the latch file exists, but the record does not.
    store.write("k", "old").unwrap();
    store.remove("k").unwrap();
    let options = |timeout| LockOptions::new().acquire_timeout(timeout);
    while_stopped_in_latch(dir.path(), "k", || {
        for timeout in [Duration::ZERO, millis(300)] {
            let timed_out = |error: Error| {
                assert!(error.is_timeout() && error.holder().is_none(), "{error:?}");
            };
            let read = || store.read_with::<String>("k", ReadOptions::new().timeout(timeout));
            assert_bounded(timeout, || timed_out(store.acquire_lock("k", options(timeout)).unwrap_err()));
            assert_bounded(timeout, || timed_out(store.lock("k", options(timeout)).unwrap_err()));
            // The read must enter the latch to confirm that the record does not exist.
            assert_bounded(timeout, || timed_out(read().unwrap_err()));
        }
        assert_bounded(Duration::ZERO, || {
            assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
        });
        assert_bounded(Duration::ZERO, || assert!(store.wait_for_lock("k", WaitOptions::new()).unwrap()));
    });
    store.acquire_lock("k", options(Duration::ZERO)).unwrap();
}

/// The process stops when `lock_all` has one lock and waits for the other, so a renewal finds it.
#[test]
fn lock_all_returns_by_its_timeout_while_a_process_is_stopped_in_the_latch_of_an_acquired_lock() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let other = store.lock("b", as_named("other")).unwrap();
    let timeout = Duration::from_secs(3);
    std::thread::scope(|scope| {
        let start = Instant::now();
        let locks = scope.spawn(|| {
            let options = LockOptions::new().acquire_timeout(timeout).hold_timeout(timeout);
            store.lock_all(["a", "b"], options).map(drop)
        });
        while !store.is_locked("a").unwrap() {
            std::thread::yield_now();
        }
        while_stopped_in_latch(dir.path(), "a", || {
            assert!(locks.join().unwrap().unwrap_err().is_timeout());
            assert!(start.elapsed() < timeout + SLACK, "{:?}", start.elapsed());
        });
    });
    other.release().unwrap();
}

/// The drop of one guard waits for a second. These keys have one latch, and their guards wait together.
#[test]
fn the_drop_of_many_guards_waits_no_longer_than_that_of_one() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let latch = latch_of("0");
    let keys: Vec<_> =
        (0..).map(|number: u32| number.to_string()).filter(|key| latch_of(key) == latch).take(15).collect();
    let guards = store.lock_all(&keys, LockOptions::new()).unwrap();
    while_stopped_in_latch(dir.path(), "0", || {
        let start = Instant::now();
        drop(guards);
        assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    });
}

/// The first locks have one latch. The acquisition gives them back when it is cancelled while it waits for the last one.
#[test]
fn the_end_of_an_acquisition_of_many_locks_waits_no_longer_than_the_drop_of_one_guard() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let latch = latch_of("0");
    let mut keys: Vec<_> =
        (0..).map(|number: u32| number.to_string()).filter(|key| latch_of(key) == latch).take(15).collect();
    let last = (0..1_000).map(|number| format!("~{number}")).find(|key| latch_of(key) != latch).unwrap();
    keys.push(last.clone());
    let _held = store.lock(last, LockOptions::new()).unwrap();
    let cancellation = Cancellation::new();
    let options = as_named("other").cancellation(&cancellation);
    let waiting = spawn_until_asleep({
        let (store, keys) = (store.clone(), keys.clone());
        move || store.lock_all(keys, options).map(drop).unwrap_err()
    });
    assert!(store.is_locked(&*keys[14]).unwrap());
    while_stopped_in_latch(dir.path(), "0", || {
        let start = Instant::now();
        cancellation.cancel();
        assert!(waiting.join().is_cancelled());
        assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
    });
}

/// No lock is in the way, but the latch is needed to be certain that there is no record.
#[test]
fn a_read_through_a_guard_returns_by_its_timeout_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", LockOptions::new()).unwrap();
    while_stopped_in_latch(dir.path(), "k", || {
        let timeout = millis(300);
        assert_bounded(timeout, || {
            let error = guard.read_with::<i32>(ReadOptions::new().timeout(timeout)).unwrap_err();
            assert!(error.is_timeout(), "{error:?}");
        });
    });
    guard.release().unwrap();
}

#[test]
fn lock_queries_and_reads_need_no_latch() {
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
            // The lock is held, so the waiter does not need the latch, and the error names the holder.
            let error = store.acquire_lock("k", other.acquire_timeout(timeout)).unwrap_err();
            assert!(error.is_timeout() && error.holder() == Some(guard.holder()), "{error:?}");
        });
        assert_bounded(timeout, || assert!(!store.wait_for_lock("k", timeout).unwrap()));
    });
    guard.release().unwrap();
}

/// A stopped process must not delay the report of a lost lease, nor block the end of the guard.
#[test]
fn a_keep_alive_reports_the_end_of_the_lease_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let lease = millis(300);
    let guard = store.lock("k", LockOptions::new().hold_timeout(lease)).unwrap();
    let renewing = store.lock("k", LockOptions::new().hold_timeout(lease)).unwrap();
    let (lost, losses) = std::sync::mpsc::channel();
    guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
    renewing.keep_alive(|_| ()).unwrap();
    while_stopped_in_latch(dir.path(), "k", || {
        assert!(losses.recv_timeout(SLACK).is_ok(), "the loss was not reported");
        let start = Instant::now();
        drop(renewing);
        drop(guard);
        assert!(start.elapsed() < SLACK, "the drop of a guard was blocked");
    });
}

/// Changes do not wait for other holders, but they must not wait forever for a stopped process either.
#[test]
fn changes_return_by_their_timeout_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let token = store.acquire_lock("k", as_named("job")).unwrap();
    let key = Key::new("k").unwrap();
    while_stopped_in_latch(dir.path(), "k", || {
        for timeout in [Duration::ZERO, millis(300)] {
            let timed_out =
                |error: Error| assert!(error.is_timeout() && error.holder().is_none(), "{error:?}");
            let write = || WriteOptions::new().claim(token).timeout(timeout);
            let remove = RemoveOptions::new().claim(token).timeout(timeout);
            let json = Json::encode(&1).unwrap();
            assert_bounded(timeout, || timed_out(store.write_with("k", &1, write()).unwrap_err()));
            assert_bounded(timeout, || {
                timed_out(store.compare_and_swap_raw(&key, Expected::Absent, &json, write()).unwrap_err());
            });
            assert_bounded(timeout, || timed_out(store.remove_with("k", remove).unwrap_err()));
            assert_bounded(timeout, || {
                timed_out(store.renew_with("k", token, PATIENCE, timeout).unwrap_err());
            });
            assert_bounded(timeout, || {
                timed_out(store.release_lock_with("k", token, timeout).unwrap_err());
            });
            for options in [BreakOptions::new(), BreakOptions::new().token(token)] {
                assert_bounded(timeout, || {
                    timed_out(store.break_lock_with("k", options.timeout(timeout)).unwrap_err());
                });
            }
        }
    });
    assert_eq!(store.lock_info("k").unwrap().unwrap().remaining(), None, "the lease is as it was");
    store.write_with("k", &1, WriteOptions::new().claim(token)).unwrap();
    store.release_lock("k", token).unwrap();
}

/// A release that timed out leaves the lock. Its token releases it, and so does the next guard of its holder.
#[test]
fn guards_return_by_their_timeout_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let (timeout, me) = (millis(300), || as_named("job"));
    assert_ne!(latch_of("k"), latch_of("free"));
    let guard = store.lock("k", me()).unwrap();
    guard.write(&1).unwrap();
    let token = guard.token();
    while_stopped_in_latch(dir.path(), "k", || {
        let timed_out = |error: Error| assert!(error.is_timeout(), "{error:?}");
        let (write, remove) = (WriteOptions::new().timeout(timeout), RemoveOptions::new().timeout(timeout));
        assert_bounded(timeout, || timed_out(guard.write_with(&2, write).unwrap_err()));
        assert_bounded(timeout, || timed_out(guard.remove_with(remove).unwrap_err()));
        assert_bounded(timeout, || timed_out(guard.renew_with(timeout).unwrap_err()));
        assert_bounded(timeout, || timed_out(guard.release_with(timeout).unwrap_err()));
    });
    assert_eq!(store.lock_info("k").unwrap().unwrap().token(), token);
    let read = ReadOptions::new().claim(token);
    assert_eq!(store.read_with::<u8>("k", read).unwrap().unwrap().result, 1);
    store.release_lock("k", token).unwrap();
    assert!(!store.is_locked("k").unwrap());

    let guards = store.lock_all(["free", "k"], me()).unwrap();
    while_stopped_in_latch(dir.path(), "k", || {
        let of_k =
            |error: Error| assert!(error.is_timeout() && error.key().unwrap().as_str() == "k", "{error:?}");
        assert_bounded(timeout, || of_k(guards.renew_with(timeout).unwrap_err()));
        assert_bounded(timeout, || of_k(guards.release_with(timeout).unwrap_err()));
        assert!(!store.is_locked("free").unwrap(), "the other locks are released");
    });
    assert!(store.is_locked("k").unwrap());
    drop(store.lock("k", me()).unwrap());
    assert!(!store.is_locked("k").unwrap());
}

/// A cancellation ends the release of a guard as a timeout does.
#[test]
fn a_release_is_cancelled_while_a_process_is_stopped_in_the_latch() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", as_named("job")).unwrap();
    let (token, cancellation) = (guard.token(), Cancellation::new());
    while_stopped_in_latch(dir.path(), "k", || {
        std::thread::scope(|scope| {
            let release = scope.spawn(|| guard.release_with(&cancellation));
            std::thread::sleep(millis(100));
            cancellation.cancel();
            assert!(release.join().unwrap().unwrap_err().is_cancelled());
        });
        assert_eq!(store.lock_info("k").unwrap().unwrap().token(), token);
    });
    store.release_lock("k", token).unwrap();
}
