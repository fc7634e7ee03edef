//! Ending a wait early.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};

use crate::process::{PerProcess, ProcessId};
use crate::{Error, ErrorKind, Key, Result};

/// Ends waits early: a worker that is to shut down does not wait on.
///
/// Pass it to the options of a call that can wait. As soon as it is [cancelled](Cancellation::cancel), by
/// any thread, every call that waits with it returns [`ErrorKind::Cancelled`], and every later call does so
/// at once. A cancelled acquisition leaves the wait queue as after a timeout: it has no lock, and the next
/// waiter has its turn. Locks that are held already stay. A cancellation cannot be undone. Give calls that
/// are cancelled separately a `Cancellation` each.
///
/// Clones are the same `Cancellation`, and equal; others are not.
///
/// ```
/// use std::thread;
/// use record_store::{Cancellation, Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// let shutdown = Cancellation::new();
/// let _mine = store.lock("report", LockOptions::new())?;
/// thread::scope(|scope| {
///     let worker = scope.spawn(|| {
///         store.lock("report", LockOptions::new().cancellation(&shutdown)).map(drop)
///     });
///     shutdown.cancel();
///     assert!(worker.join().unwrap().unwrap_err().is_cancelled());
/// });
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Cancellation(Arc<Shared>);

#[derive(Default)]
struct Shared {
    cancelled: AtomicBool,
    /// A forked child has none of its parent's waiters.
    callbacks: PerProcess<Callbacks>,
}

#[derive(Default)]
struct Callbacks {
    waiting: BTreeMap<u64, Callback>,
    next: u64,
}

type Callback = Box<dyn FnOnce() + Send>;

impl Cancellation {
    /// A `Cancellation` that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels, and wakes all waiters. A second call does nothing.
    pub fn cancel(&self) {
        let callbacks = {
            let mut callbacks = self.callbacks();
            self.0.cancelled.store(true, Ordering::SeqCst);
            std::mem::take(&mut callbacks.waiting)
        };
        // Called without the mutex: a callback may drop another registration.
        for callback in callbacks.into_values() {
            callback();
        }
    }

    /// Whether it is cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Calls `callback` once when this is cancelled, at once if it already is. Dropping the returned value
    /// removes the callback; a call that has begun continues.
    ///
    /// For implementers of stores: this is how a thread that sleeps is woken.
    pub fn on_cancel(&self, callback: impl FnOnce() + Send + 'static) -> OnCancel {
        let mut callbacks = self.callbacks();
        let id = callbacks.next;
        callbacks.next += 1;
        if self.is_cancelled() {
            drop(callbacks);
            callback();
        } else {
            callbacks.waiting.insert(id, Box::new(callback));
        }
        OnCancel { cancellation: self.clone(), id, process: ProcessId::current() }
    }

    /// Fails if it is cancelled.
    pub(crate) fn check(&self, operation: &'static str, key: Option<&Key>) -> Result<()> {
        if self.is_cancelled() {
            let error = Error::new(ErrorKind::Cancelled, operation);
            return Err(key.into_iter().fold(error, Error::with_key));
        }
        Ok(())
    }

    /// No callback runs under the mutex, so a poisoned one has consistent data.
    fn callbacks(&self) -> MutexGuard<'_, Callbacks> {
        self.0.callbacks.lock()
    }
}

impl PartialEq for Cancellation {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Cancellation {}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancellation").field("cancelled", &self.is_cancelled()).finish_non_exhaustive()
    }
}

/// The registration of a callback with a [`Cancellation`]. Dropping it removes the callback.
#[must_use = "the callback is removed as soon as this is dropped"]
pub struct OnCancel {
    cancellation: Cancellation,
    id: u64,
    /// In a forked child, the number belongs to another callback.
    process: ProcessId,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        if !self.process.is_here() {
            return;
        }
        let removed = self.cancellation.callbacks().waiting.remove(&self.id);
        // The callback's captures are dropped without the mutex.
        drop(removed);
    }
}

impl fmt::Debug for OnCancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnCancel").field("cancellation", &self.cancellation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_callback_is_called_once_or_never() {
        let cancellation = Cancellation::new();
        let calls = Arc::new(AtomicU32::new(0));
        let register = || {
            let calls = Arc::clone(&calls);
            cancellation.on_cancel(move || _ = calls.fetch_add(1, Ordering::Relaxed))
        };
        let (kept, removed) = (register(), register());
        drop(removed);
        cancellation.cancel();
        cancellation.cancel();
        assert_eq!(calls.load(Ordering::Relaxed), 1);
        drop(kept);
        let _late = register();
        assert_eq!(calls.load(Ordering::Relaxed), 2);
        assert!(cancellation.callbacks().waiting.is_empty());
    }

    #[test]
    fn a_callback_may_drop_another() {
        let cancellation = Cancellation::new();
        let second = Arc::new(Mutex::new(None));
        let _first = cancellation.on_cancel({
            let second = Arc::clone(&second);
            move || drop(second.lock().unwrap().take())
        });
        *second.lock().unwrap() = Some(cancellation.on_cancel(|| ()));
        cancellation.cancel();
        assert!(second.lock().unwrap().is_none());
    }
}
