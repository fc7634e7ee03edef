//! Writing a record, unconditionally or by compare-and-swap.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::disk::{expiry, layout, old_file, record_file};
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
    Ok(is_expected()? && publish_record(core, key, result, &claim, options, context, is_expected)?)
}

/// Stages and syncs the record, and only then enters the latch to check the claim and to publish (I2, I3):
/// slow steps are done before. `false`: the condition, checked under the latch, does not hold.
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
    let (layout, durability) = (&core.layout, core.options.durability);
    let expiry = options.get_time_to_live().and_then(expiry::starting);
    if expiry.is_some() {
        expiry::announce(layout, context)?;
    }
    let last_version = core.events.last_version(key);
    let chosen = version_choice::choose(last_version, SystemTime::now());
    let text = record::to_text(key, chosen, result, expiry.as_ref());
    record_file::check_size(core, key, text.len() as u64, context)?;
    let here = Owner::here(layout, context)?;
    let name = layout::record_name(key);
    let staged = Staged::for_record(layout, &here.name, &name, &text, durability, context)?;
    let latch = Latch::enter(layout, key, &limits.for_latch(), context)?;
    admit(core, key, claim, context)?;
    if !condition()? {
        return Ok(false);
    }
    let stat = old_file::stat(core, key, context)?;
    let last = version_choice::last(core, key, last_version, stat.as_ref(), chosen);
    let version = version_choice::confirm(chosen, last);
    if version != chosen {
        let text = record::to_text(key, version, result, expiry.as_ref());
        record_file::check_size(core, key, text.len() as u64, context)?;
        staged.rewrite(&text, durability, context)?;
    }
    // Before it is published: if this process is killed in between, a number is lost, and none is used twice.
    if let Some(last_version) = last_version {
        last_version.store(version, Ordering::Relaxed);
    }
    let old = old_file::replace(core, staged, key, stat, context)?;
    drop(latch);
    core.events.changed(key);
    old.settle(core, context);
    publish::sync_records(layout, durability, context)?;
    Ok(true)
}
