//! The contract of one key as a machine that does one step at a time. See the parent module for
//! what it allows.

use std::cell::Cell;
use std::time::Duration;

use super::history::{By, Call, Deaths, NEVER, Op, Outcome, Who};
use crate::support::Moment;

/// All that a key remembers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct State {
    record: Option<u64>,
    /// Not yet seen to be over.
    lock: Option<Lock>,
    /// The greatest token that is known to have been given.
    newest: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Lock {
    holder: Who,
    /// `None`: taken by a call whose answer nobody heard.
    token: Option<u64>,
    /// The lease ends between these two.
    ends_from: Moment,
    ends_by: Moment,
    /// Somebody who looked without the latch has seen it over.
    seen_over: bool,
}

/// The rules, for one run.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) deaths: Deaths,
    /// How often the search found that a lock can only be over because its lease is, or because its
    /// process is gone.
    pub(super) leases_over: Cell<u64>,
    pub(super) owners_dead: Cell<u64>,
}

/// The states that a call may lead to: none if it cannot happen here, two if nobody heard its
/// answer.
pub(super) type Next = [Option<State>; 2];

impl Rules {
    pub(super) fn step(&self, state: State, call: &Call) -> Next {
        match &call.outcome {
            Some(outcome) => [At { rules: self, state, call }.answered(outcome), None],
            None => At { rules: self, state, call }.unheard(),
        }
    }
}

/// Whether a call may change anything.
pub(super) fn is_change(op: Op) -> bool {
    !matches!(op, Op::Read(_) | Op::Exists | Op::Info | Op::WaitFree)
}

/// Whether a call may have changed anything, as it ended.
pub(super) fn may_change(call: &Call) -> bool {
    use Outcome::{Acquired, Done, Flag};
    is_change(call.op) && matches!(call.outcome, None | Some(Done | Flag(true) | Acquired { .. }))
}

/// A call at one moment.
struct At<'a> {
    rules: &'a Rules,
    state: State,
    call: &'a Call,
}

