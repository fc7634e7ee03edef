//! Who waits for a lock, in which order, and whose turn it is.
//!
//! The order is a courtesy among the processes of a store; that there is one holder is seen to under
//! the latch, whatever is written here. So every change is a single atomic step, and no step relies
//! on another process having come to the end of its own:
//!
//! * A waiter that was killed is found out by its owner file and cleared away by whoever comes upon
//!   it.
//! * A waiter that is stopped is called, given [`GRACE`] to come, and then passed over until it
//!   shows a sign of life.
//! * A waiter that timed out leaves, and calls the next one, in case that it had been called itself.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::fence;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex;

use super::deaths::{self, Report};
use super::shared::{Shared, Slot, Table};
use crate::filesystem::clock::Reading;
use crate::filesystem::latch;
use crate::filesystem::layout::{Context, Layout};
use crate::filesystem::lease::Liveness;
use crate::filesystem::owner::{self, Owner};
use crate::filesystem::sidecar;
use crate::{Key, Result};

/// How long the one who is called may take to come before others go first.
const GRACE: Duration = Duration::from_millis(50);

/// Somebody watches records of the latch.
const WATCHED: u32 = 1;

/// Nobody's, or being filled in. Who is killed just then leaves a slot that is never used again, one
/// of 256.
const FREE: u32 = 0;
/// Asleep, or about to be.
const WAITING: u32 = 1;
/// It is its turn.
const CALLED: u32 = 2;
/// It was called and did not come.
const PASSED: u32 = 3;

/// The sleepers of a store, known to all its processes.
#[derive(Debug)]
pub(in crate::filesystem) struct Events {
    shared: Shared,
}

/// A place in the line for one key. Left when dropped.
pub(in crate::filesystem) struct Place {
    events: Arc<Events>,
    key: Key,
    slot: usize,
    /// It was its turn when it last looked.
    called: Cell<bool>,
    /// A forked child has a copy of the place, but not the place.
    process: u32,
    served: bool,
}

/// Whose turn it is at a free key.
pub(in crate::filesystem) enum Turn {
    Ours,
    /// Another's, who has so much time left to come.
    Anothers(Duration),
}

/// The word that a sleeper is going to sleep on, and what it was before the look.
#[derive(Clone, Copy)]
pub(in crate::filesystem) enum Seen {
    Place(usize),
    Freed(u8, u32),
    Changed(u8, u32),
    /// There is no word to sleep on.
    Nothing,
}

/// Longest sleep of one whom nobody can wake.
const NAP: Duration = Duration::from_millis(10);

impl Events {
    pub(in crate::filesystem) fn open(
        layout: &Layout,
        writable: bool,
        context: Context<'_>,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self { shared: Shared::open(layout, writable, context)? }))
    }

    /// Notes the state of the word to sleep on. What happens after this is not slept through.
    pub(in crate::filesystem) fn observe(&self, key: &Key, place: Option<&Place>) -> Seen {
        let Some(table) = self.shared.table() else { return Seen::Nothing };
        let seen = if let Some(place) = place {
            // Also the sign of life of one who was passed over.
            place.called.set(table.slots[place.slot].state.swap(WAITING, Relaxed) == CALLED);
            Seen::Place(place.slot)
        } else {
            // A relaxed load is the one that read-only memory allows.
            let index = latch::index_of(key);
            Seen::Freed(index, table.counters[usize::from(index)].freed.load(Relaxed))
        };
        // The look at the lock file must not come before.
        fence(SeqCst);
        seen
    }

    /// [`Events::observe`] for one who watches the record itself.
    pub(in crate::filesystem) fn observe_record(&self, key: &Key) -> Seen {
        // Where one cannot say that one watches, nobody will wake one.
        let Some(table) = self.shared.to_change() else { return Seen::Nothing };
        let index = latch::index_of(key);
        let seen = table.counters[usize::from(index)].changed.fetch_or(WATCHED, SeqCst) | WATCHED;
        // The look at the record must not come before.
        fence(SeqCst);
        Seen::Changed(index, seen)
    }

    /// Tells those who watch records of this latch that one has changed. If nobody does, that takes
    /// a look at a word. Whoever is woken says anew that it watches, so what the killed have left
    /// there is gone after one change.
    pub(in crate::filesystem) fn changed(&self, key: &Key) {
        let Some(table) = self.shared.to_change() else { return };
        let changed = &table.counters[usize::from(latch::index_of(key))].changed;
        // The change must be there before the look at the word.
        fence(SeqCst);
        let advance = |word: u32| (word & WATCHED != 0).then(|| (word & !WATCHED).wrapping_add(2));
        if changed.fetch_update(SeqCst, Relaxed, advance).is_ok() {
            let _ = futex::wake(changed, futex::Flags::empty(), i32::MAX.unsigned_abs());
        }
    }

