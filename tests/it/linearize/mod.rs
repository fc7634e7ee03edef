//! Linearizability: whatever several processes do at once, each operation looks as if it had
//! happened in one step, at a moment between its beginning and its end.
//!
//! Threads of several processes call operations at random on a few keys, and log each call before
//! its beginning and after its end. Meanwhile the processes are stopped for a while, or killed. Then
//! a search, key by key, for an order of the calls that explains every answer. Keys have nothing to
//! do with each other, so a history is linearizable if each of its keys is.
//!
//! # The model
//!
//! A key has a record, or none; a lock, or none; and the greatest token given so far. A lock has a
//! holder, a token and an end of its lease. Each call takes effect at one moment of its own.
//!
//! * A *claim by holder* is good if there is no lock, or if the lock is that holder's. A *claim by
//!   token* is good if the lock has that token and, where its holder is a thread, was taken in the
//!   same process.
//! * `read` returns the record, `write` and `remove` change it: all on a good claim only. `Locked`
//!   and `LockTimeout` name the holder of a lock that is not the claimant's. A `LockTimeout`
//!   without a holder says nothing. `LockLost`: the claim by token is not good.
//! * `acquire` with no lock there makes one, with a token greater than all before; where the lock is
//!   the same holder's it keeps the token. Both begin the lease. So does `renew`, which like
//!   `release` needs the claimant's own lock.
//! * `lock_info` returns the lock, and what is left of its lease agrees with the end that is known.
//!
//! # Time
//!
//! Two things happen to a lock by themselves: its lease ends, or its process does. From then on
//! there is no lock.
//!
//! * The clock is read at some moment within the call that begins the lease. So a call that has
//!   ended before `beginning of that call + hold timeout` cannot have seen the lease over, and a call
//!   that began at or after `end of that call + hold timeout` must have. In between it may be
//!   either, until one call has seen it over: then it is over for all that come later.
//! * The lock of a thread may be over from the moment at which its process was told to go or sent a
//!   `kill -9`, and must be once the parent has seen it gone.
//! * A call that was killed took effect before its process was gone, or never. A lock that it took
//!   has an unknown token, greater than those before it, until somebody is told.
//!
//! Two things are allowed to those who look without the latch, for they change nothing by it:
//!
//! * `lock_info`, `wait_for_lock` and what is refused to a reader by token look without the latch. They
//!   may see a lease over while a change by its holder, let in just before its end, is under way. If
//!   it ends after the lease, it may still take effect, until a change or a read has seen the lease
//!   over as well.
//! * Beside a renewal that comes to nothing they may see its lease: see [`late`].
//!
//! Every bound here is a moment that the test saw, on the one `CLOCK_MONOTONIC` of the host. None
//! allows for a slow machine: what is slow is long under way, and so may take effect at many
//! moments.

mod checker;
mod examples;
mod history;
mod late;
mod model;
mod workload;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Durability, MemoryRecordStore, RecordStore};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use self::history::{Call, Death, Deaths, Outcome};
use self::model::Rules;
use self::workload::{KEYS, Worker};
use crate::support::children::{Child, Role, Stage, is_running};
use crate::support::dice::Dice;
use crate::support::{in_memory, now, open_with, storm};

pub(crate) const ROLES: &[Role] = &[("linearize", linearize)];

const PROCESSES: usize = 4;
const THREADS: u64 = 2;

/// So many runs there are, each on a new store, and so many calls each thread makes in one.
const RUNS: u64 = 4;
const CALLS_PER_THREAD: u64 = 3_300;

/// The longest that a process is stopped.
const LONGEST_STOP: Duration = Duration::from_millis(30);

/// One in so many disturbances is a `kill -9`.
const STOPS_PER_KILL: u64 = 8;

#[derive(Serialize, Deserialize)]
struct Part {
    records: PathBuf,
    logs: PathBuf,
    /// There when this part is done.
    done: PathBuf,
    /// Tells apart all parts of a run.
    number: u64,
    calls_per_thread: u64,
}

