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
//! A recovery after the power loss is cut off in the same way, on a sample of the trees, and done again.
//!
//! After a power loss no process is alive: no owner file is locked, and the locks on the disk are from
//! another boot.
//!
//! A file of another program in the place of a record is still there, or moved aside, whenever no change of
//! that record was in progress.
//!
//! The guarantees for a lock: a lock that is bound to a process is free. That of a named holder is held or free as it was
//! acknowledged, with its token and at least its lease, if the store is durable.

mod cache;
mod content;
pub(crate) mod disk;
mod frames;
mod guarantees;
pub(crate) mod normalize;
mod order;
pub(crate) mod recorder;
pub(crate) mod recover;
mod sequences;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cache::Cache;
use disk::{Disk, Interner, Tree};
use guarantees::Guarantees;
use recorder::{Damaged, Event};
use recover::ScratchDir;
use sequences::{Action, Job, Mark, Operation, Sequence, Start, sequences, store_below};

use crate::support::children::Role;
use crate::support::storm;
use crate::watchdog::watch_test_for;

pub(crate) const ROLES: &[Role] = &[
    ("power-loss", sequences::play),
    ("power-loss-recovery", sequences::recover),
    ("power-loss-change", order::change),
];

/// A limit, because each store costs the child a descriptor.
const MAX_SEQUENCES_PER_CHILD: usize = 100;

/// One in so many recoveries that change a file is cut off.
const ONE_RECOVERY_IN: u64 = 100;

/// The state that all workers share.
#[derive(Default)]
struct Survey {
    /// The number of recoveries that changed a file.
    changing: AtomicU64,
    interner: Interner,
    cache: Mutex<Cache>,
    states: AtomicU64,
    moments: AtomicU64,
    recoveries: AtomicU64,
    cut_recoveries: AtomicU64,
}

/// The recoveries of some trees are cut off themselves.
struct Sample<'a> {
    trees: Vec<Damaged>,
    guarantees: Vec<Guarantees<'a>>,
}

/// Plays the sequences and checks every state. Returns the number of states.
fn survey(sequences: &[Sequence]) -> u64 {
    watch_test_for(Duration::from_mins(10));
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
                    let mut sample = Sample { trees: Vec::new(), guarantees: Vec::new() };
                    for (sequence, log) in chunk.iter().zip(&logs) {
                        survey.cut_power(&dir, sequence, log, &mut sample);
                    }
                    survey.cut_recoveries(&dir, &sample);
                }
            });
        }
    });
    let (states, cache) = (survey.states.into_inner(), survey.cache.into_inner().unwrap());
    println!(
        "{} sequences, {} moments, {states} states, {} of them in {} recoveries, {} distinct trees, {} of them \
         materialized, {} recoveries moved something aside, {:.1?}",
        sequences.len(),
        survey.moments.into_inner(),
        survey.cut_recoveries.into_inner(),
        survey.recoveries.into_inner(),
        cache.trees(),
        cache.materialized(),
        recover::MOVED_ASIDE.swap(0, Ordering::Relaxed),
        start.elapsed()
    );
    states
}

