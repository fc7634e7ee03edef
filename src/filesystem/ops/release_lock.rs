//! Releasing a lock.

use super::renew::own_lock;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::{layout, publish};
use crate::filesystem::protocol::latch::Latch;
use crate::{Claim, Key, Result};

pub(crate) fn release_lock(core: &Core, key: &Key, claim: &Claim) -> Result<()> {
    let context = Context::new("release_lock", key);
    core.check_writable(context)?;
    let latch = Latch::enter(&core.layout, key, context)?;
    own_lock(core, key, claim, context)?;
    let name = layout::lock_name(key);
    // For a waiter the file is left, but blank: writing it again is much cheaper than creating one.
    if !(core.events.is_awaited(key) && publish::blank(&core.layout, &name)) {
        publish::remove(&core.layout, &name, context)?;
    }
    // The latch is left first: a woken waiter would have to wait for it.
    drop(latch);
    core.events.freed(key, &core.layout);
    Ok(())
}
