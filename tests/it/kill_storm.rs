//! Working processes are killed one after another, at any moment and between any two system calls.
//! After each death the others continue undisturbed: no acknowledged write is lost, the locks of the
//! dead process are free, a sweep removes its leftovers, and no two processes ever hold one lock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Durability, FileSystemRecordStore, LockOptions, ReadOptions, RecordStoreExt};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::support::children::{Child, Role, Stage, is_running};
use crate::support::dice::Dice;
use crate::support::trace::{Traced, perform};
use crate::support::{Moment, in_memory, millis, names_in, now, open_with, storm};

pub(crate) const ROLES: &[Role] = &[("work", work), ("work traced", work_traced)];

const PROCESSES: usize = 8;

/// Keys that all processes increment, under the lock.
const SHARED_KEYS: usize = 8;
/// Keys that one process at a time increments, without a lock.
const OWN_KEYS: usize = PROCESSES;

const KILLS: u64 = 500;

/// One kill in this many hits a traced process at a system call.
const KILLS_PER_TRACED: u64 = 8;

/// After one kill in this many every key is checked, and not only the key that the process worked on.
const KILLS_PER_FULL_CHECK: u64 = 32;

/// More stops than one increment has.
const MOST_STOPS: u64 = 500;

/// After this many sweeps nothing may be left of a dead process.
const MOST_SWEEPS: u32 = 100;

/// Long enough to acquire a contended lock. A lock that is never released runs into this timeout.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(20);

fn shared_key(number: usize) -> String {
    format!("shared-{number}")
}

fn own_key(slot: usize) -> String {
    format!("own-{slot}")
}

/// A value that shows whether it is whole.
#[derive(Debug, Serialize, Deserialize)]
struct Count {
    count: u64,
    filler: String,
}

impl Count {
    fn new(count: u64) -> Self {
        Self { count, filler: "=".repeat(usize::try_from(count * 997 % 9_000).unwrap()) }
    }

    fn open(self) -> u64 {
        assert_eq!(self.filler, Self::new(self.count).filler, "torn");
        self.count
    }
}

/// The directories and files of a run.
#[derive(Clone, Serialize, Deserialize)]
struct Paths {
    records: PathBuf,
    logs: PathBuf,
}

impl Paths {
    fn in_dir(dir: &Path) -> Self {
        Self { records: dir.join("records"), logs: dir.to_owned() }
    }

    fn open(&self, durability: Durability) -> FileSystemRecordStore {
        open_with(&self.records, durability)
    }

    /// The writes that one process is about to do, and those that are acknowledged to it.
    fn acks(&self, worker: u64) -> PathBuf {
        self.logs.join(format!("acks-{worker}"))
    }

    /// The critical sections of all processes under one key.
    fn sections(&self, key: &str) -> PathBuf {
        self.logs.join(format!("sections-{key}"))
    }
}

/// Appends a line to a log, by a single unbuffered write, so that it survives a kill. A kill within the
/// write may leave a part of the line. The part has no end mark, and the next line starts on a new line.
fn append(path: &Path, line: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("\n{line}{END_MARK}\n").as_bytes()).unwrap();
}

const END_MARK: &str = " .";

/// A process of the storm.
struct Worker {
    paths: Paths,
    /// Unique within a run.
    number: u64,
    slot: usize,
    durable: FileSystemRecordStore,
    relaxed: FileSystemRecordStore,
    dice: Dice,
}

impl Worker {
    fn new(stage: &Stage) -> Self {
        let (paths, number, slot): (Paths, u64, usize) = stage.argument();
        let (durable, relaxed) = (paths.open(Durability::Full), paths.open(Durability::Relaxed));
        Self { paths, number, slot, durable, relaxed, dice: Dice::new(number ^ now()) }
    }

    fn work(&mut self) {
        if self.dice.once_in(4) { self.increment_own() } else { self.increment_shared() }
    }

    fn store(&mut self) -> &FileSystemRecordStore {
        if self.dice.once_in(6) { &self.durable } else { &self.relaxed }
    }

    fn increment_own(&mut self) {
        let key = own_key(self.slot);
        append(&self.paths.acks(self.number), &format!("{key} begin"));
        let store = self.store();
        let next = 1 + store.read::<Count>(&key).unwrap().map_or(0, |record| record.result.open());
        store.write(&key, &Count::new(next)).unwrap();
        append(&self.paths.acks(self.number), &format!("{key} {next}"));
    }

    fn increment_shared(&mut self) {
        let key = shared_key(self.dice.index(SHARED_KEYS));
        append(&self.paths.acks(self.number), &format!("{key} begin"));
        let store = self.store().clone();
        let guard = store.lock(&key, LockOptions::new()).unwrap();
        let section = CriticalSection::enter(&self.paths, &key, self.number);
        let next = 1 + guard.read::<Count>().unwrap().map_or(0, |record| record.result.open());
        guard.write(&Count::new(next)).unwrap();
        append(&self.paths.acks(self.number), &format!("{key} {next}"));
        section.leave();
        guard.release().unwrap();
    }
}

