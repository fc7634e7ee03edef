//! What a disk may hold after a power loss, all of it, and that the store recovers from it.
//!
//! A child plays sequences of up to three operations: all those of one operation on an old store,
//! and of the others a sample that grows with `RECORD_STORE_STORM`, up to all of them. Its system
//! calls are recorded, and what they do is done again to a model of a [`disk`]. After every effect the
//! power fails: every tree that the disk may then hold is laid out in memory, and the library itself
//! opens it. What it finds there has to be what was promised until that moment.
//!
//! The same tree comes about in many ways and is laid out once; what was promised is judged for each
//! way of its own. Counted is each way: a sequence, a moment in its last operation (the moments
//! before are those of a shorter sequence) and what of the pending changes the disk has taken in.
//!
//! Without a storm that is some 13 000 states, in about 6 000 distinct trees, of which 2 700 are laid
//! out.
//!
//! After a power loss nobody is alive: no process has an owner file locked, and the locks on the
//! disk are of another boot.
//!
//! What is promised of a lock: one that is bound to a process is free. One of a named holder that is
//! on the disk whole is held; it may be lost, and a release may be undone, because locks are not
//! synced. A lock file of which only the first half has arrived, or that a hand-over has overwritten
//! by half, is [`Error::CorruptLock`] and goes away by [`break_lock`]; these are the only cases. No
//! lock file that is empty or zero, whole, or not there is ever in the way.
//!
//! [`Error::CorruptLock`]: record_store::Error::CorruptLock
//! [`break_lock`]: record_store::RecordStoreExt::break_lock

mod disk;
mod judge;
mod known;
mod play;
mod record;
mod recover;
mod uniform;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use disk::{Disk, Numbers, Tree};
use judge::Promises;
use known::Known;
use play::{Mark, Sequence, Start, sequences, store_below};
use record::Event;
use recover::Ground;

use crate::support::children::Role;
use crate::support::storm;

pub(crate) const ROLES: &[Role] = &[("power-loss", play::play)];

/// So many sequences a child plays: each store costs it a descriptor.
const A_CHILDS: usize = 100;

/// What all workers share.
#[derive(Default)]
struct Survey {
    numbers: Numbers,
    known: Mutex<Known>,
    states: AtomicU64,
    moments: AtomicU64,
}

/// Plays the sequences and checks every state; returns how many states that were.
fn survey(sequences: &[Sequence]) -> u64 {
    let survey = Survey::default();
    // The library sleeps a while over a lock that is half there: others work meanwhile.
    let workers = 3 * std::thread::available_parallelism().map_or(1, usize::from);
    let chunks: Vec<_> = sequences.chunks(A_CHILDS.min(sequences.len().div_ceil(workers))).collect();
    let next = AtomicUsize::new(0);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let ground = Ground::new();
                while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(logs) = record::record(chunk) else { return };
                    for (sequence, log) in chunk.iter().zip(logs) {
                        survey.lose_power(&ground, sequence, &log);
                    }
                }
            });
        }
    });
    let (states, known) = (survey.states.into_inner(), survey.known.into_inner().unwrap());
    println!(
        "{} sequences, {} moments, {states} states, {} distinct trees, {} of them laid out, {:.1?}",
        sequences.len(),
        survey.moments.into_inner(),
        known.trees(),
        known.laid_out(),
        start.elapsed()
    );
    states
}

impl Survey {
    /// Lets the power fail at every moment of a sequence's last operation.
    fn lose_power(&self, ground: &Ground, sequence: &Sequence, log: &[Event]) {
        let mut disk = Disk::new(&self.numbers);
        let mut promises = Promises::new(sequence, &self.numbers);
        let last = match sequence.operations.len() {
            0 => Mark::Open,
            operations => Mark::Invoke(operations - 1),
        };
        let mut in_last = false;
        for (at, event) in log.iter().enumerate() {
            match event {
                Event::Effect(effect) => disk.apply(effect),
                Event::Mark(Mark::Settled) => disk.settle(),
                Event::Mark(mark) => {
                    promises.hear(*mark);
                    if *mark == last {
                        // The disk is as it was, and less is promised than just before.
                        in_last = true;
                        continue;
                    }
                }
            }
            // If nothing happens to the disk before more is promised, that is the moment to look.
            let next_is_more = matches!(log.get(at + 1), Some(Event::Mark(Mark::Return(..) | Mark::Opened)));
            if in_last && !next_is_more && !matches!(event, Event::Mark(Mark::End)) {
                self.look(ground, &disk, &promises, &log[..=at]);
            }
        }
    }

