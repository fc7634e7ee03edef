//! Identity (I8): reused thread and process ids, and what a forked child keeps of its parent.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use record_store::{
    Cancellation, Durability, ErrorKind, FileSystemRecordStore, Holder, IsolationLevel, LockOptions,
    MemoryRecordStore, RecordStore, RecordStoreExt,
};
use rustix::process::{Signal, WaitId, WaitIdOptions, waitid};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
#[cfg(target_arch = "x86_64")]
use crate::support::trace::{Traced, perform};
use crate::support::{open, open_with, storm};
use crate::watchdog::abort_if_hung;

pub(crate) const ROLES: &[Role] = &[
    ("fork an idle child", fork_an_idle_child),
    ("fork without the C library", fork_without_the_c_library),
    ("fork without the C library while writing", fork_without_the_c_library_while_writing),
    ("fork inside operations", fork_inside_operations),
    ("fork with an own handler", fork_with_own_handler),
    ("fork and reuse descriptors", fork_and_reuse_descriptors),
    #[cfg(target_arch = "x86_64")]
    ("call after_fork", call_after_fork),
    ("fork process 1", fork_process_one),
    ("fork with a transaction", fork_with_a_transaction),
    #[cfg(feature = "tokio")]
    ("fork with an asynchronous transaction", fork_with_an_asynchronous_transaction),
    ("fork with threads in memory", fork_with_threads_in_memory),
    ("fork during the first use", fork_during_first_use),
    ("enter another time namespace", enter_another_time_namespace),
];

/// Ends a forked child without destructors of its parent's values, and without the cleanup of the standard library: that
/// locks a mutex that another thread of the parent may have held at the fork.
#[expect(unsafe_code, reason = "_exit")]
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: it only ends the process.
    unsafe { libc::_exit(code) }
}

/// Forks. The child runs `work` and ends, with an error if it panics.
#[expect(unsafe_code, reason = "fork")]
pub(crate) fn fork(work: impl FnOnce()) -> nix::unistd::Pid {
    // SAFETY: the child only uses the store, which must work in a forked child of a process with threads, and the
    // C library's allocator, which does.
    match unsafe { nix::unistd::fork() }.unwrap() {
        nix::unistd::ForkResult::Parent { child } => child,
        nix::unistd::ForkResult::Child => run_in_child(work),
    }
}

/// Forks with the system call alone: no handler of the C library runs.
#[expect(unsafe_code, reason = "fork")]
pub(crate) fn raw_fork(work: impl FnOnce()) -> nix::unistd::Pid {
    // SAFETY: as in `fork`. The flags ask for a child with a copy of the memory, and no other argument is used.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        -1 => panic!("clone: {}", std::io::Error::last_os_error()),
        0 => run_in_child(work),
        child => nix::unistd::Pid::from_raw(i32::try_from(child).unwrap()),
    }
}

fn run_in_child(work: impl FnOnce()) -> ! {
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    exit(i32::from(done.is_err()))
}

pub(crate) fn assert_succeeds(child: nix::unistd::Pid) {
    let status = nix::sys::wait::waitpid(child, None).unwrap();
    assert_eq!(status, nix::sys::wait::WaitStatus::Exited(child, 0));
}

/// Kills the child process and waits for its end, but leaves it to the caller to be reaped.
fn kill_and_wait(child: &Child) {
    child.signal(Signal::KILL);
    waitid(WaitId::Pid(child.pid()), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
        .unwrap()
        .expect("its end");
}

/// The kernel reuses thread ids after some 32,000 threads. A thread with a reused id must not get the lock of an
/// earlier thread as its own.
#[test]
fn a_thread_never_gets_the_identity_of_an_ended_one() {
    const THREADS: u64 = 2_000;
    let dir = tempdir().unwrap();
    let stores: [Arc<dyn RecordStore>; 2] = [Arc::new(open(dir.path())), Arc::new(MemoryRecordStore::new())];
    let holders: std::collections::HashSet<_> = (0..storm(THREADS))
        .map(|_| std::thread::spawn(|| Holder::current().name().to_owned()).join().unwrap())
        .collect();
    assert_eq!(holders.len() as u64, storm(THREADS), "two threads had the same identity");
    for store in stores {
        let handed_over = std::thread::scope(|scope| {
            scope.spawn(|| store.lock("k", LockOptions::new()).unwrap()).join().unwrap()
        });
        for _ in 0..100 {
            std::thread::scope(|scope| {
                scope.spawn(|| assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none()));
            });
        }
        handed_over.release().unwrap();
    }
}

