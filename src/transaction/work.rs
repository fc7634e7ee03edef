//! The work of a begun transaction: staging, commit and rollback.

use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;

use super::{CommitMode, TransactionState};
use crate::WriteOptions;
use crate::process::ProcessId;
use crate::{
    Error, ErrorKind, Holder, IsolationLevel, Json, Key, LockGuard, LockOptions, RecordStore, Result,
};

pub(super) type BoxError = Box<dyn StdError + Send + Sync>;
pub(super) type Hook<'s> = Box<dyn FnOnce(&Key) -> Result<(), BoxError> + Send + 's>;

/// A begun transaction without the reference to its parent. Rolls back if it is dropped before it has ended.
pub(super) struct Work<'s, S: RecordStore + ?Sized> {
    pub(super) store: &'s S,
    /// In a forked child, the transaction and its hooks do nothing.
    pub(super) process: ProcessId,
    pub(super) key: Key,
    pub(super) holder: Holder,
    pub(super) level: IsolationLevel,
    pub(super) mode: CommitMode,
    pub(super) options: LockOptions,
    pub(super) state: TransactionState,
    /// Held from begin to end under [`IsolationLevel::Serializable`].
    pub(super) guard: Option<LockGuard<'s, S>>,
    pub(super) staged: Option<Json>,
    pub(super) on_commit: Vec<Hook<'s>>,
    pub(super) on_rollback: Vec<Hook<'s>>,
    /// Finished children that commit or roll back with this transaction, in the order in which they finished.
    pub(super) children: Vec<Work<'s, S>>,
}

impl<S: RecordStore + ?Sized> Work<'_, S> {
    pub(super) fn stage<R: Serialize + ?Sized>(&mut self, result: &R) -> Result<()> {
        self.check_process("stage")?;
        if self.is_finished() {
            return Ok(());
        }
        self.staged = Some(Json::encode_result("stage", &self.key, result)?);
        self.state = TransactionState::Staged;
        Ok(())
    }

    fn check_process(&self, operation: &'static str) -> Result<()> {
        if self.process.is_here() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::WrongProcess, operation).with_key(&self.key))
    }

    fn is_finished(&self) -> bool {
        matches!(self.state, TransactionState::Committed | TransactionState::RolledBack)
    }

    pub(super) fn commit(&mut self) -> Result<()> {
        self.check_process("commit")?;
        if self.is_finished() {
            self.commit_children()?;
            self.guard = None;
            return Ok(());
        }
        match self.try_commit() {
            Ok(()) => {
                self.state = TransactionState::Committed;
                // Drop the guard instead of calling `release`: the record is written, so a failed release
                // must not turn the commit into an error.
                self.guard = None;
                Ok(())
            }
            Err(error) => {
                // Report the cause of the rollback, not an error of a rollback hook.
                let _ = self.roll_back();
                Err(error)
            }
        }
    }

    fn try_commit(&mut self) -> Result<()> {
        self.commit_children()?;
        for hook in std::mem::take(&mut self.on_commit) {
            run(hook, "commit", &self.key)?;
        }
        let Some(staged) = self.staged.take() else { return Ok(()) };
        if let Some(guard) = &self.guard {
            return guard.write_raw(&staged, WriteOptions::new());
        }
        let written = self.store.write_raw(&self.key, &staged, WriteOptions::new().claim(&self.holder));
        written.map_err(|error| error.with_unstored(staged))
    }

    fn commit_children(&mut self) -> Result<()> {
        self.children.iter_mut().try_for_each(Work::commit)
    }

    pub(super) fn roll_back(&mut self) -> Result<()> {
        self.check_process("rollback")?;
        let children = self.children.iter_mut().rev().map(Work::roll_back).fold(Ok(()), Result::and);
        if self.is_finished() {
            self.guard = None;
            return children;
        }
        self.state = TransactionState::RolledBack;
        let hooks = std::mem::take(&mut self.on_rollback).into_iter().rev();
        let outcome = hooks.map(|hook| run(hook, "rollback", &self.key)).fold(children, Result::and);
        self.guard = None;
        outcome
    }
}

/// Runs a hook and turns its panic into an error. Otherwise the remaining hooks would not run, and a panic
/// in a hook that `drop` runs during another panic would abort the process.
fn run(hook: Hook<'_>, operation: &'static str, key: &Key) -> Result<()> {
    let failed = |source: BoxError| Error::new(ErrorKind::Hook, operation).with_key(key).with_source(source);
    match catch_unwind(AssertUnwindSafe(|| hook(key))) {
        Ok(outcome) => outcome.map_err(failed),
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().copied().map(str::to_owned);
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Err(failed(format!("the hook panicked: {message}").into()))
        }
    }
}

impl<S: RecordStore + ?Sized> Drop for Work<'_, S> {
    fn drop(&mut self) {
        // A drop cannot report an error.
        let _ = self.roll_back();
    }
}
