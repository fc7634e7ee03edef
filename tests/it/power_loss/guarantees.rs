//! The guarantees that the store had given when the power failed, and the check that it kept them.

use super::disk::{Interner, Path, Tree, is_file};
use super::recover::{LockOutcome, ReadOutcome, Recovered};
use super::sequences::{
    Action, FOREIGN, KEYS, Mark, Operation, Receipt, Sequence, Start, large_value, old, store_below, value,
};

/// The content of the format file.
const FORMAT: &[u8] = b"{\"version\":2}\n";

/// The guarantees given to the caller so far.
#[derive(Clone)]
pub(crate) struct Guarantees<'a> {
    pub(crate) sequence: &'a Sequence,
    interner: &'a Interner,
    keys: [Key; 2],
    /// The file that makes the directory a store.
    format_file: Path,
    /// The store was opened, so the directory has to stay a store of this version.
    opened: bool,
    /// The greatest token that was issued.
    token: u64,
}

#[derive(Clone)]
struct Key {
    /// The successive values of the record, including the one that is being written.
    values: Vec<ReadOutcome>,
    /// The index of the last value that has to survive.
    durable: usize,
    /// The successive states of the lock, including those that an operation is about to give it.
    locks: Vec<Lock>,
    /// The index of the last state that has to survive.
    durable_lock: usize,
}

/// A state of a lock.
#[derive(Clone, Copy, Debug)]
enum Lock {
    /// Nobody holds it, or a process does that does not live any more.
    Free,
    /// It is held, with the token and the lease that were acknowledged, or with any.
    Held(Option<u64>, Option<usize>),
}

impl<'a> Guarantees<'a> {
    pub(crate) fn new(sequence: &'a Sequence, interner: &'a Interner) -> Self {
        let key = |value| Key { values: vec![value], durable: 0, locks: vec![Lock::Free], durable_lock: 0 };
        let first = match sequence.start {
            Start::Old | Start::Checkpointed | Start::ByHand | Start::Version1 => ReadOutcome::Value(old()),
            Start::Foreign => ReadOutcome::Corrupt,
            _ => ReadOutcome::Absent,
        };
        let keys = [key(first), key(ReadOutcome::Absent)];
        let format_file = interner.path(&format!("/{}/.store/format.json", store_below(sequence.start)));
        Self { sequence, interner, keys, format_file, opened: false, token: 0 }
    }

    /// Updates the guarantees for the next event.
    pub(crate) fn update(&mut self, mark: Mark) {
        match mark {
            Mark::Invoke(position) => self.invoke(position),
            Mark::Return(position, receipt) => self.acknowledge(position, receipt),
            Mark::Opened => self.opened = true,
            Mark::Begin(_) | Mark::Settled | Mark::Open | Mark::End => {}
        }
    }

    fn invoke(&mut self, position: usize) {
        let Operation { action, key } = self.sequence.operations[position];
        let holds = self.sequence.holds_before(position, key);
        let key = &mut self.keys[key];
        let changes =
            matches!(action, Action::Write | Action::WriteLarge | Action::GuardedWrite | Action::Remove);
        if changes && key.values == [ReadOutcome::Corrupt] {
            // The file of another program is moved aside first.
            key.values.push(ReadOutcome::Absent);
        }
        match action {
            Action::Write | Action::GuardedWrite => key.values.push(ReadOutcome::Value(value(position))),
            Action::WriteLarge => key.values.push(ReadOutcome::Value(large_value(position))),
            Action::Remove => key.values.push(ReadOutcome::Absent),
            _ => {}
        }
        let same = key.locks.last().copied().filter(|_| holds);
        let held = match same {
            Some(Lock::Held(token, _)) => Lock::Held(token, None),
            Some(Lock::Free) | None => Lock::Held(None, None),
        };
        match action {
            _ if self.sequence.job.is_none() => {}
            Action::Acquire | Action::Renew => key.locks.push(held),
            Action::Release | Action::Break => key.locks.push(Lock::Free),
            Action::HandOver => key.locks.extend([held, Lock::Free, Lock::Held(None, None)]),
            Action::GuardedWrite if holds => key.locks.push(held),
            Action::GuardedWrite => key.locks.extend([held, Lock::Free]),
            _ => {}
        }
    }

