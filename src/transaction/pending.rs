//! The builder of a transaction.

use super::work::Work;
use super::{CommitMode, Transaction, TransactionState};
use crate::process::ProcessId;
use crate::{Error, ErrorKind, IsolationLevel, Key, LockGuard, LockOptions, RecordStore, Result};

/// A transaction that has not begun, and its options. Created by
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

    /// Sets the isolation level. [`ReadCommitted`](IsolationLevel::ReadCommitted), the default, acquires no
    /// lock: of two concurrent transactions, the later commit wins.
    /// [`Serializable`](IsolationLevel::Serializable) holds the lock from begin to end.
    pub fn isolation_level(mut self, level: IsolationLevel) -> Self {
        self.level = level;
        self
    }

    /// Sets when the transaction commits. The default is [`Lazy`](CommitMode::Lazy).
    pub fn commit_mode(mut self, mode: CommitMode) -> Self {
        self.mode = mode;
        self
    }

    /// Whether to do the work and overwrite the record if it already exists. The default is `false`.
    pub fn overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Sets how the lock is acquired and by which holder. A transaction without a lock also writes its record
    /// as this holder. The lock is exclusive in any case.
    pub fn lock_options(mut self, options: LockOptions) -> Self {
        self.options = options.exclusive();
        self
    }

    /// Always [`TransactionState::Pending`].
    #[must_use]
    pub fn state(&self) -> TransactionState {
        TransactionState::Pending
    }

    /// Begins the transaction: acquires the lock if the isolation level needs one, then checks whether the
    /// record exists.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnsupportedIsolationLevel`]; [`ErrorKind::LockTimeout`] if the lock was not acquired in time; the
    /// errors of [`exists`](crate::RecordStoreExt::exists). After an error, no lock is held.
    pub fn begin(self) -> Result<Transaction<'p, 's, S>> {
        let Self { store, parent, key, level, mode, overwrite, options } = self;
        if !store.supports_isolation_level_raw(level) {
            let error = Error::new(ErrorKind::UnsupportedIsolationLevel, "begin").with_key(&key);
            return Err(error.with_detail(format!("{level:?}")));
        }
        // Resolve the holder once: another thread, with another default holder, may end the transaction.
        let holder = options.resolve_holder();
        let options = options.holder(holder.clone());
        let guard = match level {
            IsolationLevel::ReadCommitted => None,
            IsolationLevel::Serializable => Some(LockGuard::acquire(store, key.clone(), options.clone())?),
        };
        let is_done = !overwrite && store.exists_raw(&key)?;
        let state = if is_done { TransactionState::Committed } else { TransactionState::Active };
        let (staged, on_commit, on_rollback, children) = Default::default();
        let work = Work {
            store,
            process: ProcessId::current(),
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

    /// Begins the transaction, runs `f` and [finishes](Transaction::finish) the transaction. If `f` fails or
    /// panics, the transaction rolls back. `f` also runs if the record already exists; it can check
    /// [`is_committed`](Transaction::is_committed).
    ///
    /// # Errors
    ///
    /// The error of `f`; the errors of [`begin`](PendingTransaction::begin) and
    /// [`finish`](Transaction::finish), converted to the error type of `f`.
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
