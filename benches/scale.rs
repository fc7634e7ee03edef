//! How the number of records affects each operation: the same operation on many records and on a
//! thousand. See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "the store is compared with these calls")]
#![allow(clippy::expect_used, reason = "a benchmark stops at the first error")]

#[path = "common/measure.rs"]
mod measure;
#[path = "common/raw.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod raw;
#[path = "common/setup.rs"]
mod setup;

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, LockOptions, RecordStoreExt};
use rustix::fs::{AtFlags, RenameFlags};

use measure::{Plan, Table};
use raw::RawDir;
use setup::RunMode;

/// The number of records with which all others are compared.
const FEW: usize = 1_000;
/// The largest number of records, unless `RECORD_STORE_BENCH_RECORDS` sets another one.
const MOST: usize = 100_000;
/// The largest acceptable ratio between an operation among many records and among few.
const TARGET: f64 = 2.0;
/// The number of pairs of relaxed writes.
const WRITES: usize = 4_000;
/// The number of listed keys between two measurements of the memory.
const STRIDE: usize = 1_000;

fn main() {
    let scratch = setup::scratch();
    let mut table = Table::from_args();
    let few = Filled::with(scratch.path().join("few"), table.mode().choose(FEW, 50));
    let mut many = Filled::with(scratch.path().join("many"), 1);
    let mut listings = vec![Listed::of(&few)];
    for count in sizes(table.mode()) {
        many.grow(count);
        compare(&mut table, &few, &many);
        listings.push(Listed::of(&many));
    }
    println!("{}\n\n{table}", setup::machine(scratch.path()));
    println!("Memory while all keys are listed:\n");
    println!("| records | time per key | resident before | peak increase |\n| --: | --: | --: | --: |");
    for Listed { records, each, before, most } in listings {
        println!("| {} | {} ns | {before} KiB | +{} KiB |", grouped(records), each.as_nanos(), most - before);
    }
}

/// The numbers of records to measure. Each is ten times the one before.
fn sizes(mode: RunMode) -> Vec<usize> {
    let most = std::env::var("RECORD_STORE_BENCH_RECORDS").map_or(MOST, |most| {
        most.replace('_', "").parse().expect("RECORD_STORE_BENCH_RECORDS is a number of records")
    });
    let full = std::iter::successors(Some(FEW * 10), |count| Some(count * 10));
    mode.choose(full.take_while(|count| *count <= most).collect(), vec![100])
}

/// A store with a known number of records.
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

    /// Creates records until there are `count`.
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
        // Otherwise the disk would still be busy with these during the first measurements.
        let dir = File::open(&self.dir).expect("the store's directory opens");
        rustix::fs::syncfs(dir).expect("all is on the disk");
    }

    /// A different key in each run, in no particular order.
    fn any(&self, run: usize) -> String {
        // A multiplication by the golden ratio separates neighbouring keys.
        key_of(run.wrapping_mul(0x9e37_79b9_7f4a_7c15) % self.count)
    }

    fn read(&self, run: usize) {
        let record = self.relaxed.read::<String>(self.any(run)).expect("read");
        assert_eq!(black_box(record).map(|record| record.result.len()), Some(self.value.len()));
    }

    /// Only the file system's part of a relaxed write of an existing record. If this takes longer among
    /// many files, the store cannot avoid it.
    fn rewrite(&self, run: usize) {
        // Not the keys that were just written: replacing a file that has reached the disk costs more.
        let key = self.any(run + WRITES * 2);
        let text = self.text.replace(&key_of(0), &key);
        let (file, staged) = (format!("{key}.json"), "staged");
        drop(self.raw.create(staged, text.as_bytes()));
        rustix::fs::renameat_with(&self.raw.fd, staged, &self.raw.fd, &file, RenameFlags::EXCHANGE)
            .expect("the files are swapped");
        rustix::fs::unlinkat(&self.raw.fd, staged, AtFlags::empty()).expect("the old file is removed");
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
    let mut compare_sizes = |name: &str, pairs: usize, run: &dyn Fn(&Filled, usize)| {
        let named = |of: &Filled| format!("{name}, {} records", grouped(of.count)).into();
        let plan = Plan { operation: named(many), floor: named(few), target: Some(TARGET), pairs };
        table.compare(plan, |n| run(many, n), |n| run(few, n));
    };
    compare_sizes("read", 10_000, &Filled::read);
    compare_sizes("exists", 10_000, &|of, run| assert!(of.relaxed.exists(of.any(run)).expect("checked")));
    compare_sizes("write, relaxed", WRITES, &|of, run| {
        of.relaxed.write(of.any(run), &of.value).expect("written");
    });
    compare_sizes("system calls of a relaxed write", WRITES, &Filled::rewrite);
    compare_sizes("write, durable", 300, &|of, run| {
        of.durable.write(of.any(run), &of.value).expect("written");
    });
    compare_sizes("acquire and release", 4_000, &Filled::lock);
    compare_sizes("open", 500, &|of, _| drop(open(&of.dir, Durability::Relaxed)));
    // The same number of keys on both sides.
    let most = few.count.max(many.count);
    compare_sizes("keys", (1_000_000 / most).clamp(5, 100), &|of, _| {
        for _ in 0..most / of.count {
            assert_eq!(of.list(), of.count);
        }
    });
}

/// A number with thousands separators: 100,000.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

/// The time and memory of one listing of all keys, as a stream.
struct Listed {
    records: usize,
    /// The time per key.
    each: Duration,
    /// Resident memory in KiB: before the listing, and the maximum.
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

/// Resident memory of this process in KiB. Zero where the kernel does not report it.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}
