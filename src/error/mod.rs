//! The error of every operation: a kind, and the operation, key and place that it concerns.

mod display;
mod io_error;
mod kind;

use std::error::Error as StdError;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Holder, Json, Key, LockToken};

pub use kind::ErrorKind;

/// A [`std::result::Result`] whose error is [`struct@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The details of [`ErrorKind::CorruptRecord`] for a file that is not a damaged record but another one.
pub(crate) const FOREIGN_JSON: &str = "JSON, but not a record";
pub(crate) const MISNAMED: &str = "the file name does not belong to the key inside";

/// The detail of [`ErrorKind::NotARegularFile`] for a directory.
pub(crate) const DIRECTORY: &str = "a directory";

/// The detail of [`ErrorKind::NotAStore`] for a directory that has other files than those of a store.
pub(crate) const NOT_EMPTY: &str = "the directory is not empty";

/// The detail of [`ErrorKind::CorruptStore`] if the processes do not share the memory of the log any more.
pub(crate) const LOG_IN_USE: &str = "a process uses the store, but the shared memory of its log was removed, or is that of a hard-linked copy";

/// The detail of [`ErrorKind::CorruptStore`] for shared memory with words that no process stores.
pub(crate) const LOG_DAMAGED: &str = "the shared memory of the log is damaged";

type BoxError = Box<dyn StdError + Send + Sync>;

/// Why an operation of this crate failed.
///
/// [`kind`](Error::kind) says what went wrong; the other methods say which [operation](Error::operation),
/// [key](Error::key) and [place](Error::place) it concerns. The text names all of these and ends with
/// [what to do](Error::hint), where there is something to be done. The cause, if there is one, is in
/// [`source()`](StdError::source) and is not repeated in the text.
///
/// An operation that failed has left the record and its lock as they were, unless
/// [`is_outcome_unknown`](Error::is_outcome_unknown).
///
/// ```
/// use record_store::{ErrorKind, Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// let _guard = store.lock("report", LockOptions::new().holder(Holder::named("nightly")?))?;
/// let error = store.write("report", &1).unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Locked);
/// assert_eq!(error.holder().map(Holder::name), Some("nightly"));
/// assert!(error.to_string().starts_with(r#"write "report": locked by "nightly""#));
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(thiserror::Error)]
#[error(transparent)]
pub struct Error(Box<Inner>);

#[derive(Debug, thiserror::Error)]
#[error("{}", display::Text(self))]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    key: Option<Key>,
    place: Option<Place>,
    holder: Option<Holder>,
    claimant: Option<Holder>,
    token: Option<LockToken>,
    waited: Option<Duration>,
    detail: Option<String>,
    outcome_unknown: bool,
    unstored: Option<Json>,
    stored_key: Option<Key>,
    #[source]
    source: Option<BoxError>,
}

/// Where a failure happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Place {
    /// A file or directory.
    Path(PathBuf),
    /// The address of a storage engine, without any secret.
    Address(String),
}

impl Error {
    /// An error of this kind in this operation. Stores outside of this crate build their errors with
    /// this and the methods that begin with `with_`.
    ///
    /// ```
    /// use record_store::{Error, ErrorKind, Key};
    ///
    /// let error = Error::new(ErrorKind::Io, "write")
    ///     .with_key(&Key::new("report")?)
    ///     .with_address("engine.example:5432")
    ///     .with_detail("reach the server")
    ///     .with_unknown_outcome();
    /// assert_eq!(error.to_string(), r#"write "report": cannot reach the server (engine.example:5432)"#);
    /// # Ok::<(), Error>(())
    /// ```
    #[must_use]
    pub fn new(kind: ErrorKind, operation: &'static str) -> Self {
        Self(Box::new(Inner {
            kind,
            operation,
            key: None,
            place: None,
            holder: None,
            claimant: None,
            token: None,
            waited: None,
            detail: None,
            outcome_unknown: false,
            unstored: None,
            stored_key: None,
            source: None,
        }))
    }

    /// Wraps an error of the caller's own, so that it can be returned where this crate's is expected.
    #[must_use]
    pub fn other(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Self::new(ErrorKind::Other, "").with_source(source)
    }

    /// The error of an operation that is made of others.
    pub(crate) fn of_operation(mut self, operation: &'static str) -> Self {
        self.0.operation = operation;
        self
    }

    /// Sets the key that it concerns.
    #[must_use]
    pub fn with_key(mut self, key: &Key) -> Self {
        self.0.key = Some(key.clone());
        self
    }

