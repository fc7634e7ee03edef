//! The sequences of operations, and the child that plays them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{
    Durability, ErrorKind, FileSystemRecordStore, Holder, LockOptions, LockToken, ReadOptions,
    RecordStoreExt, RemoveOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::support::children::Stage;
use crate::support::trace::perform;
use crate::support::{enqueue_dead_waiter, named, names_in, open_with};

/// `a` has a record when a sequence begins, `b` has none. Each has its own latch.
pub(crate) const KEYS: [&str; 2] = ["a", "b"];

/// The value that `a` has then.
pub(crate) fn old() -> String {
    long("old")
}

/// The content of a file of another program, in the place of a record.
pub(crate) const FOREIGN: &str = "{\"name\":\"demo\"}";

/// The holder of locks that are not bound to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    Short,
    /// With this name, a lock has two sectors.
    Long,
}

impl Job {
    pub(crate) const ALL: [Self; 2] = [Self::Short, Self::Long];

    pub(crate) fn holder(self) -> Holder {
        match self {
            Self::Short => named("job"),
            Self::Long => named(&"job".repeat(170)),
        }
    }
}

const LEASE: Duration = Duration::from_hours(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    /// Writes the record, with or without a lock.
    Write,
    /// Writes a record that is too large for the log.
    WriteLarge,
    /// Another holder tries to write a locked record.
    WriteInVain,
    Remove,
    Acquire,
    Release,
    Renew,
    Break,
    /// Acquires the lock, unless it is held already. Then releases it while a waiter is queued, and
    /// acquires it again. Both rewrite a lock file of one sector in place.
    HandOver,
    /// Creates a guard, writes through it, and releases it. Inside an acquired lock it is an inner guard.
    GuardedWrite,
    /// Reads through another handle, which is durable.
    Read,
    Checkpoint,
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
    /// As `Old`, and the log is empty.
    Checkpointed,
    /// Long ago. Then another program put a file into the place of the record of `a`.
    Foreign,
    /// Long ago. Then somebody wrote the record of `a` in an editor, without a version.
    ByHand,
    /// Just now, by this handle.
    New,
    /// As `New`, in a directory whose parent does not exist either.
    NewInNewDirectory,
    /// Just now, by another handle, which syncs nothing.
    NewByRelaxed,
    /// Just now, by a process that was killed before its last sync: that of the name of the format file.
    NewByKilled,
    /// Long ago, by a version of the library that wrote format version 1. The open upgrades it.
    Version1,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    pub(crate) start: Start,
    pub(crate) relaxed: bool,
    /// Locks belong to a named holder and have a lease. Otherwise they belong to the process.
    pub(crate) job: Option<Job>,
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
    for job in [None, Some(Job::Short), Some(Job::Long)] {
        // How long a lock is makes no difference to how a store is created.
        if job == Some(Job::Long) && start != Start::Old {
            continue;
        }
        let none = Sequence { start, relaxed, job, operations: Vec::new() };
        let mut sequences = vec![none.clone()];
        let mut last = vec![none];
        for _ in 0..longest {
            last = last.iter().flat_map(continuations).collect();
            sequences.extend(last.iter().cloned());
        }
        // Without a lock its holder makes no difference.
        sequences.retain(|sequence| job.is_none() || sequence.operations.iter().any(|it| it.action.locks()));
        // Without an operation nothing happens to an old store.
        sequences.retain(|sequence| start.is_new() || !sequence.operations.is_empty());
        all.append(&mut sequences);
    }
    all
}

impl Start {
    /// Whether the store is created or upgraded by the sequence.
    fn is_new(self) -> bool {
        !matches!(self, Self::Old | Self::Checkpointed | Self::Foreign | Self::ByHand)
    }
}