/// The time under a lock, logged for the parent.
struct CriticalSection {
    path: PathBuf,
    number: u64,
}

impl CriticalSection {
    fn enter(paths: &Paths, key: &str, number: u64) -> Self {
        let path = paths.sections(key);
        append(&path, &format!("enter {number} {}", now()));
        Self { path, number }
    }

    fn leave(self) {
        append(&self.path, &format!("leave {} {}", self.number, now()));
    }
}

fn work(stage: &Stage) {
    let mut worker = Worker::new(stage);
    loop {
        worker.work();
    }
}

fn work_traced(stage: &Stage) {
    let mut worker = Worker::new(stage);
    perform(stage, "", || worker.work());
    stage.receive();
}

/// The parent's state.
struct Storm {
    paths: Paths,
    _directory: TempDir,
    store: FileSystemRecordStore,
    dice: Dice,
    workers: u64,
    killed: HashMap<u64, Moment>,
    processes: HashMap<u64, Pid>,
    /// The acknowledged counts of each key.
    acked: BTreeMap<String, HashSet<u64>>,
    /// For each key, the worker in the critical section, and how much of the log was read.
    inside: HashMap<String, (Option<u64>, u64)>,
    sections: u64,
}

/// The parent's handle of a worker.
struct WorkerProcess {
    child: Child,
    number: u64,
    slot: usize,
}

/// The parent's own number in the log of critical sections.
const PARENT: u64 = 0;

impl Storm {
    fn new() -> Self {
        let directory = in_memory();
        let paths = Paths::in_dir(directory.path());
        // Nothing that the parent writes has to be durable.
        let store = paths.open(Durability::Relaxed);
        Self {
            paths,
            _directory: directory,
            store,
            dice: Dice::new(now()),
            workers: PARENT,
            killed: HashMap::new(),
            processes: HashMap::new(),
            acked: BTreeMap::new(),
            inside: HashMap::new(),
            sections: 0,
        }
    }

    fn start_worker(&mut self, role: &'static str, slot: usize) -> WorkerProcess {
        self.workers += 1;
        let child = Child::start(role, &(&self.paths, self.workers, slot));
        self.processes.insert(self.workers, child.pid());
        WorkerProcess { child, number: self.workers, slot }
    }

    /// Kills a process at any moment.
    fn kill(&mut self, worker: WorkerProcess) {
        let WorkerProcess { child, number, .. } = worker;
        let process = child.pid().as_raw_pid();
        assert!(is_running(child.pid()), "worker {number} has failed, or another process killed it");
        self.killed.insert(number, now());
        child.kill();
        self.check_after_death(number, process);
    }

    /// Kills a new process at a system call, while the others continue. No other process increments its
    /// own key. Returns `false` where tracing is forbidden.
    fn kill_traced(&mut self) -> bool {
        let WorkerProcess { child, number, .. } = self.start_worker("work traced", OWN_KEYS);
        let process = child.pid().as_raw_pid();
        let Some((mut traced, _)) = Traced::attach(child) else { return false };
        let stops = usize::try_from(self.dice.below(MOST_STOPS)).unwrap();
        traced.advance(stops);
        self.killed.insert(number, now());
        traced.kill();
        self.check_after_death(number, process);
        true
    }

    /// Checks the invariants after a death.
    fn check_after_death(&mut self, number: u64, process: i32) {
        let last = self.collect_acks(number);
        let every = (self.killed.len() as u64).is_multiple_of(KILLS_PER_FULL_CHECK);
        let shared = (0..SHARED_KEYS).map(shared_key).filter(|_| every);
        let own = (0..=OWN_KEYS).map(own_key).filter(|_| every);
        for key in last.into_iter().chain(shared).chain(own) {
            if key.starts_with("own-") { self.check_own(&key) } else { self.check_shared(&key) }
        }
        self.sweep_after(number, process);
    }

    /// Sweeps until no file of the dead process is left. One sweep may not be enough: another process
    /// that checks at that moment whether the owner is alive keeps the owner file.
    fn sweep_after(&self, number: u64, process: i32) {
        let private = self.paths.records.join(".store");
        let prefix = format!("{process}-");
        let leftover = || {
            let names = ["staged", "owners"].map(|dir| names_in(&private.join(dir)));
            names.into_iter().flatten().find(|name| name.starts_with(&prefix))
        };
        for _ in 0..MOST_SWEEPS {
            self.store.sweep().unwrap_or_else(|error| panic!("after worker {number}: {error:?}"));
            if leftover().is_none() {
                return;
            }
        }
        panic!("left by worker {number}: {:?}", leftover());
    }

    /// Reads which counts were acknowledged to a dead process. Returns the key that it worked on last.
    fn collect_acks(&mut self, number: u64) -> Option<String> {
        let text = std::fs::read_to_string(self.paths.acks(number)).unwrap_or_default();
        let mut last = None;
        for line in text.lines().filter_map(|line| line.strip_suffix(END_MARK)) {
            let (key, count) = line.split_once(' ').unwrap();
            if count == "begin" {
                last = Some(key.to_owned());
                continue;
            }
            let counts = self.acked.entry(key.to_owned()).or_default();
            let count = count.parse().unwrap();
            assert!(
                counts.insert(count),
                "{key}: {count} was acknowledged twice, the second time to worker {number}"
            );
        }
        last
    }