    /// Sleeps until the word changes, but no longer than `pause`: `false` if that is all that ended it.
    pub(in crate::filesystem) fn sleep(&self, seen: Seen, pause: Duration, _rounds: u32) -> bool {
        let word = self.shared.table().and_then(|table| match seen {
            Seen::Place(at) => Some((&table.slots[at].state, WAITING)),
            Seen::Freed(index, value) => Some((&table.counters[usize::from(index)].freed, value)),
            Seen::Changed(index, value) => Some((&table.counters[usize::from(index)].changed, value)),
            Seen::Nothing => None,
        });
        let Some((word, value)) = word else {
            std::thread::sleep(pause.min(NAP));
            return true;
        };
        let timeout = rustix::time::Timespec {
            tv_sec: pause.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: pause.subsec_nanos().into(),
        };
        // Woken, changed already or interrupted: all mean "look again".
        futex::wait(word, futex::Flags::empty(), value, Some(&timeout)) != Err(Errno::TIMEDOUT)
    }

    /// Takes a place in the line. `None` if there is no room: then one waits without an order.
    pub(in crate::filesystem) fn join(
        self: &Arc<Self>,
        key: &Key,
        layout: &Layout,
        context: Context<'_>,
    ) -> Result<Option<Place>> {
        let here = Owner::here(layout, context)?;
        let Some(table) = self.shared.to_change() else { return Ok(None) };
        let Some(at) = take_slot(table) else { return Ok(None) };
        let slot = &table.slots[at];
        slot.crc32.store(key.crc32(), Relaxed);
        slot.tag.store(key.tag(), Relaxed);
        slot.set_owner(&here.name);
        let tickets = &table.counters[usize::from(latch::index_of(key))].tickets;
        slot.ticket.store(tickets.fetch_add(1, AcqRel), Relaxed);
        slot.state.store(WAITING, Release);
        Ok(Some(Place {
            events: Arc::clone(self),
            key: key.clone(),
            slot: at,
            called: Cell::new(false),
            process: std::process::id(),
            served: false,
        }))
    }

    /// What makes the one who waits look again, also from another thread and when it has just left.
    pub(in crate::filesystem::wait) fn alarm(
        self: &Arc<Self>,
        key: &Key,
        place: Option<&Place>,
    ) -> impl FnOnce() + Send + use<> {
        let events = Arc::clone(self);
        let (index, slot) = (usize::from(latch::index_of(key)), place.map(|place| place.slot));
        move || {
            let Some(table) = events.shared.to_change() else { return };
            if let Some(slot) = slot {
                call(&table.slots[slot]);
            } else {
                let freed = &table.counters[index].freed;
                freed.fetch_add(1, Release);
                let _ = futex::wake(freed, futex::Flags::empty(), i32::MAX.unsigned_abs());
            }
        }
    }

    /// Has the end of processes reported to those who wait for this key, as long as the answer is
    /// kept. `None` if the system refuses: then they find out when they look again.
    pub(in crate::filesystem::wait) fn report_deaths(
        self: &Arc<Self>,
        key: &Key,
        layout: &Arc<Layout>,
    ) -> Option<Report> {
        deaths::report(Arc::clone(self), Arc::clone(layout), key.clone())
    }

    /// Whose turn it is, asked under the latch at a free key. Sees to it that whoever's it is knows.
    pub(in crate::filesystem) fn turn(&self, key: &Key, place: Option<&Place>, layout: &Layout) -> Turn {
        let Some(table) = self.shared.to_change() else { return Turn::Ours };
        loop {
            let Some(at) = first(table, key, layout) else { return Turn::Ours };
            if place.is_some_and(|place| place.slot == at) {
                return Turn::Ours;
            }
            let slot = &table.slots[at];
            if slot.state.load(Acquire) == WAITING {
                call(slot);
                return Turn::Anothers(GRACE);
            }
            // A call from the future was made by another clock: it says nothing.
            let waited = now_ms().checked_sub(slot.called_at.load(Relaxed)).map(Duration::from_millis);
            let left = waited.map_or(Duration::ZERO, |waited| GRACE.saturating_sub(waited));
            if !left.is_zero() {
                return Turn::Anothers(left);
            }
            // It may come at this very moment: then it is not passed over.
            let _ = slot.state.compare_exchange(CALLED, PASSED, AcqRel, Relaxed);
        }
    }

    /// Whether anyone is in line for the key, dead or alive.
    pub(in crate::filesystem) fn is_awaited(&self, key: &Key) -> bool {
        let awaits = |slot: &Slot| slot.state.load(Acquire) != FREE && is_for(slot, key);
        self.shared.to_change().is_some_and(|table| first_of(table, awaits).is_some())
    }

    /// The last token given out under the key's latch, to be read and changed only there. `None`
    /// where there is no table to keep it in.
    pub(in crate::filesystem) fn last_token(&self, key: &Key) -> Option<&AtomicU64> {
        let table = self.shared.to_change()?;
        Some(&table.counters[usize::from(latch::index_of(key))].token)
    }