impl Action {
    const ALL: [Self; 12] = [
        Self::Write,
        Self::WriteLarge,
        Self::WriteInVain,
        Self::Remove,
        Self::Acquire,
        Self::Release,
        Self::Renew,
        Self::Break,
        Self::HandOver,
        Self::GuardedWrite,
        Self::Read,
        Self::Checkpoint,
    ];

    /// Whether it does something to a lock.
    pub(crate) fn locks(self) -> bool {
        matches!(
            self,
            Self::Acquire | Self::Release | Self::Renew | Self::Break | Self::HandOver | Self::GuardedWrite
        )
    }

    /// Whether it acts on a lock that is held.
    fn needs_lock(self) -> bool {
        matches!(self, Self::WriteInVain | Self::Release | Self::Renew | Self::Break)
    }
}

impl Sequence {
    /// Whether the key's lock is held after the operations.
    pub(crate) fn holds(&self, key: usize) -> bool {
        self.holds_before(self.operations.len(), key)
    }

    /// Whether the key's lock is held before the operation at this position.
    pub(crate) fn holds_before(&self, position: usize, key: usize) -> bool {
        let of_key = self.operations[..position].iter().rev().filter(|it| it.key == key);
        let changes =
            |it: &Action| matches!(it, Action::Acquire | Action::Release | Action::Break | Action::HandOver);
        of_key
            .map(|it| it.action)
            .find(changes)
            .is_some_and(|last| matches!(last, Action::Acquire | Action::HandOver))
    }

    fn may_continue_with(&self, action: Action, key: usize) -> bool {
        match action {
            // A durable handle reads only what is durable already.
            Action::Read => self.relaxed,
            // It is of the whole store.
            Action::Checkpoint => key == 0 && self.operations.last().is_none_or(|it| it.action != action),
            action => !action.needs_lock() || self.holds(key),
        }
    }
}

