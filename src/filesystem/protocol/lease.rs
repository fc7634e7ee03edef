//! Whether a lock is still in force. Pure functions of the lock's data and a reading of the clocks, so that
//! tests can try every case.

use std::time::{Duration, SystemTime};

use super::clock::{Epoch, Reading};
use crate::LockState;
use crate::rfc3339::END_OF_CALENDAR;

/// The end of a lock or of a record, as its file says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// The epoch in which `deadline` is valid.
    pub(crate) epoch: Option<Epoch>,
    /// The end on the boot clock. `None`: no end.
    pub(crate) deadline: Option<Duration>,
    /// The end on the wall clock: for people, and for other epochs.
    pub(crate) expires_at: Option<SystemTime>,
}

/// The rest of a lease. The one that ends first is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Term {
    Over,
    Left(Duration),
    Unlimited,
}

impl Term {
    /// The time that is left. `None`: it does not end.
    pub(crate) fn left(self) -> Option<Duration> {
        match self {
            Term::Unlimited => None,
            Term::Left(left) => Some(left),
            Term::Over => Some(Duration::ZERO),
        }
    }
}

/// The kernel's statement about the process that acquired a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Liveness {
    Alive,
    Dead,
    /// The kernel cannot be asked. A process without a proof of its death is treated as alive.
    Unknown,
}

impl Lease {
    /// A lease that starts now. One that ends after the year 9999 never expires.
    pub(crate) fn starting(now: &Reading, hold_timeout: Option<Duration>) -> Self {
        let end = hold_timeout.and_then(|hold| {
            let expires_at = now.wall.checked_add(hold)?;
            let named = expires_at.duration_since(SystemTime::UNIX_EPOCH).ok()? <= END_OF_CALENDAR;
            named.then_some((now.boottime.checked_add(hold)?, expires_at))
        });
        Self {
            // Without an end, no clock is compared.
            epoch: end.and_then(|_| now.epoch().cloned()),
            deadline: end.map(|(deadline, _)| deadline),
            expires_at: end.map(|(_, expires_at)| expires_at),
        }
    }

    pub(crate) fn term(&self, now: &Reading) -> Term {
        let is_same_epoch = || self.epoch.is_some() && self.epoch.as_ref() == now.epoch();
        let left = match (self.deadline, self.expires_at) {
            (Some(deadline), _) if is_same_epoch() => deadline.checked_sub(now.boottime),
            // A boot clock of another epoch cannot be compared.
            (_, Some(expires_at)) => expires_at.duration_since(now.wall).ok(),
            // No clock here can be compared with this deadline.
            (Some(_), None) => None,
            (None, None) => return Term::Unlimited,
        };
        match left {
            Some(left) if !left.is_zero() => Term::Left(left),
            _ => Term::Over,
        }
    }
}

/// The effective state of a lock: its lease expired, its owner died, or it is held.
pub(crate) fn state(term: Term, is_bound: bool, owner: Liveness) -> LockState {
    if term == Term::Over {
        LockState::Expired
    } else if is_bound && owner == Liveness::Dead {
        LockState::Abandoned
    } else {
        LockState::Held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEARS_10: Duration = Duration::from_hours(10 * 365 * 24);

    fn epoch(boot_id: &str, time_ns: u64) -> Epoch {
        Epoch { boot_id: boot_id.into(), time_ns }
    }

    fn start() -> Reading {
        Reading {
            epoch: Some(epoch("boot-a", 1)).into(),
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
    fn a_lease_expires_exactly_at_its_end() {
        let just_before = Duration::from_nanos(29_999_999_999);
        assert_eq!(lease(30).term(&later(just_before)), Term::Left(Duration::from_nanos(1)));
        assert_eq!(lease(30).term(&later(Duration::from_secs(30))), Term::Over);
        assert_eq!(lease(0).term(&start()), Term::Over);
    }

    #[test]
    fn of_a_lease_that_is_over_nothing_is_left() {
        assert_eq!(Term::Over.left(), Some(Duration::ZERO));
        assert_eq!(Term::Left(YEARS_10).left(), Some(YEARS_10));
        assert_eq!(Term::Unlimited.left(), None);
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
    fn another_boot_or_namespace_uses_the_wall_clock() {
        for other in [Some(epoch("boot-b", 1)), Some(epoch("boot-a", 2)), None] {
            // The boot clock restarted: that must not prolong an old lease.
            let now = Reading {
                epoch: other.clone().into(),
                boottime: Duration::ZERO,
                ..later(Duration::from_secs(29))
            };
            assert_eq!(lease(30).term(&now), Term::Left(Duration::from_secs(1)));
            let now =
                Reading { epoch: other.into(), boottime: Duration::ZERO, ..later(Duration::from_secs(30)) };
            assert_eq!(lease(30).term(&now), Term::Over);
        }
    }

    #[test]
    fn without_an_epoch_on_either_side_the_wall_clock_decides() {
        let now = Reading { epoch: None.into(), ..start() };
        let lease = Lease::starting(&now, Some(Duration::from_secs(30)));
        let now = Reading { boottime: now.boottime + YEARS_10, ..now };
        assert_eq!(lease.term(&now), Term::Left(Duration::from_secs(30)));
    }

    #[test]
    fn an_end_beyond_the_calendar_is_never() {
        for hold in [Duration::MAX, Duration::from_secs(u64::MAX), END_OF_CALENDAR] {
            assert_eq!(Lease::starting(&start(), Some(hold)).term(&later(YEARS_10)), Term::Unlimited);
        }
        assert_eq!(Lease::starting(&start(), None).term(&later(YEARS_10)), Term::Unlimited);
    }

    #[test]
    fn every_combination_of_term_owner_and_kind_of_holder() {
        let left = Term::Left(Duration::from_secs(1));
        for owner in [Liveness::Alive, Liveness::Unknown, Liveness::Dead] {
            for is_bound in [true, false] {
                let is_abandoned = is_bound && owner == Liveness::Dead;
                let expected = if is_abandoned { LockState::Abandoned } else { LockState::Held };
                assert_eq!(state(Term::Unlimited, is_bound, owner), expected);
                assert_eq!(state(left, is_bound, owner), expected);
                assert_eq!(state(Term::Over, is_bound, owner), LockState::Expired);
            }
        }
    }
}
