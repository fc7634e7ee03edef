//! The answers of the functions of the schema.

/// How a function ended. The numbers are part of the schema: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    /// The same holder had the lock already.
    Again,
    /// Another holder's lock is in the way.
    Locked,
    /// The lock is free, but other waiters are ahead.
    Behind,
    /// The claim was by token, and its lock is not live.
    Lost,
    NotLocked,
    /// The session that stands for this process has ended.
    Gone,
    /// The record has another version.
    Other,
    /// The record has the same version.
    Same,
    /// There is no record.
    Absent,
    /// Somebody is inside of the latch.
    Busy,
    /// The holder shares the lock with others, or might, and an exclusive one is needed.
    Shared,
}

impl Status {
    pub(super) const ALL: [Self; 12] = [
        Self::Ok,
        Self::Again,
        Self::Locked,
        Self::Behind,
        Self::Lost,
        Self::NotLocked,
        Self::Gone,
        Self::Other,
        Self::Same,
        Self::Absent,
        Self::Busy,
        Self::Shared,
    ];

    pub(super) fn number(self) -> i32 {
        self as i32
    }

    /// The name in the text of the schema.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Again => "AGAIN",
            Self::Locked => "LOCKED",
            Self::Behind => "BEHIND",
            Self::Lost => "LOST",
            Self::NotLocked => "NOT_LOCKED",
            Self::Gone => "GONE",
            Self::Other => "OTHER",
            Self::Same => "SAME",
            Self::Absent => "ABSENT",
            Self::Busy => "BUSY",
            Self::Shared => "SHARED",
        }
    }

    pub(super) fn of(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.number() == number)
    }
}
