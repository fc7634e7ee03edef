//! Tokens and versions: numbers that only grow per key.
//!
//! The last one that was given under a latch is in the memory that the store's processes share. If there is none, the last
//! token is in the latch file, and the version in the file in the place of the record. All of these may be lost. So a
//! number is also at least the wall clock in microseconds: no latch gives a million numbers per second, so the clock is
//! ahead of every lost one. A store with a commit log relies on no clock: after a power loss, its numbers continue from one
//! that is on the disk.
//!
//! The version of a record is chosen before the latch is entered, because it is a part of the staged text. Under the latch
//! it is compared with the last one, and replaced if another write was faster.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::Stat;

use super::latch::{self, Latch};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::lock_file::MAX_TOKEN;
use crate::filesystem::disk::record_version::valid;
use crate::filesystem::disk::{layout, record_head};
use crate::{ErrorKind, Key, LockToken, Result};

/// Gives the next token: greater than every earlier one, `last` included, which the lock file contains.
pub(crate) fn next_token(
    core: &Core,
    latch: &Latch,
    key: &Key,
    last: LockToken,
    context: Context<'_>,
) -> Result<LockToken> {
    let shared = match &core.log {
        Some(log) => Some(&log.words(key).token),
        None => core.events.last_token(key, context)?,
    };
    let last_here = match shared {
        Some(shared) => shared.load(Ordering::Relaxed),
        None => latch.count(&core.layout, context)?,
    };
    let token = next(last_here, last.get().max(floor(core)), SystemTime::now()).ok_or_else(|| {
        let path = core.layout.private_path(&latch::name_of(key));
        context.error(ErrorKind::CorruptStore).with_detail("no token is left").with_path(path)
    })?;
    reserve(core, latch, key, token, context)?;
    match shared {
        Some(shared) => shared.store(token, Ordering::Relaxed),
        None => latch.set_count(token, &core.layout, context)?,
    }
    Ok(LockToken::new(token))
}

/// A version that is probably greater than all earlier ones.
pub(crate) fn choose_version(core: &Core, key: &Key) -> u64 {
    choose_after(shared_version(core, key), floor(core), SystemTime::now())
}

fn choose_after(shared: Option<&AtomicU64>, floor: u64, clock: SystemTime) -> u64 {
    let last = shared.map_or(0, |shared| shared.load(Ordering::Relaxed));
    // A store in which none is left starts again: it stays usable.
    next(last, floor, clock).or_else(|| next(0, 0, clock)).unwrap_or(1)
}

/// Gives the chosen version, or the next one if the chosen one is not greater than the last one. `stat`: the file in the
/// place of the record. If this process is killed before it publishes the record, a number is lost, and none is used
/// twice.
pub(crate) fn give_version(
    core: &Core,
    latch: &Latch,
    key: &Key,
    stat: Option<&Stat>,
    chosen: u64,
    context: Context<'_>,
) -> Result<u64> {
    let shared = shared_version(core, key);
    let version = confirm(chosen, last_version(core, key, shared, stat, chosen));
    reserve(core, latch, key, version, context)?;
    if let Some(shared) = shared {
        shared.store(version, Ordering::Relaxed);
    }
    Ok(version)
}

/// The chosen version if it is greater than the last one, or else the next one.
fn confirm(chosen: u64, last: u64) -> u64 {
    next(last, 0, SystemTime::UNIX_EPOCH).map_or(chosen, |next| next.max(chosen))
}

/// The last version, under the latch.
///
/// The file can have a greater version than the shared number, for example after a restart of the machine. While the
/// clock is right, the chosen version is greater than both. So the file is read only if there is no shared number, or
/// if the file is from the future, because the clock was set back.
fn last_version(core: &Core, key: &Key, shared: Option<&AtomicU64>, stat: Option<&Stat>, chosen: u64) -> u64 {
    let shared = valid(shared.map(|shared| shared.load(Ordering::Relaxed)));
    let file =
        stat.filter(|stat| shared.is_none() || modified(stat) > chosen).and_then(|_| in_file(core, key));
    shared.max(file).unwrap_or(0)
}

/// The last version given to a record under the key's latch. Changed only under that latch. `None`: the processes share no
/// memory.
fn shared_version<'a>(core: &'a Core, key: &Key) -> Option<&'a AtomicU64> {
    match &core.log {
        Some(log) => Some(&log.words(key).version),
        None => core.events.last_version(key),
    }
}

