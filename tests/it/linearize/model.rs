//! The contract of one key as a state machine: one step per call. The parent module describes what the
//! contract allows.

use std::cell::Cell;
use std::time::Duration;

use super::history::{Call, Claim, Death, Deaths, HolderId, NEVER, Op, Outcome};
use crate::support::Moment;

/// The state of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    record: Option<u64>,
    /// The version of the record, once a call has returned it.
    version: Option<u64>,
    /// The greatest version that a call has returned.
    newest_version: u64,
    /// Present until a call with the latch has seen that it ended.
    lock: Option<Lock>,
    /// The greatest token known to be issued.
    newest: u64,
}

/// A lock *ends* when its lease expires or when its process dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lock {
    holder: HolderId,
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

/// The states that a call may lead to: none if it is impossible here, two if the call was killed
/// before it returned.
pub(crate) type Next = [Option<State>; 2];

impl Rules {
    pub(crate) fn step(&self, state: State, call: &Call) -> Next {
        let step = Step { rules: self, state, call };
        match &call.outcome {
            Some(outcome) => [step.returned(outcome), None],
            None => step.killed(),
        }
    }
}

/// Whether an operation can change anything.
pub(crate) fn is_change(op: Op) -> bool {
    !matches!(op, Op::Read(_) | Op::Exists | Op::Info | Op::WaitFree)
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
            (Op::Acquire(holder, _), Outcome::Timeout(Some(current))) => {
                self.if_held_by(*current, Claim::Holder(holder))
            }
            // Another waiter was next, or the latch was held: this says nothing about the lock.
            (Op::Read(_) | Op::Acquire(..), Outcome::Timeout(None)) => Some(state),
            (Op::Write(claim, value), Outcome::Done) => {
                self.if_valid(claim).map(|state| with_record(state, Some(value)))
            }
            (Op::Swap(claim, expected, value), Outcome::Flag(true)) => self
                .if_valid(claim)
                .filter(|state| state.record == expected)
                .map(|state| with_record(state, Some(value))),
            (Op::Swap(_, expected, _), Outcome::Flag(false)) => (state.record != expected).then_some(state),
            (Op::Remove(claim), Outcome::Flag(removed)) => self
                .if_valid(claim)
                .filter(|state| state.record.is_some() == *removed)
                .map(|state| with_record(state, None)),
            (Op::Exists, Outcome::Flag(exists)) => (state.record.is_some() == *exists).then_some(state),
            (Op::Acquire(holder, hold), Outcome::Acquired { token, reentrant: true }) => {
                self.renewed(self.with_token(self.if_own(Claim::Holder(holder))?, *token)?, hold)
            }
            (Op::Acquire(holder, hold), Outcome::Acquired { token, reentrant: false }) => {
                self.if_free().filter(|state| state.newest < *token).map(|state| {
                    let state = State { newest: *token, ..state };
                    self.acquired(state, holder, Some(*token), hold)
                })
            }
            (Op::Renew(claim, hold), Outcome::Done) => self.renewed(self.if_own(claim)?, hold),
            (Op::Release(claim), Outcome::Done) => {
                self.if_own(claim).map(|state| State { lock: None, ..state })
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
            (Op::Info, Outcome::Info(None)) | (Op::WaitFree, Outcome::Flag(true)) => {
                self.if_free_without_latch().or(self.if_holders_late_renewal())
            }
            (Op::WaitFree, Outcome::Flag(false)) => {
                let live = state.lock.is_some_and(|lock| self.may_be_live(&lock));
                live.then_some(state).or(self.if_late_renewal())
            }
            (Op::Break, Outcome::Flag(true)) => Some(State { lock: None, ..state }),
            _ => None,
        }
    }

    /// The states after a killed call that took effect.
    fn killed(&self) -> Next {
        let one = |state| [state, None];
        match self.call.op {
            Op::Write(claim, value) => one(self.if_valid(claim).map(|state| with_record(state, Some(value)))),
            Op::Swap(claim, expected, value) => one(self
                .if_valid(claim)
                .filter(|state| state.record == expected)
                .map(|state| with_record(state, Some(value)))),
            Op::Remove(claim) => one(self.if_valid(claim).map(|state| with_record(state, None))),
            Op::Acquire(holder, hold) => [
                self.if_own(Claim::Holder(holder)).and_then(|state| self.renewed(state, hold)),
                self.if_free().map(|state| self.acquired(state, holder, None, hold)),
            ],
            Op::Renew(claim, hold) => one(self.if_own(claim).and_then(|state| self.renewed(state, hold))),
            Op::Release(claim) => one(self.if_own(claim).map(|state| State { lock: None, ..state })),
            Op::Break => one(Some(State { lock: None, ..self.state })),
            Op::Read(_) | Op::Exists | Op::Info | Op::WaitFree => one(None),
        }
    }

    /// The claim permits to read and change the record.
    fn if_valid(&self, claim: Claim) -> Option<State> {
        match claim {
            // The claimant's own lock may have ended without any call that noticed it.
            Claim::Holder(_) => self.if_own(claim).or_else(|| self.if_free()),
            Claim::Token(_) => self.if_own(claim),
        }
    }

    /// No lock is live: there is none, or it has ended. From now on it has ended for all calls.
    fn if_free(&self) -> Option<State> {
        match self.state.lock {
            Some(lock) if !lock.seen_ended && !self.may_have_ended(&lock) => None,
            _ => Some(State { lock: None, ..self.state }),
        }
    }

    /// No lock is live for a call that checks it without the latch.
    fn if_free_without_latch(&self) -> Option<State> {
        let mut state = self.state;
        if let Some(lock) = &mut state.lock {
            lock.seen_ended |= self.may_have_ended(lock);
            return lock.seen_ended.then_some(state);
        }
        Some(state)
    }

    /// A concurrent renewal that fails makes a lock appear live for longer.
    fn if_late_renewal(&self) -> Option<State> {
        (!self.call.late_renewals.is_empty()).then_some(self.state)
    }

    /// A concurrent renewal by the lock's holder fails, and makes the lock appear to have ended early.
    fn if_holders_late_renewal(&self) -> Option<State> {
        let lock = self.state.lock?;
        self.call.late_renewals.contains(&lock.holder).then_some(self.state)
    }

    /// The live lock is the claimant's.
    fn if_own(&self, claim: Claim) -> Option<State> {
        let live = |lock: &Lock| {
            // A change may have been admitted before another call saw that the lock ended.
            let admitted = is_change(self.call.op) && lock.expires_from <= self.call.end;
            self.is_claimants(lock, claim)
                && self.may_be_live(&Lock { seen_ended: lock.seen_ended && !admitted, ..*lock })
        };
        self.state.lock.filter(live).map(|_| self.state)
    }

    /// The live lock belongs to this holder, and the claim does not fit it.
    fn if_held_by(&self, holder: HolderId, claim: Claim) -> Option<State> {
        let fits =
            |lock: &Lock| lock.holder == holder && !self.is_claimants(lock, claim) && self.may_be_live(lock);
        let live = self.state.lock.as_ref().is_some_and(fits);
        live.then_some(self.state).or(self.if_late_renewal())
    }

    /// No live lock has this token.
    fn if_lost(&self, token: u64) -> Option<State> {
        match self.state.lock {
            Some(lock) if self.is_claimants(&lock, Claim::Token(token)) => {
                if is_change(self.call.op) {
                    self.if_free()
                } else {
                    self.if_free_without_latch().or(self.if_holders_late_renewal())
                }
            }
            _ => Some(self.state),
        }
    }

    /// The live lock has this holder, token and remaining lease.
    fn if_info(&self, (holder, token, remaining): (HolderId, u64, Option<Duration>)) -> Option<State> {
        let mut state = self.with_token(self.state, token)?;
        let lock = state.lock.as_mut().filter(|lock| lock.holder == holder && self.may_be_live(lock))?;
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

    /// The lock has this token, if that is possible.
    fn with_token(&self, mut state: State, token: u64) -> Option<State> {
        let lock = state.lock.as_mut()?;
        if let Some(known) = lock.token {
            return (known == token).then_some(state);
        }
        lock.token = Some(token);
        state.newest = token;
        (self.state.newest < token).then_some(state)
    }

    fn acquired(&self, state: State, holder: HolderId, token: Option<u64>, hold: Option<Duration>) -> State {
        let (expires_from, expires_by) = self.expiry(hold);
        State { lock: Some(Lock { holder, token, expires_from, expires_by, seen_ended: false }), ..state }
    }

    /// The lease starts again.
    fn renewed(&self, mut state: State, hold: Option<Duration>) -> Option<State> {
        let lock = state.lock.as_mut()?;
        (lock.expires_from, lock.expires_by) = self.expiry(hold);
        lock.seen_ended = false;
        Some(state)
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
