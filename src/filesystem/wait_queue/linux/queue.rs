//! The waiters for a lock, their order, and whose turn it is.
//!
//! The order is best effort. The latch alone ensures that there is one holder, whatever this table says. So
//! every change is a single atomic step, and no step relies on another process completing its own:
//!
//! * A killed waiter is recognized by its owner file. The process that finds it frees its slot.
//! * A stopped waiter is notified, has [`GRACE`] to react, and is then skipped until it observes its slot
//!   again.
//! * A waiter that times out leaves and notifies the next one, in case that it had been notified itself.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;

use super::table::{Mapping, Slot, Table};
use crate::filesystem::context::Context;
use crate::filesystem::disk::layout::Layout;
use crate::filesystem::disk::lock_file::is_owner_name;
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::latch;
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::limits::RECHECK_INTERVAL;
use crate::filesystem::protocol::owner::{self, Owner};
use crate::{Key, Result};

/// A notified waiter has this long to react before others go first.
const GRACE: Duration = Duration::from_millis(50);

/// There are watchers of records of the latch.
const WATCHED: u32 = 1;

/// Free, or being initialized. A waiter that is killed at that moment leaks its slot, one of 256.
const FREE: u32 = 0;
/// The waiter sleeps, or is about to.
const WAITING: u32 = 1;
/// It is the waiter's turn.
const NOTIFIED: u32 = 2;
/// The waiter was notified and did not react.
const SKIPPED: u32 = 3;

/// The sleepers of a store, in all its processes.
#[derive(Debug)]
pub(crate) struct Events {
    mapping: Mapping,
}

