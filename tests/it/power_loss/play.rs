//! The sequences of operations, and the child that plays them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{Durability, FileSystemRecordStore, Holder, LockOptions, LockToken, RecordStoreExt};
use serde::{Deserialize, Serialize};

use crate::support::children::Stage;
use crate::support::trace::perform;
use crate::support::{named, open_with, stand_in_line};

/// `a` has a record when a sequence begins, `b` has none. They have latches of their own.
pub(crate) const KEYS: [&str; 2] = ["a", "b"];
pub(crate) const OLD: &str = "old";

/// The holder of locks that are not bound to a process.
pub(crate) const JOB: &str = "job";
const LEASE: Duration = Duration::from_hours(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    /// A write by whoever comes, over what is there.
    Write,
    Remove,
    Acquire,
    Release,
    Renew,
    /// The lock, taken now if it is not held, is released while somebody is in line for it, and taken
    /// again: in place, both.
    HandOver,
    /// A guard is taken, written through, and dropped. Inside an acquired lock it is an inner guard.
    GuardedWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    /// Which of the keys.
    pub(crate) key: usize,
}

/// How the store came to be, before the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Start {
    /// Long ago: all of it is on the disk.
    Old,
    /// By this process, just now.
    New,
    /// As `New`, in a directory whose parent does not exist either.
    Deep,
    /// Just now, by somebody who did not care for durability.
    NewByRelaxed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    pub(crate) start: Start,
    pub(crate) relaxed: bool,
    /// Locks belong to [`JOB`], with a lease, and not to the process.
    pub(crate) job: bool,
    pub(crate) operations: Vec<Operation>,
}

/// The store, seen from the base directory.
pub(crate) fn store_below(start: Start) -> &'static str {
    if start == Start::Deep { "above/records" } else { "records" }
}

/// All sequences of up to `longest` operations that a store of this start and durability can be
/// asked for: release and renew only what is held. The beginning of each is among them too.
pub(crate) fn sequences(start: Start, relaxed: bool, longest: usize) -> Vec<Sequence> {
    let mut all = Vec::new();
    for job in [false, true] {
        let none = Sequence { start, relaxed, job, operations: Vec::new() };
        let mut sequences = vec![none.clone()];
        let mut last = vec![none];
        for _ in 0..longest {
            last = last.iter().flat_map(continuations).collect();
            sequences.extend(last.iter().cloned());
        }
        // Without a lock it makes no difference who would hold it.
        sequences.retain(|sequence| !job || sequence.operations.iter().any(|it| it.action.locks()));
        // And to an old store nothing happens without an operation.
        sequences.retain(|sequence| start != Start::Old || !sequence.operations.is_empty());
        all.append(&mut sequences);
    }
    all
}

impl Action {
    const ALL: [Self; 7] = [
        Self::Write,
        Self::Remove,
        Self::Acquire,
        Self::Release,
        Self::Renew,
        Self::HandOver,
        Self::GuardedWrite,
    ];

    pub(crate) fn locks(self) -> bool {
        !matches!(self, Self::Write | Self::Remove)
    }
}

impl Sequence {
    /// Whether the key's lock is held after the operations.
    fn holds(&self, key: usize) -> bool {
        let of_key = self.operations.iter().rev().filter(|it| it.key == key);
        let changes = |it: &Action| matches!(it, Action::Acquire | Action::Release | Action::HandOver);
        of_key.map(|it| it.action).find(changes).is_some_and(|last| last != Action::Release)
    }
}

fn continuations(sequence: &Sequence) -> Vec<Sequence> {
    let mut all = Vec::new();
    for key in 0..KEYS.len() {
        for action in Action::ALL {
            if sequence.holds(key) || !matches!(action, Action::Release | Action::Renew) {
                let mut next = sequence.clone();
                next.operations.push(Operation { action, key });
                all.push(next);
            }
        }
    }
    all
}

/// The value that an operation writes, by its position.
pub(crate) fn value(position: usize) -> String {
    format!("value {position}")
}

/// What the recorder is told of the child's progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mark {
    /// The next sequence, with its number. What was before is of no interest any more.
    Begin(usize),
    /// The store is ready, and the disk has had the time to take it in.
    Settled,
    /// The store is being opened.
    Open,
    Opened,
    Invoke(usize),
    /// The operation is acknowledged, with the token that it gave, if any.
    Return(usize, Option<u64>),
    /// The sequence is over.
    End,
}

/// The child: plays sequences, each in the directory of its number.
pub(crate) fn play(stage: &Stage) {
    let (dir, sequences): (PathBuf, Vec<Sequence>) = stage.argument();
    perform(stage, &rustix::thread::gettid().as_raw_pid().to_string(), || {
        for (number, sequence) in sequences.iter().enumerate() {
            tell(stage, Mark::Begin(number));
            play_one(stage, &dir.join(number.to_string()).join(store_below(sequence.start)), sequence);
            tell(stage, Mark::End);
        }
    });
}

fn tell(stage: &Stage, mark: Mark) {
    stage.tell(&serde_json::to_string(&mark).unwrap());
}

fn play_one(stage: &Stage, dir: &Path, sequence: &Sequence) {
    let durability = if sequence.relaxed { Durability::Relaxed } else { Durability::Full };
    if sequence.start == Start::NewByRelaxed {
        drop(open_with(dir, Durability::Relaxed));
    }
    tell(stage, Mark::Open);
    let store = open_with(dir, durability);
    tell(stage, Mark::Opened);
    if sequence.start == Start::Old {
        store.write(KEYS[0], OLD).unwrap();
        tell(stage, Mark::Settled);
    }
    let mut tokens = [None; KEYS.len()];
    for (position, operation) in sequence.operations.iter().enumerate() {
        tell(stage, Mark::Invoke(position));
        let token = act(&store, *operation, position, sequence.job, &mut tokens[operation.key]);
        tell(stage, Mark::Return(position, token.map(LockToken::get)));
    }
}

fn act(
    store: &FileSystemRecordStore,
    Operation { action, key }: Operation,
    position: usize,
    job: bool,
    token: &mut Option<LockToken>,
) -> Option<LockToken> {
    let key = KEYS[key];
    let holder = if job { named(JOB) } else { Holder::current() };
    let mut options = LockOptions::new().holder(holder.clone());
    if job {
        options = options.hold_timeout(LEASE);
    }
    match action {
        Action::Write => store.write_as(key, &value(position), holder).unwrap(),
        Action::Remove => assert!(store.remove_as(key, holder).is_ok()),
        Action::Acquire => *token = Some(store.acquire_lock(key, &options).unwrap()),
        Action::Release => store.release_lock(key, token.take().unwrap()).unwrap(),
        Action::Renew => store.renew(key, token.unwrap(), job.then_some(2 * LEASE)).unwrap(),
        Action::HandOver => {
            let held = store.acquire_lock(key, &options).unwrap();
            stand_in_line(store.path(), key);
            store.release_lock(key, held).unwrap();
            *token = Some(store.acquire_lock(key, &options).unwrap());
        }
        Action::GuardedWrite => {
            let guard = store.lock(key, options).unwrap();
            guard.write(&value(position)).unwrap();
            let token = guard.token();
            guard.release().unwrap();
            return Some(token);
        }
    }
    *token
}
