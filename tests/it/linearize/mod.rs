//! Linearizability: concurrent operations of several processes behave as if each took effect
//! atomically, at one moment between its start and its end.
//!
//! Threads of several processes call random operations on a few keys. Each thread logs every call
//! before the call starts and after it ends. Meanwhile the parent stops and kills the processes.
//! Afterwards a search tries to find, for each key, an order of the calls that explains every result.
//! Keys are independent, so a history is linearizable if the history of each key is.
//!
//! # The model
//!
//! A key has a record or none, a lock or none, and the greatest token issued so far. A lock has a
//! holder, a token and an expiry time. Each call takes effect at one moment.
//!
//! * A *claim by holder* is valid if there is no lock, or if the lock belongs to that holder. A *claim
//!   by token* is valid if the lock has that token. If the holder is a thread, the lock must also have
//!   been acquired in the same process.
//! * `read` returns the record; `write` and `remove` change it. All three need a valid claim. `Locked`
//!   and `LockTimeout` name the holder of a lock that is not the claimant's. A `LockTimeout` without a
//!   holder proves nothing about the lock. `LockLost` means that the claim by token is not valid.
//! * A swap that answers `true` is such a write, of a record that had the expected value. One that answers `false` ignores
//!   locks, as `exists` does. The versions of records, where a read returns them, only grow.
//! * `acquire` creates a lock if there is none, with a token greater than all earlier ones. If the
//!   same holder has the lock already, the token stays the same. Both start the lease, and so does
//!   `renew`. `renew` and `release` need the claimant's own lock.
//! * Several acquisitions may share a lock, if each asked for it, and there are at most as many as each asked for. Then
//!   nobody changes the record: one that shares the lock gets `LockShared`. A read does not wait.
//! * `lock_info` returns the lock, or one of those that share it. The remaining lease agrees with the known expiry time.
//!
//! # Time
//!
//! A lock can end without a call: its lease expires, or its process dies. Then there is no lock.
//!
//! * The clock is read at some moment within the call that starts the lease. So a call that ended
//!   before `start of that call + hold timeout` cannot have seen the lease expired, and a call that
//!   started at or after `end of that call + hold timeout` must have. In between, both are possible,
//!   until one call sees the lease expired: then it is expired for all later calls.
//! * A thread's lock may end from the moment at which its process was asked to exit or was sent a
//!   `kill -9`. It must have ended once the parent has seen the process exit.
//! * A killed call took effect before its process was gone, or never. A lock that it acquired has an
//!   unknown token, greater than all earlier ones, until a later call returns that token.
//!
//! Calls that check the lock without the latch may return two more results, because they change
//! nothing based on them:
//!
//! * `lock_info`, `wait_for_lock` and a refused read by token check the lock without the latch. They
//!   may see a lease expired while a change by its holder, admitted just before the expiry, is still
//!   in progress. If that change ends after the expiry, it may still take effect, until a change or a
//!   read has seen the lease expired as well.
//! * During a renewal that fails they may see the renewed lease: see [`late_renewals`].
//!
//! Every bound here is a moment that the test observed on the host's single `CLOCK_MONOTONIC`. No
//! bound allows extra time for a slow machine: a slow call is pending for longer, and so may take
//! effect at more moments.

pub(crate) mod checker;
mod examples;
pub(crate) mod history;
mod late_renewals;
pub(crate) mod model;
pub(crate) mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Durability, MemoryRecordStore, RecordStore};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use self::history::{Call, Death, Deaths, Op, Outcome};
use self::model::Rules;
use self::workload::{KEYS, Worker};
use crate::support::children::{Child, Role, Stage, is_running};
use crate::support::dice::Dice;
use crate::support::{in_memory, now, open_with, storm};

pub(crate) const ROLES: &[Role] = &[("linearize", linearize)];

const PROCESSES: usize = 4;
const THREADS: u64 = 2;

/// Each run uses a new store.
const RUNS: u64 = 4;
const CALLS_PER_THREAD: u64 = 3_300;

/// The longest lease.
const LONGEST_HOLD: Duration = Duration::from_millis(20);

/// The longest time that a process is stopped.
const LONGEST_STOP: Duration = Duration::from_millis(30);

/// One disturbance in this many is a `kill -9`, the others are stops.
const STOPS_PER_KILL: u64 = 8;

/// The work of one process.
#[derive(Serialize, Deserialize)]
struct Assignment {
    records: PathBuf,
    logs: PathBuf,
    /// This file exists once the work is done.
    done: PathBuf,
    /// Unique within a run.
    number: u64,
    calls_per_thread: u64,
    longest_hold: Duration,
}

/// A process: several threads work on one store handle.
fn linearize(stage: &Stage) {
    let assignment: Assignment = stage.argument();
    let store = open_store(&assignment.records);
    let Assignment { logs, number, calls_per_thread, longest_hold, .. } = &assignment;
    work(&*store, logs, *number, THREADS, (*calls_per_thread, *longest_hold));
    std::fs::write(&assignment.done, "").unwrap();
    // The parent has to know the earliest moment at which this process can be gone.
    stage.expect("go");
}

