//! Which process and thread this is, and state that a forked child must not inherit.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The number of the calling thread, as the kernel counts.
#[cfg(target_os = "linux")]
pub(crate) fn thread_id() -> u64 {
    u64::from(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
}

/// Where there is no portable thread id, threads are numbered in the order of their first request.
#[cfg(not(target_os = "linux"))]
pub(crate) fn thread_id() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    std::thread_local! { static ID: u64 = NEXT.fetch_add(1, Ordering::Relaxed); }
    ID.with(|id| *id)
}

/// A value per process. A forked child starts with a fresh one, behind a mutex of its own: the mutex
/// that it inherited may be locked by a thread that does not exist in the child, and would never be
/// unlocked.
pub(crate) struct PerProcess<T> {
    oldest: Link<T>,
}

type Link<T> = OnceLock<Box<Node<T>>>;

/// The value of one process, and the link to the values of its children: in a chain of forks, each
/// process finds the values of its ancestors before its own.
struct Node<T> {
    process: u32,
    value: Mutex<T>,
    younger: Link<T>,
}

impl<T: Default> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { oldest: OnceLock::new() }
    }

    /// This process's value.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let process = std::process::id();
        let mut link = &self.oldest;
        loop {
            let node = link.get_or_init(|| {
                Box::new(Node { process, value: Mutex::default(), younger: OnceLock::new() })
            });
            if node.process == process {
                return node.value.lock().unwrap_or_else(PoisonError::into_inner);
            }
            // Drops the inherited value, such as open files, unless another thread held its mutex at
            // the fork.
            if let Ok(mut inherited) = node.value.try_lock() {
                *inherited = T::default();
            }
            link = &node.younger;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_process_share_its_value() {
        static COUNT: PerProcess<u32> = PerProcess::new();
        *COUNT.lock() += 1;
        std::thread::spawn(|| *COUNT.lock() += 1).join().unwrap();
        assert_eq!(*COUNT.lock(), 2);
    }
}
