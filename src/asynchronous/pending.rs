//! The locks that their holders gave up, and that are not released yet.
//!
//! The lock of a dropped guard is released in the background, and so is the lock of an acquisition whose
//! future was dropped. If the same holder acquired it meanwhile, it would get that very lock, as an inner
//! one, and lose it at once. So it waits for the pending release first.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use crate::process::PerProcess;
use crate::{Holder, Key};

/// Each pending release has a receiver. A child has given up nothing.
static PENDING: PerProcess<HashMap<Lock, Arc<watch::Sender<()>>>> = PerProcess::new();

type Lock = (Holder, Key);

/// A lock from the beginning of its acquisition to the end of its release. Shared by the future and the calls
/// that acquire it, and then by its guard.
pub(super) struct Acquisition {
    lock: Lock,
    given_up: OnceLock<watch::Receiver<()>>,
}

impl Acquisition {
    pub(super) fn new(holder: &Holder, key: &Key) -> Arc<Self> {
        Arc::new(Self { lock: (holder.clone(), key.clone()), given_up: OnceLock::new() })
    }

    pub(super) fn holder(&self) -> &Holder {
        &self.lock.0
    }

    pub(super) fn key(&self) -> &Key {
        &self.lock.1
    }

    /// From now on until this is dropped, the release is pending.
    pub(super) fn give_up(&self) {
        self.given_up.get_or_init(|| PENDING.lock().entry(self.lock.clone()).or_default().subscribe());
    }

    /// Waits until this holder has no pending release of this lock.
    pub(super) async fn earlier_are_released(&self) {
        let releases = PENDING.lock().get(&self.lock).cloned();
        if let Some(releases) = releases {
            releases.closed().await;
        }
    }
}

impl Drop for Acquisition {
    fn drop(&mut self) {
        let Some(given_up) = self.given_up.take() else { return };
        // Without the mutex: it wakes tasks.
        drop(given_up);
        let mut pending = PENDING.lock();
        if pending.get(&self.lock).is_some_and(|releases| releases.receiver_count() == 0) {
            pending.remove(&self.lock);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn the_next_acquisition_waits_for_the_last_pending_release() {
        let lock = || Acquisition::new(&Holder::current(), &Key::new("given up").unwrap());
        let (first, second, next) = (lock(), lock(), lock());
        let mut context = Context::from_waker(Waker::noop());
        first.give_up();
        second.give_up();
        let mut released = pin!(next.earlier_are_released());
        assert!(released.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert!(released.as_mut().poll(&mut context).is_pending());
        drop(second);
        assert_eq!(released.as_mut().poll(&mut context), Poll::Ready(()));
        assert!(!PENDING.lock().contains_key(&next.lock), "the last one removes the entry");
    }
}
