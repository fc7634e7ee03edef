//! Breaking a lock.

use super::lock_change::LockChange;
use super::renew::remove_acquisition;
use crate::error::DIRECTORY;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, Refusal};
use crate::filesystem::disk::{old_file, publish};
use crate::filesystem::protocol::access::{Found, Snapshot, snapshot};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, Key, LockToken, Result, WaitOptions};

/// The target of a removal.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// Any file in the place of the lock.
    Any,
    /// The lock of this acquisition.
    Acquisition(LockToken),
    /// A file that is no lock of the key.
    NoLock,
}

/// Removes the lock, if it is the target. `false`: there was none.
pub(crate) fn break_lock(core: &Core, key: &Key, target: Target, options: &WaitOptions) -> Result<bool> {
    let context = Context::new("break_lock", key);
    core.check_writable(context)?;
    let limits = Limits::new(options);
    limits.check_cancelled(context)?;
    let latch = core.enter(key, &limits.for_latch(), context)?;
    let name = layout::lock_name(key);
    let found = match (target, snapshot(core, key, context)) {
        (Target::Any, Ok(found)) => Some(found),
        // The file is no lock. It blocks the key, but may be somebody's.
        (Target::Any, Err(error)) => return set_aside(core, key, latch, &error, context),
        // Only proof that it is no lock counts: after any other error it may be a live one.
        (Target::NoLock, Err(error)) if error.is_no_lock() => {
            return set_aside(core, key, latch, &error, context);
        }
        (Target::NoLock, found) => found.map(|_| None)?,
        (Target::Acquisition(token), found) => {
            Some(found?).filter(|it| matches!(it, Snapshot::Lock(found) if has(found, token)))
        }
    };
    let Some(found) = found else {
        drop(latch);
        core.wait_until_durable(key, context)?;
        return Ok(false);
    };
    let remove = || publish::remove(&core.layout, &name, context);
    let removed = match found {
        Snapshot::Lock(mut found) => {
            let (removed, change) = match target {
                Target::Acquisition(token) => {
                    found.find(|acquisition, _| acquisition.token == token);
                    remove_acquisition(core, &latch, &found, context)?
                }
                Target::Any | Target::NoLock => {
                    LockChange::make(core, &latch, key, (Some(&found.lock), None), context, remove)?
                }
            };
            drop(latch);
            change.sync(core, Some(&found.lock), context)?;
            removed
        }
        Snapshot::Absent | Snapshot::Blank | Snapshot::Unfinished => {
            let removed = remove()?;
            drop(latch);
            // Another process may not have synced the release yet.
            core.wait_until_durable(key, context)?;
            removed
        }
    };
    core.events.freed(key, &core.layout);
    core.checkpoint_if_full();
    Ok(removed)
}

fn has(found: &Found, token: LockToken) -> bool {
    found.lock.acquisitions().any(|acquisition| acquisition.token == token)
}

/// Moves a file that blocks the key and is no lock to `.store/damaged/`. `reason` says what is wrong with it.
fn set_aside(core: &Core, key: &Key, latch: Latch, reason: &Error, context: Context<'_>) -> Result<bool> {
    let name = layout::lock_name(key);
    match layout::stat(&core.layout.dir, &name) {
        Ok(None) => return Ok(false),
        Ok(Some(stat)) if layout::is_directory(&stat) => {
            let refusal = Refusal::NotRegular(DIRECTORY);
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
    use std::time::Duration;

    use crate::{
        BreakOptions, ErrorKind, FileSystemRecordStore, Holder, Key, LockOptions, RecordStoreExt,
        WaitOptions, WriteOptions,
    };

    #[test]
    fn only_a_file_that_is_no_lock_is_a_damaged_lock() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (key, place) = (Key::new("k").unwrap(), dir.path().join("k.lock"));
        let is_broken = || store.break_damaged_lock(&key, Duration::from_secs(5));
        assert!(!is_broken().unwrap());
        let guard = store.lock("k", LockOptions::new()).unwrap();
        assert!(!is_broken().unwrap());
        guard.write(&1).unwrap();
        let (lock, other) = (std::fs::read(&place).unwrap(), dir.path().join("other.lock"));
        guard.release().unwrap();

        std::fs::write(&place, "no lock").unwrap();
        assert!(is_broken().unwrap());
        std::fs::write(&other, &lock).unwrap();
        let of = |key: &str| store.break_damaged_lock(&Key::new(key).unwrap(), WaitOptions::new());
        assert!(of("other").unwrap(), "a lock of another key");
        assert_eq!(store.damaged().unwrap().len(), 2);
        // On some file systems, this is the live lock of the other key.
        std::fs::write(dir.path().join("K.lock"), &lock).unwrap();
        assert_eq!(of("K").unwrap_err().kind(), ErrorKind::KeyMismatch);
        std::fs::create_dir(dir.path().join("dir.lock")).unwrap();
        assert_eq!(of("dir").unwrap_err().kind(), ErrorKind::NotARegularFile);
        assert_eq!(store.damaged().unwrap().len(), 2);
    }

    #[test]
    fn only_the_lock_of_the_token_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let job = Holder::named("job").unwrap();
        let options = LockOptions::new().holder(job.clone());
        let old = store.acquire_lock("k", options.clone()).unwrap();
        store.release_lock("k", &job).unwrap();
        assert!(!store.break_lock_with("k", BreakOptions::new().token(old)).unwrap());
        let new = store.acquire_lock("k", options).unwrap();
        assert!(!store.break_lock_with("k", BreakOptions::new().token(old)).unwrap());
        assert!(store.is_lock_holder("k", &job).unwrap());
        assert!(store.break_lock_with("k", BreakOptions::new().token(new)).unwrap());
        assert!(!store.is_locked("k").unwrap());
        assert!(store.write_with("k", &1, WriteOptions::new().claim(new)).unwrap_err().is_lock_lost());
    }
}
