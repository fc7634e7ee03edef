//! The calls of a client, before a power loss and after it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use record_store::{
    Error, FileSystemRecordStore, Key, LockOptions, LockToken, ReadOptions, RecordStore, RecordStoreExt,
    RemoveOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};

use super::KEYS;
use crate::linearize::history::{Claim, HolderId, Op, Outcome};
use crate::linearize::workload::{error_outcome, holders_outcome, store_claim};
use crate::support::children::Stage;
use crate::support::dice::Dice;
use crate::support::open;
use crate::support::trace::{mark, perform};

/// The next call of a client.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Unique in a history.
    pub(crate) number: u64,
    /// The index of the key.
    pub(crate) key: usize,
    pub(crate) action: Action,
    pub(crate) by: By,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Action {
    Read,
    Exists,
    Write,
    Swap,
    Remove,
    Acquire,
    /// Shares the lock.
    Share,
    Renew,
    Release,
    Break,
    Info,
    /// Of the whole store, while no other client is in a call.
    Checkpoint,
}

/// On what ground the client claims to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum By {
    /// A named holder of its own.
    Job,
    /// The holder that is bound to its process.
    Me,
    /// The last token that it got, or else the named holder.
    Token,
}

/// Which calls there are in a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mix {
    keys: usize,
    has_locks: bool,
}

impl Mix {
    pub(crate) const ALL: Self = Self { keys: KEYS.len(), has_locks: true };

    /// A lock refuses most calls of others, and with two keys the clients meet less often.
    pub(crate) fn random(dice: &mut Dice) -> Self {
        Self { keys: 1 + dice.index(KEYS.len()), has_locks: dice.once_in(2) }
    }
}

impl Step {
    pub(crate) fn random(number: u64, mix: Mix, dice: &mut Dice) -> Self {
        let action = match dice.below(if mix.has_locks { 20 } else { 12 }) {
            0..=3 => Action::Read,
            4 => Action::Exists,
            5..=6 => Action::Write,
            7..=8 => Action::Swap,
            9..=10 => Action::Remove,
            11 => Action::Checkpoint,
            12..=13 => Action::Acquire,
            14..=16 => Action::Share,
            17 => Action::Release,
            18 => Action::Break,
            _ => Action::Info,
        };
        let by = match dice.below(6) {
            0 => By::Me,
            1 => By::Token,
            _ => By::Job,
        };
        Self { number, key: dice.index(mix.keys), action, by }
    }

    /// A step after this one: a client that may have a lock renews or releases it soon.
    pub(crate) fn next(self, number: u64, mix: Mix, dice: &mut Dice) -> Self {
        let action = match (self.action, dice.below(4)) {
            (Action::Acquire | Action::Share, 0) | (Action::Renew, 0..=2) => Action::Release,
            (Action::Acquire | Action::Share, 1..=2) => Action::Renew,
            _ => return Self::random(number, mix, dice),
        };
        Self { number, action, ..self }
    }
}

/// The lease that a call starts. It tells all calls apart.
pub(crate) fn lease_of(number: u64) -> Duration {
    Duration::from_hours(number + 1)
}

/// A call of a client, and its outcome. For a lock that it saw, the outcome has the whole lease instead of its rest.
pub(crate) type Done = (Op, Outcome);

/// The work of a client.
#[derive(Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) store: PathBuf,
    pub(crate) client: u32,
    pub(crate) begin: SystemTime,
    pub(crate) steps: Vec<Step>,
}

/// The child: makes its calls between marks.
pub(crate) fn play(stage: &Stage) {
    let program: Program = stage.argument();
    perform(stage, &rustix::thread::gettid().as_raw_pid().to_string(), || {
        let mut session = Session::new(open(&program.store), program.client, program.begin);
        for step in program.steps {
            mark();
            let done = session.perform(step);
            mark();
            stage.send(&serde_json::to_string(&done).unwrap());
        }
    });
}

/// A client of a store.
pub(crate) struct Session {
    store: FileSystemRecordStore,
    job: HolderId,
    begin: SystemTime,
    tokens: [Option<u64>; KEYS.len()],
    /// The values that it saw or wrote last.
    seen: [Option<u64>; KEYS.len()],
}

impl Session {
    pub(crate) fn new(store: FileSystemRecordStore, client: u32, begin: SystemTime) -> Self {
        let (tokens, seen) = Default::default();
        Self { store, job: HolderId::Named(client), begin, tokens, seen }
    }

