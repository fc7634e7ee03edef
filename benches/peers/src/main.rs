//! The same work done by this crate and by others, turn by turn in one run, beside the bare system
//! calls. Prints Markdown tables and draws a picture. See `benches/README.md`.

#![allow(clippy::disallowed_methods, reason = "what the library does is measured against others")]

mod databases;
mod files;
#[path = "../../paired/invoice.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod invoice;
mod locks;
mod picture;
#[path = "../../paired/place.rs"]
#[allow(dead_code, reason = "shared with the other benchmarks")]
mod place;
#[path = "../../paired/raw.rs"]
mod raw;
#[path = "../../paired/reading.rs"]
mod reading;
mod servers;
mod table;
mod work;

use std::path::Path;

use place::Pace;
use table::Results;
use work::{Peer, ROUNDS, measure};

fn main() {
    let quick = std::env::args().any(|arg| arg == "--test");
    let pace = if quick { Pace::Quick } else { Pace::Full };
    let scratch = place::scratch();
    let mut peers = peers(scratch.path());
    let mut results = Results::new(place::machine(scratch.path()), &peers);
    for round in ROUNDS {
        results.add(round, &measure(round, &mut peers, pace));
    }
    println!("{results}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../peers.svg");
    let drawn = picture::draw(&results);
    if pace == Pace::Full {
        std::fs::write(&path, drawn).expect("the picture is saved");
        println!("The picture is in benches/peers.svg.");
    }
}

/// Everybody who is there, the bare system calls first and then this crate.
fn peers(dir: &Path) -> Vec<Box<dyn Peer>> {
    let at = |name: &str| {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).expect("a directory of its own");
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
        None => eprintln!("Left out: Redis. Its server is in Debian's package redis-server."),
    }
    match servers::Etcd::start(&at("etcd")) {
        Some(etcd) => peers.push(Box::new(etcd)),
        None => eprintln!("Left out: etcd. Its server is in Debian's package etcd-server."),
    }
    peers
}
