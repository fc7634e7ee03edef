//! Processes at work are killed, one after another, at any moment and between any two system calls.
//! After each death the others go on as if the dead had never been: what it was told is done is
//! done, what it held is free, what it left behind is swept away, and nobody ever shares a lock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Durability, FileSystemRecordStore, LockOptions, RecordStoreExt};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::support::children::{Child, Role, Stage, is_running};
use crate::support::dice::Dice;
use crate::support::trace::{Traced, perform};
use crate::support::{Moment, in_memory, millis, names_in, now, open_with, storm};

pub(crate) const ROLES: &[Role] = &[("work", work), ("work traced", work_traced)];

const PROCESSES: usize = 8;

/// Counted up by all processes, each time under the lock.
const SHARED_KEYS: usize = 8;
/// Counted up by one process at a time, without a lock.
const OWN_KEYS: usize = PROCESSES;

const KILLS: u64 = 500;

/// One death in so many comes at a system call.
const KILLS_PER_TRACED: u64 = 8;

/// After one death in so many, every key is looked at, and not only the one at which it happened.
const KILLS_PER_ROUND: u64 = 32;

/// More than the stops of one piece of work.
const MOST_STOPS: u64 = 500;

/// So many sweeps at most until nothing is left of a dead process.
const MOST_SWEEPS: u32 = 100;

/// Within this a key has to be had from among so many: a wedged one never would.
const AT_ONCE: Duration = Duration::from_secs(20);

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

/// Where everything is.
#[derive(Clone, Serialize, Deserialize)]
struct Place {
    records: PathBuf,
    notes: PathBuf,
}

impl Place {
    fn in_dir(dir: &Path) -> Self {
        Self { records: dir.join("records"), notes: dir.to_owned() }
    }

    fn open(&self, durability: Durability) -> FileSystemRecordStore {
        open_with(&self.records, durability)
    }

    /// What one process is about to do, and what it was told is done.
    fn acks(&self, worker: u64) -> PathBuf {
        self.notes.join(format!("acks-{worker}"))
    }

    /// Who comes and goes at one key.
    fn visits(&self, key: &str) -> PathBuf {
        self.notes.join(format!("visits-{key}"))
    }
}

/// Appends a line, by one write straight to the kernel: it outlives a kill. A kill within the write
/// may leave a part of it, which has no full stop, and is on a line of its own whatever comes next.
fn note(path: &Path, line: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("\n{line}{FULL_STOP}\n").as_bytes()).unwrap();
}

const FULL_STOP: &str = " .";

/// A process of the storm.
struct Worker {
    place: Place,
    /// One of its kind: no two processes of a run have the same.
    number: u64,
    slot: usize,
    durable: FileSystemRecordStore,
    relaxed: FileSystemRecordStore,
    dice: Dice,
}

impl Worker {
    fn new(stage: &Stage) -> Self {
        let (place, number, slot): (Place, u64, usize) = stage.argument();
        let (durable, relaxed) = (place.open(Durability::Full), place.open(Durability::Relaxed));
        Self { place, number, slot, durable, relaxed, dice: Dice::new(number ^ now()) }
    }

    fn work(&mut self) {
        if self.dice.once_in(4) { self.count_own() } else { self.count_shared() }
    }

    fn store(&mut self) -> &FileSystemRecordStore {
        if self.dice.once_in(6) { &self.durable } else { &self.relaxed }
    }

    fn count_own(&mut self) {
        let key = own_key(self.slot);
        note(&self.place.acks(self.number), &format!("{key} begin"));
        let store = self.store();
        let next = 1 + store.read::<Count>(&key).unwrap().map_or(0, |record| record.result.open());
        store.write(&key, &Count::new(next)).unwrap();
        note(&self.place.acks(self.number), &format!("{key} {next}"));
    }

    fn count_shared(&mut self) {
        let key = shared_key(self.dice.index(SHARED_KEYS));
        note(&self.place.acks(self.number), &format!("{key} begin"));
        let store = self.store().clone();
        let guard = store.lock(&key, LockOptions::new()).unwrap();
        let visit = Visit::enter(&self.place, &key, self.number);
        let next = 1 + guard.read::<Count>().unwrap().map_or(0, |record| record.result.open());
        guard.write(&Count::new(next)).unwrap();
        note(&self.place.acks(self.number), &format!("{key} {next}"));
        visit.leave();
        guard.release().unwrap();
    }
}

/// The time under a lock, for the parent to see.
struct Visit {
    path: PathBuf,
    number: u64,
}

impl Visit {
    fn enter(place: &Place, key: &str, number: u64) -> Self {
        let path = place.visits(key);
        note(&path, &format!("enter {number} {}", now()));
        Self { path, number }
    }

