//! Writing a record, unconditionally or by compare-and-swap.

use super::change::Change;
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::publish::Staged;
use crate::filesystem::disk::{expiry, layout, old_file, record_file};
use crate::filesystem::log::{self, Appended, Frame, Kind};
use crate::filesystem::options::Durability;
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::limits::Limits;
use crate::filesystem::protocol::owner::Owner;
use crate::filesystem::protocol::version_choice;
use crate::record;
use crate::{Claim, Expected, Json, Key, Result, WriteOptions};

pub(crate) fn write(core: &Core, key: &Key, result: &Json, options: &WriteOptions) -> Result<()> {
    let context = Context::new("write", key);
    publish_record(core, key, result, &options.resolve_claim(), options, context, || Ok(true)).map(|_| ())
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
    admit(core, key, &claim, context)?;
    if is_expected()? && publish_record(core, key, result, &claim, options, context, is_expected)? {
        return Ok(true);
    }
    core.wait_until_durable(key, context)?;
    Ok(false)
}

/// Stages the record, and only then enters the latch to check the claim and to publish (I2, I3): slow steps are done
/// before and after. `false`: the condition, checked under the latch, does not hold.
fn publish_record(
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
    let layout = &core.layout;
    let expiry = options.get_time_to_live().and_then(expiry::starting);
    if expiry.is_some() {
        expiry::announce(layout, context)?;
    }
    let chosen = version_choice::choose(core, key);
    let text = record::to_text(key, chosen, result, expiry.as_ref());
    record_file::check_size(core, key, text.len() as u64, context)?;
    let here = Owner::here(layout, context)?;
    let mut record = Staging::new(core, key, (chosen, text), &here.name, context)?;
    let latch = core.enter(key, &limits.for_latch(), context)?;
    admit(core, key, claim, context)?;
    if !condition()? {
        return Ok(false);
    }
    let stat = old_file::stat(core, key, context)?;
    let version = version_choice::give(core, &latch, key, stat.as_ref(), chosen, context)?;
    if version != chosen {
        record.rewrite(version, record::to_text(key, version, result, expiry.as_ref()), context)?;
    }
    let told = record.tell(&latch, version, context)?;
    let (is_told, is_large) = (told.is_some(), record.is_large());
    let staged = record.staged;
    let replace = || old_file::replace(core, staged, key, stat, is_told, context);
    let change = Change::make(core, key, told, is_large, context, replace)?;
    drop(latch);
    change.finish(Some(version), context)?;
    core.checkpoint_if_full();
    Ok(true)
}

/// A staged record.
struct Staging<'a> {
    core: &'a Core,
    key: &'a Key,
    text: Vec<u8>,
    staged: Staged<'a>,
    /// Whether the file itself is synced, because the log does not tell its text.
    durability: Durability,
}

impl<'a> Staging<'a> {
    fn new(
        core: &'a Core,
        key: &'a Key,
        (version, text): (u64, Vec<u8>),
        owner: &str,
        context: Context<'_>,
    ) -> Result<Self> {
        let durability = match core.log {
            Some(_) if text.len() > log::MAX_TEXT => Durability::Full,
            Some(_) => Durability::Relaxed,
            None => core.options.durability,
        };
        let name = layout::record_name(key);
        let staged = Staged::for_record(&core.layout, owner, &name, (version, &text), durability, context)?;
        Ok(Self { core, key, text, staged, durability })
    }

    /// Whether the record is too large for the log.
    fn is_large(&self) -> bool {
        self.core.log.is_some() && self.text.len() > log::MAX_TEXT
    }

    /// Replaces the text by one with another version.
    fn rewrite(&mut self, version: u64, text: Vec<u8>, context: Context<'_>) -> Result<()> {
        record_file::check_size(self.core, self.key, text.len() as u64, context)?;
        self.staged.rewrite((version, &text), self.durability, context)?;
        self.text = text;
        Ok(())
    }

    /// Appends the frame that tells the record, under the latch. `None`: the store has no log.
    fn tell(&mut self, latch: &Latch, version: u64, context: Context<'_>) -> Result<Option<Appended<'a>>> {
        let Some(log) = &self.core.log else { return Ok(None) };
        let (_layout, key) = (&self.core.layout, self.key);
        if !self.is_large() {
            return log
                .append(
                    latch,
                    &self.core.options,
                    key,
                    &Frame::new(Kind::Record, version, key, &self.text),
                    context,
                )
                .map(Some);
        }
        // The frame tells only where the text is, so that name has to be on the disk before.
        let name = self.staged.name_on_disk(&layout::record_name(key), context)?;
        log.append(
            latch,
            &self.core.options,
            key,
            &Frame::new(Kind::Large, version, key, name.as_bytes()),
            context,
        )
        .map(Some)
    }
}
