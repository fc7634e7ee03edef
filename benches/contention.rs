//! Several processes on one store: how fast a lock changes hands, and how much they write together.
//! See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "what the library does is measured against this")]
#![allow(clippy::expect_used, reason = "a benchmark that meets an error has nothing to report")]

#[path = "paired/children.rs"]
mod children;
#[path = "paired/place.rs"]
mod place;
#[path = "paired/raw.rs"]
mod raw;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};
use rustix::time::ClockId;

use children::{Other, listen, say};
use place::Pace;
use raw::RawDir;

/// Keys of one writer.
const KEYS: usize = 64;
/// The record under the lock.
const VISITS: &str = "visits";

fn main() {
    if let Some((role, place)) = children::role() {
        let dir = Path::new(&place);
        return match role.as_str() {
            "waiter" => waiter(dir),
            "visitor" => visitor(dir),
            "Full" => writer(dir, Durability::Full),
            _ => writer(dir, Durability::Relaxed),
        };
    }
    let scratch = place::scratch();
    let pace = Pace::from_args();
    println!("{}\n", place::machine(scratch.path()));
    hand_over(&scratch.path().join("hand-over"), pace);
    for durability in [Durability::Full, Durability::Relaxed] {
        distinct_keys(&scratch.path().join(format!("{durability:?}")), durability, pace);
    }
    one_key(scratch.path(), pace);
}

fn open(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).expect("the store opens")
}

impl Other {
    fn tell(&mut self, line: &str) {
        // One write: a line that came in two would wake the other twice.
        self.to.write_all(format!("{line}\n").as_bytes()).expect("the other process listens");
    }

    /// Whether it sleeps in the kernel, as the kernel tells.
    fn sleeps(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it lives");
        stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
    }
}

// ---- How fast a lock changes hands.

/// The kernel's clock that all processes read alike, in nanoseconds.
fn monotonic() -> i64 {
    let now = rustix::time::clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

fn hand_over(dir: &Path, pace: Pace) {
    let store = open(dir, Durability::Relaxed);
    let file = File::create(dir.join("bare")).expect("the bare lock file is made");
    let mut other = Other::start("waiter", dir);
    let rounds = pace.pick(2_000, 4);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let guard = store.lock("baton", LockOptions::new()).expect("locked");
        ours.push(pass_on(&mut other, "lock", || guard.release().expect("released")));
        file.lock().expect("flocked");
        bare.push(pass_on(&mut other, "flock", || file.unlock().expect("let go")));
    }
    other.finish();
    println!("Hand-over, from the release called to the waiting process being the holder ({rounds} each):\n");
    println!("| lock | p50 | p99 |\n| --- | --: | --: |");
    for (name, mut times) in [("record-store", ours), ("bare `flock`", bare)] {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("| {name} | {} µs | {} µs |", at(50) / 1_000, at(99) / 1_000);
    }
    println!();
}

/// Lets the other process wait for what this one has, lets it have it, and says how long that took.
fn pass_on(other: &mut Other, what: &str, release: impl FnOnce()) -> i64 {
    other.tell(what);
    assert_eq!(other.hear(), "waiting");
    // Having said so it runs on until it sleeps in its wait.
    while !other.sleeps() {
        std::thread::yield_now();
    }
    let released = monotonic();
    release();
    let owned: i64 = other.hear().parse().expect("a time");
    owned - released
}

fn waiter(dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let file = File::open(dir.join("bare")).expect("the bare lock file is there");
    while let Some(what) = listen() {
        say("waiting");
        let owned = if what == "lock" {
            let guard = store.lock("baton", LockOptions::new()).expect("locked");
            let owned = monotonic();
            guard.release().expect("released");
            owned
        } else {
            file.lock().expect("flocked");
            let owned = monotonic();
            file.unlock().expect("let go");
            owned
        };
        say(&owned.to_string());
    }
}

// ---- How much several processes write together.

fn distinct_keys(dir: &Path, durability: Durability, pace: Pace) {
    open(dir, durability);
    fs::create_dir_all(dir.join("raw")).expect("the floor's directory is made");
    let rounds = pace.pick(9, 1);
    let window = pace.pick("250", "20");
    println!("Writers on keys of their own, {durability:?}: records a second of all together, in {rounds}");
    println!(
        "windows of {window} ms in turn with the bare system calls, and the median of the paired shares:\n"
    );
    println!("| processes | record-store | system calls | share |\n| --: | --: | --: | --: |");
    for count in pace.pick(&[1, 2, 4, 8][..], &[2]) {
        let mut others: Vec<_> = (0..*count).map(|_| Other::start(&format!("{durability:?}"), dir)).collect();
        all_ready(&mut others);
        let (mut ours, mut bare, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=rounds {
            let store = window_of(&mut others, &format!("store {window}"));
            let raw = window_of(&mut others, &format!("raw {window}"));
            // In the first round the files are new.
            if round > 0 {
                ours.push(store);
                bare.push(raw);
                shares.push(store / raw);
            }
        }
        others.into_iter().for_each(Other::finish);
        println!("| {count} | {:.0} | {:.0} | {:.2} |", median(ours), median(bare), median(shares));
    }
    println!();
}

/// Waits until all have opened the store.
fn all_ready(others: &mut [Other]) {
    for other in others {
        assert_eq!(other.hear(), "ready");
    }
}

/// One window in which all write: what they did in a second, together.
fn window_of(others: &mut [Other], order: &str) -> f64 {
    for other in &mut *others {
        other.tell(order);
    }
    others.iter_mut().map(|other| other.hear().parse::<f64>().expect("a rate")).sum()
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
    // As long as the record is, give or take the length of its key.
    let text = [value.as_bytes(), &[b' '; 50]].concat();
    say("ready");
    while let Some(order) = listen() {
        let (what, window) = order.split_once(' ').expect("an order");
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
        say(&(f64::from(done) / start.elapsed().as_secs_f64()).to_string());
    }
}

// ---- How much they do on one record, each under the lock.

fn one_key(scratch: &Path, pace: Pace) {
    let window = pace.pick("2000", "20");
    println!("Lock, read, write relaxed, release on one key, for {window} ms:\n");
    println!("| processes | ops/s | most / fewest | lost updates |\n| --: | --: | --: | --: |");
    for count in pace.pick(&[1, 2, 4, 8][..], &[2]) {
        let dir = scratch.join(format!("one-key-{count}"));
        let store = open(&dir, Durability::Relaxed);
        let mut others: Vec<_> = (0..*count).map(|_| Other::start("visitor", &dir)).collect();
        all_ready(&mut others);
        let start = Instant::now();
        for other in &mut others {
            other.tell(window);
        }
        let visits: Vec<u64> =
            others.iter_mut().map(|other| other.hear().parse().expect("a count")).collect();
        let seconds = start.elapsed().as_secs_f64();
        others.into_iter().for_each(Other::finish);
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
    say("ready");
    while let Some(window) = listen() {
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
        say(&done.to_string());
    }
}
