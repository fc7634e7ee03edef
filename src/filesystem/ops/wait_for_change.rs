//! Watching a record: telling its versions apart, and waiting for the next one.

use std::time::Duration;

use rustix::fs::Stat;

use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::Opened;
use crate::filesystem::disk::{record_file, record_head, record_version};
use crate::filesystem::protocol::lease::Term;
use crate::filesystem::protocol::limits::{Limits, RECHECK_INTERVAL};
use crate::{Key, RecordVersion, Result, WaitOptions};

/// A record, or its absence.
struct Found {
    version: RecordVersion,
    /// The file, unless the record has a time to live. While it is open, no other file has its inode number.
    lasting: Option<Opened>,
    /// The rest of the time to live.
    left: Option<Duration>,
}

const ABSENT: Found = Found { version: RecordVersion::ABSENT, lasting: None, left: None };

/// The present version.
pub(crate) fn version(core: &Core, key: &Key) -> Result<RecordVersion> {
    let context = Context::new("watch", key);
    let found = find(core, key, context)?;
    core.wait_until_durable(key, context)?;
    Ok(found.version)
}

/// The next version after `seen`. `None` at the timeout.
pub(crate) fn wait_for_change(
    core: &Core,
    key: &Key,
    seen: RecordVersion,
    options: &WaitOptions,
) -> Result<Option<RecordVersion>> {
    let context = Context::new("watch", key);
    let limits = Limits::new(options);
    let _wakes = limits.cancellation().map(|cancellation| {
        let (events, key) = (core.events.clone(), key.clone());
        cancellation.on_cancel(move || events.changed(&key))
    });
    let mut attempts: u32 = 0;
    let mut last = ABSENT;
    loop {
        attempts = attempts.saturating_add(1);
        let observed = core.events.observe_record(key);
        // After the observation: a cancellation before it would not end the sleep.
        limits.check_cancelled(context)?;
        if !is_unchanged(core, key, &last, context)? {
            last = find(core, key, context)?;
            if last.version != seen {
                core.wait_until_durable(key, context)?;
                return Ok(Some(last.version));
            }
        }
        let pause = last.left.map_or(RECHECK_INTERVAL, |left| left.min(RECHECK_INTERVAL));
        if limits.is_over() {
            return Ok(None);
        }
        core.events.sleep(observed, limits.cap(pause), attempts);
    }
}

/// The version now, and the rest of the time to live.
pub(super) fn version_and_rest(
    core: &Core,
    key: &Key,
    context: Context<'_>,
) -> Result<(RecordVersion, Option<Duration>)> {
    let found = find(core, key, context)?;
    Ok((found.version, found.left))
}

/// The record now.
fn find(core: &Core, key: &Key, context: Context<'_>) -> Result<Found> {
    let Some(opened) = record_file::open(core, key, context)? else {
        core.check_exists(context)?;
        return Ok(ABSENT);
    };
    // A corrupt record exists nevertheless. A read reports what is wrong with it.
    let head = record_head::read(&opened, core.options.max_record_bytes);
    let version = record_version::of(head.and_then(|head| head.version), &opened.stat);
    Ok(match head.map(|head| head.term) {
        Some(Term::Over) => ABSENT,
        Some(Term::Left(left)) => Found { version, lasting: None, left: Some(left) },
        Some(Term::Unlimited) | None => Found { version, lasting: Some(opened), left: None },
    })
}

/// Whether a `stat` shows that the record is still the one that was found.
fn is_unchanged(core: &Core, key: &Key, found: &Found, context: Context<'_>) -> Result<bool> {
    let Some(opened) = &found.lasting else { return Ok(false) };
    let identity = |stat: &Stat| (stat.st_ino, stat.st_mtime, stat.st_mtime_nsec, stat.st_size);
    let stat = record_file::stat(core, key, context)?;
    Ok(stat.is_some_and(|stat| identity(&stat) == identity(&opened.stat)))
}