/// A process pool: the children do nothing. The parent is killed, and its lock must be free.
#[test]
fn an_idle_forked_child_does_not_keep_its_dead_parents_lock() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let mut parent = Child::start("fork an idle child", &dir.path());
    parent.expect("forked");
    assert!(store.is_locked("k").unwrap());
    kill_and_wait(&parent);
    assert!(store.wait_for_lock("k", Duration::from_secs(20)).unwrap(), "the child keeps the lock");
}

fn fork_an_idle_child(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
    fork(|| {
        stage.send("forked");
        until_the_test_ends();
    });
    loop {
        nix::unistd::pause();
    }
}

/// No handler runs in this child: it keeps the descriptors until it calls `after_fork`, or uses the store.
#[test]
fn a_child_without_the_c_librarys_fork_separates_itself() {
    for how in ["after_fork", "use"] {
        let dir = tempdir().unwrap();
        let store = open(dir.path());
        let mut parent = Child::start("fork without the C library", &(dir.path(), how));
        parent.expect("forked");
        kill_and_wait(&parent);
        assert!(store.is_locked("k").unwrap(), "{how}: the child has the owner file open");
        parent.send("separate");
        parent.expect("separated");
        assert!(!store.is_locked("k").unwrap(), "{how}: nobody has the owner file open");
    }
}

fn fork_without_the_c_library(stage: &Stage) {
    let (dir, how): (PathBuf, String) = stage.argument();
    let store = open(&dir);
    let guard = store.lock("k", LockOptions::new()).unwrap();
    raw_fork(|| {
        stage.send("forked");
        stage.expect("separate");
        if how == "use" {
            assert!(guard.write(&1).unwrap_err().is_lock_lost());
            store.write("another", &1).unwrap();
        } else {
            record_store::after_fork();
        }
        stage.send("separated");
        until_the_test_ends();
    });
    loop {
        nix::unistd::pause();
    }
}

/// Not every kernel wipes pages in a child.
#[cfg(target_arch = "x86_64")]
#[test]
fn after_fork_does_nothing_in_a_process_that_was_not_forked() {
    for wipes_pages in [true, false] {
        let dir = tempdir().unwrap();
        let child = Child::start("call after_fork", &dir.path());
        let Some((mut traced, _)) = Traced::attach(child) else { return };
        let mut requests = 0;
        while let Some(call) = traced.next_call() {
            let is_request = call.number == libc::SYS_madvise
                && call.arguments[2] == u64::from(libc::MADV_WIPEONFORK.cast_unsigned());
            requests += u32::from(is_request);
            if is_request && !wipes_pages { traced.fail(nix::errno::Errno::EINVAL) } else { traced.execute() }
        }
        assert_eq!(requests, 1);
        let mut child = traced.release();
        child.expect("separated once");
        child.finish();
    }
}

#[cfg(target_arch = "x86_64")]
fn call_after_fork(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    perform(stage, "", || {
        let store = open(&dir);
        let guard = store.lock("k", LockOptions::new()).unwrap();
        record_store::after_fork();
        guard.write("parent").unwrap();
        assert_succeeds(raw_fork(|| {
            record_store::after_fork();
            assert!(guard.write("child").unwrap_err().is_lock_lost());
            assert!(store.is_locked("k").unwrap());
        }));
        assert!(guard.is_held().unwrap());
        guard.release().unwrap();
    });
    stage.send("separated once");
}

/// Programs that daemonize close all descriptors and open their own, perhaps under the same numbers.
#[test]
fn a_child_without_the_c_librarys_fork_keeps_the_files_that_it_has_opened() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork and reuse descriptors", &dir.path());
    parent.expect("all are open");
    parent.finish();
}

