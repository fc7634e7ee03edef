//! The contract of one key as a state machine: one step per call. The parent module describes what the
//! contract allows.

use std::cell::Cell;
use std::time::Duration;

use super::history::{Call, Claim, Death, Deaths, HolderId, NEVER, Op, Outcome};
use crate::support::Moment;

/// The most slots that a call asks for.
pub(crate) const MAX_SLOTS: usize = 3;

/// All sets of locks of a key but the empty one, a bit for each lock. The smaller ones first.
const SETS_OF_LOCKS: [u8; 7] = [0b001, 0b010, 0b100, 0b011, 0b101, 0b110, 0b111];

/// The state of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    record: Option<u64>,
    /// The version of the record, once a call has returned it.
    version: Option<u64>,
    /// The greatest version that a call has returned.
    newest_version: u64,
    /// One lock, or those that share it. Each is present until a call with the latch has seen that it ended.
    locks: [Option<Lock>; MAX_SLOTS],
    /// The greatest token known to be issued.
    newest: u64,
}

/// A lock *ends* when its lease expires or when its process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lock {
    holder: HolderId,
    /// `None`: it is exclusive.
    slots: Option<u32>,
    /// `None` if the call that acquired it was killed before it returned the token.
    token: Option<u64>,
    /// The lease expires between these two moments.
    expires_from: Moment,
    expires_by: Moment,
    /// A call without the latch has seen that it ended.
    seen_ended: bool,
}

/// The rules of one run.
#[derive(Default)]
pub(crate) struct Rules {
    pub(crate) deaths: Deaths,
    /// How often the search found a lock that can have ended only by the expiry of its lease, or only
    /// by the death of its process.
    pub(crate) leases_expired: Cell<u64>,
    pub(crate) owners_dead: Cell<u64>,
}

/// The states that a call may lead to: none if it is impossible here, several if the call was killed before it
/// returned, or if it cannot be known which of several locks has ended.
pub(crate) type Next = [Option<State>; 1 + MAX_SLOTS];

impl Rules {
    pub(crate) fn step(&self, state: State, call: &Call) -> Next {
        let step = Step { rules: self, state, call };
        match &call.outcome {
            Some(Outcome::Acquired { token, reentrant: false }) => step.acquired(Some(*token)),
            Some(outcome) => [step.returned(outcome), None, None, None],
            None => step.killed(),
        }
    }
}

/// Whether an operation can change anything.
pub(crate) fn is_change(op: Op) -> bool {
    !matches!(op, Op::Read(_) | Op::Exists | Op::Info | Op::Holders | Op::WaitFree)
}

/// Whether a call with this outcome may have changed anything.
pub(crate) fn may_change(call: &Call) -> bool {
    use Outcome::{Acquired, Done, Flag};
    is_change(call.op) && matches!(call.outcome, None | Some(Done | Flag(true) | Acquired { .. }))
}

/// A call that takes effect in a state.
struct Step<'a> {
    rules: &'a Rules,
    state: State,
    call: &'a Call,
}

