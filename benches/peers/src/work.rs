//! What is done, by whom, and how it is measured.

use std::time::{Duration, Instant};

use record_store::Durability;

use crate::invoice::{Invoice, SHORT, invoice};
use crate::place::Pace;

/// Something that every peer may be able to do with one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Make the value the key's, so that it lasts.
    Put(Durability),
    /// Read and decode it.
    Get,
    /// Tell whether there is one.
    Exists,
    /// Take the key's lock, and give it back.
    Lock,
    /// Under the lock or in a transaction: read, change by one, write relaxed.
    Update,
}

/// Which keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    New,
    Existing,
}

/// One line of the results.
pub(crate) struct Round {
    pub(crate) name: &'static str,
    pub(crate) work: Work,
    pub(crate) keys: Keys,
    /// How often in a full run.
    times: usize,
}

const fn round(name: &'static str, work: Work, keys: Keys, times: usize) -> Round {
    Round { name, work, keys, times }
}

pub(crate) const ROUNDS: &[Round] = &[
    round("durable write, new key", Work::Put(Durability::Full), Keys::New, 300),
    round("durable write, existing key", Work::Put(Durability::Full), Keys::Existing, 300),
    round("relaxed write, new key", Work::Put(Durability::Relaxed), Keys::New, 2_000),
    round("relaxed write, existing key", Work::Put(Durability::Relaxed), Keys::Existing, 2_000),
    round("read, 300 B", Work::Get, Keys::Existing, 5_000),
    round("exists", Work::Exists, Keys::Existing, 5_000),
    round("lock and unlock", Work::Lock, Keys::Existing, 2_000),
    round("guarded read-modify-write", Work::Update, Keys::Existing, 1_000),
];

/// What there is to say of a peer besides its times.
pub(crate) struct About {
    pub(crate) name: &'static str,
    /// Whether several processes may write at once.
    pub(crate) writers: &'static str,
    /// What exactly is compared with the store's operation.
    pub(crate) compared: &'static str,
}

/// A piece of work, ready to be done with any key and value.
pub(crate) type Job<'a> = Box<dyn FnMut(&str, &Invoice) + 'a>;

pub(crate) trait Peer {
    fn about(&self) -> About;

    /// `None` where the peer cannot do this work.
    fn job(&mut self, work: Work) -> Option<Job<'_>>;
}

/// Keys that take turns, where they exist.
const KEYS: usize = 100;
/// Rounds of a quick run.
const QUICK: usize = 3;

/// Has all peers do the work, each once a round. Returns their times, round by round; nothing for
/// who cannot do it. A tenth of the rounds comes first and is not counted.
pub(crate) fn measure(round: &Round, peers: &mut [Box<dyn Peer>], pace: Pace) -> Vec<Vec<Duration>> {
    let mut value = invoice(SHORT);
    if round.keys == Keys::Existing {
        for peer in &mut *peers {
            for durability in [Durability::Full, Durability::Relaxed] {
                let Some(mut put) = peer.job(Work::Put(durability)) else { continue };
                (0..pace.pick(KEYS, QUICK)).for_each(|n| put(&existing(n, pace), &value));
            }
        }
    }
    let count = peers.len();
    let mut times = vec![Vec::new(); count];
    let mut order: Vec<usize> = (0..count).collect();
    let mut jobs: Vec<_> = peers.iter_mut().map(|peer| peer.job(round.work)).collect();
    let warm = pace.pick(round.times / 10, 0);
    for n in 0..warm + pace.pick(round.times, QUICK) {
        let key = match round.keys {
            Keys::New => format!("new-{n:06}"),
            Keys::Existing => existing(n, pace),
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

/// Another order for each round: who always came after the same one would always find the caches as
/// that one leaves them.
fn shuffle(order: &mut [usize], seed: u64) {
    let mut state = seed;
    for last in (1..order.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(state >> 33).expect("31 bits") % (last + 1);
        order.swap(last, other);
    }
}

fn existing(n: usize, pace: Pace) -> String {
    format!("invoice-{:03}", n % pace.pick(KEYS, QUICK))
}

/// The value as a peer that knows only bytes stores it.
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