fn fork_and_reuse_descriptors(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    std::mem::forget(store.lock("k", LockOptions::new()).unwrap());
    let child = raw_fork(|| {
        for descriptor in 3..100 {
            let _ = nix::unistd::close(descriptor);
        }
        let files: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        record_store::after_fork();
        open(&dir).write("another", &1).unwrap();
        assert!(files.iter().all(|file| file.metadata().is_ok()), "a file of the child was closed");
        std::mem::forget(files);
    });
    assert_succeeds(child);
    stage.send("all are open");
}

static OWN_MUTEX: std::sync::Mutex<()> = std::sync::Mutex::new(());
static OWN_HANDLER: AtomicU64 = AtomicU64::new(0);
const SLEEPS: u64 = 1;
const LOCKS: u64 = 2;
const IS_RUNNING: u64 = 4;

extern "C" fn own_handler() {
    let work = OWN_HANDLER.fetch_or(IS_RUNNING, Ordering::SeqCst);
    if work == SLEEPS {
        std::thread::sleep(Duration::from_millis(300));
    } else if work == LOCKS {
        drop(OWN_MUTEX.lock().unwrap());
    }
}

/// A fork takes long in a process with much memory, or with a handler of the program's own. That handler may even
/// wait for a thread that uses a store.
#[test]
fn a_store_can_be_used_during_a_long_fork() {
    let dir = tempdir().unwrap();
    let mut child = Child::start("fork with an own handler", &dir.path());
    child.expect("created an owner file");
    child.expect("entered a latch");
    child.finish();
}

#[expect(unsafe_code, reason = "a fork handler")]
fn fork_with_own_handler(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    // SAFETY: the handler only sleeps, or waits for a mutex. It runs in the parent.
    unsafe { nix::libc::pthread_atfork(Some(own_handler), None, None) };
    let (used, unused) = (open(&dir.join("used")), open(&dir.join("unused")));
    used.write("k", &1).unwrap();
    let during_a_fork = |work: u64, use_store: &dyn Fn()| {
        OWN_HANDLER.store(work, Ordering::SeqCst);
        let held = OWN_MUTEX.lock().unwrap();
        let forks = std::thread::spawn(|| assert_succeeds(fork(|| {})));
        while OWN_HANDLER.load(Ordering::SeqCst) & IS_RUNNING == 0 {
            std::thread::yield_now();
        }
        use_store();
        drop(held);
        forks.join().unwrap();
    };
    during_a_fork(SLEEPS, &|| unused.write("k", &1).unwrap());
    stage.send("created an owner file");
    during_a_fork(LOCKS, &|| used.write("k", &2).unwrap());
    stage.send("entered a latch");
}

/// Such a child shares the latches that its parent has entered, and has to lose them when the parent leaves them.
#[test]
fn a_child_without_the_c_librarys_fork_keeps_no_latch() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork without the C library while writing", &dir.path());
    parent.expect("unaffected");
    parent.finish();
}