/// A process: some threads at work on one handle.
fn linearize(stage: &Stage) {
    let part: Part = stage.argument();
    let store = open_with(&part.records, Durability::Relaxed);
    work(&store, &part.logs, part.number, THREADS, part.calls_per_thread);
    std::fs::write(&part.done, "").unwrap();
    // Its death has to come when the parent knows of it.
    stage.expect("go");
}

fn work(store: &dyn RecordStore, logs: &Path, number: u64, threads: u64, calls: u64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || Worker::new(store, logs, number * threads + thread, calls).run());
        }
    });
}

/// The processes of a run.
struct Crew {
    directory: TempDir,
    deaths: Deaths,
    parts: u64,
    kills: u64,
    stops: u64,
}

struct Member {
    child: Child,
    part: Part,
}

impl Crew {
    fn new() -> Self {
        // What counts here is the number of calls.
        let directory = in_memory();
        for name in ["records", "logs", "done"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory, deaths: Deaths::new(), parts: 0, kills: 0, stops: 0 }
    }

    fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    fn hire(&mut self, calls_per_thread: u64) -> Member {
        self.parts += 1;
        let part = Part {
            records: self.directory.path().join("records"),
            logs: self.logs(),
            done: self.directory.path().join("done").join(self.parts.to_string()),
            number: self.parts,
            calls_per_thread,
        };
        Member { child: Child::start("linearize", &part), part }
    }

    /// Ends a process, and notes when.
    fn end(&mut self, member: Member, how: impl FnOnce(Child)) {
        let process = member.child.pid().as_raw_pid().unsigned_abs();
        let from = now();
        how(member.child);
        let known = self.deaths.insert(process, Death { from, by: now() });
        assert!(known.is_none(), "a process id was used again");
    }

    /// Kills a process, and has another one do what is left of its part.
    fn replace(&mut self, member: Member) -> Member {
        let process = member.child.pid().as_raw_pid().unsigned_abs();
        let planned = member.part.calls_per_thread;
        self.end(member, |child| {
            child.kill();
        });
        self.kills += 1;
        let done = history::load(&self.logs(), Some(process), &self.deaths).len() as u64;
        self.hire(planned.saturating_sub(done / THREADS).max(1))
    }

    /// Disturbs the processes until all parts are done.
    fn disturb(&mut self, mut members: Vec<Member>) {
        let mut dice = Dice::new(now());
        loop {
            let (done, busy): (Vec<_>, Vec<_>) =
                members.into_iter().partition(|member| member.part.done.exists());
            for mut member in done {
                member.child.tell("go");
                self.end(member, Child::finish);
            }
            members = busy;
            if members.is_empty() {
                return;
            }
            assert!(members.iter().all(|member| is_running(member.child.pid())), "a process has failed");
            std::thread::sleep(dice.time(LONGEST_STOP));
            let chosen = dice.index(members.len());
            if dice.once_in(STOPS_PER_KILL) {
                let member = members.swap_remove(chosen);
                members.push(self.replace(member));
            } else {
                members[chosen].child.signal(Signal::STOP);
                std::thread::sleep(dice.time(LONGEST_STOP));
                members[chosen].child.resume();
                self.stops += 1;
            }
        }
    }
}

/// What happened in all runs.
#[derive(Default)]
struct Figures {
    operations: usize,
    kills: u64,
    stops: u64,
    leases_over: u64,
    owners_dead: u64,
    violations: Vec<String>,
}

