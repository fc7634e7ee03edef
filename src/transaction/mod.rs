//! Transactions after Prefect's `prefect.transactions`: a record is staged, hooks are registered,
//! and at the end all of it is committed or rolled back.

mod pending;
mod work;

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{Claim, IntoKey, IsolationLevel, Key, LockToken, RecordStore, Result, TransactionRecord};
pub use pending::PendingTransaction;
use work::{BoxError, Work};

/// When a transaction commits that is [finished](Transaction::finish). Prefect's `CommitMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CommitMode {
    /// At once, also as a child: it stays committed when its parent rolls back.
    Eager,
    /// With its parent; without one, at once.
    #[default]
    Lazy,
    /// With its parent; without one, not at all: it rolls back unless it was
    /// [committed](Transaction::commit) in so many words.
    Off,
}

/// How far a transaction has come. Prefect's `TransactionState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TransactionState {
    /// Not begun.
    Pending,
    /// Begun, and nothing is staged.
    Active,
    /// A result is staged.
    Staged,
    /// The record is written; or there was one at the beginning, so there is nothing to be done.
    Committed,
    /// Given up: nothing was written, and the rollback hooks have run.
    RolledBack,
}

/// A begun transaction, from [`RecordStoreExt::transaction`](crate::RecordStoreExt::transaction).
///
/// A transaction whose record exists already is [committed](Transaction::is_committed) from the
/// beginning: there is nothing to be done but to [read](Transaction::read) it. Otherwise the caller
/// works, [stages](Transaction::stage) the result and says what to do at the
/// [commit](Transaction::on_commit) and at the [rollback](Transaction::on_rollback). Dropped before it
/// is committed, or finished, it rolls back, on panic too.
///
/// A [child](Transaction::child) belongs to its parent. It ends first, and what it did not commit
/// itself is committed with its parent, before it; or rolled back, before it.
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
///     order.on_rollback(|_| { println!("refund!"); Ok(()) });
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
/// Each record is written atomically, but several are not: if the process dies, or a write fails,
/// between the commits of two children, one is there and the other is not. A hook that has run is not
/// undone except by a rollback hook.
///
/// # For those who know Prefect
///
/// | Prefect | here | different |
/// | --- | --- | --- |
/// | `with transaction(key, store, …) as txn` | [`PendingTransaction::run`], or [`begin`](PendingTransaction::begin) and [`finish`](Transaction::finish) | |
/// | `isolation_level=` | [`PendingTransaction::isolation_level`] | |
/// | `commit_mode=` | [`PendingTransaction::commit_mode`] | |
/// | `overwrite=` | [`PendingTransaction::overwrite`] | |
/// | `txn.read()` | [`Transaction::read`] | |
/// | `txn.stage(value, on_rollback_hooks, on_commit_hooks)` | [`stage`](Transaction::stage), [`on_rollback`](Transaction::on_rollback), [`on_commit`](Transaction::on_commit) | the result is encoded at once, so what cannot be is told where it is staged |
/// | `txn.commit()`, `txn.rollback()` | [`commit`](Transaction::commit), [`rollback`](Transaction::rollback) | a failure is an error, not a `False`; every rollback hook runs, also after one that failed |
/// | nested `with transaction(…)` | [`Transaction::child`] | the parent is named, not looked up in a context variable; children are rolled back before their parent, not after; a child whose commit fails makes its parent roll back |
/// | `is_pending()` … `is_rolled_back()` | [`state`](Transaction::state), [`is_committed`](Transaction::is_committed) | |
/// | committed without a staged value | writes no record | Prefect writes a `null` |
/// | `ConfigurationError` for an unsupported level | [`Error::UnsupportedIsolationLevel`] from `begin` | |
/// | `txn.set`, `txn.get` | | a closure's own variables |
///
/// [`Error::UnsupportedIsolationLevel`]: crate::Error::UnsupportedIsolationLevel
#[must_use = "a transaction that is dropped rolls back"]
pub struct Transaction<'p, 's, S: RecordStore + ?Sized> {
    work: Work<'s, S>,
    /// Where the work goes that is left to the parent.
    parent: Option<&'p mut Work<'s, S>>,
}

