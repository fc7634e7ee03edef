//! The acquisitions whose outcome is not known: the answer of the server was lost.
//!
//! Each acquisition has a nonce, and the lock keeps it. If the same holder asks again, it asks with the same nonce. So
//! the lock that it may have acquired is found, and is not taken for one that it had before: its guard releases it.

use std::collections::HashMap;

use super::schema::random;
use crate::process::PerProcess;
use crate::{Holder, Key};

#[derive(Debug, Default)]
pub(super) struct Unknown(PerProcess<HashMap<(Key, Holder), i64>>);

impl Unknown {
    /// The nonce of the acquisition that begins now.
    pub(super) fn nonce(&self, key: &Key, holder: &Holder) -> i64 {
        let mut nonces = self.0.lock();
        // The usual case needs no copy of the two.
        let known = if nonces.is_empty() { None } else { nonces.remove(&(key.clone(), holder.clone())) };
        known.unwrap_or_else(random)
    }

    pub(super) fn remember(&self, key: &Key, holder: &Holder, nonce: i64) {
        self.0.lock().insert((key.clone(), holder.clone()), nonce);
    }
}
