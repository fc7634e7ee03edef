//! The steps of a process, and the events that can happen to it.

use super::explore::Model;
use super::state::{
    Access, Act, At, BOUND, Claim, KEYS, Life, Liveness, Lock, Match, PROCESSES, Process, State, access, id,
};

pub(super) const TWO_HOLDERS: &str = "two live holders of one key";
pub(super) const OLD_TOKEN: &str = "a token that is not greater than all before";
pub(super) const NOT_ACQUIRABLE: &str = "a key that nobody can acquire any more";

/// The bugs that a test can put into the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bug {
    CheckBeforeLatch,
    IgnoreToken,
    UnknownIsDead,
    TakeOverOutsideLatch,
    ClaimPassesToChild,
    TokensStartAgain,
    DeathIsIgnored,
    LatchOutlivesProcess,
    /// The library cannot prevent this: a thread forks without the C library, while another thread is inside
    /// the latch.
    ForkInsideLatch,
}

/// A step: for traces, and to decide which steps progress may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Starts(u8),
    /// A child that was forked without the C library closes its parent's owner file when it uses the store. Others
    /// have closed it already.
    DropsParentsOwner(u8),
    /// Process and key, as in the steps below.
    Enters(u8, u8, Act),
    Checks(u8, u8, Liveness),
    Changes(u8, u8, Act),
    Leaves(u8, u8),
    /// Acquires the lock: process and key.
    Acquires(u8, u8),
    Unlinks(u8, u8),
    Drops(u8),
    IsKilled(u8),
    Forks(u8, u8),
    LeaseExpires(u8),
}

pub(super) struct Protocol {
    pub(super) bug: Option<Bug>,
    /// The keys that the processes use.
    pub(super) keys: &'static [u8],
}

type Found = super::explore::Found<Protocol>;

impl Model for Protocol {
    type State = State;
    type Step = Step;

    fn initial(&self) -> State {
        let alive = Process { life: Life::Alive, ..Process::NOT_STARTED };
        let processes = [alive, alive, Process::NOT_STARTED];
        State { processes, locks: [None; 2], newest: [0; 2], stuck: [false; 2] }
    }

    fn steps(&self, state: &State, found: &mut Found) {
        for index in 0..PROCESSES {
            let process = &state.processes[index];
            match process.life {
                Life::NotStarted => self.add(state, found, Step::Starts(id(index)), |next| {
                    next.processes[index].life = Life::Alive;
                    Ok(())
                }),
                Life::Alive => {
                    match process.busy {
                        None => self.begin_act(state, index, found),
                        Some((key, at)) => self.continue_act(state, index, key, at, found),
                    }
                    self.disturb(state, index, found);
                }
                Life::Dead => {}
            }
        }
        for key in KEYS {
            let Some(lock) = state.locks[usize::from(key)].filter(|lock| !lock.expired) else { continue };
            self.add(state, found, Step::LeaseExpires(key), |next| {
                next.set_expired(key, lock.token, true);
                Ok(())
            });
        }
    }
}

