//! How an operation is requested: on which claim, waiting how long, for how long.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::waiting::Observed;
use crate::{Cancellation, Claim, Error, Holder, LockToken, WaitObserver};

/// How long a call may wait, and what ends the wait early.
///
/// The default waits forever. A [`Duration`] alone is a timeout:
///
/// ```
/// use std::time::Duration;
/// use record_store::{Cancellation, MemoryRecordStore, RecordStoreExt, WaitOptions};
///
/// let store = MemoryRecordStore::new();
/// assert!(store.wait_for_lock("report", Duration::from_secs(1))?);
/// let shutdown = Cancellation::new();
/// let options = WaitOptions::new().timeout(Duration::from_secs(1)).cancellation(&shutdown);
/// assert!(store.wait_for_lock("report", options)?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until an operation is called with them"]
pub struct WaitOptions {
    timeout: Option<Duration>,
    cancellation: Option<Cancellation>,
    observed: Option<Observed>,
}

impl WaitOptions {
    /// Waits forever.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives up after this time. Zero makes one attempt and does not wait for another holder, but up to 40 ms for a
    /// process in the middle of an operation. `None` waits forever.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.timeout = timeout.into();
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.cancellation = Some(cancellation.clone());
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.observed = observer.into().map(Observed::new);
        self
    }

    /// The longest wait. `None`: forever.
    #[must_use]
    pub fn get_timeout(&self) -> Option<Duration> {
        self.timeout
    }

    /// The cancellation, if one was set.
    #[must_use]
    pub fn get_cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.as_ref()
    }

    /// The observer, if one was set.
    #[must_use]
    pub fn get_observer(&self) -> Option<&WaitObserver> {
        self.observed.as_ref().map(Observed::observer)
    }
}

impl WaitOptions {
    /// These options for the steps of a call that began at `start`: to the observer, they are one call.
    pub(crate) fn of_call(&self, start: Instant) -> Self {
        let observed = self.observed.as_ref().map(|observed| observed.of_call(start));
        Self { observed, ..self.clone() }
    }

    pub(crate) fn observed(&self) -> Option<&Observed> {
        self.observed.as_ref()
    }

    /// The rest of these options for a call that began at `start`.
    pub(crate) fn since(&self, start: Instant) -> Self {
        self.of_call(start).timeout(self.timeout.map(|timeout| timeout.saturating_sub(start.elapsed())))
    }
}

impl From<Duration> for WaitOptions {
    fn from(timeout: Duration) -> Self {
        Self::new().timeout(timeout)
    }
}

impl From<Option<Duration>> for WaitOptions {
    fn from(timeout: Option<Duration>) -> Self {
        Self::new().timeout(timeout)
    }
}

impl From<&Cancellation> for WaitOptions {
    fn from(cancellation: &Cancellation) -> Self {
        Self::new().cancellation(cancellation)
    }
}

/// How a lock is acquired: by which holder, waiting how long, with which lease.
///
/// The default is the calling thread's default holder. It waits forever, and holds the lock until it is
/// released or the process is gone.
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
#[must_use = "options do nothing until a lock is requested with them"]
pub struct LockOptions {
    holder: Option<Holder>,
    hold_timeout: Option<Duration>,
    note: Option<Arc<str>>,
    slots: Option<NonZeroU32>,
    wait: WaitOptions,
}

/// A lock file has 64 KiB at most.
const MAX_NOTE_BYTES: usize = 1_000;

