//! A value per process.
#![allow(unsafe_code, reason = "a list that is never locked, because a fork would inherit the lock")]

use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::ProcessId;

/// A value per process. A forked child starts with a fresh one, behind a mutex of its own: the mutex that it
/// inherited may be locked by a thread that does not exist in the child, and would never be unlocked. For the
/// same reason the list of values is changed by single atomic steps.
pub(crate) struct PerProcess<T> {
    newest: AtomicPtr<Node<T>>,
}

/// The value of one process, and the link to the values of its ancestors.
struct Node<T> {
    process: ProcessId,
    value: Mutex<T>,
    older: *mut Node<T>,
}

impl<T: Default + Send> Default for PerProcess<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Default + Send> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { newest: AtomicPtr::new(ptr::null_mut()) }
    }

    /// This process's value.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let process = ProcessId::current();
        let mut newest = self.newest.load(Ordering::Acquire);
        loop {
            if let Some(node) = self.nodes(newest).find(|node| node.process == process) {
                return node.value.lock().unwrap_or_else(PoisonError::into_inner);
            }
            let node = Box::new(Node { process, value: Mutex::default(), older: newest });
            let node = Box::into_raw(node);
            match self.newest.compare_exchange(newest, node, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => self.drop_inherited(newest),
                Err(other) => {
                    // SAFETY: the node was not published, so this is the only pointer to it.
                    drop(unsafe { Box::from_raw(node) });
                    newest = other;
                    continue;
                }
            }
            newest = node;
        }
    }

    /// Drops the inherited values, such as open files, except those whose mutex another thread held at the
    /// fork.
    fn drop_inherited(&self, newest: *mut Node<T>) {
        for node in self.nodes(newest) {
            if let Ok(mut inherited) = node.value.try_lock() {
                *inherited = T::default();
            }
        }
    }

    #[expect(clippy::unused_self, reason = "the nodes live as long as the list")]
    fn nodes(&self, newest: *mut Node<T>) -> impl Iterator<Item = &Node<T>> {
        // SAFETY: every pointer in the list comes from `Box::into_raw` and was published by a release store
        // after its node was complete. Nodes are freed only when `self`, which the references borrow, is
        // dropped.
        let at = |pointer: *mut Node<T>| unsafe { pointer.as_ref() };
        std::iter::successors(at(newest), move |node| at(node.older))
    }
}

impl<T> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerProcess").finish_non_exhaustive()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let mut next = *self.newest.get_mut();
        while !next.is_null() {
            // SAFETY: as for `nodes`; `&mut self` proves that nobody has a reference any more.
            let node = unsafe { Box::from_raw(next) };
            next = node.older;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_threads_of_a_process_share_its_value() {
        let count: PerProcess<u32> = PerProcess::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| *count.lock() += 1);
            }
        });
        assert_eq!(*count.lock(), 8);
    }
}
