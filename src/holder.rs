//! The holder of a lock.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::process::{ProcessId, thread_id};
use crate::{Error, ErrorKind, Result};

/// The holder of a lock: an opaque name, and whether the lock ends with the process.
///
/// * [`Holder::current`] is the default. Its lock is bound to the process: it is free as soon as the
///   process is gone, also after `kill -9`.
/// * [`Holder::bound`] has a name of the caller's own, and its lock is bound to the process too.
/// * [`Holder::named`] has a name with a meaning of its own, such as that of a job. Its lock stays
///   until it is released or its lease expires, also when the process that acquired it is gone:
///   another process of that name may continue. Give such a lock a hold timeout.
///
/// Two holders are equal only if both the name and the kind agree. For a bound holder, a store also
/// checks that it is the same process. So two containers in which everything is process 1 are never
/// confused.
///
/// ```
/// use record_store::Holder;
///
/// assert!(Holder::current().is_process_bound());
/// assert!(Holder::bound("request 4711")?.is_process_bound());
/// let job = Holder::named("nightly-report")?;
/// assert_eq!(job.name(), "nightly-report");
/// assert!(!job.is_process_bound());
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Parts<'_>", into = "Parts<'static>")]
pub struct Holder {
    name: Arc<str>,
    process_bound: bool,
}

std::thread_local! {
    /// Cached with the process that it names: a forked child inherits its parent's cache.
    static CACHED: RefCell<Option<(ProcessId, Holder)>> = const { RefCell::new(None) };
}

impl Holder {
    /// The longest name in bytes.
    pub const MAX_BYTES: usize = 512;

    /// The default holder of the calling thread: `host:pid:thread number:thread name`.
    ///
    /// It is correct on every thread, and after a fork. A process never uses the number of a thread twice. This
    /// is Prefect's `RecordStore.generate_default_holder`.
    #[must_use]
    pub fn current() -> Self {
        let process = ProcessId::current();
        let cached = CACHED.try_with(|cached| match &mut *cached.borrow_mut() {
            Some((of, holder)) if *of == process => holder.clone(),
            stale => stale.insert((process, Self::compute())).1.clone(),
        });
        // A thread that is ending has no thread-local storage any more.
        cached.unwrap_or_else(|_| Self::compute())
    }

    fn compute() -> Self {
        let thread = std::thread::current();
        Self::of_process(&format!("{}:{}", thread_id(), thread.name().unwrap_or_default()))
    }

    /// A part of this process: `host:pid:part`.
    pub(crate) fn of_process(part: &str) -> Self {
        let host = hostname::get().unwrap_or_default();
        let mut name = format!("{}:{}:{part}", host.to_string_lossy(), std::process::id());
        // The name of a thread may have any length.
        name.truncate(name.floor_char_boundary(Self::MAX_BYTES));
        Self { name: name.into(), process_bound: true }
    }

    /// A holder with a name of the caller's own, whose lock outlives the process.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidHolder`] if the name is empty or longer than [`Holder::MAX_BYTES`].
    pub fn named(name: impl Into<String>) -> Result<Self> {
        Self::new(name.into(), false)
    }

    /// A holder with a name of the caller's own, whose lock ends with the process that acquires it.
    ///
    /// Whether that process is this one is known to the store, not to the holder. So a store also
    /// describes the bound holders of other processes with this.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidHolder`] if the name is empty or longer than [`Holder::MAX_BYTES`].
    pub fn bound(name: impl Into<String>) -> Result<Self> {
        Self::new(name.into(), true)
    }

    pub(crate) fn new(name: String, process_bound: bool) -> Result<Self> {
        let invalid = |reason| Err(Error::new(ErrorKind::InvalidHolder, "").with_detail(reason));
        if name.is_empty() {
            return invalid("a holder's name is not empty");
        }
        if name.len() > Self::MAX_BYTES {
            return invalid("a holder's name has at most 512 bytes");
        }
        Ok(Self { name: name.into(), process_bound })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True if the lock is free when the process is gone.
    #[must_use]
    pub fn is_process_bound(&self) -> bool {
        self.process_bound
    }
}

/// The name alone, as it is.
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl AsRef<str> for Holder {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

/// A holder as it is serialized.
#[derive(Serialize, Deserialize)]
struct Parts<'a> {
    name: std::borrow::Cow<'a, str>,
    process_bound: bool,
}

impl TryFrom<Parts<'_>> for Holder {
    type Error = Error;

    fn try_from(parts: Parts<'_>) -> Result<Self> {
        Self::new(parts.name.into_owned(), parts.process_bound)
    }
}

impl From<Holder> for Parts<'static> {
    fn from(holder: Holder) -> Self {
        Self { name: holder.name.to_string().into(), process_bound: holder.process_bound }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_names_host_process_and_thread() {
        let here = Holder::current();
        assert_eq!(here, Holder::current());
        let pid = std::process::id().to_string();
        assert_eq!(here.name().split(':').nth(1), Some(pid.as_str()));
        let there =
            std::thread::Builder::new().name("worker".into()).spawn(Holder::current).unwrap().join().unwrap();
        assert_ne!(here, there);
        assert!(there.name().ends_with(":worker"));
    }

    #[test]
    fn a_long_thread_name_is_cut_at_a_character() {
        let named =
            std::thread::Builder::new().name("ü".repeat(600)).spawn(Holder::current).unwrap().join().unwrap();
        assert!(named.name().len() <= Holder::MAX_BYTES);
    }

    #[test]
    fn empty_and_long_names_are_refused() {
        for constructor in [|name: String| Holder::named(name), |name: String| Holder::bound(name)] {
            assert_eq!(constructor(String::new()).unwrap_err().kind(), ErrorKind::InvalidHolder);
            assert!(constructor("x".repeat(513)).is_err());
            assert!(constructor("x".repeat(512)).is_ok());
        }
    }

    #[test]
    fn a_named_holder_is_not_the_bound_one_of_that_name() {
        let here = Holder::current();
        assert_ne!(Holder::named(here.name()).unwrap(), here);
        assert_eq!(Holder::bound(here.name()).unwrap(), here);
    }

    #[test]
    fn a_holder_survives_serialization() {
        for holder in [Holder::current(), Holder::named("job \"7\"").unwrap()] {
            let text = serde_json::to_string(&holder).unwrap();
            assert_eq!(serde_json::from_str::<Holder>(&text).unwrap(), holder);
        }
        assert!(serde_json::from_str::<Holder>(r#"{"name":"","process_bound":true}"#).is_err());
    }
}
