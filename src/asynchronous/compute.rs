//! Read, compute and write as one operation: compute once, update.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncLockGuard, AsyncRecordStore};
use crate::compute::{self, Found, GET_OR_COMPUTE};
use crate::{Error, IntoKey, Key, RecordStore, Result, UpdateOptions};

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    /// As [`RecordStoreExt::get_or_compute`](crate::RecordStoreExt::get_or_compute).
    ///
    /// `f` runs in this future: move work that keeps the processor busy into
    /// [`spawn_blocking`](tokio::task::spawn_blocking). Cancel safe: an acquisition until `f` returns, then a
    /// change. If the future is dropped while `f` runs, nothing is stored, and the next caller computes.
    ///
    /// ```
    /// use record_store::asynchronous::AsyncRecordStore;
    /// use record_store::{LockOptions, MemoryRecordStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> record_store::Result<()> {
    /// let store = AsyncRecordStore::new(MemoryRecordStore::new());
    /// let fetch = async || Ok(1.09);
    /// let rate: f64 = store.get_or_compute("exchange-rate", LockOptions::new(), fetch).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of the blocking method, and [`ErrorKind::Thread`](crate::ErrorKind::Thread).
    pub async fn get_or_compute<R: Serialize + DeserializeOwned, F: Future<Output = Result<R>>>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce() -> F,
    ) -> Result<R> {
        self.get_or_try_compute(key, options, f).await
    }

    #[doc = same_as!("RecordStoreExt::get_or_try_compute", "as [`get_or_compute`](Self::get_or_compute)")]
    pub async fn get_or_try_compute<R, E, F>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce() -> F,
    ) -> Result<R, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
        F: Future<Output = Result<R, E>>,
    {
        let (key, options) = (key.into_key()?, options.into());
        compute::get_or_compute(&key, &options, self.find(&key, &options), f).await
    }

    /// See [`compute::find`].
    async fn find(&self, key: &Key, options: &UpdateOptions) -> Result<Found<AsyncLockGuard<S>>> {
        let (keys, lock, options) = (vec![key.clone()], options.get_lock().clone(), options.clone());
        let futures = self.futures();
        // Only the first one needs a thread. Without threads, all of them wait in the store.
        let queues = futures.blocks().then_some(&self.queues);
        let found = self.acquire(GET_OR_COMPUTE, keys, lock, futures, queues, move |store, locking, lock| {
            let options = options.clone().lock(lock);
            async move {
                let read = |options| store.read(locking.key(), options);
                compute::find(&options, read, |options| locking.lock(&*store, options)).await
            }
        });
        found.await
    }

    #[doc = same_as!("RecordStoreExt::update", "an acquisition until `f` returns, then a change")]
    pub async fn update<R: Serialize + DeserializeOwned, F: Future<Output = Result<R>>>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce(Option<R>) -> F,
    ) -> Result<R> {
        self.try_update(key, options, f).await
    }

    #[doc = same_as!("RecordStoreExt::try_update", "as [`update`](Self::update)")]
    pub async fn try_update<R, E, F>(
        &self,
        key: impl IntoKey,
        options: impl Into<UpdateOptions>,
        f: impl FnOnce(Option<R>) -> F,
    ) -> Result<R, E>
    where
        R: Serialize + DeserializeOwned,
        E: From<Error>,
        F: Future<Output = Result<R, E>>,
    {
        let (key, options) = (key.into_key()?, options.into());
        compute::update(&key, &options, self.lock(&key, options.get_lock().clone()), f).await
    }
}
