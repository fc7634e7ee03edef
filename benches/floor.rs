//! Each operation of a [`FileSystemRecordStore`] beside the bare system calls that no
//! implementation could do without. See `benches/README.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark that meets an error has nothing to report"
)]

#[path = "paired/children.rs"]
mod children;
#[path = "paired/invoice.rs"]
mod invoice;
#[path = "paired/measure.rs"]
mod measure;
#[path = "paired/place.rs"]
mod place;
#[path = "paired/raw.rs"]
mod raw;
#[path = "paired/reading.rs"]
mod reading;

use std::fs;
use std::hint::black_box;
use std::path::Path;

use record_store::RecordStoreExt;
use record_store::{Durability, FileSystemOptions, FileSystemRecordStore, Holder, LockOptions};

use children::{Other, listen, say};
use invoice::{Invoice, LONG, SHORT, invoice};
use measure::{Plan, Table};
use raw::RawDir;

/// Keys that take turns, in operations on records that exist.
const KEYS: usize = 100;

fn main() {
    if let Some((_, dir)) = children::role() {
        return hold(Path::new(&dir));
    }
    let scratch = place::scratch();
    let mut table = Table::from_args();
    for durability in [Durability::Full, Durability::Relaxed] {
        writes(&mut table, &scratch.path().join(format!("{durability:?}")), durability);
    }
    reads(&mut table, &scratch.path().join("reads"));
    locks(&mut table, &scratch.path().join("locks"));
    many(&mut table, &scratch.path().join("many"));
    println!("{}\n\n{table}", place::machine(scratch.path()));
}

fn open(dir: &Path, durability: Durability) -> FileSystemRecordStore {
    FileSystemOptions::new().durability(durability).open(dir).expect("the store opens")
}

fn record_file(key: &str) -> String {
    format!("{key}.json")
}

/// A store, and beside it a bare directory for its floor.
fn store_and_floor(dir: &Path, durability: Durability) -> (FileSystemRecordStore, RawDir) {
    let store = open(&dir.join("store"), durability);
    fs::create_dir_all(dir.join("floor")).expect("the floor's directory is made");
    (store, RawDir::open(&dir.join("floor")))
}

fn writes(table: &mut Table, dir: &Path, durability: Durability) {
    let (fresh, existing, floor, target, pairs) = match durability {
        Durability::Full => (
            "write, durable, new key",
            "write, durable, existing key",
            "create, write, fdatasync, rename, fsync of the directory",
            1.10,
            400,
        ),
        Durability::Relaxed => {
            ("write, relaxed, new key", "write, relaxed, existing key", "create, write, rename", 1.20, 4_000)
        }
    };
    let (store, raw) = store_and_floor(dir, durability);
    let value = invoice(SHORT);
    store.write("size", &value).expect("written");
    let text = fs::read(dir.join("store").join("size.json")).expect("the record is a file");

    let plan = Plan { operation: fresh.into(), floor: floor.into(), target: Some(target), pairs };
    let seeded = table.pace().pick(KEYS, 2);
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
        Plan { operation: existing.into(), floor: floor.into(), target: Some(target), pairs },
        |run| store.write(&keys[run % seeded], &value).expect("written"),
        |run| raw.publish(&files[run % seeded], &text, durability),
    );
}

fn reads(table: &mut Table, dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let raw = RawDir::open(dir);
    let keys: Vec<String> = (0..KEYS).map(|n| format!("invoice-{n:06}")).collect();
    let files: Vec<String> = keys.iter().map(|key| record_file(key)).collect();
    for (lines, operation, target, pairs) in
        [(SHORT, "read, 300 B", Some(1.45), 20_000), (LONG, "read, 100 KB", None, 2_000)]
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
            floor: "open: none".into(),
            target: None,
            pairs: 20_000,
        },
        |_| assert!(store.read::<Invoice>("absent").expect("read").is_none()),
        |_| assert!(raw.open_to_read("absent.json").is_none()),
    );
    table.compare(
        Plan { operation: "exists".into(), floor: "stat".into(), target: Some(1.15), pairs: 20_000 },
        |run| assert!(store.exists(&keys[run % KEYS]).expect("looked")),
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
            floor: "the floors of the four".into(),
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

/// What it costs to be told that a lock is another's.
fn held(table: &mut Table, store: &FileSystemRecordStore) {
    let raw = RawDir::open(store.path());
    let named = Holder::named("nightly-report").expect("a name");
    store.acquire_lock("named", &LockOptions::new().holder(named.clone())).expect("locked");
    let mut other = Other::start("holder", store.path());
    assert_eq!(other.hear(), "held");
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
    other.finish();
}

/// The other process of [`held`]: has a lock until it is told to end.
fn hold(dir: &Path) {
    let store = open(dir, Durability::Relaxed);
    let _guard = store.lock("process", LockOptions::new()).expect("locked");
    say("held");
    assert_eq!(listen(), None);
}

/// What depends on the number of records, or should not.
fn many(table: &mut Table, dir: &Path) {
    let count = table.pace().pick(10_000, 100);
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
        // Beside the records: two dots and the store's private directory.
        |_| assert_eq!(raw.list(), count + 3),
    );
}

impl RawDir {
    fn list(&self) -> usize {
        let dir = rustix::fs::Dir::read_from(&self.fd).expect("the directory can be listed");
        dir.map(|entry| entry.expect("an entry").file_name().to_bytes().len()).filter(|len| *len > 0).count()
    }
}
