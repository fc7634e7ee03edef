//! The waiters for a lock, their order, and whose turn it is.
//!
//! The order is best effort. The latch alone ensures that there is one holder, whatever this table says. So
//! every change is a single atomic step, and no step relies on another process completing its own:
//!
//! * A killed waiter is recognized by its owner file. The process that finds it frees its slot, and a process
//!   that finds no free slot searches for such waiters.
//! * A stopped waiter is notified, has [`GRACE`] to react, and is then skipped until it observes its slot
//!   again.
//! * A waiter that times out leaves and notifies the next one, in case that it had been notified itself.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;

use super::slots::{
    FREE, GRACE, NOTIFIED, SKIPPED, WAITING, claim_of, first_living, first_of, free_all_dead, grace_left,
    is_for, mark_in_use, notify, notify_first, notify_next, slots_in_use, take_slot, take_ticket, to_ms,
    unmark_in_use,
};
use super::table::{Mapping, Slot, Table};
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::{EVENTS, Layout};
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch;
use crate::filesystem::protocol::limits::RECHECK_INTERVAL;
use crate::filesystem::protocol::owner::Owner;
use crate::process::ProcessId;
use crate::{Key, Result};

/// The time until which a waiter sleeps, while it checks how long that is: later than any other.
const UNKNOWN: u64 = u64::MAX;

/// There are watchers of records of the latch.
const WATCHED: u32 = 1;

/// The sleepers of a store, in all its processes.
#[derive(Debug)]
pub(crate) struct Events {
    pub(super) mapping: Mapping,
    /// Why the table could not be created, for want of room.
    refused: Option<(PathBuf, io::ErrorKind)>,
}

/// A slot in the wait queue for one key. Dropping it leaves the queue.
pub(crate) struct Waiter {
    events: Arc<Events>,
    key: Key,
    slot: usize,
    /// It was its turn at the last observation.
    notified: Cell<bool>,
    /// A forked child has a copy of this value, but not the slot.
    process: ProcessId,
    completed: bool,
}

/// The waiter whose turn it is at a free key.
pub(crate) enum Turn {
    Ours,
    /// Another waiter's, which has this much time left to react.
    Other(Duration),
}

/// The word to sleep on, and its value before the check of the files.
#[derive(Clone, Copy)]
pub(crate) enum Observed {
    Slot(usize),
    Freed(u8, u32),
    Changed(u8, u32),
    /// There is no word to sleep on.
    Nothing,
}

/// The longest sleep of a thread that nobody can wake.
const MAX_PAUSE: Duration = Duration::from_millis(10);

impl Events {
    pub(crate) fn open(layout: &Layout, writable: bool, context: Context<'_>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { mapping: Mapping::open(layout, writable, context)?, refused: None }))
    }