impl LockOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acquires as this holder instead of [`Holder::current`].
    pub fn holder(mut self, holder: Holder) -> Self {
        self.holder = Some(holder);
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time. Zero
    /// makes one attempt and does not wait; `None` waits forever.
    pub fn acquire_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    /// A lock that is held already is not affected.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.wait = self.wait.cancellation(cancellation);
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.wait = self.wait.observer(observer);
        self
    }

    /// Waits with these options, in the place of the acquire timeout, the cancellation and the observer. So a store that
    /// makes a call in several steps gives each step the rest of the time.
    pub fn wait(mut self, options: impl Into<WaitOptions>) -> Self {
        self.wait = options.into();
        self
    }

    /// The lease: after this time without [renewal](crate::LockGuard::renew) the lock is free for
    /// others, whatever its holder does. Suspended time counts. Within one boot of Linux, a stepped wall clock
    /// does not matter.
    /// `None`: the lock has no lease.
    pub fn hold_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.hold_timeout = timeout.into();
        self
    }

    /// Tells people who ask who has the lock what the holder does: [`LockInfo::note`](crate::LockInfo::note) returns the
    /// note, and the program `record-store` shows it. All users of the store can read it. A note of more than 1,000 bytes
    /// is cut off. If the holder has the lock already, the note of the first acquisition stays.
    pub fn note(mut self, note: &str) -> Self {
        let cut = note.floor_char_boundary(MAX_NOTE_BYTES);
        self.note = Some(note[..cut].into());
        self
    }

    /// Shares the lock with all others that share it: a reader lock. While it is held, nobody changes the record, neither
    /// its holders nor anybody else, and an exclusive lock waits. A [read](crate::RecordStoreExt::read) does not.
    ///
    /// Each holder has a token and a lease of its own, and is released by itself. Exclusive and shared acquisitions
    /// are served in the order in which they came, so neither kind starves the other. A holder that shares the lock
    /// cannot make it exclusive: that is [`ErrorKind::LockShared`](crate::ErrorKind::LockShared). If it has an exclusive
    /// lock, it keeps that.
    ///
    /// What changes the record acquires its lock exclusively, whatever these options say: `update`, `get_or_compute`
    /// and transactions. A store of another crate may have no shared locks, and refuse with
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
    ///
    /// ```
    /// use std::time::Duration;
    /// use record_store::{Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let shared = |name| Ok::<_, record_store::Error>(LockOptions::new().holder(Holder::named(name)?).shared());
    /// let first = store.lock("index", shared("first")?)?;
    /// let second = store.lock("index", shared("second")?)?;
    /// let writer = LockOptions::new().holder(Holder::named("writer")?);
    /// assert!(store.try_lock("index", writer.clone())?.is_none());
    /// drop((first, second));
    /// assert!(store.try_lock("index", writer)?.is_some());
    /// # Ok::<(), record_store::Error>(())
    /// ```
    pub fn shared(mut self) -> Self {
        self.slots = Some(NonZeroU32::MAX);
        self
    }

    /// [Shares](LockOptions::shared) the lock with so many holders, this one included: a semaphore, for what only some
    /// may use at once. Further ones wait until one of them releases it, its lease expires, or its process is gone.
    ///
    /// If holders ask for different numbers, the least one counts, so each gets what it asked for. Zero counts as one.
    /// A holder has one slot, however often it acquires. The default holder is that of the thread. If one thread needs
    /// several slots, each needs a holder of its own, such as [`Holder::bound`](crate::Holder::bound) with a number in its
    /// name.
    ///
    /// ```
    /// use record_store::{Holder, LockOptions, MemoryRecordStore, RecordStoreExt};
    ///
    /// let store = MemoryRecordStore::new();
    /// let license = |holder| Ok::<_, record_store::Error>(LockOptions::new().holder(Holder::bound(holder)?).slots(2));
    /// let first = store.lock("license", license("first")?)?;
    /// let _second = store.lock("license", license("second")?)?;
    /// assert!(store.try_lock("license", license("third")?)?.is_none());
    /// drop(first);
    /// assert!(store.try_lock("license", license("third")?)?.is_some());
    /// # Ok::<(), record_store::Error>(())
    /// ```
    pub fn slots(mut self, count: u32) -> Self {
        self.slots = Some(NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN));
        self
    }

    /// What changes the record needs the lock for itself.
    pub(crate) fn exclusive(mut self) -> Self {
        self.slots = None;
        self
    }

    /// How many holders may share the lock. `None`: it is exclusive. [`NonZeroU32::MAX`]: as many as there are.
    #[must_use]
    pub fn get_slots(&self) -> Option<NonZeroU32> {
        self.slots
    }

    /// The holder to acquire as: the one that was set, or the calling thread's default.
    #[must_use]
    pub fn resolve_holder(&self) -> Holder {
        self.holder.clone().unwrap_or_else(Holder::current)
    }

    /// The holder, if one was set.
    #[must_use]
    pub fn get_holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// The note, if one was set.
    #[must_use]
    pub fn get_note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// The longest wait. `None`: forever.
    #[must_use]
    pub fn get_acquire_timeout(&self) -> Option<Duration> {
        self.wait.get_timeout()
    }

    /// The lease. `None`: until released.
    #[must_use]
    pub fn get_hold_timeout(&self) -> Option<Duration> {
        self.hold_timeout
    }

    /// The cancellation, if one was set.
    #[must_use]
    pub fn get_cancellation(&self) -> Option<&Cancellation> {
        self.wait.get_cancellation()
    }
}

