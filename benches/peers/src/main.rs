//! The same operations on this crate, on other crates and servers, and as bare system calls, measured
//! alternately in one run. Prints Markdown tables and draws a chart. See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "the peers call them directly")]

mod chart;
mod databases;
mod files;
#[path = "../../common/invoice.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod invoice;
mod locks;
#[path = "../../common/raw.rs"]
mod raw;
#[path = "../../common/reading.rs"]
mod reading;
mod servers;
#[path = "../../common/setup.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod setup;
mod table;
mod work;

use std::path::Path;

use setup::RunMode;
use table::Results;
use work::{Peer, WORKLOADS, measure};

fn main() {
    let quick = std::env::args().any(|arg| arg == "--test");
    let mode = if quick { RunMode::Quick } else { RunMode::Full };
    let scratch = setup::scratch();
    let mut peers = peers(scratch.path());
    let mut results = Results::new(setup::machine(scratch.path()), &peers);
    for workload in WORKLOADS {
        results.add(workload, &measure(workload, &mut peers, mode));
    }
    println!("{results}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers.svg");
    let svg = chart::draw(&results);
    if mode == RunMode::Full {
        std::fs::write(&path, svg).expect("the chart is saved");
        println!("The chart is in benches/peers.svg.");
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
        Box::new(files::Tempfile(at("tempfile"))),
        Box::new(files::Cacache(at("cacache"))),
        Box::new(locks::Gix(at("gix-lock"))),
        Box::new(locks::FdLock(at("fd-lock"))),
        Box::new(locks::Fs2(at("fs2"))),
        Box::new(databases::Sqlite::new(&at("sqlite"))),
        Box::new(databases::Redb::new(&at("redb"))),
        Box::new(databases::Lmdb::new(&at("lmdb"))),
    ];
    match servers::Redis::start(&at("redis")) {
        Some(redis) => peers.push(Box::new(redis)),
        None => {
            eprintln!("Skipping Redis: its server is not installed. It is in Debian's package redis-server.")
        }
    }
    match servers::Etcd::start(&at("etcd")) {
        Some(etcd) => peers.push(Box::new(etcd)),
        None => {
            eprintln!("Skipping etcd: its server is not installed. It is in Debian's package etcd-server.")
        }
    }
    peers
}
