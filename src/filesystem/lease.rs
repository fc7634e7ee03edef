//! Whether a lock still counts, and for whom. Pure: what the lock file says and a reading of the
//! clocks go in, a decision comes out, so that tests can try every case.

use std::time::{Duration, SystemTime};

use super::clock::{Epoch, Reading};
use super::sidecar::LockFile;
use crate::{Claim, LockState};

/// The term of a lock, as its file keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// The epoch in which `deadline` means something.
    pub(super) epoch: Option<Epoch>,
    /// The end on the boot clock. `None`: no term.
    pub(super) deadline: Option<Duration>,
    /// The end on the wall clock: for people, and for other epochs.
    pub(super) expires_at: Option<SystemTime>,
}

/// What is left of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Term {
    Unlimited,
    Left(Duration),
    Over,
}

/// What the kernel says of the process that took a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Alive,
    Dead,
    /// It cannot be asked. Whoever cannot be proven dead is treated as alive.
    Unknown,
}

/// How a claim stands against the key's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// No live lock.
    Free,
    /// The live lock is the claimant's.
    Mine,
    /// The live lock is another's.
    Other,
}

/// The last moment that RFC 3339 can name: the end of the year 9999.
const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);

impl Lease {
    /// A lease that begins now. One that would outlast the calendar has no term.
    pub(super) fn starting(now: &Reading, hold_timeout: Option<Duration>) -> Self {
        let end = hold_timeout.and_then(|hold| {
            let expires_at = now.wall.checked_add(hold)?;
            let named = expires_at.duration_since(SystemTime::UNIX_EPOCH).ok()? <= END_OF_TIME;
            named.then_some((now.boottime.checked_add(hold)?, expires_at))
        });
        Self {
            epoch: now.epoch.as_deref().cloned(),
            deadline: end.map(|(deadline, _)| deadline),
            expires_at: end.map(|(_, expires_at)| expires_at),
        }
    }

    pub(super) fn term(&self, now: &Reading) -> Term {
        let same_epoch = self.epoch.is_some() && self.epoch.as_ref() == now.epoch.as_deref();
        let left = match (self.deadline, self.expires_at) {
            (Some(deadline), _) if same_epoch => deadline.checked_sub(now.boottime),
            // The boot clock of another epoch says nothing here.
            (_, Some(expires_at)) => expires_at.duration_since(now.wall).ok(),
            // A deadline that no clock of ours can be compared with cannot be waited for.
            (Some(_), None) => None,
            (None, None) => return Term::Unlimited,
        };
        match left {
            Some(left) if !left.is_zero() => Term::Left(left),
            _ => Term::Over,
        }
    }
}

/// The effective state of a lock file: lease over, owner dead, else held.
pub(super) fn state(lock: &LockFile, now: &Reading, owner: Liveness) -> LockState {
    if lock.lease.term(now) == Term::Over {
        LockState::Expired
    } else if lock.holder.is_process_bound() && owner == Liveness::Dead {
        LockState::Abandoned
    } else {
        LockState::Held
    }
}

/// How `claim`, made in the process that `is_here` knows by its owner file, stands against a lock.
pub(super) fn standing(
    lock: &LockFile,
    state: LockState,
    claim: &Claim,
    is_here: impl FnOnce(&str) -> bool,
) -> Standing {
    if state != LockState::Held {
        Standing::Free
    } else if is_claimants(lock, claim, is_here) {
        Standing::Mine
    } else {
        Standing::Other
    }
}

