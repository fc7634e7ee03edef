//! The vocabulary of locks: how one is asked for, on what ground, and what is known of it.

use std::fmt;
use std::time::{Duration, SystemTime};

use crate::{Cancellation, Holder, Key};

/// The fencing token of one acquisition.
///
/// Of two acquisitions of one key the later has the greater token, also across processes, crashes
/// and reboots. Hand it to other systems to let them refuse late comers. It stays below 2^53, so it
/// passes through JSON unharmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockToken(u64);

impl LockToken {
    /// A token from its number, as [`LockToken::get`] gave it, perhaps in another process.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// On what ground an operation is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// "I am this holder." Good while no other holder's lock is live, so also while there is none.
    Holder(Holder),
    /// "I made this acquisition." Good only while exactly that acquisition's lock is live: after a
    /// lost lease it is refused with [`Error::LockLost`](crate::Error::LockLost), even if the key is free again.
    Token(LockToken),
}

impl Claim {
    /// The claim of the default holder of the calling thread.
    #[must_use]
    pub fn current() -> Self {
        Claim::Holder(Holder::current())
    }
}

impl From<Holder> for Claim {
    fn from(holder: Holder) -> Self {
        Claim::Holder(holder)
    }
}

impl From<&Holder> for Claim {
    fn from(holder: &Holder) -> Self {
        Claim::Holder(holder.clone())
    }
}

impl From<LockToken> for Claim {
    fn from(token: LockToken) -> Self {
        Claim::Token(token)
    }
}

/// How a lock is asked for: by whom, waiting how long, for how long.
///
/// The default is the calling thread's default holder, waits for ever and holds until released or
/// until the process is gone.
///
/// ```
/// use std::time::Duration;
/// use record_store::{Holder, LockOptions};
///
/// let options = LockOptions::new()
///     .holder(Holder::named("nightly-report")?)
///     .acquire_timeout(Duration::from_secs(5))
///     .hold_timeout(Duration::from_secs(30));
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a lock is asked for with them"]
pub struct LockOptions {
    holder: Option<Holder>,
    acquire_timeout: Option<Duration>,
    hold_timeout: Option<Duration>,
    cancellation: Option<Cancellation>,
}

impl LockOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks as this holder instead of [`Holder::current`].
    pub fn holder(mut self, holder: Holder) -> Self {
        self.holder = Some(holder);
        self
    }

    /// Gives up with [`Error::LockTimeout`](crate::Error::LockTimeout) after this time. Zero tries once and does not wait.
    /// Without it the call waits for ever.
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = Some(timeout);
        self
    }

    /// The lease: after this time without [renewal](crate::LockGuard::renew) the lock is free for others,
    /// whatever its holder does. Suspended time counts; a stepped wall clock does not matter.
    pub fn hold_timeout(mut self, timeout: Duration) -> Self {
        self.hold_timeout = Some(timeout);
        self
    }

    /// Gives up with [`Error::Cancelled`](crate::Error::Cancelled) as soon as this is cancelled, also
    /// while waiting. A lock that is held already is not concerned.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.cancellation = Some(cancellation.clone());
        self
    }

    /// The holder to ask as: the one set, or the calling thread's default.
    #[must_use]
    pub fn resolve_holder(&self) -> Holder {
        self.holder.clone().unwrap_or_else(Holder::current)
    }

    /// The holder that was set.
    #[must_use]
    pub fn get_holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// The longest wait. `None`: for ever.
    #[must_use]
    pub fn get_acquire_timeout(&self) -> Option<Duration> {
        self.acquire_timeout
    }

    /// The lease. `None`: until released.
    #[must_use]
    pub fn get_hold_timeout(&self) -> Option<Duration> {
        self.hold_timeout
    }

    /// What ends the wait before its time.
    #[must_use]
    pub fn get_cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.as_ref()
    }
}

/// What [`RecordStore::acquire`](crate::RecordStore::acquire) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acquired {
    /// The token of the acquisition.
    pub token: LockToken,
    /// True where the same holder had the lock already: the token is the old one, and only the
    /// lease was started anew.
    pub reentrant: bool,
}

/// Whether a lock still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockState {
    /// It is held.
    Held,
    /// Its lease ran out: the key is free.
    Expired,
    /// It was bound to a process that is gone: the key is free.
    Abandoned,
}

/// What is known of one lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockInfo {
    key: Key,
    holder: Holder,
    token: LockToken,
    acquired_at: SystemTime,
    expires_at: Option<SystemTime>,
    remaining: Option<Duration>,
    state: LockState,
    owner_alive: Option<bool>,
    owned_here: bool,
}

impl LockInfo {
    /// A held lock without a term. Stores make these; the other parts are added by the methods
    /// that begin with `with_`.
    #[must_use]
    pub fn new(key: Key, holder: Holder, token: LockToken, acquired_at: SystemTime) -> Self {
        Self {
            key,
            holder,
            token,
            acquired_at,
            expires_at: None,
            remaining: None,
            state: LockState::Held,
            owner_alive: None,
            owned_here: false,
        }
    }

    /// Sets when the lease runs out, and how much of it is left.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime, remaining: Duration) -> Self {
        self.expires_at = Some(expires_at);
        self.remaining = Some(remaining);
        self
    }

    /// Sets whether the lock still counts.
    #[must_use]
    pub fn with_state(mut self, state: LockState) -> Self {
        self.state = state;
        self
    }

    /// Sets whether the process that took the lock is alive, and whether it is this one.
    #[must_use]
    pub fn with_owner(mut self, alive: Option<bool>, this_process: bool) -> Self {
        self.owner_alive = alive;
        self.owned_here = this_process;
        self
    }

    /// The record that is locked.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The token of the acquisition.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.token
    }

    /// When it was acquired, by the wall clock of the holder; a renewal does not change it.
    #[must_use]
    pub fn acquired_at(&self) -> SystemTime {
        self.acquired_at
    }

    /// When the lease runs out, by the wall clock of the holder. `None`: when it is released. For
    /// people; the decision is made by [`LockInfo::remaining`]'s clock.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// What was left of the lease when this was looked up. `None`: it has no term.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.remaining
    }

    /// Whether it still counts.
    #[must_use]
    pub fn state(&self) -> LockState {
        self.state
    }

    /// Whether the process that took the lock is alive. `None`: that cannot be told.
    #[must_use]
    pub fn owner_alive(&self) -> Option<bool> {
        self.owner_alive
    }

    /// True if the lock counts and this is its holder.
    #[must_use]
    pub fn is_held_by(&self, holder: &Holder) -> bool {
        self.state == LockState::Held
            && self.holder == *holder
            && (self.owned_here || !holder.is_process_bound())
    }
}
