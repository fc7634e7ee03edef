//! The sequences of operations, and the child that plays them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{
    Durability, FileSystemRecordStore, Holder, LockOptions, LockToken, RecordStoreExt, RemoveOptions,
    WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::support::children::Stage;
use crate::support::trace::perform;
use crate::support::{enqueue_dead_waiter, named, open_with};

/// `a` has a record when a sequence begins, `b` has none. Each has its own latch.
pub(crate) const KEYS: [&str; 2] = ["a", "b"];
pub(crate) const OLD: &str = "old";

/// The content of a file of another program, in the place of a record.
pub(crate) const FOREIGN: &str = "{\"name\":\"demo\"}";

/// The holder of locks that are not bound to a process.
pub(crate) const JOB: &str = "job";
const LEASE: Duration = Duration::from_hours(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Writes the record, with or without a lock.
    Write,
    Remove,
    Acquire,
    Release,
    Renew,
    /// Acquires the lock, unless it is held already. Then releases it while a waiter is queued, and
    /// acquires it again. Both rewrite the lock file in place.
    HandOver,
    /// Creates a guard, writes through it, and releases it. Inside an acquired lock it is an inner guard.
    GuardedWrite,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Operation {
    pub(crate) action: Action,
    /// The index of the key.
    pub(crate) key: usize,
}

/// How the store was created, before the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Start {
    /// Long ago, so everything is on the disk.
    Old,
    /// Long ago. Then another program put a file into the place of the record of `a`.
    Foreign,
    /// Just now, by this handle.
    New,
    /// As `New`, in a directory whose parent does not exist either.
    NewInNewDirectory,
    /// Just now, by another handle, which syncs nothing.
    NewByRelaxed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    pub(crate) start: Start,
    pub(crate) relaxed: bool,
    /// Locks belong to [`JOB`] and have a lease. Otherwise they belong to the process.
    pub(crate) job: bool,
    pub(crate) operations: Vec<Operation>,
}

/// The store, relative to the base directory.
pub(crate) fn store_below(start: Start) -> &'static str {
    if start == Start::NewInNewDirectory { "above/records" } else { "records" }
}

/// All sequences of up to `longest` operations on a store of this start and durability. They release and
/// renew only locks that are held. Every prefix of a sequence is a sequence too.
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
        // Without a lock its holder makes no difference.
        sequences.retain(|sequence| !job || sequence.operations.iter().any(|it| it.action.locks()));
        // Without an operation nothing happens to an old store.
        sequences.retain(|sequence| start.is_new() || !sequence.operations.is_empty());
        all.append(&mut sequences);
    }
    all
}

impl Start {
    /// Whether the store is created by the sequence.
    fn is_new(self) -> bool {
        !matches!(self, Self::Old | Self::Foreign)
    }
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

/// A report of the child's progress to the recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Mark {
    /// The sequence with this number starts, on a new disk.
    Begin(usize),
    /// The store is ready, and all of it has reached the disk.
    Settled,
    /// The store is about to be opened.
    Open,
    Opened,
    Invoke(usize),
    /// The operation is acknowledged, with the token that it issued, if any.
    Return(usize, Option<u64>),
    /// The sequence has ended.
    End,
}

/// The child: plays sequences, each in its numbered directory.
pub(crate) fn play(stage: &Stage) {
    let (dir, sequences): (PathBuf, Vec<Sequence>) = stage.argument();
    perform(stage, &rustix::thread::gettid().as_raw_pid().to_string(), || {
        for (number, sequence) in sequences.iter().enumerate() {
            report(stage, Mark::Begin(number));
            play_one(stage, &dir.join(number.to_string()).join(store_below(sequence.start)), sequence);
            report(stage, Mark::End);
        }
    });
}

fn report(stage: &Stage, mark: Mark) {
    stage.send(&serde_json::to_string(&mark).unwrap());
}

fn play_one(stage: &Stage, dir: &Path, sequence: &Sequence) {
    let durability = if sequence.relaxed { Durability::Relaxed } else { Durability::Full };
    if sequence.start == Start::NewByRelaxed {
        drop(open_with(dir, Durability::Relaxed));
    }
    report(stage, Mark::Open);
    let store = open_with(dir, durability);
    report(stage, Mark::Opened);
    if sequence.start == Start::Old {
        store.write(KEYS[0], OLD).unwrap();
        report(stage, Mark::Settled);
    }
    if sequence.start == Start::Foreign {
        std::fs::write(dir.join(format!("{}.json", KEYS[0])), FOREIGN).unwrap();
        report(stage, Mark::Settled);
    }
    let mut tokens = [None; KEYS.len()];
    for (position, operation) in sequence.operations.iter().enumerate() {
        report(stage, Mark::Invoke(position));
        let token = perform_operation(&store, *operation, position, sequence.job, &mut tokens[operation.key]);
        report(stage, Mark::Return(position, token.map(LockToken::get)));
    }
}

fn perform_operation(
    store: &FileSystemRecordStore,
    Operation { action, key }: Operation,
    position: usize,
    job: bool,
    token: &mut Option<LockToken>,
) -> Option<LockToken> {
    let key = KEYS[key];
    let holder = if job { named(JOB) } else { Holder::current() };
    let options = LockOptions::new().holder(holder.clone()).hold_timeout(job.then_some(LEASE));
    match action {
        Action::Write => store.write_with(key, &value(position), WriteOptions::new().claim(holder)).unwrap(),
        Action::Remove => assert!(store.remove_with(key, RemoveOptions::new().claim(holder)).is_ok()),
        Action::Acquire => *token = Some(store.acquire_lock(key, options).unwrap()),
        Action::Release => store.release_lock(key, token.take().unwrap()).unwrap(),
        Action::Renew => store.renew(key, token.unwrap(), job.then_some(2 * LEASE)).unwrap(),
        Action::HandOver => {
            let held = store.acquire_lock(key, options.clone()).unwrap();
            enqueue_dead_waiter(store.path(), key);
            store.release_lock(key, held).unwrap();
            *token = Some(store.acquire_lock(key, options).unwrap());
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
