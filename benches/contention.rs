//! Several processes on one store: how long the hand-over of a lock takes, how much they write in total, and
//! how evenly.
//! See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "the store is compared with these calls")]
#![allow(clippy::expect_used, reason = "a benchmark stops at the first error")]

#[path = "common/children.rs"]
mod children;
#[path = "common/hand_over.rs"]
mod hand_over;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/setup.rs"]
mod setup;
#[path = "common/windows.rs"]
mod windows;

use std::env;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};

use children::ChildProcess;
use hand_over::monotonic;
use raw::RawDir;
use setup::RunMode;
use windows::{Group, Plan, alternate, serve};

/// The number of keys of one writer.
const KEYS: usize = 64;
/// The key of the record that is updated under its lock.
const VISITS: &str = "visits";

/// The numbers of processes that are compared.
const COUNTS: &[usize] = &[1, 2, 4, 8];
const DURABILITIES: [Durability; 2] = [Durability::Full, Durability::Relaxed];

fn main() {
    if let Some((role, dir)) = children::role() {
        let dir = Path::new(&dir);
        let (what, durability) = role.split_once(' ').unwrap_or((&role, "Relaxed"));
        let durability = if durability == "Full" { Durability::Full } else { Durability::Relaxed };
        return match what {
            "waiter" => waiter(dir),
            "visitor" => visitor(dir, durability),
            "writer" => writer(dir, durability),
            _ => raw_writer(dir, durability),
        };
    }
    let scratch = setup::scratch();
    let mode = RunMode::from_args();
    // The first argument that is not a flag selects the parts whose name contains it.
    let filter = env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let selected = |part: &str| part.contains(&filter);
    println!("{}\n", setup::machine(scratch.path()));
    if selected("hand-over") {
        hand_over(&scratch.path().join("hand-over"), mode);
    }
    for durability in DURABILITIES {
        let dir = scratch.path().join(format!("{durability:?}"));
        if selected("separate keys") {
            separate_keys(&dir.join("separate-keys"), durability, mode);
        }
        if selected("one key") {
            one_key(&dir.join("one-key"), durability, mode);
        }
    }
}

fn open(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).expect("the store opens")
}

// ---- The hand-over of a lock.

fn hand_over(dir: &Path, mode: RunMode) {
    let store = open(dir, Durability::Relaxed);
    let file = File::create(dir.join("bare")).expect("the bare lock file is created");
    let mut child = ChildProcess::start("waiter", dir);
    let rounds = mode.choose(2_000, 4);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let guard = store.lock("baton", LockOptions::new()).expect("locked");
        let release = || guard.release().expect("released");
        ours.push(hand_over::measure(&mut child, "lock", || true, release));
        file.lock().expect("flocked");
        bare.push(hand_over::measure(&mut child, "flock", || true, || file.unlock().expect("unlocked")));
    }
    child.finish();
    println!(
        "Hand-over, from the call of the release until the waiting process is the holder ({rounds} each):\n"
    );
    println!("| lock | p50 | p99 |\n| --- | --: | --: |");
    for (name, mut times) in [("record-store", ours), ("bare `flock`", bare)] {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("| {name} | {} µs | {} µs |", at(50).as_micros(), at(99).as_micros());
    }
    println!();
}

fn waiter(dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let file = File::open(dir.join("bare")).expect("the bare lock file exists");
    hand_over::wait(|what| {
        if what == "lock" {
            let guard = store.lock("baton", LockOptions::new()).expect("locked");
            let owned = monotonic();
            guard.release().expect("released");
            owned
        } else {
            file.lock().expect("flocked");
            let owned = monotonic();
            file.unlock().expect("unlocked");
            owned
        }
    });
}

// ---- Processes that write to keys of their own.