    fn leave(self) {
        note(&self.path, &format!("leave {} {}", self.number, now()));
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
    stage.hear();
}

/// What the parent knows.
struct Storm {
    place: Place,
    _directory: TempDir,
    store: FileSystemRecordStore,
    dice: Dice,
    workers: u64,
    killed: HashMap<u64, Moment>,
    processes: HashMap<u64, Pid>,
    /// Of each key, the counts that some process was told are written.
    acked: BTreeMap<String, HashSet<u64>>,
    /// Of each key, who is inside, and how much of the notes was read.
    inside: HashMap<String, (Option<u64>, u64)>,
    visits: u64,
}

/// A worker, as the parent knows it.
struct Hired {
    child: Child,
    number: u64,
    slot: usize,
}

/// The parent's own number as a visitor.
const PARENT: u64 = 0;

impl Storm {
    fn new() -> Self {
        let directory = in_memory();
        let place = Place::in_dir(directory.path());
        // The parent writes nothing that has to last.
        let store = place.open(Durability::Relaxed);
        Self {
            place,
            _directory: directory,
            store,
            dice: Dice::new(now()),
            workers: PARENT,
            killed: HashMap::new(),
            processes: HashMap::new(),
            acked: BTreeMap::new(),
            inside: HashMap::new(),
            visits: 0,
        }
    }

    fn hire(&mut self, role: &'static str, slot: usize) -> Hired {
        self.workers += 1;
        let child = Child::start(role, &(&self.place, self.workers, slot));
        self.processes.insert(self.workers, child.pid());
        Hired { child, number: self.workers, slot }
    }

    /// Kills a process that may be anywhere.
    fn kill(&mut self, hired: Hired) {
        let Hired { child, number, .. } = hired;
        let process = child.pid().as_raw_pid();
        assert!(is_running(child.pid()), "worker {number} has failed, or was killed by a stranger");
        self.killed.insert(number, now());
        child.kill();
        self.look_after(number, process);
    }

    /// Kills a process at a system call, while the others go on; nobody else has its own key. `false`
    /// where tracing is forbidden.
    fn kill_traced(&mut self) -> bool {
        let Hired { child, number, .. } = self.hire("work traced", OWN_KEYS);
        let process = child.pid().as_raw_pid();
        let Some((mut traced, _)) = Traced::attach(child) else { return false };
        let stops = usize::try_from(self.dice.below(MOST_STOPS)).unwrap();
        traced.advance(stops);
        self.killed.insert(number, now());
        traced.kill();
        self.look_after(number, process);
        true
    }

    /// What has to be true after a death.
    fn look_after(&mut self, number: u64, process: i32) {
        let last = self.hear_acks(number);
        let every = (self.killed.len() as u64).is_multiple_of(KILLS_PER_ROUND);
        let shared = (0..SHARED_KEYS).map(shared_key).filter(|_| every);
        let own = (0..=OWN_KEYS).map(own_key).filter(|_| every);
        for key in last.into_iter().chain(shared).chain(own) {
            if key.starts_with("own-") { self.look_at_own(&key) } else { self.look_at_shared(&key) }
        }
        self.sweep_after(number, process);
    }

    /// Nothing is left of the dead. Somebody may be asking for its life at the very moment of a sweep,
    /// and so keep its owner file for that moment.
    fn sweep_after(&self, number: u64, process: i32) {
        let private = self.place.records.join(".store");
        let mine = format!("{process}-");
        let left = || {
            let names = ["tmp", "owners"].map(|dir| names_in(&private.join(dir)));
            names.into_iter().flatten().find(|name| name.starts_with(&mine))
        };
        for _ in 0..MOST_SWEEPS {
            self.store.sweep().unwrap_or_else(|error| panic!("after worker {number}: {error:?}"));
            if left().is_none() {
                return;
            }
        }
        panic!("left by worker {number}: {:?}", left());
    }

    /// The counts that a dead process was told are written. Returns the key at which it died.
    fn hear_acks(&mut self, number: u64) -> Option<String> {
        let text = std::fs::read_to_string(self.place.acks(number)).unwrap_or_default();
        let mut last = None;
        for line in text.lines().filter_map(|line| line.strip_suffix(FULL_STOP)) {
            let (key, count) = line.split_once(' ').unwrap();
            if count == "begin" {
                last = Some(key.to_owned());
                continue;
            }
            let counts = self.acked.entry(key.to_owned()).or_default();
            let count = count.parse().unwrap();
            assert!(counts.insert(count), "{key}: {count} was counted twice, also by worker {number}");
        }
        last
    }

