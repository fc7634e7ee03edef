//! Every system call of every operation fails, in every way that it may, once and for ever.
//!
//! A real process does the operation, and `ptrace` makes one of its calls fail. Afterwards, from
//! another process: an error changed nothing (but for a failed sync of the directory, where the
//! change is there and only its survival is in doubt); what returned `Ok` was done; no `Ok` came of a
//! failed sync; what was interrupted or done in part is gone on with; nothing is left open or lying
//! about; and the next one to come can work.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};

use nix::errno::Errno;
use nix::libc;
use record_store::{Durability, FileSystemRecordStore, LockOptions, RecordStoreExt};
use tempfile::TempDir;

use super::faults::{Fault, faults_of, is_sync, is_unlink, is_write};
use super::operations::{Case, KEPT, Operation, Outcome, stays_by_design, work};
use super::verdict::{State, Try};
use crate::support::children::Child;
use crate::support::trace::Traced;
use crate::support::trace::tamper::Call;
use crate::support::{PATIENCE, in_memory, names_in, open_with, storm};

/// An interrupted call may be tried again, for ever: here it gets through at last.
const INTERRUPTIONS: usize = 60;

/// A key of this length has a file named by a hash, so that listings must look inside.
const HASHED: usize = 300;

/// A store, and the process that is interfered with.
struct Scene {
    operation: Operation,
    dir: TempDir,
    store: FileSystemRecordStore,
    child: Option<Child>,
    /// Ends the child if it hangs.
    watchdog: Option<Sender<()>>,
    cases: usize,
}

fn fail_everywhere(operation: Operation) {
    let mut scene = Scene::new(operation);
    // Twice: what a process does only once is over after the first.
    for _ in 0..2 {
        let Some((calls, _, outcome)) = scene.run(&scene.case(0), None) else { return };
        assert!(outcome.leaked.iter().all(|path| stays_by_design(path)), "{operation:?}: {outcome:?}");
        // Without a fault it does what it should, or there is nothing to be learned.
        assert!(!calls.is_empty(), "{operation:?}");
        assert_eq!(outcome.result.is_err(), operation.is_refused(), "{operation:?}: {outcome:?}");
        scene.tidy_up();
        if operation.needs_fresh_process() {
            break;
        }
    }
    let (calls, ..) = scene.run(&scene.case(0), None).unwrap();
    scene.tidy_up();
    let (mut planned, mut done) = (0, 0);
    for (site, &call) in calls.iter().enumerate() {
        for fault in faults_of(call, storm(1) > 1) {
            planned += 1;
            done += usize::from(scene.try_fault(site, call, fault));
        }
    }
    scene.end();
    eprintln!("{operation:?}: {} calls, {planned} faults planned, {done} happened", calls.len());
    // How often a wait wakes up is not fixed, nor is how long a clock's digits are.
    let enough = if operation.may_wait() { planned / 4 } else { planned * 9 / 10 };
    assert!(planned > 0 && done >= enough, "{operation:?}: only {done} of {planned} faults happened");
}

impl Scene {
    fn new(operation: Operation) -> Self {
        let dir = in_memory();
        let store = open_with(dir.path(), Durability::Relaxed);
        store.write("x".repeat(HASHED), "long").unwrap();
        Self { operation, dir, store, child: None, watchdog: None, cases: 0 }
    }

    /// The next case. A new store is made in a place of its own.
    fn case(&self, number: usize) -> Case {
        let dir = match self.operation {
            Operation::OpenNew => self.new_store(number),
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

    /// Runs one case, with a fault at one call if so told. Returns the calls that it made and the
    /// state before. `None` where nothing can be traced.
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
            self.store.acquire_lock(self.operation.key(), &LockOptions::new()).unwrap();
        }
        child.tell(&serde_json::to_string(case).unwrap());
        let (mut traced, _) = Traced::attach(child)?;
        let before = self.state();
        let calls = interfere(&mut traced, fault);
        let mut child = traced.release();
        let outcome = serde_json::from_str(&child.hear()).unwrap();
        self.child = Some(child);
        Some((calls, before, outcome))
    }

    /// `false` if the call did not come this time.
    fn try_fault(&mut self, site: usize, call: Call, fault: Fault) -> bool {
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
        let staged_before = of_child("tmp");
        let (calls, before, outcome) = self.run(&case, Some((site, call, fault))).unwrap();
        let operation = self.operation;
        let tried = Try { operation, site, call, fault, before, after: self.state(), outcome };
        let happened = calls.get(site).is_some_and(|made| made.number == call.number);
        if happened {
            tried.check();
            // What cannot be unlinked stays until a sweep.
            if !is_unlink(call.number) {
                let staged = of_child("tmp");
                let left: Vec<_> = staged.iter().filter(|name| !staged_before.contains(name)).collect();
                assert!(left.is_empty(), "{tried}: staged files left: {left:?}");
                let owners = of_child("owners");
                assert!(owners.len() <= 1, "{tried}: owner files left: {owners:?}");
            }
        }
        self.see_it_work(&tried);
        self.tidy_up();
        happened
    }

