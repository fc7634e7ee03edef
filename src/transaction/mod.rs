//! Transactions, modelled on Prefect's `prefect.transactions`: stage a result, register hooks, then commit
//! everything or roll everything back.

mod pending;
mod work;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::TransactionRecord;
use crate::{IntoKey, IsolationLevel, Key, LockToken, ReadOptions, RecordStore, RecordStoreExt, Result};

#[cfg(doc)]
use crate::ErrorKind;
pub use pending::PendingTransaction;
use work::{BoxError, Work};

/// When [`finish`](Transaction::finish) commits a transaction. Prefect's `CommitMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CommitMode {
    /// Immediately, even for a child. A child stays committed if its parent rolls back.
    Eager,
    /// A child commits with its parent. A transaction without a parent commits immediately.
    #[default]
    Lazy,
    /// A child commits with its parent. A transaction without a parent rolls back, unless
    /// [`commit`](Transaction::commit) was called explicitly.
    Off,
}

/// The state of a transaction. Prefect's `TransactionState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransactionState {
    /// Not begun.
    Pending,
    /// Begun; no result is staged.
    Active,
    /// A result is staged.
    Staged,
    /// The record is written, or it already existed when the transaction began.
    Committed,
    /// Rolled back: nothing was written, and the rollback hooks have run.
    RolledBack,
}

/// A begun transaction, from [`RecordStoreExt::transaction`](crate::RecordStoreExt::transaction).
///
/// If the record already exists, the transaction is [committed](Transaction::is_committed) from the start:
/// the caller only [reads](Transaction::read) the record. Otherwise the caller does the work,
/// [stages](Transaction::stage) the result and registers hooks for the [commit](Transaction::on_commit) and
/// the [rollback](Transaction::on_rollback). A transaction that is dropped before it is committed or finished
/// rolls back, also during a panic.
///
/// A [child](Transaction::child) belongs to its parent and ends before it. If the child did not commit by
/// itself, it is committed or rolled back together with its parent, just before the parent's own work.
///
/// ```
/// use record_store::{Error, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// let total = store.transaction("order-7")?.run(|order| {
///     if let Some(record) = order.read::<u32>()? {
///         return Ok(record.result);
///     }
///     order.child("payment-7")?.run(|payment| payment.stage(&"paid"))?;
///     order.on_rollback(|_| { println!("refund"); Ok(()) });
///     order.stage(&42)?;
///     Ok::<u32, Error>(42)
/// })?;
/// assert_eq!(store.read::<u32>("order-7")?.map(|record| record.result), Some(total));
/// assert!(store.exists("payment-7")?);
/// # Ok::<(), Error>(())
/// ```
///
/// # Limitations
///
/// Each record is written atomically; several records together are not. If the process dies or a write fails
/// between the commits of two children, only the first child's record exists. Only a rollback hook can undo
/// the effects of a hook that has run.
///
/// # Comparison with Prefect
///
/// | Prefect | here | difference |
/// | --- | --- | --- |
/// | `with transaction(key, store, …) as txn` | [`PendingTransaction::run`], or [`begin`](PendingTransaction::begin) and [`finish`](Transaction::finish) | |
/// | `isolation_level=` | [`PendingTransaction::isolation_level`] | |
/// | `commit_mode=` | [`PendingTransaction::commit_mode`] | |
/// | `overwrite=` | [`PendingTransaction::overwrite`] | |
/// | `txn.read()` | [`Transaction::read`] | |
/// | `txn.stage(value, on_rollback_hooks, on_commit_hooks)` | [`stage`](Transaction::stage), [`on_rollback`](Transaction::on_rollback), [`on_commit`](Transaction::on_commit) | the result is encoded immediately, so a result that cannot be encoded is reported by `stage` |
/// | `txn.commit()`, `txn.rollback()` | [`commit`](Transaction::commit), [`rollback`](Transaction::rollback) | a failure is an error, not `False`; every rollback hook runs, even after another hook failed |
/// | nested `with transaction(…)` | [`Transaction::child`] | the parent is explicit, not a context variable; children are rolled back before their parent, not after it; if the commit of a child fails, the parent rolls back |
/// | `is_pending()` … `is_rolled_back()` | [`state`](Transaction::state), [`is_committed`](Transaction::is_committed) | |
/// | commit without a staged value | writes no record | Prefect writes `null` |
/// | `ConfigurationError` for an unsupported level | [`ErrorKind::UnsupportedIsolationLevel`] from `begin` | |
/// | `txn.set`, `txn.get` | | use the closure's variables |
#[must_use = "a transaction that is dropped rolls back"]
pub struct Transaction<'p, 's, S: RecordStore + ?Sized> {
    work: Work<'s, S>,
    /// Takes over this transaction's work if it commits with its parent.
    parent: Option<&'p mut Work<'s, S>>,
}

