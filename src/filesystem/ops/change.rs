//! A change of a record, from the frame that tells it to the moment at which it is durable.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::old_file::{self, Old, Was};
use crate::filesystem::disk::{layout, publish, record_head};
use crate::filesystem::log::{Appended, Unsynced};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, Key, Result};

/// The record after a change.
#[derive(Clone, Copy)]
pub(super) struct New {
    /// The version of the record. `None`: the record was removed.
    pub(super) version: Option<u64>,
    /// The log tells only where the record is: until its directory is synced, the staged name has to stay.
    pub(super) is_large: bool,
}

impl New {
    pub(super) const NONE: Self = Self { version: None, is_large: false };
}

/// A change that was made under the latch.
#[must_use = "the change may not be durable yet"]
pub(super) struct Change<'a> {
    core: &'a Core,
    key: &'a Key,
    new: New,
    /// The frame that tells it. `None`: the store has no log.
    told: Option<Unsynced<'a>>,
    old: Old,
}

impl<'a> Change<'a> {
    /// The change was made with this outcome, under the latch. After an error the log is told so.
    pub(super) fn settle(
        core: &'a Core,
        key: &'a Key,
        new: New,
        told: Option<Appended<'a>>,
        outcome: Result<Old>,
        context: Context<'_>,
    ) -> Result<Self> {
        let (old, told) = match (outcome, told) {
            (Ok(old), Some(told)) if !old.is_known_as_older(&core.options) => {
                let told = sync_under_latch(core, key, new, told, &old, context)?;
                (old, Some(told))
            }
            (outcome, told) => Appended::settle(told, outcome, context)?,
        };
        Ok(Self { core, key, new, told, old })
    }

    /// Makes the change durable, if the store is, and tells the watchers, when the latch is left.
    pub(super) fn finish(self, context: Context<'_>) -> Result<Was> {
        let Self { core, key, new, told, old } = self;
        let Some(told) = told else {
            core.events.changed(key);
            let was = old.settle(core, context);
            publish::sync_records(&core.layout, core.options.durability, context)?;
            return Ok(was);
        };
        let is_full = core.options.durability == Durability::Full;
        if is_full && let Err(error) = told.sync(context) {
            take_back(core, key, new, &told, &old, context, error)?;
        }
        core.events.changed(key);
        if is_full && new.is_large {
            publish::sync_records(&core.layout, Durability::Full, context)?;
        }
        let is_named = old.is_named_by_log();
        let was = old.examine(core, context);
        let is_told = is_named && was != Was::Damaged;
        let synced = if is_full && !is_told {
            publish::sync_records(&core.layout, Durability::Full, context)
        } else {
            Ok(())
        };
        if let Some(staged) = old.into_staged(&was) {
            match &core.log {
                Some(log) if !is_full && new.version.is_some() => {
                    log.remove_when_synced(key, &told, staged, context);
                }
                _ => old_file::discard(core, &staged, context),
            }
        }
        synced.map(|()| was)
    }
}

/// Makes a change durable before the mark of the latch is cleared: a recovery would take the old file for one that somebody
/// wrote by hand later. So all who see the change before wait for this process, or sync the directory themselves.
fn sync_under_latch<'a>(
    core: &Core,
    key: &Key,
    new: New,
    told: Appended<'a>,
    old: &Old,
    context: Context<'_>,
) -> Result<Unsynced<'a>> {
    // In this order: the text of the new record is only in the log.
    let synced = told.sync(context).and_then(|()| publish::sync_names(&core.layout, context));
    let Err(error) = synced else { return Ok(told.made()) };
    let is_back = matches!(restore(core, key, new, old, context), Ok(true));
    core.events.changed(key);
    if is_back {
        return Err(told.cancel(error, context));
    }
    drop(told.made());
    Err(error.with_unknown_outcome())
}

/// The log could not be synced: brings the old record back, and returns the error. `Ok`: another process has made the change
/// durable meanwhile.
fn take_back(
    core: &Core,
    key: &Key,
    new: New,
    told: &Unsynced<'_>,
    old: &Old,
    context: Context<'_>,
    error: Error,
) -> Result<()> {
    let taken_back = || -> Result<Option<bool>> {
        let Some(_latch) = core.enter_within(key, &Limits::best_effort(), context)? else {
            return Ok(Some(false));
        };
        if told.is_synced() {
            return Ok(None);
        }
        Ok(Some(restore(core, key, new, old, context)? && told.withdraw(context)?))
    };
    let is_back = match taken_back() {
        Ok(None) => return Ok(()),
        Ok(Some(is_back)) => is_back,
        Err(_) => false,
    };
    core.events.changed(key);
    Err(if is_back { error } else { error.with_unknown_outcome() })
}

/// Takes a change back, under the latch, and syncs that, as long as nobody has changed the record again. `false`: that is not
/// possible.
fn restore(core: &Core, key: &Key, new: New, old: &Old, context: Context<'_>) -> Result<bool> {
    if !put_old_back(core, key, new, old) {
        return Ok(false);
    }
    // A checkpoint may have taken its frame for one of an old record, which need not be on the disk.
    publish::sync_file(&core.layout, &layout::record_name(key), context)?;
    publish::sync_names(&core.layout, context)?;
    Ok(true)
}

fn put_old_back(core: &Core, key: &Key, new: New, old: &Old) -> bool {
    let (layout, name, version) = (&core.layout, layout::record_name(key), new.version);
    let opened = layout::open_existing(&layout.dir, &name);
    let limit = core.options.max_record_bytes;
    let now = opened.map(|opened| opened.and_then(|opened| record_head::read(&opened, limit)?.version));
    if now.ok() != Some(version) {
        return false;
    }
    match (old, version) {
        (Old::Displaced(displaced, _), Some(_)) => {
            // The staged name is that of the new record now.
            publish::exchange_back(layout, &displaced.name, &name).is_ok()
                && publish::remove_private(&layout.private, &displaced.name)
        }
        (Old::Displaced(displaced, _), None) => publish::put_back(layout, &displaced.name, &name),
        (Old::Linked(second), _) => {
            publish::remove_private(&layout.dir, &name) && publish::remove_private(&layout.private, second)
        }
        (Old::Examined(Was::Nothing), None) => true,
        (Old::Examined(_), _) => false,
    }
}