/// Whether the lock, live or not, is the one that the claim is about. What is bound to a process
/// is nobody's in another, be its names and numbers the same: a forked child, or process 1 of the
/// next container.
pub(super) fn is_claimants(lock: &LockFile, claim: &Claim, is_here: impl FnOnce(&str) -> bool) -> bool {
    let named = match claim {
        Claim::Holder(holder) => lock.holder == *holder,
        Claim::Token(token) => lock.token == *token,
    };
    named && (!lock.holder.is_process_bound() || is_here(&lock.owner))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{Holder, Key, LockToken};

    const YEARS_10: Duration = Duration::from_hours(10 * 365 * 24);

    fn epoch(boot_id: &str, time_ns: u64) -> Arc<Epoch> {
        Arc::new(Epoch { boot_id: boot_id.into(), time_ns })
    }

    fn start() -> Reading {
        Reading {
            epoch: Some(epoch("boot-a", 1)),
            boottime: Duration::from_secs(1_000),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        }
    }

    fn later(by: Duration) -> Reading {
        let start = start();
        Reading { boottime: start.boottime + by, wall: start.wall + by, ..start }
    }

    fn lease(hold: u64) -> Lease {
        Lease::starting(&start(), Some(Duration::from_secs(hold)))
    }

    #[test]
    fn a_lease_runs_out_exactly_at_its_end() {
        let just_before = Duration::from_nanos(29_999_999_999);
        assert_eq!(lease(30).term(&later(just_before)), Term::Left(Duration::from_nanos(1)));
        assert_eq!(lease(30).term(&later(Duration::from_secs(30))), Term::Over);
        assert_eq!(lease(0).term(&start()), Term::Over);
    }

    #[test]
    fn a_stepped_wall_clock_changes_nothing() {
        for wall in [start().wall + YEARS_10, start().wall - YEARS_10] {
            let now = Reading { wall, ..later(Duration::from_secs(29)) };
            assert_eq!(lease(30).term(&now), Term::Left(Duration::from_secs(1)));
            let now = Reading { wall, ..later(Duration::from_secs(31)) };
            assert_eq!(lease(30).term(&now), Term::Over);
        }
    }

    #[test]
    fn another_boot_or_namespace_falls_back_to_the_wall_clock() {
        for other in [Some(epoch("boot-b", 1)), Some(epoch("boot-a", 2)), None] {
            // The boot clock begins anew: it must not make an old lease live longer.
            let now =
                Reading { epoch: other.clone(), boottime: Duration::ZERO, ..later(Duration::from_secs(29)) };
            assert_eq!(lease(30).term(&now), Term::Left(Duration::from_secs(1)));
            let now = Reading { epoch: other, boottime: Duration::ZERO, ..later(Duration::from_secs(30)) };
            assert_eq!(lease(30).term(&now), Term::Over);
        }
    }

    #[test]
    fn without_an_epoch_on_either_side_only_the_wall_clock_counts() {
        let now = Reading { epoch: None, ..start() };
        let lease = Lease::starting(&now, Some(Duration::from_secs(30)));
        let now = Reading { boottime: now.boottime + YEARS_10, ..now };
        assert_eq!(lease.term(&now), Term::Left(Duration::from_secs(30)));
    }

    #[test]
    fn a_term_beyond_the_calendar_is_none() {
        for hold in [Duration::MAX, Duration::from_secs(u64::MAX), END_OF_TIME] {
            assert_eq!(Lease::starting(&start(), Some(hold)).term(&later(YEARS_10)), Term::Unlimited);
        }
        assert_eq!(Lease::starting(&start(), None).term(&later(YEARS_10)), Term::Unlimited);
    }

    fn lock(holder: Holder, lease: Lease) -> LockFile {
        LockFile {
            key: Key::new("k").unwrap(),
            holder,
            token: LockToken::new(7),
            acquired_at: start().wall,
            lease,
            owner: "41-abc".into(),
        }
    }

    #[test]
    fn every_combination_of_term_owner_and_kind() {
        let bound = Holder::current();
        let named = Holder::named("job").unwrap();
        for (owner, dead) in [(Liveness::Alive, false), (Liveness::Unknown, false), (Liveness::Dead, true)] {
            for (holder, frees) in [(&bound, dead), (&named, false)] {
                let live = state(&lock(holder.clone(), lease(30)), &start(), owner);
                assert_eq!(live, if frees { LockState::Abandoned } else { LockState::Held });
                let over = state(&lock(holder.clone(), lease(30)), &later(YEARS_10), owner);
                assert_eq!(over, LockState::Expired);
            }
        }
    }

    #[test]
    fn claims_by_name_and_by_token() {
        let (bound, named) = (Holder::current(), Holder::named("job").unwrap());
        let token = |number| Claim::Token(LockToken::new(number));
        let judge = |holder: &Holder, claim: &Claim, here: Option<&str>| {
            let lock = lock(holder.clone(), lease(30));
            standing(&lock, LockState::Held, claim, |owner| here == Some(owner))
        };
        let (here, there) = (Some("41-abc"), Some("42-xyz"));

        assert_eq!(judge(&named, &Claim::Holder(named.clone()), None), Standing::Mine);
        assert_eq!(judge(&named, &token(7), there), Standing::Mine);
        assert_eq!(judge(&named, &token(6), here), Standing::Other);
        assert_eq!(judge(&named, &Claim::Holder(bound.clone()), here), Standing::Other);

        for claim in [Claim::Holder(bound.clone()), token(7)] {
            assert_eq!(judge(&bound, &claim, here), Standing::Mine);
            assert_eq!(judge(&bound, &claim, there), Standing::Other, "another process of the same name");
            assert_eq!(judge(&bound, &claim, None), Standing::Other);
        }
        let expired = lock(named.clone(), lease(30));
        let expired = standing(&expired, LockState::Expired, &Claim::Holder(named), |_| true);
        assert_eq!(expired, Standing::Free);
    }
}
