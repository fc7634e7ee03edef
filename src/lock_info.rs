//! The description of a lock.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rfc3339;
use crate::{Holder, Key, LockToken, WaiterInfo};

/// Whether a lock is still in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LockState {
    /// It is held.
    Held,
    /// Its lease expired: the key is free.
    Expired,
    /// It was bound to a process that is gone: the key is free.
    Abandoned,
}

/// A description of one lock at one moment.
///
/// A [shared](crate::LockOptions::shared) lock has several holders. This describes one of them, and
/// [`sharers`](LockInfo::sharers) the others.
///
/// Serialized, it has its times as RFC 3339 text and `remaining_seconds` as a number.
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
    note: Option<Arc<str>>,
    slots: Option<NonZeroU32>,
    sharers: Vec<LockInfo>,
    waiters: Option<Vec<WaiterInfo>>,
}

impl LockInfo {
    /// A held lock without a lease. Stores create these; the methods that begin with `with_` add the
    /// other parts.
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
            note: None,
            slots: None,
            sharers: Vec::new(),
            waiters: None,
        }
    }

    /// Sets how many holders may share the lock. `None`: it is exclusive.
    #[must_use]
    pub fn with_slots(mut self, slots: Option<NonZeroU32>) -> Self {
        self.slots = slots;
        self
    }

    /// Sets the other holders, which share the lock, each as a lock of its own.
    #[must_use]
    pub fn with_sharers(mut self, sharers: Vec<LockInfo>) -> Self {
        self.sharers = sharers;
        self
    }

    /// Sets the calls that wait to acquire the lock, in the order in which they will.
    #[must_use]
    pub fn with_waiters(mut self, waiters: impl Into<Option<Vec<WaiterInfo>>>) -> Self {
        self.waiters = waiters.into();
        self
    }

    /// Sets the note of the acquisition.
    #[must_use]
    pub fn with_note<'a>(mut self, note: impl Into<Option<&'a str>>) -> Self {
        self.note = note.into().map(Arc::from);
        self
    }

    /// Sets when the lease expires, and how much of it is left.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime, remaining: Duration) -> Self {
        self.expires_at = Some(expires_at);
        self.remaining = Some(remaining);
        self
    }

    /// Sets whether the lock is still in force.
    #[must_use]
    pub fn with_state(mut self, state: LockState) -> Self {
        self.state = state;
        self
    }

    /// Sets whether the process that acquired the lock is alive, and whether it is this process.
    #[must_use]
    pub fn with_owner(mut self, alive: Option<bool>, this_process: bool) -> Self {
        self.owner_alive = alive;
        self.owned_here = this_process;
        self
    }

    /// The locked record's key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// The holder.
    #[must_use]
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The fencing token of the acquisition.
    #[must_use]
    pub fn token(&self) -> LockToken {
        self.token
    }

    /// When it was acquired, by the holder's wall clock. A renewal does not change it.
    #[must_use]
    pub fn acquired_at(&self) -> SystemTime {
        self.acquired_at
    }

    /// When the lease expires, by the holder's wall clock. `None`: when it is released. For people;
    /// the clock of [`LockInfo::remaining`] decides.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// The part of the lease that was left at the moment of this description. `None`: it has no lease.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.remaining
    }

    /// Whether it is still in force.
    #[must_use]
    pub fn state(&self) -> LockState {
        self.state
    }

    /// Whether the process that acquired the lock is alive. `None`: unknown.
    #[must_use]
    pub fn owner_alive(&self) -> Option<bool> {
        self.owner_alive
    }

    /// The [note](crate::LockOptions::note) of the acquisition, which tells what the holder does. It may contain any
    /// characters.
    #[must_use]
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Whether the lock is [shared](crate::LockOptions::shared): then nobody may change the record.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.slots.is_some()
    }

    /// How many holders may share the lock, as this one asked for. `None`: it is exclusive.
    /// [`NonZeroU32::MAX`]: as many as there are.
    #[must_use]
    pub fn slots(&self) -> Option<NonZeroU32> {
        self.slots
    }

    /// The other holders of a shared lock, in the order of their tokens. Those whose lease expired, or whose process is
    /// gone, are among them until the lock is acquired, released or renewed the next time.
    #[must_use]
    pub fn sharers(&self) -> &[LockInfo] {
        &self.sharers
    }

    /// All holders of the lock: this one first, then the [sharers](LockInfo::sharers).
    pub fn holders(&self) -> impl Iterator<Item = &LockInfo> {
        std::iter::once(self).chain(&self.sharers)
    }

    /// The calls that wait to acquire the lock, in the order in which they will. `None`: unknown.
    ///
    /// Calls that only wait until the lock is free are not among them: reads, `wait_for_lock`, `wait_for_record`, and
    /// those in which `get_or_compute` waits for the result of another caller. Of the tasks of one process that wait
    /// for one lock in an `asynchronous::AsyncRecordStore`, there is only the first one.
    /// A store of files knows them on Linux, up to 256 for all locks together. A PostgreSQL server does not tell their
    /// processes.
    ///
    /// ```
    /// use std::{thread, time::Duration};
    /// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let guard = store.lock("report", LockOptions::new())?;
    /// let waiter = thread::spawn({
    ///     let store = store.clone();
    ///     move || store.lock("report", LockOptions::new()).map(drop)
    /// });
    /// let waiters = || -> record_store::Result<usize> {
    ///     let info = store.lock_info("report")?.expect("it is held");
    ///     Ok(info.waiters().map_or(0, <[_]>::len))
    /// };
    /// while waiters()? == 0 {
    ///     thread::sleep(Duration::from_millis(1));
    /// }
    /// guard.release()?;
    /// waiter.join().expect("no panic")?;
    /// # Ok::<(), record_store::Error>(())
    /// ```
    #[must_use]
    pub fn waiters(&self) -> Option<&[WaiterInfo]> {
        self.waiters.as_deref()
    }

    /// True if the lock is in force and `holder`, in this process, holds it, or is one of those that share it.
    #[must_use]
    pub fn is_held_by(&self, holder: &Holder) -> bool {
        self.holders().any(|it| {
            it.state == LockState::Held
                && it.holder == *holder
                && (it.owned_here || !holder.is_process_bound())
        })
    }

    /// The description of the holder with this token, if it is one of those that hold the lock.
    pub(crate) fn held_with(&self, token: LockToken) -> Option<&LockInfo> {
        self.holders().find(|it| it.token == token && it.state == LockState::Held)
    }
}