    fn look(&self, ground: &Ground, disk: &Disk<'_>, promises: &Promises<'_>, log: &[Event]) {
        self.moments.fetch_add(1, Ordering::Relaxed);
        let mut states = 0;
        disk.each_tree(&mut |tree| {
            states += 1;
            let known = self.known.lock().unwrap().recall(tree);
            let judged = match known {
                Some([a, b]) => promises.judge(tree, [&a, &b]),
                None => self.recover(ground, tree, promises),
            };
            if let Err(complaint) = judged {
                panic!("{complaint}\n{}", self.describe(tree, promises, log));
            }
        });
        self.states.fetch_add(states, Ordering::Relaxed);
    }

    fn recover(&self, ground: &Ground, tree: &Tree, promises: &Promises<'_>) -> Result<(), String> {
        let below = store_below(promises.sequence.start);
        let after = ground.recover(tree, &self.numbers, below)?;
        promises.judge(tree, [&after[0], &after[1]])?;
        self.known.lock().unwrap().learn(tree, after)
    }

    /// All that is needed to follow a failure by hand.
    fn describe(&self, tree: &Tree, promises: &Promises<'_>, log: &[Event]) -> String {
        use std::fmt::Write;
        let mut text = format!("{:?}\nwhat was done until the power failed:\n", promises.sequence);
        for event in log {
            let mut line = format!("{event:?}");
            line.truncate(line.floor_char_boundary(160));
            writeln!(text, "  {line}").unwrap();
        }
        text.push_str("what the disk holds:\n");
        for &(path, image) in tree {
            let content = if image == disk::DIRECTORY {
                "a directory".to_owned()
            } else {
                let content = self.numbers.content_of(image);
                let zeros = content.iter().rev().take_while(|&&byte| byte == 0).count();
                let shown = &content[..(content.len() - zeros).min(400)];
                format!(
                    "{:?} of {} bytes, {zeros} zeros at the end",
                    String::from_utf8_lossy(shown),
                    content.len()
                )
            };
            writeln!(text, "  {}: {content}", self.numbers.path_of(path)).unwrap();
        }
        text
    }
}

/// The sequences whose turn it is, in a fixed order: one in `one_in`, and in a storm more of them, up
/// to all. The shortest are always among them.
fn sample(all: Vec<Sequence>, shortest: usize, one_in: u64) -> Vec<Sequence> {
    let one_in = (one_in / storm(1)).max(1);
    let mut turn = 0;
    let mut chosen = all;
    chosen.retain(|sequence| {
        let short = sequence.operations.len() <= shortest;
        turn += u64::from(!short);
        short || turn % one_in == 0
    });
    chosen
}

#[test]
fn an_old_store() {
    let sequences = sample(sequences(Start::Old, false, 3), 1, 800);
    let states = survey(&sequences);
    assert!(states > 1_000, "only {states} states: has the recorder gone blind?");
}

#[test]
fn an_old_store_that_syncs_nothing() {
    let sequences = sample(sequences(Start::Old, true, 3), 1, 4_000);
    let states = survey(&sequences);
    assert!(states > 1_000, "only {states} states: has the recorder gone blind?");
}

#[test]
fn a_new_store() {
    survey(&sample(sequences(Start::New, false, 1), 0, 6));
}

#[test]
fn a_new_store_that_syncs_nothing() {
    survey(&sample(sequences(Start::New, true, 1), 0, 24));
}

#[test]
fn a_new_store_below_a_new_directory() {
    survey(&sample(sequences(Start::Deep, false, 1), 0, 12));
}

#[test]
fn a_store_that_another_made_without_syncing() {
    survey(&sample(sequences(Start::NewByRelaxed, false, 1), 0, 12));
}
