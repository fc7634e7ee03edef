//! Each system call of each operation fails in every way that it can, once and permanently.
//!
//! A real process runs the operation, and `ptrace` makes one of its calls fail. Afterwards another
//! process checks:
//!
//! * An error changed nothing. The exception is a failed sync of the directory: the change is in
//!   place, and only its durability is uncertain.
//! * An operation that returned `Ok` had its effect, and none returned `Ok` after a failed sync.
//! * Interrupted and partial calls were continued.
//! * No descriptor stays open and no file is left behind.
//! * The next operation works, in both processes.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};

use nix::errno::Errno;
use nix::libc;
use record_store::{Durability, FileSystemRecordStore, LockInfo, LockOptions, RecordStoreExt};
use tempfile::TempDir;

use super::faults::{Fault, faults_of, is_sync, is_unlink, is_write};
use super::operations::{Case, KEPT, Operation, Outcome, VERSION_1, VERSION_2, stays_by_design, work};
use super::verdict::{Injection, State};
use crate::support::children::Child;
use crate::support::trace::Traced;
use crate::support::trace::tamper::Call;
use crate::support::{PATIENCE, in_memory, names_in, open_with, storm};

/// An interrupted call may be retried forever, so it succeeds after this many interruptions.
const MAX_INTERRUPTIONS: usize = 60;

/// The file name of a key of this length is a hash, so listings must read the file.
const HASHED_KEY_LENGTH: usize = 300;

/// Files that every store has in its private directory.
const NEEDED: [&str; 6] = ["events", "latches", "log/00", "log/state", "owners", "staged"];

/// A store, and the process that receives the faults.
struct Harness {
    operation: Operation,
    dir: TempDir,
    store: FileSystemRecordStore,
    child: Option<Child>,
    /// Kills the child if it hangs.
    watchdog: Option<Sender<()>>,
    cases: usize,
}

fn inject_everywhere(operation: Operation) {
    let mut harness = Harness::new(operation);
    // Run twice: the first run includes the work that a process does only once.
    for _ in 0..2 {
        let Some((calls, _, outcome)) = harness.run(&harness.case(0), None) else { return };
        assert!(outcome.leaked.iter().all(|path| stays_by_design(path)), "{operation:?}: {outcome:?}");
        // Without a fault the operation must behave as intended; otherwise the faults prove nothing.
        assert!(!calls.is_empty(), "{operation:?}");
        assert_eq!(outcome.result.is_err(), operation.is_refused(), "{operation:?}: {outcome:?}");
        harness.reset();
        if operation.needs_fresh_process() {
            break;
        }
    }
    let (calls, ..) = harness.run(&harness.case(0), None).unwrap();
    harness.reset();
    let (mut planned, mut injected) = (0, 0);
    for (site, &call) in calls.iter().enumerate() {
        for fault in faults_of(call, storm(1) > 1) {
            planned += 1;
            injected += usize::from(harness.inject(site, call, fault));
        }
    }
    harness.finish();
    eprintln!("{operation:?}: {} calls, {planned} faults planned, {injected} injected", calls.len());
    // The number of wake-ups of a wait varies, and so does the number of digits of a time.
    let enough = if operation.may_wait() { planned / 4 } else { planned * 9 / 10 };
    assert!(
        planned > 0 && injected >= enough,
        "{operation:?}: only {injected} of {planned} faults were injected"
    );
}

impl Harness {
    fn new(operation: Operation) -> Self {
        let dir = in_memory();
        let store = open_with(dir.path(), Durability::Relaxed);
        store.write("x".repeat(HASHED_KEY_LENGTH), "long").unwrap();
        Self { operation, dir, store, child: None, watchdog: None, cases: 0 }
    }

    /// The case of this number. Each new store gets a directory of its own.
    fn case(&self, number: usize) -> Case {
        let dir = match self.operation {
            Operation::OpenNew | Operation::OpenVersion1 => self.new_store(number),
            _ => self.dir.path().to_owned(),
        };
        Case { dir, operation: self.operation }
    }

    fn new_store(&self, number: usize) -> PathBuf {
        self.dir.path().join(format!("new-{number}"))
    }

    fn child(&mut self) -> Child {
        if let Some(child) = self.child.take() {
            return child;
        }
        let child = Child::start("operate", &self.dir.path());
        self.watchdog = Some(watch(child.pid()));
        child
    }

    /// Runs one case, with a fault at one call if `fault` names one. Returns the calls of the operation,
    /// the state before it, and its outcome. Returns `None` where `ptrace` is not permitted.
    fn run(
        &mut self,
        case: &Case,
        fault: Option<(usize, Call, Fault)>,
    ) -> Option<(Vec<Call>, State, Outcome)> {
        let mut child = self.child();
        if let Some(watchdog) = &self.watchdog {
            let _ = watchdog.send(());
        }
        if self.operation.needs_held() {
            self.store.acquire_lock(self.operation.key(), LockOptions::new()).unwrap();
        }
        child.send(&serde_json::to_string(case).unwrap());
        let (mut traced, _) = Traced::attach(child)?;
        let before = self.state();
        let calls = run_with_fault(&mut traced, fault);
        let mut child = traced.release();
        let outcome = serde_json::from_str(&child.receive()).unwrap();
        self.child = Some(child);
        Some((calls, before, outcome))
    }

