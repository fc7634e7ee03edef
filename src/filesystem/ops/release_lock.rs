//! Releasing a lock.

use super::lock_change::LockChange;
use super::renew::{own_lock, remove_acquisition};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::{layout, publish};
use crate::filesystem::protocol::limits::Limits;
use crate::{Claim, Key, Result, WaitOptions};

pub(crate) fn release_lock(core: &Core, key: &Key, claim: &Claim, options: &WaitOptions) -> Result<()> {
    let context = Context::new("release_lock", key);
    core.check_writable(context)?;
    let limits = Limits::new(options);
    limits.check_cancelled(context)?;
    let latch = core.enter(key, &limits.for_latch(), context)?;
    let found = own_lock(core, &latch, key, claim, context)?;
    let change = if found.lock.is_shared() {
        remove_acquisition(core, &latch, &found, context)?.1
    } else {
        let release = || {
            let name = layout::lock_name(key);
            // For a waiter the file is left, but blank: writing it again is much cheaper than creating one.
            if !(core.events.is_awaited(key) && publish::blank(&core.layout, &name)) {
                publish::remove(&core.layout, &name, context)?;
            }
            Ok(())
        };
        LockChange::make(core, &latch, key, (Some(&found.lock), None), context, release)?.1
    };
    // The latch is left first: a woken waiter would have to wait for it.
    drop(latch);
    change.sync(core, Some(&found.lock), context)?;
    core.events.freed(key, &core.layout);
    core.checkpoint_if_full();
    Ok(())
}
