//! The version that a write gives to its record: greater than every earlier one that was given under the same
//! latch.
//!
//! It is chosen before the latch is entered, because it is a part of the staged text. Under the latch it is compared
//! with the last one, and replaced if another write was faster. The last one is in the memory that the store's
//! processes share. If that is lost, the file in the place of the record has it; and if that is lost too, the clock is
//! ahead of it, as for tokens.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustix::fs::Stat;

use super::latch::{Latch, next_number};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::record_version::valid;
use crate::filesystem::disk::{layout, record_head};
use crate::{Key, Result};

/// A version that is probably greater than all earlier ones.
pub(crate) fn choose(core: &Core, key: &Key) -> u64 {
    choose_after(core.last_version(key), core.number_floor(), SystemTime::now())
}

fn choose_after(shared: Option<&AtomicU64>, floor: u64, clock: SystemTime) -> u64 {
    let last = shared.map_or(0, |shared| shared.load(Ordering::Relaxed));
    // A store in which none is left starts again: it stays usable.
    next_number(last, floor, clock).or_else(|| next_number(0, 0, clock)).unwrap_or(1)
}

/// Gives the chosen version, or the next one if the chosen one is not greater than the last one. `stat`: the file in the
/// place of the record. If this process is killed before it publishes the record, a number is lost, and none is used
/// twice.
pub(crate) fn give(
    core: &Core,
    latch: &Latch,
    key: &Key,
    stat: Option<&Stat>,
    chosen: u64,
    context: Context<'_>,
) -> Result<u64> {
    let shared = core.last_version(key);
    let version = confirm(chosen, last(core, key, shared, stat, chosen));
    core.reserve_number(latch, key, version, context)?;
    if let Some(shared) = shared {
        shared.store(version, Ordering::Relaxed);
    }
    Ok(version)
}

/// The chosen version if it is greater than the last one, or else the next one.
fn confirm(chosen: u64, last: u64) -> u64 {
    next_number(last, 0, SystemTime::UNIX_EPOCH).map_or(chosen, |next| next.max(chosen))
}

/// The last version, under the latch.
///
/// The file can have a greater version than the shared number, for example after a restart of the machine. While the
/// clock is right, the chosen version is greater than both. So the file is read only if there is no shared number, or
/// if the file is from the future, because the clock was set back.
fn last(core: &Core, key: &Key, shared: Option<&AtomicU64>, stat: Option<&Stat>, chosen: u64) -> u64 {
    let shared = valid(shared.map(|shared| shared.load(Ordering::Relaxed)));
    let file =
        stat.filter(|stat| shared.is_none() || modified(stat) > chosen).and_then(|_| in_file(core, key));
    shared.max(file).unwrap_or(0)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::filesystem::disk::lock_file::MAX_TOKEN;

    fn at(micros: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_micros(micros)
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