impl<'s, S: RecordStore + ?Sized> Transaction<'_, 's, S> {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.work.key
    }

    /// How far it has come.
    #[must_use]
    pub fn state(&self) -> TransactionState {
        self.work.state
    }

    /// Whether the record existed at the beginning, so that there is nothing to be done.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.work.state == TransactionState::Committed
    }

    /// How far it is kept apart from others.
    #[must_use]
    pub fn isolation_level(&self) -> IsolationLevel {
        self.work.level
    }

    /// The token of the lock, under [`IsolationLevel::Serializable`].
    #[must_use]
    pub fn token(&self) -> Option<LockToken> {
        self.work.guard.as_ref().map(crate::LockGuard::token)
    }

    /// Reads the record as it is in the store: what is staged is not in it. Waits while another
    /// holder's lock is live.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::read`](crate::RecordStoreExt::read), and
    /// [`Error::LockLost`](crate::Error::LockLost).
    pub fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        if let Some(guard) = &self.work.guard {
            return guard.read();
        }
        self.work
            .store
            .read_json(&self.work.key, &Claim::Holder(self.work.holder.clone()), None)?
            .map(|json| TransactionRecord::decode("read", self.work.key.clone(), &json))
            .transpose()
    }

    /// Stages the result that the commit is to write, in the place of what was staged before. Does
    /// nothing in a transaction that is committed from the beginning.
    ///
    /// # Errors
    ///
    /// [`Error::Encode`](crate::Error::Encode) if JSON cannot hold it: what was staged before stays.
    pub fn stage<R: Serialize + ?Sized>(&mut self, result: &R) -> Result<()> {
        self.work.stage(result)
    }

    /// Has `hook` run at the commit, after the commits of the children and before the record is
    /// written, in the order in which the hooks were given. If it fails, the transaction rolls back.
    pub fn on_commit(&mut self, hook: impl FnOnce(&Key) -> Result<(), BoxError> + Send + 's) {
        self.work.on_commit.push(Box::new(hook));
    }

    /// Has `hook` run if the transaction rolls back, the last one first.
    pub fn on_rollback(&mut self, hook: impl FnOnce(&Key) -> Result<(), BoxError> + Send + 's) {
        self.work.on_rollback.push(Box::new(hook));
    }

    /// Prepares a child: a transaction within this one. It takes over this one's isolation level,
    /// commit mode and lock options unless it is told otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidKey`](crate::Error::InvalidKey).
    pub fn child(&mut self, key: impl IntoKey) -> Result<PendingTransaction<'_, 's, S>> {
        Ok(PendingTransaction::within(&mut self.work, key.into_key()?))
    }

    /// Commits: the children, then the commit hooks, then the record, if a result is staged; then the
    /// lock is released. A transaction that was committed from the beginning only releases its lock.
    ///
    /// # Errors
    ///
    /// [`Error::Hook`](crate::Error::Hook), or what kept the record from being written, such as
    /// [`Error::Locked`](crate::Error::Locked) or [`Error::LockLost`](crate::Error::LockLost). The
    /// transaction is rolled back then; children that were committed before stay so.
    pub fn commit(mut self) -> Result<()> {
        self.work.commit()
    }

    /// Rolls back: the children, the last one first, then the rollback hooks, the last one first; then
    /// the lock is released. Nothing is written. A committed transaction stays so.
    ///
    /// # Errors
    ///
    /// [`Error::Hook`](crate::Error::Hook), the first one. All other hooks have run.
    pub fn rollback(mut self) -> Result<()> {
        self.work.roll_back()
    }

    /// Ends the transaction as its [`CommitMode`] says: what Prefect does at the end of a `with`
    /// block. Returns the state it is in then; one that is left to its parent is as it was.
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