    /// Sets the file or directory where it happened.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.place = Some(Place::Path(path.into()));
        self
    }

    /// Sets the address of the engine where it happened. The text shows it: leave secrets out.
    #[must_use]
    pub fn with_address(mut self, address: impl Into<String>) -> Self {
        self.0.place = Some(Place::Address(address.into()));
        self
    }

    /// Sets the holder of the lock.
    #[must_use]
    pub fn with_holder(mut self, holder: impl Into<Option<Holder>>) -> Self {
        self.0.holder = holder.into();
        self
    }

    /// Sets the holder that made the request.
    #[must_use]
    pub fn with_claimant(mut self, claimant: Holder) -> Self {
        self.0.claimant = Some(claimant);
        self
    }

    /// Sets the token that the claim was made with.
    #[must_use]
    pub fn with_token(mut self, token: LockToken) -> Self {
        self.0.token = Some(token);
        self
    }

    /// Sets how long the operation waited.
    #[must_use]
    pub fn with_waited(mut self, waited: Duration) -> Self {
        self.0.waited = Some(waited);
        self
    }

    /// A timeout of a call that began at `start`, and of which the error knows only the last step.
    pub(crate) fn waiting_since(self, start: Instant) -> Self {
        if self.is_timeout() { self.with_waited(start.elapsed()) } else { self }
    }

    /// Sets what exactly is wrong, as a part of the sentence that the kind begins. For
    /// [`ErrorKind::Io`] it is the step that failed, as a verb: "open the record".
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// Says that the change may or may not have happened.
    #[must_use]
    pub fn with_unknown_outcome(mut self) -> Self {
        self.0.outcome_unknown = true;
        self
    }

    /// Sets the result that could not be stored.
    #[must_use]
    pub fn with_unstored(mut self, result: Json) -> Self {
        self.0.unstored = Some(result);
        self
    }

    /// Sets the key of the record or the lock that was found in the place of another one, for
    /// [`ErrorKind::KeyMismatch`]. It is also the detail. The advice depends on it: keys that differ only in case or
    /// Unicode form may share a place, so their records are not [computed again](crate::CorruptRecords::recomputes).
    #[must_use]
    pub fn with_stored_key(mut self, key: &Key) -> Self {
        self.0.stored_key = Some(key.clone());
        self.with_detail(display::quoted(key))
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed: `read`, `write`, `acquire_lock` and so on. It is the operation of the core trait on
    /// which a method is built: `lock` reports `acquire_lock`, for example. Empty where no operation was running.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The key concerned, if there is one.
    #[must_use]
    pub fn key(&self) -> Option<&Key> {
        self.0.key.as_ref()
    }

    /// Where it happened, if that is known.
    #[must_use]
    pub fn place(&self) -> Option<&Place> {
        self.0.place.as_ref()
    }

    /// The file or directory concerned, if there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self.place()? {
            Place::Path(path) => Some(path),
            Place::Address(_) => None,
        }
    }

    /// The holder of the lock that is in the way.
    #[must_use]
    pub fn holder(&self) -> Option<&Holder> {
        self.0.holder.as_ref()
    }

    /// The holder that made the request, for [`ErrorKind::NotLockHolder`].
    #[must_use]
    pub fn claimant(&self) -> Option<&Holder> {
        self.0.claimant.as_ref()
    }

    /// The token that is no longer valid, for [`ErrorKind::LockLost`].
    #[must_use]
    pub fn token(&self) -> Option<LockToken> {
        self.0.token
    }

    /// How long the operation waited, for [`ErrorKind::LockTimeout`].
    #[must_use]
    pub fn waited(&self) -> Option<Duration> {
        self.0.waited
    }

    /// The exact problem, where the kind alone does not say it.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// The kind of the operating system's error, if that is the cause.
    #[must_use]
    pub fn io_kind(&self) -> Option<io::ErrorKind> {
        self.0.source.as_deref()?.downcast_ref::<io::Error>().map(io::Error::kind)
    }

    /// Whether the change may have happened nevertheless.
    ///
    /// With files that is so when the directory could not be synced: readers see the new state, but it
    /// may not survive a power loss.
    /// With a server it is so when the connection broke, or the server did not answer in time, after the change was
    /// sent. An acquisition that the same holder repeats finds the lock that the first attempt may have acquired. A
    /// write may be repeated; with [`write_if_version`](crate::RecordStoreExt::write_if_version) it changes nothing that
    /// somebody else has written since.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        self.0.outcome_unknown
    }

    /// The result that a guard could not write. So what the closure of
    /// [`get_or_compute`](crate::RecordStoreExt::get_or_compute) or [`update`](crate::RecordStoreExt::update) has
    /// computed is not lost if the disk is full, or if the lease has expired in the meantime. `None` if there was
    /// no result yet, or if it has no JSON form.
    ///
    /// ```
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let error = store
    ///     .get_or_compute("answer", LockOptions::new(), || {
    ///         // As when an operator breaks the lock, or the lease expires.
    ///         store.break_lock("answer")?;
    ///         Ok(42)
    ///     })
    ///     .unwrap_err();
    /// assert!(error.is_lock_lost());
    /// assert_eq!(error.unstored().unwrap().decode::<i32>()?, 42);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn unstored(&self) -> Option<&Json> {
        self.0.unstored.as_ref()
    }

    /// True if a lock did not become free in time ([`ErrorKind::LockTimeout`]).
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        self.kind() == ErrorKind::LockTimeout
    }

    /// True if the wait was [cancelled](crate::Cancellation) ([`ErrorKind::Cancelled`]).
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.kind() == ErrorKind::Cancelled
    }

    /// True if another's live lock is in the way: [`ErrorKind::Locked`], [`ErrorKind::LockTimeout`],
    /// [`ErrorKind::NotLockHolder`].
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self.kind(), ErrorKind::Locked | ErrorKind::LockTimeout | ErrorKind::NotLockHolder)
    }

    /// True if the caller's own lock is gone ([`ErrorKind::LockLost`]): the caller must not go on as
    /// if it still held the record.
    #[must_use]
    pub fn is_lock_lost(&self) -> bool {
        self.kind() == ErrorKind::LockLost
    }

    /// True if a file cannot be trusted: [`ErrorKind::CorruptRecord`], [`ErrorKind::CorruptLock`],
    /// [`ErrorKind::CorruptStore`], [`ErrorKind::KeyMismatch`].
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        use ErrorKind::{CorruptLock, CorruptRecord, CorruptStore, KeyMismatch};
        matches!(self.kind(), CorruptRecord | CorruptLock | CorruptStore | KeyMismatch)
    }

    /// True if the file in the place of the record is not a damaged record, but a file of something else: it is no
    /// regular file, it contains the record of another key, or it is JSON without any field of a record. A copy
    /// of all records may leave it out.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        match self.kind() {
            ErrorKind::KeyMismatch | ErrorKind::NotARegularFile => true,
            ErrorKind::CorruptRecord => matches!(self.detail(), Some(FOREIGN_JSON | MISNAMED)),
            _ => false,
        }
    }

    /// Whether a read found a file in the place of the record that is no record of the key, and that a write moves
    /// aside.
    pub(crate) fn is_no_record(&self) -> bool {
        match self.kind() {
            ErrorKind::CorruptRecord | ErrorKind::RecordTooLarge => true,
            _ => self.is_misplaced() && !self.0.concerns_lock(),
        }
    }

    /// Whether a file in the place of the lock is no lock of the key, and may be moved aside.
    pub(crate) fn is_no_lock(&self) -> bool {
        match self.kind() {
            ErrorKind::CorruptLock => true,
            _ => self.is_misplaced() && self.0.concerns_lock(),
        }
    }

    /// Whether a file that belongs to something else is in the place of a record or a lock. A directory is not moved,
    /// and neither is a file that another key may own.
    fn is_misplaced(&self) -> bool {
        match self.kind() {
            ErrorKind::KeyMismatch => !self.0.is_shared_name(),
            ErrorKind::NotARegularFile => self.detail() != Some(DIRECTORY) && self.0.concerns_file_of_key(),
            _ => false,
        }
    }

    /// Advice for the caller, where there is some.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        self.0.hint()
    }
}