/// The store in a directory, or at the URL of a server.
fn open_store(records: &Path) -> Box<dyn RecordStore> {
    #[cfg(feature = "postgres")]
    if let Some(url) = records.to_str().filter(|text| record_store::PostgresRecordStore::is_url(text)) {
        return Box::new(crate::postgres::open(url));
    }
    Box::new(open_with(records, Durability::Relaxed))
}

fn work(store: &dyn RecordStore, logs: &Path, number: u64, threads: u64, amount: (u64, Duration)) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || Worker::new(store, logs, number * threads + thread, amount).run());
        }
    });
}

/// One run: its processes and its files.
struct Run {
    directory: TempDir,
    deaths: Deaths,
    assignments: u64,
    kills: u64,
    stops: u64,
    /// Where the store is: a directory, or the URL of a server.
    records: PathBuf,
    /// A server notices a death so much later. Until then it may still make a change that was sent to it.
    notices_deaths_within: Duration,
    longest_hold: Duration,
}

struct Process {
    child: Child,
    assignment: Assignment,
}

impl Run {
    fn new() -> Self {
        // The test needs many calls, and no disk.
        let directory = in_memory();
        for name in ["records", "logs", "done"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self {
            records: directory.path().join("records"),
            directory,
            deaths: Deaths::new(),
            assignments: 0,
            kills: 0,
            stops: 0,
            notices_deaths_within: Duration::ZERO,
            longest_hold: LONGEST_HOLD,
        }
    }

    fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    fn start_process(&mut self, calls_per_thread: u64) -> Process {
        self.assignments += 1;
        let assignment = Assignment {
            records: self.records.clone(),
            logs: self.logs(),
            done: self.directory.path().join("done").join(self.assignments.to_string()),
            number: self.assignments,
            calls_per_thread,
            longest_hold: self.longest_hold,
        };
        Process { child: Child::start("linearize", &assignment), assignment }
    }

    /// Ends a process and records between which moments it died.
    fn end(&mut self, process: Process, how: impl FnOnce(Child)) {
        let pid = process.child.pid().as_raw_pid().unsigned_abs();
        let earliest = now();
        how(process.child);
        let latest = now() + u64::try_from(self.notices_deaths_within.as_nanos()).unwrap();
        let known = self.deaths.insert(pid, Death { earliest, latest });
        assert!(known.is_none(), "a process id was reused");
    }

    /// Kills a process and starts another one for the rest of its calls.
    fn replace(&mut self, process: Process) -> Process {
        let pid = process.child.pid().as_raw_pid().unsigned_abs();
        let planned = process.assignment.calls_per_thread;
        self.end(process, |child| {
            child.kill();
        });
        self.kills += 1;
        let done = history::load(&self.logs(), Some(pid), &self.deaths).len() as u64;
        self.start_process(planned.saturating_sub(done / THREADS).max(1))
    }

    /// Stops and kills processes until all work is done.
    fn disturb(&mut self, mut processes: Vec<Process>) {
        let mut dice = Dice::new(now());
        loop {
            let (done, busy): (Vec<_>, Vec<_>) =
                processes.into_iter().partition(|process| process.assignment.done.exists());
            for process in done {
                self.end(process, |mut child| {
                    child.send("go");
                    child.finish();
                });
            }
            processes = busy;
            if processes.is_empty() {
                return;
            }
            assert!(processes.iter().all(|process| is_running(process.child.pid())), "a process has failed");
            std::thread::sleep(dice.time(LONGEST_STOP));
            let chosen = dice.index(processes.len());
            if dice.once_in(STOPS_PER_KILL) {
                let process = processes.swap_remove(chosen);
                processes.push(self.replace(process));
            } else {
                processes[chosen].child.signal(Signal::STOP);
                std::thread::sleep(dice.time(LONGEST_STOP));
                processes[chosen].child.resume();
                self.stops += 1;
            }
        }
    }
}

/// The totals of all runs.
#[derive(Default)]
struct Totals {
    operations: usize,
    kills: u64,
    stops: u64,
    leases_expired: u64,
    owners_dead: u64,
    violations: Vec<String>,
}

impl Totals {
    /// Checks the calls of each key, and collects the violations.
    fn verify(&mut self, calls: Vec<Call>, rules: &Rules) {
        self.operations += calls.len();
        let mut by_key: Vec<Vec<Call>> = vec![Vec::new(); KEYS];
        for call in calls {
            if let Some(Outcome::Failed(error)) = &call.outcome {
                self.violations.push(format!("no operation may return this error: {error}\n{call:?}"));
            }
            by_key[call.key].push(call);
        }
        for calls in &mut by_key {
            late_renewals::mark(calls);
            if let Err(report) = checker::check(rules, calls) {
                self.violations.push(report);
            }
        }
        self.leases_expired += rules.leases_expired.get();
        self.owners_dead += rules.owners_dead.get();
    }