    fn greatest(&self, key: &str) -> u64 {
        self.acked.get(key).and_then(|counts| counts.iter().max().copied()).unwrap_or(0)
    }

    fn check_own(&self, key: &str) {
        let record = self.store.read_with::<Count>(key, ReadOptions::new().timeout(ACQUIRE_TIMEOUT));
        let record = record.unwrap_or_else(|error| panic!("{key}: {error:?}"));
        let (count, acked) = (record.map_or(0, |record| record.result.open()), self.greatest(key));
        assert!(count >= acked, "{key}: {acked} was acknowledged, but the record has {count}");
    }

    fn check_shared(&mut self, key: &str) {
        let guard = self.store.lock(key, LockOptions::new().acquire_timeout(ACQUIRE_TIMEOUT));
        let guard = guard.unwrap_or_else(|error| panic!("{key} cannot be acquired: {error:?}"));
        let section = CriticalSection::enter(&self.paths, key, PARENT);
        let record = guard.read::<Count>().unwrap_or_else(|error| panic!("{key}: {error:?}"));
        let (count, acked) = (record.map_or(0, |record| record.result.open()), self.greatest(key));
        section.leave();
        guard.release().unwrap_or_else(|error| panic!("{key}: {error:?}"));
        assert!(count >= acked, "{key}: {acked} was acknowledged, but the record has {count}");
        self.check_sections(key);
    }

    /// Checks that nobody enters a critical section before the last one left it or was killed.
    fn check_sections(&mut self, key: &str) {
        let mut log = File::open(self.paths.sections(key)).unwrap();
        let (inside, read) = self.inside.entry(key.to_owned()).or_default();
        let mut text = String::new();
        log.seek(SeekFrom::Start(*read)).unwrap();
        log.read_to_string(&mut text).unwrap();
        for (before, line) in text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate() {
            *read += line.len() as u64;
            let Some(line) = line.trim_end().strip_suffix(END_MARK) else { continue };
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let number: u64 = words[1].parse().unwrap();
            let at: Moment = words[2].parse().unwrap();
            let alone = match (words[0], *inside) {
                ("enter", None) => true,
                ("enter", Some(last)) => self.killed.get(&last).is_some_and(|&killed| killed <= at),
                (_, last) => last == Some(number),
            };
            if !alone {
                let last = inside.and_then(|last| self.processes.get(&last));
                let runs = last.is_some_and(|process| is_running(*process));
                let before: Vec<_> = text.lines().take(before).collect();
                panic!(
                    "{key}: {line:?} while {inside:?} is inside, which still runs: {runs}; after {before:#?}"
                );
            }
            *inside = (words[0] == "enter").then_some(number);
            self.sections += u64::from(inside.is_some());
        }
    }

    /// Checks that each write was acknowledged, or was made by a process that was killed before the
    /// acknowledgement. Returns the number of acknowledged writes.
    fn check_totals(&self) -> usize {
        let mut unacknowledged = 0;
        for (key, acked) in &self.acked {
            let count = self.store.read::<Count>(key).unwrap().expect("a count").result.open();
            unacknowledged += count - acked.len() as u64;
        }
        assert!(
            unacknowledged <= self.killed.len() as u64,
            "{unacknowledged} unacknowledged counts, but {} deaths",
            self.killed.len()
        );
        self.acked.values().map(HashSet::len).sum()
    }
}

#[test]
fn killed_processes_lose_no_acknowledged_write_and_block_no_key() {
    let start = Instant::now();
    let mut the_storm = Storm::new();
    let mut workers: VecDeque<_> = (0..PROCESSES).map(|slot| the_storm.start_worker("work", slot)).collect();
    let mut can_trace = true;
    let mut traced = 0;
    for kill in 0..storm(KILLS) {
        if can_trace && kill % KILLS_PER_TRACED == 0 {
            can_trace = the_storm.kill_traced();
            traced += u64::from(can_trace);
            continue;
        }
        std::thread::sleep(the_storm.dice.time(millis(5)));
        // The process that has worked for the longest time.
        let victim = workers.pop_front().unwrap();
        let slot = victim.slot;
        the_storm.kill(victim);
        workers.push_back(the_storm.start_worker("work", slot));
    }
    for victim in workers {
        the_storm.kill(victim);
    }
    let writes = the_storm.check_totals();
    println!(
        "kill storm: {} kills, {traced} of them at a system call; {writes} writes acknowledged, 0 lost; \
         {} critical sections, 0 overlaps; 0 files left behind; {:.1} s",
        the_storm.killed.len(),
        the_storm.sections,
        start.elapsed().as_secs_f64()
    );
    // A storm in which nothing is done proves nothing.
    assert!(writes as u64 > KILLS, "only {writes} writes");
}
