//! The operations on records.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncListing, AsyncRecordStore, current_holder};
use crate::{Claim, Expected, IntoKey, Json, Key, ReadOptions, RecordStore, RecordVersion};
use crate::{RemoveOptions, Result, TransactionRecord, WriteOptions};

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
        let (key, wait, claim) = (key.into_key()?, options.get_wait().clone(), claim(options.get_claim()));
        let options = options.claim(claim);
        let read = move |store: &S, key: &_, wait| store.read_raw(key, options.clone().wait(wait));
        let record = self.wait("read", &key, &wait, read).await?;
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
        self.encode_and_write("write", key.into_key()?, result, options, S::write_raw).await
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
        let swap = move |store: &S, key: &_, new: &_, options| {
            store.compare_and_swap_raw(key, Expected::Version(version), new, options)
        };
        self.encode_and_write("write_if_version", key.into_key()?, result, options, swap).await
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
        let swap = move |store: &S, key: &_, new: &_, options| {
            let expected = expected.as_ref().map_or(Expected::Absent, Expected::Value);
            store.compare_and_swap_raw(key, expected, new, options)
        };
        self.encode_and_write(OPERATION, key, new, options, swap).await
    }

    async fn encode_and_write<R: Serialize + ?Sized, T: Send + 'static>(
        &self,
        operation: &'static str,
        key: Key,
        result: &R,
        options: WriteOptions,
        write: impl FnOnce(&S, &Key, &Json, WriteOptions) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (result, claim) = (Json::encode_result(operation, &key, result)?, claim(options.get_claim()));
        self.short(operation, key, move |store, key| write(store, key, &result, options.claim(claim))).await
    }

    #[doc = same_as!("RecordStoreExt::remove", "a change")]
    pub async fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_with(key, RemoveOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::remove_with", "a change")]
    pub async fn remove_with(&self, key: impl IntoKey, options: RemoveOptions) -> Result<bool> {
        let claim = claim(options.get_claim());
        self.short("remove", key, move |store, key| store.remove_raw(key, options.claim(claim))).await
    }

    #[doc = same_as!("RecordStoreExt::exists", "a read")]
    pub async fn exists(&self, key: impl IntoKey) -> Result<bool> {
        self.short("exists", key, S::exists_raw).await
    }

    #[doc = same_as!("RecordStoreExt::keys", "a read")]
    pub async fn keys(&self) -> Result<AsyncListing<Key>> {
        AsyncListing::begin("keys", &self.store, S::keys_raw).await
    }
}

/// The claim of the options or, without one, that of the calling task.
fn claim(of_options: Option<&Claim>) -> Claim {
    of_options.cloned().unwrap_or_else(|| Claim::Holder(current_holder()))
}
