//! The store after a power loss: it recovers, and one client uses it.

use std::collections::HashMap;

use record_store::FileSystemRecordStore;

use super::KEYS;
use super::clients::Recorded;
use super::session::{By, Done, Mix, Session, Step};
use crate::linearize::history::{Claim, HolderId, Op, Outcome};
use crate::power_loss::disk::{Image, Path, Tree};
use crate::power_loss::recover::materialize;
use crate::support::dice::Dice;

/// The numbers of the calls after a power loss.
const FIRST_NUMBER: u64 = 1_000;

/// The calls on each key, in addition to those that look at what is there.
const CALLS_PER_KEY: u64 = 3;

/// A call after a power loss: the number, the key, what was done, and the outcome.
pub(crate) type After = (u64, usize, Op, Outcome);

/// Opens stores that need a recovery, in one directory after the other.
pub(crate) struct Recoverer {
    dir: tempfile::TempDir,
    /// The calls after the recovery of each tree of this history.
    known: HashMap<Vec<(Path, Image)>, Vec<After>>,
}

impl Recoverer {
    pub(crate) fn new() -> Self {
        Self { dir: crate::support::in_memory(), known: HashMap::new() }
    }

    /// Begins another history.
    pub(crate) fn begin(&mut self) {
        self.known.clear();
    }

    /// The number of recoveries in this history.
    pub(crate) fn count(&self) -> usize {
        self.known.len()
    }

    /// Lets the store recover in this tree, and uses it. The error describes why it cannot be used.
    pub(crate) fn recover(&mut self, recorded: &Recorded, tree: &Tree) -> Result<&[After], String> {
        if !self.known.contains_key(tree) {
            let after = self.use_store(recorded, tree)?;
            self.known.insert(tree.to_vec(), after);
        }
        Ok(&self.known[tree])
    }

    fn use_store(&self, recorded: &Recorded, tree: &Tree) -> Result<Vec<After>, String> {
        materialize(self.dir.path(), tree, &recorded.interner);
        let store = FileSystemRecordStore::open(self.dir.path().join("records"));
        let store = store.map_err(|error| format!("open: {error:?}"))?;
        let mut session = Session::new(store, 100, recorded.begin);
        let mut after = Vec::new();
        let mut number = FIRST_NUMBER;
        for key in 0..KEYS.len() {
            let mut done = |(op, outcome): Done| {
                after.push((number, key, op, outcome));
                number += 1;
            };
            done((Op::Exists, session.call(key, Op::Exists)));
            let info = session.call(key, Op::Info);
            let holder = match &info {
                Outcome::Info(Some((holder, ..))) => *holder,
                _ => HolderId::Named(100),
            };
            done((Op::Info, info));
            done((Op::Holders, session.call(key, Op::Holders)));
            // Nobody but the holder may read.
            let read = Op::Read(Claim::Holder(holder));
            done((read, session.call(key, read)));
        }
        // The same calls after each recovery that leads to the same state.
        let mut dice = Dice::new(tree.len() as u64);
        for _ in 0..CALLS_PER_KEY * KEYS.len() as u64 {
            let step = Step::random(number, Mix::ALL, &mut dice);
            let by = if step.by == By::Token { By::Job } else { step.by };
            if let Some((op, outcome)) = session.perform(Step { by, ..step }) {
                after.push((number, step.key, op, outcome));
            }
            number += 1;
        }
        Ok(after)
    }
}
