//! Waiting until a key has no live lock.

use super::wait::{Attempt, Role, wait};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::protocol::access::{Snapshot, snapshot};
use crate::filesystem::protocol::limits::Limits;
use crate::{Key, LockState, Result, WaitOptions};

/// `false` at the timeout.
pub(crate) fn wait_for_lock(core: &Core, key: &Key, options: &WaitOptions) -> Result<bool> {
    let context = Context::new("wait_for_lock", key);
    let limits = Limits::new(options);
    let waited = wait(core, key, Role::Watcher, &limits, context, |_| {
        Ok(match snapshot(core, key, context)? {
            Snapshot::Lock(found) if found.state == LockState::Held => Attempt::Held(found),
            // Every lock looks stale if only the private directory was removed, with the owner files in it.
            Snapshot::Lock(_) | Snapshot::Unfinished | Snapshot::Blank | Snapshot::Absent => {
                Attempt::Done(core.check_exists(context)?)
            }
        })
    });
    match waited {
        Ok(()) => {
            // After a power loss, a lock whose release is not on the disk would be back (I4).
            core.wait_until_durable(key, context)?;
            Ok(true)
        }
        Err(error) if error.is_timeout() => Ok(false),
        Err(error) => Err(error),
    }
}