    /// [`Events::open`] in a store that exists: if there is no room for the table, all operations that need none
    /// work without.
    pub(crate) fn open_if_room(layout: &Layout, writable: bool, context: Context<'_>) -> Result<Arc<Self>> {
        Self::open(layout, writable, context).or_else(|error| match error.io_kind() {
            Some(reason @ (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) => {
                let refused = Some((layout.private_path(EVENTS), reason));
                Ok(Arc::new(Self { mapping: Mapping::none(), refused }))
            }
            _ => Err(error),
        })
    }

    /// Observes the word to sleep on. A notification after this ends the sleep.
    pub(crate) fn observe(&self, key: &Key, waiter: Option<&Waiter>) -> Observed {
        let Some(table) = self.mapping.table() else { return Observed::Nothing };
        let observed = if let Some(waiter) = waiter {
            let slot = &table.slots[waiter.slot];
            slot.time.store(UNKNOWN, Relaxed);
            // A skipped waiter takes part again from here on.
            waiter.notified.set(slot.state.swap(WAITING, Relaxed) == NOTIFIED);
            // A process that took this waiter for a dead one may have cleared it.
            mark_in_use(table, waiter.slot);
            Observed::Slot(waiter.slot)
        } else {
            // Read-only memory allows only a relaxed load.
            let index = latch::index_of(key);
            Observed::Freed(index, table.counters[usize::from(index)].freed.load(Relaxed))
        };
        // The check of the lock file must not come before.
        fence(SeqCst);
        observed
    }

    /// [`Events::observe`] for a watcher of the record itself.
    pub(crate) fn observe_record(&self, key: &Key) -> Observed {
        // A watcher that cannot register is never woken.
        let Some(table) = self.mapping.table_to_change() else { return Observed::Nothing };
        let index = latch::index_of(key);
        let observed = table.counters[usize::from(index)].changed.fetch_or(WATCHED, SeqCst) | WATCHED;
        // The check of the record must not come before.
        fence(SeqCst);
        Observed::Changed(index, observed)
    }

    /// Notifies the watchers of records of this latch that one has changed. Without watchers it costs one
    /// load. A woken watcher registers again, so the registration of a killed one is gone after one change.
    pub(crate) fn changed(&self, key: &Key) {
        let Some(table) = self.mapping.table_to_change() else { return };
        let changed = &table.counters[usize::from(latch::index_of(key))].changed;
        // The change must be visible before the load of the word.
        fence(SeqCst);
        let advance = |word: u32| (word & WATCHED != 0).then(|| (word & !WATCHED).wrapping_add(2));
        if changed.fetch_update(SeqCst, Relaxed, advance).is_ok() {
            let _ = futex::wake(changed, futex::Flags::empty(), i32::MAX.unsigned_abs());
        }
    }

    /// Sleeps until the word changes, at most for `pause`. `false`: only the end of the pause ended it.
    pub(crate) fn sleep(&self, observed: Observed, pause: Duration, _attempts: u32) -> bool {
        let word = self.mapping.table().and_then(|table| match observed {
            Observed::Slot(at) => Some((&table.slots[at].state, WAITING)),
            Observed::Freed(index, value) => Some((&table.counters[usize::from(index)].freed, value)),
            Observed::Changed(index, value) => Some((&table.counters[usize::from(index)].changed, value)),
            Observed::Nothing => None,
        });
        let Some((word, value)) = word else {
            std::thread::sleep(pause.min(MAX_PAUSE));
            return true;
        };
        #[cfg(record_store_no_recheck)]
        let pause = match (self.mapping.table(), observed) {
            (Some(table), Observed::Slot(at)) => match sleep_behind_others(table, at, pause) {
                Some(left) => left,
                None => return true,
            },
            _ => pause,
        };
        sleep_on(word, value, pause)
    }

    /// The longest sleep before the files are checked again. A cancellation cannot change a word of a read-only
    /// table, so a sleeper there has to check for it.
    pub(crate) fn max_sleep(&self, is_cancellable: bool) -> Duration {
        if is_cancellable && self.is_read_only() { MAX_PAUSE } else { RECHECK_INTERVAL }
    }

    /// Whether this process can change no word of the table.
    pub(super) fn is_read_only(&self) -> bool {
        self.mapping.table_to_change().is_none()
    }

    /// Enters the wait queue. `None`: it is full of living waiters. Then the caller waits without an order.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        key: &Key,
        layout: &Layout,
        context: Context<'_>,
    ) -> Result<Option<Waiter>> {
        let here = Owner::here(layout, context)?;
        let Some(table) = self.mapping.table_to_change() else { return Ok(None) };
        let claim = claim_of(&here.name);
        let Some(at) = take_slot(table, claim).or_else(|| {
            free_all_dead(table, layout);
            take_slot(table, claim)
        }) else {
            return Ok(None);
        };
        let slot = &table.slots[at];
        slot.crc32.store(key.crc32(), Relaxed);
        slot.tag.store(key.tag(), Relaxed);
        slot.set_owner(&here.name);
        let tickets = &table.counters[usize::from(latch::index_of(key))].tickets;
        slot.ticket.store(take_ticket(tickets), Relaxed);
        slot.state.store(WAITING, Release);
        Ok(Some(Waiter {
            events: Arc::clone(self),
            key: key.clone(),
            slot: at,
            notified: Cell::new(false),
            process: ProcessId::current(),
            completed: false,
        }))
    }

