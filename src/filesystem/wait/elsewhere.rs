//! Where there is nothing to be woken by: sleepers take naps of growing length, in no order.
#![allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "on Linux there is something to it")]

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::filesystem::layout::{Context, Layout};
use crate::{Key, Result};

const FIRST_NAP: Duration = Duration::from_micros(200);
const LONGEST_NAP: Duration = Duration::from_millis(10);

/// Nothing is known of others who sleep.
#[derive(Debug)]
pub(in crate::filesystem) struct Events;

/// Nobody has a place.
pub(in crate::filesystem) enum Place {}

/// Whose turn it is at a free key.
pub(in crate::filesystem) enum Turn {
    Ours,
    #[expect(dead_code, reason = "nobody is first where there is no line")]
    Anothers(Duration),
}

#[derive(Clone, Copy)]
pub(in crate::filesystem) struct Seen;

/// Deaths are found out by looking.
pub(in crate::filesystem::wait) struct Report;

impl Events {
    pub(in crate::filesystem) fn open(_: &Layout, _writable: bool, _: Context<'_>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self))
    }

    pub(in crate::filesystem) fn observe(&self, _: &Key, _: Option<&Place>) -> Seen {
        Seen
    }

    pub(in crate::filesystem) fn observe_record(&self, _: &Key) -> Seen {
        Seen
    }

    pub(in crate::filesystem) fn changed(&self, _: &Key) {}

    pub(in crate::filesystem) fn sleep(&self, _: Seen, pause: Duration, rounds: u32) -> bool {
        let nap = FIRST_NAP.saturating_mul(1 << rounds.min(8)).min(LONGEST_NAP);
        std::thread::sleep(pause.min(nap));
        true
    }

    pub(in crate::filesystem) fn join(
        self: &Arc<Self>,
        _: &Key,
        _: &Layout,
        _: Context<'_>,
    ) -> Result<Option<Place>> {
        Ok(None)
    }

    /// A nap is short enough.
    pub(in crate::filesystem::wait) fn alarm(
        self: &Arc<Self>,
        _: &Key,
        _: Option<&Place>,
    ) -> impl FnOnce() + Send + use<> {
        || ()
    }

    pub(in crate::filesystem) fn turn(&self, _: &Key, _: Option<&Place>, _: &Layout) -> Turn {
        Turn::Ours
    }

    pub(in crate::filesystem) fn is_awaited(&self, _: &Key) -> bool {
        false
    }

    pub(in crate::filesystem) fn last_token(&self, _: &Key) -> Option<&AtomicU64> {
        None
    }

    pub(in crate::filesystem) fn freed(&self, _: &Key, _: &Layout) {}

    pub(in crate::filesystem::wait) fn report_deaths(
        self: &Arc<Self>,
        _: &Key,
        _: &Arc<Layout>,
    ) -> Option<Report> {
        Some(Report)
    }
}

impl Place {
    pub(in crate::filesystem) fn is_called(&self) -> bool {
        match *self {}
    }

    pub(in crate::filesystem::wait) fn leave_served(self) {
        match self {}
    }
}
