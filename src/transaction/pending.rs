//! The builder of a transaction.

use super::Transaction;
use super::plan::{Plan, pending_methods};
use crate::store::calls::block;
use crate::{Error, Key, RecordStore, Result};

#[cfg(doc)]
use crate::ErrorKind;

/// A transaction that has not begun, and its options. Created by
/// [`RecordStoreExt::transaction`](crate::RecordStoreExt::transaction) and [`Transaction::child`].
#[must_use = "a transaction does nothing until it begins"]
pub struct PendingTransaction<'p, 's> {
    pub(super) plan: Plan<'p, 's>,
}

impl<'p, 's> PendingTransaction<'p, 's> {
    pub(crate) fn new<S: RecordStore + ?Sized>(store: &'s S, key: Key) -> Self {
        Self { plan: Plan::new(store, key) }
    }

    pending_methods!();

    /// Begins the transaction: acquires the lock if the isolation level needs one, then checks whether the
    /// record exists.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::UnsupportedIsolationLevel`]; [`ErrorKind::LockTimeout`] if the lock was not acquired in time, or
    /// [`ErrorKind::Cancelled`], as the [lock options](PendingTransaction::lock_options) say; the
    /// errors of [`exists`](crate::RecordStoreExt::exists). After an error, no lock is held.
    pub fn begin(self) -> Result<Transaction<'p, 's>> {
        Ok(Transaction { begun: block("begin", self.plan.begin())? })
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
        f: impl FnOnce(&mut Transaction<'p, 's>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut transaction = self.begin()?;
        let outcome = f(&mut transaction);
        block("finish", transaction.begun.end(outcome))
    }
}
