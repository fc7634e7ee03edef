//! Several processes on one store: how long the hand-over of a lock takes, and how much they write in
//! total.
//! See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "the store is compared with these calls")]
#![allow(clippy::expect_used, reason = "a benchmark stops at the first error")]

#[path = "common/children.rs"]
mod children;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/setup.rs"]
mod setup;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};
use rustix::time::ClockId;

use children::{ChildProcess, receive, send};
use raw::RawDir;
use setup::RunMode;

/// The number of keys of one writer.
const KEYS: usize = 64;
/// The key of the record that is updated under its lock.
const VISITS: &str = "visits";

fn main() {
    if let Some((role, dir)) = children::role() {
        let dir = Path::new(&dir);
        return match role.as_str() {
            "waiter" => waiter(dir),
            "visitor" => visitor(dir),
            "Full" => writer(dir, Durability::Full),
            _ => writer(dir, Durability::Relaxed),
        };
    }
    let scratch = setup::scratch();
    let mode = RunMode::from_args();
    println!("{}\n", setup::machine(scratch.path()));
    hand_over(&scratch.path().join("hand-over"), mode);
    for durability in [Durability::Full, Durability::Relaxed] {
        distinct_keys(&scratch.path().join(format!("{durability:?}")), durability, mode);
    }
    one_key(scratch.path(), mode);
}

fn open(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).expect("the store opens")
}

impl ChildProcess {
    fn send(&mut self, line: &str) {
        // A single write: two writes would wake the child twice.
        self.input.write_all(format!("{line}\n").as_bytes()).expect("the child process reads");
    }

    /// Whether the child sleeps in the kernel, according to `/proc`.
    fn is_asleep(&self) -> bool {
        let stat =
            fs::read_to_string(format!("/proc/{}/stat", self.process.id())).expect("the child process lives");
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
    }
}

// ---- The hand-over of a lock.

/// Nanoseconds of `CLOCK_MONOTONIC`, which is the same clock in all processes.
fn monotonic() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn hand_over(dir: &Path, mode: RunMode) {
    let store = open(dir, Durability::Relaxed);
    let file = File::create(dir.join("bare")).expect("the bare lock file is created");
    let mut child = ChildProcess::start("waiter", dir);
    let rounds = mode.choose(2_000, 4);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let guard = store.lock("baton", LockOptions::new()).expect("locked");
        ours.push(measure_hand_over(&mut child, "lock", || guard.release().expect("released")));
        file.lock().expect("flocked");
        bare.push(measure_hand_over(&mut child, "flock", || file.unlock().expect("unlocked")));
    }
    child.finish();
    println!(
        "Hand-over, from the call of the release until the waiting process is the holder ({rounds} each):\n"
    );
    println!("| lock | p50 | p99 |\n| --- | --: | --: |");
    for (name, mut times) in [("record-store", ours), ("bare `flock`", bare)] {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("| {name} | {} µs | {} µs |", at(50) / 1_000, at(99) / 1_000);
    }
    println!();
}

/// Makes the child wait for the lock that this process holds, and releases it. Returns the time until
/// the child is the holder.
fn measure_hand_over(child: &mut ChildProcess, what: &str, release: impl FnOnce()) -> i64 {
    child.send(what);
    assert_eq!(child.receive(), "waiting");
    // The child sends this before it waits.
    while !child.is_asleep() {
        std::thread::yield_now();
    }
    let released = monotonic();
    release();
    let owned: i64 = child.receive().parse().expect("a time");
    owned - released
}

fn waiter(dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let file = File::open(dir.join("bare")).expect("the bare lock file exists");
    while let Some(what) = receive() {
        send("waiting");
        let owned = if what == "lock" {
            let guard = store.lock("baton", LockOptions::new()).expect("locked");
            let owned = monotonic();
            guard.release().expect("released");
            owned
        } else {
            file.lock().expect("flocked");
            let owned = monotonic();
            file.unlock().expect("unlocked");
            owned
        };
        send(&owned.to_string());
    }
}

// ---- The total writes of several processes.

