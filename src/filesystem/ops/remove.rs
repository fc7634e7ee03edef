//! Removing a record.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::old_file::{self, Was};
use crate::filesystem::disk::publish;
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::{Key, RemoveOptions, Result};

/// `false`: there was no record.
pub(crate) fn remove(core: &Core, key: &Key, options: &RemoveOptions) -> Result<bool> {
    let context = Context::new("remove", key);
    core.check_writable(context)?;
    let claim = options.resolve_claim();
    let limits = Limits::new(options.get_wait());
    limits.check_cancelled(context)?;
    let here = Owner::here(&core.layout, context).ok();
    let latch = Latch::enter(&core.layout, key, &limits.for_latch(), context)?;
    admit(core, key, &claim, context)?;
    // Read before the file is taken away: a record that expires later was removed.
    let now = Reading::now();
    let old = old_file::remove(core, key, here.as_deref(), context)?;
    drop(latch);
    core.events.changed(key);
    let removed = match old.settle(core, context) {
        Was::Nothing => false,
        Was::Record(expiry) => expiry.is_none_or(|expiry| expiry.term(&now) != Term::Over),
        Was::Damaged => true,
    };
    // Also if there was no record: another process may not have synced its removal yet, and after this
    // call the record must stay absent.
    publish::sync_records(&core.layout, core.options.durability, context)?;
    Ok(removed)
}
