//! What depends on the number of records in one directory, or should not: each operation on many
//! records beside the same one on a thousand. See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "what the library does is measured against this")]
#![allow(clippy::expect_used, reason = "a benchmark that meets an error has nothing to report")]

#[path = "paired/measure.rs"]
mod measure;
#[path = "paired/place.rs"]
mod place;
#[path = "paired/raw.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod raw;

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};
use rustix::fs::{AtFlags, RenameFlags};

use measure::{Plan, Table};
use place::Pace;
use raw::RawDir;

/// What all other numbers of records are compared with.
const FEW: usize = 1_000;
/// The most records, unless `RECORD_STORE_BENCH_RECORDS` says how many.
const MOST: usize = 100_000;
/// No operation on one record may take longer than this times as long for being among many.
const TARGET: f64 = 2.0;
/// Pairs of relaxed writes.
const WRITES: usize = 4_000;
/// Keys of a listing between two looks at the memory.
const STRIDE: usize = 1_000;

fn main() {
    let scratch = place::scratch();
    let mut table = Table::from_args();
    let few = Filled::with(scratch.path().join("few"), table.pace().pick(FEW, 50));
    let mut many = Filled::with(scratch.path().join("many"), 1);
    let mut listings = vec![Listed::of(&few)];
    for count in sizes(table.pace()) {
        many.grow(count);
        compare(&mut table, &few, &many);
        listings.push(Listed::of(&many));
    }
    println!("{}\n\n{table}", place::machine(scratch.path()));
    println!("Memory while all keys are listed:\n");
    println!("| records | a key | resident before | most while listing |\n| --: | --: | --: | --: |");
    for Listed { records, each, before, most } in listings {
        println!("| {} | {} ns | {before} KiB | +{} KiB |", grouped(records), each.as_nanos(), most - before);
    }
}

/// The numbers of records to try: tenfold from step to step.
fn sizes(pace: Pace) -> Vec<usize> {
    let most = std::env::var("RECORD_STORE_BENCH_RECORDS").map_or(MOST, |most| {
        most.replace('_', "").parse().expect("RECORD_STORE_BENCH_RECORDS is a number of records")
    });
    let full = std::iter::successors(Some(FEW * 10), |count| Some(count * 10));
    pace.pick(full.take_while(|count| *count <= most).collect(), vec![100])
}

/// A store that has some number of records.
struct Filled {
    dir: PathBuf,
    relaxed: FileSystemRecordStore,
    durable: FileSystemRecordStore,
    raw: RawDir,
    count: usize,
    value: String,
    /// The record file of the first key.
    text: String,
}

fn open(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).expect("the store opens")
}

impl Filled {
    fn with(dir: PathBuf, count: usize) -> Self {
        let (relaxed, durable) = (open(&dir, Durability::Relaxed), open(&dir, Durability::Full));
        // With its key and its checksum, a record of about 300 bytes.
        let value = "x".repeat(230);
        relaxed.write(key_of(0), &value).expect("written");
        let text = fs::read_to_string(dir.join(format!("{}.json", key_of(0)))).expect("the record is a file");
        let raw = RawDir::open(&dir);
        let mut filled = Self { dir, relaxed, durable, raw, count: 1, value, text };
        filled.grow(count);
        filled
    }

    /// Makes records until there are so many.
    fn grow(&mut self, count: usize) {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for first in 0..threads {
                let this = &*self;
                scope.spawn(move || {
                    for n in (this.count + first..count).step_by(threads) {
                        this.relaxed.write(key_of(n), &this.value).expect("written");
                    }
                });
            }
        });
        self.count = count;
        // Or the disk would still be busy with these while the first operations are measured.
        let dir = File::open(&self.dir).expect("the store's directory opens");
        rustix::fs::syncfs(dir).expect("all is on the disk");
    }

    /// Any of the keys: another one in each run, in no order.
    fn any(&self, run: usize) -> String {
        // The golden ratio leaves no neighbours together.
        key_of(run.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.count)
    }

    fn read(&self, run: usize) {
        let record = self.relaxed.read::<String>(self.any(run)).expect("read");
        assert_eq!(black_box(record).map(|record| record.result.len()), Some(self.value.len()));
    }

    /// What a relaxed write of an existing record asks of the file system, and nothing else: where
    /// that takes longer among many files, the store can do nothing about it.
    fn rewrite(&self, run: usize) {
        // Not the keys that were just written: to replace a file that is on the disk costs more.
        let key = self.any(run + WRITES * 2);
        let text = self.text.replace(&key_of(0), &key);
        let (file, staged) = (format!("{key}.json"), "staged");
        drop(self.raw.create(staged, text.as_bytes()));
        rustix::fs::renameat_with(&self.raw.fd, staged, &self.raw.fd, &file, RenameFlags::EXCHANGE)
            .expect("the files are swapped");
        rustix::fs::unlinkat(&self.raw.fd, staged, AtFlags::empty()).expect("the old one goes");
    }

    fn lock(&self, run: usize) {
        let guard = self.relaxed.lock(self.any(run), LockOptions::new()).expect("locked");
        guard.release().expect("released");
    }

    fn list(&self) -> usize {
        self.relaxed.keys().expect("listed").flatten().count()
    }
}

fn key_of(n: usize) -> String {
    format!("invoice-{n:07}")
}

fn compare(table: &mut Table, few: &Filled, many: &Filled) {
    let mut beside = |name: &str, pairs: usize, run: &dyn Fn(&Filled, usize)| {
        let named = |of: &Filled| format!("{name}, {} records", grouped(of.count)).into();
        let plan = Plan { operation: named(many), floor: named(few), target: Some(TARGET), pairs };
        table.compare(plan, |n| run(many, n), |n| run(few, n));
    };
    beside("read", 10_000, &Filled::read);
    beside("exists", 10_000, &|of, run| assert!(of.relaxed.exists(of.any(run)).expect("looked")));
    beside("write, relaxed", WRITES, &|of, run| {
        of.relaxed.write(of.any(run), &of.value).expect("written");
    });
    beside("the system calls of that", WRITES, &Filled::rewrite);
    beside("write, durable", 300, &|of, run| of.durable.write(of.any(run), &of.value).expect("written"));
    beside("acquire and release", 4_000, &Filled::lock);
    beside("open", 500, &|of, _| drop(open(&of.dir, Durability::Relaxed)));
    // As many keys on both sides.
    let most = few.count.max(many.count);
    beside("keys", (1_000_000 / most).clamp(5, 100), &|of, _| {
        for _ in 0..most / of.count {
            assert_eq!(of.list(), of.count);
        }
    });
}

/// A number as people write it: 100,000.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// What it took to list all keys once, as a stream.
struct Listed {
    records: usize,
    /// The time for one key.
    each: Duration,
    /// Resident memory in KiB: before, and at its most.
    before: usize,
    most: usize,
}

impl Listed {
    fn of(store: &Filled) -> Self {
        let before = resident();
        let (mut most, mut records) = (before, 0);
        let start = Instant::now();
        for key in store.relaxed.keys().expect("listed") {
            black_box(key.expect("a key"));
            records += 1;
            if records % STRIDE == 0 {
                most = most.max(resident());
            }
        }
        let each = start.elapsed() / u32::try_from(records).expect("a number of records");
        Self { records, each, before, most }
    }
}

/// Resident memory of this process in KiB, as the kernel tells it; zero where it does not.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
