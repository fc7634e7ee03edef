//! Writing a record, unconditionally or by compare-and-swap.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::publish::{self, Staged};
use crate::filesystem::disk::{expiry, layout, record_file};
use crate::filesystem::protocol::access::admit;
use crate::filesystem::protocol::latch::Latch;
use crate::filesystem::protocol::owner::Owner;
use crate::record;
use crate::{Claim, Json, Key, Result, WriteOptions};

pub(crate) fn write(core: &Core, key: &Key, result: &Json, options: &WriteOptions) -> Result<()> {
    let context = Context::new("write", key);
    publish_record(core, key, result, &options.resolve_claim(), options, context, || Ok(true)).map(|_| ())
}

pub(crate) fn compare_and_swap(
    core: &Core,
    key: &Key,
    expected: Option<&Json>,
    result: &Json,
    options: &WriteOptions,
) -> Result<bool> {
    let context = Context::new("compare_and_swap", key);
    let claim = options.resolve_claim();
    let is_expected = || {
        let record = record_file::current(core, key, context)?;
        Ok(match (record, expected) {
            (Some(record), Some(expected)) => record.is_same_value(expected),
            (record, expected) => record.is_none() && expected.is_none(),
        })
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
    let (layout, durability) = (&core.layout, core.options.durability);
    let expiry = options.get_time_to_live().and_then(expiry::starting);
    if expiry.is_some() {
        expiry::announce(layout, context)?;
    }
    let text = record::to_text(key, result, expiry.as_ref());
    record_file::check_size(core, key, text.len() as u64, context)?;
    let here = Owner::here(layout, context)?;
    let mark = if expiry.is_some() { expiry::MARK } else { 0 };
    let staged = Staged::new(layout, &here.name, &text, mark, durability, context)?;
    let latch = Latch::enter(layout, key, context)?;
    admit(core, key, claim, context)?;
    if !condition()? {
        return Ok(false);
    }
    staged.publish(&layout::record_name(key), context)?;
    drop(latch);
    core.events.changed(key);
    publish::sync_records(layout, durability, context)?;
    Ok(true)
}
