//! The clocks that leases follow.

use std::cell::OnceCell;
use std::time::{Duration, SystemTime};

#[cfg(target_os = "linux")]
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
    /// Read when it is needed. `None` where the system does not identify the boot: then only the wall clock can
    /// be used.
    pub(crate) epoch: OnceCell<Option<Epoch>>,
    /// The time since boot, suspended time included. It cannot be stepped.
    pub(crate) boottime: Duration,
    pub(crate) wall: SystemTime,
}

impl Reading {
    pub(crate) fn now() -> Self {
        Self { epoch: OnceCell::new(), boottime: boottime(), wall: SystemTime::now() }
    }

    pub(crate) fn epoch(&self) -> Option<&Epoch> {
        self.epoch.get_or_init(read_epoch).as_ref()
    }
}

/// The boot id, which never changes.
#[cfg(target_os = "linux")]
static BOOT_ID: PerProcess<Option<String>> = PerProcess::new();

/// The time namespace is not cached: a process can enter another one.
#[cfg(target_os = "linux")]
fn read_epoch() -> Option<Epoch> {
    let boot_id = {
        let mut cached = BOOT_ID.lock();
        if cached.is_none() {
            let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            *cached = Some(boot_id.trim().to_owned());
        }
        cached.clone()?
    };
    // A kernel without time namespaces has one clock for all: zero stands for it.
    let time_ns = std::fs::read_link("/proc/self/ns/time")
        .ok()
        .and_then(|link| link.to_str()?.strip_prefix("time:[")?.strip_suffix(']')?.parse().ok())
        .unwrap_or(0);
    Some(Epoch { boot_id, time_ns })
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
        assert!(first.epoch().is_some());
        assert_eq!(first.epoch(), second.epoch());
        assert!(first.boottime <= second.boottime);
    }
}