    fn state(&self) -> State {
        let key = record_store::Key::new(self.operation.key()).unwrap();
        let path = self.dir.path().join(format!("{}.json", key.file_stem()));
        let record = std::fs::read(path).ok().map(|text| {
            let record: serde_json::Value = serde_json::from_slice(&text).expect("a whole record");
            assert_eq!(record["key"], key.as_str());
            record["result"].as_str().unwrap().to_owned()
        });
        let lock = self.store.lock_info(&key).expect("no lock or a whole one");
        let lock = lock.map(|it| (it.holder().name().to_owned(), it.token(), it.expires_at()));
        State { record, lock, kept: self.store.is_locked(KEPT).unwrap() }
    }

    /// The fault is gone: another process can work, and so can the one that met it.
    fn see_it_work(&mut self, tried: &Try) {
        let key = self.operation.key();
        if self.operation != Operation::OpenNew {
            let lock = self.store.break_lock(&key).map(|_| ());
            lock.and_then(|()| work(&self.store, &key, "parent"))
                .unwrap_or_else(|error| panic!("{tried}: afterwards: {error:?}"));
        }
        let mut child = self.child();
        child.tell("work");
        assert_eq!(child.hear(), "done", "{tried}: afterwards");
        self.child = Some(child);
    }

    /// As if nothing had been.
    fn tidy_up(&mut self) {
        let key = self.operation.key();
        if self.cases == 0 {
            // After a try this has been seen to already.
            let mut child = self.child();
            self.store.break_lock(&key).unwrap();
            child.tell("work");
            child.expect("done");
            self.child = Some(child);
        }
        self.store.break_lock(&key).unwrap();
        self.store.remove(&key).unwrap();
        if self.operation == Operation::OpenNew {
            for number in [0, self.cases] {
                let _ = std::fs::remove_dir_all(self.new_store(number));
            }
        }
        if self.operation.needs_fresh_process() {
            self.child = None;
        }
    }

    /// When the process is gone, so is all that it could not clear away.
    fn end(&mut self) {
        self.watchdog = None;
        self.child = None;
        self.store.sweep().unwrap();
        let private = self.dir.path().join(".store");
        assert_eq!(names_in(&private.join("tmp")), [""; 0], "{:?}", self.operation);
        assert_eq!(names_in(&private.join("owners")).len(), 1, "{:?}: more than our own", self.operation);
    }
}

/// Leads the operation to its end, and sees to it that the fault happens.
fn interfere(traced: &mut Traced, fault: Option<(usize, Call, Fault)>) -> Vec<Call> {
    let mut calls = Vec::new();
    let (mut armed, mut interruptions) = (false, 0);
    while let Some(call) = traced.next_call() {
        let site = calls.len();
        calls.push(call);
        let Some((wanted, like, fault)) = fault.filter(|(_, like, _)| alike(like.number, call.number)) else {
            traced.permit();
            continue;
        };
        let first = site == wanted && call.number == like.number;
        match fault {
            Fault::Once(errno) if first => say_no(traced, call, errno),
            Fault::Short | Fault::ShortThen(_) if first => {
                traced.shorten(call.arguments[2] / 2);
                armed = matches!(fault, Fault::ShortThen(_));
            }
            Fault::ShortThen(errno) if armed => {
                armed = false;
                say_no(traced, call, errno);
            }
            Fault::Ever(errno) if first || armed => {
                armed = true;
                interruptions += usize::from(errno == Errno::EINTR);
                if interruptions > INTERRUPTIONS {
                    traced.permit();
                } else {
                    say_no(traced, call, errno);
                }
            }
            _ => traced.permit(),
        }
    }
    calls
}

/// Whether what befalls one of these system calls befalls the other too.
fn alike(one: libc::c_long, other: libc::c_long) -> bool {
    one == other || is_write(one) && is_write(other) || is_sync(one) && is_sync(other)
}

fn say_no(traced: &mut Traced, call: Call, errno: Errno) {
    if call.number == libc::SYS_close {
        // Whatever it says, it closes.
        traced.belie(errno);
    } else {
        traced.refuse(errno);
    }
}

/// Kills the process if nothing is heard for too long.
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

/// The names in a directory that need not be there.
fn listing(dir: &Path) -> Vec<String> {
    if dir.exists() { names_in(dir) } else { Vec::new() }
}

macro_rules! operations {
    ($($name:ident: $operation:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            fail_everywhere(Operation::$operation);
        }
    )*};
}

operations! {
    open_of_a_new_store: OpenNew,
    open_of_a_store: OpenExisting,
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
    release_to_one_who_waits: ReleaseAwaited,
    break_lock: BreakLock,
    lock_info: LockInfo,
    wait_for_a_free_lock: WaitFree,
    wait_for_a_held_lock: WaitHeld,
    the_first_wait_of_a_process: WaitHeldFirst,
    keys: Keys,
    locks: Locks,
    sweep: Sweep,
}
