//! The operations, the peers that run them, and how they are measured.

use std::time::{Duration, Instant};

use record_store::Durability;

use crate::invoice::{Invoice, SHORT, invoice};
use crate::setup::RunMode;
use crate::windows::shuffle;

/// An operation on one key. A peer may support it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Store a value, with this durability.
    Put(Durability),
    /// Read and decode the value.
    Get,
    /// Check whether the key has a value.
    Exists,
    /// Acquire and release the key's lock.
    Lock,
    /// Under the lock or in a transaction: read, increment, write relaxed.
    Update,
}

/// Which keys a workload uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    New,
    Existing,
}

/// An operation to measure: one column of the result table.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    pub(crate) keys: Keys,
    /// The number of rounds in a full run.
    rounds: usize,
}

const fn workload(name: &'static str, work: Work, keys: Keys, rounds: usize) -> Workload {
    Workload { name, work, keys, rounds }
}

pub(crate) const WORKLOADS: &[Workload] = &[
    workload("durable write, new key", Work::Put(Durability::Full), Keys::New, 300),
    workload("durable write, existing key", Work::Put(Durability::Full), Keys::Existing, 300),
    workload("relaxed write, new key", Work::Put(Durability::Relaxed), Keys::New, 2_000),
    workload("relaxed write, existing key", Work::Put(Durability::Relaxed), Keys::Existing, 2_000),
    workload("read, 300 B", Work::Get, Keys::Existing, 5_000),
    workload("exists", Work::Exists, Keys::Existing, 5_000),
    workload("lock and unlock", Work::Lock, Keys::Existing, 2_000),
    workload("guarded read-modify-write", Work::Update, Keys::Existing, 1_000),
];

/// The description of a peer.
pub(crate) struct About {
    pub(crate) name: &'static str,
    /// Whether several processes can write concurrently.
    pub(crate) writers: &'static str,
    /// The exact operations that are measured.
    pub(crate) compared: &'static str,
}

/// An operation that can be run with any key and value.
pub(crate) type Job<'a> = Box<dyn FnMut(&str, &Invoice) + 'a>;

pub(crate) trait Peer {
    fn about(&self) -> About;

    /// `None` if the peer does not support this operation.
    fn job(&mut self, work: Work) -> Option<Job<'_>>;
}

/// The number of existing keys, which are used in turn.
const KEYS: usize = 100;
/// The number of keys and of rounds in a quick run.
const QUICK: usize = 3;

/// Runs a workload: each peer runs the operation once in each round. Returns the times of each peer,
/// round by round; the list is empty for a peer that does not support the operation. Additional
/// warm-up rounds, a tenth of the number, run first and are not counted.
pub(crate) fn measure(workload: &Workload, peers: &mut [Box<dyn Peer>], mode: RunMode) -> Vec<Vec<Duration>> {
    let mut value = invoice(SHORT);
    if workload.keys == Keys::Existing {
        for peer in &mut *peers {
            for durability in [Durability::Full, Durability::Relaxed] {
                let Some(mut put) = peer.job(Work::Put(durability)) else { continue };
                (0..mode.choose(KEYS, QUICK)).for_each(|n| put(&existing(n, mode), &value));
            }
        }
    }
    let count = peers.len();
    let mut times = vec![Vec::new(); count];
    let mut order: Vec<usize> = (0..count).collect();
    let mut jobs: Vec<_> = peers.iter_mut().map(|peer| peer.job(workload.work)).collect();
    let warm = mode.choose(workload.rounds / 10, 0);
    for n in 0..warm + mode.choose(workload.rounds, QUICK) {
        let key = match workload.keys {
            Keys::New => format!("new-{n:06}"),
            Keys::Existing => existing(n, mode),
        };
        value.number = n as u64;
        shuffle(&mut order, n as u64);
        for &at in &order {
            let Some(job) = &mut jobs[at] else { continue };
            let start = Instant::now();
            job(&key, &value);
            let time = start.elapsed();
            if n >= warm {
                times[at].push(time);
            }
        }
    }
    times
}

fn existing(n: usize, mode: RunMode) -> String {
    format!("invoice-{:03}", n % mode.choose(KEYS, QUICK))
}

/// The value for a peer that stores only bytes.
pub(crate) fn encode(value: &Invoice) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON can hold an invoice")
}

pub(crate) fn decode(text: &[u8]) -> Invoice {
    serde_json::from_slice(text).expect("an invoice")
}

/// The change of [`Work::Update`].
pub(crate) fn changed(text: &[u8]) -> Vec<u8> {
    let mut value = decode(text);
    value.number += 1;
    encode(&value)
}
