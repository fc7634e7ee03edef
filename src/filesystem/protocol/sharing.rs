//! The acquisitions that share a lock: which of them is in question, whether one more may come, and what is left
//! without one. Acquisitions that are over go at the next change.

use std::num::NonZeroU32;

use super::access::Found;
use super::lease::{Lease, Term};
use crate::LockState;
use crate::filesystem::disk::layout::MAX_LOCK_BYTES;
use crate::filesystem::disk::lock_file::{Acquisition, LockFile};

impl Found {
    /// Makes the first acquisition that is in force and meant the one in question. `false`: there is none.
    pub(crate) fn find_held(&mut self, is_meant: impl Fn(&Acquisition) -> bool) -> bool {
        if self.state == LockState::Held && is_meant(&self.lock.acquisition) {
            return true;
        }
        self.find(|acquisition, state| state == LockState::Held && is_meant(acquisition))
    }

    /// Makes the sharer that is meant the acquisition in question.
    pub(crate) fn find(&mut self, is_meant: impl Fn(&Acquisition, LockState) -> bool) -> bool {
        let sharers = self.lock.sharers.iter_mut().zip(&mut self.sharers);
        for (sharer, (state, term)) in sharers {
            if is_meant(sharer, *state) {
                std::mem::swap(&mut self.lock.acquisition, sharer);
                std::mem::swap(&mut self.state, state);
                std::mem::swap(&mut self.term, term);
                return true;
            }
        }
        false
    }

    /// The acquisitions that are in force, with the rests of their leases.
    fn held(&self) -> impl Iterator<Item = (&Acquisition, Term)> {
        let states = std::iter::once((self.state, self.term)).chain(self.sharers.iter().copied());
        let all = self.lock.acquisitions().zip(states);
        all.filter(|(_, (state, _))| *state == LockState::Held)
            .map(|(acquisition, (_, term))| (acquisition, term))
    }

    /// The rest of the lease that ends first: then there is room for another one, or no lock.
    pub(crate) fn first_term(&self) -> Term {
        self.held().map(|(_, term)| term).min().unwrap_or(self.term)
    }

    /// Whether one more acquisition may share the lock, if it wants at most so many. `None`: it wants to be alone.
    pub(crate) fn has_room(&self, slots: Option<NonZeroU32>) -> bool {
        let Some(slots) = slots else { return false };
        let of_held = self.held().map(|(held, _)| held.slots.map_or(0, NonZeroU32::get));
        let count = u32::try_from(self.held().count()).unwrap_or(u32::MAX);
        count < of_held.fold(slots.get(), u32::min)
    }

    /// The lock with one more acquisition. `None`: the file would be too long.
    pub(crate) fn with(&self, newcomer: Acquisition) -> Option<LockFile> {
        let held = self.held().map(|(held, _)| held.clone());
        let lock = LockFile::of(&self.lock.key, held.chain([newcomer]).collect(), self.lock.newest);
        lock.filter(|lock| lock.to_text().len() <= MAX_LOCK_BYTES)
    }

    /// The lock without the acquisition in question. `None`: there is no other.
    pub(crate) fn without(&self) -> Option<LockFile> {
        let token = self.lock.acquisition.token;
        let others = self.held().map(|(held, _)| held.clone()).filter(|held| held.token != token);
        LockFile::of(&self.lock.key, others.collect(), self.lock.newest)
    }

    /// The lock with another lease of the acquisition in question.
    pub(crate) fn renewed(&self, lease: Lease) -> LockFile {
        let mut lock = self.lock.clone();
        lock.acquisition.lease = lease;
        lock
    }
}

impl LockFile {
    /// Whether one more acquisition may share the lock.
    pub(crate) fn has_room(&self) -> bool {
        let count = u32::try_from(self.sharers.len() + 1).unwrap_or(u32::MAX);
        self.acquisitions().all(|acquisition| acquisition.slots.is_some_and(|slots| count < slots.get()))
    }
}
