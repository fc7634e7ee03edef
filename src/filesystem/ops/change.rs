//! A change of a record, from the frame that tells it to the moment at which it is durable.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::old_file::{self, Old, Was};
use crate::filesystem::disk::{layout, publish, record_head};
use crate::filesystem::log::{Appended, Unsynced};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::limits::Limits;
use crate::{Error, Key, Result};

/// A change that was made under the latch.
#[must_use = "the change may not be durable yet"]
pub(super) struct Change<'a> {
    core: &'a Core,
    key: &'a Key,
    /// The frame that tells it. `None`: the store has no log.
    told: Option<Unsynced<'a>>,
    old: Old,
    /// The log tells only where the new record is: until its directory is synced, the staged name has to stay.
    is_large: bool,
}

impl<'a> Change<'a> {
    /// The change was made with this outcome, under the latch. After an error the log is told so.
    pub(super) fn settle(
        core: &'a Core,
        key: &'a Key,
        told: Option<Appended<'a>>,
        is_large: bool,
        outcome: Result<Old>,
        context: Context<'_>,
    ) -> Result<Self> {
        let (old, told) = Appended::settle(told, outcome, context)?;
        Ok(Self { core, key, told, old, is_large })
    }

    /// Makes the change durable, if the store is, and tells the watchers, when the latch is left. `version`: that of the
    /// new record, if there is one.
    pub(super) fn finish(self, version: Option<u64>, context: Context<'_>) -> Result<Was> {
        let Self { core, key, told, old, is_large } = self;
        let Some(told) = told else {
            core.events.changed(key);
            let was = old.settle(core, context);
            publish::sync_records(&core.layout, core.options.durability, context)?;
            return Ok(was);
        };
        let is_full = core.options.durability == Durability::Full;
        if is_full {
            told.sync(context).map_err(|error| take_back(core, key, &told, &old, version, context, error))?;
        }
        core.events.changed(key);
        if is_full && is_large {
            publish::sync_records(&core.layout, Durability::Full, context)?;
        }
        let is_named = old.is_named_by_log();
        let was = old.examine(core, context);
        // A recovery takes a record without a version for one that somebody wrote by hand later.
        let is_by_hand = matches!(&was, Was::Record(proof) if proof.version.is_none());
        if is_by_hand && !is_full {
            // A durable read of the new record waits only for the log.
            told.sync(context).map_err(|error| take_back(core, key, &told, &old, version, context, error))?;
        }
        let is_told = is_named && was != Was::Damaged;
        let synced = if is_by_hand || is_full && !is_told {
            publish::sync_records(&core.layout, Durability::Full, context)
        } else {
            Ok(())
        };
        if let Some(staged) = old.into_staged(&was) {
            match &core.log {
                Some(log) if !is_full && !is_by_hand && version.is_some() => {
                    log.remove_when_synced(key, &told, staged, context);
                }
                _ => old_file::discard(core, &staged, context),
            }
        }
        synced.map(|()| was)
    }
}

/// The log could not be synced: brings the old record back. Returns the error.
fn take_back(
    core: &Core,
    key: &Key,
    told: &Unsynced<'_>,
    old: &Old,
    version: Option<u64>,
    context: Context<'_>,
    error: Error,
) -> Error {
    let taken_back = || -> Result<bool> {
        let Some(_latch) = core.enter_within(key, &Limits::best_effort(), context)? else { return Ok(false) };
        if !restore(core, key, old, version) {
            return Ok(false);
        }
        // A checkpoint may have taken its frame for one of an old record, which need not be on the disk.
        publish::sync_file(&core.layout, &layout::record_name(key), context)?;
        publish::sync_records(&core.layout, Durability::Full, context)?;
        told.withdraw(context)
    };
    let is_back = taken_back().unwrap_or(false);
    core.events.changed(key);
    if is_back { error } else { error.with_unknown_outcome() }
}

/// Takes a change back, under the latch, as long as nobody has changed the record again. `version`: that of the new
/// record, if there is one. `false`: that is not possible.
fn restore(core: &Core, key: &Key, old: &Old, version: Option<u64>) -> bool {
    let (layout, name) = (&core.layout, layout::record_name(key));
    let opened = layout::open_existing(&layout.dir, &name);
    let limit = core.options.max_record_bytes;
    let now = opened.map(|opened| opened.and_then(|opened| record_head::read(&opened, limit)?.version));
    if now.ok() != Some(version) {
        return false;
    }
    match (old, version) {
        (Old::Displaced(displaced), Some(_)) => {
            // The staged name is that of the new record now.
            publish::exchange_back(layout, &displaced.name, &name).is_ok()
                && publish::remove_private(&layout.private, &displaced.name)
        }
        (Old::Displaced(displaced), None) => publish::put_back(layout, &displaced.name, &name),
        (Old::Linked(second), _) => {
            publish::remove_private(&layout.dir, &name) && publish::remove_private(&layout.private, second)
        }
        (Old::Examined(Was::Nothing), None) => true,
        (Old::Examined(_), _) => false,
    }
}