    /// A function that makes this sleeper check again. Any thread may call it, also after the wait has ended.
    pub(crate) fn alarm(
        self: &Arc<Self>,
        key: &Key,
        waiter: Option<&Waiter>,
    ) -> impl FnOnce() + Send + use<> {
        let events = Arc::clone(self);
        let (index, slot) = (usize::from(latch::index_of(key)), waiter.map(|waiter| waiter.slot));
        move || {
            let Some(table) = events.mapping.table_to_change() else { return };
            if let Some(slot) = slot {
                notify(&table.slots[slot]);
            } else {
                let freed = &table.counters[index].freed;
                freed.fetch_add(1, Release);
                let _ = futex::wake(freed, futex::Flags::empty(), i32::MAX.unsigned_abs());
            }
        }
    }

    /// Decides, under the latch of a free key, whose turn it is. Notifies that waiter.
    pub(crate) fn turn(&self, key: &Key, waiter: Option<&Waiter>, layout: &Layout) -> Turn {
        let Some(table) = self.mapping.table_to_change() else { return Turn::Ours };
        loop {
            let Some(at) = first_living(table, key, layout) else { return Turn::Ours };
            if waiter.is_some_and(|waiter| waiter.slot == at) {
                return Turn::Ours;
            }
            let slot = &table.slots[at];
            if slot.state.load(Acquire) == WAITING {
                notify(slot);
                return Turn::Other(GRACE);
            }
            let left = grace_left(slot);
            if !left.is_zero() {
                return Turn::Other(left);
            }
            // If it reacts at this moment, it is not skipped.
            let _ = slot.state.compare_exchange(NOTIFIED, SKIPPED, AcqRel, Relaxed);
        }
    }

    /// Whether the key has waiters, dead or alive.
    pub(crate) fn is_awaited(&self, key: &Key) -> bool {
        let awaits = |slot: &Slot| matches!(slot.state.load(Acquire), WAITING..=SKIPPED) && is_for(slot, key);
        self.mapping.table_to_change().is_some_and(|table| first_of(table, awaits).is_some())
    }

    /// The last token issued under the key's latch. Read and change it only under that latch. `None`: the
    /// processes share no table. An error: they share one, but this process could not create it.
    pub(crate) fn last_token(&self, key: &Key, context: Context<'_>) -> Result<Option<&AtomicU64>> {
        if let Some((path, reason)) = &self.refused {
            return Err(context.io("create the event table", path, *reason));
        }
        let table = self.mapping.table_to_change();
        Ok(table.map(|table| &table.counters[usize::from(latch::index_of(key))].token))
    }

    /// The last version given to a record under the key's latch. Change it only under that latch. `None`: the
    /// processes share no table, or this one could not create it.
    pub(crate) fn last_version(&self, key: &Key) -> Option<&AtomicU64> {
        let table = self.mapping.table_to_change();
        table.map(|table| &table.counters[usize::from(latch::index_of(key))].version)
    }

    /// The last token and the last version that were given under a latch, in a store without a log.
    pub(crate) fn last_numbers(&self, latch: u8) -> Option<(u64, u64)> {
        let counter = &self.mapping.table()?.counters[usize::from(latch)];
        Some((counter.token.load(Relaxed), counter.version.load(Relaxed)))
    }

    /// Notifies the first waiter and all watchers that the key is free.
    pub(crate) fn freed(&self, key: &Key, layout: &Layout) {
        let Some(table) = self.mapping.table() else { return };
        // The release must be visible before the load of the slots.
        fence(SeqCst);
        if !self.is_read_only() {
            notify_first(table, key, layout);
        }
        self.wake_watchers(table, key);
    }