impl Step<'_> {
    /// The state after a call that returned this outcome.
    fn returned(&self, outcome: &Outcome) -> Option<State> {
        let state = self.state;
        match (self.call.op, outcome) {
            (Op::Read(claim), Outcome::Value(value)) => {
                self.if_valid(claim).or(self.if_late_renewal()).filter(|state| state.record == *value)
            }
            (Op::Read(claim), Outcome::Record(value, version)) => self
                .if_valid(claim)
                .or(self.if_late_renewal())
                .filter(|state| state.record == Some(*value))
                .and_then(|state| with_version(state, *version)),
            (Op::Acquire(holder, _) | Op::Share(holder, ..), Outcome::Timeout(Some(current))) => {
                self.if_held_by(*current, Claim::Holder(holder))
            }
            // Another waiter was next, or the latch was held: this says nothing about the lock.
            (Op::Read(_) | Op::Acquire(..) | Op::Share(..), Outcome::Timeout(None)) => Some(state),
            (Op::Write(claim, value), Outcome::Done) => {
                self.if_changeable(claim).map(|state| with_record(state, Some(value)))
            }
            (Op::Swap(claim, expected, value), Outcome::Flag(true)) => self
                .if_changeable(claim)
                .filter(|state| state.record == expected)
                .map(|state| with_record(state, Some(value))),
            (Op::Swap(_, expected, _), Outcome::Flag(false)) => (state.record != expected).then_some(state),
            (Op::Remove(claim), Outcome::Flag(removed)) => self
                .if_changeable(claim)
                .filter(|state| state.record.is_some() == *removed)
                .map(|state| with_record(state, None)),
            (Op::Exists, Outcome::Flag(exists)) => (state.record.is_some() == *exists).then_some(state),
            (
                Op::Acquire(holder, hold) | Op::Share(holder, hold, _),
                Outcome::Acquired { token, reentrant: true },
            ) => {
                let claim = Claim::Holder(holder);
                let own = if matches!(self.call.op, Op::Share(..)) {
                    self.if_own(claim)
                } else {
                    self.if_alone(claim)
                };
                self.renewed(self.with_token(own?, claim, *token)?, claim, hold)
            }
            (Op::Acquire(holder, _), Outcome::Shared) => self.if_sharer(Claim::Holder(holder)),
            (Op::Write(claim, _) | Op::Swap(claim, ..) | Op::Remove(claim), Outcome::Shared) => {
                self.if_sharer(claim)
            }
            (Op::Renew(claim, hold), Outcome::Done) => self.renewed(self.if_own(claim)?, claim, hold),
            (Op::Release(claim), Outcome::Done) => {
                self.if_own(claim).map(|state| self.released(state, claim))
            }
            (Op::Renew(Claim::Holder(_), _) | Op::Release(Claim::Holder(_)), Outcome::NotLocked)
            | (Op::Break, Outcome::Flag(false)) => self.if_free(),
            (Op::Read(claim), Outcome::Timeout(Some(holder)))
            | (Op::Write(claim, _) | Op::Swap(claim, ..) | Op::Remove(claim), Outcome::Locked(holder))
            | (Op::Renew(claim, _) | Op::Release(claim), Outcome::NotHolder(holder)) => {
                self.if_held_by(*holder, claim)
            }
            (
                Op::Read(Claim::Token(token))
                | Op::Write(Claim::Token(token), _)
                | Op::Swap(Claim::Token(token), ..)
                | Op::Remove(Claim::Token(token))
                | Op::Renew(Claim::Token(token), _)
                | Op::Release(Claim::Token(token)),
                Outcome::Lost,
            ) => self.if_lost(token),
            (Op::Info, Outcome::Info(Some(info))) => self.if_info(*info).or(self.if_late_renewal()),
            (Op::Holders, Outcome::Holders(holders)) => self.if_holders(holders).or(self.if_late_renewal()),
            (Op::Info, Outcome::Info(None)) | (Op::WaitFree, Outcome::Flag(true)) => {
                self.if_free_without_latch().or(self.if_holders_late_renewal())
            }
            (Op::WaitFree, Outcome::Flag(false)) => {
                let live = self.locks().any(|lock| self.may_be_live(lock));
                live.then_some(state).or(self.if_late_renewal())
            }
            (Op::Break, Outcome::Flag(true)) => Some(without_locks(state)),
            _ => None,
        }
    }

    /// The states after an acquisition that is not re-entrant.
    fn acquired(&self, token: Option<u64>) -> Next {
        let (holder, hold, slots) = match self.call.op {
            Op::Acquire(holder, hold) => (holder, hold, None),
            Op::Share(holder, hold, slots) => (holder, hold, Some(slots)),
            _ => return [None; 1 + MAX_SLOTS],
        };
        let free = match slots {
            None => [self.if_free(), None, None, None],
            Some(slots) => self.if_room(holder, slots),
        };
        free.map(|state| state.and_then(|state| self.with_lock(state, holder, slots, token, hold)))
    }

    /// The states after a killed call that took effect.
    fn killed(&self) -> Next {
        let one = |state| [state, None, None, None];
        match self.call.op {
            Op::Write(claim, value) => {
                one(self.if_changeable(claim).map(|state| with_record(state, Some(value))))
            }
            Op::Swap(claim, expected, value) => one(self
                .if_changeable(claim)
                .filter(|state| state.record == expected)
                .map(|state| with_record(state, Some(value)))),
            Op::Remove(claim) => one(self.if_changeable(claim).map(|state| with_record(state, None))),
            Op::Acquire(holder, hold) | Op::Share(holder, hold, _) => {
                let claim = Claim::Holder(holder);
                match self.if_own(claim).and_then(|state| self.renewed(state, claim, hold)) {
                    // Its own lock may have ended, too.
                    Some(renewed) => {
                        let [first, second, third, _] = self.acquired(None);
                        [first, second, third, Some(renewed)]
                    }
                    None => self.acquired(None),
                }
            }
            Op::Renew(claim, hold) => {
                one(self.if_own(claim).and_then(|state| self.renewed(state, claim, hold)))
            }
            Op::Release(claim) => one(self.if_own(claim).map(|state| self.released(state, claim))),
            Op::Break => one(Some(without_locks(self.state))),
            Op::Read(_) | Op::Exists | Op::Info | Op::Holders | Op::WaitFree => one(None),
        }
    }

    fn locks(&self) -> impl Iterator<Item = &Lock> {
        self.state.locks.iter().flatten()
    }

    /// The claim permits to read the record.
    fn if_valid(&self, claim: Claim) -> Option<State> {
        match claim {
            // The claimant's own lock may have ended without any call that noticed it.
            Claim::Holder(_) => {
                let are_shared = self.locks().all(|lock| lock.slots.is_some());
                // It says nothing about them.
                let beside_sharers = || are_shared.then_some(self.state);
                self.if_own(claim).or_else(beside_sharers).or_else(|| self.if_free())
            }
            Claim::Token(_) => self.if_own(claim),
        }
    }

    /// The claim permits to change the record.
    fn if_changeable(&self, claim: Claim) -> Option<State> {
        match claim {
            Claim::Holder(_) => self.if_alone(claim).or_else(|| self.if_free()),
            Claim::Token(_) => self.if_alone(claim),
        }
    }

    /// No lock is live: there is none, or it has ended. From now on it has ended for all calls.
    fn if_free(&self) -> Option<State> {
        let is_over = |lock: &Lock| lock.seen_ended || self.may_have_ended(lock);
        self.locks().all(is_over).then(|| without_locks(self.state))
    }

    /// One more may share the lock. Its holder's own one has ended, and is gone. If there is no room, some of the others have
    /// ended, too: the fewest that make room. That more of them have ended, a later call can still find out.
    fn if_room(&self, holder: HolderId, slots: u32) -> Next {
        let has_room = |state: &State| {
            let locks = || state.locks.iter().flatten().filter(|lock| !lock.seen_ended);
            let least = locks().map(|lock| lock.slots.unwrap_or(0)).fold(slots, u32::min);
            locks().count() < least as usize
        };
        let mut next = [None; 1 + MAX_SLOTS];
        let is_live = |lock: &Lock| lock.holder == holder && !lock.seen_ended && !self.may_have_ended(lock);
        if self.locks().any(is_live) {
            return next;
        }
        let is_left = |lock: &Lock| lock.holder != holder && !lock.seen_ended;
        let seen = State { locks: self.state.locks.map(|lock| lock.filter(is_left)), ..self.state };
        if has_room(&seen) {
            next[MAX_SLOTS] = Some(seen);
            return next;
        }
        // Of these sets, at most three are not parts of each other.
        let mut makes_room: Vec<u8> = Vec::new();
        for ended in SETS_OF_LOCKS {
            let has_ended = |at: usize| ended >> at & 1 == 1;
            let all_have = || {
                (0..MAX_SLOTS)
                    .filter(|at| has_ended(*at))
                    .all(|at| seen.locks[at].is_some_and(|lock| self.may_have_ended(&lock)))
            };
            if makes_room.iter().any(|fewer| ended & fewer == *fewer) || !all_have() {
                continue;
            }
            let left = |at: usize| seen.locks[at].filter(|_| !has_ended(at));
            let state = State { locks: std::array::from_fn(left), ..seen };
            if has_room(&state) {
                next[makes_room.len()] = Some(state);
                makes_room.push(ended);
            }
        }
        next
    }

    /// No lock is live for a call that checks it without the latch.
    fn if_free_without_latch(&self) -> Option<State> {
        let mut state = self.state;
        for lock in state.locks.iter_mut().flatten() {
            lock.seen_ended |= self.may_have_ended(lock);
        }
        state.locks.iter().flatten().all(|lock| lock.seen_ended).then_some(state)
    }

    /// A concurrent renewal that fails makes a lock appear live for longer.
    fn if_late_renewal(&self) -> Option<State> {
        (!self.call.late_renewals.is_empty()).then_some(self.state)
    }

    /// A concurrent renewal by the lock's holder fails, and makes the lock appear to have ended early.
    fn if_holders_late_renewal(&self) -> Option<State> {
        let is_late = |lock: &Lock| self.call.late_renewals.contains(&lock.holder);
        self.locks().any(is_late).then_some(self.state)
    }

    /// A live lock is the claimant's.
    fn if_own(&self, claim: Claim) -> Option<State> {
        self.locks().any(|lock| self.is_live_of(lock, claim)).then_some(self.state)
    }

    /// The live lock is the claimant's, and exclusive.
    fn if_alone(&self, claim: Claim) -> Option<State> {
        let is_own = |lock: &Lock| lock.slots.is_none() && self.is_live_of(lock, claim);
        self.locks().any(is_own).then_some(self.state)
    }

    /// The claimant shares the live lock.
    fn if_sharer(&self, claim: Claim) -> Option<State> {
        let is_own = |lock: &Lock| lock.slots.is_some() && self.is_live_of(lock, claim);
        self.locks().any(is_own).then_some(self.state).or(self.if_late_renewal())
    }

    fn is_live_of(&self, lock: &Lock, claim: Claim) -> bool {
        // A change may have been admitted before another call saw that the lock ended.
        let admitted = is_change(self.call.op) && lock.expires_from <= self.call.end;
        self.is_claimants(lock, claim)
            && self.may_be_live(&Lock { seen_ended: lock.seen_ended && !admitted, ..*lock })
    }

    /// A live lock belongs to this holder, and the claim does not fit it.
    fn if_held_by(&self, holder: HolderId, claim: Claim) -> Option<State> {
        let fits =
            |lock: &Lock| lock.holder == holder && !self.is_claimants(lock, claim) && self.may_be_live(lock);
        let live = self.locks().any(fits);
        live.then_some(self.state).or(self.if_late_renewal())
    }

    /// No live lock has this token.
    fn if_lost(&self, token: u64) -> Option<State> {
        let claim = Claim::Token(token);
        let mut state = self.state;
        for at in 0..MAX_SLOTS {
            let Some(lock) = state.locks[at].filter(|lock| self.is_claimants(lock, claim)) else { continue };
            if lock.seen_ended || self.may_have_ended(&lock) {
                if is_change(self.call.op) {
                    state.locks[at] = None;
                } else {
                    state.locks[at] = Some(Lock { seen_ended: true, ..lock });
                }
            } else {
                let is_late = !is_change(self.call.op) && self.call.late_renewals.contains(&lock.holder);
                return is_late.then_some(self.state);
            }
        }
        Some(state)
    }

    /// A live lock has this holder, token and remaining lease.
    fn if_info(&self, (holder, token, remaining): (HolderId, u64, Option<Duration>)) -> Option<State> {
        let claim = Claim::Holder(holder);
        let mut state = self.with_token(self.state, claim, token)?;
        let lock = state.locks.iter_mut().flatten().find(|lock| lock.token == Some(token))?;
        if lock.holder != holder || !self.may_be_live(lock) {
            return None;
        }
        match remaining {
            None => (lock.expires_by == NEVER).then_some(state),
            Some(remaining) => {
                // A second measurement of the same expiry time.
                lock.expires_from = lock.expires_from.max(after(self.call.start, remaining));
                lock.expires_by = lock.expires_by.min(after(self.call.end, remaining));
                (lock.expires_from <= lock.expires_by).then_some(state)
            }
        }
    }

    /// These are all live locks, for a call that checks them without the latch.
    fn if_holders(&self, holders: &[(HolderId, u64)]) -> Option<State> {
        let mut state = self.state;
        for (holder, token) in holders {
            state = self.with_token(state, Claim::Holder(*holder), *token)?;
        }
        for lock in state.locks.iter_mut().flatten() {
            let is_listed = lock.token.is_some_and(|token| holders.contains(&(lock.holder, token)));
            if is_listed && self.may_be_live(lock) {
                continue;
            }
            if is_listed || !(lock.seen_ended || self.may_have_ended(lock)) {
                return None;
            }
            lock.seen_ended = true;
        }
        Some(state)
    }

    /// The claimant's lock has this token, if that is possible.
    fn with_token(&self, mut state: State, claim: Claim, token: u64) -> Option<State> {
        let mut locks = state.locks.iter().flatten().filter(|lock| self.is_claimants(lock, claim));
        if locks.any(|lock| lock.token == Some(token)) {
            return Some(state);
        }
        let unknown = |lock: &&mut Lock| self.is_claimants(lock, claim) && lock.token.is_none();
        let lock = state.locks.iter_mut().flatten().find(unknown)?;
        lock.token = Some(token);
        // Those that share it may have come after it.
        let is_next = state.newest < token || lock.slots.is_some();
        state.newest = state.newest.max(token);
        is_next.then_some(state)
    }

    fn with_lock(
        &self,
        mut state: State,
        holder: HolderId,
        slots: Option<u32>,
        token: Option<u64>,
        hold: Option<Duration>,
    ) -> Option<State> {
        if token.is_some_and(|token| token <= state.newest) {
            return None;
        }
        let (expires_from, expires_by) = self.expiry(hold);
        let lock = Lock { holder, slots, token, expires_from, expires_by, seen_ended: false };
        *state.locks.iter_mut().find(|lock| lock.is_none())? = Some(lock);
        Some(State { newest: token.unwrap_or(state.newest), ..state })
    }

    /// The lease starts again.
    fn renewed(&self, mut state: State, claim: Claim, hold: Option<Duration>) -> Option<State> {
        let expiry = self.expiry(hold);
        let lock = state.locks.iter_mut().flatten().find(|lock| self.is_live_of(lock, claim))?;
        (lock.expires_from, lock.expires_by) = expiry;
        lock.seen_ended = false;
        Some(state)
    }

    fn released(&self, mut state: State, claim: Claim) -> State {
        let is_own = |lock: &Lock| self.is_live_of(lock, claim);
        if let Some(own) = state.locks.iter_mut().find(|lock| lock.as_ref().is_some_and(is_own)) {
            *own = None;
        }
        state
    }

    /// The bounds of the expiry time of a lease that this call starts.
    fn expiry(&self, hold: Option<Duration>) -> (Moment, Moment) {
        hold.map_or((NEVER, NEVER), |hold| (after(self.call.start, hold), after(self.call.end, hold)))
    }

    fn may_be_live(&self, lock: &Lock) -> bool {
        let alive = self.death_of(lock).is_none_or(|death| self.call.start < death.latest);
        !lock.seen_ended && self.call.start < lock.expires_by && alive
    }

    fn may_have_ended(&self, lock: &Lock) -> bool {
        let lease_expired = lock.expires_from <= self.call.end;
        let owner_dead = self.death_of(lock).is_some_and(|death| death.earliest <= self.call.end);
        if lease_expired != owner_dead {
            let reason = if lease_expired { &self.rules.leases_expired } else { &self.rules.owners_dead };
            reason.set(reason.get() + 1);
        }
        lease_expired || owner_dead
    }

    fn death_of(&self, lock: &Lock) -> Option<Death> {
        match lock.holder {
            HolderId::Thread { process, .. } => self.rules.deaths.get(&process).copied(),
            HolderId::Named(_) => None,
        }
    }

    fn is_claimants(&self, lock: &Lock, claim: Claim) -> bool {
        match claim {
            Claim::Holder(holder) => lock.holder == holder,
            Claim::Token(token) => {
                let same_process = match lock.holder {
                    HolderId::Thread { process, .. } => process == self.call.process,
                    HolderId::Named(_) => true,
                };
                lock.token == Some(token) && same_process
            }
        }
    }
}

fn without_locks(state: State) -> State {
    State { locks: [None; MAX_SLOTS], ..state }
}

fn with_record(state: State, record: Option<u64>) -> State {
    State { record, version: None, ..state }
}

/// The record has this version, if that is possible.
fn with_version(state: State, version: u64) -> Option<State> {
    match state.version {
        Some(known) => (known == version).then_some(state),
        None => (state.newest_version < version).then_some(State {
            version: Some(version),
            newest_version: version,
            ..state
        }),
    }
}

fn after(moment: Moment, time: Duration) -> Moment {
    moment.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(NEVER))
}
