//! The guarantees that the store had given when the power failed, and the check that it kept them.

use record_store::LockToken;

use super::disk::{DIRECTORY, Image, Interner, Path, Tree};
use super::recover::{LockOutcome, ReadOutcome, Recovered};
use super::sequences::{Action, FOREIGN, KEYS, Mark, OLD, Sequence, Start, store_below, value};

/// The guarantees given to the caller so far.
pub(crate) struct Guarantees<'a> {
    pub(crate) sequence: &'a Sequence,
    interner: &'a Interner,
    keys: [Key; 2],
    /// The file that makes the directory a store.
    format_file: Path,
    /// The store was opened, so the directory has to stay a store.
    opened: bool,
}

struct Key {
    lock_file: Path,
    /// The successive values of the record, including the one that is being written.
    values: Vec<ReadOutcome>,
    /// The index of the last acknowledged value.
    acknowledged: usize,
    /// A lock was requested.
    locked: bool,
    /// The greatest issued token.
    token: LockToken,
}

impl<'a> Guarantees<'a> {
    pub(crate) fn new(sequence: &'a Sequence, interner: &'a Interner) -> Self {
        let key = |name: &str, value| Key {
            lock_file: interner.path(&format!("/{}/{name}.lock", store_below(sequence.start))),
            values: vec![value],
            acknowledged: 0,
            locked: false,
            token: LockToken::new(0),
        };
        let first = match sequence.start {
            Start::Old => ReadOutcome::Value(OLD.to_owned()),
            Start::Foreign => ReadOutcome::Corrupt,
            _ => ReadOutcome::Absent,
        };
        let keys = [key(KEYS[0], first), key(KEYS[1], ReadOutcome::Absent)];
        let format_file = interner.path(&format!("/{}/.store/format.json", store_below(sequence.start)));
        Self { sequence, interner, keys, format_file, opened: false }
    }

    /// Updates the guarantees for the next event.
    pub(crate) fn update(&mut self, mark: Mark) {
        match mark {
            Mark::Invoke(position) => {
                let operation = self.sequence.operations[position];
                let key = &mut self.keys[operation.key];
                match operation.action {
                    Action::Write | Action::GuardedWrite => {
                        key.values.push(ReadOutcome::Value(value(position)));
                    }
                    Action::Remove => key.values.push(ReadOutcome::Absent),
                    Action::Acquire | Action::Release | Action::Renew | Action::HandOver => {}
                }
                key.locked |= operation.action.locks();
            }
            Mark::Return(position, token) => {
                let key = &mut self.keys[self.sequence.operations[position].key];
                key.acknowledged = key.values.len() - 1;
                key.token = token.map_or(key.token, LockToken::new).max(key.token);
            }
            Mark::Opened => self.opened = true,
            Mark::Begin(_) | Mark::Settled | Mark::Open | Mark::End => {}
        }
    }

    /// Checks the recovered outcomes. The error describes the broken guarantee.
    pub(crate) fn check(&self, tree: &Tree, recovered: [&Recovered; 2]) -> Result<(), String> {
        self.check_foreign_file(tree)?;
        if self.opened && !tree.iter().any(|(path, _)| *path == self.format_file) {
            return Err("a store that was opened is no longer a store".into());
        }
        for ((key, recovered), name) in self.keys.iter().zip(recovered).zip(KEYS) {
            self.check_record(key, &recovered.read).map_err(|violation| format!("{name}: {violation}"))?;
            let file = tree.iter().find(|(path, _)| *path == key.lock_file).map(|(_, image)| *image);
            self.check_lock(key, recovered.lock, file).map_err(|violation| format!("{name}: {violation}"))?;
        }
        Ok(())
    }

    /// The file of another program is in its place until a change is begun, and moved aside when the change is
    /// acknowledged.
    ///
    /// Not in between: an exchange of which one half reaches the disk loses a file in this model. The file systems
    /// that can exchange files do it in one transaction.
    fn check_foreign_file(&self, tree: &Tree) -> Result<(), String> {
        let is_changing = self.keys[0].acknowledged + 1 < self.keys[0].values.len();
        if self.sequence.start != Start::Foreign || self.sequence.relaxed || is_changing {
            return Ok(());
        }
        let is_kept = tree.iter().any(|&(path, image)| {
            let path = self.interner.path_of(path);
            let is_there = path.ends_with("/a.json") || path.contains("/.store/damaged/a.json~");
            is_there && image != DIRECTORY && *self.interner.content_of(image) == *FOREIGN.as_bytes()
        });
        if is_kept { Ok(()) } else { Err("a foreign file is lost".into()) }
    }

    fn check_record(&self, key: &Key, read: &ReadOutcome) -> Result<(), String> {
        let changed = key.values.len() > 1;
        let legal = if self.sequence.relaxed {
            key.values.contains(read) || changed && matches!(read, ReadOutcome::Absent | ReadOutcome::Corrupt)
        } else {
            // The last acknowledged value, or the one that was being written.
            key.values[key.acknowledged..].contains(read)
        };
        if legal {
            return Ok(());
        }
        Err(format!(
            "read {read:?}, but the values were {:?}, and {:?} was acknowledged",
            key.values, key.values[key.acknowledged]
        ))
    }

    fn check_lock(&self, key: &Key, lock: LockOutcome, file: Option<Image>) -> Result<(), String> {
        let torn = file.is_some_and(|image| self.interner.is_torn(image));
        let empty = file.is_none_or(|image| self.interner.content_of(image).iter().all(|&byte| byte == 0));
        let legal = match lock {
            LockOutcome::Acquired(token) => token > key.token && !torn && (empty || !self.sequence.job),
            LockOutcome::HeldByJob => self.sequence.job && key.locked && !torn && !empty,
            LockOutcome::Corrupt => torn,
        };
        if legal { Ok(()) } else { Err(format!("the lock is {lock:?}")) }
    }
}
