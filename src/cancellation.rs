//! Ending a wait before its time.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Key, Result};

/// Ends the wait for a lock before its time: a worker that is to shut down does not wait on.
///
/// Given to [`LockOptions::cancellation`](crate::LockOptions::cancellation). As soon as it is
/// [cancelled](Cancellation::cancel), from any thread, every acquisition that waits with it returns
/// [`Error::Cancelled`], and every later one does so at once. Who is cancelled leaves the line as one
/// whose time is up: it has no lock, and whoever is next has its turn. Locks that are held already
/// stay. There is no way back: what is to be cancelled apart has a `Cancellation` of its own.
///
/// Clones are the same `Cancellation`, and are equal; others are not.
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
    callbacks: Mutex<Callbacks>,
}

#[derive(Default)]
struct Callbacks {
    waiting: BTreeMap<u64, Callback>,
    next: u64,
}

type Callback = Box<dyn FnOnce() + Send>;

impl Cancellation {
    /// One that is not cancelled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels, and wakes all who wait. Again, it does nothing.
    pub fn cancel(&self) {
        let callbacks = {
            let mut callbacks = self.callbacks();
            self.0.cancelled.store(true, Ordering::SeqCst);
            std::mem::take(&mut callbacks.waiting)
        };
        // Not under the mutex: a callback may drop what else is registered here.
        for callback in callbacks.into_values() {
            callback();
        }
    }

    /// Whether it is cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Has `callback` called once when this is cancelled: at once, if it is already; never, if what
    /// this returns is dropped before. For those who write stores: it is how a sleeper is woken. A
    /// call that has begun goes on while and after that is dropped.
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
        OnCancel { cancellation: self.clone(), id }
    }

    /// The error of an operation that is cancelled, if it is.
    pub(crate) fn check(&self, operation: &'static str, key: &Key) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled { operation, key: key.clone() }) } else { Ok(()) }
    }

    /// Nothing is called under the mutex, so a poisoned one is as good as any.
    fn callbacks(&self) -> std::sync::MutexGuard<'_, Callbacks> {
        self.0.callbacks.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A callback that waits for a [`Cancellation`]. Dropped, it is not called any more.
#[must_use = "the callback is forgotten as soon as this is dropped"]
pub struct OnCancel {
    cancellation: Cancellation,
    id: u64,
}

impl Drop for OnCancel {
    fn drop(&mut self) {
        let forgotten = self.cancellation.callbacks().waiting.remove(&self.id);
        // What it owns is dropped after the mutex is free.
        drop(forgotten);
    }
}

impl fmt::Debug for OnCancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnCancel").field("cancellation", &self.cancellation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
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
        let (kept, forgotten) = (register(), register());
        drop(forgotten);
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
