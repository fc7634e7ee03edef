//! Each operation of a [`FileSystemRecordStore`] compared with its floor: the bare system calls that
//! every implementation needs. See `benches/README.md`.

#![allow(clippy::expect_used, clippy::panic, reason = "a benchmark stops at the first error")]

#[path = "common/children.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod children;
#[path = "common/invoice.rs"]
mod invoice;
#[path = "common/measure.rs"]
mod measure;
#[path = "common/preallocated.rs"]
mod preallocated;
#[path = "common/raw.rs"]
mod raw;
#[path = "common/reading.rs"]
mod reading;
#[cfg(target_os = "linux")]
#[path = "common/replay.rs"]
mod replay;
#[path = "common/setup.rs"]
mod setup;

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use record_store::RecordStoreExt;
use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions};

use children::{ChildProcess, receive, send};
use invoice::{Invoice, LONG, SHORT, invoice};
use measure::{Plan, Table};
use preallocated::Preallocated;
use raw::RawDir;

/// The number of keys that are used in turn by operations on existing records.
const KEYS: usize = 100;

fn main() {
    if let Some((_, dir)) = children::role() {
        return hold(Path::new(&dir));
    }
    let scratch = setup::scratch();
    let mut table = Table::from_args();
    for durability in [Durability::Full, Durability::Relaxed] {
        writes(&mut table, &scratch.path().join(format!("{durability:?}")), durability);
    }
    longest_writes(&mut table, &scratch.path().join("longest"));
    #[cfg(target_os = "linux")]
    calls(&mut table, &scratch.path().join("calls"));
    reads(&mut table, &scratch.path().join("reads"));
    locks(&mut table, &scratch.path().join("locks"));
    many(&mut table, &scratch.path().join("many"));
    println!("{}\n\n{table}", setup::machine(scratch.path()));
}

fn open(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).expect("the store opens")
}

fn record_file(key: &str) -> String {
    format!("{key}.json")
}

/// A store, and a separate plain directory for its floor.
fn store_and_floor(dir: &Path, durability: Durability) -> (FileSystemRecordStore, RawDir) {
    let store = open(&dir.join("store"), durability);
    fs::create_dir_all(dir.join("floor")).expect("the floor's directory is created");
    (store, RawDir::open(&dir.join("floor")))
}

fn writes(table: &mut Table, dir: &Path, durability: Durability) {
    let (fresh, existing, floor, [target, target_existing], pairs) = match durability {
        Durability::Full => (
            "write, durable, new key",
            "write, durable, existing key",
            "create, write, fdatasync, rename, fsync of the directory",
            [0.45, 0.45],
            400,
        ),
        _ => (
            "write, relaxed, new key",
            "write, relaxed, existing key",
            "create, write, rename",
            [1.3, 0.45],
            4_000,
        ),
    };
    let (store, raw) = store_and_floor(dir, durability);
    let value = invoice(SHORT);
    store.write("size", &value).expect("written");
    let text = fs::read(dir.join("store").join("size.json")).expect("the record is a file");

    let plan = Plan { operation: fresh.into(), floor: floor.into(), target: Some(target), pairs };
    let seeded = table.mode().choose(KEYS, 2);
    let keys: Vec<String> = (0..table.runs(&plan).max(seeded)).map(|n| format!("invoice-{n:06}")).collect();
    let files: Vec<String> = keys.iter().map(|key| record_file(key)).collect();
    table.compare(
        plan,
        |run| store.write(&keys[run], &value).expect("written"),
        |run| raw.publish(&files[run], &text, durability),
    );

    for (key, file) in keys.iter().zip(&files).take(seeded) {
        store.write(key, &value).expect("written");
        raw.publish(file, &text, Durability::Relaxed);
    }
    table.compare(
        Plan { operation: existing.into(), floor: floor.into(), target: Some(target_existing), pairs },
        |run| store.write(&keys[run % seeded], &value).expect("written"),
        |run| raw.publish(&files[run % seeded], &text, durability),
    );
    if durability == Durability::Full {
        let file = Preallocated::create(&dir.join("preallocated"));
        durable_writes(table, file, &store, &keys[..seeded], &text);
    }
}