impl Survey {
    /// Cuts the power at every moment of a sequence's last operation.
    fn cut_power<'a>(
        &'a self,
        dir: &ScratchDir,
        sequence: &'a Sequence,
        log: &[Event],
        sample: &mut Sample<'a>,
    ) {
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
                self.moments.fetch_add(1, Ordering::Relaxed);
                let states = self.check_moment(dir, &disk, &guarantees, &log[..=at], Some(sample));
                self.states.fetch_add(states, Ordering::Relaxed);
            }
        }
    }

    /// Lets the store recover in each tree of the sample, cuts the power at each moment of that, and lets it recover
    /// again.
    fn cut_recoveries<'a>(&'a self, dir: &ScratchDir, sample: &Sample<'a>) {
        if sample.trees.is_empty() {
            return;
        }
        let Some(logs) = recorder::record_recoveries(&sample.trees, &self.interner) else { return };
        for ((log, (tree, _)), guarantees) in logs.iter().zip(&sample.trees).zip(&sample.guarantees) {
            self.recoveries.fetch_add(1, Ordering::Relaxed);
            let mut disk = Disk::holding(&self.interner, tree);
            for (at, event) in log.iter().enumerate() {
                let Event::Effect(effect) = event else { continue };
                disk.apply(effect);
                let states = self.check_moment(dir, &disk, guarantees, &log[..=at], None);
                self.states.fetch_add(states, Ordering::Relaxed);
                self.cut_recoveries.fetch_add(states, Ordering::Relaxed);
            }
        }
    }

    /// Checks every tree that the disk may hold at this moment. Returns their number.
    fn check_moment<'a>(
        &self,
        dir: &ScratchDir,
        disk: &Disk<'_>,
        guarantees: &Guarantees<'a>,
        log: &[Event],
        mut sample: Option<&mut Sample<'a>>,
    ) -> u64 {
        let mut states = 0;
        disk.each_tree(limit(), &mut |tree| {
            states += 1;
            let cached = self.cache.lock().unwrap().get(tree, &self.interner);
            let checked = match cached {
                Some([a, b]) => guarantees.check(tree, [&a, &b]),
                None => self.recover(dir, tree, guarantees, sample.as_deref_mut()),
            };
            if let Err(violation) = checked {
                panic!(
                    "{violation}\n{:?}\n{}",
                    guarantees.sequence,
                    recover::describe(tree, &self.interner, log)
                );
            }
        });
        states
    }

    fn recover<'a>(
        &self,
        dir: &ScratchDir,
        tree: &Tree,
        guarantees: &Guarantees<'a>,
        sample: Option<&mut Sample<'a>>,
    ) -> Result<(), String> {
        let below = store_below(guarantees.sequence.start);
        let (recovered, has_changed) = dir.recover(tree, &self.interner, below)?;
        guarantees.check(tree, [&recovered[0], &recovered[1]])?;
        let mut cache = self.cache.lock().unwrap();
        let one_in = ONE_RECOVERY_IN.div_ceil(storm(1));
        if let Some(sample) = sample
            && has_changed
            && self.changing.fetch_add(1, Ordering::Relaxed).is_multiple_of(one_in)
        {
            sample.trees.push((tree.into(), below));
            sample.guarantees.push(guarantees.clone());
        }
        cache.insert(tree, &self.interner, recovered)
    }
}