/// A slot in the wait queue for one key. Dropping it leaves the queue.
pub(crate) struct Waiter {
    events: Arc<Events>,
    key: Key,
    slot: usize,
    /// It was its turn at the last observation.
    notified: Cell<bool>,
    /// A forked child has a copy of this value, but not the slot.
    process: u32,
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
        Ok(Arc::new(Self { mapping: Mapping::open(layout, writable, context)? }))
    }

    /// Observes the word to sleep on. A notification after this ends the sleep.
    pub(crate) fn observe(&self, key: &Key, waiter: Option<&Waiter>) -> Observed {
        let Some(table) = self.mapping.table() else { return Observed::Nothing };
        let observed = if let Some(waiter) = waiter {
            // A skipped waiter takes part again from here on.
            waiter.notified.set(table.slots[waiter.slot].state.swap(WAITING, Relaxed) == NOTIFIED);
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
        let timeout = rustix::time::Timespec {
            tv_sec: pause.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        };
        // Woken, changed already or interrupted: all mean that the caller checks again.
        futex::wait(word, futex::Flags::empty(), value, Some(&timeout)) != Err(Errno::TIMEDOUT)
    }

    /// The longest sleep before the files are checked again. A cancellation cannot change a word of a read-only
    /// table, so a sleeper there has to check for it.
    pub(crate) fn max_sleep(&self, is_cancellable: bool) -> Duration {
        let is_deaf = is_cancellable && self.mapping.table_to_change().is_none();
        if is_deaf { MAX_PAUSE } else { RECHECK_INTERVAL }
    }

    /// Enters the wait queue. `None`: it is full. Then the caller waits without an order.
    pub(crate) fn enqueue(
        self: &Arc<Self>,
        key: &Key,
        layout: &Layout,
        context: Context<'_>,
    ) -> Result<Option<Waiter>> {
        let here = Owner::here(layout, context)?;
        let Some(table) = self.mapping.table_to_change() else { return Ok(None) };
        let Some(at) = take_slot(table) else { return Ok(None) };
        let slot = &table.slots[at];
        slot.crc32.store(key.crc32(), Relaxed);
        slot.tag.store(key.tag(), Relaxed);
        slot.set_owner(&here.name);
        let tickets = &table.counters[usize::from(latch::index_of(key))].tickets;
        slot.ticket.store(tickets.fetch_add(1, AcqRel), Relaxed);
        slot.state.store(WAITING, Release);
        Ok(Some(Waiter {
            events: Arc::clone(self),
            key: key.clone(),
            slot: at,
            notified: Cell::new(false),
            process: std::process::id(),
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
            // A notification in the future was made by another clock, and means nothing.
            let age = now_ms().checked_sub(slot.notified_at.load(Relaxed)).map(Duration::from_millis);
            let left = age.map_or(Duration::ZERO, |age| GRACE.saturating_sub(age));
            if !left.is_zero() {
                return Turn::Other(left);
            }
            // If it reacts at this moment, it is not skipped.
            let _ = slot.state.compare_exchange(NOTIFIED, SKIPPED, AcqRel, Relaxed);
        }
    }

    /// Whether the key has waiters, dead or alive.
    pub(crate) fn is_awaited(&self, key: &Key) -> bool {
        let awaits = |slot: &Slot| slot.state.load(Acquire) != FREE && is_for(slot, key);
        self.mapping.table_to_change().is_some_and(|table| first_of(table, awaits).is_some())
    }

    /// The last token issued under the key's latch. Read and change it only under that latch. `None`: there is
    /// no table.
    pub(crate) fn last_token(&self, key: &Key) -> Option<&AtomicU64> {
        let table = self.mapping.table_to_change()?;
        Some(&table.counters[usize::from(latch::index_of(key))].token)
    }

    /// Notifies the first waiter and all watchers that the key is free.
    pub(crate) fn freed(&self, key: &Key, layout: &Layout) {
        let Some(table) = self.mapping.table() else { return };
        let writable = self.mapping.table_to_change().is_some();
        if writable {
            notify_first(table, key, layout);
        }
        let freed = &table.counters[usize::from(latch::index_of(key))].freed;
        if writable {
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

    /// Leaves the queue with the lock: nobody else needs a notification.
    pub(crate) fn complete(mut self) {
        self.completed = true;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        if let Some(table) = self.events.mapping.table_to_change() {
            // A notification may change the state at any moment. A slot that is not freed here stays until the
            // end of the process.
            if table.slots[self.slot].state.swap(FREE, AcqRel) != FREE {
                clear_bit(table, self.slot);
            }
            if !self.completed {
                // It may have been this waiter's turn.
                notify_next(table, &self.key);
            }
        }
    }
}

/// The slot of the first living waiter that is not skipped. The slots of dead ones are freed.
fn first_living(table: &Table, key: &Key, layout: &Layout) -> Option<usize> {
    loop {
        let at = first(table, key)?;
        if !free_if_dead(table, at, layout) {
            return Some(at);
        }
    }
}

/// The slot of the first waiter that is not skipped, dead or alive.
fn first(table: &Table, key: &Key) -> Option<usize> {
    first_of(table, |slot| matches!(slot.state.load(Acquire), WAITING | NOTIFIED) && is_for(slot, key))
}

fn free_if_dead(table: &Table, at: usize, layout: &Layout) -> bool {
    let slot = &table.slots[at];
    let (state, owner) = (slot.state.load(Acquire), slot.owner());
    let dead = !is_owner_name(&owner)
        || owner::liveness(layout, &owner, Owner::known_here(layout).as_deref()) == Liveness::Dead;
    if dead {
        free_slot(table, at, state);
    }
    dead
}

fn is_for(slot: &Slot, key: &Key) -> bool {
    slot.crc32.load(Relaxed) == key.crc32() && slot.tag.load(Relaxed) == key.tag()
}

fn first_of(table: &Table, wanted: impl Fn(&Slot) -> bool) -> Option<usize> {
    slots_in_use(table)
        .filter(|&at| wanted(&table.slots[at]))
        .min_by_key(|&at| table.slots[at].ticket.load(Relaxed))
}

fn slots_in_use(table: &Table) -> impl Iterator<Item = usize> {
    table.in_use.0.iter().enumerate().flat_map(|(index, word)| {
        let mut bits = word.load(Acquire);
        std::iter::from_fn(move || {
            let bit = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            (bit < u64::BITS).then_some(index * 64 + bit as usize)
        })
    })
}

fn take_slot(table: &Table) -> Option<usize> {
    table.in_use.0.iter().enumerate().find_map(|(index, word)| {
        let lowest_zero = |bits: u64| (bits != u64::MAX).then(|| bits | bits.wrapping_add(1));
        let before = word.fetch_update(AcqRel, Relaxed, lowest_zero).ok()?;
        Some(index * 64 + before.trailing_ones() as usize)
    })
}

/// Frees a slot that is in this state, unless another process already has.
fn free_slot(table: &Table, at: usize, state: u32) {
    if state != FREE && table.slots[at].state.compare_exchange(state, FREE, AcqRel, Relaxed).is_ok() {
        clear_bit(table, at);
    }
}

fn clear_bit(table: &Table, at: usize) {
    table.in_use.0[at / 64].fetch_and(!(1 << (at % 64)), AcqRel);
}

fn notify_first(table: &Table, key: &Key, layout: &Layout) {
    while let Some(at) = first(table, key) {
        // Notified before the check: it is rarely dead, and the check takes time.
        notify(&table.slots[at]);
        if !free_if_dead(table, at, layout) {
            return;
        }
    }
    notify_next(table, key);
}

/// Notifies the next waiter, or a skipped one if there is no other.
fn notify_next(table: &Table, key: &Key) {
    let next = first_of(table, |slot| slot.state.load(Acquire) == WAITING && is_for(slot, key))
        .or_else(|| first_of(table, |slot| slot.state.load(Acquire) == SKIPPED && is_for(slot, key)));
    if let Some(at) = next {
        notify(&table.slots[at]);
    }
}

fn notify(slot: &Slot) {
    slot.notified_at.store(now_ms(), Relaxed);
    let awaits = |state| matches!(state, WAITING | SKIPPED).then_some(NOTIFIED);
    if slot.state.fetch_update(AcqRel, Relaxed, awaits).is_ok() {
        let _ = futex::wake(&slot.state, futex::Flags::empty(), 1);
    }
}

fn now_ms() -> u64 {
    u64::try_from(Reading::now().boottime.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

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
}
