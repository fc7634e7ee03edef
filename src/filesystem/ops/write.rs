//! Writing a record, unconditionally or by compare-and-swap.

use rustix::fs::Stat;

use super::change::{Change, New};
use super::evict_in_background::evict_in_background;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::old_file::{self, InPlace, MAX_ATTEMPTS, Old, Was, too_busy};
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::disk::{expiry, layout, record_file};
use crate::filesystem::log::{self, Appended, Frame, Kind};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::numbers;
use crate::filesystem::protocol::owner::Owner;
use crate::{Claim, Expected, Json, Key, Result, WriteOptions};
use crate::{record, trace};

pub(crate) fn write(core: &Core, key: &Key, result: &Json, options: &WriteOptions) -> Result<()> {
    let context = Context::new("write", key);
    write_if(core, key, result, &options.resolve_claim(), options, context, || Ok(true)).map(|_| ())
}

pub(crate) fn compare_and_swap(
    core: &Core,
    key: &Key,
    expected: Expected<'_>,
    result: &Json,
    options: &WriteOptions,
) -> Result<bool> {
    let context = Context::new("compare_and_swap", key);
    let claim = options.resolve_claim();
    let is_expected = || {
        let record = record_file::current(core, key, context)?;
        let is_expected = expected.matches(record.as_ref());
        if record.is_none() && !is_expected {
            core.check_exists(context)?;
        }
        Ok(is_expected)
    };
    // Checked first without the latch, because staging a record that will not be published is expensive.
    core.check_writable(context)?;
    Limits::new(options.get_wait()).check_cancelled(context)?;
    admit(core, key, &claim, context)?;
    if is_expected()? && write_if(core, key, result, &claim, options, context, is_expected)? {
        return Ok(true);
    }
    core.wait_until_durable(key, context)?;
    Ok(false)
}

/// Stages the record, and only then enters the latch to check the claim and to publish (I2, I3): slow steps are done
/// before and after. `false`: the condition, checked under the latch, does not hold.
fn write_if(
    core: &Core,
    key: &Key,
    result: &Json,
    claim: &Claim,
    options: &WriteOptions,
    context: Context<'_>,
    condition: impl Fn() -> Result<bool>,
) -> Result<bool> {
    core.check_writable(context)?;
    let limits = Limits::new(options.get_wait());
    limits.check_cancelled(context)?;
    let mut record = StagedRecord::new(core, key, result, options, context)?;
    let latch = core.enter(key, &limits.for_latch(), context)?;
    admit(core, key, claim, context)?;
    if !condition()? {
        return Ok(false);
    }
    let stat = record_file::stat_to_replace(core, key, context)?;
    record.give_version(&latch, stat.as_ref(), context)?;
    let told = record.tell(&latch, context)?;
    let new = New { version: Some(record.version), is_large: record.is_large() };
    let replaced = record.replace(stat, told.is_some(), context);
    let change = Change::settle(core, key, new, told, replaced, context)?;
    drop(latch);
    change.finish(context)?;
    core.checkpoint_if_full();
    evict_in_background(core);
    Ok(true)
}

/// A record that is complete in a file that nobody can see yet.
struct StagedRecord<'a> {
    core: &'a Core,
    key: &'a Key,
    result: &'a Json,
    expiry: Option<Json>,
    version: u64,
    text: Vec<u8>,
    file: Staged<'a>,
    /// Whether the file itself is synced, because the log does not tell its text.
    durability: Durability,
}

impl<'a> StagedRecord<'a> {
    fn new(
        core: &'a Core,
        key: &'a Key,
        result: &'a Json,
        options: &WriteOptions,
        context: Context<'_>,
    ) -> Result<Self> {
        let layout = &core.layout;
        let expiry = options.get_time_to_live().and_then(expiry::starting);
        if expiry.is_some() {
            expiry::announce(layout, context)?;
        }
        let version = numbers::choose_version(core, key);
        let text = record::to_text(key, version, result, expiry.as_ref());
        core.check_size(key, text.len() as u64, context)?;
        let durability = match core.log {
            Some(_) if text.len() > log::MAX_TEXT => Durability::Full,
            Some(_) => Durability::Relaxed,
            None => core.options.durability,
        };
        let (here, name) = (Owner::here(layout, context)?, layout::record_name(key));
        let file = Staged::for_record(layout, &here.name, &name, (version, &text), durability, context)?;
        Ok(Self { core, key, result, expiry, version, text, file, durability })
    }

