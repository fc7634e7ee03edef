//! The operations on records.

use std::future::ready;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::blocking::Thread;
use super::listing::{BATCH, BATCH_OF_RESULTS};
use super::wait::Wait;
use super::{AsyncListing, AsyncRecordStore, Futures, current_holder};
use crate::{
    Claim, Evicted, EvictionPolicy, Expected, IntoKey, Json, Key, ListOptions, RawRecord, ReadOptions,
    RecordInfo, RecordStore, RecordVersion, RemoveOptions, Result, TransactionRecord, WriteOptions,
};

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
        self.read_raw(&key, options).await?.map(|record| record.decode("read", key)).transpose()
    }

    pub(super) async fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        let claim = claim(options.get_claim());
        let wait = Wait::new("read", Some(key), options.get_wait(), self.futures());
        let read = wait.run(ready(()), (key.clone(), options.claim(claim)), |store, of, wait| async move {
            let (key, options) = &*of;
            store.read(key, options.clone().wait(wait)).await
        });
        read.await
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
        let result = Arc::new(Json::encode_result("write", &key, result)?);
        self.write_json(&key, result, options).await
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
        const OPERATION: &str = "compare_and_swap";
        let (key, claim) = (key.into_key()?, claim(options.get_claim()));
        let (result, options) = (Json::encode_result(OPERATION, &key, result)?, options.claim(claim));
        let write = self.short(OPERATION, key, |store, key| async move {
            store.compare_and_swap(&key, Expected::Version(version), &result, options).await
        });
        write.await
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
        let (key, claim) = (key.into_key()?, claim(options.get_claim()));
        let expected = expected.map(|value| Json::encode_result(OPERATION, &key, value)).transpose()?;
        let (new, options) = (Json::encode_result(OPERATION, &key, new)?, options.claim(claim));
        let swap = self.short(OPERATION, key, |store, key| async move {
            let expected = expected.as_ref().map_or(Expected::Absent, Expected::Value);
            store.compare_and_swap(&key, expected, &new, options).await
        });
        swap.await
    }

    pub(super) async fn write_json(&self, key: &Key, result: Arc<Json>, options: WriteOptions) -> Result<()> {
        let claim = claim(options.get_claim());
        let options = options.claim(claim);
        self.short("write", key, |store, key| async move { store.write(&key, &result, options).await }).await
    }

    #[doc = same_as!("RecordStoreExt::remove", "a change")]
    pub async fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_with(key, RemoveOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::remove_with", "a change")]
    pub async fn remove_with(&self, key: impl IntoKey, options: RemoveOptions) -> Result<bool> {
        let claim = claim(options.get_claim());
        let options = options.claim(claim);
        self.short("remove", key, |store, key| async move { store.remove(&key, options).await }).await
    }

    #[doc = same_as!("RecordStoreExt::exists", "a read")]
    pub async fn exists(&self, key: impl IntoKey) -> Result<bool> {
        self.short("exists", key, |store, key| async move { store.exists(&key).await }).await
    }

    #[doc = same_as!("RecordStoreExt::keys", "a read")]
    pub async fn keys(&self) -> Result<AsyncListing<Key>> {
        AsyncListing::begin("keys", self, BATCH, S::keys_raw).await
    }

    #[doc = same_as!("RecordStoreExt::records", "a read")]
    pub async fn records(&self, options: ListOptions) -> Result<AsyncListing<RecordInfo>> {
        let batch = if options.reads_results() { BATCH_OF_RESULTS } else { BATCH };
        AsyncListing::begin("records", self, batch, move |store| store.records_raw(options)).await
    }

    #[doc = same_as!("RecordStoreExt::record_info", "a read")]
    pub async fn record_info(&self, key: impl IntoKey) -> Result<Option<RecordInfo>> {
        self.short("record_info", key, |store, key| async move { store.record_info(&key).await }).await
    }

    #[doc = same_as!("RecordStoreExt::evict", "a change of each record", "An eviction whose future is dropped may \
        go on to its end.")]
    pub async fn evict(&self, policy: EvictionPolicy) -> Result<Evicted> {
        let evict = |store: Futures| async move { store.evict(policy).await };
        self.call("evict", None, Thread::try_start, evict).await
    }
}

/// The claim of the options or, without one, that of the calling task.
fn claim(of_options: Option<&Claim>) -> Claim {
    of_options.cloned().unwrap_or_else(|| Claim::Holder(current_holder()))
}