impl Protocol {
    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Adds a step and its result.
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
                    |it: &&Process| it.claim.is_some_and(|it| it.key == key && !it.expired && !it.inherited);
                next.processes.iter().filter(live).count()
            };
            if KEYS.iter().any(|&key| holds(key) > 1) { Err(TWO_HOLDERS) } else { Ok(()) }
        });
        next.renumber_tokens();
        if self.bug.is_none() {
            // With a bug, the processes keep their numbers, so that the trace is readable.
            next.sort_processes();
        }
        found.push((step, outcome.map(|()| next)));
    }

    fn begin_act(&self, state: &State, index: usize, found: &mut Found) {
        let process = &state.processes[index];
        if process.shares_owner.is_some() {
            self.add(state, found, Step::DropsParentsOwner(id(index)), |next| {
                next.processes[index].shares_owner = None;
                Ok(())
            });
            return;
        }
        match process.claim {
            None => {
                for key in KEYS {
                    self.begin_on_key(state, index, key, Act::Acquire, found);
                }
            }
            // A guard detects that it is a copy in a forked child. A token cannot, but its lock has an owner.
            Some(claim) if claim.inherited => {
                if claim.key == BOUND {
                    for act in [Act::Renew, Act::Release, Act::Write] {
                        self.begin_on_key(state, index, claim.key, act, found);
                    }
                }
                self.add(state, found, Step::Drops(id(index)), |next| {
                    next.processes[index].claim = None;
                    Ok(())
                });
            }
            Some(claim) => {
                for act in [Act::Acquire, Act::Renew, Act::Release, Act::Write] {
                    self.begin_on_key(state, index, claim.key, act, found);
                }
            }
        }
    }

    fn begin_on_key(&self, state: &State, index: usize, key: u8, act: Act, found: &mut Found) {
        if !self.keys.contains(&key) {
            return;
        }
        if self.checks_outside(state, act, key) {
            self.check(state, index, key, act, found);
        } else {
            self.enter(state, index, key, act, At::Inside(act), found);
        }
    }

    fn enter(&self, state: &State, index: usize, key: u8, act: Act, at: At, found: &mut Found) {
        if state.can_enter(key) {
            self.add(state, found, Step::Enters(id(index), key, act), |next| {
                next.processes[index].busy = Some((key, at));
                Ok(())
            });
        }
    }

    fn continue_act(&self, state: &State, index: usize, key: u8, at: At, found: &mut Found) {
        match at {
            At::CheckedOutside(act, access) => {
                self.enter(state, index, key, act, At::Checked(act, access), found);
            }
            At::Inside(act) => self.check(state, index, key, act, found),
            At::Checked(act, access) => {
                let acquires = act == Act::Acquire && access == Access::Free;
                let step = if acquires {
                    Step::Acquires(id(index), key)
                } else {
                    Step::Changes(id(index), key, act)
                };
                self.add(state, found, step, |next| {
                    next.processes[index].busy = Some((key, At::Leaving));
                    if acquires { self.acquire(next, index, key) } else { next.change(index, key, act) }
                });
            }
            At::Leaving => self.add(state, found, Step::Leaves(id(index), key), |next| {
                next.processes[index].busy = None;
                // An explicit unlock, which also covers the copies of forked children.
                for process in &mut next.processes {
                    process.shares_latch = process.shares_latch.filter(|&it| it != key);
                }
                Ok(())
            }),
            At::Unlinking => self.add(state, found, Step::Unlinks(id(index), key), |next| {
                next.locks[usize::from(key)] = None;
                next.processes[index].busy = Some((key, At::Creating));
                Ok(())
            }),
            At::Creating => self.add(state, found, Step::Acquires(id(index), key), |next| {
                next.processes[index].busy = None;
                let exists = next.locks[usize::from(key)].is_some();
                if exists { Ok(()) } else { self.acquire(next, index, key) }
            }),
        }
    }

    fn checks_outside(&self, state: &State, act: Act, key: u8) -> bool {
        let leftover = state.locks[usize::from(key)].is_some_and(|lock| lock.expired);
        self.has(Bug::CheckBeforeLatch)
            || self.has(Bug::TakeOverOutsideLatch) && act == Act::Acquire && leftover
    }

    /// Checks the lock. Whether its owner is alive may be unknown at any time.
    fn check(&self, state: &State, index: usize, key: u8, act: Act, found: &mut Found) {
        let lock = state.locks[usize::from(key)];
        let unsure = lock.is_some_and(|lock| key == BOUND && usize::from(lock.owner) != index);
        let truth = lock.map_or(Liveness::Alive, |lock| state.liveness(lock.owner));
        let unknown = unsure.then_some(Liveness::Unknown);
        for owner in std::iter::once(truth).chain(unknown) {
            let access = self.access(state, index, key, act, owner);
            let may = match (act, access) {
                (Act::Acquire, access) => access != Access::Other,
                (_, access) => access == Access::Mine,
            };
            self.add(state, found, Step::Checks(id(index), key, owner), |next| {
                let outside = next.processes[index].busy.is_none();
                let at = match (may, outside) {
                    (true, true) if self.has(Bug::TakeOverOutsideLatch) => Some(At::Unlinking),
                    (true, true) => Some(At::CheckedOutside(act, access)),
                    (true, false) => Some(At::Checked(act, access)),
                    (false, true) => None,
                    (false, false) => Some(At::Leaving),
                };
                next.processes[index].busy = at.map(|at| (key, at));
                if !may {
                    next.refuse(index, key, act, access);
                }
                Ok(())
            });
        }
    }

    fn access(&self, state: &State, index: usize, key: u8, act: Act, owner: Liveness) -> Access {
        let process = &state.processes[index];
        let Some(lock) = state.locks[usize::from(key)] else { return Access::Free };
        let same_process = usize::from(lock.owner) == index;
        let named = match process.claim.filter(|_| act != Act::Acquire) {
            Some(_) if self.has(Bug::IgnoreToken) => true,
            Some(claim) => lock.token == claim.token,
            // A claim by holder: each process has its own name.
            None => same_process,
        };
        let owner = match owner {
            Liveness::Unknown if self.has(Bug::UnknownIsDead) => Liveness::Dead,
            Liveness::Dead if self.has(Bug::DeathIsIgnored) => Liveness::Alive,
            known => known,
        };
        let same_process = same_process || self.has(Bug::ClaimPassesToChild);
        access(lock.expired, key == BOUND, owner, Match { named, same_process })
    }

    /// Writes a new lock, whether or not there is an old one.
    fn acquire(&self, next: &mut State, index: usize, key: u8) -> Result<(), &'static str> {
        let at = usize::from(key);
        let old = next.locks[at].map_or(0, |lock| lock.token);
        let token = if self.has(Bug::TokensStartAgain) { old } else { next.newest[at] } + 1;
        if token <= next.newest[at] {
            return Err(OLD_TOKEN);
        }
        next.newest[at] = token;
        next.locks[at] = Some(Lock { token, owner: id(index), expired: false });
        next.processes[index].claim = Some(Claim { key, token, expired: false, inherited: false });
        Ok(())
    }

    /// Events that can happen to a process in any state.
    fn disturb(&self, state: &State, index: usize, found: &mut Found) {
        self.add(state, found, Step::IsKilled(id(index)), |next| {
            for key in KEYS {
                next.stuck[usize::from(key)] |=
                    self.has(Bug::LatchOutlivesProcess) && next.processes[index].is_inside(key);
            }
            next.processes[index] = Process { life: Life::Dead, ..Process::NOT_STARTED };
            Ok(())
        });
        let inside = KEYS.into_iter().find(|&key| state.processes[index].is_inside(key));
        let child = state.processes.iter().position(|process| process.life == Life::NotStarted);
        let Some(child) = child.filter(|_| inside.is_none() || self.has(Bug::ForkInsideLatch)) else {
            return;
        };
        self.add(state, found, Step::Forks(id(index), id(child)), |next| {
            let parent = next.processes[index];
            let claim = parent.claim.map(|claim| Claim { inherited: true, ..claim });
            let shares_owner = Some(id(index));
            next.processes[child] =
                Process { life: Life::Alive, busy: None, claim, shares_owner, shares_latch: inside };
            Ok(())
        });
    }
}
