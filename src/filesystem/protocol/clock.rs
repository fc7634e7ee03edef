//! The clocks that leases follow.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::process::PerProcess;

/// One boot of the machine in one time namespace, which may shift the boot clock. Readings of that clock
/// can be compared only within an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub(crate) boot_id: String,
    pub(crate) time_ns: u64,
}

/// One reading of all clocks.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    /// `None` where the system does not identify the boot: then only the wall clock can be used.
    pub(crate) epoch: Option<Arc<Epoch>>,
    /// The time since boot, suspended time included. It cannot be stepped.
    pub(crate) boottime: Duration,
    pub(crate) wall: SystemTime,
}

impl Reading {
    pub(crate) fn now() -> Self {
        Self { epoch: epoch(), boottime: boottime(), wall: SystemTime::now() }
    }
}

/// The cached epoch. A forked child may live in another time namespace.
static EPOCH: PerProcess<Option<Arc<Epoch>>> = PerProcess::new();

fn epoch() -> Option<Arc<Epoch>> {
    let mut cached = EPOCH.lock();
    if cached.is_none() {
        *cached = read_epoch().map(Arc::new);
    }
    cached.clone()
}

#[cfg(target_os = "linux")]
fn read_epoch() -> Option<Epoch> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    // A kernel without time namespaces has one clock for all: zero stands for it.
    let time_ns = std::fs::read_link("/proc/self/ns/time")
        .ok()
        .and_then(|link| link.to_str()?.strip_prefix("time:[")?.strip_suffix(']')?.parse().ok())
        .unwrap_or(0);
    Some(Epoch { boot_id: boot_id.trim().to_owned(), time_ns })
}

#[cfg(not(target_os = "linux"))]
fn read_epoch() -> Option<Epoch> {
    None
}

fn boottime() -> Duration {
    #[cfg(target_os = "linux")]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    // The clock counts up from zero, so no part is negative.
    let time = rustix::time::clock_gettime(CLOCK);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn readings_of_one_process_share_an_epoch_and_only_grow() {
        let (first, second) = (Reading::now(), Reading::now());
        assert!(first.epoch.is_some());
        assert_eq!(first.epoch, second.epoch);
        assert!(first.boottime <= second.boottime);
    }
}