    /// Runs one case with a fault and checks it. Returns `false` if the call did not occur in this run.
    fn inject(&mut self, site: usize, call: Call, fault: Fault) -> bool {
        self.cases += 1;
        let case = self.case(self.cases);
        let private = case.dir.join(".store");
        let child = self.child();
        let own = format!("{}-", child.pid().as_raw_pid());
        self.child = Some(child);
        let of_child = |part: &str| {
            let names = listing(&private.join(part));
            names.into_iter().filter(|name| name.starts_with(&own)).collect::<Vec<_>>()
        };
        let staged_before = of_child("staged");
        let (calls, before, outcome) = self.run(&case, Some((site, call, fault))).unwrap();
        let operation = self.operation;
        let injection = Injection { operation, site, call, fault, before, after: self.state(), outcome };
        let injected = calls.get(site).is_some_and(|made| made.number == call.number);
        if injected {
            injection.check();
            // A file that could not be unlinked stays until a sweep.
            if !is_unlink(call.number) {
                let staged = of_child("staged");
                // A displaced record that can be neither examined nor moved aside stays until a sweep, too.
                let displaced =
                    format!("{}.json", record_store::Key::new(operation.key()).unwrap().file_stem());
                // That of a relaxed change stays until the log is synced.
                let may_stay = matches!(fault, Fault::Always(_)) || operation == Operation::WriteRelaxed;
                let stays = |name: &str| may_stay && name.ends_with(&displaced);
                let new = staged.iter().filter(|name| !staged_before.contains(name));
                let left: Vec<_> = new.filter(|name| !stays(name)).collect();
                assert!(left.is_empty(), "{injection}: staged files left: {left:?}");
                let owners = of_child("owners");
                assert!(owners.len() <= 1, "{injection}: owner files left: {owners:?}");
                // A store that could not be created leaves nothing, unless only the last sync failed.
                let is_half_made = private.exists() && !private.join("format.json").exists();
                assert!(!is_half_made, "{injection}: a half-made store is left");
                // Then it is whole: another process may have opened it already.
                if operation == Operation::OpenNew && private.exists() {
                    let lacks = |part: &&str| !private.join(part).exists();
                    let lacking: Vec<_> = NEEDED.into_iter().filter(lacks).collect();
                    assert!(lacking.is_empty(), "{injection}: a store without {lacking:?}");
                }
            }
        }
        let format = std::fs::read_to_string(private.join("format.json")).unwrap_or_default();
        if operation == Operation::OpenVersion1 {
            let is_whole = [VERSION_1, VERSION_2].contains(&&*format);
            let is_upgraded = injection.outcome.result.is_err() || format == VERSION_2;
            assert!(is_whole && is_upgraded, "{injection}: the format is {format:?}");
        }
        self.check_recovery(&injection);
        if operation == Operation::OpenVersion1 {
            let store = FileSystemRecordStore::open(&case.dir).unwrap();
            assert_eq!(store.verify().map(Result::unwrap).count(), 0, "{injection}: not upgraded");
        }
        self.reset();
        injected
    }

    fn state(&self) -> State {
        let key = record_store::Key::new(self.operation.key()).unwrap();
        let path = self.dir.path().join(format!("{}.json", key.file_stem()));
        let record = std::fs::read(path).ok().map(|text| {
            let record: serde_json::Value = serde_json::from_slice(&text).expect("an intact record");
            assert_eq!(record["key"], key.as_str());
            record["result"].as_str().unwrap().to_owned()
        });
        let lock = self.store.lock_info(&key).expect("no lock or an intact one");
        let file =
            std::fs::read(self.dir.path().join(format!("{}.lock", key.file_stem()))).unwrap_or_default();
        let is_blank = file.iter().all(|&byte| byte == 0);
        assert!(is_blank || !file.contains(&0), "{:?}: a part of a lock is left", self.operation);
        let held = |it: &LockInfo| (it.holder().name().to_owned(), it.token(), it.expires_at());
        let sharers = lock.iter().flat_map(LockInfo::sharers).map(held).collect();
        let lock = lock.as_ref().map(held);
        State { record, lock, sharers, kept: self.store.is_locked(KEPT).unwrap() }
    }

    /// After the fault another process can work, and so can the process that received the fault.
    fn check_recovery(&mut self, injection: &Injection) {
        let key = self.operation.key();
        if self.operation != Operation::OpenNew {
            let lock = self.store.break_lock(&key).map(|_| ());
            lock.and_then(|()| work(&self.store, &key, "parent"))
                .unwrap_or_else(|error| panic!("{injection}: afterwards: {error:?}"));
        }
        let mut child = self.child();
        child.send("work");
        assert_eq!(child.receive(), "done", "{injection}: afterwards");
        self.child = Some(child);
    }

