//! The store recovers from everything that a disk may hold after a power loss.
//!
//! A child plays sequences of up to three operations. It plays all sequences of one operation on an old
//! store, and a sample of the others. The sample grows with `RECORD_STORE_STORM`, up to all of them. The
//! system calls of the child are recorded, and their effects are replayed on a model of a [`disk`]. The
//! power fails after every effect: every tree that the disk may then hold is materialized in memory, and
//! the library itself opens it. It has to find what was guaranteed until that moment.
//!
//! The same tree can arise in many ways. It is materialized once, and the guarantees are checked for
//! each way separately. The number of states counts each way: a sequence, a moment in its last operation
//! (the earlier moments belong to a shorter sequence), and which pending changes reached the disk.
//!
//! Without a storm there are some 48 000 states, in about 23 000 distinct trees, of which 6 500 are
//! materialized.
//!
//! After a power loss no process is alive: no owner file is locked, and the locks on the disk are from
//! another boot.
//!
//! A file of another program in the place of a record is still there, or moved aside, whenever no change of
//! that record was in progress.
//!
//! The guarantees for a lock: a lock that is bound to a process is free. A lock of a named holder that
//! is on the disk as a whole is held. Such a lock may be lost, and its release may be undone, because
//! locks are not synced. A lock file is [`CorruptLock`], and [`break_lock`] removes it, if only
//! its first half has arrived, or if a hand-over has overwritten only half of it. These are the only
//! cases. A lock file that is missing, whole, empty or all zeros is never an error.
//!
//! [`CorruptLock`]: record_store::ErrorKind::CorruptLock
//! [`break_lock`]: record_store::RecordStoreExt::break_lock

mod cache;
mod disk;
mod guarantees;
mod normalize;
mod recorder;
mod recover;
mod sequences;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use cache::Cache;
use disk::{Disk, Interner, Tree};
use guarantees::Guarantees;
use recorder::Event;
use recover::ScratchDir;
use sequences::{Mark, Sequence, Start, sequences, store_below};

use crate::support::children::Role;
use crate::support::storm;

pub(crate) const ROLES: &[Role] = &[("power-loss", sequences::play)];

/// A limit, because each store costs the child a descriptor.
const MAX_SEQUENCES_PER_CHILD: usize = 100;

/// The state that all workers share.
#[derive(Default)]
struct Survey {
    interner: Interner,
    cache: Mutex<Cache>,
    states: AtomicU64,
    moments: AtomicU64,
}

/// Plays the sequences and checks every state. Returns the number of states.
fn survey(sequences: &[Sequence]) -> u64 {
    let survey = Survey::default();
    // The library sleeps for a while when it finds half a lock file. Other workers use that time.
    let workers = 3 * std::thread::available_parallelism().map_or(1, usize::from);
    let chunks: Vec<_> =
        sequences.chunks(MAX_SEQUENCES_PER_CHILD.min(sequences.len().div_ceil(workers))).collect();
    let next = AtomicUsize::new(0);
    let start = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                let dir = ScratchDir::new();
                while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(logs) = recorder::record(chunk) else { return };
                    for (sequence, log) in chunk.iter().zip(logs) {
                        survey.cut_power(&dir, sequence, &log);
                    }
                }
            });
        }
    });
    let (states, cache) = (survey.states.into_inner(), survey.cache.into_inner().unwrap());
    println!(
        "{} sequences, {} moments, {states} states, {} distinct trees, {} of them materialized, {:.1?}",
        sequences.len(),
        survey.moments.into_inner(),
        cache.trees(),
        cache.materialized(),
        start.elapsed()
    );
    states
}