    /// Prints a summary, and fails the test if there was a violation.
    fn conclude(&self, title: &str, start: Instant) {
        let Self { operations, kills, stops, violations, .. } = self;
        println!(
            "{title}: {operations} operations, {kills} kills, {stops} stops, {} violations, {:.1} s",
            violations.len(),
            start.elapsed().as_secs_f64()
        );
        assert!(violations.is_empty(), "not linearizable: {}", violations.join("\n"));
    }
}

fn count(calls: &[Call], wanted: impl Fn(&Call) -> bool) -> usize {
    calls.iter().filter(|call| wanted(call)).count()
}

/// Every kind of outcome occurs often enough: a run in which nothing happens proves nothing.
fn assert_all_outcomes_occur(calls: &[Call]) {
    type Wanted = fn(&Outcome) -> bool;
    let shares = count(calls, |call| matches!(call.op, Op::Share(..))) > 0;
    let refused: (&str, Wanted) = ("shared", |outcome| matches!(outcome, Outcome::Shared));
    let outcomes: [(&str, Wanted); 8] = [
        ("read", |outcome| matches!(outcome, Outcome::Value(Some(_)))),
        ("read as absent", |outcome| matches!(outcome, Outcome::Value(None))),
        ("acquired", |outcome| matches!(outcome, Outcome::Acquired { reentrant: false, .. })),
        ("acquired again", |outcome| matches!(outcome, Outcome::Acquired { reentrant: true, .. })),
        ("refused", |outcome| matches!(outcome, Outcome::Locked(_))),
        ("timed out", |outcome| matches!(outcome, Outcome::Timeout(Some(_)))),
        ("lost", |outcome| matches!(outcome, Outcome::Lost)),
        ("not the holder", |outcome| matches!(outcome, Outcome::NotHolder(_))),
    ];
    for (name, wanted) in outcomes.into_iter().chain(shares.then_some(refused)) {
        let found = count(calls, |call| call.outcome.as_ref().is_some_and(wanted));
        assert!(found * 1_000 > calls.len(), "only {found} of {} calls: {name}", calls.len());
    }
}

#[test]
fn the_file_store_is_linearizable_across_processes() {
    let (start, mut totals) = (Instant::now(), Totals::default());
    for _ in 0..storm(RUNS) {
        run_processes(Run::new(), CALLS_PER_THREAD, &mut totals);
    }
    totals.conclude("linearizable on files", start);
    // A run in which nothing happens proves nothing.
    assert!(totals.operations >= 100_000, "{}", totals.operations);
    assert!(totals.leases_expired > 0, "no lease expired");
    assert!(totals.owners_dead > 0, "no owner died");
    assert!(totals.kills > 0 && totals.stops > 0, "nothing was disturbed");
}

fn run_processes(mut run: Run, calls_per_thread: u64, totals: &mut Totals) {
    let processes = (0..PROCESSES).map(|_| run.start_process(calls_per_thread)).collect();
    run.disturb(processes);
    let calls = history::load(&run.logs(), None, &run.deaths);
    assert_all_outcomes_occur(&calls);
    totals.kills += run.kills;
    totals.stops += run.stops;
    totals.verify(calls, &Rules { deaths: run.deaths, ..Rules::default() });
}

#[cfg(feature = "postgres")]
#[test]
fn the_store_on_a_server_is_linearizable_across_processes() {
    let (start, mut totals) = (Instant::now(), Totals::default());
    for _ in 0..storm(2) {
        let Some(url) = crate::postgres::new_url() else { return };
        let run = Run {
            records: url.into(),
            notices_deaths_within: Duration::from_secs(1),
            // A call takes longer than on files.
            longest_hold: 4 * LONGEST_HOLD,
            ..Run::new()
        };
        run_processes(run, 500, &mut totals);
    }
    totals.conclude("linearizable on a server", start);
    assert!(totals.operations >= 4_000, "{}", totals.operations);
    assert!(totals.leases_expired > 0, "no lease expired");
    assert!(totals.kills > 0 && totals.stops > 0, "nothing was disturbed");
}

/// The reference implementation obeys the rules, so the rules are not stricter than it.
#[test]
fn the_memory_store_is_linearizable_across_threads() {
    let (start, mut totals) = (Instant::now(), Totals::default());
    let threads = PROCESSES as u64 * THREADS;
    for _ in 0..storm(1) {
        let logs = in_memory();
        work(&MemoryRecordStore::new(), logs.path(), 0, threads, (CALLS_PER_THREAD, LONGEST_HOLD));
        // All threads belong to this process, so no owner dies.
        let calls = history::load(logs.path(), None, &Deaths::new());
        assert_all_outcomes_occur(&calls);
        totals.verify(calls, &Rules::default());
    }
    totals.conclude("linearizable in memory", start);
}
