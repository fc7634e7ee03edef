//! The identity of a lock, and the ground on which an operation is requested.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Holder;

/// The fencing token of one acquisition.
///
/// Of two acquisitions of one key, the later one has the greater token, also across processes, crashes and
/// reboots. The exception is a power loss that destroys the shared table, if the wall clock is behind as
/// well. Pass the token to other systems so that they can refuse late writers. It stays below 2^53, so JSON
/// carries it exactly in every language.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LockToken(u64);

impl LockToken {
    /// A token from its number, as [`LockToken::get`] returned it, perhaps in another process.
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

impl FromStr for LockToken {
    type Err = ParseIntError;

    fn from_str(number: &str) -> Result<Self, ParseIntError> {
        number.parse().map(Self)
    }
}

/// The identity that an operation acts under: a holder, or the token of one acquisition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Claim {
    /// "I am this holder." Valid while no other holder's lock is live, so also while there is none.
    Holder(Holder),
    /// "I made this acquisition." Valid only while exactly that acquisition's lock is live. After a
    /// lost lease it is refused with [`ErrorKind::LockLost`](crate::ErrorKind::LockLost), even if the
    /// key is free again.
    Token(LockToken),
    /// "The process that made this acquisition gave me its token." Valid as a claim by token is, but in every
    /// process, also if the lock is bound to the one that acquired it: for a command that a holder starts. A claim by
    /// [`Token`](Claim::Token) is not valid there, so that a forked child cannot use its parent's lock by mistake.
    ///
    /// ```
    /// use record_store::{Claim, FileSystemRecordStore, LockOptions, LockToken, RecordStoreExt, WriteOptions};
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let store = FileSystemRecordStore::open(dir.path())?;
    /// let guard = store.lock("report", LockOptions::new())?;
    /// let token = guard.token().get(); // for the environment of a command
    /// // In the command:
    /// let claim = Claim::Delegated(LockToken::new(token));
    /// store.write_with("report", "done", WriteOptions::new().claim(claim.clone()))?;
    /// # drop(guard);
    /// // Once the lock is released or lost:
    /// let late = store.write_with("report", "late", WriteOptions::new().claim(claim));
    /// assert!(late.unwrap_err().is_lock_lost());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    Delegated(LockToken),
}

impl Claim {
    /// The claim of the calling thread's default holder.
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

/// The result of [`RecordStore::acquire_lock_raw`](crate::RecordStore::acquire_lock_raw).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acquired {
    /// The token of the acquisition.
    pub token: LockToken,
    /// True if the same holder had the lock already: the token is the old one, and only the lease was
    /// restarted.
    pub reentrant: bool,
}

impl Acquired {
    /// A new acquisition.
    #[must_use]
    pub const fn new(token: LockToken) -> Self {
        Self { token, reentrant: false }
    }

    /// The holder had the lock already, with this token.
    #[must_use]
    pub const fn reentrant(token: LockToken) -> Self {
        Self { token, reentrant: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_number_in_text_and_json() {
        let token = LockToken::new(1_795_670_157_217_280);
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!(serde_json::to_string(&token).unwrap(), "1795670157217280");
        assert_eq!(serde_json::from_str::<LockToken>("1795670157217280").unwrap(), token);
        assert!("-1".parse::<LockToken>().is_err());
    }
}