    /// `None`: a checkpoint.
    pub(crate) fn perform(&mut self, step: Step) -> Option<Done> {
        let Step { number, key, action, by } = step;
        let holder = if by == By::Me { HolderId::current() } else { self.job };
        let needs_own = matches!(action, Action::Renew | Action::Release);
        let token = self.tokens[key].filter(|_| by == By::Token || needs_own && by == By::Job);
        let claim = token.map_or(Claim::Holder(holder), Claim::Token);
        let lease = lease_of(number);
        let op = match action {
            Action::Read => Op::Read(claim),
            Action::Exists => Op::Exists,
            Action::Write => Op::Write(claim, number),
            Action::Swap => Op::Swap(claim, self.seen[key], number),
            Action::Remove => Op::Remove(claim),
            Action::Acquire => Op::Acquire(holder, Some(lease)),
            Action::Share => Op::Share(holder, Some(lease), SLOTS),
            Action::Renew => Op::Renew(claim, Some(lease)),
            Action::Release => Op::Release(claim),
            Action::Break => Op::Break,
            Action::Info => Op::Info,
            Action::Checkpoint => {
                self.store.checkpoint().unwrap();
                return None;
            }
        };
        let outcome = self.call(key, op);
        Some((op, outcome))
    }

    pub(crate) fn call(&mut self, key: usize, op: Op) -> Outcome {
        let mut outcome = self.try_call(KEYS[key], op).unwrap_or_else(|error| error_outcome(&error));
        if let Outcome::Failed(error) = &mut outcome {
            // A longer line would not be one write.
            error.truncate(error.floor_char_boundary(LONGEST_ERROR));
        }
        match (op, &outcome) {
            (_, Outcome::Acquired { token, .. }) => self.tokens[key] = Some(*token),
            (_, Outcome::Record(value, _)) => self.seen[key] = Some(*value),
            (_, Outcome::Value(None)) | (Op::Remove(_), Outcome::Flag(_)) => self.seen[key] = None,
            (Op::Write(_, value), Outcome::Done) | (Op::Swap(_, _, value), Outcome::Flag(true)) => {
                self.seen[key] = Some(value);
            }
            _ => {}
        }
        outcome
    }

    fn try_call(&self, key: &str, op: Op) -> Result<Outcome, Error> {
        let store = &self.store;
        let writes = |claim| WriteOptions::new().claim(store_claim(claim));
        match op {
            Op::Read(claim) => {
                let options = ReadOptions::new().claim(store_claim(claim)).timeout(Duration::ZERO);
                let record = store.read_with::<String>(key, options)?;
                Ok(record.map_or(Outcome::Value(None), |record| {
                    let version = record.version.number().expect("a version");
                    Outcome::Record(number_of(&record.result), version)
                }))
            }
            Op::Exists => store.exists(key).map(Outcome::Flag),
            Op::Write(claim, value) => {
                store.write_with(key, &text(value), writes(claim)).map(|()| Outcome::Done)
            }
            Op::Swap(claim, expected, value) => store
                .compare_and_swap(key, expected.map(text).as_ref(), &text(value), writes(claim))
                .map(Outcome::Flag),
            Op::Remove(claim) => {
                store.remove_with(key, RemoveOptions::new().claim(store_claim(claim))).map(Outcome::Flag)
            }
            Op::Acquire(holder, lease) | Op::Share(holder, lease, _) => {
                let options = LockOptions::new().holder(holder.holder()).hold_timeout(lease);
                let options = if matches!(op, Op::Share(..)) { options.slots(SLOTS) } else { options };
                let acquired =
                    store.acquire_lock_raw(&Key::new(key)?, options.acquire_timeout(Duration::ZERO))?;
                Ok(Outcome::Acquired { token: acquired.token.get(), reentrant: acquired.reentrant })
            }
            Op::Renew(claim, lease) => store.renew(key, store_claim(claim), lease).map(|()| Outcome::Done),
            Op::Release(claim) => store.release_lock(key, store_claim(claim)).map(|()| Outcome::Done),
            Op::Break => store.break_lock(key).map(Outcome::Flag),
            Op::Info => Ok(Outcome::Info(store.lock_info(key)?.map(|info| {
                let token = LockToken::get(info.token());
                (HolderId::of(info.holder()), token, Some(self.whole_lease(info.expires_at().unwrap())))
            }))),
            Op::Holders => store.lock_info(key).map(|info| holders_outcome(info.as_ref())),
            Op::WaitFree => unreachable!("no client waits"),
        }
    }

    /// The lease that ends then: it is a number of hours, and everything that happens takes less than one.
    fn whole_lease(&self, end: SystemTime) -> Duration {
        let hours = end.duration_since(self.begin).unwrap().as_secs() / 3_600;
        Duration::from_hours(hours)
    }
}

/// As many as the model has.
const SLOTS: u32 = 3;

const LONGEST_ERROR: usize = 500;

/// A value, from a few bytes to some sectors. A few are too large for the log.
fn text(number: u64) -> String {
    let length = match number % 16 {
        0..=5 => 1,
        6..=9 => 600,
        15 => 50_000,
        _ => 1_500,
    };
    format!("{number} {}", "x".repeat(length))
}

fn number_of(value: &str) -> u64 {
    let number = value.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(value, text(number), "torn");
    number
}