impl Survey {
    /// Cuts the power at every moment of a sequence's last operation.
    fn cut_power(&self, dir: &ScratchDir, sequence: &Sequence, log: &[Event]) {
        let mut disk = Disk::new(&self.interner);
        let mut guarantees = Guarantees::new(sequence, &self.interner);
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
                    guarantees.update(*mark);
                    if *mark == last {
                        // The disk is unchanged, and less is guaranteed than just before.
                        in_last = true;
                        continue;
                    }
                }
            }
            // If the next event adds a guarantee and leaves the disk unchanged, check only after it.
            let next_is_more = matches!(log.get(at + 1), Some(Event::Mark(Mark::Return(..) | Mark::Opened)));
            if in_last && !next_is_more && !matches!(event, Event::Mark(Mark::End)) {
                self.check_moment(dir, &disk, &guarantees, &log[..=at]);
            }
        }
    }

    /// Checks every tree that the disk may hold at this moment.
    fn check_moment(&self, dir: &ScratchDir, disk: &Disk<'_>, guarantees: &Guarantees<'_>, log: &[Event]) {
        self.moments.fetch_add(1, Ordering::Relaxed);
        let mut states = 0;
        disk.each_tree(&mut |tree| {
            states += 1;
            let cached = self.cache.lock().unwrap().get(tree);
            let checked = match cached {
                Some([a, b]) => guarantees.check(tree, [&a, &b]),
                None => self.recover(dir, tree, guarantees),
            };
            if let Err(violation) = checked {
                panic!("{violation}\n{}", self.describe(tree, guarantees, log));
            }
        });
        self.states.fetch_add(states, Ordering::Relaxed);
    }

    fn recover(&self, dir: &ScratchDir, tree: &Tree, guarantees: &Guarantees<'_>) -> Result<(), String> {
        let below = store_below(guarantees.sequence.start);
        let recovered = dir.recover(tree, &self.interner, below)?;
        guarantees.check(tree, [&recovered[0], &recovered[1]])?;
        self.cache.lock().unwrap().insert(tree, recovered)
    }

    /// Everything that is needed to reproduce a failure by hand.
    fn describe(&self, tree: &Tree, guarantees: &Guarantees<'_>, log: &[Event]) -> String {
        use std::fmt::Write;
        let mut text = format!("{:?}\nevents until the power failed:\n", guarantees.sequence);
        for event in log {
            let mut line = format!("{event:?}");
            line.truncate(line.floor_char_boundary(160));
            writeln!(text, "  {line}").unwrap();
        }
        text.push_str("the disk holds:\n");
        for &(path, image) in tree {
            let content = if image == disk::DIRECTORY {
                "a directory".to_owned()
            } else {
                let content = self.interner.content_of(image);
                let zeros = content.iter().rev().take_while(|&&byte| byte == 0).count();
                let shown = &content[..(content.len() - zeros).min(400)];
                format!(
                    "{:?} of {} bytes, {zeros} zeros at the end",
                    String::from_utf8_lossy(shown),
                    content.len()
                )
            };
            writeln!(text, "  {}: {content}", self.interner.path_of(path)).unwrap();
        }
        text
    }
}

/// Samples one in `one_in` sequences, in a fixed order. A storm samples more of them, up to all. The
/// sequences of up to `shortest` operations are always included.
fn sample(all: Vec<Sequence>, shortest: usize, one_in: u64) -> Vec<Sequence> {
    let one_in = (one_in / storm(1)).max(1);
    let mut counter = 0;
    let mut chosen = all;
    chosen.retain(|sequence| {
        let short = sequence.operations.len() <= shortest;
        counter += u64::from(!short);
        short || counter % one_in == 0
    });
    chosen
}

#[test]
fn an_old_store_survives_power_loss() {
    let sequences = sample(sequences(Start::Old, false, 3), 1, 800);
    let states = survey(&sequences);
    assert!(states > 1_000, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn an_old_store_without_syncs_survives_power_loss() {
    let sequences = sample(sequences(Start::Old, true, 3), 1, 4_000);
    let states = survey(&sequences);
    assert!(states > 1_000, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn a_foreign_file_survives_power_loss() {
    let all = [sequences(Start::Foreign, false, 2), sequences(Start::Foreign, true, 1)].concat();
    let on_it = |sequence: &Sequence| sequence.operations.iter().all(|operation| operation.key == 0);
    let states = survey(&sample(all.into_iter().filter(on_it).collect(), 1, 30));
    assert!(states > 500, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn a_new_store_survives_power_loss() {
    survey(&sample(sequences(Start::New, false, 1), 0, 6));
}

#[test]
fn a_new_store_without_syncs_survives_power_loss() {
    survey(&sample(sequences(Start::New, true, 1), 0, 24));
}

#[test]
fn a_new_store_in_a_new_directory_survives_power_loss() {
    survey(&sample(sequences(Start::NewInNewDirectory, false, 1), 0, 12));
}

#[test]
fn a_store_that_another_handle_created_without_syncs_survives_power_loss() {
    survey(&sample(sequences(Start::NewByRelaxed, false, 1), 0, 12));
}
