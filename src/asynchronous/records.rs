//! The operations on records.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{AsyncListing, AsyncRecordStore, RecordStoreFuture, RecordStoreFutures, current_holder};
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
        let of = options.clone();
        let read = move |store: &S, key: &_, wait| store.read_raw(key, options.clone().wait(wait));
        let by_futures = move |futures: Arc<dyn RecordStoreFutures>, key: Key, wait| {
            let options = of.clone().wait(wait);
            Box::pin(async move { futures.read(&key, options).await }) as RecordStoreFuture<'static, _>
        };
        let record = self.wait("read", &key, &wait, read, by_futures).await?;
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
        self.encode_and_write("write", key.into_key()?, result, options, Condition::None).await.map(drop)
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
        let condition = Condition::Version(version);
        self.encode_and_write("write_if_version", key.into_key()?, result, options, condition).await
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
        self.encode_and_write(OPERATION, key, new, options, Condition::Value(expected)).await
    }

    /// `false`: the condition is not met.
    async fn encode_and_write<R: Serialize + ?Sized>(
        &self,
        operation: &'static str,
        key: Key,
        result: &R,
        options: WriteOptions,
        condition: Condition,
    ) -> Result<bool> {
        let (result, claim) = (Json::encode_result(operation, &key, result)?, claim(options.get_claim()));
        let (options, shared) = (options.claim(claim), Arc::new((result, condition)));
        let (of, of_options) = (Arc::clone(&shared), options.clone());
        let write = move |store: &S, key: &Key| {
            let (result, condition) = &*shared;
            match condition.expected() {
                None => store.write_raw(key, result, options).map(|()| true),
                Some(expected) => store.compare_and_swap_raw(key, expected, result, options),
            }
        };
        let by_futures = move |futures: Arc<dyn RecordStoreFutures>, key: Key| {
            let write = async move {
                let (result, condition) = &*of;
                match condition.expected() {
                    None => futures.write(&key, result, of_options).await.map(|()| true),
                    Some(expected) => futures.compare_and_swap(&key, expected, result, of_options).await,
                }
            };
            Box::pin(write) as RecordStoreFuture<'static, _>
        };
        self.short(operation, key, write, by_futures).await
    }

    #[doc = same_as!("RecordStoreExt::remove", "a change")]
    pub async fn remove(&self, key: impl IntoKey) -> Result<bool> {
        self.remove_with(key, RemoveOptions::new()).await
    }

    #[doc = same_as!("RecordStoreExt::remove_with", "a change")]
    pub async fn remove_with(&self, key: impl IntoKey, options: RemoveOptions) -> Result<bool> {
        let claim = claim(options.get_claim());
        let options = options.claim(claim);
        let of = options.clone();
        let remove = move |store: &S, key: &Key| store.remove_raw(key, options);
        self.short("remove", key, remove, |futures, key| {
            Box::pin(async move { futures.remove(&key, of).await })
        })
        .await
    }

    #[doc = same_as!("RecordStoreExt::exists", "a read")]
    pub async fn exists(&self, key: impl IntoKey) -> Result<bool> {
        self.short("exists", key, S::exists_raw, |futures, key| {
            Box::pin(async move { futures.exists(&key).await })
        })
        .await
    }

    #[doc = same_as!("RecordStoreExt::keys", "a read")]
    pub async fn keys(&self) -> Result<AsyncListing<Key>> {
        AsyncListing::begin("keys", &self.store, S::keys_raw).await
    }
}

/// When a record is written.
enum Condition {
    None,
    Version(RecordVersion),
    /// `None`: there is no record.
    Value(Option<Json>),
}

impl Condition {
    fn expected(&self) -> Option<Expected<'_>> {
        match self {
            Self::None => None,
            Self::Version(version) => Some(Expected::Version(*version)),
            Self::Value(value) => Some(value.as_ref().map_or(Expected::Absent, Expected::Value)),
        }
    }
}

/// The claim of the options or, without one, that of the calling task.
fn claim(of_options: Option<&Claim>) -> Claim {
    of_options.cloned().unwrap_or_else(|| Claim::Holder(current_holder()))
}
