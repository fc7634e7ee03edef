//! The locks that their holders gave up, and that are not released yet.
//!
//! The lock of a dropped guard is released in the background, and so is the lock of an acquisition whose
//! future was dropped. If the same holder acquired it meanwhile, it would get that very lock, as an inner
//! one, and lose it at once. So it waits for the pending release first.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::process::PerProcess;
use crate::{Holder, Key};

/// Each pending release has a semaphore without permits, closed at its end. A child has given up nothing.
static PENDING: PerProcess<HashMap<Lock, Vec<Arc<Semaphore>>>> = PerProcess::new();

type Lock = (Holder, Key);

/// Exists as long as its holder may still have the locks that it gave up.
pub(super) struct PendingRelease {
    locks: Vec<Lock>,
    released: Arc<Semaphore>,
}

impl PendingRelease {
    pub(super) fn begin(holder: &Holder, keys: &[Key]) -> Self {
        let released = Arc::new(Semaphore::new(0));
        let locks: Vec<_> = keys.iter().map(|key| (holder.clone(), key.clone())).collect();
        let mut pending = PENDING.lock();
        for lock in &locks {
            pending.entry(lock.clone()).or_default().push(Arc::clone(&released));
        }
        drop(pending);
        Self { locks, released }
    }
}

impl Drop for PendingRelease {
    fn drop(&mut self) {
        let mut pending = PENDING.lock();
        for lock in self.locks.drain(..) {
            if let Entry::Occupied(mut entry) = pending.entry(lock) {
                entry.get_mut().retain(|other| !Arc::ptr_eq(other, &self.released));
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
        }
        drop(pending);
        self.released.close();
    }
}

/// Waits until this holder has no pending release of this lock.
pub(super) async fn released(holder: &Holder, key: &Key) {
    let lock = (holder.clone(), key.clone());
    loop {
        let Some(first) = PENDING.lock().get(&lock).and_then(|all| all.first().cloned()) else { return };
        // Fails when the semaphore is closed.
        let _ = first.acquire().await;
    }
}