    /// Notifies the waiters that sleep until a later time than this end of the lock's lease, on the boot clock. A
    /// release notifies only the first waiter, so the others still sleep until the end of an earlier lease. They look
    /// again if this one, of a later holder, ends first. `except`: the waiter that acquired the lock.
    pub(crate) fn leased(&self, key: &Key, end: Duration, except: Option<&Waiter>) {
        let Some(table) = self.mapping.table_to_change() else { return };
        // The lease must be visible before the load of the slots.
        fence(SeqCst);
        let end = to_ms(end);
        let is_late = |slot: &Slot| {
            slot.state.load(Acquire) == WAITING && is_for(slot, key) && slot.time.load(Relaxed) > end
        };
        for at in slots_in_use(table).filter(|&at| except.is_none_or(|waiter| waiter.slot != at)) {
            if is_late(&table.slots[at]) {
                notify(&table.slots[at]);
            }
        }
    }

    /// [`Events::leased`] for a lock whose lease ends earlier than it did: the watchers know the old end, too.
    pub(crate) fn shortened(&self, key: &Key, end: Duration) {
        self.leased(key, end, None);
        if let Some(table) = self.mapping.table() {
            self.wake_watchers(table, key);
        }
    }

    fn wake_watchers(&self, table: &Table, key: &Key) {
        let freed = &table.counters[usize::from(latch::index_of(key))].freed;
        if !self.is_read_only() {
            freed.fetch_add(1, Release);
        }
        // Always, because there is no reliable count of sleepers: a killed one would stay in it, and read-only
        // ones cannot write it.
        let _ = futex::wake(freed, futex::Flags::empty(), i32::MAX.unsigned_abs());
    }
}

impl Waiter {
    /// Whether it was its turn at the last observation.
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.get()
    }

    /// Announces that this waiter is about to sleep for this long, unless it is notified.
    pub(crate) fn will_sleep(&self, pause: Duration) {
        if let Some(table) = self.events.mapping.table_to_change() {
            let until = to_ms(Reading::now().boottime.saturating_add(pause)).saturating_add(1);
            // If it was notified since the observation, this is the time of that.
            let _ = table.slots[self.slot].time.compare_exchange(UNKNOWN, until, Relaxed, Relaxed);
        }
    }

    /// Leaves the queue with the lock: nobody else needs a notification.
    pub(crate) fn complete(mut self) {
        self.completed = true;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if !self.process.is_here() {
            return;
        }
        if let Some(table) = self.events.mapping.table_to_change() {
            // A notification may change the state at any moment, so it is not compared. The mark goes first: the
            // next waiter in this slot sets it again.
            unmark_in_use(table, self.slot);
            table.slots[self.slot].state.store(FREE, Release);
            if !self.completed {
                // It may have been this waiter's turn.
                notify_next(table, &self.key);
            }
        }
    }
}

/// Sleeps until the word has another value, at most for `pause`. `false`: only the end of the pause ended it.
fn sleep_on(word: &AtomicU32, value: u32, pause: Duration) -> bool {
    let timeout = rustix::time::Timespec {
        tv_sec: pause.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: pause.subsec_nanos().into(),
    };
    // Woken, changed already or interrupted: all mean that the caller checks again.
    futex::wait(word, futex::Flags::empty(), value, Some(&timeout)) != Err(Errno::TIMEDOUT)
}

