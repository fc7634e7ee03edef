//! The identity of the process and the thread, and state that a forked child must not inherit (I8).
//!
//! Nothing that the system reuses identifies a process: a child may get the process id of its dead parent, and
//! in a new PID namespace both are process 1. So each process of this program has a number that its ancestors
//! and descendants do not have. A fork is noticed in two ways: by a page that the kernel wipes in the child, and
//! by a handler that `fork(3)` calls.

mod fork;
mod per_process;

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(feature = "postgres")]
pub(crate) use fork::ParentOnlySocket;
pub use fork::after_fork;
pub(crate) use fork::{Forks, ParentOnlyFile};
pub(crate) use per_process::PerProcess;

/// Identifies a process among its ancestors and descendants: the processes that may have copies of one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProcessId(u64);

impl ProcessId {
    /// This process.
    pub(crate) fn current() -> Self {
        Self(fork::process_number())
    }

    /// Whether this is that process, and not a forked child with a copy of a value.
    pub(crate) fn is_here(self) -> bool {
        self == Self::current()
    }
}

/// A number that this process gives to no other thread, unlike the kernel's thread ids, which are reused.
pub(crate) fn thread_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    std::thread_local! { static NUMBER: u64 = NEXT.fetch_add(1, Ordering::Relaxed); }
    // A thread that is ending has no thread-local storage any more.
    NUMBER.try_with(|number| *number).unwrap_or_else(|_| NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_thread_id_is_never_reused() {
        let numbers: HashSet<_> = (0..1_000).map(|_| std::thread::spawn(thread_id).join().unwrap()).collect();
        assert_eq!(numbers.len(), 1_000);
        assert_eq!(thread_id(), thread_id());
    }

    #[test]
    fn all_threads_of_a_process_agree_on_its_number() {
        let here = ProcessId::current();
        assert_eq!(std::thread::spawn(ProcessId::current).join().unwrap(), here);
        assert!(here.is_here());
    }
}
