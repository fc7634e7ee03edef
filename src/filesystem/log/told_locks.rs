//! The named locks whose renewals need no sync in a store that is not durable.
//!
//! A renewed lock file replaces the old one, and neither the new one nor its frame is synced then. If a lock is durable,
//! the old file may be all that tells of it, because a checkpoint has emptied the segment with its frame. So the frame
//! of a renewal is synced before the old file is replaced, unless a frame of the same lock is in the same use of the
//! segment: until this change is made, no checkpoint empties that. So there is one sync for each lock in each segment.

use std::collections::HashMap;

use super::Log;
use super::append::Appended;
use super::sync::Unsynced;
use crate::{Key, LockToken};

/// The uses of the segments that have a frame of these locks: that of their acquisition, or one that was synced before the
/// old file was replaced, or a later one in the same use. By the keys.
pub(super) type ToldLocks = HashMap<Key, (LockToken, u64)>;

/// Processes that renew more locks sync more often.
const MAX_LOCKS: usize = 1024;

impl Appended<'_> {
    /// Whether this process has told an earlier state of the same lock in the same use of the segment.
    pub(crate) fn follows_one_of(&self, key: &Key, token: LockToken) -> bool {
        self.log().told_locks.lock().get(key) == Some(&(token, self.position().epoch()))
    }
}

impl Unsynced<'_> {
    /// The frame tells this lock.
    pub(crate) fn remember_lock(&self, key: &Key, token: LockToken) {
        let mut told = self.log().told_locks.lock();
        if told.len() >= MAX_LOCKS {
            told.clear();
        }
        told.insert(key.clone(), (token, self.position().epoch()));
    }
}

impl Log {
    /// There is no lock any more.
    pub(crate) fn forget_lock(&self, key: &Key) {
        self.told_locks.lock().remove(key);
    }
}
