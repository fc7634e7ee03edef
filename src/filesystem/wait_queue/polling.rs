//! Where nothing can wake a sleeper: pauses of growing length, in no order.
#![allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "the Linux implementation needs them")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::Layout;
use crate::{Key, Result, WaiterInfo};

const MIN_PAUSE: Duration = Duration::from_micros(200);
const MAX_PAUSE: Duration = Duration::from_millis(10);

/// The sleepers are not known to each other.
#[derive(Debug)]
pub(crate) struct Events;

/// Nobody has a slot.
pub(crate) enum Waiter {}

/// The waiter whose turn it is at a free key.
pub(crate) enum Turn {
    Ours,
    #[expect(dead_code, reason = "without a queue nobody is first")]
    Other(Duration),
}

#[derive(Clone, Copy)]
pub(crate) struct Observed;

/// Deaths are noticed by checking.
pub(crate) struct DeathReports;

impl DeathReports {
    pub(crate) fn start(_: &Arc<Events>, _: &Key, _: &Arc<Layout>) -> Option<Self> {
        Some(Self)
    }

    #[allow(clippy::unused_self, reason = "the Linux implementation needs it")]
    pub(crate) fn begin_check(&self) {}
}

impl Events {
    pub(crate) fn open(_: &Layout, _writable: bool, _: Context<'_>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self))
    }

    pub(crate) fn open_if_room(layout: &Layout, writable: bool, context: Context<'_>) -> Result<Arc<Self>> {
        Self::open(layout, writable, context)
    }

    pub(crate) fn observe(&self, _: &Key, _: Option<&Waiter>) -> Observed {
        Observed
    }

    pub(crate) fn observe_record(&self, _: &Key) -> Observed {
        Observed
    }

    pub(crate) fn changed(&self, _: &Key) {}

    pub(crate) fn sleep(&self, _: Observed, pause: Duration, attempts: u32) -> bool {
        let longest = MIN_PAUSE.saturating_mul(1 << attempts.min(8)).min(MAX_PAUSE);
        std::thread::sleep(pause.min(longest));
        true
    }

    pub(crate) fn max_sleep(&self, _is_cancellable: bool) -> Duration {
        MAX_PAUSE
    }

    pub(crate) fn enqueue(self: &Arc<Self>, _: &Key, _: &Layout, _: Context<'_>) -> Result<Option<Waiter>> {
        Ok(None)
    }

    /// A pause is short enough.
    pub(crate) fn alarm(self: &Arc<Self>, _: &Key, _: Option<&Waiter>) -> impl FnOnce() + Send + use<> {
        || ()
    }

    pub(crate) fn turn(&self, _: &Key, _: Option<&Waiter>, _: &Layout) -> Turn {
        Turn::Ours
    }

    pub(crate) fn waiters(&self, _: &Key, _: &Layout) -> Option<Vec<WaiterInfo>> {
        None
    }

    pub(crate) fn is_awaited(&self, _: &Key) -> bool {
        false
    }

    pub(crate) fn last_token(&self, _: &Key, _: Context<'_>) -> Result<Option<&AtomicU64>> {
        Ok(None)
    }

    pub(crate) fn last_version(&self, _: &Key) -> Option<&AtomicU64> {
        None
    }

    pub(crate) fn last_numbers(&self, _: u8) -> Option<(u64, u64)> {
        None
    }

    pub(crate) fn freed(&self, _: &Key, _: &Layout) {}

    pub(crate) fn leased(&self, _: &Key, _: Duration, _: Option<&Waiter>) {}

    pub(crate) fn shortened(&self, _: &Key, _: Duration) {}
}

impl Waiter {
    pub(crate) fn is_notified(&self) -> bool {
        match *self {}
    }

    pub(crate) fn will_sleep(&self, _: Duration) {
        match *self {}
    }

    pub(crate) fn complete(self) {
        match self {}
    }
}
