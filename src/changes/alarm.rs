//! A sleep that a cancellation ends.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// Wakes one sleeper. Each call has its own, so a forked child has none that another thread has locked.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    rings: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    pub(crate) fn ring(&self) {
        *self.rings.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// Sleeps until this time, or until it rings.
    pub(crate) fn sleep_until(&self, time: Instant) {
        let mut rings = self.rings.lock().unwrap_or_else(PoisonError::into_inner);
        while !*rings {
            let left = time.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            rings = self.changed.wait_timeout(rings, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
