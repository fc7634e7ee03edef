//! Telling the waiters for a lock, for people.

use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::Duration;

use serde::Deserialize;

use super::queue::Events;
use super::slots::{SKIPPED, TICKETS_PER_MS, WAITING, is_dead, is_for, slots_in_use};
use crate::filesystem::disk::layout::{self, Layout, OWNERS};
use crate::filesystem::protocol::clock::Reading;
use crate::{Key, WaiterInfo};

impl Events {
    /// The waiters for the lock of a key, the first one first. `None`: the processes share no table.
    pub(crate) fn waiters(&self, key: &Key, layout: &Layout) -> Option<Vec<WaiterInfo>> {
        let table = self.mapping.table()?;
        let waiting = slots_in_use(table).filter_map(|at| {
            let slot = &table.slots[at];
            let is_waiting = || matches!(slot.state.load(Acquire), WAITING..=SKIPPED) && is_for(slot, key);
            let found = (slot.ticket.load(Acquire), is_waiting().then(|| slot.owner())?);
            // It may have left, and another one may have come.
            (is_waiting() && slot.ticket.load(Relaxed) == found.0).then_some(found)
        });
        let mut waiting: Vec<_> = waiting.collect();
        waiting.sort_unstable();
        let alive = waiting.into_iter().filter(|(_, owner)| !is_dead(owner, layout));
        let now = Reading::now().boottime;
        let describe = |(ticket, owner): (u64, String)| {
            // A ticket has the millisecond in which the wait began: its end is taken, so that no time is too long.
            let since = Duration::from_millis(ticket / TICKETS_PER_MS + 1);
            // In another time namespace, the clock may be ahead.
            let waiter = WaiterInfo::new(now.saturating_sub(since));
            match process_of(layout, &owner) {
                Some((process, host)) => waiter.with_process(process, host),
                None => waiter,
            }
        };
        Some(alive.map(describe).collect())
    }
}

/// The number of the process that has this owner file, and its host, if the file says it.
fn process_of(layout: &Layout, owner: &str) -> Option<(u32, Option<String>)> {
    #[derive(Deserialize)]
    struct About {
        host: String,
    }
    let process = owner.split_once('-')?.0.parse().ok()?;
    let opened = layout::open_existing(&layout.private, &format!("{OWNERS}/{owner}")).ok().flatten();
    let text = opened.and_then(|opened| layout::read_up_to(&opened, MAX_ABOUT).ok());
    let about = text.and_then(|text| serde_json::from_slice::<About>(&text).ok());
    Some((process, about.map(|about| about.host)))
}

/// The name of a host is much shorter.
const MAX_ABOUT: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::FileSystemRecordStore;
    use crate::filesystem::context::Context;

    #[test]
    fn a_waiter_has_never_waited_for_longer_than_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let waited = || core.events.waiters(&key, &core.layout).unwrap()[0].waited();
        let begun = Instant::now();
        let _waiter = core.events.enqueue(&key, &core.layout, Context::new("test", &key)).unwrap();
        let queued = Instant::now();
        while queued.elapsed() < Duration::from_millis(20) {
            let waited = waited();
            assert!(waited <= begun.elapsed(), "{waited:?}");
        }
        // The ticket has a millisecond, and its end counts.
        assert!(waited() >= Duration::from_millis(19));
    }
}
