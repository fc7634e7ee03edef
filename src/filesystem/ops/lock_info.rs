//! Describing a key's lock.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::protocol::access::{Snapshot, describe, snapshot};
use crate::{Key, LockInfo, LockState, Result};

/// The live lock. `None`: there is none.
pub(crate) fn lock_info(core: &Core, key: &Key) -> Result<Option<LockInfo>> {
    let context = Context::new("lock_info", key);
    match snapshot(core, key, context)? {
        Snapshot::Lock(found) if found.state == LockState::Held => Ok(Some(describe(core, &found))),
        // Every lock looks stale if only the private directory was removed, with the owner files in it.
        Snapshot::Lock(_) | Snapshot::Unfinished | Snapshot::Blank | Snapshot::Absent => {
            core.check_exists(context).map(|()| None)
        }
    }
}
