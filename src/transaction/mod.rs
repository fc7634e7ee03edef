//! Transactions, modelled on Prefect's `prefect.transactions`: stage a result, register hooks, then commit
//! everything or roll everything back.

pub(crate) mod backend;
pub(crate) mod begun;
pub(crate) mod end;
mod pending;
pub(crate) mod plan;
mod settings;
mod work;

use std::error::Error as StdError;
use std::fmt;

use serde::de::DeserializeOwned;

#[cfg(doc)]
use crate::ErrorKind;
use crate::store::calls::block;
use crate::{IntoKey, Key, ReadOptions, Result, TransactionRecord};
use begun::{Begun, transaction_methods};
pub use pending::PendingTransaction;
use plan::Plan;

/// The error of a hook.
pub(crate) type BoxError = Box<dyn StdError + Send + Sync>;

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
/// rolls back, also during a panic. Such a drop waits at most a second for a process that is stopped in the middle of an
/// operation on the key; [`end_wait`](PendingTransaction::end_wait) limits all other ends.
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
/// | | [`PendingTransaction::end_wait`] | not in Prefect |
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
pub struct Transaction<'p, 's> {
    begun: Begun<'p, 's>,
}

impl<'s> Transaction<'_, 's> {
    transaction_methods!();

    /// Reads the record from the store, without the staged result. Waits while another holder's lock is
    /// live.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::read`](crate::RecordStoreExt::read), and
    /// [`ErrorKind::LockLost`].
    pub fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        self.read_with(ReadOptions::new())
    }

    /// [`read`](Transaction::read) with options: a timeout or a cancellation. The claim is that of the transaction.
    ///
    /// # Errors
    ///
    /// As for [`read`](Transaction::read), and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`]. The transaction goes
    /// on.
    pub fn read_with<R: DeserializeOwned>(
        &self,
        options: ReadOptions,
    ) -> Result<Option<TransactionRecord<R>>> {
        let record = block("read", self.begun.work.read(options))?;
        record.map(|record| record.decode("read", self.key().clone())).transpose()
    }

    /// Registers a hook for the commit. Hooks run in the order of registration, after the children have
    /// committed and before the record is written. If a hook fails or panics, the transaction rolls back.
    pub fn on_commit(&mut self, hook: impl FnOnce(&Key) -> Result<(), BoxError> + Send + 's) {
        let key = self.key().clone();
        self.begun.work.on_commit(async move { hook(&key) });
    }

    /// Registers a hook for the rollback. Hooks run in reverse order of registration.
    pub fn on_rollback(&mut self, hook: impl FnOnce(&Key) -> Result<(), BoxError> + Send + 's) {
        let key = self.key().clone();
        self.begun.work.on_rollback(async move { hook(&key) });
    }

    /// Prepares a child: a transaction within this one. The child inherits the isolation level, the commit
    /// mode, the lock options and the wait of the end; its own setters override them.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`].
    pub fn child(&mut self, key: impl IntoKey) -> Result<PendingTransaction<'_, 's>> {
        Ok(PendingTransaction { plan: Plan::within(&mut self.begun.work, key.into_key()?) })
    }

    /// Commits the children, runs the commit hooks, writes the record if a result is staged, and releases the
    /// lock. A transaction that was committed from the start commits its children and releases its lock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Hook`] if a hook fails; the error of the write, such as
    /// [`ErrorKind::Locked`] or [`ErrorKind::LockLost`], and [`ErrorKind::LockTimeout`] or [`ErrorKind::Cancelled`] as
    /// [`end_wait`](PendingTransaction::end_wait) says. The transaction is then rolled back, and its lock released.
    /// Children that have already committed stay committed.
    pub fn commit(self) -> Result<()> {
        block("commit", self.begun.commit())
    }

    /// Rolls back the children in reverse order, runs the rollback hooks in reverse order, and releases the
    /// lock. Writes nothing. A committed transaction stays committed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Hook`] of the first hook that failed. All other hooks have run, and the lock is released.
    pub fn rollback(self) -> Result<()> {
        block("rollback", self.begun.roll_back())
    }

    /// Ends the transaction according to its [`CommitMode`], as Prefect does at the end of a `with` block.
    /// Returns the final state, or the unchanged state if the transaction now waits for its parent.
    ///
    /// # Errors
    ///
    /// As for [`commit`](Transaction::commit) or [`rollback`](Transaction::rollback).
    pub fn finish(self) -> Result<TransactionState> {
        block("finish", self.begun.finish())
    }
}

impl fmt::Debug for Transaction<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.begun.fmt(f)
    }
}