    fn acknowledge(&mut self, position: usize, receipt: Receipt) {
        let Operation { action, key } = self.sequence.operations[position];
        self.token = self.token.max(receipt.token.unwrap_or(0));
        if let Some(Lock::Held(token, lease)) = self.keys[key].locks.last_mut() {
            (*token, *lease) = (receipt.token.or(*token), receipt.lease);
        }
        let (of_key, of_all) =
            (!self.sequence.relaxed || action == Action::Read, action == Action::Checkpoint);
        for (at, it) in self.keys.iter_mut().enumerate() {
            if of_all || of_key && at == key {
                it.durable = it.values.len() - 1;
                it.durable_lock = it.locks.len() - 1;
            }
        }
    }

    /// Checks the recovered outcomes. The error describes the broken guarantee.
    pub(crate) fn check(&self, tree: &Tree, recovered: [&Recovered; 2]) -> Result<(), String> {
        self.check_foreign_file(tree)?;
        let format = tree.iter().find(|(path, _)| *path == self.format_file);
        let format = format.map(|(_, image)| self.interner.content_of(*image));
        match &format {
            None if self.opened => return Err("a store that was opened is no longer a store".into()),
            Some(format) if self.opened && format.bytes() != FORMAT => {
                return Err("a store that was opened is one of an earlier version again".into());
            }
            _ => {}
        }
        // Tokens and versions have one order. After a recovery all are above this mark.
        let high = self.interner.high(tree);
        if self.token >= high && self.token > 0 {
            return Err(format!("the token {} was issued, but the mark is {high}", self.token));
        }
        for ((key, recovered), name) in self.keys.iter().zip(recovered).zip(KEYS) {
            check_record(key, &recovered.read).map_err(|violation| format!("{name}: {violation}"))?;
            check_lock(key, recovered.lock).map_err(|violation| format!("{name}: {violation}"))?;
        }
        Ok(())
    }

    /// The file of another program is in its place, on its way, or moved aside. After a durable change it is where the
    /// program was told.
    fn check_foreign_file(&self, tree: &Tree) -> Result<(), String> {
        if self.sequence.start != Start::Foreign {
            return Ok(());
        }
        // A relaxed change is not where the program was told until a checkpoint, also if its record is durable.
        let is_aside = !self.sequence.relaxed && self.keys[0].durable > 0;
        let is_kept = tree.iter().any(|&(path, image)| {
            is_file(image)
                && self.interner.content_of(image).bytes() == FOREIGN.as_bytes()
                && (!is_aside || self.interner.path_of(path).contains("/.store/damaged/"))
        });
        if is_kept { Ok(()) } else { Err(format!("a foreign file is lost, or not aside: {is_aside}")) }
    }
}

/// The record is the last value that has to survive, or a later one.
fn check_record(key: &Key, read: &ReadOutcome) -> Result<(), String> {
    if key.values[key.durable..].contains(read) {
        return Ok(());
    }
    let short = |value: &ReadOutcome| format!("{value:?}").chars().take(20).collect::<String>();
    let values: Vec<_> = key.values.iter().map(short).collect();
    Err(format!(
        "read {}, but the values were {values:?}, and that at {} has to survive",
        short(read),
        key.durable
    ))
}

fn check_lock(key: &Key, lock: LockOutcome) -> Result<(), String> {
    let agrees = |state: &Lock| match (lock, *state) {
        (LockOutcome::Acquired, Lock::Free) => true,
        // The lease may be that of a later renewal, which was not acknowledged.
        (LockOutcome::Held(token, lease), Lock::Held(acknowledged, first)) => {
            acknowledged.is_none_or(|acknowledged| acknowledged == token)
                && first.is_none_or(|first| lease >= first)
        }
        _ => false,
    };
    if key.locks[key.durable_lock..].iter().any(agrees) {
        return Ok(());
    }
    Err(format!(
        "the lock is {lock:?}, but its states were {:?}, and that at {} has to survive",
        key.locks, key.durable_lock
    ))
}
