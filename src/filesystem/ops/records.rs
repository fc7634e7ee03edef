//! Listing the records with what is known of each.

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, Opened};
use crate::filesystem::disk::names::{Entry, Names};
use crate::filesystem::disk::{record_file, record_head, record_version};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::lease::Term;
use crate::{Key, ListOptions, Listing, RecordInfo, Result};

pub(crate) fn records(core: &Core, options: ListOptions) -> Result<Listing<'_, RecordInfo>> {
    let context = Context::whole("records");
    let names = Names::records(&core.layout, context)?;
    let records = names.filter_map(move |entry| {
        let described = entry.and_then(|entry| {
            let found = find(core, entry, options.get_prefix(), context)?;
            let describe = |(key, opened)| describe(core, key, &opened, options.reads_results(), context);
            found.map_or(Ok(None), describe)
        });
        described.transpose()
    });
    Ok(core.listing(records, context))
}

pub(crate) fn record_info(core: &Core, key: &Key) -> Result<Option<RecordInfo>> {
    let context = Context::new("record_info", key);
    let opened = record_file::open(core, key, context)?;
    let info = opened.map_or(Ok(None), |opened| describe(core, key.clone(), &opened, false, context))?;
    if info.is_none() {
        core.check_exists(context)?;
        core.wait_until_durable(key, context)?;
    }
    Ok(info)
}

/// Opens the record, if its key has the prefix. `None`: it has not, or the record was removed meanwhile.
fn find(core: &Core, entry: Entry, prefix: &str, context: Context<'static>) -> Result<Option<(Key, Opened)>> {
    let key = match entry {
        Entry::Literal(key) => key,
        Entry::Hashed(name) => match record_file::key_inside(core, &name, context)? {
            Some(key) => key,
            None => return Ok(None),
        },
    };
    if !key.as_str().starts_with(prefix) {
        return Ok(None);
    }
    let opened = record_file::open(core, &key, Context::new(context.operation, &key))?;
    Ok(opened.map(|opened| (key, opened)))
}

/// `None`: the record has expired.
fn describe(
    core: &Core,
    key: Key,
    opened: &Opened,
    reads_result: bool,
    context: Context<'_>,
) -> Result<Option<RecordInfo>> {
    let context = Context::new(context.operation, &key);
    let head = if reads_result { None } else { record_head::read(opened, core.options.max_record_bytes) };
    let (version, term, result) = if let Some(head) = head {
        (record_version::of(head.version, &opened.stat), head.term, None)
    } else {
        // The whole file, which also says why it has no head.
        let (record, expiry) = record_file::read(core, &key, opened, context)?;
        let term = expiry.map_or(Term::Unlimited, |expiry| expiry.term(&Reading::now()));
        (record.version, term, reads_result.then_some(record.json))
    };
    if term == Term::Over {
        return Ok(None);
    }
    core.wait_until_durable(&key, context)?;
    let (size, modified) = (layout::size(&opened.stat), layout::modified(&opened.stat));
    let info = RecordInfo::new(key, version, size, modified).with_time_left(term.left());
    Ok(Some(match result {
        Some(result) => info.with_result(result),
        None => info,
    }))
}