impl Inner {
    fn hint(&self) -> Option<&'static str> {
        match self.kind {
            ErrorKind::NotAStore if self.detail.as_deref() == Some(NOT_EMPTY) => Some(kind::ADOPT),
            ErrorKind::CorruptStore if self.detail.as_deref() == Some(LOG_IN_USE) => Some(kind::STOP_PROCESS),
            ErrorKind::CorruptStore if self.detail.as_deref() == Some(LOG_DAMAGED) => Some(kind::STOP_ALL),
            ErrorKind::KeyMismatch if self.is_shared_name() => self.kind.hint(),
            ErrorKind::KeyMismatch if self.concerns_lock() => ErrorKind::CorruptLock.hint(),
            ErrorKind::KeyMismatch => ErrorKind::CorruptRecord.hint(),
            kind => kind.hint(),
        }
    }

    /// Whether the place is that of the key's record or lock, and not that of another file of a store.
    fn concerns_file_of_key(&self) -> bool {
        self.key.is_some() && ["json", "lock"].iter().any(|suffix| self.ends_with(suffix))
    }

    /// Whether the place is that of a lock.
    fn concerns_lock(&self) -> bool {
        self.ends_with("lock")
    }

    fn ends_with(&self, suffix: &str) -> bool {
        matches!(&self.place, Some(Place::Path(path)) if path.extension() == Some(suffix.as_ref()))
    }

    /// Whether a file system may give the key and the [stored key](Error::with_stored_key) the same file. Without a
    /// stored key, that is what the kind says.
    fn is_shared_name(&self) -> bool {
        let of_path = match &self.place {
            Some(Place::Path(path)) => path.file_stem().and_then(OsStr::to_str).and_then(Key::from_file_stem),
            _ => None,
        };
        match (&self.stored_key, self.key.as_ref().or(of_path.as_ref())) {
            (Some(stored), Some(key)) => may_share_a_name(stored.as_str(), key.as_str()),
            (Some(_), None) => false,
            (None, _) => true,
        }
    }
}

