//! Transactions.

use std::fmt;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::runtime::Handle;

use super::{AsyncLockGuard, AsyncRecordStore, current_holder};
use crate::compute::Call;
use crate::transaction::BoxError;
use crate::transaction::backend::{Backend, Background, HeldLock};
use crate::transaction::begun::{Begun, transaction_methods};
use crate::transaction::end::End;
use crate::transaction::plan::{Plan, pending_methods};
use crate::{
    Claim, Error, Holder, IntoKey, IsolationLevel, Json, Key, LockOptions, LockToken, RawRecord, ReadOptions,
    RecordStore, Result, TransactionRecord, TransactionState, WriteOptions,
};

/// A transaction that has not begun, and its options. Created by [`AsyncRecordStore::transaction`] and
/// [`AsyncTransaction::child`].
#[must_use = "a transaction does nothing until it begins"]
pub struct AsyncPendingTransaction<'p> {
    plan: Plan<'p, 'static>,
}

impl<'p> AsyncPendingTransaction<'p> {
    pending_methods!();

    #[doc = same_as!("PendingTransaction::begin", "an acquisition")]
    pub async fn begin(self) -> Result<AsyncTransaction<'p>> {
        Ok(AsyncTransaction { begun: self.plan.begin().await? })
    }

    #[doc = same_as!("PendingTransaction::run", "the transaction is dropped, see [`AsyncTransaction`]")]
    pub async fn run<T, E: From<Error>>(
        self,
        f: impl AsyncFnOnce(&mut AsyncTransaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut transaction = self.begin().await?;
        let outcome = f(&mut transaction).await;
        transaction.begun.end(outcome).await
    }
}

/// A begun transaction, from [`AsyncRecordStore::transaction`]. It is to a task what a
/// [`Transaction`](crate::Transaction) is to a thread: states, hooks and children follow the same rules.
///
/// It owns its store, and it keeps its holder when it is moved to another task. Its hooks are futures and own what they
/// use.
///
/// ```
/// use record_store::asynchronous::AsyncRecordStore;
/// use record_store::{Error, MemoryRecordStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> record_store::Result<()> {
/// let store = AsyncRecordStore::new(MemoryRecordStore::new());
/// let order = store.transaction("order-7")?.run(async |order| {
///     if let Some(record) = order.read::<u32>().await? {
///         return Ok(record.result);
///     }
///     order.child("payment-7")?.run(async |payment| payment.stage(&"paid")).await?;
///     order.on_rollback(async |_| { println!("refund"); Ok(()) });
///     order.stage(&42)?;
///     Ok::<u32, Error>(42)
/// });
/// let total = order.await?;
/// assert_eq!(store.read::<u32>("order-7").await?.map(|record| record.result), Some(total));
/// # Ok(())
/// # }
/// ```
///
/// # Drop
///
/// A transaction that is dropped rolls back, also during a panic, when its task is aborted, and when a future that owns it
/// is dropped: [`run`](AsyncPendingTransaction::run), [`commit`](AsyncTransaction::commit),
/// [`rollback`](AsyncTransaction::rollback) or [`finish`](AsyncTransaction::finish). No hook runs twice.
///
/// * The drop runs all that does not have to wait. From the first hook on that has to, the rollback continues in a task of
///   its own, which has another default holder. The lock is released in the background, after the hooks. The same holder
///   cannot acquire it before: a rollback hook that does so would wait for itself.
/// * A commit hook that is waiting is dropped. A rollback hook that is waiting continues.
/// * After the drop no write begins. If one had begun, its outcome decides: either the record is written and the
///   transaction is committed, or it rolls back.
/// * Outside of a runtime, and when the runtime shuts down, nothing can wait. Each rollback hook is polled once, and
///   dropped if it has to wait. If a write had begun, no hook runs. The lock is released.
#[must_use = "a transaction that is dropped rolls back"]
pub struct AsyncTransaction<'p> {
    begun: Begun<'p, 'static>,
}

