//! Read, compute and write as one operation: compute once, update.

use std::slice;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::pending::Acquisition;
use super::{AsyncLockGuard, AsyncRecordStore, RecordStoreFutures, current_holder};
use crate::compute::{Found, GET_OR_COMPUTE, REREAD_INTERVAL, find_or_lock};
use crate::{Error, IntoKey, Json, Key, LockGuard, ReadOptions, RecordStore, Result, UpdateOptions};

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
        let (keys, lock, of) = (slice::from_ref(&key), options.get_lock().clone(), options.clone());
        let find_or_lock = move |store: &Self, keys: &[Arc<Acquisition>], lock, _| {
            let acquire = |lock| LockGuard::acquire_owned(&store.store, keys[0].key().clone(), lock);
            Ok(match find_or_lock(store.inner(), keys[0].key(), &of.clone().lock(lock), acquire)? {
                Found::Record(json) => Found::Record(json),
                Found::Lock(guard) => Found::Lock(AsyncLockGuard::new(store, guard, &keys[0])),
            })
        };
        let found = if let Some(futures) = self.store.futures_raw() {
            self.find_or_lock(&*futures, &key, &options).await?
        } else {
            self.acquire(GET_OR_COMPUTE, keys, lock, Some(&self.queues), find_or_lock, None).await?
        };
        let guard = match found {
            Found::Record(json) => return Ok(json.decode_result(GET_OR_COMPUTE, &key)?),
            Found::Lock(guard) => guard,
        };
        let json = Json::encode_result(GET_OR_COMPUTE, &key, &f().await?)?;
        guard.write_raw(json.clone(), options.write()).await?;
        // The result is stored, so it does not matter if the lock is lost by now.
        let _ = guard.release().await;
        // The same as the other callers get: not every value survives JSON unchanged.
        Ok(json.decode_result(GET_OR_COMPUTE, &key)?)
    }

    /// As [`find_or_lock`] does it, with futures.
    async fn find_or_lock(
        &self,
        futures: &dyn RecordStoreFutures,
        key: &Key,
        options: &UpdateOptions,
    ) -> Result<Found<AsyncLockGuard<S>>> {
        let start = Instant::now();
        let (corrupt, lock) = (options.get_corrupt_records(), options.get_lock().clone());
        let holder = lock.get_holder().cloned().unwrap_or_else(current_holder);
        let wait = lock.get_wait().of_call(start);
        let lock = lock.holder(holder.clone()).wait(wait);
        let guard = loop {
            let rest = lock.get_wait().since(start);
            let left = rest.get_timeout();
            let read =
                self.read_json(futures, key, ReadOptions::new().wait(rest).claim(holder.clone())).await;
            match read {
                Ok(Some(json)) => return Ok(Found::Record(json)),
                Ok(None) => {}
                Err(error) if corrupt.recomputes(&error) => {}
                Err(error) if error.is_timeout() => return Err(error.with_waited(start.elapsed())),
                Err(error) => return Err(error),
            }
            let queue = left.map_or(REREAD_INTERVAL, |left| left.min(REREAD_INTERVAL));
            match self.lock(key, lock.clone().acquire_timeout(queue)).await {
                Ok(guard) => break guard,
                Err(error) if error.is_timeout() && left.is_none_or(|left| left > REREAD_INTERVAL) => {}
                Err(error) if error.is_timeout() => return Err(error.with_waited(start.elapsed())),
                Err(error) => return Err(error),
            }
        };
        // Another caller may have computed it between the read and the acquisition.
        let again = ReadOptions::new().wait(lock.get_wait().since(start)).claim(guard.token());
        match self.read_json(futures, key, again).await {
            Ok(Some(json)) => Ok(Found::Record(json)),
            Ok(None) => Ok(Found::Lock(guard)),
            Err(error) if corrupt.recomputes(&error) => {
                crate::trace::recomputes(&error);
                Ok(Found::Lock(guard))
            }
            Err(error) => Err(error),
        }
    }

    async fn read_json(
        &self,
        futures: &dyn RecordStoreFutures,
        key: &Key,
        options: ReadOptions,
    ) -> Result<Option<Json>> {
        Ok(futures.read(key, options).await?.map(|record| record.json))
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
        let (start, options) = (Instant::now(), options.into());
        let guard = self.lock(key, options.get_lock().clone()).await?;
        let rest = options.get_lock().get_wait().since(start);
        let old = guard.read_with(ReadOptions::new().wait(rest)).await?.map(|record| record.result);
        let new = f(old).await?;
        guard.write_with(&new, options.write()).await?;
        let _ = guard.release().await;
        Ok(new)
    }
}