/// At most so many states of the data are tried for each choice of the names.
fn limit() -> usize {
    usize::try_from(storm(8)).unwrap()
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

/// Sequences in which a rule of the log is needed.
fn sequences_for_rules() -> Vec<Sequence> {
    use Action::{
        Acquire, Break, Checkpoint, GuardedWrite, HandOver, Read, Release, Remove, Renew, Write, WriteInVain,
        WriteLarge,
    };
    let of = |relaxed, has_job: bool, actions: &[Action]| Sequence {
        start: Start::Checkpointed,
        relaxed,
        job: has_job.then_some(Job::Short),
        operations: actions.iter().map(|&action| Operation { action, key: 0 }).collect(),
    };
    let (full, relaxed) = (false, true);
    let mut all = vec![
        of(full, true, &[Acquire, Checkpoint, Renew]),
        of(full, true, &[Acquire, Checkpoint, Release]),
        of(full, true, &[Acquire, Checkpoint, Break]),
        of(full, true, &[Acquire, Checkpoint, HandOver]),
        of(full, true, &[Acquire, Checkpoint, GuardedWrite]),
        of(full, true, &[Acquire, WriteInVain, Write]),
        of(relaxed, true, &[Acquire, Write, WriteInVain]),
        of(relaxed, true, &[Acquire, WriteInVain, Write]),
        of(full, false, &[Remove, Checkpoint, Write]),
        of(full, false, &[Write, Write, Checkpoint, Write, Checkpoint]),
        of(full, false, &[Write, Write, Checkpoint, Write, Checkpoint, Write]),
        of(full, false, &[Write, Remove, Checkpoint]),
        of(full, false, &[Write, Write, Remove, Checkpoint]),
        of(full, true, &[Acquire, Release]),
        of(full, false, &[WriteLarge, Checkpoint, Write]),
        of(full, false, &[WriteLarge, Remove, WriteLarge]),
        of(relaxed, true, &[Acquire, Checkpoint, Renew]),
        of(relaxed, true, &[Acquire, Checkpoint, Renew, Renew]),
        of(relaxed, true, &[Acquire, Renew, Checkpoint, Acquire]),
        of(relaxed, true, &[Acquire, Read, Renew]),
        of(relaxed, false, &[WriteLarge, Read, Write]),
        of(relaxed, false, &[Write, Write, Write]),
        of(relaxed, false, &[Write, Read, Write]),
        of(relaxed, false, &[Write, Checkpoint, Write]),
        of(relaxed, false, &[Remove, Checkpoint, Write]),
        of(relaxed, false, &[Write, Remove, Read]),
        of(relaxed, false, &[Remove, Write, Write]),
        of(relaxed, false, &[Write, Write, Checkpoint, Write, Checkpoint, Write]),
    ];
    let with_job = all.iter().filter(|sequence| sequence.job.is_some()).cloned();
    let long: Vec<_> = with_job.map(|sequence| Sequence { job: Some(Job::Long), ..sequence }).collect();
    all.extend(long);
    all
}

#[test]
fn each_rule_of_the_log_holds() {
    let states = survey(&sequences_for_rules());
    assert!(states > 1_000, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn an_old_store_survives_power_loss() {
    let sequences = sample(sequences(Start::Old, false, 3), 1, 6_000);
    let states = survey(&sequences);
    assert!(states > 1_000, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn an_old_store_without_syncs_survives_power_loss() {
    let sequences = sample(sequences(Start::Old, true, 3), 1, 20_000);
    let states = survey(&sequences);
    assert!(states > 1_000, "only {states} states: does the recorder miss system calls?");
}

/// Sequences of up to two operations, all on the record of `a`, which is changed.
fn changes_of_one_record(start: Start) -> Vec<Sequence> {
    let all = [sequences(start, false, 2), sequences(start, true, 2)].concat();
    let on_it = |sequence: &Sequence| sequence.operations.iter().all(|operation| operation.key == 0);
    let changes_it = |sequence: &Sequence| {
        let changes = |action| matches!(action, Action::Write | Action::Remove | Action::GuardedWrite);
        on_it(sequence) && sequence.operations.iter().any(|operation| changes(operation.action))
    };
    all.into_iter().filter(changes_it).collect()
}

/// Each kind of change of the record of `a`, durable or seen by a durable reader, and a sample of longer sequences.
fn changes_and_a_sample(start: Start) -> Vec<Sequence> {
    use Action::{GuardedWrite, Read, Remove, Write, WriteLarge};
    let of = |relaxed, actions: &[Action]| Sequence {
        start,
        relaxed,
        job: None,
        operations: actions.iter().map(|&action| Operation { action, key: 0 }).collect(),
    };
    let durable = [Write, WriteLarge, Remove, GuardedWrite].map(|change| of(false, &[change]));
    let seen = [Write, WriteLarge, Remove].map(|change| of(true, &[change, Read]));
    let mut all = [durable.as_slice(), &seen].concat();
    all.extend(sample(changes_of_one_record(start), 0, 80));
    all
}

#[test]
fn a_foreign_file_survives_power_loss() {
    let states = survey(&changes_and_a_sample(Start::Foreign));
    assert!(states > 500, "only {states} states: does the recorder miss system calls?");
}

/// The log tells of a newer record, but a file without a version may have been written after that.
#[test]
fn a_change_of_a_record_written_by_hand_survives_power_loss() {
    let states = survey(&changes_and_a_sample(Start::ByHand));
    assert!(states > 500, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn a_new_store_survives_power_loss() {
    survey(&sample(sequences(Start::New, false, 1), 0, 24));
}

#[test]
fn a_new_store_without_syncs_survives_power_loss() {
    survey(&sample(sequences(Start::New, true, 1), 0, 24));
}

#[test]
fn a_new_store_in_a_new_directory_survives_power_loss() {
    survey(&sample(sequences(Start::NewInNewDirectory, false, 1), 0, 24));
}

#[test]
fn a_store_that_is_upgraded_survives_power_loss() {
    let states = survey(&sample(sequences(Start::Version1, false, 1), 0, 4));
    assert!(states > 100, "only {states} states: does the recorder miss system calls?");
}

#[test]
fn a_store_whose_creator_was_killed_survives_power_loss() {
    survey(&sample(sequences(Start::NewByKilled, false, 1), 0, 24));
}

#[test]
fn a_store_that_another_handle_created_without_syncs_survives_power_loss() {
    survey(&sample(sequences(Start::NewByRelaxed, false, 1), 0, 24));
}