    /// Whether the record is too large for the log.
    fn is_large(&self) -> bool {
        self.core.log.is_some() && self.text.len() > log::MAX_TEXT
    }

    /// Confirms the version, under the latch. If another write was faster, the record is staged again with the next one.
    fn give_version(&mut self, latch: &Latch, stat: Option<&Stat>, context: Context<'_>) -> Result<()> {
        let Self { core, key, .. } = *self;
        let version = numbers::give_version(core, latch, key, stat, self.version, context)?;
        if version != self.version {
            let text = record::to_text(key, version, self.result, self.expiry.as_ref());
            core.check_size(key, text.len() as u64, context)?;
            self.file.rewrite((version, &text), self.durability, context)?;
            (self.version, self.text) = (version, text);
        }
        Ok(())
    }

    /// Appends the frame that tells the record, under the latch. `None`: the store has no log.
    fn tell(&mut self, latch: &Latch, context: Context<'_>) -> Result<Option<Appended<'a>>> {
        let Self { core, key, version, .. } = *self;
        let Some(log) = &core.log else { return Ok(None) };
        let frame = if self.is_large() {
            // The frame tells only where the text is, so that name has to be on the disk before.
            let name = self.file.name_on_disk(&layout::record_name(key), context)?;
            Frame::new(Kind::Large, version, key, name.as_bytes())
        } else {
            Frame::new(Kind::Record, version, key, &self.text)
        };
        log.append(latch, &core.options, key, &frame, context).map(Some)
    }

    /// Puts the file in the place of the record, under the latch. `stat`: what [`record_file::stat_to_replace`] has just returned, under
    /// the latch too. If the log tells the record, the file may not be synced.
    fn replace(self, mut stat: Option<Stat>, is_told: bool, context: Context<'_>) -> Result<Old> {
        let Self { core, key, mut file, .. } = self;
        let name = layout::record_name(key);
        if stat.is_none() {
            if is_told && let Ok(second) = file.publish_linked(&name) {
                return Ok(Old::Linked(second));
            }
            if !is_told && file.publish_new(&name, context)? {
                return Ok(Old::Examined(Was::Nothing));
            }
            // Another program has just created it.
            stat = record_file::stat_to_replace(core, key, context)?;
        }
        if let Some(stat) = stat
            && let Some(displaced) = file.exchange(&name)
        {
            return Ok(Old::displaced(core, displaced, &stat, context));
        }
        if is_told {
            // Nothing keeps the old file, so the new one has to be on the disk before.
            file.sync(context)?;
        }
        for _ in 0..MAX_ATTEMPTS {
            if let Some(was) = replace_examined(core, &mut file, key, context)? {
                return Ok(Old::Examined(was));
            }
        }
        Err(too_busy(core, &name, context))
    }
}

/// Publishes a staged record where files cannot be exchanged, under the latch. `None`: another program has just put
/// another file there.
fn replace_examined(
    core: &Core,
    file: &mut Staged<'_>,
    key: &Key,
    context: Context<'_>,
) -> Result<Option<Was>> {
    let name = &layout::record_name(key);
    let found = match old_file::examine(core, name, context)? {
        InPlace::Nothing => return Ok(file.publish_new(name, context)?.then_some(Was::Nothing)),
        InPlace::Record(proof, stat) => {
            let is_published = file.rename_over_examined(name, &stat, context)?;
            return Ok(is_published.then_some(Was::Record(proof)));
        }
        InPlace::Other(found) => found,
    };
    // A directory may have appeared.
    record_file::stat_to_replace(core, key, context)?;
    let layout = &core.layout;
    let kept = publish::move_to_damaged(layout, (&layout.dir, name), name, core.options.durability)
        .map_err(|errno| context.io("move aside", &layout.root().join(name), errno))?;
    let published = file.publish_new(name, context);
    // A change that fails has changed nothing.
    if published.is_err() && publish::put_back(layout, &kept, name) {
        return published.map(|_| None);
    }
    trace::set_aside(&layout.private_path(&kept), &found);
    Ok(published?.then_some(Was::Damaged))
}