/// How a record is read: on which claim, waiting how long, or without regard to its lock.
///
/// The default reads for the calling thread's default holder, and waits forever while another holder's
/// lock is live.
///
/// ```
/// use std::time::Duration;
/// use record_store::{Holder, LockOptions, MemoryRecordStore, ReadOptions, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.write("report", "draft")?;
/// let _guard = store.lock("report", LockOptions::new().holder(Holder::named("editor")?))?;
/// // A plain read would wait for the editor. This one makes one attempt:
/// let once = ReadOptions::new().timeout(Duration::ZERO);
/// assert!(store.read_with::<String>("report", once).unwrap_err().is_timeout());
/// // This one does not care about the lock:
/// let record = store.read_with::<String>("report", ReadOptions::new().ignore_lock())?;
/// assert_eq!(record.expect("it was written").result, "draft");
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a record is read with them"]
pub struct ReadOptions {
    claim: Option<Claim>,
    wait: WaitOptions,
    ignore_lock: bool,
}

impl ReadOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads with this claim. The default is that of [`Holder::current`].
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time. Zero
    /// makes one attempt and does not wait; `None` waits forever.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.wait = self.wait.cancellation(cancellation);
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.wait = self.wait.observer(observer);
        self
    }

    /// Waits with these options, in the place of the timeout, the cancellation and the observer. So a store that
    /// makes a call in several steps gives each step the rest of the time.
    pub fn wait(mut self, options: impl Into<WaitOptions>) -> Self {
        self.wait = options.into();
        self
    }

    /// Returns the last committed state at once, whoever holds the lock and whatever the claim is: for
    /// dashboards and monitoring. The holder may be about to replace that state.
    pub fn ignore_lock(mut self) -> Self {
        self.ignore_lock = true;
        self
    }

    /// The claim to read on: the one that was set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim, if one was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// Whether the lock is ignored.
    #[must_use]
    pub fn ignores_lock(&self) -> bool {
        self.ignore_lock
    }
}

/// How a record is written: on which claim, and for how long.
///
/// The default writes for the calling thread's default holder, and the record never expires.
///
/// ```
/// use std::time::Duration;
/// use record_store::{MemoryRecordStore, RecordStoreExt, WriteOptions};
///
/// let store = MemoryRecordStore::new();
/// let for_an_hour = WriteOptions::new().time_to_live(Duration::from_secs(3600));
/// store.write_with("session-7", "signed in", for_an_hour)?;
/// assert!(store.exists("session-7")?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a record is written with them"]
pub struct WriteOptions {
    claim: Option<Claim>,
    time_to_live: Option<Duration>,
    wait: WaitOptions,
}

impl WriteOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes with this claim. The default is that of [`Holder::current`]. A
    /// [`LockGuard`](crate::LockGuard) always writes by its token.
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
        self
    }

    /// The record expires after this time: then it reads as absent and does not exist. Suspended time
    /// counts. Within one boot of Linux, a stepped wall clock does not matter. `None`: it never expires, and neither
    /// does a record whose end is beyond the year 9999. The next write without a time to live makes the
    /// record permanent.
    pub fn time_to_live(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.time_to_live = time.into();
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time. A write does not
    /// wait for another holder's lock, but for a process that is stopped in the middle of an operation on the
    /// key. `None`, the default, waits forever.
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.wait = self.wait.cancellation(cancellation);
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.wait = self.wait.observer(observer);
        self
    }

    /// Waits with these options, in the place of the timeout, the cancellation and the observer. So a store that
    /// makes a call in several steps gives each step the rest of the time.
    pub fn wait(mut self, options: impl Into<WaitOptions>) -> Self {
        self.wait = options.into();
        self
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// The claim to write on: the one that was set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim, if one was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }

    /// How long the record lives. `None`: forever.
    #[must_use]
    pub fn get_time_to_live(&self) -> Option<Duration> {
        self.time_to_live
    }
}

/// How a record is removed: on which claim. The default is that of the calling thread's default holder.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a record is removed with them"]
pub struct RemoveOptions {
    claim: Option<Claim>,
    wait: WaitOptions,
}

