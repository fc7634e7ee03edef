//! Watching a store that reports no changes: its records are listed from time to time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Alarm, CHANGES, SeenRecords};
use crate::{ListOptions, RecordStore, RecordVersion, Result, WaitOptions};

/// The pause between two listings is at least this long.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// It is at least this many times as long as a listing, so that a watch takes at most a twentieth of the time.
pub(crate) const PAUSE_FACTOR: u32 = 20;

/// What a watch keeps between two calls.
struct Polls {
    next: Instant,
}

/// The default of [`RecordStore::changes_raw`].
pub(crate) fn changes<S: RecordStore + ?Sized>(
    store: &S,
    seen: &mut SeenRecords,
    options: &WaitOptions,
) -> Result<bool> {
    let start = Instant::now();
    let deadline = options.get_timeout().and_then(|timeout| start.checked_add(timeout));
    let alarm = Arc::new(Alarm::default());
    let _wakes = options.get_cancellation().map(|cancellation| {
        let alarm = Arc::clone(&alarm);
        cancellation.on_cancel(move || alarm.ring())
    });
    let mut polls = seen.take_state().unwrap_or(Polls { next: start });
    loop {
        if let Some(cancellation) = options.get_cancellation() {
            cancellation.check(CHANGES, None)?;
        }
        let begun = Instant::now();
        if begun >= polls.next {
            list(store, seen).map_err(|error| error.of_operation(CHANGES))?;
            polls.next = Instant::now() + MIN_PAUSE.max(begun.elapsed() * PAUSE_FACTOR);
        }
        let is_first = !seen.has_begun();
        seen.begin();
        let has_changes = seen.has_changes();
        let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_first || has_changes || is_over {
            seen.keep_state(polls);
            return Ok(has_changes);
        }
        alarm.sleep_until(deadline.map_or(polls.next, |deadline| deadline.min(polls.next)));
    }
}

fn list<S: RecordStore + ?Sized>(store: &S, seen: &mut SeenRecords) -> Result<()> {
    seen.begin_listing();
    for record in store.records_raw(ListOptions::new().prefix(seen.options().get_prefix()))? {
        match record {
            Ok(record) => seen.observe(record.key(), record.version()),
            // A read of that record reports it. The listing goes on.
            Err(error) if error.is_no_record() => {}
            Err(error) => return Err(error),
        }
    }
    for key in seen.unlisted() {
        if !store.exists_raw(&key)? {
            seen.observe(&key, RecordVersion::ABSENT);
        }
    }
    Ok(())
}