impl At<'_> {
    fn answered(&self, outcome: &Outcome) -> Option<State> {
        let state = self.state;
        match (self.call.op, outcome) {
            (Op::Read(by), Outcome::Value(value)) => {
                self.good(by).or(self.seen_late()).filter(|state| state.record == *value)
            }
            (Op::Acquire(me, _), Outcome::Timeout(Some(who))) => self.others(By::Holder(me), *who),
            // It was another's turn, or the latch was taken: that says nothing of the lock.
            (Op::Read(_) | Op::Acquire(..), Outcome::Timeout(None)) => Some(state),
            (Op::Write(by, value), Outcome::Done) => {
                self.good(by).map(|state| State { record: Some(value), ..state })
            }
            (Op::Remove(by), Outcome::Flag(removed)) => self
                .good(by)
                .filter(|state| state.record.is_some() == *removed)
                .map(|state| State { record: None, ..state }),
            (Op::Exists, Outcome::Flag(there)) => (state.record.is_some() == *there).then_some(state),
            (Op::Acquire(who, hold), Outcome::Acquired { token, reentrant: true }) => {
                self.extended(self.known(self.mine(By::Holder(who))?, *token)?, hold)
            }
            (Op::Acquire(who, hold), Outcome::Acquired { token, reentrant: false }) => {
                self.free().filter(|state| state.newest < *token).map(|state| {
                    let state = State { newest: *token, ..state };
                    self.taken(state, who, Some(*token), hold)
                })
            }
            (Op::Renew(by, hold), Outcome::Done) => self.extended(self.mine(by)?, hold),
            (Op::Release(by), Outcome::Done) => self.mine(by).map(|state| State { lock: None, ..state }),
            (Op::Renew(By::Holder(_), _) | Op::Release(By::Holder(_)), Outcome::NotLocked)
            | (Op::Break, Outcome::Flag(false)) => self.free(),
            (Op::Read(by), Outcome::Timeout(Some(who)))
            | (Op::Write(by, _) | Op::Remove(by), Outcome::Locked(who))
            | (Op::Renew(by, _) | Op::Release(by), Outcome::NotHolder(who)) => self.others(by, *who),
            (
                Op::Read(By::Token(token))
                | Op::Write(By::Token(token), _)
                | Op::Remove(By::Token(token))
                | Op::Renew(By::Token(token), _)
                | Op::Release(By::Token(token)),
                Outcome::Lost,
            ) => self.lost(token),
            (Op::Info, Outcome::Info(Some(info))) => self.informed(*info).or(self.seen_late()),
            (Op::Info, Outcome::Info(None)) | (Op::WaitFree, Outcome::Flag(true)) => {
                self.seen_free().or(self.seen_over_early())
            }
            (Op::WaitFree, Outcome::Flag(false)) => {
                let live = state.lock.is_some_and(|lock| self.may_live(&lock));
                live.then_some(state).or(self.seen_late())
            }
            (Op::Break, Outcome::Flag(true)) => Some(State { lock: None, ..state }),
            _ => None,
        }
    }

    /// What the call may have done if nobody heard its answer.
    fn unheard(&self) -> Next {
        let one = |state| [state, None];
        match self.call.op {
            Op::Write(by, value) => one(self.good(by).map(|state| State { record: Some(value), ..state })),
            Op::Remove(by) => one(self.good(by).map(|state| State { record: None, ..state })),
            Op::Acquire(who, hold) => [
                self.mine(By::Holder(who)).and_then(|state| self.extended(state, hold)),
                self.free().map(|state| self.taken(state, who, None, hold)),
            ],
            Op::Renew(by, hold) => one(self.mine(by).and_then(|state| self.extended(state, hold))),
            Op::Release(by) => one(self.mine(by).map(|state| State { lock: None, ..state })),
            Op::Break => one(Some(State { lock: None, ..self.state })),
            Op::Read(_) | Op::Exists | Op::Info | Op::WaitFree => one(None),
        }
    }

    /// The record may be read or changed on this claim.
    fn good(&self, by: By) -> Option<State> {
        match by {
            // A lock of one's own need not be seen to be over.
            By::Holder(_) => self.mine(by).or_else(|| self.free()),
            By::Token(_) => self.mine(by),
        }
    }

    /// No lock is live: there is none, or it is over from now on, for good.
    fn free(&self) -> Option<State> {
        match self.state.lock {
            Some(lock) if !lock.seen_over && !self.may_be_over(&lock) => None,
            _ => Some(State { lock: None, ..self.state }),
        }
    }

    /// No lock is live for those who look without the latch.
    fn seen_free(&self) -> Option<State> {
        let mut state = self.state;
        if let Some(lock) = &mut state.lock {
            lock.seen_over |= self.may_be_over(lock);
            return lock.seen_over.then_some(state);
        }
        Some(state)
    }

    /// A lock that lives on for a moment by a renewal that comes to nothing.
    fn seen_late(&self) -> Option<State> {
        (!self.call.late_renewals.is_empty()).then_some(self.state)
    }

    /// A lock that is over for a moment by a renewal that comes to nothing.
    fn seen_over_early(&self) -> Option<State> {
        let lock = self.state.lock?;
        self.call.late_renewals.contains(&lock.holder).then_some(self.state)
    }

    /// The live lock is the claimant's.
    fn mine(&self, by: By) -> Option<State> {
        let live = |lock: &Lock| {
            // What is changing something may have been let in before the lease was seen to be over.
            let let_in = is_change(self.call.op) && lock.ends_from <= self.call.by;
            self.is_claimants(lock, by)
                && self.may_live(&Lock { seen_over: lock.seen_over && !let_in, ..*lock })
        };
        self.state.lock.filter(live).map(|_| self.state)
    }

    /// The live lock is another's: this one's.
    fn others(&self, by: By, who: Who) -> Option<State> {
        let fits = |lock: &Lock| lock.holder == who && !self.is_claimants(lock, by) && self.may_live(lock);
        let live = self.state.lock.as_ref().is_some_and(fits);
        live.then_some(self.state).or(self.seen_late())
    }

    /// No live lock has this token.
    fn lost(&self, token: u64) -> Option<State> {
        match self.state.lock {
            Some(lock) if self.is_claimants(&lock, By::Token(token)) => {
                if is_change(self.call.op) {
                    self.free()
                } else {
                    self.seen_free().or(self.seen_over_early())
                }
            }
            _ => Some(self.state),
        }
    }

    fn informed(&self, (who, token, left): (Who, u64, Option<Duration>)) -> Option<State> {
        let mut state = self.known(self.state, token)?;
        let lock = state.lock.as_mut().filter(|lock| lock.holder == who && self.may_live(lock))?;
        match left {
            None => (lock.ends_by == NEVER).then_some(state),
            Some(left) => {
                // Another reading of the same end.
                lock.ends_from = lock.ends_from.max(after(self.call.from, left));
                lock.ends_by = lock.ends_by.min(after(self.call.by, left));
                (lock.ends_from <= lock.ends_by).then_some(state)
            }
        }
    }

    /// The lock has this token, if that can be.
    fn known(&self, mut state: State, token: u64) -> Option<State> {
        let lock = state.lock.as_mut()?;
        if let Some(known) = lock.token {
            return (known == token).then_some(state);
        }
        lock.token = Some(token);
        state.newest = token;
        (self.state.newest < token).then_some(state)
    }

    fn taken(&self, state: State, holder: Who, token: Option<u64>, hold: Option<Duration>) -> State {
        let (ends_from, ends_by) = self.lease(hold);
        State { lock: Some(Lock { holder, token, ends_from, ends_by, seen_over: false }), ..state }
    }

    /// The lease begins anew.
    fn extended(&self, mut state: State, hold: Option<Duration>) -> Option<State> {
        let lock = state.lock.as_mut()?;
        (lock.ends_from, lock.ends_by) = self.lease(hold);
        lock.seen_over = false;
        Some(state)
    }

    fn lease(&self, hold: Option<Duration>) -> (Moment, Moment) {
        hold.map_or((NEVER, NEVER), |hold| (after(self.call.from, hold), after(self.call.by, hold)))
    }

    fn may_live(&self, lock: &Lock) -> bool {
        let alive = self.death_of(lock).is_none_or(|death| self.call.from < death.by);
        !lock.seen_over && self.call.from < lock.ends_by && alive
    }

    fn may_be_over(&self, lock: &Lock) -> bool {
        let lease_over = lock.ends_from <= self.call.by;
        let owner_dead = self.death_of(lock).is_some_and(|death| death.from <= self.call.by);
        if lease_over != owner_dead {
            let reason = if lease_over { &self.rules.leases_over } else { &self.rules.owners_dead };
            reason.set(reason.get() + 1);
        }
        lease_over || owner_dead
    }

    fn death_of(&self, lock: &Lock) -> Option<super::history::Death> {
        match lock.holder {
            Who::Thread { process, .. } => self.rules.deaths.get(&process).copied(),
            Who::Named(_) => None,
        }
    }

    fn is_claimants(&self, lock: &Lock, by: By) -> bool {
        match by {
            By::Holder(who) => lock.holder == who,
            By::Token(token) => {
                let here = match lock.holder {
                    Who::Thread { process, .. } => process == self.call.process,
                    Who::Named(_) => true,
                };
                lock.token == Some(token) && here
            }
        }
    }
}

fn after(moment: Moment, time: Duration) -> Moment {
    moment.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(NEVER))
}