impl<'s, S: RecordStore + ?Sized> Transaction<'_, 's, S> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.work.key
    }

    /// The state.
    #[must_use]
    pub fn state(&self) -> TransactionState {
        self.work.state
    }

    /// Whether the record already existed when the transaction began, so that no work is left.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.work.state == TransactionState::Committed
    }

    /// The isolation level.
    #[must_use]
    pub fn isolation_level(&self) -> IsolationLevel {
        self.work.level
    }

    /// The token of the lock, under [`IsolationLevel::Serializable`].
    #[must_use]
    pub fn token(&self) -> Option<LockToken> {
        self.work.guard.as_ref().map(crate::LockGuard::token)
    }

    /// Reads the record from the store, without the staged result. Waits while another holder's lock is
    /// live.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::read`](crate::RecordStoreExt::read), and
    /// [`ErrorKind::LockLost`].
    pub fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        if let Some(guard) = &self.work.guard {
            return guard.read();
        }
        let options = ReadOptions::new().claim(&self.work.holder);
        self.work.store.read_with(&self.work.key, options)
    }

    /// Stages the result that [`commit`](Transaction::commit) writes. Replaces a result that was staged
    /// before. Does nothing if the transaction is already committed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Encode`] if JSON cannot represent the result. A result that was staged
    /// before stays staged.
    pub fn stage<R: Serialize + ?Sized>(&mut self, result: &R) -> Result<()> {
        self.work.stage(result)
    }

    /// Registers a hook for the commit. Hooks run in the order of registration, after the children have
    /// committed and before the record is written. If a hook fails, the transaction rolls back.
    pub fn on_commit(&mut self, hook: impl FnOnce(&Key) -> Result<(), BoxError> + Send + 's) {
        self.work.on_commit.push(Box::new(hook));
    }

    /// Registers a hook for the rollback. Hooks run in reverse order of registration.
    pub fn on_rollback(&mut self, hook: impl FnOnce(&Key) -> Result<(), BoxError> + Send + 's) {
        self.work.on_rollback.push(Box::new(hook));
    }

    /// Prepares a child: a transaction within this one. The child inherits the isolation level, the commit
    /// mode and the lock options; its own setters override them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`].
    pub fn child(&mut self, key: impl IntoKey) -> Result<PendingTransaction<'_, 's, S>> {
        Ok(PendingTransaction::within(&mut self.work, key.into_key()?))
    }

    /// Commits the children, runs the commit hooks, writes the record if a result is staged, and releases the
    /// lock. A transaction that was committed from the start commits its children and releases its lock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Hook`] if a hook fails; the error of the write, such as
    /// [`ErrorKind::Locked`] or [`ErrorKind::LockLost`]. The
    /// transaction is then rolled back. Children that have already committed stay committed.
    pub fn commit(mut self) -> Result<()> {
        self.work.commit()
    }

    /// Rolls back the children in reverse order, runs the rollback hooks in reverse order, and releases the
    /// lock. Writes nothing. A committed transaction stays committed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Hook`] of the first hook that failed. All other hooks have run.
    pub fn rollback(mut self) -> Result<()> {
        self.work.roll_back()
    }

    /// Ends the transaction according to its [`CommitMode`], as Prefect does at the end of a `with` block.
    /// Returns the final state, or the unchanged state if the transaction now waits for its parent.
    ///
    /// # Errors
    ///
    /// As for [`commit`](Transaction::commit) or [`rollback`](Transaction::rollback).
    pub fn finish(self) -> Result<TransactionState> {
        let Self { mut work, parent } = self;
        match (work.mode, parent) {
            (CommitMode::Lazy | CommitMode::Off, Some(parent)) => {
                let state = work.state;
                parent.children.push(work);
                return Ok(state);
            }
            (CommitMode::Eager, _) | (CommitMode::Lazy, None) => work.commit()?,
            (CommitMode::Off, None) => work.roll_back()?,
        }
        Ok(work.state)
    }
}

impl<S: RecordStore + ?Sized> fmt::Debug for Transaction<'_, '_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("key", &self.work.key)
            .field("state", &self.work.state)
            .field("isolation_level", &self.work.level)
            .field("commit_mode", &self.work.mode)
            .finish_non_exhaustive()
    }
}
