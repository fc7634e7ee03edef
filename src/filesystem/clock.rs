//! What time it is, on the clocks that leases are kept by.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::per_process::PerProcess;

/// Between two readings of one epoch the boot clock can be compared: one boot of the machine, and
/// one time namespace, which may shift that clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) boot_id: String,
    pub(super) time_ns: u64,
}

/// One reading of all clocks.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    /// `None` where the system does not tell one boot from another: only the wall clock is left.
    pub(super) epoch: Option<Arc<Epoch>>,
    /// Time since boot, suspension included. No one can step it.
    pub(super) boottime: Duration,
    pub(super) wall: SystemTime,
}

impl Reading {
    pub(super) fn now() -> Self {
        Self { epoch: epoch(), boottime: boottime(), wall: SystemTime::now() }
    }
}

/// The epoch, once it was read. A forked child may live in another time namespace.
static EPOCH: PerProcess<Option<Arc<Epoch>>> = PerProcess::new();

fn epoch() -> Option<Arc<Epoch>> {
    let mut known = EPOCH.lock();
    if known.is_none() {
        *known = read_epoch().map(Arc::new);
    }
    known.clone()
}

#[cfg(target_os = "linux")]
fn read_epoch() -> Option<Epoch> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    // A kernel without time namespaces has only the one: zero.
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
    // The clock counts up from zero: neither part is ever negative.
    let time = rustix::time::clock_gettime(CLOCK);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn readings_of_one_process_share_an_epoch_and_go_forward() {
        let (first, second) = (Reading::now(), Reading::now());
        assert!(first.epoch.is_some());
        assert_eq!(first.epoch, second.epoch);
        assert!(first.boottime <= second.boottime);
    }
}