/// Whether a file system that ignores case or normalizes Unicode may take both for the same name.
///
/// A normal form can replace an ASCII letter and a mark by one character. So of names that are not ASCII, only the
/// order of their ASCII characters is compared.
fn may_share_a_name(one: &str, other: &str) -> bool {
    let [one, other] = [one.to_lowercase(), other.to_lowercase()];
    let ascii = |text: &str| text.chars().filter(char::is_ascii).collect::<Vec<_>>();
    let is_within = |part: &str, whole: &str| {
        let mut rest = ascii(whole).into_iter();
        ascii(part).into_iter().all(|char| rest.any(|next| next == char))
    };
    let is_other_form = || is_within(&one, &other) || is_within(&other, &one);
    one == other || !one.is_ascii() && !other.is_ascii() && is_other_form()
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Error");
        debug.field("kind", &self.kind()).field("message", &self.to_string());
        if let Some(source) = self.source() {
            debug.field("source", &source);
        }
        debug.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_operation_key_and_path_but_not_the_cause() {
        let error = Error::new(ErrorKind::Io, "write")
            .with_key(&Key::new("a\nb").unwrap())
            .with_detail("sync")
            .with_path("/records/a%0Ab.json")
            .with_source(io::Error::from_raw_os_error(5));
        assert_eq!(error.to_string(), r#"write "a\nb": cannot sync (/records/a%0Ab.json)"#);
        assert!(error.source().unwrap().to_string().contains("os error 5"));
        assert_eq!(error.path(), Some(Path::new("/records/a%0Ab.json")));
    }

    #[test]
    fn the_text_ends_with_the_hint() {
        let error = Error::new(ErrorKind::NotAStore, "open").with_path("/records");
        assert_eq!(
            error.to_string(),
            "open: not a record store (/records); open it for writing once to create the store"
        );
    }

    #[test]
    fn the_hint_about_another_key_depends_on_the_keys() {
        let hint = |stored: &str, key: Option<&str>, path: &str| {
            let mut error = Error::new(ErrorKind::KeyMismatch, "read").with_path(path);
            if let Some(key) = key {
                error = error.with_key(&Key::new(key).unwrap());
            }
            error.with_stored_key(&Key::new(stored).unwrap()).hint().unwrap()
        };
        for (one, other) in [("K", "k"), ("\u{e9}t\u{e9}", "e\u{301}te\u{301}"), ("STRASSE", "Strasse")] {
            for hint in [hint(one, Some(other), "k.json"), hint(one, None, &format!("{other}.lock"))] {
                assert!(hint.contains("differ in more than case"), "{one} {other}: {hint}");
            }
        }
        for (one, other) in [("a", "b"), ("ab", "a"), ("\u{e9}", "e"), ("gr\u{f6}\u{df}e", "stra\u{df}e")] {
            assert!(hint(one, Some(other), "k.json").contains("replace the file"), "{one} {other}");
            assert!(hint(one, None, &format!("{other}.lock")).contains("break_lock"), "{one} {other}");
        }
    }

    #[test]
    fn a_long_key_is_cut() {
        let key = Key::new("ä".repeat(9_000)).unwrap();
        let error = Error::new(ErrorKind::NotLocked, "release_lock").with_key(&key);
        assert!(error.to_string().len() < 300, "{error}");
        let error = Error::new(ErrorKind::KeyMismatch, "read").with_stored_key(&key);
        assert!(error.to_string().len() < 400, "{error}");
    }

    #[test]
    fn an_error_is_one_pointer() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