fn distinct_keys(dir: &Path, durability: Durability, mode: RunMode) {
    open(dir, durability);
    fs::create_dir_all(dir.join("raw")).expect("the floor's directory is created");
    let rounds = mode.choose(9, 1);
    let window = mode.choose("250", "20");
    println!("Writers with separate keys, {durability:?}: total records per second, in {rounds} windows");
    println!(
        "of {window} ms that alternate with the bare system calls, and the median of the paired ratios:\n"
    );
    println!("| processes | record-store | system calls | ratio |\n| --: | --: | --: | --: |");
    for count in mode.choose(&[1, 2, 4, 8][..], &[2]) {
        let mut writers: Vec<_> =
            (0..*count).map(|_| ChildProcess::start(&format!("{durability:?}"), dir)).collect();
        wait_until_ready(&mut writers);
        let (mut ours, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            let store = run_window(&mut writers, &format!("store {window}"));
            let raw = run_window(&mut writers, &format!("raw {window}"));
            // The first round is not counted, because it creates the files.
            if round > 0 {
                ours.push(store);
                bare.push(raw);
                ratios.push(store / raw);
            }
        }
        writers.into_iter().for_each(ChildProcess::finish);
        println!("| {count} | {:.0} | {:.0} | {:.2} |", median(ours), median(bare), median(ratios));
    }
    println!();
}

/// Waits until all children have opened the store.
fn wait_until_ready(children: &mut [ChildProcess]) {
    for child in children {
        assert_eq!(child.receive(), "ready");
    }
}

/// Runs one window in which all children write. Returns the total number of writes per second.
fn run_window(writers: &mut [ChildProcess], command: &str) -> f64 {
    for writer in &mut *writers {
        writer.send(command);
    }
    writers.iter_mut().map(|writer| writer.receive().parse::<f64>().expect("a rate")).sum()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn writer(dir: &Path, durability: Durability) {
    let store = open(dir, durability);
    let raw = RawDir::open(&dir.join("raw"));
    let process = std::process::id();
    let keys: Vec<String> = (0..KEYS).map(|n| format!("writer-{process}-{n}")).collect();
    let files: Vec<String> = keys.iter().map(|key| format!("{key}.json")).collect();
    let value = "x".repeat(300);
    // About as long as the record, whose length depends on its key.
    let text = [value.as_bytes(), &[b' '; 50]].concat();
    send("ready");
    while let Some(command) = receive() {
        let (what, window) = command.split_once(' ').expect("a command");
        let window = Duration::from_millis(window.parse().expect("a time"));
        let start = Instant::now();
        let mut done = 0_u32;
        while start.elapsed() < window {
            let at = done as usize % KEYS;
            match what {
                "store" => store.write(&keys[at], &value).expect("written"),
                _ => raw.publish(&files[at], &text, durability),
            }
            done += 1;
        }
        send(&(f64::from(done) / start.elapsed().as_secs_f64()).to_string());
    }
}

// ---- Several processes that update one record under its lock.

fn one_key(scratch: &Path, mode: RunMode) {
    let window = mode.choose("2000", "20");
    println!("Lock, read, write relaxed, release on one key, for {window} ms:\n");
    println!("| processes | ops/s | most / fewest | lost updates |\n| --: | --: | --: | --: |");
    for count in mode.choose(&[1, 2, 4, 8][..], &[2]) {
        let dir = scratch.join(format!("one-key-{count}"));
        let store = open(&dir, Durability::Relaxed);
        let mut visitors: Vec<_> = (0..*count).map(|_| ChildProcess::start("visitor", &dir)).collect();
        wait_until_ready(&mut visitors);
        let start = Instant::now();
        for visitor in &mut visitors {
            visitor.send(window);
        }
        let visits: Vec<u64> =
            visitors.iter_mut().map(|visitor| visitor.receive().parse().expect("a count")).collect();
        let seconds = start.elapsed().as_secs_f64();
        visitors.into_iter().for_each(ChildProcess::finish);
        let total: u64 = visits.iter().sum();
        let stored = store.read::<u64>(VISITS).expect("read").map_or(0, |record| record.result);
        let (most, fewest) = (visits.iter().max().copied(), visits.iter().min().copied());
        #[expect(clippy::cast_precision_loss, reason = "counts of a few seconds")]
        let (rate, spread) =
            (total as f64 / seconds, most.unwrap_or(0) as f64 / fewest.unwrap_or(0).max(1) as f64);
        println!("| {count} | {rate:.0} | {spread:.1} | {} |", total.abs_diff(stored));
        assert_eq!(total, stored, "updates were lost");
    }
}

fn visitor(dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    send("ready");
    while let Some(window) = receive() {
        let window = Duration::from_millis(window.parse().expect("a time"));
        let start = Instant::now();
        let mut done = 0_u64;
        while start.elapsed() < window {
            let guard = store.lock(VISITS, LockOptions::new()).expect("locked");
            let visits = guard.read::<u64>().expect("read").map_or(0, |record| record.result);
            guard.write(&(visits + 1)).expect("written");
            guard.release().expect("released");
            done += 1;
        }
        send(&done.to_string());
    }
}
