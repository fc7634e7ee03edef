//! Reading and changing records.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::acquire::waited_since;
use super::blocking::{in_slices, short};
use super::{AsyncListing, AsyncRecordStore, AsyncRecordWatch, current_claim};
use crate::record::encode;
use crate::{Claim, IntoKey, Json, Key, RecordStore, Result, TransactionRecord, WriteOptions};

impl<S: RecordStore + Clone + 'static> AsyncRecordStore<S> {
    /// Reads the record, as [`RecordStoreExt::read`](crate::RecordStoreExt::read) does: waits while
    /// another holder's lock is live.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::read`](crate::RecordStoreExt::read), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn read<R: DeserializeOwned>(&self, key: impl IntoKey) -> Result<Option<TransactionRecord<R>>> {
        self.read_result(key.into_key()?, current_claim(), None).await
    }

    /// [`read`](AsyncRecordStore::read) for the holder of a lock: by name, or by token.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`read`](AsyncRecordStore::read), and [`Error::LockLost`](crate::Error::LockLost) if the
    /// claim is by token and that lock is no longer live.
    pub async fn read_as<R: DeserializeOwned>(
        &self,
        key: impl IntoKey,
        claim: impl Into<Claim>,
    ) -> Result<Option<TransactionRecord<R>>> {
        self.read_result(key.into_key()?, claim.into(), None).await
    }

    /// [`read`](AsyncRecordStore::read) that waits no longer than `timeout`.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`read`](AsyncRecordStore::read), and [`Error::LockTimeout`](crate::Error::LockTimeout)
    /// if the key is still locked by another when the time is up. Zero looks once.
    pub async fn try_read<R: DeserializeOwned>(
        &self,
        key: impl IntoKey,
        timeout: Duration,
    ) -> Result<Option<TransactionRecord<R>>> {
        self.read_result(key.into_key()?, current_claim(), Some(timeout)).await
    }

    async fn read_result<R: DeserializeOwned>(
        &self,
        key: Key,
        claim: Claim,
        timeout: Option<Duration>,
    ) -> Result<Option<TransactionRecord<R>>> {
        let json = self.read_json(&key, claim, timeout).await?;
        json.map(|json| TransactionRecord::decode("read", key, &json)).transpose()
    }

    pub(super) async fn read_json(
        &self,
        key: &Key,
        claim: Claim,
        timeout: Option<Duration>,
    ) -> Result<Option<Json>> {
        let (start, store, of) = (Instant::now(), self.store.clone(), key.clone());
        let look = move |timeout| match store.read_json(&of, &claim, Some(timeout)) {
            Err(error) if error.is_timeout() => ControlFlow::Continue(Err(error)),
            outcome => ControlFlow::Break(outcome),
        };
        in_slices("read", key, timeout, look).await?.map_err(|error| waited_since(start, error))
    }

    /// Writes the record, as [`RecordStoreExt::write`](crate::RecordStoreExt::write) does: refused, at
    /// once, while another holder's lock is live.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::write`](crate::RecordStoreExt::write), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn write<R: Serialize + ?Sized>(&self, key: impl IntoKey, result: &R) -> Result<()> {
        self.write_with(key, result, WriteOptions::new()).await
    }

    /// [`write`](AsyncRecordStore::write) for the holder of a lock: by name, or by token.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`write`](AsyncRecordStore::write), and [`Error::LockLost`](crate::Error::LockLost) if
    /// the claim is by token and that lock is no longer live.
    pub async fn write_as<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        claim: impl Into<Claim>,
    ) -> Result<()> {
        self.write_with(key, result, WriteOptions::new().claim(claim)).await
    }

    /// [`write`](AsyncRecordStore::write) with options: a time to live, or another claim.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`write_as`](AsyncRecordStore::write_as).
    pub async fn write_with<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<()> {
        let key = key.into_key()?;
        let json = encode("write", &key, result)?;
        let (store, claim) = (self.store.clone(), claim_of(&options));
        short("write", Some(&key.clone()), move || store.write_json(&key, &json, &claim, &options)).await
    }

    /// Writes the record if there is none, as
    /// [`RecordStoreExt::write_if_absent`](crate::RecordStoreExt::write_if_absent) does.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`write_as`](AsyncRecordStore::write_as).
    pub async fn write_if_absent<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        self.compare_and_swap(key, None, result, options).await
    }

    /// Writes `new` if the record's result is `expected`, as
    /// [`RecordStoreExt::compare_and_swap`](crate::RecordStoreExt::compare_and_swap) does.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::compare_and_swap`](crate::RecordStoreExt::compare_and_swap).
    pub async fn compare_and_swap<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        expected: Option<&R>,
        new: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        const OPERATION: &str = "compare_and_swap";
        let key = key.into_key()?;
        let expected = expected.map(|expected| encode(OPERATION, &key, expected)).transpose()?;
        let new = encode(OPERATION, &key, new)?;
        let (store, claim) = (self.store.clone(), claim_of(&options));
        short(OPERATION, Some(&key.clone()), move || {
            store.swap_json(&key, expected.as_deref(), &new, &claim, &options)
        })
        .await
    }

    /// Removes the record. `Ok(false)`: there was none.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::remove`](crate::RecordStoreExt::remove), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_as(key, current_claim()).await
    }

    /// [`remove`](AsyncRecordStore::remove) for the holder of a lock: by name, or by token.
    ///
    /// Cancel safe: a change.
    ///
    /// # Errors
    ///
    /// As for [`remove`](AsyncRecordStore::remove), and [`Error::LockLost`](crate::Error::LockLost) if
    /// the claim is by token and that lock is no longer live.
    pub async fn remove_as(&self, key: impl IntoKey, claim: impl Into<Claim>) -> Result<bool> {
        let (store, key, claim) = (self.store.clone(), key.into_key()?, claim.into());
        short("remove", Some(&key.clone()), move || store.remove_record(&key, &claim)).await
    }

    /// Whether there is a record: one look that ignores locks.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::exists`](crate::RecordStoreExt::exists), and
    /// [`Error::Thread`](crate::Error::Thread) if the runtime is shutting down.
    pub async fn exists(&self, key: impl IntoKey) -> Result<bool> {
        let (store, key) = (self.store.clone(), key.into_key()?);
        short("exists", Some(&key.clone()), move || store.record_exists(&key)).await
    }

    /// Every key that has a record, in no order, as a stream: see
    /// [`RecordStoreExt::keys`](crate::RecordStoreExt::keys).
    ///
    /// ```
    /// use record_store::MemoryRecordStore;
    /// use record_store::tokio::AsyncRecordStore;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> record_store::Result<()> {
    /// let store = AsyncRecordStore::new(MemoryRecordStore::new());
    /// store.write("greeting", "hello").await?;
    /// let mut keys = store.keys().await?;
    /// while let Some(key) = keys.next().await {
    ///     println!("{}", key?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`RecordStoreExt::keys`](crate::RecordStoreExt::keys), and
    /// [`Error::Thread`](crate::Error::Thread).
    pub async fn keys(&self) -> Result<AsyncListing<Key>> {
        AsyncListing::begin("keys", self.store.clone(), |store| store.all_keys()).await
    }

    /// Begins to watch the record: [`AsyncRecordWatch::next`] waits for its next change after now.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`exists`](AsyncRecordStore::exists).
    pub async fn watch(&self, key: impl IntoKey) -> Result<AsyncRecordWatch<S>> {
        AsyncRecordWatch::begin(self.store.clone(), key.into_key()?).await
    }

    /// Waits until the record appears or changes: `true`, or `false` when the time is up first. What
    /// counts is what happens after the future was first polled.
    ///
    /// Cancel safe: a question.
    ///
    /// # Errors
    ///
    /// As for [`exists`](AsyncRecordStore::exists).
    pub async fn wait_for_record(&self, key: impl IntoKey, timeout: Option<Duration>) -> Result<bool> {
        self.watch(key).await?.wait_for_record(timeout).await
    }
}

fn claim_of(options: &WriteOptions) -> Claim {
    options.get_claim().cloned().unwrap_or_else(current_claim)
}
