//! Listing the locks.

use crate::error::MISNAMED;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout;
use crate::filesystem::disk::names::Names;
use crate::filesystem::protocol::access::{Snapshot, describe, read_lock, retry_torn_read};
use crate::filesystem::protocol::clock::Reading;
use crate::{ErrorKind, Listing, LockInfo, LockState, Result};

pub(crate) fn locks(core: &Core) -> Result<Listing<'_, LockInfo>> {
    let context = Context::whole("locks");
    let locks = Names::locks(&core.layout, context)?.filter_map(|entry| match entry {
        Ok(entry) => {
            let (name, key) = entry.into_lock();
            let context = Context { operation: "locks", key: key.as_ref() };
            let lock = retry_torn_read(None, || lock_inside(core, &name, context));
            // Every lock looks stale if only the private directory was removed, with the owner files in it.
            let looks_stale = |lock: &LockInfo| lock.state() != LockState::Held;
            lock.and_then(|lock| match lock {
                Some(lock) if looks_stale(&lock) => core.check_exists(context).map(|()| Some(lock)),
                lock => Ok(lock),
            })
            .transpose()
        }
        Err(error) => Some(Err(error)),
    });
    Ok(core.listing(locks, context))
}

/// The lock in a listed file. `None`: the file is gone, or blank. One that looks torn is an error, to be retried.
pub(super) fn lock_inside(core: &Core, name: &str, context: Context<'_>) -> Result<Option<LockInfo>> {
    let path = || core.layout.root().join(name);
    let now = Reading::now();
    let opened = layout::open_existing(&core.layout.dir, name)
        .map_err(|refusal| refusal.into_error(context, "open the lock", path()))?;
    let Some(opened) = opened else { return Ok(None) };
    match read_lock(core, &opened, &now, context, path)? {
        Snapshot::Lock(found) if layout::lock_name(&found.lock.key) != name => Err(match context.key {
            Some(_) => context.error(ErrorKind::KeyMismatch).with_stored_key(&found.lock.key),
            None => context.error(ErrorKind::CorruptLock).with_detail(MISNAMED),
        }
        .with_path(path())),
        Snapshot::Lock(found) => Ok(Some(describe(core, &found))),
        Snapshot::Absent | Snapshot::Blank | Snapshot::Unfinished => Ok(None),
    }
}