/// A [`LockInfo`] as it is serialized.
#[derive(Serialize, Deserialize)]
struct Fields {
    key: Key,
    holder: String,
    process_bound: bool,
    token: LockToken,
    state: LockState,
    owner_alive: Option<bool>,
    acquired_at: String,
    expires_at: Option<String>,
    remaining_seconds: Option<f64>,
    #[serde(default)]
    note: Option<Arc<str>>,
    #[serde(default)]
    shared: bool,
    #[serde(default)]
    slots: Option<NonZeroU32>,
    #[serde(default)]
    sharers: Vec<LockInfo>,
    #[serde(default)]
    waiters: Option<Vec<WaiterInfo>>,
}

impl Serialize for LockInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Fields {
            key: self.key.clone(),
            holder: self.holder.name().to_owned(),
            process_bound: self.holder.is_process_bound(),
            token: self.token,
            state: self.state,
            owner_alive: self.owner_alive,
            acquired_at: rfc3339::format(self.acquired_at),
            expires_at: self.expires_at.map(rfc3339::format),
            remaining_seconds: self.remaining.map(|left| left.as_secs_f64()),
            note: self.note.clone(),
            shared: self.is_shared(),
            slots: self.slots.filter(|slots| *slots != NonZeroU32::MAX),
            sharers: self.sharers.clone(),
            waiters: self.waiters.clone(),
        }
        .serialize(serializer)
    }
}

/// A description from elsewhere does not say that a lock is this process's.
impl<'de> Deserialize<'de> for LockInfo {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let fields = Fields::deserialize(deserializer)?;
        let time = |text: &str| {
            rfc3339::parse(text).ok_or_else(|| D::Error::custom(format_args!("{text:?} is not a time")))
        };
        let remaining = fields
            .remaining_seconds
            .map(Duration::try_from_secs_f64)
            .transpose()
            .map_err(D::Error::custom)?;
        Ok(Self {
            key: fields.key,
            holder: Holder::new(fields.holder, fields.process_bound).map_err(D::Error::custom)?,
            token: fields.token,
            acquired_at: time(&fields.acquired_at)?,
            expires_at: fields.expires_at.as_deref().map(time).transpose()?,
            remaining,
            state: fields.state,
            owner_alive: fields.owner_alive,
            owned_here: false,
            note: fields.note,
            slots: fields.shared.then(|| fields.slots.unwrap_or(NonZeroU32::MAX)),
            sharers: fields.sharers,
            waiters: fields.waiters,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_survives_serialization() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let info =
            LockInfo::new(Key::new("k").unwrap(), Holder::named("job").unwrap(), LockToken::new(7), start)
                .with_expiry(start + Duration::from_secs(30), Duration::from_millis(1_500))
                .with_state(LockState::Expired)
                .with_note(Some("a \"note\""))
                .with_waiters(vec![WaiterInfo::new(Duration::from_millis(250)).with_process(7, None)])
                .with_owner(Some(false), false);
        let text = serde_json::to_string(&info).unwrap();
        assert!(text.contains(r#""state":"expired""#), "{text}");
        assert!(text.contains(r#""acquired_at":"2023-11-14T22:13:20.000000000Z""#), "{text}");
        assert_eq!(serde_json::from_str::<LockInfo>(&text).unwrap(), info);
        assert!(serde_json::from_str::<LockInfo>(&text.replace("1.5", "-1.5")).is_err());
        for slots in [NonZeroU32::MIN, NonZeroU32::MAX] {
            let sharer = info.clone().with_slots(Some(slots));
            let several = sharer.clone().with_sharers(vec![sharer]);
            let text = serde_json::to_string(&several).unwrap();
            assert_eq!(serde_json::from_str::<LockInfo>(&text).unwrap(), several, "{text}");
        }
        let far = info.with_expiry(start + Duration::from_secs(1 << 40), Duration::from_secs(1 << 40));
        assert!(serde_json::to_string(&far).unwrap().contains("9999-12-31"));
    }
}
