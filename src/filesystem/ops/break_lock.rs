//! Breaking a lock.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, Refusal};
use crate::filesystem::disk::{old_file, publish};
use crate::filesystem::protocol::access::{Snapshot, snapshot};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, Key, LockToken, Result, WaitOptions};

/// Removes the lock, or only the lock of this acquisition. `false`: there was none.
pub(crate) fn break_lock(
    core: &Core,
    key: &Key,
    token: Option<LockToken>,
    options: &WaitOptions,
) -> Result<bool> {
    let context = Context::new("break_lock", key);
    core.check_writable(context)?;
    let limits = Limits::new(options);
    limits.check_cancelled(context)?;
    let latch = Latch::enter(&core.layout, key, &limits.for_latch(), context)?;
    let name = layout::lock_name(key);
    let is_meant = match (token, snapshot(core, key, context)) {
        (None, Ok(_)) => true,
        // The file is no lock. It blocks the key, but may be somebody's.
        (None, Err(error)) => return set_aside(core, key, latch, &error, context),
        (Some(token), found) => matches!(found?, Snapshot::Lock(found) if found.lock.token == token),
    };
    let removed = is_meant && publish::remove(&core.layout, &name, context)?;
    drop(latch);
    if is_meant {
        core.events.freed(key, &core.layout);
    }
    Ok(removed)
}

/// Moves a file that blocks the key and is no lock to `.store/damaged/`. `reason` says what is wrong with it.
fn set_aside(core: &Core, key: &Key, latch: Latch, reason: &Error, context: Context<'_>) -> Result<bool> {
    let name = layout::lock_name(key);
    match layout::stat(&core.layout.dir, &name) {
        Ok(None) => return Ok(false),
        Ok(Some(stat)) if layout::is_directory(&stat) => {
            let refusal = Refusal::NotRegular("a directory");
            return Err(refusal.into_error(context, "stat the lock", core.layout.lock_path(key)));
        }
        Ok(Some(_)) | Err(_) => {}
    }
    old_file::set_aside(core, &name, reason, context)?;
    drop(latch);
    core.events.freed(key, &core.layout);
    Ok(true)
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
