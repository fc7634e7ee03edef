//! Removing blank and unfinished lock files whose names are hashes.
//!
//! A power loss may leave such a file. A lock file is removed under the latch of its key, or it could be the lock
//! that another process is just acquiring. But a hash does not say the key, and a blank file does not either. If
//! the record does not say it, the file is removed under all latches at once, while no lock changes at all.

use std::time::Duration;

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, MAX_LOCK_BYTES};
use crate::filesystem::disk::lock_file::is_unfinished;
use crate::filesystem::disk::{publish, record_file};
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::{Key, Result};

/// A lock file is blank for a moment while it is created, and for a while when it was left for a waiter.
const MAX_CHECKS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(1);

/// Removes those of these lock files that are blank or unfinished and stay so. Best effort: a latch in which a
/// process is stopped, or a limit of open files, leaves them for the next sweep. Returns how many it removed.
pub(super) fn sweep(core: &Core, names: &[String], context: Context<'_>) -> Result<u64> {
    let blank: Vec<_> = names.iter().filter(|name| stays_blank(core, name)).collect();
    let mut swept = 0;
    let mut unknown = Vec::new();
    for name in blank {
        let Some(key) = key_of(core, name, context) else {
            unknown.push(name);
            continue;
        };
        let latch = core.enter_within(&key, &Limits::best_effort(), context)?;
        if latch.is_some() && is_blank(core, name) {
            swept += u64::from(publish::remove(&core.layout, name, context)?);
        }
    }
    if unknown.is_empty() {
        return Ok(swept);
    }
    let Ok(Some(_latches)) = Latch::enter_all(&core.layout, context) else { return Ok(swept) };
    for name in unknown {
        if is_blank(core, name) {
            swept += u64::from(publish::remove(&core.layout, name, context)?);
        }
    }
    Ok(swept)
}

fn stays_blank(core: &Core, name: &str) -> bool {
    (0..MAX_CHECKS).all(|check| {
        if check > 0 {
            std::thread::sleep(PAUSE);
        }
        is_blank(core, name)
    })
}

fn is_blank(core: &Core, name: &str) -> bool {
    let Ok(Some(opened)) = layout::open_existing(&core.layout.dir, name) else { return false };
    let text = layout::read_up_to(&opened, MAX_LOCK_BYTES as u64);
    text.is_ok_and(|text| text.len() <= MAX_LOCK_BYTES && is_unfinished(&text))
}

/// The key, if there is a record whose name has the same hash.
fn key_of(core: &Core, name: &str, context: Context<'_>) -> Option<Key> {
    let record = layout::record_beside(layout::lock_stem(name)?);
    let key = record_file::key_inside(core, &record, context).ok()??;
    (layout::lock_name(&key) == name).then_some(key)
}
