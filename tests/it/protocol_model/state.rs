//! The state of the model: what the processes share and what each of them knows.

/// The last process does not exist at the beginning: it is started or forked.
pub(super) const PROCESSES: usize = 3;

/// Locks of the first key are bound to their process. Locks of the second key have named holders.
pub(super) const KEYS: [u8; 2] = [BOUND, NAMED];
pub(super) const BOUND: u8 = 0;
pub(super) const NAMED: u8 = 1;

pub(super) const LATE_WRITE: &str = "a write by a process that is not the newest holder";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Alive,
    Dead,
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Access {
    Free,
    Mine,
    Other,
}

/// How a claim relates to a lock: whether it has the lock's holder or token, and whether it is made in
/// the process that acquired the lock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    pub(super) named: bool,
    pub(super) same_process: bool,
}

/// The decision about a lock and a claim, as `filesystem::protocol` makes it.
pub(super) fn access(expired: bool, bound: bool, owner: Liveness, claim: Match) -> Access {
    match (expired, bound, owner) {
        (true, ..) | (false, true, Liveness::Dead) => Access::Free,
        _ if claim.named && (!bound || claim.same_process) => Access::Mine,
        _ => Access::Other,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Life {
    NotStarted,
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

/// How far a process has come in its act on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum At {
    Inside(Act),
    /// Inside the latch, and allowed to continue.
    Checked(Act, Access),
    Leaving,
    /// Checked, but not yet inside the latch. Only a bug leads to this and to the next two.
    CheckedOutside(Act, Access),
    Unlinking,
    Creating,
}

/// The lock that a process believes to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Claim {
    pub(super) key: u8,
    pub(super) token: u8,
    /// The lease has expired, even if the process does not know.
    pub(super) expired: bool,
    /// The claim is a forked child's copy.
    pub(super) inherited: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Process {
    pub(super) life: Life,
    pub(super) busy: Option<(u8, At)>,
    pub(super) claim: Option<Claim>,
    /// The process whose owner file, and the key whose latch, this forked child still has open.
    pub(super) shares_owner: Option<u8>,
    pub(super) shares_latch: Option<u8>,
}

/// A lock file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lock {
    pub(super) token: u8,
    pub(super) owner: u8,
    pub(super) expired: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    pub(super) processes: [Process; PROCESSES],
    pub(super) locks: [Option<Lock>; KEYS.len()],
    /// The newest token of each key.
    pub(super) newest: [u8; KEYS.len()],
    /// By a bug, nobody ever leaves this latch.
    pub(super) stuck: [bool; KEYS.len()],
}

impl Process {
    pub(super) const NOT_STARTED: Self =
        Self { life: Life::NotStarted, busy: None, claim: None, shares_owner: None, shares_latch: None };

    pub(super) fn is_inside(&self, key: u8) -> bool {
        matches!(self.busy, Some((k, At::Inside(_) | At::Checked(..) | At::Leaving)) if k == key)
    }
}

pub(super) fn id(index: usize) -> u8 {
    u8::try_from(index).unwrap()
}

impl State {
    pub(super) fn can_enter(&self, key: u8) -> bool {
        let blocks = |it: &Process| it.is_inside(key) || it.shares_latch == Some(key);
        !self.stuck[usize::from(key)] && !self.processes.iter().any(blocks)
    }

    /// An owner file is locked while any process has it open.
    pub(super) fn liveness(&self, owner: u8) -> Liveness {
        let lives = self.processes[usize::from(owner)].life == Life::Alive;
        let shared = self.processes.iter().any(|process| process.shares_owner == Some(owner));
        if lives || shared { Liveness::Alive } else { Liveness::Dead }
    }

    /// The lease of an acquisition expires or starts again, in the lock file and in the claims.
    pub(super) fn set_expired(&mut self, key: u8, token: u8, expired: bool) {
        if let Some(lock) = self.locks[usize::from(key)].as_mut().filter(|lock| lock.token == token) {
            lock.expired = expired;
        }
        for claim in self.processes.iter_mut().filter_map(|process| process.claim.as_mut()) {
            if claim.key == key && claim.token == token {
                claim.expired = expired;
            }
        }
    }

    /// Performs an act that the check has allowed.
    pub(super) fn change(&mut self, index: usize, key: u8, act: Act) -> Result<(), &'static str> {
        let at = usize::from(key);
        let claim = self.processes[index].claim;
        match act {
            Act::Acquire | Act::Renew => {
                if let Some(lock) = self.locks[at] {
                    self.set_expired(key, lock.token, false);
                }
            }
            Act::Release => {
                self.locks[at] = None;
                self.processes[index].claim = None;
            }
            Act::Write if claim.is_none_or(|it| it.inherited || it.token != self.newest[at]) => {
                return Err(LATE_WRITE);
            }
            Act::Write => {}
        }
        Ok(())
    }

    /// An act was refused: a claim by token is lost, and the claimant's own expired lock is removed.
    pub(super) fn refuse(&mut self, index: usize, key: u8, act: Act, access: Access) {
        let at = usize::from(key);
        let lost = if act == Act::Acquire { None } else { self.processes[index].claim.take() };
        let (Some(claim), Some(lock)) = (lost, self.locks[at]) else { return };
        let own = lock.token == claim.token && (key != BOUND || usize::from(lock.owner) == index);
        if own && access == Access::Free && matches!(act, Act::Renew | Act::Release) {
            self.locks[at] = None;
        }
    }

    /// Renumbers the tokens to reduce the number of states. The only fact that matters about a token is
    /// whether it is the newest, the lock's, or neither.
    pub(super) fn renumber_tokens(&mut self) {
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

    /// Processes are interchangeable: of the states that differ only in their order, one is kept.
    pub(super) fn sort_processes(&mut self) {
        let mut order = [0, 1, 2];
        order.sort_by_key(|&index| {
            let owns = self.locks.map(|lock| lock.is_some_and(|lock| usize::from(lock.owner) == index));
            (Process { shares_owner: None, ..self.processes[index] }, owns)
        });
        let renumbered = |old: u8| id(order.iter().position(|&index| index == usize::from(old)).unwrap());
        self.processes = order.map(|index| self.processes[index]);
        for process in &mut self.processes {
            process.shares_owner = process.shares_owner.map(renumbered);
        }
        for lock in self.locks.iter_mut().flatten() {
            lock.owner = renumbered(lock.owner);
        }
    }
}
