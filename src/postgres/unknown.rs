//! The acquisitions whose outcome is not known: the answer of the server was lost.
//!
//! Each acquisition has a nonce, and the lock keeps it. If the same holder asks again, it asks with the same nonce. So
//! the lock that it may have acquired is found, and is not taken for one that it had before: its guard releases it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Holder, Key};

#[derive(Debug, Default)]
pub(super) struct Unknown(Mutex<HashMap<(Key, Holder), i64>>);

impl Unknown {
    /// The nonce of the holder's last acquisition of the key, if its outcome is not known.
    pub(super) fn take(&self, key: &Key, holder: &Holder) -> Option<i64> {
        let mut nonces = self.lock();
        // The usual case needs no copy of the two.
        if nonces.is_empty() { None } else { nonces.remove(&(key.clone(), holder.clone())) }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Key, Holder), i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remember(&self, key: &Key, holder: &Holder, nonce: i64) {
        self.lock().insert((key.clone(), holder.clone()), nonce);
    }
}