    fn greatest(&self, key: &str) -> u64 {
        self.acked.get(key).and_then(|counts| counts.iter().max().copied()).unwrap_or(0)
    }

    fn look_at_own(&self, key: &str) {
        let record = self.store.try_read::<Count>(key, AT_ONCE);
        let record = record.unwrap_or_else(|error| panic!("{key}: {error:?}"));
        let (count, acked) = (record.map_or(0, |record| record.result.open()), self.greatest(key));
        assert!(count >= acked, "{key}: {acked} was acknowledged, but {count} is there");
    }

    fn look_at_shared(&mut self, key: &str) {
        let guard = self.store.lock(key, LockOptions::new().acquire_timeout(AT_ONCE));
        let guard = guard.unwrap_or_else(|error| panic!("{key} is wedged: {error:?}"));
        let visit = Visit::enter(&self.place, key, PARENT);
        let record = guard.read::<Count>().unwrap_or_else(|error| panic!("{key}: {error:?}"));
        let (count, acked) = (record.map_or(0, |record| record.result.open()), self.greatest(key));
        visit.leave();
        guard.release().unwrap_or_else(|error| panic!("{key}: {error:?}"));
        assert!(count >= acked, "{key}: {acked} was acknowledged, but {count} is there");
        self.follow_visits(key);
    }

    /// Nobody comes in before the last one went, or was killed.
    fn follow_visits(&mut self, key: &str) {
        let mut notes = File::open(self.place.visits(key)).unwrap();
        let (inside, read) = self.inside.entry(key.to_owned()).or_default();
        let mut text = String::new();
        notes.seek(SeekFrom::Start(*read)).unwrap();
        notes.read_to_string(&mut text).unwrap();
        for (before, line) in text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate() {
            *read += line.len() as u64;
            let Some(line) = line.trim_end().strip_suffix(FULL_STOP) else { continue };
            let visit: Vec<&str> = line.split_ascii_whitespace().collect();
            let number: u64 = visit[1].parse().unwrap();
            let at: Moment = visit[2].parse().unwrap();
            let alone = match (visit[0], *inside) {
                ("enter", None) => true,
                ("enter", Some(last)) => self.killed.get(&last).is_some_and(|&killed| killed <= at),
                (_, last) => last == Some(number),
            };
            if !alone {
                let last = inside.and_then(|last| self.processes.get(&last));
                let runs = last.is_some_and(|process| is_running(*process));
                let before: Vec<_> = text.lines().take(before).collect();
                panic!("{key}: {line:?} beside {inside:?}, which still runs: {runs}; after {before:#?}");
            }
            *inside = (visit[0] == "enter").then_some(number);
            self.visits += u64::from(inside.is_some());
        }
    }

    /// Nothing was written but what somebody was told, or what somebody who was told nothing had
    /// begun. Returns how many writes were told.
    fn look_at_the_end(&self) -> usize {
        let mut untold = 0;
        for (key, acked) in &self.acked {
            let count = self.store.read::<Count>(key).unwrap().expect("a count").result.open();
            untold += count - acked.len() as u64;
        }
        assert!(untold <= self.killed.len() as u64, "{untold} counts, but {} deaths", self.killed.len());
        self.acked.values().map(HashSet::len).sum()
    }
}

#[test]
fn kill_storm() {
    let start = Instant::now();
    let mut the_storm = Storm::new();
    let mut hired: VecDeque<_> = (0..PROCESSES).map(|slot| the_storm.hire("work", slot)).collect();
    let mut can_trace = true;
    let mut traced = 0;
    for kill in 0..storm(KILLS) {
        if can_trace && kill % KILLS_PER_TRACED == 0 {
            can_trace = the_storm.kill_traced();
            traced += u64::from(can_trace);
            continue;
        }
        std::thread::sleep(the_storm.dice.time(millis(5)));
        // The one that has been at it for the longest.
        let victim = hired.pop_front().unwrap();
        let slot = victim.slot;
        the_storm.kill(victim);
        hired.push_back(the_storm.hire("work", slot));
    }
    for victim in hired {
        the_storm.kill(victim);
    }
    let writes = the_storm.look_at_the_end();
    println!(
        "kill storm: {} kills, {traced} of them at a system call; {writes} writes acknowledged, 0 lost; \
         {} visits, 0 overlaps; 0 files left behind; {:.1} s",
        the_storm.killed.len(),
        the_storm.visits,
        start.elapsed().as_secs_f64()
    );
    // A storm in which nothing is done proves nothing.
    assert!(writes as u64 > KILLS, "only {writes} writes");
}