impl AsyncTransaction<'_> {
    transaction_methods!();

    #[doc = same_as!("Transaction::read", "a read")]
    pub async fn read<R: DeserializeOwned>(&self) -> Result<Option<TransactionRecord<R>>> {
        self.read_with(ReadOptions::new()).await
    }

    #[doc = same_as!("Transaction::read_with", "a read")]
    pub async fn read_with<R: DeserializeOwned>(
        &self,
        options: ReadOptions,
    ) -> Result<Option<TransactionRecord<R>>> {
        let record = self.begun.work.read(options).await?;
        record.map(|record| record.decode("read", self.key().clone())).transpose()
    }

    /// Registers a hook for the commit, as [`Transaction::on_commit`](crate::Transaction::on_commit) does.
    pub fn on_commit<F>(&mut self, hook: impl FnOnce(Key) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let key = self.key().clone();
        self.begun.work.on_commit(async move { hook(key).await });
    }

    /// Registers a hook for the rollback, as [`Transaction::on_rollback`](crate::Transaction::on_rollback) does.
    pub fn on_rollback<F>(&mut self, hook: impl FnOnce(Key) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        let key = self.key().clone();
        self.begun.work.on_rollback(async move { hook(key).await });
    }

    /// Prepares a child, as [`Transaction::child`](crate::Transaction::child) does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey).
    pub fn child(&mut self, key: impl IntoKey) -> Result<AsyncPendingTransaction<'_>> {
        Ok(AsyncPendingTransaction { plan: Plan::within(&mut self.begun.work, key.into_key()?) })
    }

    #[doc = same_as!("Transaction::commit", "the transaction is dropped, see [`AsyncTransaction`]")]
    pub async fn commit(self) -> Result<()> {
        self.begun.commit().await
    }

    #[doc = same_as!("Transaction::rollback", "the rollback continues, see [`AsyncTransaction`]")]
    pub async fn rollback(self) -> Result<()> {
        self.begun.roll_back().await
    }

    #[doc = same_as!("Transaction::finish", "as [`commit`](Self::commit) or [`rollback`](Self::rollback)")]
    pub async fn finish(self) -> Result<TransactionState> {
        self.begun.finish().await
    }
}

impl fmt::Debug for AsyncTransaction<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.begun.fmt(f)
    }
}

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    /// Prepares a transaction, as [`RecordStoreExt::transaction`](crate::RecordStoreExt::transaction) does.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidKey`](crate::ErrorKind::InvalidKey).
    pub fn transaction(&self, key: impl IntoKey) -> Result<AsyncPendingTransaction<'static>> {
        Ok(AsyncPendingTransaction { plan: Plan::new(self.clone(), key.into_key()?) })
    }
}

impl<S: RecordStore + ?Sized + 'static> Backend<'static> for AsyncRecordStore<S> {
    fn default_holder(&self) -> Holder {
        current_holder()
    }

    fn supports_isolation_level(&self, level: IsolationLevel) -> bool {
        self.supports_isolation_level(level)
    }

    fn lock(&self, key: Key, options: LockOptions) -> Call<'_, Result<Box<dyn HeldLock<'static>>>> {
        Box::pin(async move { self.lock(key, options).await.map(|guard| Box::new(guard) as _) })
    }

    fn exists<'a>(&'a self, key: &'a Key) -> Call<'a, Result<bool>> {
        Box::pin(self.exists(key))
    }

    fn read<'a>(&'a self, key: &'a Key, options: ReadOptions) -> Call<'a, Result<Option<RawRecord>>> {
        Box::pin(self.read_raw(key, options))
    }

    fn write(&self, key: &Key, result: &Arc<Json>, options: WriteOptions) -> Call<'static, Result<()>> {
        let (store, key, result) = (self.clone(), key.clone(), Arc::clone(result));
        Box::pin(async move { store.write_json(&key, result, options).await })
    }

    fn background(&self) -> Option<Background<'static>> {
        let runtime = Handle::try_current().ok()?;
        Some(Box::new(move |rest| {
            let task = runtime.spawn(rest);
            Box::pin(async move { drop(task.await) })
        }))
    }
}

impl<S: RecordStore + ?Sized + 'static> HeldLock<'static> for AsyncLockGuard<S> {
    fn token(&self) -> LockToken {
        self.token()
    }

    fn claim(&self, operation: &'static str) -> Result<Claim> {
        self.claim(operation)
    }

    fn release(self: Box<Self>, end: &End) -> Call<'static, ()> {
        let wait = (!end.is_drop()).then(|| end.wait_for_release());
        Box::pin(async move {
            match wait {
                Some(wait) => drop(self.release_with(wait).await),
                // In the background, as all dropped guards, also outside of a runtime.
                None => drop(self),
            }
        })
    }

    fn give_up(&self) {
        self.give_up();
    }
}
