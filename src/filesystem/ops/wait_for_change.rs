//! Watching a record: telling its versions apart, and waiting for the next one.

use std::time::Duration;

use rustix::fs::Stat;

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::{expiry, layout, record_file};
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::{Limits, RECHECK_INTERVAL};
use crate::record;
use crate::{Key, RecordVersion, Result, WaitOptions};

/// The present version.
pub(crate) fn version(core: &Core, key: &Key) -> Result<RecordVersion> {
    Ok(current_version(core, key, Context::new("watch", key))?.0)
}

/// The next version after `seen`. `None` at the timeout.
pub(crate) fn wait_for_change(
    core: &Core,
    key: &Key,
    seen: &RecordVersion,
    options: &WaitOptions,
) -> Result<Option<RecordVersion>> {
    let context = Context::new("watch", key);
    let limits = Limits::new(options);
    let _wakes = limits.cancellation().map(|cancellation| {
        let (events, key) = (core.events.clone(), key.clone());
        cancellation.on_cancel(move || events.changed(&key))
    });
    let mut attempts: u32 = 0;
    loop {
        attempts = attempts.saturating_add(1);
        let observed = core.events.observe_record(key);
        // After the observation: a cancellation before it would not end the sleep.
        limits.check_cancelled(context)?;
        let mut pause = RECHECK_INTERVAL;
        if !is_as_seen(core, key, seen, context)? {
            let (version, left) = current_version(core, key, context)?;
            if version != *seen {
                return Ok(Some(version));
            }
            pause = left.map_or(pause, |left| left.min(pause));
        }
        if limits.is_over() {
            return Ok(None);
        }
        core.events.sleep(observed, limits.cap(pause), attempts);
    }
}

/// The record's version, and the rest of its time to live.
///
/// Each version is a file of its own. It is kept open while the version is remembered, so that no later
/// version gets its inode number.
fn current_version(
    core: &Core,
    key: &Key,
    context: Context<'_>,
) -> Result<(RecordVersion, Option<Duration>)> {
    let Some(opened) = record_file::open(core, key, context)? else {
        return Ok((RecordVersion::absent(), None));
    };
    let mut left = None;
    if expiry::is_marked(&opened.stat) {
        let text = layout::read_up_to(&opened, core.options.max_record_bytes)
            .map_err(|error| context.io("read the record", &core.layout.record_path(key), error))?;
        // A corrupt record exists nevertheless. A read reports what is wrong with it.
        match record::parse(&text).and_then(|parsed| expiry::term(&parsed)) {
            Ok(Term::Over) => return Ok((RecordVersion::absent(), None)),
            Ok(Term::Left(time)) => left = Some(time),
            Ok(Term::Unlimited) | Err(_) => {}
        }
    }
    Ok((RecordVersion::new(numbers(&opened.stat)).keeping(opened.file), left))
}

/// Whether a `stat` shows that the version is still `seen`. A record that may expire needs a closer check.
fn is_as_seen(core: &Core, key: &Key, seen: &RecordVersion, context: Context<'_>) -> Result<bool> {
    Ok(match record_file::stat(core, key, context)? {
        Some(stat) => !expiry::is_marked(&stat) && seen.numbers() == Some(numbers(&stat)),
        None => seen.is_absent(),
    })
}

/// Two files that exist at the same time differ in the first number, and a file that was changed in place
/// in the others.
#[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
fn numbers(stat: &Stat) -> [u64; 4] {
    let positive = |number: i64| u64::try_from(number).unwrap_or(0);
    [
        stat.st_ino.into(),
        positive(stat.st_mtime.into()),
        u64::try_from(stat.st_mtime_nsec).unwrap_or(0),
        positive(stat.st_size),
    ]
}