/// A durable write compared with the least that any store needs, also one without a file per record.
fn durable_writes(
    table: &mut Table,
    mut file: Preallocated,
    store: &FileSystemRecordStore,
    existing: &[String],
    text: &[u8],
) {
    let value = invoice(SHORT);
    let plan = |operation: &'static str| Plan {
        operation: operation.into(),
        floor: "pwrite, fdatasync of a preallocated file".into(),
        target: Some(1.5),
        pairs: 400,
    };
    table.compare(
        plan("write, durable, new key"),
        |run| store.write(format!("order-{run:06}"), &value).expect("written"),
        |_| file.write(text),
    );
    table.compare(
        plan("write, durable, existing key"),
        |run| store.write(&existing[run % existing.len()], &value).expect("written"),
        |_| file.write(text),
    );
}

/// So many writes fill more than one segment of the log, so there is a switch and a checkpoint among them.
const WRITES: usize = 600;

/// The longest of many durable writes, compared with the longest of as many without a log.
fn longest_writes(table: &mut Table, dir: &Path) {
    let (store, raw) = store_and_floor(dir, Durability::Full);
    let value = invoice(SHORT);
    store.write("size", &value).expect("written");
    let text = fs::read(dir.join("store").join("size.json")).expect("the record is a file");
    let writes = table.mode().choose(WRITES, 2);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("invoice-{n:06}")).collect();
    let files: Vec<String> = keys.iter().map(|key| record_file(key)).collect();
    table.compare_measured(
        Plan {
            operation: "the longest of 600 durable writes".into(),
            floor: "the longest of 600: create, write, fdatasync, rename, fsync".into(),
            target: Some(1.0),
            pairs: 40,
        },
        |_| longest(writes, |n| store.write(&keys[n % KEYS], &value).expect("written")),
        |_| longest(writes, |n| raw.publish(&files[n % KEYS], &text, Durability::Full)),
    );
}

fn longest(runs: usize, mut operation: impl FnMut(usize)) -> Duration {
    let times = (0..runs).map(|run| {
        let start = Instant::now();
        operation(run);
        start.elapsed()
    });
    times.max().unwrap_or_default()
}

