//! What was promised by the time that the power failed, and whether it was kept.

use record_store::LockToken;

use super::disk::{Image, Numbers, Path, Tree};
use super::play::{Action, KEYS, Mark, OLD, Sequence, Start, store_below, value};
use super::recover::{After, Lock, Seen};

/// The promises made to the caller so far.
pub(crate) struct Promises<'a> {
    pub(crate) sequence: &'a Sequence,
    numbers: &'a Numbers,
    keys: [Key; 2],
    /// What makes the directory a store.
    mark: Path,
    /// There is a store: it was opened.
    opened: bool,
}

struct Key {
    lock_file: Path,
    /// What the record was and is going to be, in order.
    values: Vec<Seen>,
    /// The last of them that was acknowledged.
    acknowledged: usize,
    /// A lock was asked for.
    locked: bool,
    /// The greatest token that was given.
    token: LockToken,
}

impl<'a> Promises<'a> {
    pub(crate) fn new(sequence: &'a Sequence, numbers: &'a Numbers) -> Self {
        let key = |name: &str, seen| Key {
            lock_file: numbers.path(&format!("/{}/{name}.lock", store_below(sequence.start))),
            values: vec![seen],
            acknowledged: 0,
            locked: false,
            token: LockToken::new(0),
        };
        let first = if sequence.start == Start::Old { Seen::Value(OLD.to_owned()) } else { Seen::Absent };
        let keys = [key(KEYS[0], first), key(KEYS[1], Seen::Absent)];
        let mark = numbers.path(&format!("/{}/.store/format.json", store_below(sequence.start)));
        Self { sequence, numbers, keys, mark, opened: false }
    }

    /// The next thing happened.
    pub(crate) fn hear(&mut self, mark: Mark) {
        match mark {
            Mark::Invoke(position) => {
                let operation = self.sequence.operations[position];
                let key = &mut self.keys[operation.key];
                match operation.action {
                    Action::Write | Action::GuardedWrite => key.values.push(Seen::Value(value(position))),
                    Action::Remove => key.values.push(Seen::Absent),
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

    /// Whether what was found is within what was promised; the error says why not.
    pub(crate) fn judge(&self, tree: &Tree, after: [&After; 2]) -> Result<(), String> {
        if self.opened && !tree.iter().any(|(path, _)| *path == self.mark) {
            return Err("what was opened is no longer a store".into());
        }
        for ((key, after), name) in self.keys.iter().zip(after).zip(KEYS) {
            self.judge_record(key, &after.seen).map_err(|what| format!("{name}: {what}"))?;
            let file = tree.iter().find(|(path, _)| *path == key.lock_file).map(|(_, image)| *image);
            self.judge_lock(key, after.lock, file).map_err(|what| format!("{name}: {what}"))?;
        }
        Ok(())
    }

    fn judge_record(&self, key: &Key, seen: &Seen) -> Result<(), String> {
        let changed = key.values.len() > 1;
        let legal = if self.sequence.relaxed {
            key.values.contains(seen) || changed && matches!(seen, Seen::Absent | Seen::Corrupt)
        } else {
            // The newest that was acknowledged, or what was under way.
            key.values[key.acknowledged..].contains(seen)
        };
        if legal {
            return Ok(());
        }
        Err(format!(
            "{seen:?}, after {:?} of which {:?} was acknowledged",
            key.values, key.values[key.acknowledged]
        ))
    }

    fn judge_lock(&self, key: &Key, lock: Lock, file: Option<Image>) -> Result<(), String> {
        let torn = file.is_some_and(|image| self.numbers.is_torn(image));
        let empty = file.is_none_or(|image| self.numbers.content_of(image).iter().all(|&byte| byte == 0));
        let legal = match lock {
            Lock::Free(token) => token > key.token && !torn && (empty || !self.sequence.job),
            Lock::Jobs => self.sequence.job && key.locked && !torn && !empty,
            Lock::Corrupt => torn,
        };
        if legal { Ok(()) } else { Err(format!("the lock is {lock:?}")) }
    }
}
