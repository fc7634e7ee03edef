//! A transaction before it begins.

use super::work::Work;
use super::{CommitMode, Transaction, TransactionState};
use crate::{Error, IsolationLevel, Key, LockGuard, LockOptions, RecordStore, Result};

/// A transaction that is not begun, and how it will be. From
/// [`RecordStoreExt::transaction`](crate::RecordStoreExt::transaction) and [`Transaction::child`].
#[must_use = "a transaction does nothing until it begins"]
pub struct PendingTransaction<'p, 's, S: RecordStore + ?Sized> {
    store: &'s S,
    parent: Option<&'p mut Work<'s, S>>,
    key: Key,
    level: IsolationLevel,
    mode: CommitMode,
    overwrite: bool,
    options: LockOptions,
}

impl<'p, 's, S: RecordStore + ?Sized> PendingTransaction<'p, 's, S> {
    pub(crate) fn new(store: &'s S, key: Key) -> Self {
        Self {
            store,
            parent: None,
            key,
            level: IsolationLevel::ReadCommitted,
            mode: CommitMode::default(),
            overwrite: false,
            options: LockOptions::new(),
        }
    }

    pub(super) fn within(parent: &'p mut Work<'s, S>, key: Key) -> Self {
        Self {
            store: parent.store,
            key,
            level: parent.level,
            mode: parent.mode,
            overwrite: false,
            options: parent.options.clone(),
            parent: Some(parent),
        }
    }

    /// How far it is kept apart from others. [`ReadCommitted`](IsolationLevel::ReadCommitted), the
    /// default, takes no lock: of two at once the later commit wins.
    /// [`Serializable`](IsolationLevel::Serializable) holds the lock from begin to end.
    pub fn isolation_level(mut self, level: IsolationLevel) -> Self {
        self.level = level;
        self
    }

    /// When it commits. The default is [`Lazy`](CommitMode::Lazy).
    pub fn commit_mode(mut self, mode: CommitMode) -> Self {
        self.mode = mode;
        self
    }

    /// Does the work also where the record exists, and writes over it. The default is not to.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// How the lock is taken, and for whom: the holder's claim is also what the record is written on
    /// without a lock.
    pub fn lock_options(mut self, options: LockOptions) -> Self {
        self.options = options;
        self
    }

    /// [`TransactionState::Pending`].
    #[must_use]
    pub fn state(&self) -> TransactionState {
        TransactionState::Pending
    }

    /// Begins: takes the lock, if the isolation level needs one, and sees whether the record exists.
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedIsolationLevel`]; [`Error::LockTimeout`] when the time is up; the errors of
    /// [`exists`](crate::RecordStoreExt::exists). No lock is held then.
    pub fn begin(self) -> Result<Transaction<'p, 's, S>> {
        let Self { store, parent, key, level, mode, overwrite, options } = self;
        if !store.supports_level(level) {
            return Err(Error::UnsupportedIsolationLevel { key, level });
        }
        // One holder from begin to end, whatever thread ends it.
        let holder = options.resolve_holder();
        let options = options.holder(holder.clone());
        let guard = match level {
            IsolationLevel::ReadCommitted => None,
            IsolationLevel::Serializable => Some(LockGuard::acquire(store, key.clone(), &options)?),
        };
        let is_there = !overwrite && store.record_exists(&key)?;
        let state = if is_there { TransactionState::Committed } else { TransactionState::Active };
        let (staged, on_commit, on_rollback, children) = Default::default();
        let work = Work {
            store,
            key,
            holder,
            level,
            mode,
            options,
            state,
            guard,
            staged,
            on_commit,
            on_rollback,
            children,
        };
        Ok(Transaction { work, parent })
    }

    /// Begins, runs `f`, and [finishes](Transaction::finish). An error or panic of `f` rolls back.
    /// `f` runs also where the record exists already: it asks
    /// [`is_committed`](Transaction::is_committed).
    ///
    /// # Errors
    ///
    /// Whatever `f` returns; and, as its type, the errors of [`begin`](PendingTransaction::begin) and
    /// [`finish`](Transaction::finish).
    pub fn run<T, E: From<Error>>(
        self,
        f: impl FnOnce(&mut Transaction<'p, 's, S>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut transaction = self.begin()?;
        let outcome = f(&mut transaction)?;
        transaction.finish()?;
        Ok(outcome)
    }
}