/// The system calls of some operations alone, compared with the floors of these operations and with the store.
#[cfg(target_os = "linux")]
fn calls(table: &mut Table, dir: &Path) {
    let (store, raw) = store_and_floor(dir, Durability::Relaxed);
    fs::create_dir_all(dir.join("calls")).expect("the directory is created");
    let mut replay = replay::Replay::new(&dir.join("calls"));
    let value = invoice(SHORT);
    store.write("size", &value).expect("written");
    let text = fs::read(dir.join("store").join("size.json")).expect("the record is a file");
    let guard = store.lock("size", LockOptions::new()).expect("locked");
    let lock = fs::read(dir.join("store").join("size.lock")).expect("the lock is a file");
    guard.release().expect("released");

    let plan = |operation: &'static str, floor: &'static str, pairs| Plan {
        operation: operation.into(),
        floor: floor.into(),
        target: None,
        pairs,
    };
    // One part of the names for each comparison, so that each key is new.
    let runs = table.runs(&plan("", "", 4_000)).max(KEYS);
    let names: Vec<_> = (0..2 * runs).map(|run| format!("invoice-{run:06}")).collect();
    let files: Vec<_> = names.iter().map(|name| (record_file(name), format!("{name}.lock"))).collect();
    let (of_store, of_floor) = ((&names[runs..], &files[runs..]), &files[..runs]);

    let floor = "create, write, rename";
    table.compare(
        plan("calls of a relaxed write, new key", floor, 4_000),
        |run| replay.write(&of_floor[run].0, &of_floor[run].1, &text, true),
        |run| raw.publish(&of_floor[run].0, &text, Durability::Relaxed),
    );
    table.compare(
        plan("write, relaxed, new key", "its calls", 4_000),
        |run| store.write(&of_store.0[run], &value).expect("written"),
        |run| replay.write(&of_store.1[run].0, &of_store.1[run].1, &text, true),
    );
    let (names, files) = (&names[..KEYS], &files[..KEYS]);
    for (name, (record, lock)) in names.iter().zip(files) {
        store.write(name, &value).expect("written");
        raw.publish(record, &text, Durability::Relaxed);
        replay.write_any(record, lock, &text);
    }
    table.compare(
        plan("calls of a relaxed write, existing key", floor, 4_000),
        |run| replay.write(&files[run % KEYS].0, &files[run % KEYS].1, &text, false),
        |run| raw.publish(&files[run % KEYS].0, &text, Durability::Relaxed),
    );
    table.compare(
        plan("write, relaxed, existing key", "its calls", 4_000),
        |run| store.write(&names[run % KEYS], &value).expect("written"),
        |run| replay.write(&files[run % KEYS].0, &files[run % KEYS].1, &text, false),
    );
    table.compare(
        plan("calls of a read", "open, fstat, read, close, parse", 20_000),
        |run| drop(black_box(replay.read(&files[run % KEYS].0, &files[run % KEYS].1))),
        |run| drop(black_box(raw.read::<Invoice>(&files[run % KEYS].0))),
    );
    table.compare(
        plan("read, 300 B", "its calls", 20_000),
        |run| drop(black_box(store.read::<Invoice>(&names[run % KEYS]).expect("read"))),
        |run| drop(black_box(replay.read(&files[run % KEYS].0, &files[run % KEYS].1))),
    );
    table.compare(
        plan("calls of acquire and release", "create, write, close, unlink", 10_000),
        |_| replay.acquire_and_release("key.lock", &lock),
        |_| {
            drop(raw.create("key.lock", &lock));
            raw.unlink("key.lock");
        },
    );
    table.compare(
        plan("acquire and release", "its calls", 10_000),
        |_| store.lock("key", LockOptions::new()).expect("locked").release().expect("released"),
        |_| replay.acquire_and_release("key.lock", &lock),
    );
}

fn reads(table: &mut Table, dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let raw = RawDir::open(dir);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("invoice-{n:06}")).collect();
    let files: Vec<String> = keys.iter().map(|key| record_file(key)).collect();
    for (lines, operation, target, pairs) in
        [(SHORT, "read, 300 B", Some(1.5), 20_000), (LONG, "read, 100 KB", None, 2_000)]
    {
        for key in &keys {
            store.write(key, &invoice(lines)).expect("written");
        }
        table.compare(
            Plan {
                operation: operation.into(),
                floor: "open, fstat, read, close, parse".into(),
                target,
                pairs,
            },
            |run| drop(black_box(store.read::<Invoice>(&keys[run % KEYS]).expect("read"))),
            |run| drop(black_box(raw.read::<Invoice>(&files[run % KEYS]))),
        );
    }
    table.compare(
        Plan {
            operation: "read, absent key".into(),
            floor: "open that fails".into(),
            target: None,
            pairs: 20_000,
        },
        |_| assert!(store.read::<Invoice>("absent").expect("read").is_none()),
        |_| assert!(raw.open_to_read("absent.json").is_none()),
    );
    table.compare(
        Plan { operation: "exists".into(), floor: "stat".into(), target: Some(1.15), pairs: 20_000 },
        |run| assert!(store.exists(&keys[run % KEYS]).expect("checked")),
        |run| assert!(raw.stat(&files[run % KEYS])),
    );
}

