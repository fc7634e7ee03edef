//! Snapshots of a key's lock, and the access that a claim has.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rustix::fs::Stat;

use super::clock::Reading;
use super::lease::{self, Liveness, Term};
use super::owner::{self, Owner};
use crate::filesystem::context::Context;
use crate::filesystem::core::Core;
use crate::filesystem::disk::layout::{self, MAX_LOCK_BYTES, Opened};
use crate::filesystem::disk::lock_file::{Acquisition, LockFile, Unsound, is_unfinished};
use crate::trace;
use crate::{Claim, Error, ErrorKind, Key, LockInfo, LockState, LockToken, Result};

/// The state of a key's lock file at one moment.
pub(crate) enum Snapshot {
    /// There is no lock file.
    Absent,
    /// An empty or zeroed file. It was left for a waiter, or its creator died before the first write.
    Blank,
    /// A file of which a part is zeros. Its writer died, or the power failed, before all of it was written.
    Unfinished,
    Lock(Box<Found>),
}

/// A lock file, and its effective state: that of the acquisition in question. It is in force, if one of them is.
pub(crate) struct Found {
    pub(crate) lock: LockFile,
    pub(crate) state: LockState,
    pub(crate) term: Term,
    /// Those of the sharers.
    pub(crate) sharers: Vec<(LockState, Term)>,
    pub(crate) version: Version,
}

/// The inode and the modification time of a lock file: they change when the lock does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version(u64, i64, i64);

impl Version {
    #[allow(clippy::useless_conversion, reason = "the types of these fields differ between systems")]
    fn of(stat: &Stat) -> Self {
        let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
        Self(stat.st_ino.into(), stat.st_mtime.into(), nanos)
    }
}

/// The access that a claim has to a key.
pub(crate) enum Access {
    /// No lock is live. The snapshot may contain the rest of an earlier one.
    Free(Snapshot),
    /// The live lock is the claimant's.
    Mine(Box<Found>),
    /// The live lock is another holder's.
    Other(Box<Found>),
}

/// The most likely state of the lock file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// Most keys have no lock, and a `stat` costs half as much as an open that fails.
    Absent,
    /// A claimant with a token has a lock.
    Lock,
}

impl Snapshot {
    /// A token that the next one must exceed.
    pub(crate) fn token(&self) -> LockToken {
        match self {
            Snapshot::Lock(found) => found.lock.newest,
            Snapshot::Absent | Snapshot::Blank | Snapshot::Unfinished => LockToken::new(0),
        }
    }
}

/// Fails unless the claim permits a change now. Called under the latch (I3).
pub(crate) fn admit(core: &Core, key: &Key, claim: &Claim, context: Context<'_>) -> Result<()> {
    match (claim, access(core, key, claim, context)?) {
        (_, Access::Mine(found)) if found.lock.is_shared() => Err(shared(core, key, &found, context)),
        (_, Access::Mine(_)) | (Claim::Holder(_), Access::Free(_)) => Ok(()),
        (Claim::Token(token) | Claim::Delegated(token), _) => Err(lost(core, key, *token, context)),
        (Claim::Holder(_), Access::Other(found)) => Err(context
            .error(ErrorKind::Locked)
            .with_holder(found.lock.acquisition.holder)
            .with_path(core.layout.lock_path(key))),
    }
}

/// The error for a claimant that shares the lock, where it needs an exclusive one.
pub(crate) fn shared(core: &Core, key: &Key, found: &Found, context: Context<'_>) -> Error {
    let error = context.error(ErrorKind::LockShared).with_token(found.lock.acquisition.token);
    error.with_path(core.layout.lock_path(key))
}

/// The access that the claim has now.
pub(crate) fn access(core: &Core, key: &Key, claim: &Claim, context: Context<'_>) -> Result<Access> {
    let expected = match claim {
        Claim::Token(_) | Claim::Delegated(_) => Expected::Lock,
        Claim::Holder(_) => Expected::Absent,
    };
    Ok(match retry_torn_read(Snapshot::Unfinished, || snapshot_once(core, key, expected, context))? {
        Snapshot::Lock(mut found) if found.state == LockState::Held => {
            if found.find_held(|held| is_claimed(core, held, claim)) {
                Access::Mine(found)
            } else {
                Access::Other(found)
            }
        }
        snapshot => Access::Free(snapshot),
    })
}

