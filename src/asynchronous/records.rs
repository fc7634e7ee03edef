//! The operations on records.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::blocking::Wait;
use super::{AsyncListing, AsyncRecordStore, AsyncRecordWatch, current_holder};
use crate::{Claim, Expected, IntoKey, Json, Key, ReadOptions, RecordChange, RecordStore, RecordVersion};
use crate::{RemoveOptions, Result, TransactionRecord, WaitOptions, WriteOptions};

impl<S: RecordStore + ?Sized + 'static> AsyncRecordStore<S> {
    #[doc = same_as!("RecordStoreExt::read", "a read")]
    pub async fn read<R: DeserializeOwned>(&self, key: impl IntoKey) -> Result<Option<TransactionRecord<R>>> {
        self.read_with(key, ReadOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::read_with", "a read")]
    pub async fn read_with<R: DeserializeOwned>(
        &self,
        key: impl IntoKey,
        options: ReadOptions,
    ) -> Result<Option<TransactionRecord<R>>> {
        let key = key.into_key()?;
        let wait = Wait::new("read", Some(&key), options.get_wait());
        let claim = claim_or_current(options.get_claim());
        let options = options.claim(claim).cancellation(&wait.cancellation);
        let (store, of) = (Arc::clone(&self.store), key.clone());
        let call = move |timeout| store.read_raw(&of, options.clone().timeout(timeout));
        let record = wait.run(Arc::new(call)).await?;
        record.map(|record| record.decode("read", key)).transpose()
    }

    #[doc = same_as!("RecordStoreExt::write", "a change")]
    pub async fn write<R: Serialize + ?Sized>(&self, key: impl IntoKey, result: &R) -> Result<()> {
        self.write_with(key, result, WriteOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::write_with", "a change")]
    pub async fn write_with<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<()> {
        let key = key.into_key()?;
        let json = Json::encode_result("write", &key, result)?;
        let claim = claim_or_current(options.get_claim());
        self.short("write", key, move |store, key| store.write_raw(key, &json, options.claim(claim))).await
    }

    #[doc = same_as!("RecordStoreExt::write_if_absent", "a change")]
    #[must_use = "`false` means that nothing was written"]
    pub async fn write_if_absent<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        self.compare_and_swap(key, None, result, options).await
    }

    #[doc = same_as!("RecordStoreExt::write_if_version", "a change")]
    #[must_use = "`false` means that nothing was written"]
    pub async fn write_if_version<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        version: RecordVersion,
        result: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        const OPERATION: &str = "write_if_version";
        let key = key.into_key()?;
        let new = Json::encode_result(OPERATION, &key, result)?;
        let claim = claim_or_current(options.get_claim());
        let options = options.claim(claim);
        let swap = move |store: &S, key: &Key| {
            store.compare_and_swap_raw(key, Expected::Version(version), &new, options)
        };
        self.short(OPERATION, key, swap).await
    }

    #[doc = same_as!("RecordStoreExt::compare_and_swap", "a change")]
    #[must_use = "`false` means that nothing was written"]
    pub async fn compare_and_swap<R: Serialize + ?Sized>(
        &self,
        key: impl IntoKey,
        expected: Option<&R>,
        new: &R,
        options: WriteOptions,
    ) -> Result<bool> {
        const OPERATION: &str = "compare_and_swap";
        let key = key.into_key()?;
        let expected = expected.map(|value| Json::encode_result(OPERATION, &key, value)).transpose()?;
        let new = Json::encode_result(OPERATION, &key, new)?;
        let claim = claim_or_current(options.get_claim());
        let options = options.claim(claim);
        let swap = move |store: &S, key: &Key| {
            let expected = expected.as_ref().map_or(Expected::Absent, Expected::Value);
            store.compare_and_swap_raw(key, expected, &new, options)
        };
        self.short(OPERATION, key, swap).await
    }

    #[doc = same_as!("RecordStoreExt::remove", "a change")]
    pub async fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_with(key, RemoveOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::remove_with", "a change")]
    pub async fn remove_with(&self, key: impl IntoKey, options: RemoveOptions) -> Result<bool> {
        let claim = claim_or_current(options.get_claim());
        self.short("remove", key, move |store, key| store.remove_raw(key, options.claim(claim))).await
    }

    #[doc = same_as!("RecordStoreExt::exists", "a read")]
    pub async fn exists(&self, key: impl IntoKey) -> Result<bool> {
        self.short("exists", key, S::exists_raw).await
    }

    /// As [`RecordStoreExt::keys`](crate::RecordStoreExt::keys). Cancel safe: a read.
    ///
    /// ```
    /// use record_store::MemoryRecordStore;
    /// use record_store::asynchronous::AsyncRecordStore;
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
    /// # Errors
    ///
    /// Those of the blocking method, and [`ErrorKind::Thread`](crate::ErrorKind::Thread).
    pub async fn keys(&self) -> Result<AsyncListing<Key>> {
        AsyncListing::begin("keys", &self.store, S::keys_raw).await
    }

    #[doc = same_as!("RecordStoreExt::watch", "a read")]
    pub async fn watch(&self, key: impl IntoKey) -> Result<AsyncRecordWatch<S>> {
        let key = key.into_key()?;
        let seen = self.short("watch", &key, S::version_raw).await?;
        Ok(AsyncRecordWatch::new(Arc::clone(&self.store), key, seen))
    }

    #[doc = same_as!("RecordStoreExt::wait_for_record", "a read", "Only changes after the first poll count.")]
    pub async fn wait_for_record(&self, key: impl IntoKey, options: impl Into<WaitOptions>) -> Result<bool> {
        let (start, options) = (Instant::now(), options.into());
        let mut watch = self.watch(key).await?;
        loop {
            let left = options.get_timeout().map(|timeout| timeout.saturating_sub(start.elapsed()));
            match watch.next(options.clone().timeout(left)).await? {
                Some(RecordChange::Removed) => {}
                change => return Ok(change.is_some()),
            }
        }
    }
}

fn claim_or_current(claim: Option<&Claim>) -> Claim {
    claim.cloned().unwrap_or_else(|| Claim::Holder(current_holder()))
}
