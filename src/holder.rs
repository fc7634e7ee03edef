//! Who holds a lock.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use crate::{Error, Result};

/// Who holds a lock: an opaque name, and whether that name stands for this process.
///
/// * [`Holder::current`] is the default. Its lock is bound to the process: it is free as soon as
///   the process is gone, however it went.
/// * [`Holder::named`] is for names with a meaning of their own, such as a job's. Its lock stays
///   until it is released or its lease runs out, also when the process that took it is gone:
///   another process of that name may go on. Give such a lock a hold timeout.
///
/// Two holders are the same only if both the name and the kind agree; for the default kind a store
/// also checks that it is the same process, so two containers in which everything is process 1
/// never pass for each other.
///
/// ```
/// use record_store::Holder;
///
/// let me = Holder::current();
/// assert!(me.is_process_bound());
/// let job = Holder::named("nightly-report")?;
/// assert_eq!(job.name(), "nightly-report");
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    name: Arc<str>,
    process_bound: bool,
}

impl Holder {
    /// The longest name in bytes.
    pub const MAX_BYTES: usize = 512;

    /// The default holder of the calling thread: `host:pid:thread id:thread name`.
    ///
    /// Right on every thread, and after a fork. This is Prefect's
    /// `RecordStore.generate_default_holder`.
    #[must_use]
    pub fn current() -> Self {
        // Kept with the process that it names: a forked child inherits its parent's copy.
        std::thread_local! { static HERE: RefCell<Option<(u32, Holder)>> = const { RefCell::new(None) }; }
        let process = std::process::id();
        let kept = HERE.try_with(|here| match &mut *here.borrow_mut() {
            Some((of, holder)) if *of == process => holder.clone(),
            stale => stale.insert((process, Self::compute())).1.clone(),
        });
        // A thread that is ending has nowhere to keep it.
        kept.unwrap_or_else(|_| Self::compute())
    }

    fn compute() -> Self {
        let thread = std::thread::current();
        Self::of_process(&format!("{}:{}", thread_id(), thread.name().unwrap_or_default()))
    }

    /// A part of this process: `host:pid:part`.
    pub(crate) fn of_process(part: &str) -> Self {
        let host = hostname::get().unwrap_or_default();
        let mut name = format!("{}:{}:{part}", host.to_string_lossy(), std::process::id());
        // A thread may be named at any length.
        name.truncate(name.floor_char_boundary(Self::MAX_BYTES));
        Self { name: name.into(), process_bound: true }
    }

    /// A holder of the caller's own naming.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidHolder`] if the name is empty or longer than [`Holder::MAX_BYTES`].
    pub fn named(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        if name.is_empty() {
            return Err(Error::InvalidHolder { reason: "a holder's name is not empty" });
        }
        if name.len() > Self::MAX_BYTES {
            return Err(Error::InvalidHolder { reason: "a holder's name has at most 512 bytes" });
        }
        Ok(Self { name: name.into(), process_bound: false })
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// True for [`Holder::current`]: the lock is free when the process is gone.
    #[must_use]
    pub fn is_process_bound(&self) -> bool {
        self.process_bound
    }

    /// A holder as a lock file names it.
    pub(crate) fn from_parts(name: &str, process_bound: bool) -> Self {
        Self { name: name.into(), process_bound }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.name)
    }
}

#[cfg(target_os = "linux")]
pub(crate) fn thread_id() -> u64 {
    u64::from(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
}

/// Without a portable thread id, threads are numbered as they first ask.
#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    std::thread_local! { static ID: u64 = NEXT.fetch_add(1, Ordering::Relaxed); }
    ID.with(|id| *id)
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
        assert!(Holder::named("").is_err());
        assert!(Holder::named("x".repeat(513)).is_err());
        assert!(Holder::named("x".repeat(512)).is_ok());
    }

    #[test]
    fn a_name_does_not_pass_for_the_process() {
        let here = Holder::current();
        assert_ne!(Holder::named(here.name()).unwrap(), here);
    }
}
