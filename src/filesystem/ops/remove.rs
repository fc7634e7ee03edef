//! Removing a record.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::{layout, publish, record_file};
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::latch::Latch;
use crate::{Key, RemoveOptions, Result};

/// `false`: there was no record.
pub(crate) fn remove(core: &Core, key: &Key, options: &RemoveOptions) -> Result<bool> {
    let context = Context::new("remove", key);
    core.check_writable(context)?;
    let claim = options.resolve_claim();
    let latch = Latch::enter(&core.layout, key, context)?;
    admit(core, key, &claim, context)?;
    let name = layout::record_name(key);
    let was_expired = record_file::is_expired(core, &name);
    let removed = publish::remove(&core.layout, &name, context)? && !was_expired;
    drop(latch);
    core.events.changed(key);
    // Also if there was no record: another process may not have synced its removal yet, and after this
    // call the record must stay absent.
    publish::sync_records(&core.layout, core.options.durability, context)?;
    Ok(removed)
}