/// When the file was written, as a version.
#[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
fn modified(stat: &Stat) -> u64 {
    let (seconds, nanos): (i64, i64) = (stat.st_mtime.into(), i64::try_from(stat.st_mtime_nsec).unwrap_or(0));
    u64::try_from(seconds.saturating_mul(1_000_000).saturating_add(nanos / 1_000)).unwrap_or(0)
}

/// The version of the file in the place of the record. One that cannot be read has none. If the file is damaged, its
/// head is not verified, but nothing else says a better number.
fn in_file(core: &Core, key: &Key) -> Option<u64> {
    let opened = layout::open_existing(&core.layout.dir, &layout::record_name(key)).ok().flatten()?;
    valid(record_head::read(&opened, core.options.max_record_bytes)?.version)
}

/// Numbers that may have been given before a restart of the machine are not greater.
fn floor(core: &Core) -> u64 {
    core.log.as_ref().map_or(0, |log| log.floor())
}

/// Makes sure that a power loss does not let this number be given again. Called before it can be seen.
fn reserve(core: &Core, latch: &Latch, key: &Key, number: u64, context: Context<'_>) -> Result<()> {
    let Some(log) = &core.log else { return Ok(()) };
    log.reserve_number(latch, &core.options, key, number, context)
}

/// The least token or version that is greater than `last` and `floor`, and not behind the clock. `None`: there is
/// none left. An impossible last number counts as lost.
fn next(last: u64, floor: u64, clock: SystemTime) -> Option<u64> {
    let last = if last <= MAX_TOKEN { last } else { 0 };
    let clock = clock.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros();
    // A wrong clock must not use up the tokens.
    let clock = u64::try_from(clock).unwrap_or(u64::MAX).min(MAX_TOKEN / 2);
    let next = (last + 1).max(floor.checked_add(1)?).max(clock);
    (next <= MAX_TOKEN).then_some(next)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(micros: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
    }

    #[test]
    fn tokens_and_versions_only_grow() {
        assert_eq!(next(0, 0, at(1_000)), Some(1_000), "also when the last one is lost");
        assert_eq!(next(2_000, 0, at(1_000)), Some(2_001), "also when the clock is stepped back");
        assert_eq!(next(0, 3_000, at(1_000)), Some(3_001), "also when only the lock file has it");
        assert_eq!(next(u64::MAX, 0, at(1_000)), Some(1_000), "garbage is no token");
        assert_eq!(next(0, 0, at(MAX_TOKEN * 9)), Some(MAX_TOKEN / 2), "some are left");
        assert_eq!(next(MAX_TOKEN - 1, 0, at(0)), Some(MAX_TOKEN));
        assert_eq!(next(MAX_TOKEN, 0, at(0)), None);
        assert_eq!(next(0, u64::MAX, at(0)), None);
    }

    #[test]
    fn a_version_is_chosen_after_the_last_one_and_after_the_clock() {
        let choose = |last, clock| choose_after(Some(&AtomicU64::new(last)), 0, at(clock));
        assert_eq!(choose(0, 1_000), 1_000);
        assert_eq!(choose(2_000, 1_000), 2_001, "also when the clock is stepped back");
        assert_eq!(choose(u64::MAX, 1_000), 1_000, "garbage is no version");
        assert_eq!(choose(MAX_TOKEN, 1_000), 1_000, "the store stays usable");
        assert_eq!(choose_after(None, 0, at(1_000)), 1_000);
    }

    #[test]
    fn of_two_concurrent_writes_the_later_one_has_the_greater_version() {
        let (earlier, later) = (choose_after(None, 0, at(1_000)), choose_after(None, 0, at(2_000)));
        // The one that chose later is faster.
        let published = confirm(later, 500);
        assert_eq!(published, 2_000);
        assert_eq!(confirm(earlier, published), 2_001);
        assert_eq!(confirm(published, published), 2_001, "two that chose the same");
        assert_eq!(confirm(1_000, u64::MAX), 1_000, "garbage is no version");
        assert_eq!(confirm(1_000, MAX_TOKEN), 1_000, "the store stays usable");
    }
}