fn fork_without_the_c_library_while_writing(stage: &Stage) {
    const CHILDREN: usize = 40;
    let dir: PathBuf = stage.argument();
    let store = open_with(&dir, Durability::Relaxed);
    let writes = Arc::new(AtomicU64::new(0));
    std::thread::spawn({
        let writes = Arc::clone(&writes);
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
        children.push(raw_fork(|| {
            // The child must not outlive its parent, even if the parent aborts.
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            until_the_test_ends();
        }));
        abort_if_hung("a write while a child has a copy of the latch", || {
            while writes.load(Ordering::Relaxed) < goal {
                std::thread::yield_now();
            }
        });
    }
    for child in children {
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        nix::sys::wait::waitpid(child, None).unwrap();
    }
    stage.send("unaffected");
}

/// A thread is inside the store while another one forks. The child must neither keep the parent's locks or latches,
/// nor hang when it uses the store itself.
#[test]
fn a_child_forked_inside_an_operation_keeps_nothing_and_does_not_hang() {
    for _ in 0..storm(3) {
        let dir = tempdir().unwrap();
        let store = open(dir.path());
        let mut parent = Child::start("fork inside operations", &dir.path());
        parent.expect("forked");
        kill_and_wait(&parent);
        for key in ["held", "busy"] {
            assert!(
                store.wait_for_lock(key, Duration::from_secs(20)).unwrap(),
                "{key}: a child keeps the lock"
            );
        }
        // Every latch must be free, too.
        for number in 0..600 {
            let options = record_store::WriteOptions::new().timeout(Duration::from_secs(20));
            store.write_with(format!("k{number}"), &1, options).unwrap();
        }
    }
}

fn fork_inside_operations(stage: &Stage) {
    const CHILDREN: u64 = 20;
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    std::mem::forget(store.lock("held", LockOptions::new()).unwrap());
    for number in 0..2 {
        let store = store.clone();
        std::thread::spawn(move || {
            loop {
                let guard = store.lock("busy", LockOptions::new()).unwrap();
                guard.write(&number).unwrap();
                drop(guard);
                store.sweep().unwrap();
            }
        });
    }
    for number in 0..CHILDREN {
        std::thread::sleep(Duration::from_micros(137 * number));
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        fork(|| {
            // Every second child uses the store, the others do nothing.
            if number % 2 == 0 {
                let guard = store.lock(format!("child {number}"), LockOptions::new()).unwrap();
                guard.write(&number).unwrap();
                assert_eq!(guard.read::<u64>().unwrap().unwrap().result, number);
                guard.release().unwrap();
            }
            writer.write_all(b"x").unwrap();
            until_the_test_ends();
        });
        drop(writer);
        let done = abort_if_hung("a forked child", || reader.read_exact(&mut [0]));
        done.expect("the child used the store");
    }
    stage.send("forked");
    loop {
        nix::unistd::pause();
    }
}

/// Waits for the end of the standard input, which the test keeps open.
fn until_the_test_ends() {
    while rustix::io::read(std::io::stdin(), &mut [0; 64]).is_ok_and(|length| length > 0) {}
}

/// In a new PID namespace, parent and child are both process 1.
#[test]
fn a_child_with_its_parents_process_id_is_not_its_parent() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start_in_pid_namespace("fork process 1", &dir.path());
    parent.expect("not confused");
    parent.finish();
}

fn fork_process_one(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    assert_eq!(std::process::id(), 1, "this is process 1 of its namespace");
    let store = open(&dir);
    let guard = store.lock("k", LockOptions::new()).unwrap();
    guard.write("parent").unwrap();
    // The next child is process 1 of a namespace of its own.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWPID).unwrap();
    let mut guard = Some(guard);
    assert_succeeds(fork(|| {
        let guard = guard.take().unwrap();
        assert_eq!(std::process::id(), 1);
        assert!(!guard.is_held().unwrap());
        assert!(guard.write("child").unwrap_err().is_lock_lost());
        assert!(store.try_lock("k", LockOptions::new()).unwrap().is_none());
        assert!(guard.release().unwrap_err().is_lock_lost());
    }));
    let guard = guard.unwrap();
    assert_eq!(guard.read::<String>().unwrap().unwrap().result, "parent");
    guard.release().unwrap();
    stage.send("not confused");
}

/// A transaction of the parent, its hooks included, does nothing in a forked child.
#[test]
fn a_transaction_does_not_act_in_a_forked_child() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork with a transaction", &dir.path());
    parent.expect("committed once");
    parent.finish();
}

fn fork_with_a_transaction(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = open(&dir);
    let marks = dir.with_extension("marks");
    std::fs::create_dir(&marks).unwrap();
    let mark = |name: &str| {
        let path = marks.join(format!("{name} in {}", std::process::id()));
        move |_: &record_store::Key| Ok(std::fs::write(path, "")?)
    };
    for (level, key) in [(IsolationLevel::ReadCommitted, "a"), (IsolationLevel::Serializable, "b")] {
        for end in ["drop", "commit", "rollback", "finish"] {
            let key = format!("{key}-{end}");
            let begin = || store.transaction(&key).unwrap().isolation_level(level).begin().unwrap();
            let mut transaction = begin();
            transaction.stage("parent").unwrap();
            transaction.on_commit(mark("commit"));
            transaction.on_rollback(mark("rollback"));
            let mut transaction = Some(transaction);
            assert_succeeds(fork(|| {
                let mut transaction = transaction.take().unwrap();
                let stage = transaction.stage("child");
                assert_eq!(stage.unwrap_err().kind(), ErrorKind::WrongProcess);
                let outcome = match end {
                    "drop" => return drop(transaction),
                    "commit" => transaction.commit(),
                    "rollback" => transaction.rollback(),
                    _ => transaction.finish().map(drop),
                };
                assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WrongProcess);
            }));
            assert!(!store.exists(&key).unwrap(), "{key}: the child committed");
            transaction.take().unwrap().commit().unwrap();
            assert_eq!(store.read::<String>(&key).unwrap().unwrap().result, "parent");
        }
    }
    let own = std::process::id().to_string();
    for name in std::fs::read_dir(&marks).unwrap() {
        let name = name.unwrap().file_name().into_string().unwrap();
        assert_eq!(name, format!("commit in {own}"), "a hook ran in a child, or a rollback in the parent");
    }
    stage.send("committed once");
}

