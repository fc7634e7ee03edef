//! The slots of the waiters in the table: their states, who takes and frees them, and who is notified.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::Duration;

use rustix::thread::futex;

use super::table::{Slot, Table};
use crate::Key;
use crate::filesystem::disk::layout::{self, Layout, OWNERS};
use crate::filesystem::disk::lock_file::is_owner_name;
use crate::filesystem::protocol::clock::Reading;
use crate::filesystem::protocol::lease::Liveness;
use crate::filesystem::protocol::owner::{self, Owner};

/// Nobody's.
pub(super) const FREE: u32 = 0;
/// The waiter sleeps, or is about to.
pub(super) const WAITING: u32 = 1;
/// It is the waiter's turn.
pub(super) const NOTIFIED: u32 = 2;
/// The waiter was notified and did not react.
pub(super) const SKIPPED: u32 = 3;
/// Being initialized: the higher bits identify the process, because the slot does not name its owner yet.
pub(super) const CLAIMED: u32 = 4;
/// So many waiters for the keys of a latch may come in a millisecond before their tickets are ahead of the time.
pub(super) const TICKETS_PER_MS: u64 = 1 << 10;

/// The bits of a state that say which of these it is.
const KIND: u32 = 7;

/// A notified waiter has this long to react before others go first.
pub(super) const GRACE: Duration = Duration::from_millis(50);

/// The slot of the first living waiter that is not skipped. The slots of dead ones are freed.
pub(super) fn first_living(table: &Table, key: &Key, layout: &Layout) -> Option<usize> {
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
    let dead = is_dead(&owner, layout);
    // The check takes time, and the slot may have a new waiter.
    if dead && slot.owner() == owner {
        free_slot(table, at, state);
    }
    dead
}

pub(super) fn is_dead(owner: &str, layout: &Layout) -> bool {
    !is_owner_name(owner)
        || owner::liveness(layout, owner, Owner::known_here(layout).as_deref()) == Liveness::Dead
}

/// Frees the slots of all dead waiters, whatever they waited for: many processes may be killed at once, and nobody
/// may ever release those keys.
pub(super) fn free_all_dead(table: &Table, layout: &Layout) {
    let mut dead = HashMap::new();
    let mut claims = None;
    for (at, slot) in table.slots.iter().enumerate() {
        let (state, owner) = (slot.state.load(Acquire), slot.owner());
        let is_dead = match state & KIND {
            FREE => false,
            CLAIMED => !claims.get_or_insert_with(|| live_claims(table, layout)).contains(&state),
            _ => *dead.entry(owner.clone()).or_insert_with(|| is_dead(&owner, layout)),
        };
        if is_dead && slot.owner() == owner {
            free_slot(table, at, state);
        }
    }
}

/// The claims in the table whose process may be alive: an owner file that fits is not proven dead.
fn live_claims(table: &Table, layout: &Layout) -> HashSet<u32> {
    let states = table.slots.iter().map(|slot| slot.state.load(Acquire));
    let claims: HashSet<_> = states.filter(|state| state & KIND == CLAIMED).collect();
    let listing = layout.open_private_dir(OWNERS).and_then(|owners| layout::list(&owners));
    // If the owners cannot be listed, nobody is proven dead.
    let Ok(listing) = listing else { return claims };
    let names = listing.flatten().filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
    names
        .filter(|name| claims.contains(&claim_of(name)) && !is_dead(name, layout))
        .map(|name| claim_of(&name))
        .collect()
}

/// The state of a slot that the process with this owner file is initializing.
pub(super) fn claim_of(owner: &str) -> u32 {
    crc32fast::hash(owner.as_bytes()) & !KIND | CLAIMED
}

/// The next ticket: at least the time, so it also says since when its waiter waits.
pub(super) fn take_ticket(tickets: &AtomicU64) -> u64 {
    let now = now_ms().saturating_mul(TICKETS_PER_MS);
    let next = |last: u64| last.wrapping_add(1).max(now);
    let last = tickets.fetch_update(AcqRel, Relaxed, |last| Some(next(last)));
    last.map_or(now, next)
}

