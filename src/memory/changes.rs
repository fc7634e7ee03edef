//! Watching the whole store: each change notes its key for each watch.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::MemoryRecordStore;
use super::state::{Changed, State};
use crate::changes::{CHANGES, Expiries};
use crate::process::ProcessId;
use crate::{RecordVersion, Result, SeenRecords, WaitOptions};

/// The part of a watch that is known to the store, until this is dropped.
struct Watch {
    store: MemoryRecordStore,
    number: u64,
    /// A forked child has a store without this number.
    process: ProcessId,
    expiries: Expiries<Instant>,
}

impl Watch {
    fn new(store: &MemoryRecordStore) -> Self {
        let mut state = store.state();
        state.last_watch += 1;
        let (number, process) = (state.last_watch, ProcessId::current());
        Self { store: store.clone(), number, process, expiries: Expiries::new() }
    }

    /// Looks at the records that have changed. The first time these are all records.
    fn look(&mut self, state: &mut State, seen: &mut SeenRecords, now: Instant) {
        let mut changed = if let Some(changed) = state.watches.get_mut(&self.number) {
            std::mem::take(&mut changed.keys)
        } else {
            let prefix = seen.options().get_prefix().to_owned();
            state.watches.insert(self.number, Changed { prefix, keys: BTreeSet::new() });
            seen.begin_listing();
            let known = seen.unlisted();
            state.records.keys().cloned().chain(known).filter(|key| seen.selects(key)).collect()
        };
        while let Some(key) = self.expiries.take_expired(now) {
            changed.insert(key);
        }
        for key in changed {
            let record = state.record(&key);
            self.expiries.set(&key, record.and_then(|record| record.expires));
            seen.observe(&key, record.map_or(RecordVersion::ABSENT, |record| record.raw.version));
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.process.is_here() {
            self.store.state().watches.remove(&self.number);
        }
    }
}

pub(super) fn changes(
    store: &MemoryRecordStore,
    seen: &mut SeenRecords,
    options: &WaitOptions,
) -> Result<bool> {
    let start = Instant::now();
    let is_ours = |watch: &Watch| watch.process.is_here() && Arc::ptr_eq(&watch.store.0, &store.0);
    let kept = seen.take_state().filter(is_ours);
    let mut watch = kept.unwrap_or_else(|| Watch::new(store));
    let _wakes = options.get_cancellation().map(|it| it.on_cancel(store.alarm()));
    let deadline = options.get_timeout().and_then(|timeout| start.checked_add(timeout));
    let mut state = store.state();
    let outcome = loop {
        let cancelled = options.get_cancellation().map(|cancellation| cancellation.check(CHANGES, None));
        if let Some(Err(error)) = cancelled {
            break Err(error);
        }
        let now = Instant::now();
        watch.look(&mut state, seen, now);
        let is_first = !seen.has_begun();
        seen.begin();
        let has_changes = seen.has_changes();
        if is_first || has_changes || deadline.is_some_and(|deadline| now >= deadline) {
            break Ok(has_changes);
        }
        let changed = Arc::clone(&state.changed);
        state = match deadline.into_iter().chain(watch.expiries.next()).min() {
            None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let pause = until.saturating_duration_since(now);
                changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner).0
            }
        };
    };
    // A watch that is dropped locks the state.
    drop(state);
    seen.keep_state(watch);
    outcome
}
