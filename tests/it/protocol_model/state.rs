//! What the processes share, what each of them knows, and how it changes.

/// The processes. The last one is not there from the start: it is begun, or forked.
pub(super) const PROCESSES: usize = 3;

/// Locks of the first key are bound to their process, those of the second are named.
pub(super) const KEYS: [u8; 2] = [BOUND, NAMED];
pub(super) const BOUND: u8 = 0;
pub(super) const NAMED: u8 = 1;

pub(super) const LATE_WRITE: &str = "a write by another than the newest holder";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Alive,
    Dead,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Standing {
    Free,
    Mine,
    Other,
}

/// A claim: whether it has the lock's holder or token, and whether it is made in the process that
/// took the lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub(super) named: bool,
    pub(super) from_owner: bool,
}

/// The decision about a lock and a claim, as `filesystem::lease` makes it.
pub(super) fn standing(over: bool, bound: bool, owner: Liveness, claim: Match) -> Standing {
    match (over, bound, owner) {
        (true, ..) | (false, true, Liveness::Dead) => Standing::Free,
        _ if claim.named && (!bound || claim.from_owner) => Standing::Mine,
        _ => Standing::Other,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Life {
    Unborn,
    Alive,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Act {
    Acquire,
    Renew,
    Release,
    Write,
}

/// How far a process has come in what it does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum At {
    Inside(Act),
    /// Inside, and found that it may.
    Judged(Act, Standing),
    Leaving,
    /// Judged, but not yet inside. Only by a bug, as are the next two.
    JudgedOutside(Act, Standing),
    Unlinking,
    Creating,
}

/// What a process believes to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) key: u8,
    pub(super) token: u8,
    /// The lease has run out, whether the process knows or not.
    pub(super) over: bool,
    /// A forked child's copy.
    pub(super) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Process {
    pub(super) life: Life,
    pub(super) busy: Option<(u8, At)>,
    pub(super) claim: Option<Claim>,
    /// Whose owner file a forked child still has open, and whose latch.
    pub(super) shares_owner: Option<u8>,
    pub(super) shares_latch: Option<u8>,
}

/// A lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lock {
    pub(super) token: u8,
    pub(super) owner: u8,
    pub(super) over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) processes: [Process; PROCESSES],
    pub(super) locks: [Option<Lock>; KEYS.len()],
    /// The newest token of each key.
    pub(super) newest: [u8; KEYS.len()],
    /// By a bug: nobody ever leaves this latch.
    pub(super) stuck: [bool; KEYS.len()],
}

impl Process {
    pub(super) const UNBORN: Self =
        Self { life: Life::Unborn, busy: None, claim: None, shares_owner: None, shares_latch: None };

    pub(super) fn is_inside(&self, key: u8) -> bool {
        matches!(self.busy, Some((k, At::Inside(_) | At::Judged(..) | At::Leaving)) if k == key)
    }
}

pub(super) fn id(who: usize) -> u8 {
    u8::try_from(who).unwrap()
}

impl State {
    pub(super) fn can_enter(&self, key: u8) -> bool {
        let keeps_out = |it: &Process| it.is_inside(key) || it.shares_latch == Some(key);
        !self.stuck[usize::from(key)] && !self.processes.iter().any(keeps_out)
    }

    /// An owner file is locked while anyone has it open.
    pub(super) fn liveness(&self, owner: u8) -> Liveness {
        let lives = self.processes[usize::from(owner)].life == Life::Alive;
        let shared = self.processes.iter().any(|process| process.shares_owner == Some(owner));
        if lives || shared { Liveness::Alive } else { Liveness::Dead }
    }

    /// The lease of an acquisition ends, or begins anew: in the lock file and in truth.
    pub(super) fn set_over(&mut self, key: u8, token: u8, over: bool) {
        if let Some(lock) = self.locks[usize::from(key)].as_mut().filter(|lock| lock.token == token) {
            lock.over = over;
        }
        for claim in self.processes.iter_mut().filter_map(|process| process.claim.as_mut()) {
            if claim.key == key && claim.token == token {
                claim.over = over;
            }
        }
    }

    /// Changes what it was found that the process may change.
    pub(super) fn change(&mut self, who: usize, key: u8, act: Act) -> Result<(), &'static str> {
        let at = usize::from(key);
        let claim = self.processes[who].claim;
        match act {
            Act::Acquire | Act::Renew => {
                if let Some(lock) = self.locks[at] {
                    self.set_over(key, lock.token, false);
                }
            }
            Act::Release => {
                self.locks[at] = None;
                self.processes[who].claim = None;
            }
            Act::Write if claim.is_none_or(|it| it.inherited || it.token != self.newest[at]) => {
                return Err(LATE_WRITE);
            }
            Act::Write => {}
        }
        Ok(())
    }

    /// An act was refused: a claim by token is lost, and its own expired lock is cleared away.
    pub(super) fn refuse(&mut self, who: usize, key: u8, act: Act, standing: Standing) {
        let at = usize::from(key);
        let lost = if act == Act::Acquire { None } else { self.processes[who].claim.take() };
        let (Some(claim), Some(lock)) = (lost, self.locks[at]) else { return };
        let own = lock.token == claim.token && (key != BOUND || usize::from(lock.owner) == who);
        if own && standing == Standing::Free && matches!(act, Act::Renew | Act::Release) {
            self.locks[at] = None;
        }
    }

    /// Of a token only this matters: whether it is the newest, the lock's, or neither.
    pub(super) fn number_tokens_anew(&mut self) {
        for key in KEYS {
            let at = usize::from(key);
            let (newest, locks) = (self.newest[at], self.locks[at].map_or(0, |lock| lock.token));
            let distinct = locks != 0 && locks != newest;
            let number = |token| match token {
                0 => 0,
                token if token == newest => 1 + u8::from(distinct),
                token if token == locks => 1,
                _ => 0,
            };
            self.newest[at] = number(newest);
            if let Some(lock) = &mut self.locks[at] {
                lock.token = number(lock.token);
            }
            for claim in self.processes.iter_mut().filter_map(|process| process.claim.as_mut()) {
                if claim.key == key {
                    claim.token = number(claim.token);
                }
            }
        }
    }

    /// Which process is which does not matter: of states that differ only in that, one is kept.
    pub(super) fn sort_processes(&mut self) {
        let mut order = [0, 1, 2];
        order.sort_by_key(|&who| {
            let owns = self.locks.map(|lock| lock.is_some_and(|lock| usize::from(lock.owner) == who));
            (Process { shares_owner: None, ..self.processes[who] }, owns)
        });
        let renamed = |old: u8| id(order.iter().position(|&who| who == usize::from(old)).unwrap());
        self.processes = order.map(|who| self.processes[who]);
        for process in &mut self.processes {
            process.shares_owner = process.shares_owner.map(renamed);
        }
        for lock in self.locks.iter_mut().flatten() {
            lock.owner = renamed(lock.owner);
        }
    }
}
