//! Durable writes of several processes at the same time, each to keys of its own.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::Durability;

use crate::databases::{Lmdb, Sqlite};
use crate::files::{Floor, OneSync, Ours, Tempfile};
use crate::invoice::{SHORT, invoice};
use crate::servers::{Etcd, Redis, Served};
use crate::setup::RunMode;
use crate::windows::{Group, Plan, alternate, serve};
use crate::work::{Peer, Work};

/// The numbers of processes.
const COUNTS: &[usize] = &[1, 4, 8];
/// The number of keys of one process.
const KEYS: usize = 64;
/// The most that one process of this crate may write more than another.
const SPREAD: f64 = 1.5;

/// The peers that several processes can write to and that sync what they write. The first is this crate, the
/// others have the ratio that this crate should reach, with one process and with several.
const PEERS: &[(&str, Option<f64>, Option<f64>)] = &[
    ("record-store", None, None),
    ("one sync", Some(0.67), None),
    ("system calls", Some(2.22), Some(4.0)),
    ("tempfile", None, None),
    ("SQLite", Some(1.0), Some(1.2)),
    ("LMDB (heed)", None, None),
    ("Redis", None, None),
    ("etcd", None, None),
];

/// The places where the processes reach each peer.
struct Places {
    redis: Option<Served<Redis>>,
    etcd: Option<Served<Etcd>>,
}

impl Places {
    /// `None` if the peer is not installed. A peer without a server gets a directory in this one.
    fn of(&self, peer: &str, dir: &Path) -> Option<PathBuf> {
        match peer {
            "Redis" => Some(self.redis.as_ref()?.place.path().to_owned()),
            "etcd" => Some(self.etcd.as_ref()?.place.path().to_owned()),
            _ => Some(new_dir(&dir.join(peer))),
        }
    }
}

fn new_dir(path: &Path) -> PathBuf {
    std::fs::create_dir_all(path).expect("the directory is created");
    path.to_owned()
}

/// Measures all peers and prints a table for each number of processes.
pub(crate) fn compare(dir: &Path, mode: RunMode) {
    let servers = |name: &str| new_dir(&dir.join("servers").join(name));
    let places = Places { redis: Redis::start(&servers("redis")), etcd: Etcd::start(&servers("etcd")) };
    for &count in mode.choose(COUNTS, &[1, 4]) {
        measure(&dir.join(count.to_string()), &places, count, mode);
    }
    println!(
        "Left out: cacache and gix-lock never sync, only one process can have redb's file open, and fd-lock"
    );
    println!("and fs2 store nothing.");
}

fn measure(dir: &Path, places: &Places, count: usize, mode: RunMode) {
    let plan = Plan::new(mode, Duration::from_millis(250), 21);
    let (peers, mut groups): (Vec<_>, Vec<_>) = PEERS
        .iter()
        .filter_map(|peer| Some((peer, Group::start(peer.0, &places.of(peer.0, dir)?, count))))
        .unzip();
    alternate(&mut groups, plan, dir);
    let processes = if count == 1 { "process" } else { "processes" };
    println!(
        "Durable writes of {count} {processes}, medians of {} windows of {} ms:\n",
        plan.rounds,
        plan.window.as_millis()
    );
    println!("| | writes/s | most / fewest | target | record-store writes | target |");
    println!("| --- | --: | --: | --: | --: | --: |");
    for ((name, alone, together), group) in peers.into_iter().zip(&groups) {
        let ours = name == "record-store";
        println!(
            "| {name} | {:.0} | {:.2} | {} | {} | {} |",
            group.rate(),
            group.spread(),
            or_dash((ours && count > 1).then_some(SPREAD), ""),
            or_dash((!ours).then(|| groups[0].ratio_to(group)), "×"),
            or_dash(if count == 1 { alone } else { together }, ""),
        );
    }
    println!();
}

fn or_dash(value: Option<f64>, unit: &str) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}{unit}"))
}

/// A child process: writes to this peer in each window.
pub(crate) fn write(peer: &str, place: &Path) {
    let mut peer: Box<dyn Peer> = match peer {
        "record-store" => Box::new(Ours::new(place)),
        "one sync" => Box::new(OneSync::new(place)),
        "system calls" => Box::new(Floor::new(place)),
        "tempfile" => Box::new(Tempfile(place.to_owned())),
        "SQLite" => Box::new(Sqlite::new(place)),
        "LMDB (heed)" => Box::new(Lmdb::new(place)),
        "Redis" => Box::new(Redis::connect(place)),
        "etcd" => Box::new(Etcd::connect(place)),
        other => panic!("no peer is named {other}"),
    };
    let mut put = peer.job(Work::Put(Durability::Full)).expect("the peer writes durably");
    let process = std::process::id();
    let keys: Vec<String> = (0..KEYS).map(|n| format!("writer-{process}-{n}")).collect();
    let mut value = invoice(SHORT);
    serve(|run| {
        value.number = run as u64;
        put(&keys[run % KEYS], &value);
    });
}
