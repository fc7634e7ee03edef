//! Looking at a key's lock, and judging a claim against it.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;

use super::FileSystemRecordStore;
use super::clock::Reading;
use super::layout::{self, Context, MAX_LOCK_BYTES, Opened};
use super::lease::{self, Liveness, Standing, Term};
use super::owner::{self, Owner};
use super::sidecar::{LockFile, Unsound};
use crate::trace;
use crate::{Claim, Error, Key, LockInfo, LockState, LockToken, Result};

/// What a look at a key's lock file found.
pub(super) enum Look {
    /// There is no lock file.
    Absent,
    /// It says nothing: it was left for one who waits, or its creator died before it was written.
    Blank,
    Lock(Box<Found>),
}

/// What a look will most likely find.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Most keys have no lock, and to be told so costs half as much as to try to open one.
    Nothing,
    /// Whoever has a token has a lock.
    Lock,
}

/// A lock file, judged at one moment.
pub(super) struct Found {
    pub(super) lock: LockFile,
    pub(super) state: LockState,
    pub(super) term: Term,
    pub(super) version: Version,
}

/// What changes when a lock file does: its inode number, and when it was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(u64, i64, i64);

impl Version {
    #[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
    fn of(stat: &Stat) -> Self {
        let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Self(stat.st_ino.into(), stat.st_mtime.into(), nanos)
    }
}

/// Looks again at what seems to be half written, until it is sure to stay so.
pub(super) fn patiently<T>(look: impl Fn() -> Result<T>) -> Result<T> {
    for _ in 0..LOOKS {
        match look() {
            Err(Error::CorruptLock { reason, .. }) if reason == HALF_WRITTEN => {
                std::thread::sleep(BETWEEN_LOOKS);
            }
            looked => return looked,
        }
    }
    look()
}

const HALF_WRITTEN: &str = "a part of it is zeros";

/// A process may be preempted in the middle of a write, but hardly for longer than all these looks.
const LOOKS: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// A key's lock as it stands to a claim.
pub(super) enum Judged {
    /// No lock is live. What the look found may still be there.
    Free(Look),
    /// The live lock is the claimant's.
    Mine(Box<Found>),
    /// The live lock is another's.
    Other(Box<Found>),
}

impl Look {
    /// The token that the next one must exceed.
    pub(super) fn token(&self) -> LockToken {
        match self {
            Look::Lock(found) => found.lock.token,
            Look::Absent | Look::Blank => LockToken::new(0),
        }
    }
}

impl FileSystemRecordStore {
    /// Looks at the key's lock file, with or without the latch: it comes, changes and goes in one step.
    ///
    /// Except that a blank file is written while others may read it, and a read may then see a part
    /// of it. The part is never a lock, for what is missing is zeros, which JSON does not allow. So
    /// what looks half written is looked at again.
    pub(super) fn look(&self, key: &Key, context: Context<'_>) -> Result<Look> {
        patiently(|| self.look_once(key, Expected::Nothing, context))
    }

    fn look_once(&self, key: &Key, expected: Expected, context: Context<'_>) -> Result<Look> {
        let path = || self.layout.lock_path(key);
        let name = layout::lock_name(key);
        if expected == Expected::Nothing {
            let there = layout::look(&self.layout.dir, &name)
                .map_err(|errno| context.io("look at the lock", &path(), errno))?;
            if there.is_none() {
                return Ok(Look::Absent);
            }
        }
        // Before the file is opened: by a later clock, a lease that was renewed just then would look
        // as if it had run out.
        let now = Reading::now();
        let opened = layout::open_existing(&self.layout.dir, &name)
            .map_err(|refusal| context.refused(refusal, "open the lock", path()))?;
        let Some(opened) = opened else { return Ok(Look::Absent) };
        match self.read_lock(&opened, &now, context, path)? {
            Look::Lock(found) if found.lock.key != *key => Err(Error::KeyMismatch {
                operation: context.operation,
                key: key.clone(),
                found: found.lock.key,
                path: path(),
            }),
            look => Ok(look),
        }
    }