fn locks(table: &mut Table, dir: &Path) {
    let (store, raw) = store_and_floor(dir, Durability::Relaxed);
    let options = LockOptions::new;
    let guard = store.lock("invoice", options()).expect("locked");
    let lock = fs::read(dir.join("store").join("invoice.lock")).expect("the lock is a file");
    guard.release().expect("released");
    table.compare(
        Plan {
            operation: "acquire and release".into(),
            floor: "create, write, close, unlink".into(),
            target: Some(1.6),
            pairs: 10_000,
        },
        |_| store.lock("invoice", options()).expect("locked").release().expect("released"),
        |_| {
            drop(raw.create("invoice.lock", &lock));
            raw.unlink("invoice.lock");
        },
    );

    store.write("visits", &0_u64).expect("written");
    let record = fs::read(dir.join("store").join("visits.json")).expect("the record is a file");
    raw.publish("visits.json", &record, Durability::Relaxed);
    table.compare(
        Plan {
            operation: "lock, read, write relaxed, release".into(),
            floor: "the floors of the four operations".into(),
            target: None,
            pairs: 4_000,
        },
        |_| {
            let guard = store.lock("visits", options()).expect("locked");
            let visits = guard.read::<u64>().expect("read").map_or(0, |record| record.result);
            guard.write(&(visits + 1)).expect("written");
            guard.release().expect("released");
        },
        |_| {
            drop(raw.create("visits.lock", &lock));
            black_box(raw.read::<u64>("visits.json"));
            raw.publish("visits.json", &record, Durability::Relaxed);
            raw.unlink("visits.lock");
        },
    );
    held(table, &store);
}

/// The cost of a `try_lock` that fails because another holder has the lock.
fn held(table: &mut Table, store: &FileSystemRecordStore) {
    let raw = RawDir::open(store.path());
    let named = Holder::named("nightly-report").expect("a name");
    store.acquire_lock("named", LockOptions::new().holder(named.clone())).expect("locked");
    let mut child = ChildProcess::start("holder", store.path());
    assert_eq!(child.receive(), "held");
    for (key, file, operation) in [
        ("named", "named.lock", "try_lock, held by name"),
        ("process", "process.lock", "try_lock, held by a process"),
    ] {
        table.compare(
            Plan {
                operation: operation.into(),
                floor: "open, fstat, read, close".into(),
                target: Some(3.0),
                pairs: 20_000,
            },
            |_| assert!(store.try_lock(key, LockOptions::new()).expect("tried").is_none()),
            |_| drop(black_box(raw.slurp(file))),
        );
    }
    store.release_lock("named", named).expect("released");
    child.finish();
}

/// The child process of [`held`]: holds a lock until the parent closes its input.
fn hold(dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let _guard = store.lock("process", LockOptions::new()).expect("locked");
    send("held");
    assert_eq!(receive(), None);
}

/// Operations whose cost could depend on the number of records.
fn many(table: &mut Table, dir: &Path) {
    let count = table.mode().choose(10_000, 100);
    let (full, empty) = (dir.join("full"), dir.join("empty"));
    let store = open(&full, Durability::Relaxed);
    drop(open(&empty, Durability::Relaxed));
    for n in 0..count {
        store.write(format!("invoice-{n:06}"), &n).expect("written");
    }
    table.compare(
        Plan {
            operation: "open, 10,000 records".into(),
            floor: "open, no record".into(),
            target: None,
            pairs: 1_000,
        },
        |_| drop(open(&full, Durability::Relaxed)),
        |_| drop(open(&empty, Durability::Relaxed)),
    );
    let raw = RawDir::open(&full);
    table.compare(
        Plan {
            operation: "keys, 10,000 records".into(),
            floor: "getdents (rustix::fs::Dir)".into(),
            target: Some(1.3),
            pairs: 200,
        },
        |_| assert_eq!(store.keys().expect("listed").flatten().count(), count),
        // Besides the records: `.`, `..` and the store's private directory.
        |_| assert_eq!(raw.list(), count + 3),
    );
}

impl RawDir {
    fn list(&self) -> usize {
        let dir = rustix::fs::Dir::read_from(&self.fd).expect("the directory can be listed");
        dir.map(|entry| entry.expect("an entry").file_name().to_bytes().len()).filter(|len| *len > 0).count()
    }
}