impl Figures {
    /// Finds an order for the calls of each key.
    fn verify(&mut self, calls: Vec<Call>, rules: &Rules) {
        self.operations += calls.len();
        let mut by_key: Vec<Vec<Call>> = vec![Vec::new(); KEYS];
        for call in calls {
            if let Some(Outcome::Failed(error)) = &call.outcome {
                self.violations.push(format!("no operation may end like this: {error}\n{call:?}"));
            }
            by_key[call.key].push(call);
        }
        for calls in &mut by_key {
            late::mark(calls);
            if let Err(report) = checker::check(rules, calls) {
                self.violations.push(report);
            }
        }
        self.leases_over += rules.leases_over.get();
        self.owners_dead += rules.owners_dead.get();
    }

    /// One line for people, and the end of the test if there was a violation.
    fn conclude(&self, what: &str, start: Instant) {
        let Self { operations, kills, stops, violations, .. } = self;
        println!(
            "{what}: {operations} operations, {kills} kills, {stops} stops, {} violations, {:.1} s",
            violations.len(),
            start.elapsed().as_secs_f64()
        );
        assert!(violations.is_empty(), "not linearizable: {}", violations.join("\n"));
    }
}

fn count(calls: &[Call], wanted: impl Fn(&Call) -> bool) -> usize {
    calls.iter().filter(|call| wanted(call)).count()
}

/// A run in which nothing happens proves nothing.
fn assert_lively(calls: &[Call]) {
    type Wanted = fn(&Outcome) -> bool;
    let outcomes: [(&str, Wanted); 8] = [
        ("read", |outcome| matches!(outcome, Outcome::Value(Some(_)))),
        ("read as absent", |outcome| matches!(outcome, Outcome::Value(None))),
        ("taken", |outcome| matches!(outcome, Outcome::Acquired { reentrant: false, .. })),
        ("taken again", |outcome| matches!(outcome, Outcome::Acquired { reentrant: true, .. })),
        ("refused", |outcome| matches!(outcome, Outcome::Locked(_))),
        ("timed out", |outcome| matches!(outcome, Outcome::Timeout(Some(_)))),
        ("lost", |outcome| matches!(outcome, Outcome::Lost)),
        ("not the holder", |outcome| matches!(outcome, Outcome::NotHolder(_))),
    ];
    for (name, wanted) in outcomes {
        let found = count(calls, |call| call.outcome.as_ref().is_some_and(wanted));
        assert!(found * 1_000 > calls.len(), "only {found} of {} calls: {name}", calls.len());
    }
}

#[test]
fn processes_on_files() {
    let (start, mut figures) = (Instant::now(), Figures::default());
    for _ in 0..storm(RUNS) {
        run_processes(&mut figures);
    }
    figures.conclude("linearizable on files", start);
    // A run in which nothing happens proves nothing.
    assert!(figures.operations >= 100_000, "{}", figures.operations);
    assert!(figures.leases_over > 0, "no lease ran out");
    assert!(figures.owners_dead > 0, "no owner died");
    assert!(figures.kills > 0 && figures.stops > 0, "nothing was disturbed");
}

fn run_processes(figures: &mut Figures) {
    let mut crew = Crew::new();
    let members = (0..PROCESSES).map(|_| crew.hire(CALLS_PER_THREAD)).collect();
    crew.disturb(members);
    let calls = history::load(&crew.logs(), None, &crew.deaths);
    assert_lively(&calls);
    figures.kills += crew.kills;
    figures.stops += crew.stops;
    figures.verify(calls, &Rules { deaths: crew.deaths, ..Rules::default() });
}

/// The reference model obeys the rules, and the rules are not stricter than it.
#[test]
fn threads_in_memory() {
    let (start, mut figures) = (Instant::now(), Figures::default());
    let threads = PROCESSES as u64 * THREADS;
    for _ in 0..storm(1) {
        let logs = in_memory();
        work(&MemoryRecordStore::new(), logs.path(), 0, threads, CALLS_PER_THREAD);
        // The process that runs the tests outlives them all.
        let calls = history::load(logs.path(), None, &Deaths::new());
        assert_lively(&calls);
        figures.verify(calls, &Rules::default());
    }
    figures.conclude("linearizable in memory", start);
}
