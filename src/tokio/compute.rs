//! What one does with a record in one go: compute it once, update it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::blocking::until;
use super::{AsyncLockGuard, AsyncRecordStore, current_holder};
use crate::compute::A_TRY;
use crate::record::encode;
use crate::{
    Claim, Error, IntoKey, Json, Key, LockOptions, RecordStore, Result, TransactionRecord, UpdateOptions,
};

impl<S: RecordStore + Clone + 'static> AsyncRecordStore<S> {
    /// The record's result, computed by `f` if there is none. Of all who ask for a key at once,
    /// exactly one runs `f`, under the lock; the others wait and get its result. As
    /// [`RecordStoreExt::get_or_compute`](crate::RecordStoreExt::get_or_compute).
    ///
    /// `f` runs in this very future, so a computation that keeps the processor busy belongs into
    /// [`spawn_blocking`](tokio::task::spawn_blocking).
    ///
    /// ```
    /// use record_store::tokio::AsyncRecordStore;
    /// use record_store::{Error, LockOptions, MemoryRecordStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> record_store::Result<()> {
    /// let store = AsyncRecordStore::new(MemoryRecordStore::new());
    /// let fetch = async || Ok::<f64, Error>(1.09);
    /// assert_eq!(store.get_or_compute("exchange-rate", LockOptions::new(), fetch).await?, 1.09);
    /// assert!(store.exists("exchange-rate").await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe: dropped while `f` runs, `f` is dropped, nothing is stored, and the next who asks
    /// computes. Dropped while the result is written, it is written as a whole or not at all.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::get_or_compute`](crate::RecordStoreExt::get_or_compute), and
    /// [`Error::Thread`] if the runtime is shutting down.
    pub async fn get_or_compute<R, E, F>(
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
        let (key, mut options) = (key.into_key()?, options.into());
        let holder = options.lock.get_holder().cloned().unwrap_or_else(current_holder);
        options.lock = options.lock.holder(holder.clone());
        let (claim, start) = (Claim::Holder(holder), Instant::now());
        let guard = loop {
            let left = options.lock.get_acquire_timeout().map(|time| time.saturating_sub(start.elapsed()));
            if let Some(json) = self.read_unless_cancelled(&key, &claim, &options.lock, left).await? {
                return Ok(decode(&key, &json)?);
            }
            let a_try = options.lock.clone().acquire_timeout(left.map_or(A_TRY, |left| left.min(A_TRY)));
            match self.lock(&key, a_try).await {
                Ok(guard) => break guard,
                Err(error) if error.is_timeout() && left.is_none_or(|left| left > A_TRY) => {}
                Err(error) => return Err(error.into()),
            }
        };
        // Another may have computed it between the look and the lock.
        if let Some(record) = guard.read().await? {
            released(guard).await;
            return Ok(record.result);
        }
        let json = encode("get_or_compute", &key, &f().await?)?;
        guard.write_json(json.clone(), options.write).await?;
        released(guard).await;
        // What the others get: not everything comes back from JSON as it went.
        Ok(decode(&key, &json)?)
    }

    /// Reads the record, lets `f` make the next result of it, and writes that, all under the lock.
    /// Returns what was written. As [`RecordStoreExt::update`](crate::RecordStoreExt::update).
    ///
    /// ```
    /// use record_store::tokio::AsyncRecordStore;
    /// use record_store::{Error, LockOptions, MemoryRecordStore};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> record_store::Result<()> {
    /// let store = AsyncRecordStore::new(MemoryRecordStore::new());
    /// let count = async |old: Option<u64>| Ok::<u64, Error>(old.unwrap_or(0) + 1);
    /// assert_eq!(store.update("visits", LockOptions::new(), count).await?, 1);
    /// assert_eq!(store.update("visits", LockOptions::new(), count).await?, 2);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe: as [`get_or_compute`](AsyncRecordStore::get_or_compute).
    ///
    /// # Errors
    ///
    /// As for [`get_or_compute`](AsyncRecordStore::get_or_compute).
    pub async fn update<R, E, F>(
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
        let options = options.into();
        let guard = self.lock(key, options.lock).await?;
        let old = guard.read().await?.map(|record| record.result);
        let new = f(old).await?;
        guard.write_with(&new, options.write).await?;
        released(guard).await;
        Ok(new)
    }

    /// Waits while another computes.
    async fn read_unless_cancelled(
        &self,
        key: &Key,
        claim: &Claim,
        options: &LockOptions,
        timeout: Option<Duration>,
    ) -> Result<Option<Json>> {
        let woken = Arc::new(Notify::new());
        let _alarm = options.get_cancellation().map(|cancellation| {
            let woken = Arc::clone(&woken);
            cancellation.on_cancel(move || woken.notify_one())
        });
        let read = pin!(self.read_json(key, claim.clone(), timeout));
        let cancelled = || Err(Error::Cancelled { operation: "get_or_compute", key: key.clone() });
        until(read, &woken, Duration::MAX).await.unwrap_or_else(cancelled)
    }
}

/// What was to be done is done: a lock that is lost by now is no loss.
async fn released<S: RecordStore + Clone + 'static>(guard: AsyncLockGuard<S>) {
    let _ = guard.release().await;
}

fn decode<R: DeserializeOwned>(key: &Key, json: &Json) -> Result<R> {
    Ok(TransactionRecord::decode("get_or_compute", key.clone(), json)?.result)
}