impl RemoveOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Removes with this claim. The default is that of [`Holder::current`].
    pub fn claim(mut self, claim: impl Into<Claim>) -> Self {
        self.claim = Some(claim.into());
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time: see
    /// [`WriteOptions::timeout`].
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.wait = self.wait.cancellation(cancellation);
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.wait = self.wait.observer(observer);
        self
    }

    /// Waits with these options, in the place of the timeout, the cancellation and the observer. So a store that
    /// makes a call in several steps gives each step the rest of the time.
    pub fn wait(mut self, options: impl Into<WaitOptions>) -> Self {
        self.wait = options.into();
        self
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }

    /// The claim to remove on: the one that was set, or that of the calling thread's default holder.
    #[must_use]
    pub fn resolve_claim(&self) -> Claim {
        self.claim.clone().unwrap_or_else(Claim::current)
    }

    /// The claim, if one was set.
    #[must_use]
    pub fn get_claim(&self) -> Option<&Claim> {
        self.claim.as_ref()
    }
}

/// Which lock of a key is broken, and how long the call waits. The default breaks any lock.
///
/// ```
/// use std::time::Duration;
/// use record_store::{BreakOptions, LockOptions, MemoryRecordStore, RecordStoreExt};
///
/// let store = MemoryRecordStore::new();
/// store.acquire_lock("report", LockOptions::new())?;
/// let seen = store.lock_info("report")?.expect("it was just locked");
/// // Only the lock that was seen, not one that somebody acquires in between.
/// let options = BreakOptions::new().token(seen.token()).timeout(Duration::from_secs(5));
/// assert!(store.break_lock_with("report", options)?);
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until a lock is broken with them"]
pub struct BreakOptions {
    token: Option<LockToken>,
    wait: WaitOptions,
}

impl BreakOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Breaks only the lock of this acquisition. With the token of the [`LockInfo`](crate::LockInfo) on which the
    /// decision was based, a lock that was acquired since then is never broken. `None`, the default, breaks any lock.
    pub fn token(mut self, token: impl Into<Option<LockToken>>) -> Self {
        self.token = token.into();
        self
    }

    /// Gives up with [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) after this time: see
    /// [`WriteOptions::timeout`].
    pub fn timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.wait = self.wait.timeout(timeout);
        self
    }

    /// Gives up with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) as soon as this is cancelled.
    pub fn cancellation(mut self, cancellation: &Cancellation) -> Self {
        self.wait = self.wait.cancellation(cancellation);
        self
    }

    /// Tells the observer whom the call waits for, if that takes long.
    pub fn observer<'a>(mut self, observer: impl Into<Option<&'a WaitObserver>>) -> Self {
        self.wait = self.wait.observer(observer);
        self
    }

    /// Waits with these options, in the place of the timeout, the cancellation and the observer. So a store that
    /// makes a call in several steps gives each step the rest of the time.
    pub fn wait(mut self, options: impl Into<WaitOptions>) -> Self {
        self.wait = options.into();
        self
    }

    /// The acquisition whose lock is broken. `None`: any.
    #[must_use]
    pub fn get_token(&self) -> Option<LockToken> {
        self.token
    }

    /// How long to wait, and what ends the wait early.
    pub fn get_wait(&self) -> &WaitOptions {
        &self.wait
    }
}

/// How [`update`](crate::RecordStoreExt::update) and
/// [`get_or_compute`](crate::RecordStoreExt::get_or_compute) lock and write. [`LockOptions`] convert
/// into these.
///
/// ```
/// use std::time::Duration;
/// use record_store::{LockOptions, MemoryRecordStore, RecordStoreExt, UpdateOptions};
///
/// let store = MemoryRecordStore::new();
/// let options = UpdateOptions::new()
///     .lock(LockOptions::new().acquire_timeout(Duration::from_secs(5)))
///     .time_to_live(Duration::from_secs(3600));
/// let rate: f64 = store.get_or_compute("exchange-rate", options, || Ok(1.09))?;
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "options do nothing until an operation is called with them"]
pub struct UpdateOptions {
    lock: LockOptions,
    time_to_live: Option<Duration>,
    stale_for: Option<Duration>,
    corrupt_records: CorruptRecords,
}

/// A thousand years. With more of them, a record would never expire, and then it would never be stale either.
const MAX_STALE: Duration = Duration::from_hours(1_000 * 365 * 24);