/// The error for a claim by token whose lock is no longer live.
pub(crate) fn lost(core: &Core, key: &Key, token: LockToken, context: Context<'_>) -> Error {
    let error = context.error(ErrorKind::LockLost).with_token(token);
    trace::lost(error.with_path(core.layout.lock_path(key)))
}

/// The state of the key's lock file, with or without the latch: the file appears, changes and disappears
/// atomically, with one exception.
///
/// A blank file is written while others may read it, and a read may return a part. A part is never a lock,
/// because the rest is zeros, which JSON does not allow. So a read that looks torn is retried. If it stays so, its
/// writer is gone. Should the writer be still at work, the key is free for the reader a moment before the release or
/// after the acquisition has begun, neither of which has returned.
pub(crate) fn snapshot(core: &Core, key: &Key, context: Context<'_>) -> Result<Snapshot> {
    retry_torn_read(Snapshot::Unfinished, || snapshot_once(core, key, Expected::Absent, context))
}

fn snapshot_once(core: &Core, key: &Key, expected: Expected, context: Context<'_>) -> Result<Snapshot> {
    let path = || core.layout.lock_path(key);
    let name = layout::lock_name(key);
    if expected == Expected::Absent {
        let stat = layout::stat(&core.layout.dir, &name)
            .map_err(|errno| context.io("stat the lock", &path(), errno))?;
        if stat.is_none() {
            return Ok(Snapshot::Absent);
        }
    }
    // Read the clock before the file is opened: with a later reading, a lease that was renewed in between
    // would look expired.
    let now = Reading::now();
    let opened = layout::open_existing(&core.layout.dir, &name)
        .map_err(|refusal| refusal.into_error(context, "open the lock", path()))?;
    let Some(opened) = opened else { return Ok(Snapshot::Absent) };
    match read_lock(core, &opened, &now, context, path)? {
        Snapshot::Lock(found) if found.lock.key != *key => {
            Err(context.error(ErrorKind::KeyMismatch).with_stored_key(&found.lock.key).with_path(path()))
        }
        snapshot => Ok(snapshot),
    }
}

/// Reads an open lock file. `now` is a reading of the clocks from before the file was opened.
pub(crate) fn read_lock(
    core: &Core,
    opened: &Opened,
    now: &Reading,
    context: Context<'_>,
    path: impl Fn() -> PathBuf,
) -> Result<Snapshot> {
    let text = layout::read_up_to(opened, MAX_LOCK_BYTES as u64)
        .map_err(|error| context.io("read the lock", &path(), error))?;
    let corrupt = |reason: &str| context.error(ErrorKind::CorruptLock).with_detail(reason).with_path(path());
    if text.len() > MAX_LOCK_BYTES {
        return Err(corrupt("over 64 KiB"));
    }
    // Zeros too: after a power loss a file may have its length but not yet its content.
    if text.iter().all(|&byte| byte == 0) {
        return Ok(Snapshot::Blank);
    }
    let lock = LockFile::parse(&text).map_err(|unsound| match unsound {
        Unsound::Json(source) if is_unfinished(&text) => corrupt(UNFINISHED).with_source(source),
        Unsound::Json(source) if text.contains(&0) => corrupt(ZEROS).with_source(source),
        Unsound::Json(source) => corrupt("not a JSON lock").with_source(source),
        Unsound::Field(name) => corrupt(&format!("no valid {name}")),
    })?;
    let (state, term) = state_of(core, &lock.acquisition, now);
    let sharers = lock.sharers.iter().map(|sharer| state_of(core, sharer, now)).collect();
    let mut found = Box::new(Found { lock, state, term, sharers, version: Version::of(&opened.stat) });
    found.find_held(|_| true);
    Ok(Snapshot::Lock(found))
}