    /// Restores the initial state.
    fn reset(&mut self) {
        let key = self.operation.key();
        if self.cases == 0 {
            // After an injection, `check_recovery` has already done this.
            let mut child = self.child();
            self.store.break_lock(&key).unwrap();
            child.send("work");
            child.expect("done");
            self.child = Some(child);
        }
        self.store.break_lock(&key).unwrap();
        self.store.remove(&key).unwrap();
        if matches!(self.operation, Operation::OpenNew | Operation::OpenVersion1) {
            for number in [0, self.cases] {
                let _ = std::fs::remove_dir_all(self.new_store(number));
            }
        }
        if self.operation.needs_fresh_process() {
            self.child = None;
        }
    }

    /// After the child has ended, a sweep removes everything that the child could not remove.
    fn finish(&mut self) {
        self.watchdog = None;
        self.child = None;
        self.store.sweep().unwrap();
        let private = self.dir.path().join(".store");
        assert_eq!(names_in(&private.join("staged")), [""; 0], "{:?}", self.operation);
        assert!(!private.join("tmp").exists(), "{:?}", self.operation);
        assert_eq!(names_in(&private.join("owners")).len(), 1, "{:?}: more than our own", self.operation);
    }
}

/// Runs the operation to its end, injects the fault, and returns the system calls.
fn run_with_fault(traced: &mut Traced, fault: Option<(usize, Call, Fault)>) -> Vec<Call> {
    let mut calls = Vec::new();
    let (mut armed, mut interruptions) = (false, 0);
    while let Some(call) = traced.next_call() {
        let site = calls.len();
        calls.push(call);
        let Some((wanted, like, fault)) = fault.filter(|(_, like, _)| same_kind(like.number, call.number))
        else {
            traced.execute();
            continue;
        };
        let first = site == wanted && call.number == like.number;
        match fault {
            Fault::Once(errno) if first => fail_call(traced, call, errno),
            Fault::Short | Fault::ShortThen(_) if first => {
                traced.shorten(call.arguments[2] / 2);
                armed = matches!(fault, Fault::ShortThen(_));
            }
            Fault::ShortThen(errno) if armed => {
                armed = false;
                fail_call(traced, call, errno);
            }
            Fault::Always(errno) if first || armed => {
                armed = true;
                interruptions += usize::from(errno == Errno::EINTR);
                if interruptions > MAX_INTERRUPTIONS {
                    traced.execute();
                } else {
                    fail_call(traced, call, errno);
                }
            }
            _ => traced.execute(),
        }
    }
    calls
}

/// Whether a permanent fault of one of these system calls also affects the other.
fn same_kind(one: libc::c_long, other: libc::c_long) -> bool {
    one == other || is_write(one) && is_write(other) || is_sync(one) && is_sync(other)
}

fn fail_call(traced: &mut Traced, call: Call, errno: Errno) {
    if call.number == libc::SYS_close {
        // `close` closes the descriptor even if it reports an error.
        traced.execute_and_fail(errno);
    } else {
        traced.fail(errno);
    }
}

/// Kills the process if no message arrives for too long.
fn watch(process: rustix::process::Pid) -> Sender<()> {
    let (beat, beats) = channel();
    std::thread::spawn(move || {
        loop {
            match beats.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("a call does not return");
                    let _ = rustix::process::kill_process(process, rustix::process::Signal::KILL);
                    return;
                }
            }
        }
    });
    beat
}

/// The names in a directory, which may be missing.
fn listing(dir: &Path) -> Vec<String> {
    if dir.exists() { names_in(dir) } else { Vec::new() }
}

macro_rules! operations {
    ($($name:ident: $operation:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            inject_everywhere(Operation::$operation);
        }
    )*};
}

operations! {
    open_of_a_new_store: OpenNew,
    open_of_a_store: OpenExisting,
    open_of_a_store_of_version_1: OpenVersion1,
    open_to_read: OpenToRead,
    the_first_write: WriteNew,
    write: WriteOver,
    relaxed_write: WriteRelaxed,
    write_by_token: WriteByToken,
    write_under_anothers_lock: WriteHeld,
    read: Read,
    read_of_nothing: ReadAbsent,
    read_under_anothers_lock: ReadHeld,
    remove: Remove,
    remove_of_nothing: RemoveAbsent,
    exists: Exists,
    acquire: Acquire,
    the_first_acquire_of_a_process: AcquireFirst,
    acquire_without_an_owner_file: AcquireAfresh,
    acquire_of_a_blank_lock: AcquireBlank,
    acquire_of_a_long_key: AcquireLongKey,
    repeated_acquire: AcquireAgain,
    acquire_of_a_held_lock: AcquireHeld,
    take_over_of_an_expired_lock: TakeExpired,
    take_over_of_an_abandoned_lock: TakeAbandoned,
    renew: Renew,
    release: Release,
    release_to_a_waiter: ReleaseAwaited,
    share_a_lock: Join,
    share_a_lock_by_name: JoinNamed,
    release_a_shared_lock: LeaveNamed,
    break_lock: BreakLock,
    lock_info: LockInfo,
    wait_for_a_free_lock: WaitFree,
    wait_for_a_held_lock: WaitHeld,
    the_first_wait_of_a_process: WaitHeldFirst,
    keys: Keys,
    locks: Locks,
    sweep: Sweep,
}
