//! The same operations on this crate, on other crates and servers, and as bare system calls, measured
//! alternately in one run. Prints Markdown tables and draws a chart. See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "the peers call them directly")]

mod chart;
#[path = "../../common/children.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod children;
mod databases;
mod files;
#[path = "../../common/invoice.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod invoice;
mod locks;
#[path = "../../common/preallocated.rs"]
mod preallocated;
mod processes;
#[path = "../../common/raw.rs"]
mod raw;
#[path = "../../common/reading.rs"]
mod reading;
mod servers;
#[path = "../../common/setup.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod setup;
mod table;
#[path = "../../common/windows.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod windows;
mod work;

use std::path::Path;

use setup::RunMode;
use table::Results;
use work::{Peer, WORKLOADS, measure};

fn main() {
    if let Some((peer, place)) = children::role() {
        return processes::write(&peer, Path::new(&place));
    }
    let quick = std::env::args().any(|arg| arg == "--test");
    let mode = if quick { RunMode::Quick } else { RunMode::Full };
    // The first argument that is not a flag selects one of the two parts.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let scratch = setup::scratch();
    println!("{}\n", setup::machine(scratch.path()));
    if "operations".contains(&filter) {
        operations(scratch.path(), mode);
    }
    if "processes".contains(&filter) {
        processes::compare(&scratch.path().join("processes"), mode);
    }
}

/// Every operation of every peer, in this process alone.
fn operations(dir: &Path, mode: RunMode) {
    let mut peers = peers(dir);
    let mut results = Results::new(setup::machine(dir), &peers);
    for workload in WORKLOADS {
        results.add(workload, &measure(workload, &mut peers, mode));
    }
    println!("{results}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers.svg");
    let svg = chart::draw(&results);
    if mode == RunMode::Full {
        std::fs::write(&path, svg).expect("the chart is saved");
        println!("The chart is in benches/peers.svg.\n");
    }
}

/// All available peers: first the bare system calls, then this crate.
fn peers(dir: &Path) -> Vec<Box<dyn Peer>> {
    let at = |name: &str| {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).expect("the peer's directory is created");
        dir
    };
    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(files::Floor::new(&at("floor"))),
        Box::new(files::Ours::new(&at("record-store"))),
        Box::new(files::OneSync::new(&at("one-sync"))),
        Box::new(files::Tempfile(at("tempfile"))),
        Box::new(files::Cacache(at("cacache"))),
        Box::new(locks::Gix(at("gix-lock"))),
        Box::new(locks::FdLock(at("fd-lock"))),
        Box::new(locks::Fs2(at("fs2"))),
        Box::new(databases::Sqlite::new(&at("sqlite"))),
        Box::new(databases::Redb::new(&at("redb"))),
        Box::new(databases::Lmdb::new(&at("lmdb"))),
    ];
    if let Some(redis) = servers::Redis::start(&at("redis")) {
        peers.push(Box::new(redis));
    }
    if let Some(etcd) = servers::Etcd::start(&at("etcd")) {
        peers.push(Box::new(etcd));
    }
    peers
}