    /// Reads and judges an open lock file by the clock as it was before the opening.
    pub(super) fn read_lock(
        &self,
        opened: &Opened,
        now: &Reading,
        context: Context<'_>,
        path: impl Fn() -> PathBuf,
    ) -> Result<Look> {
        let text = layout::read_up_to(opened, MAX_LOCK_BYTES as u64)
            .map_err(|error| context.io("read the lock", &path(), error))?;
        let corrupt = |reason: String, source| Error::CorruptLock {
            operation: context.operation,
            key: context.key.cloned(),
            reason,
            path: path(),
            source,
        };
        if text.len() > MAX_LOCK_BYTES {
            return Err(corrupt("over 64 KiB".into(), None));
        }
        // Zeros too: after a power loss a file may have its length but not yet its content.
        if text.iter().all(|&byte| byte == 0) {
            return Ok(Look::Blank);
        }
        let lock = LockFile::parse(&text).map_err(|unsound| match unsound {
            Unsound::Json(source) if text.contains(&0) => corrupt(HALF_WRITTEN.into(), Some(source)),
            Unsound::Json(source) => corrupt("not a JSON lock".into(), Some(source)),
            Unsound::Field(name) => corrupt(format!("no valid {name}"), None),
        })?;
        // The owner is asked only where it decides: that opens a file.
        let owner = if lock.holder.is_process_bound() { self.liveness(&lock) } else { Liveness::Unknown };
        let (state, term) = (lease::state(&lock, now, owner), lock.lease.term(now));
        Ok(Look::Lock(Box::new(Found { lock, state, term, version: Version::of(&opened.stat) })))
    }

    /// Whether the lock file is the one that was found. Much cheaper than a look.
    pub(super) fn is_unchanged(&self, key: &Key, version: Version) -> bool {
        let stat = layout::look(&self.layout.dir, &layout::lock_name(key));
        matches!(stat, Ok(Some(stat)) if Version::of(&stat) == version)
    }

    /// Judges a claim against the key's lock.
    pub(super) fn judge(&self, key: &Key, claim: &Claim, context: Context<'_>) -> Result<Judged> {
        let expected = match claim {
            Claim::Token(_) => Expected::Lock,
            Claim::Holder(_) => Expected::Nothing,
        };
        let found = match patiently(|| self.look_once(key, expected, context))? {
            Look::Lock(found) => found,
            look => return Ok(Judged::Free(look)),
        };
        Ok(match lease::standing(&found.lock, found.state, claim, |owner| self.is_owner_here(owner)) {
            Standing::Free => Judged::Free(Look::Lock(found)),
            Standing::Mine => Judged::Mine(found),
            Standing::Other => Judged::Other(found),
        })
    }

    /// Admits a change, under the latch, if the claim is good (I3).
    pub(super) fn admit(&self, key: &Key, claim: &Claim, context: Context<'_>) -> Result<()> {
        match (claim, self.judge(key, claim, context)?) {
            (_, Judged::Mine(_)) | (Claim::Holder(_), Judged::Free(_)) => Ok(()),
            (Claim::Token(token), _) => Err(self.lost(key, *token, context)),
            (Claim::Holder(_), Judged::Other(found)) => Err(Error::Locked {
                operation: context.operation,
                key: key.clone(),
                holder: found.lock.holder,
                path: Some(self.layout.lock_path(key)),
            }),
        }
    }

    pub(super) fn lost(&self, key: &Key, token: LockToken, context: Context<'_>) -> Error {
        trace::lost(Error::LockLost {
            operation: context.operation,
            key: key.clone(),
            token,
            path: Some(self.layout.lock_path(key)),
        })
    }

    /// What to tell a user of a lock.
    pub(super) fn info(&self, found: Found) -> LockInfo {
        let Found { lock, state, term, version: _ } = found;
        let alive = match self.liveness(&lock) {
            Liveness::Alive => Some(true),
            Liveness::Dead => Some(false),
            Liveness::Unknown => None,
        };
        let here = self.is_owner_here(&lock.owner);
        let info = LockInfo::new(lock.key, lock.holder, lock.token, lock.acquired_at)
            .with_state(state)
            .with_owner(alive, here);
        let left = match term {
            Term::Unlimited => return info,
            Term::Left(left) => left,
            Term::Over => Duration::ZERO,
        };
        info.with_expiry(lock.lease.expires_at.unwrap_or(SystemTime::UNIX_EPOCH), left)
    }

    fn liveness(&self, lock: &LockFile) -> Liveness {
        owner::liveness(&self.layout, &lock.owner, Owner::known_here(&self.layout).as_deref())
    }

    /// Whether this is the name of this process's owner file.
    pub(super) fn is_owner_here(&self, name: &str) -> bool {
        Owner::known_here(&self.layout).is_some_and(|owner| owner.name == name)
    }
}
