//! A command that runs under a lock and requests that lock again would wait for itself for ever.

use record_store::{Key, LockState, LockToken, RecordStoreExt};

use crate::failure::{Failure, LOCKED};
use crate::store::Store;
use crate::style::quoted;
use crate::variables;

/// Fails if this program runs in a command of `run` or `lock` that holds the key's lock, and does not use its token.
/// A lock with a lease is waited for: it ends.
pub(crate) fn refuse_own_lock(store: &Store, key: &Key, token: Option<LockToken>) -> Result<(), Failure> {
    let Some(own) = variables::own_token(key).filter(|own| token != Some(*own)) else { return Ok(()) };
    // No other lock of the key ever has that token. An error is reported by the operation itself.
    match store.lock_info(key) {
        Ok(Some(lock))
            if lock.token() == own && lock.state() == LockState::Held && lock.expires_at().is_none() =>
        {
            let message = format!(
                "this command runs under the lock of {} itself: waiting for it would be a deadlock",
                quoted(key.as_str())
            );
            Err(Failure::new(LOCKED, message)
                .advise("act under that lock with --token \"$RECORD_STORE_TOKEN\""))
        }
        _ => Ok(()),
    }
}