fn state_of(core: &Core, acquisition: &Acquisition, now: &Reading) -> (LockState, Term) {
    // The owner is checked only if it decides: that opens a file.
    let is_bound = acquisition.holder.is_process_bound();
    let owner = if is_bound { liveness(core, acquisition) } else { Liveness::Unknown };
    let term = acquisition.lease.term(now);
    (lease::state(term, is_bound, owner), term)
}

const UNFINISHED: &str = "a part of it is zeros";
const ZEROS: &str = "a zero byte is in it";

/// Repeats a read of a lock file that looks torn, until it is certain to stay as it is. If a part of the file stays
/// zero, the outcome is `unfinished`.
pub(crate) fn retry_torn_read<T>(unfinished: T, read: impl Fn() -> Result<T>) -> Result<T> {
    let fails = |outcome: &Result<T>, details: &[&str]| {
        let error = outcome.as_ref().err().filter(|error| error.kind() == ErrorKind::CorruptLock);
        error.and_then(Error::detail).is_some_and(|detail| details.contains(&detail))
    };
    for _ in 0..MAX_TORN_READS {
        let outcome = read();
        if !fails(&outcome, &[UNFINISHED, ZEROS]) {
            return outcome;
        }
        std::thread::sleep(TORN_READ_PAUSE);
    }
    let outcome = read();
    if fails(&outcome, &[UNFINISHED]) { Ok(unfinished) } else { outcome }
}

/// The writer may be preempted in the middle of its write, but not for as long as all these reads take.
const MAX_TORN_READS: u32 = 20;
const TORN_READ_PAUSE: Duration = Duration::from_millis(1);

/// Whether the lock file is still the one that was found. Much cheaper than a snapshot.
pub(crate) fn is_unchanged(core: &Core, key: &Key, version: Version) -> bool {
    let stat = layout::stat(&core.layout.dir, &layout::lock_name(key));
    matches!(stat, Ok(Some(stat)) if Version::of(&stat) == version)
}

/// The description of a lock for users.
pub(crate) fn info(core: &Core, found: &Found) -> LockInfo {
    let lock = &found.lock;
    let sharers = lock.sharers.iter().zip(&found.sharers);
    let sharers = sharers.map(|(sharer, of_sharer)| info_of(core, &lock.key, sharer, *of_sharer));
    info_of(core, &lock.key, &lock.acquisition, (found.state, found.term)).with_sharers(sharers.collect())
}

fn info_of(core: &Core, key: &Key, acquisition: &Acquisition, (state, term): (LockState, Term)) -> LockInfo {
    let alive = match liveness(core, acquisition) {
        Liveness::Alive => Some(true),
        Liveness::Dead => Some(false),
        Liveness::Unknown => None,
    };
    let here = is_owner_here(core, &acquisition.owner);
    let (holder, token) = (acquisition.holder.clone(), acquisition.token);
    let info = LockInfo::new(key.clone(), holder, token, acquisition.acquired_at)
        .with_state(state)
        .with_owner(alive, here)
        .with_note(acquisition.note.as_deref())
        .with_slots(acquisition.slots);
    let left = match term {
        Term::Unlimited => return info,
        Term::Left(left) => left,
        Term::Over => Duration::ZERO,
    };
    info.with_expiry(acquisition.lease.expires_at.unwrap_or(SystemTime::UNIX_EPOCH), left)
}

/// [`info`] with the waiters, for people.
pub(crate) fn describe(core: &Core, found: &Found) -> LockInfo {
    info(core, found).with_waiters(core.events.waiters(&found.lock.key, &core.layout))
}

fn liveness(core: &Core, acquisition: &Acquisition) -> Liveness {
    owner::liveness(&core.layout, &acquisition.owner, Owner::known_here(&core.layout).as_deref())
}

/// Whether the acquisition, in force or not, is the one that the claim is about.
pub(crate) fn is_claimed(core: &Core, acquisition: &Acquisition, claim: &Claim) -> bool {
    acquisition.is_claimed_by(claim, |owner| is_owner_here(core, owner))
}

/// Whether this is the name of this process's owner file.
fn is_owner_here(core: &Core, name: &str) -> bool {
    Owner::known_here(&core.layout).is_some_and(|owner| owner.name == name)
}