/// How [`get_or_compute`](crate::RecordStoreExt::get_or_compute) treats a file in the place of the record that is no
/// record of the key: it is damaged, the record of another key, larger than the store's limit, or no regular file.
///
/// Two cases are an error in any case: a directory, which is not moved, and the record of a key that differs only in
/// case or Unicode form, because on some file systems both keys have this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CorruptRecords {
    /// Computes the result again, as if there were no record. The feature `tracing` reports it. A file store
    /// keeps the file: see [`damaged`](crate::FileSystemRecordStore::damaged).
    #[default]
    Recompute,
    /// Returns the error.
    Fail,
}

impl CorruptRecords {
    /// Whether the result is computed again after a read has failed with this error.
    #[must_use]
    pub fn recomputes(self, error: &Error) -> bool {
        self == Self::Recompute && error.is_no_record()
    }
}

impl UpdateOptions {
    /// The default options: those of [`LockOptions`], and a result that never expires. A damaged record is computed
    /// again.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acquires the lock with these options, but exclusively in any case.
    pub fn lock(mut self, options: LockOptions) -> Self {
        self.lock = options.exclusive();
        self
    }

    /// Gives the result a [time to live](WriteOptions::time_to_live).
    pub fn time_to_live(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.time_to_live = time.into();
        self
    }

    /// Keeps the result for this much longer than its [time to live](UpdateOptions::time_to_live). In this time it is
    /// stale: it can be read as before, and [`get_or_compute`](crate::RecordStoreExt::get_or_compute) gives it out while
    /// one caller computes the next one. So nobody else waits for the computation.
    ///
    /// All callers of a key need the same two times: a record does not say when it becomes stale, but only when it
    /// expires. Without a time to live, this has no meaning. More than a thousand years count as a thousand.
    ///
    /// ```
    /// use std::time::Duration;
    /// use record_store::{MemoryRecordStore, RecordStoreExt, UpdateOptions};
    ///
    /// let store = MemoryRecordStore::new();
    /// let moment = Duration::from_millis(1);
    /// let options = UpdateOptions::new().time_to_live(moment).stale_for(Duration::from_secs(3600));
    /// store.get_or_compute("exchange-rate", options.clone(), || Ok(1.09))?;
    /// std::thread::sleep(2 * moment);
    /// let rate = store.get_or_compute("exchange-rate", options.clone(), || {
    ///     // Until this caller is done, the others get the stale rate.
    ///     std::thread::scope(|threads| {
    ///         let other = threads.spawn(|| store.get_or_compute("exchange-rate", options, || Ok(9.99)));
    ///         assert_eq!(other.join().unwrap()?, 1.09);
    ///         Ok(1.10)
    ///     })
    /// })?;
    /// assert_eq!(rate, 1.10);
    /// # Ok::<(), record_store::Error>(())
    /// ```
    pub fn stale_for(mut self, time: impl Into<Option<Duration>>) -> Self {
        self.stale_for = time.into().map(|time| time.min(MAX_STALE));
        self
    }

    /// Sets what [`get_or_compute`](crate::RecordStoreExt::get_or_compute) does if the stored record is damaged.
    /// [`update`](crate::RecordStoreExt::update) returns the error in any case, because it needs the old result.
    pub fn corrupt_records(mut self, corrupt_records: CorruptRecords) -> Self {
        self.corrupt_records = corrupt_records;
        self
    }

    /// How the lock is acquired.
    pub fn get_lock(&self) -> &LockOptions {
        &self.lock
    }

    /// How long the result lives, without the time in which it is stale. `None`: forever.
    #[must_use]
    pub fn get_time_to_live(&self) -> Option<Duration> {
        self.time_to_live
    }

    /// How long the result is stale after its time to live. `None`: not at all.
    #[must_use]
    pub fn get_stale_for(&self) -> Option<Duration> {
        self.stale_for
    }

    /// The treatment of a damaged record.
    #[must_use]
    pub fn get_corrupt_records(&self) -> CorruptRecords {
        self.corrupt_records
    }

    /// The last part of the result's life, in which it is stale. `None`: it is always fresh.
    pub(crate) fn stale_time(&self) -> Option<Duration> {
        self.time_to_live.and(self.stale_for)
    }

    /// How the result is written. The acquire timeout is over by then, but a cancellation must not throw the
    /// result away: so the write waits forever.
    pub(crate) fn write(&self) -> WriteOptions {
        let stale_for = self.stale_for.unwrap_or_default();
        WriteOptions::new().time_to_live(self.time_to_live.map(|time| time.saturating_add(stale_for)))
    }
}

impl From<LockOptions> for UpdateOptions {
    fn from(lock: LockOptions) -> Self {
        Self::new().lock(lock)
    }
}
