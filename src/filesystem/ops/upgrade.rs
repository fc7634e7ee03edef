//! Upgrading a store of format version 1: the first process that opens it for writing does that.
//!
//! Records are not rewritten. Their text says by which version it was written.

use std::sync::Arc;

use super::sweep::sweep_version_1;
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::Layout;
use crate::filesystem::disk::{creation, format, publish};
use crate::filesystem::log::{Log, recovery};
use crate::filesystem::options::FileSystemOptions;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::wait_queue::Events;
use crate::{ErrorKind, Result, trace};

/// Upgrades the store. The rename of the new format file decides: a process that is killed before it leaves a store
/// of version 1, which an earlier version of this crate can still use.
pub(super) fn upgrade(layout: &Arc<Layout>, options: &FileSystemOptions, context: Context<'_>) -> Result<()> {
    let Some(_latch) = Latch::enter_creation(layout, context)? else {
        // The store was removed meanwhile.
        return Err(context.error(ErrorKind::NotAStore).with_path(layout.root()));
    };
    let from = format::check(layout, context)?;
    if from == format::VERSION {
        // Another process was faster.
        return Ok(());
    }
    // First, because on a full disk this makes the room for what is new.
    sweep_version_1(layout, options, context)?;
    let created = creation::complete(layout, context)?;
    let upgraded = set_up_log(layout, options, context).and_then(|log| {
        format::publish(layout, context)?;
        Ok(log)
    });
    let log = upgraded.inspect_err(|_| creation::undo(layout, created))?;
    publish::sync_private(layout, context)?;
    // Now others go on that have seen the new version: what they change must not be in a store of version 1 after a
    // power loss.
    if let Some(log) = log {
        log.set_ready();
    }
    trace::upgraded(layout.root(), from, format::VERSION);
    Ok(())
}

/// The log, which continues the numbers that version 1 has given. Nobody uses it before the store has the new version.
fn set_up_log(
    layout: &Arc<Layout>,
    options: &FileSystemOptions,
    context: Context<'_>,
) -> Result<Option<Log>> {
    let Some(log) = recovery::open_first(layout, options, context)? else { return Ok(None) };
    // A table that cannot be opened says no numbers. The clock is ahead of them.
    if let Ok(events) = Events::open_if_room(layout, true, context) {
        for latch in 0..=u8::MAX {
            if let Some((token, version)) = events.last_numbers(latch) {
                log.continue_numbers(latch, token, version);
            }
        }
    }
    Ok(Some(log))
}