pub(super) fn is_for(slot: &Slot, key: &Key) -> bool {
    slot.crc32.load(Relaxed) == key.crc32() && slot.tag.load(Relaxed) == key.tag()
}

pub(super) fn first_of(table: &Table, wanted: impl Fn(&Slot) -> bool) -> Option<usize> {
    slots_in_use(table)
        .filter(|&at| wanted(&table.slots[at]))
        .min_by_key(|&at| table.slots[at].ticket.load(Relaxed))
}

pub(super) fn slots_in_use(table: &Table) -> impl Iterator<Item = usize> {
    table.in_use.0.iter().enumerate().flat_map(|(index, word)| {
        let mut bits = word.load(Acquire);
        std::iter::from_fn(move || {
            let bit = bits.trailing_zeros();
            bits &= bits.wrapping_sub(1);
            (bit < u64::BITS).then_some(index * 64 + bit as usize)
        })
    })
}

/// Takes a free slot. `None`: there is none.
pub(super) fn take_slot(table: &Table, claim: u32) -> Option<usize> {
    let take = |&at: &usize| {
        table.slots[at].state.compare_exchange(FREE, claim, AcqRel, Relaxed).is_ok() && {
            mark_in_use(table, at);
            true
        }
    };
    let is_unused = |&at: &usize| table.in_use.0[at / 64].load(Acquire) & 1 << (at % 64) == 0;
    let slots = 0..table.slots.len();
    // A process that was killed while it freed a slot may have left the mark of that slot.
    slots.clone().filter(is_unused).find(take).or_else(|| slots.clone().find(take))
}

pub(super) fn mark_in_use(table: &Table, at: usize) {
    let (word, bit) = (&table.in_use.0[at / 64], 1 << (at % 64));
    if word.load(Relaxed) & bit == 0 {
        word.fetch_or(bit, AcqRel);
    }
}

pub(super) fn unmark_in_use(table: &Table, at: usize) {
    table.in_use.0[at / 64].fetch_and(!(1 << (at % 64)), AcqRel);
}

/// Frees a slot that is in this state, unless another process already has.
pub(super) fn free_slot(table: &Table, at: usize, state: u32) {
    if state != FREE && table.slots[at].state.compare_exchange(state, FREE, AcqRel, Relaxed).is_ok() {
        unmark_in_use(table, at);
        // A waiter that took the slot meanwhile may have found the mark still set.
        if table.slots[at].state.load(Acquire) != FREE {
            mark_in_use(table, at);
        }
    }
}

pub(super) fn notify_first(table: &Table, key: &Key, layout: &Layout) {
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
pub(super) fn notify_next(table: &Table, key: &Key) {
    let next = first_of(table, |slot| slot.state.load(Acquire) == WAITING && is_for(slot, key))
        .or_else(|| first_of(table, |slot| slot.state.load(Acquire) == SKIPPED && is_for(slot, key)));
    if let Some(at) = next {
        notify(&table.slots[at]);
    }
}

pub(super) fn notify(slot: &Slot) {
    slot.time.store(now_ms(), Relaxed);
    let awaits = |state| matches!(state, WAITING | SKIPPED).then_some(NOTIFIED);
    if slot.state.fetch_update(AcqRel, Relaxed, awaits).is_ok() {
        let _ = futex::wake(&slot.state, futex::Flags::empty(), 1);
    }
}

/// The time that a notified waiter has left to react.
pub(super) fn grace_left(slot: &Slot) -> Duration {
    // A notification in the future was made by another clock, and means nothing.
    let age = now_ms().checked_sub(slot.time.load(Relaxed)).map(Duration::from_millis);
    age.map_or(Duration::ZERO, |age| GRACE.saturating_sub(age))
}

fn now_ms() -> u64 {
    to_ms(Reading::now().boottime)
}

pub(super) fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
