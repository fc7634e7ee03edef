//! What a process can do in one step, and what can happen to it.

use super::explore::Model;
use super::state::{
    Act, At, BOUND, Claim, KEYS, Life, Liveness, Lock, Match, PROCESSES, Process, Standing, State, id,
    standing,
};

pub(super) const TWO_HOLDERS: &str = "two live holders of one key";
pub(super) const OLD_TOKEN: &str = "a token that is not greater than all before";
pub(super) const STUCK: &str = "a key that nobody can acquire any more";

/// What can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    JudgeBeforeLatch,
    SkipToken,
    UnknownIsDead,
    TakeOverOutsideLatch,
    ClaimPassesToChild,
    TokensBeginAnew,
    DeathIsIgnored,
    LatchOutlivesProcess,
    /// What the library does not see to: a thread forks while another is inside the latch.
    ForkInsideLatch,
}

/// A step, for stories and to tell what may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Begins(u8),
    /// A forked child that uses the store lets go of its parent's owner.
    LetsGo(u8),
    /// Process and key, as in the others.
    Enters(u8, u8, Act),
    Judges(u8, u8, Liveness),
    Changes(u8, u8, Act),
    Leaves(u8, u8),
    /// Took the lock: process and key.
    Acquires(u8, u8),
    Unlinks(u8, u8),
    Drops(u8),
    IsKilled(u8),
    Forks(u8, u8),
    LeaseEnds(u8),
}

pub(super) struct Protocol {
    pub(super) bug: Option<Bug>,
    /// Those that are used.
    pub(super) keys: &'static [u8],
}

type Found = super::explore::Found<Protocol>;

impl Model for Protocol {
    type State = State;
    type Step = Step;

    fn begin(&self) -> State {
        let alive = Process { life: Life::Alive, ..Process::UNBORN };
        let processes = [alive, alive, Process::UNBORN];
        State { processes, locks: [None; 2], newest: [0; 2], stuck: [false; 2] }
    }

    fn steps(&self, state: &State, found: &mut Found) {
        for who in 0..PROCESSES {
            let process = &state.processes[who];
            match process.life {
                Life::Unborn => self.add(state, found, Step::Begins(id(who)), |next| {
                    next.processes[who].life = Life::Alive;
                    Ok(())
                }),
                Life::Alive => {
                    match process.busy {
                        None => self.begin_act(state, who, found),
                        Some((key, at)) => self.go_on(state, who, key, at, found),
                    }
                    self.disturb(state, who, found);
                }
                Life::Dead => {}
            }
        }
        for key in KEYS {
            let Some(lock) = state.locks[usize::from(key)].filter(|lock| !lock.over) else { continue };
            self.add(state, found, Step::LeaseEnds(key), |next| {
                next.set_over(key, lock.token, true);
                Ok(())
            });
        }
    }
}

impl Protocol {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Adds a step, and sees what follows from it.
    fn add(
        &self,
        state: &State,
        found: &mut Found,
        step: Step,
        change: impl FnOnce(&mut State) -> Result<(), &'static str>,
    ) {
        let mut next = *state;
        let outcome = change(&mut next).and_then(|()| {
            let holds = |key: u8| {
                let live =
                    |it: &&Process| it.claim.is_some_and(|it| it.key == key && !it.over && !it.inherited);
                next.processes.iter().filter(live).count()
            };
            if KEYS.iter().any(|&key| holds(key) > 1) { Err(TWO_HOLDERS) } else { Ok(()) }
        });
        next.number_tokens_anew();
        if self.bug.is_none() {
            // For stories the processes keep their numbers.
            next.sort_processes();
        }
        found.push((step, outcome.map(|()| next)));
    }

    fn begin_act(&self, state: &State, who: usize, found: &mut Found) {
        let process = &state.processes[who];
        if process.shares_owner.is_some() {
            self.add(state, found, Step::LetsGo(id(who)), |next| {
                next.processes[who].shares_owner = None;
                Ok(())
            });
            return;
        }
        match process.claim {
            None => KEYS.into_iter().for_each(|key| self.begin_one(state, who, key, Act::Acquire, found)),
            // A guard knows that it is a copy. A token does not, but its lock knows its owner.
            Some(claim) if claim.inherited => {
                if claim.key == BOUND {
                    for act in [Act::Renew, Act::Release, Act::Write] {
                        self.begin_one(state, who, claim.key, act, found);
                    }
                }
                self.add(state, found, Step::Drops(id(who)), |next| {
                    next.processes[who].claim = None;
                    Ok(())
                });
            }
            Some(claim) => {
                for act in [Act::Acquire, Act::Renew, Act::Release, Act::Write] {
                    self.begin_one(state, who, claim.key, act, found);
                }
            }
        }
    }

    fn begin_one(&self, state: &State, who: usize, key: u8, act: Act, found: &mut Found) {
        if !self.keys.contains(&key) {
            return;
        }
        if self.judges_outside(state, act, key) {
            self.judge(state, who, key, act, found);
        } else {
            self.enter(state, who, key, act, At::Inside(act), found);
        }
    }

    fn enter(&self, state: &State, who: usize, key: u8, act: Act, at: At, found: &mut Found) {
        if state.can_enter(key) {
            self.add(state, found, Step::Enters(id(who), key, act), |next| {
                next.processes[who].busy = Some((key, at));
                Ok(())
            });
        }
    }

