//! Waiting on futexes in a mapped table, with reports of dead processes by `inotify`.

mod deaths;
mod queue;
mod slots;
mod table;
mod waiters;

use std::sync::Arc;

use crate::Key;
use crate::filesystem::disk::layout::Layout;

pub(crate) use deaths::DeathReports;
pub(crate) use queue::{Events, Turn, Waiter};

impl DeathReports {
    /// Starts to notify the waiters for this key of the end of processes, as long as the value exists.
    /// `None`: the system refuses. Then they notice a death at their next check.
    pub(crate) fn start(events: &Arc<Events>, key: &Key, layout: &Arc<Layout>) -> Option<Self> {
        let target = (layout.identity, key.clone());
        let can_be_missed = events.is_read_only();
        let (events, key, of) = (Arc::clone(events), key.clone(), Arc::clone(layout));
        let call = Arc::new(move || events.freed(&key, &of));
        deaths::start(layout, target, deaths::Notify { call, can_be_missed })
    }
}
