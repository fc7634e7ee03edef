//! The store that the command line names: a directory, or a schema on a server.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "postgres")]
use record_store::PostgresRecordStore;
use record_store::{
    Acquired, Claim, Evicted, EvictionPolicy, Expected, FileSystemRecordStore, IsolationLevel, Json, Key,
    ListOptions, Listing, LockInfo, LockOptions, LockToken, RawRecord, ReadOptions, RecordInfo, RecordStore,
    RecordVersion, RemoveOptions, Result, StoreIdentity, WaitOptions, WriteOptions,
};

use crate::failure::{Failure, USAGE};

/// An open store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    inner: Arc<dyn RecordStore>,
    /// For people.
    place: String,
    files: Option<FileSystemRecordStore>,
}

impl From<FileSystemRecordStore> for Store {
    fn from(store: FileSystemRecordStore) -> Self {
        let place = store.path().display().to_string();
        Self { inner: Arc::new(store.clone()), place, files: Some(store) }
    }
}

#[cfg(feature = "postgres")]
impl From<PostgresRecordStore> for Store {
    fn from(store: PostgresRecordStore) -> Self {
        let place = format!("{}, schema {}", store.address(), store.schema());
        Self { inner: Arc::new(store), place, files: None }
    }
}

impl Store {
    /// Where it is, for people.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The store, if it is a directory.
    pub(crate) fn files(&self) -> Option<&FileSystemRecordStore> {
        self.files.as_ref()
    }

    /// The store of a task that is about files.
    pub(crate) fn into_files(self, task: &str) -> std::result::Result<FileSystemRecordStore, Failure> {
        let place = self.place;
        self.files
            .ok_or_else(|| Failure::new(USAGE, format!("{task} works on the files of a directory ({place})")))
    }
}

/// The URL of a server, if the argument is one.
pub(crate) fn url(dir: &Path) -> Option<&str> {
    dir.to_str().filter(|text| text.starts_with("postgres://") || text.starts_with("postgresql://"))
}

/// The URL of a server without its password, in both places where it may stand.
pub(crate) fn without_password(url: &str) -> String {
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = base.split_once("://").unwrap_or(("", base));
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (user, host) = authority
        .rsplit_once('@')
        .map_or(("", authority), |(info, host)| (info.split_once(':').map_or(info, |(user, _)| user), host));
    let at = if user.is_empty() { "" } else { "@" };
    let parameters: Vec<_> =
        query.split('&').filter(|it| !it.is_empty() && !it.starts_with("password=")).collect();
    let mark = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{user}{at}{host}{path}{mark}{}", parameters.join("&"))
}

/// Opens the store on a server.
#[cfg(feature = "postgres")]
pub(crate) fn connect(url: &str, creates: bool) -> Result<PostgresRecordStore> {
    let options = record_store::PostgresOptions::new();
    // As with files: a record may have up to 1 GiB, if the server takes it.
    let options = options.max_record_bytes(crate::value::MAX_BYTES);
    PostgresRecordStore::connect(url, if creates { options } else { options.existing() })
}

#[cfg(not(feature = "postgres"))]
pub(crate) fn connect(_: &str, _: bool) -> Result<FileSystemRecordStore> {
    let error = record_store::Error::new(record_store::ErrorKind::Unsupported, "open");
    Err(error.with_source("this program was built without the feature `postgres`"))
}

impl RecordStore for Store {
    fn identity_raw(&self) -> Option<StoreIdentity> {
        self.inner.identity_raw()
    }

    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.inner.read_raw(key, options)
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.inner.write_raw(key, result, options)
    }

    fn compare_and_swap_raw(
        &self,
        key: &Key,
        expected: Expected<'_>,
        result: &Json,
        options: WriteOptions,
    ) -> Result<bool> {
        self.inner.compare_and_swap_raw(key, expected, result, options)
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.inner.exists_raw(key)
    }

    fn remove_raw(&self, key: &Key, options: RemoveOptions) -> Result<bool> {
        self.inner.remove_raw(key, options)
    }

    fn version_raw(&self, key: &Key) -> Result<RecordVersion> {
        self.inner.version_raw(key)
    }

    fn wait_for_change_raw(
        &self,
        key: &Key,
        seen: RecordVersion,
        options: WaitOptions,
    ) -> Result<Option<RecordVersion>> {
        self.inner.wait_for_change_raw(key, seen, options)
    }

    fn keys_raw(&self) -> Result<Listing<'_, Key>> {
        self.inner.keys_raw()
    }

    fn records_raw(&self, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
        self.inner.records_raw(options)
    }

    fn record_info_raw(&self, key: &Key) -> Result<Option<RecordInfo>> {
        self.inner.record_info_raw(key)
    }

    fn evict_raw(&self, policy: &EvictionPolicy) -> Result<Evicted> {
        self.inner.evict_raw(policy)
    }

    fn supports_isolation_level_raw(&self, level: IsolationLevel) -> bool {
        self.inner.supports_isolation_level_raw(level)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        self.inner.acquire_lock_raw(key, options)
    }

    fn renew_raw(
        &self,
        key: &Key,
        claim: &Claim,
        hold_timeout: Option<Duration>,
        options: WaitOptions,
    ) -> Result<()> {
        self.inner.renew_raw(key, claim, hold_timeout, options)
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.inner.release_lock_raw(key, claim, options)
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.inner.lock_info_raw(key)
    }

    fn wait_for_lock_raw(&self, key: &Key, options: WaitOptions) -> Result<bool> {
        self.inner.wait_for_lock_raw(key, options)
    }

    fn break_lock_raw(&self, key: &Key, token: Option<LockToken>, options: WaitOptions) -> Result<bool> {
        self.inner.break_lock_raw(key, token, options)
    }

    fn locks_raw(&self) -> Result<Listing<'_, LockInfo>> {
        self.inner.locks_raw()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_without_its_password_is_otherwise_the_same() {
        for (url, expected) in [
            ("postgres://u:s3cr3t@h:6432/db?schema=jobs", "postgres://u@h:6432/db?schema=jobs"),
            ("postgres://u:s3%3Acr%40t@h/db", "postgres://u@h/db"),
            ("postgres://u:s3:cr3t@h/db", "postgres://u@h/db"),
            ("postgresql://:s3cr3t@h", "postgresql://h"),
            ("postgres://h/db?password=s3cr3t", "postgres://h/db"),
            ("postgres://u@h/db?a=1&password=s3cr3t&b=2", "postgres://u@h/db?a=1&b=2"),
            ("postgres://u@h,i:1/db?schema=x", "postgres://u@h,i:1/db?schema=x"),
            ("postgres://", "postgres://"),
        ] {
            assert_eq!(without_password(url), expected);
        }
    }
}