    fn go_on(&self, state: &State, who: usize, key: u8, at: At, found: &mut Found) {
        match at {
            At::JudgedOutside(act, standing) => {
                self.enter(state, who, key, act, At::Judged(act, standing), found);
            }
            At::Inside(act) => self.judge(state, who, key, act, found),
            At::Judged(act, standing) => {
                let takes = act == Act::Acquire && standing == Standing::Free;
                let step =
                    if takes { Step::Acquires(id(who), key) } else { Step::Changes(id(who), key, act) };
                self.add(state, found, step, |next| {
                    next.processes[who].busy = Some((key, At::Leaving));
                    if takes { self.take(next, who, key) } else { next.change(who, key, act) }
                });
            }
            At::Leaving => self.add(state, found, Step::Leaves(id(who), key), |next| {
                next.processes[who].busy = None;
                // Unlocked in so many words: also for whoever has a copy.
                for process in &mut next.processes {
                    process.shares_latch = process.shares_latch.filter(|&it| it != key);
                }
                Ok(())
            }),
            At::Unlinking => self.add(state, found, Step::Unlinks(id(who), key), |next| {
                next.locks[usize::from(key)] = None;
                next.processes[who].busy = Some((key, At::Creating));
                Ok(())
            }),
            At::Creating => self.add(state, found, Step::Acquires(id(who), key), |next| {
                next.processes[who].busy = None;
                let exists = next.locks[usize::from(key)].is_some();
                if exists { Ok(()) } else { self.take(next, who, key) }
            }),
        }
    }

    fn judges_outside(&self, state: &State, act: Act, key: u8) -> bool {
        let remains = state.locks[usize::from(key)].is_some_and(|lock| lock.over);
        self.has(Bug::JudgeBeforeLatch)
            || self.has(Bug::TakeOverOutsideLatch) && act == Act::Acquire && remains
    }

    /// Looks at the lock. Whether its owner lives can be told, or, at any time, cannot.
    fn judge(&self, state: &State, who: usize, key: u8, act: Act, found: &mut Found) {
        let lock = state.locks[usize::from(key)];
        let asked = lock.is_some_and(|lock| key == BOUND && usize::from(lock.owner) != who);
        let truth = lock.map_or(Liveness::Alive, |lock| state.liveness(lock.owner));
        let unknown = asked.then_some(Liveness::Unknown);
        for owner in std::iter::once(truth).chain(unknown) {
            let standing = self.standing(state, who, key, act, owner);
            let may = match (act, standing) {
                (Act::Acquire, standing) => standing != Standing::Other,
                (_, standing) => standing == Standing::Mine,
            };
            self.add(state, found, Step::Judges(id(who), key, owner), |next| {
                let outside = next.processes[who].busy.is_none();
                let at = match (may, outside) {
                    (true, true) if self.has(Bug::TakeOverOutsideLatch) => Some(At::Unlinking),
                    (true, true) => Some(At::JudgedOutside(act, standing)),
                    (true, false) => Some(At::Judged(act, standing)),
                    (false, true) => None,
                    (false, false) => Some(At::Leaving),
                };
                next.processes[who].busy = at.map(|at| (key, at));
                if !may {
                    next.refuse(who, key, act, standing);
                }
                Ok(())
            });
        }
    }

    fn standing(&self, state: &State, who: usize, key: u8, act: Act, owner: Liveness) -> Standing {
        let process = &state.processes[who];
        let Some(lock) = state.locks[usize::from(key)] else { return Standing::Free };
        let from_owner = usize::from(lock.owner) == who;
        let named = match process.claim.filter(|_| act != Act::Acquire) {
            Some(_) if self.has(Bug::SkipToken) => true,
            Some(claim) => lock.token == claim.token,
            // By holder: each process has a name of its own.
            None => from_owner,
        };
        let owner = match owner {
            Liveness::Unknown if self.has(Bug::UnknownIsDead) => Liveness::Dead,
            Liveness::Dead if self.has(Bug::DeathIsIgnored) => Liveness::Alive,
            told => told,
        };
        let from_owner = from_owner || self.has(Bug::ClaimPassesToChild);
        standing(lock.over, key == BOUND, owner, Match { named, from_owner })
    }

    /// A new lock in the place of whatever is there.
    fn take(&self, next: &mut State, who: usize, key: u8) -> Result<(), &'static str> {
        let at = usize::from(key);
        let remains = next.locks[at].map_or(0, |lock| lock.token);
        let token = if self.has(Bug::TokensBeginAnew) { remains } else { next.newest[at] } + 1;
        if token <= next.newest[at] {
            return Err(OLD_TOKEN);
        }
        next.newest[at] = token;
        next.locks[at] = Some(Lock { token, owner: id(who), over: false });
        next.processes[who].claim = Some(Claim { key, token, over: false, inherited: false });
        Ok(())
    }

    /// What can happen to a process whatever it does.
    fn disturb(&self, state: &State, who: usize, found: &mut Found) {
        self.add(state, found, Step::IsKilled(id(who)), |next| {
            for key in KEYS {
                next.stuck[usize::from(key)] |=
                    self.has(Bug::LatchOutlivesProcess) && next.processes[who].is_inside(key);
            }
            next.processes[who] = Process { life: Life::Dead, ..Process::UNBORN };
            Ok(())
        });
        let inside = KEYS.into_iter().find(|&key| state.processes[who].is_inside(key));
        let child = state.processes.iter().position(|process| process.life == Life::Unborn);
        let Some(child) = child.filter(|_| inside.is_none() || self.has(Bug::ForkInsideLatch)) else {
            return;
        };
        self.add(state, found, Step::Forks(id(who), id(child)), |next| {
            let parent = next.processes[who];
            let claim = parent.claim.map(|claim| Claim { inherited: true, ..claim });
            let shares_owner = Some(id(who));
            next.processes[child] =
                Process { life: Life::Alive, busy: None, claim, shares_owner, shares_latch: inside };
            Ok(())
        });
    }
}
