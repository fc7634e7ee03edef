//! The store that the command line names: a directory, or a schema on a server.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

#[cfg(feature = "postgres")]
use record_store::PostgresRecordStore;
use record_store::{FileSystemRecordStore, RecordStore, Result};

/// The largest accepted input: the size limit of a record.
pub(crate) const MAX_BYTES: u64 = 1 << 30;

/// An open store.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    inner: Arc<dyn RecordStore>,
    /// For people.
    place: String,
    kind: Kind,
}

/// The store by its kind, for what the others cannot do.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Files(FileSystemRecordStore),
    #[cfg(feature = "postgres")]
    Server(PostgresRecordStore),
}

impl From<FileSystemRecordStore> for Store {
    fn from(store: FileSystemRecordStore) -> Self {
        let place = store.path().display().to_string();
        Self { inner: Arc::new(store.clone()), place, kind: Kind::Files(store) }
    }
}

#[cfg(feature = "postgres")]
impl From<PostgresRecordStore> for Store {
    fn from(store: PostgresRecordStore) -> Self {
        let place = format!("{}, schema {}", store.address(), store.schema());
        Self { inner: Arc::new(store.clone()), place, kind: Kind::Server(store) }
    }
}

impl Store {
    /// Where it is, for people.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The store, if it is a directory.
    #[cfg_attr(
        not(feature = "postgres"),
        expect(clippy::unnecessary_wraps, reason = "there is only one kind of store")
    )]
    pub(crate) fn files(&self) -> Option<&FileSystemRecordStore> {
        match &self.kind {
            Kind::Files(store) => Some(store),
            #[cfg(feature = "postgres")]
            Kind::Server(_) => None,
        }
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
    let options = options.max_record_bytes(MAX_BYTES);
    PostgresRecordStore::connect(url, if creates { options } else { options.existing() })
}

#[cfg(not(feature = "postgres"))]
pub(crate) fn connect(_: &str, _: bool) -> Result<FileSystemRecordStore> {
    let error = record_store::Error::new(record_store::ErrorKind::Unsupported, "open");
    Err(error.with_source("this program was built without the feature `postgres`"))
}

impl Deref for Store {
    type Target = Arc<dyn RecordStore>;

    fn deref(&self) -> &Self::Target {
        &self.inner
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
