//! Breaking a lock.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::{layout, publish};
use crate::filesystem::protocol::access::{Snapshot, snapshot};
use crate::filesystem::protocol::latch::Latch;
use crate::{Key, LockToken, Result};

/// Removes the lock, or only the lock of this acquisition. `false`: there was none.
pub(crate) fn break_lock(core: &Core, key: &Key, token: Option<LockToken>) -> Result<bool> {
    let context = Context::new("break_lock", key);
    core.check_writable(context)?;
    let latch = Latch::enter(&core.layout, key, context)?;
    let is_meant = match token {
        // Not even read: it may be corrupt.
        None => true,
        Some(token) => {
            matches!(snapshot(core, key, context)?, Snapshot::Lock(found) if found.lock.token == token)
        }
    };
    let removed = is_meant && publish::remove(&core.layout, &layout::lock_name(key), context)?;
    drop(latch);
    if is_meant {
        core.events.freed(key, &core.layout);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use crate::{FileSystemRecordStore, Holder, LockOptions, RecordStoreExt, WriteOptions};

    #[test]
    fn only_the_lock_of_the_token_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let job = Holder::named("job").unwrap();
        let options = LockOptions::new().holder(job.clone());
        let old = store.acquire_lock("k", options.clone()).unwrap();
        store.release_lock("k", &job).unwrap();
        assert!(!store.break_lock_by_token("k", old).unwrap());
        let new = store.acquire_lock("k", options).unwrap();
        assert!(!store.break_lock_by_token("k", old).unwrap());
        assert!(store.is_lock_holder("k", &job).unwrap());
        assert!(store.break_lock_by_token("k", new).unwrap());
        assert!(!store.is_locked("k").unwrap());
        assert!(store.write_with("k", &1, WriteOptions::new().claim(new)).unwrap_err().is_lock_lost());
    }
}