/// The same as futures. The child has a copy of the runtime, but none of its threads.
#[cfg(feature = "tokio")]
#[test]
fn an_asynchronous_transaction_does_not_act_in_a_forked_child() {
    let dir = tempdir().unwrap();
    let mut parent = Child::start("fork with an asynchronous transaction", &dir.path());
    parent.expect("committed once");
    parent.finish();
}

#[cfg(feature = "tokio")]
fn fork_with_an_asynchronous_transaction(stage: &Stage) {
    use std::task::{Context, Poll, Waker};
    let store = record_store::asynchronous::AsyncRecordStore::new(open(&stage.argument::<PathBuf>()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        for level in [IsolationLevel::ReadCommitted, IsolationLevel::Serializable] {
            for end in ["drop", "commit", "rollback", "finish"] {
                let key = format!("{level:?}-{end}");
                let parents = std::process::id();
                let hook = move |_| async move {
                    assert_eq!(std::process::id(), parents, "a hook ran in the child");
                    Ok(())
                };
                let pending = store.transaction(&key).unwrap().isolation_level(level);
                let mut transaction = pending.begin().await.unwrap();
                transaction.stage("parent").unwrap();
                transaction.on_commit(hook);
                transaction.on_rollback(async |_| unreachable!("it is not rolled back"));
                let mut transaction = Some(transaction);
                assert_succeeds(fork(|| {
                    let transaction = transaction.take().unwrap();
                    let ended = async {
                        match end {
                            "commit" => transaction.commit().await,
                            "rollback" => transaction.rollback().await,
                            "finish" => transaction.finish().await.map(drop),
                            _ => Err(record_store::Error::new(ErrorKind::WrongProcess, "drop")),
                        }
                    };
                    let polled = std::pin::pin!(ended).poll(&mut Context::from_waker(Waker::noop()));
                    let Poll::Ready(Err(error)) = polled else { panic!("{polled:?}") };
                    assert_eq!(error.kind(), ErrorKind::WrongProcess);
                }));
                assert!(!store.exists(&key).await.unwrap(), "{key}: the child committed");
                transaction.take().unwrap().commit().await.unwrap();
                assert!(store.exists(&key).await.unwrap() && !store.is_locked(&key).await.unwrap());
            }
        }
    });
    stage.send("committed once");
}

/// Threads of the parent are inside a memory store and a cancellation at the fork. The child uses both and does not
/// hang; it has an empty store of its own.
#[test]
fn a_forked_child_has_a_memory_store_of_its_own_and_does_not_hang() {
    let mut parent = Child::start("fork with threads in memory", &());
    parent.expect("no child hung");
    parent.finish();
}

fn fork_with_threads_in_memory(stage: &Stage) {
    let store = MemoryRecordStore::new();
    let cancellation = Cancellation::new();
    let ended = Arc::new(AtomicBool::new(false));
    store.write("k", "parent").unwrap();
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (store, cancellation, ended) = (store.clone(), cancellation.clone(), Arc::clone(&ended));
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    let options = LockOptions::new().cancellation(&cancellation);
                    let guard = store.lock("busy", options).unwrap();
                    guard.write(&number).unwrap();
                }
            });
        }
        for _ in 0..storm(200) {
            let child = fork(|| {
                assert!(!store.exists("k").unwrap(), "the child sees its parent's records");
                let options = LockOptions::new().cancellation(&cancellation);
                let guard = store.lock("busy", options).unwrap();
                guard.write(&1).unwrap();
                guard.release().unwrap();
                cancellation.cancel();
                let options = LockOptions::new().cancellation(&cancellation);
                assert!(store.lock("busy", options).unwrap_err().is_cancelled());
            });
            abort_if_hung("a forked child", || assert_succeeds(child));
        }
        ended.store(true, Ordering::Relaxed);
    });
    assert!(!cancellation.is_cancelled(), "a child cancelled its parent's calls");
    assert_eq!(store.read::<String>("k").unwrap().unwrap().result, "parent");
    stage.send("no child hung");
}