    /// Tells everyone concerned that the key is free: the first in line, and all who only watch.
    pub(in crate::filesystem) fn freed(&self, key: &Key, layout: &Layout) {
        let Some(table) = self.shared.table() else { return };
        let writable = self.shared.to_change().is_some();
        if writable {
            call_first(table, key, layout);
        }
        let freed = &table.counters[usize::from(latch::index_of(key))].freed;
        if writable {
            freed.fetch_add(1, Release);
        }
        // Without asking whether anyone sleeps: a count of sleepers would be wrong as soon as one is
        // killed, and some may not write here.
        let _ = futex::wake(freed, futex::Flags::empty(), i32::MAX.unsigned_abs());
    }
}

impl Place {
    /// Whether it was its turn when it last looked at its word.
    pub(in crate::filesystem) fn is_called(&self) -> bool {
        self.called.get()
    }

    /// Leaves with what one came for: nobody else is to be called.
    pub(in crate::filesystem::wait) fn leave_served(mut self) {
        self.served = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.process != std::process::id() {
            return;
        }
        if let Some(table) = self.events.shared.to_change() {
            give_back_slot(table, self.slot, table.slots[self.slot].state.load(Relaxed));
            if !self.served {
                // Perhaps it was this one's turn.
                pass_on(table, &self.key);
            }
        }
    }
}

/// The place of the one who came first and has not been passed over. Dead ones are cleared away.
fn first(table: &Table, key: &Key, layout: &Layout) -> Option<usize> {
    loop {
        let at = first_unasked(table, key)?;
        if !clear_if_dead(table, at, layout) {
            return Some(at);
        }
    }
}

/// The same, without asking whether it is alive.
fn first_unasked(table: &Table, key: &Key) -> Option<usize> {
    first_of(table, |slot| matches!(slot.state.load(Acquire), WAITING | CALLED) && is_for(slot, key))
}

fn clear_if_dead(table: &Table, at: usize, layout: &Layout) -> bool {
    let slot = &table.slots[at];
    let (state, owner) = (slot.state.load(Acquire), slot.owner());
    let dead = !sidecar::is_owner_name(&owner)
        || owner::liveness(layout, &owner, Owner::known_here(layout).as_deref()) == Liveness::Dead;
    if dead {
        give_back_slot(table, at, state);
    }
    dead
}

fn is_for(slot: &Slot, key: &Key) -> bool {
    slot.crc32.load(Relaxed) == key.crc32() && slot.tag.load(Relaxed) == key.tag()
}

fn first_of(table: &Table, wanted: impl Fn(&Slot) -> bool) -> Option<usize> {
    taken_slots(table)
        .filter(|&at| wanted(&table.slots[at]))
        .min_by_key(|&at| table.slots[at].ticket.load(Relaxed))
}

fn taken_slots(table: &Table) -> impl Iterator<Item = usize> {
    table.taken.0.iter().enumerate().flat_map(|(index, word)| {
        let mut bits = word.load(Acquire);
        std::iter::from_fn(move || {
            let bit = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            (bit < u64::BITS).then_some(index * 64 + bit as usize)
        })
    })
}

fn take_slot(table: &Table) -> Option<usize> {
    table.taken.0.iter().enumerate().find_map(|(index, word)| {
        let lowest_zero = |bits: u64| (bits != u64::MAX).then(|| bits | bits.wrapping_add(1));
        let before = word.fetch_update(AcqRel, Relaxed, lowest_zero).ok()?;
        Some(index * 64 + before.trailing_ones() as usize)
    })
}

/// Gives back a slot that is in this state; another may have done so in the meantime.
fn give_back_slot(table: &Table, at: usize, state: u32) {
    if state != FREE && table.slots[at].state.compare_exchange(state, FREE, AcqRel, Relaxed).is_ok() {
        table.taken.0[at / 64].fetch_and(!(1 << (at % 64)), AcqRel);
    }
}

fn call_first(table: &Table, key: &Key, layout: &Layout) {
    while let Some(at) = first_unasked(table, key) {
        // Called first and asked then: it is hardly ever dead, and the question takes its time.
        call(&table.slots[at]);
        if !clear_if_dead(table, at, layout) {
            return;
        }
    }
    pass_on(table, key);
}

/// Calls the next one, whoever it is: also one who was passed over, if there is no other.
fn pass_on(table: &Table, key: &Key) {
    let next = first_of(table, |slot| slot.state.load(Acquire) == WAITING && is_for(slot, key))
        .or_else(|| first_of(table, |slot| slot.state.load(Acquire) == PASSED && is_for(slot, key)));
    if let Some(at) = next {
        call(&table.slots[at]);
    }
}

fn call(slot: &Slot) {
    slot.called_at.store(now_ms(), Relaxed);
    let awaits = |state| matches!(state, WAITING | PASSED).then_some(CALLED);
    if slot.state.fetch_update(AcqRel, Relaxed, awaits).is_ok() {
        let _ = futex::wake(&slot.state, futex::Flags::empty(), 1);
    }
}

fn now_ms() -> u64 {
    u64::try_from(Reading::now().boottime.as_millis()).unwrap_or(u64::MAX)
}