fn separate_keys(dir: &Path, durability: Durability, mode: RunMode) {
    let plan = Plan::new(mode, Duration::from_millis(250), 15);
    println!("Writers with separate keys, {durability:?}: medians of {} windows of", plan.rounds);
    println!("{} ms that alternate with the bare system calls:\n", plan.window.as_millis());
    println!(
        "| processes | records/s | most / fewest | target | system calls | most / fewest | ratio | target |"
    );
    println!("| --: | --: | --: | --: | --: | --: | --: | --: |");
    fs::create_dir_all(dir.join("raw")).expect("the floor's directory is created");
    for &count in mode.choose(COUNTS, &[2]) {
        let mut groups =
            ["writer", "raw"].map(|what| Group::start(&format!("{what} {durability:?}"), dir, count));
        alternate(&mut groups, plan, dir);
        let [ours, raw] = groups;
        let durable = durability == Durability::Full;
        println!(
            "| {count} | {:.0} | {:.2} | {} | {:.0} | {:.2} | **{:.2}** | {} |",
            ours.rate(),
            ours.spread(),
            if durable && count > 1 { "1.50" } else { "-" },
            raw.rate(),
            raw.spread(),
            ours.ratio_to(&raw),
            if durable && count >= 4 { "4.00" } else { "-" },
        );
    }
    println!();
}

fn writer(dir: &Path, durability: Durability) {
    let store = open(&dir.join("store"), durability);
    let keys = own_keys();
    let value = "x".repeat(300);
    serve(|run| store.write(&keys[run % KEYS], &value).expect("written"));
}

fn raw_writer(dir: &Path, durability: Durability) {
    let raw = RawDir::open(&dir.join("raw"));
    let files: Vec<String> = own_keys().iter().map(|key| format!("{key}.json")).collect();
    // About as long as the record, whose length depends on its key.
    let text = [b'x'; 350];
    serve(|run| raw.publish(&files[run % KEYS], &text, durability));
}

fn own_keys() -> Vec<String> {
    let process = std::process::id();
    (0..KEYS).map(|n| format!("writer-{process}-{n}")).collect()
}

// ---- Processes that update one record under its lock.

fn one_key(dir: &Path, durability: Durability, mode: RunMode) {
    let plan = Plan::new(mode, Duration::from_millis(500), 15);
    println!("Lock, read, write, release on one key, {durability:?}: medians of {} windows of", plan.rounds);
    println!("{} ms, in which the numbers of processes take turns:\n", plan.window.as_millis());
    println!(
        "| processes | updates/s | target | of the best | target | most / fewest | target | lost updates |"
    );
    println!("| --: | --: | --: | --: | --: | --: | --: | --: |");
    let counts = mode.choose(COUNTS, &[1, 2]);
    let store_of = |count: &usize| dir.join(count.to_string());
    let mut groups: Vec<_> = counts
        .iter()
        .map(|count| Group::start(&format!("visitor {durability:?}"), &store_of(count), *count))
        .collect();
    alternate(&mut groups, plan, dir);
    let best = groups.iter().map(Group::rate).fold(0.0, f64::max);
    for (count, group) in counts.iter().zip(groups) {
        let stored = open(&store_of(count), durability).read::<u64>(VISITS).expect("read");
        let lost = group.total.abs_diff(stored.map_or(0, |record| record.result));
        let target = |needed, target| if durability == Durability::Full && needed { target } else { "-" };
        println!(
            "| {count} | **{:.0}** | {} | **{:.2}** | {} | **{:.2}** | {} | {lost} |",
            group.rate(),
            target(true, "1900"),
            group.rate() / best,
            target(*count == 8, "0.75"),
            group.spread(),
            target(*count > 1, "1.50"),
        );
        assert_eq!(lost, 0, "updates were lost");
    }
    println!();
}

fn visitor(dir: &Path, durability: Durability) {
    let store = open(dir, durability);
    serve(|_| {
        let guard = store.lock(VISITS, LockOptions::new()).expect("locked");
        let visits = guard.read::<u64>().expect("read").map_or(0, |record| record.result);
        guard.write(&(visits + 1)).expect("written");
        guard.release().expect("released");
    });
}