/// Sleeps in the build for tests, in which no file is checked from time to time. Nobody reports that the process of
/// the first waiter is stopped, so the others have to check that, and check nothing else. `None`: it is woken, or that
/// waiter's turn is over. Otherwise the rest of the pause, which is short.
#[cfg(record_store_no_recheck)]
fn sleep_behind_others(table: &Table, own: usize, mut pause: Duration) -> Option<Duration> {
    const INTERVAL: Duration = Duration::from_millis(250);
    let own = &table.slots[own];
    let is_before = |slot: &Slot| {
        slot.crc32.load(Relaxed) == own.crc32.load(Relaxed)
            && slot.tag.load(Relaxed) == own.tag.load(Relaxed)
            && slot.ticket.load(Relaxed) < own.ticket.load(Relaxed)
    };
    while pause > INTERVAL {
        if sleep_on(&own.state, WAITING, INTERVAL) {
            return None;
        }
        pause -= INTERVAL;
        let is_overdue = |slot: &Slot| {
            is_before(slot) && slot.state.load(Acquire) == NOTIFIED && grace_left(slot).is_zero()
        };
        if first_of(table, is_overdue).is_some() {
            return None;
        }
    }
    Some(pause)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::super::slots::{CLAIMED, free_slot};
    use super::*;
    use crate::FileSystemRecordStore;

    #[test]
    fn a_waiter_that_is_notified_while_it_leaves_frees_its_slot() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let table = core.events.mapping.table().unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Relaxed) {
                    notify(&table.slots[0]);
                }
            });
            for _ in 0..20_000 {
                let waiter = core.events.enqueue(&key, &core.layout, Context::new("test", &key)).unwrap();
                core.events.observe(&key, waiter.as_ref());
                drop(waiter);
            }
            is_done.store(true, Relaxed);
        });
        assert_eq!(slots_in_use(table).count(), 0, "slots leaked");
        assert!(!core.events.is_awaited(&key));
    }

    /// It was stopped, and may run again by now.
    #[test]
    fn a_skipped_waiter_is_notified_if_no_other_waits() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let table = core.events.mapping.table().unwrap();
        let enqueue = |key: &Key| core.events.enqueue(key, &core.layout, Context::new("test", key)).unwrap();
        let _of_another_key = enqueue(&Key::new("l").unwrap());
        let (skipped, notified) = (enqueue(&key).unwrap(), enqueue(&key).unwrap());
        let state = |waiter: &Waiter| table.slots[waiter.slot].state.load(Acquire);
        table.slots[skipped.slot].state.store(SKIPPED, Release);
        notify_next(table, &key);
        assert_eq!((state(&skipped), state(&notified)), (SKIPPED, NOTIFIED));
        notify_next(table, &key);
        assert_eq!((state(&skipped), state(&notified)), (NOTIFIED, NOTIFIED));
    }

    /// A later lease that ends first would pass unseen otherwise. One that ends later is nothing new to a waiter.
    #[test]
    fn a_lease_that_ends_during_the_sleep_of_a_waiter_notifies_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let table = core.events.mapping.table().unwrap();
        let waiter = core.events.enqueue(&key, &core.layout, Context::new("test", &key)).unwrap().unwrap();
        let is_notified_by_lease_of = |minutes| {
            core.events.observe(&key, Some(&waiter));
            waiter.will_sleep(Duration::from_mins(10));
            let end = Reading::now().boottime + Duration::from_mins(minutes);
            core.events.leased(&key, end, None);
            table.slots[waiter.slot].state.load(Acquire) == NOTIFIED
        };
        assert!(is_notified_by_lease_of(5));
        assert!(!is_notified_by_lease_of(15));
    }

    /// Without its mark nobody finds a waiter. With the mark of a free slot, all look at it for ever.
    #[test]
    fn only_a_slot_that_is_freed_loses_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let store = FileSystemRecordStore::open(dir.path()).unwrap();
        let (core, key) = (&store.0, Key::new("k").unwrap());
        let table = core.events.mapping.table().unwrap();
        let enqueue = || core.events.enqueue(&key, &core.layout, Context::new("test", &key)).unwrap();
        let (waiter, other) = (enqueue().unwrap(), enqueue().unwrap());
        // Meanwhile it has another waiter, or none.
        for state in [SKIPPED, NOTIFIED, CLAIMED, FREE] {
            free_slot(table, waiter.slot, state);
            assert!(slots_in_use(table).eq([waiter.slot, other.slot]), "{state}");
            assert_eq!(table.slots[waiter.slot].state.load(Acquire), WAITING, "{state}");
        }
        free_slot(table, waiter.slot, WAITING);
        assert!(slots_in_use(table).eq([other.slot]));
        free_slot(table, waiter.slot, FREE);
        assert!(slots_in_use(table).eq([other.slot]));
        drop((waiter, other));
        assert_eq!(slots_in_use(table).count(), 0);
    }
}