fn continuations(sequence: &Sequence) -> Vec<Sequence> {
    let mut all = Vec::new();
    for key in 0..KEYS.len() {
        for action in Action::ALL {
            if sequence.may_continue_with(action, key) {
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
    long(&format!("value {position}"))
}

/// A large value that an operation writes, by its position.
pub(crate) fn large_value(position: usize) -> String {
    format!("large {position}{}", "x".repeat(50_000))
}

/// Half of the record is more than a sector of the disk.
fn long(text: &str) -> String {
    format!("{text:-<1100}")
}

/// The effect of an acknowledged operation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Receipt {
    /// The token that it has issued or used.
    pub(crate) token: Option<u64>,
    /// The number of the lease that the lock has now.
    pub(crate) lease: Option<usize>,
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
    /// The operation is acknowledged.
    Return(usize, Receipt),
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

/// The child: opens stores that need a recovery, each in its numbered directory.
pub(crate) fn recover(stage: &Stage) {
    let (dir, stores): (PathBuf, Vec<PathBuf>) = stage.argument();
    perform(stage, &rustix::thread::gettid().as_raw_pid().to_string(), || {
        for (number, store) in stores.iter().enumerate() {
            report(stage, Mark::Begin(number));
            drop(open_with(&dir.join(number.to_string()).join(store), Durability::Full));
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
    if sequence.start == Start::Version1 {
        open_with(dir, Durability::Full).write(KEYS[0], &old()).unwrap();
        make_version_1(dir);
        report(stage, Mark::Settled);
    }
    if sequence.start == Start::NewByKilled {
        create_but_the_last_sync(stage, dir);
    }
    report(stage, Mark::Open);
    let store = open_with(dir, durability);
    report(stage, Mark::Opened);
    // It opens no store that is not there: that would sync what the other handle has created.
    let reader = (!sequence.start.is_new()).then(|| open_with(dir, Durability::Full));
    if matches!(sequence.start, Start::Old | Start::Checkpointed) {
        store.write(KEYS[0], &old()).unwrap();
    }
    if sequence.start == Start::Checkpointed {
        assert!(store.checkpoint().unwrap());
    }
    let by_hand = format!("{{\"key\":\"{}\",\"result\":\"{}\"}}", KEYS[0], old());
    for (start, text) in [(Start::Foreign, FOREIGN), (Start::ByHand, &by_hand)] {
        if sequence.start == start {
            std::fs::write(dir.join(format!("{}.json", KEYS[0])), text).unwrap();
        }
    }
    if !sequence.start.is_new() {
        report(stage, Mark::Settled);
    }
    let mut player = Player { store, reader, job: sequence.job, tokens: [None; KEYS.len()] };
    for (position, operation) in sequence.operations.iter().enumerate() {
        report(stage, Mark::Invoke(position));
        let token = player.perform(*operation, position);
        report(stage, Mark::Return(position, Receipt { token: token.map(LockToken::get), lease: None }));
    }
}

/// Creates a store, and leaves it as a process does that is killed before its last sync.
fn create_but_the_last_sync(stage: &Stage, dir: &Path) {
    drop(open_with(dir, Durability::Full));
    let private = dir.join(".store");
    let text = std::fs::read(private.join("format.json")).unwrap();
    std::fs::remove_file(private.join("format.json")).unwrap();
    // Its words say that the format is on the disk.
    std::fs::remove_file(private.join("log/state")).unwrap();
    report(stage, Mark::Settled);
    std::fs::write(private.join("format.json"), text).unwrap();
    std::fs::File::open(private.join("format.json")).unwrap().sync_data().unwrap();
}

/// Makes the store one of format version 1, with a file that a dead process has staged.
fn make_version_1(dir: &Path) {
    let private = dir.join(".store");
    // Not renamed: the model of the disk knows no rename of a directory.
    std::fs::remove_dir(private.join("staged")).unwrap();
    for name in names_in(&private.join("log")) {
        std::fs::remove_file(private.join("log").join(name)).unwrap();
    }
    std::fs::remove_dir(private.join("log")).unwrap();
    std::fs::create_dir(private.join("tmp")).unwrap();
    std::fs::write(private.join("tmp/1-deaddeaddeaddead.0"), "half").unwrap();
    std::fs::write(private.join("format.json"), "{\"version\":1}\n").unwrap();
}

struct Player {
    store: FileSystemRecordStore,
    reader: Option<FileSystemRecordStore>,
    job: Option<Job>,
    tokens: [Option<LockToken>; KEYS.len()],
}

impl Player {
    fn perform(&mut self, Operation { action, key: index }: Operation, position: usize) -> Option<LockToken> {
        let (store, key, token) = (&self.store, KEYS[index], &mut self.tokens[index]);
        let holder = self.job.map_or_else(Holder::current, Job::holder);
        let options = LockOptions::new().holder(holder.clone()).hold_timeout(self.job.map(|_| LEASE));
        let claim = || WriteOptions::new().claim(&holder);
        match action {
            Action::Write => store.write_with(key, &value(position), claim()).unwrap(),
            Action::WriteLarge => store.write_with(key, &large_value(position), claim()).unwrap(),
            Action::WriteInVain => {
                let options = WriteOptions::new().claim(named("another"));
                let refused = store.write_with(key, "in vain", options).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Locked);
            }
            Action::Remove => assert!(store.remove_with(key, RemoveOptions::new().claim(holder)).is_ok()),
            Action::Acquire => *token = Some(store.acquire_lock(key, options).unwrap()),
            Action::Release => store.release_lock(key, token.take().unwrap()).unwrap(),
            Action::Renew => store.renew(key, token.unwrap(), self.job.map(|_| 2 * LEASE)).unwrap(),
            Action::Break => {
                assert!(store.break_lock(key).unwrap());
                *token = None;
            }
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
            Action::Read => {
                let reader = self.reader.as_ref().unwrap_or(store);
                drop(reader.read_with::<String>(key, ReadOptions::new().claim(&holder)));
            }
            Action::Checkpoint => assert!(store.checkpoint().unwrap()),
        }
        *token
    }
}