/// A fork while other threads of the parent use the library for the first time, so that its statics are just being
/// initialized.
#[test]
fn a_child_forked_during_the_first_use_does_not_hang() {
    for _ in 0..storm(10) {
        let dir = tempdir().unwrap();
        let mut parent = Child::start("fork during the first use", &dir.path());
        parent.expect("no child hung");
        parent.finish();
    }
}

fn fork_during_first_use(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let started = Arc::new(AtomicBool::new(false));
    let users: Vec<_> = (0..3)
        .map(|number| {
            let (dir, started) = (dir.clone(), Arc::clone(&started));
            std::thread::spawn(move || {
                while !started.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                let store = FileSystemRecordStore::open(&dir).unwrap();
                let options = LockOptions::new().hold_timeout(Duration::from_mins(1));
                store.lock(format!("thread {number}"), options).unwrap().write(&number).unwrap();
            })
        })
        .collect();
    started.store(true, Ordering::Release);
    for _ in 0..10 {
        let child = fork(|| {
            let store = FileSystemRecordStore::open(&dir).unwrap();
            let options = LockOptions::new().hold_timeout(Duration::from_mins(1));
            let guard = store.lock(format!("child {}", std::process::id()), options).unwrap();
            guard.write(&1).unwrap();
            guard.release().unwrap();
        });
        abort_if_hung("a forked child", || assert_succeeds(child));
    }
    for user in users {
        user.join().unwrap();
    }
    stage.send("no child hung");
}

/// The boot clock of another time namespace is shifted: a lease must neither end early nor late there.
#[test]
fn a_process_that_enters_another_time_namespace_compares_leases_by_the_wall_clock() {
    let dir = tempdir().unwrap();
    let mut child = Child::start("enter another time namespace", &dir.path());
    match child.receive().as_str() {
        "still held" => {}
        unsupported => eprintln!("SKIPPED: no time namespaces here: {unsupported}"),
    }
    child.finish();
}

#[expect(unsafe_code, reason = "unshare and setns")]
fn enter_another_time_namespace(stage: &Stage) {
    const HOUR: Duration = Duration::from_hours(1);
    let dir: PathBuf = stage.argument();
    // Only a process with one thread can change its time namespace.
    assert_succeeds(fork(|| {
        let store = open(&dir);
        let job = crate::support::as_named("job").hold_timeout(HOUR);
        store.acquire_lock("k", job).unwrap();
        store.write_with("expires", &1, record_store::WriteOptions::new().time_to_live(HOUR)).unwrap();
        // The time namespace is cached now, if it ever is.
        assert!(store.is_locked("k").unwrap());
        // SAFETY: neither call takes a pointer.
        if unsafe { libc::unshare(libc::CLONE_NEWTIME) } != 0 {
            return stage.send(&std::io::Error::last_os_error().to_string());
        }
        let shifted = std::fs::write("/proc/self/timens_offsets", "boottime 100000 0\n");
        let entered = shifted.and_then(|()| {
            let namespace = std::fs::File::open("/proc/self/ns/time_for_children")?;
            // SAFETY: the descriptor is open.
            match unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), libc::CLONE_NEWTIME) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
        if let Err(error) = entered {
            return stage.send(&error.to_string());
        }
        assert!(store.is_locked("k").unwrap(), "the lease ended early");
        assert!(store.lock_info("k").unwrap().unwrap().remaining().unwrap() > HOUR / 2);
        assert!(store.exists("expires").unwrap(), "the record expired early");
        assert!(store.read::<u32>("expires").unwrap().is_some(), "the record expired early");
        stage.send("still held");
    }));
}
