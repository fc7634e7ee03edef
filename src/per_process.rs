//! State that belongs to one process, and not to the children forked from it.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// One value a process. A forked child begins with a fresh one, behind a lock of its own: the lock
/// that it inherited may be held by a thread that does not exist in it, and would never be free.
pub(crate) struct PerProcess<T> {
    oldest: Link<T>,
}

type Link<T> = OnceLock<Box<Node<T>>>;

/// The value of one process, and where its children put theirs: each process of a line of forks
/// finds those of its ancestors before its own.
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
            // Lets go of what was inherited, such as open files, unless it is out of reach.
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
    fn a_value_stays_with_its_process() {
        static COUNT: PerProcess<u32> = PerProcess::new();
        *COUNT.lock() += 1;
        std::thread::spawn(|| *COUNT.lock() += 1).join().unwrap();
        assert_eq!(*COUNT.lock(), 2);
    }
}
