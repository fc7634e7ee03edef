//! A command that runs under a lock and requests that lock again would wait for itself for ever.

use record_store::{Key, LockInfo, LockState, LockToken, RecordStoreExt};

use crate::failure::{Failure, LOCKED};
use crate::store::Store;
use crate::style::quoted;
use crate::variables;

/// Fails if this program runs in a command of `run` or `lock` that holds the key's lock, and does not use its token.
/// A lock with a lease is waited for: it ends.
///
/// A command that shares the lock may not acquire it again either: a waiter for an exclusive lock may have come in between.
pub(crate) fn refuse_own_lock(store: &Store, key: &Key, token: Option<LockToken>) -> Result<(), Failure> {
    refuse(store, key, token, |_| true)
}

/// [`refuse_own_lock`] for a read, which does not wait for a shared lock.
pub(crate) fn refuse_own_exclusive_lock(
    store: &Store,
    key: &Key,
    token: Option<LockToken>,
) -> Result<(), Failure> {
    refuse(store, key, token, |lock| !lock.is_shared())
}

fn refuse(
    store: &Store,
    key: &Key,
    token: Option<LockToken>,
    is_in_the_way: impl Fn(&LockInfo) -> bool,
) -> Result<(), Failure> {
    let Some(own) = variables::own_token(key).filter(|own| token != Some(*own)) else { return Ok(()) };
    // No other lock of the key ever has that token. An error is reported by the operation itself.
    let is_own = |it: &LockInfo| it.token() == own && it.state() == LockState::Held;
    match store.lock_info(key) {
        Ok(Some(lock))
            if is_in_the_way(&lock) && lock.holders().any(|it| is_own(it) && it.expires_at().is_none()) =>
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
