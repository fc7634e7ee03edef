//! How a lock is acquired.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::WaitOptions;
use crate::{Cancellation, Holder, WaitObserver};

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

/// As JSON. A lock file has 64 KiB at most, beside the longest key and the longest name of a holder.
const MAX_NOTE_BYTES: usize = 1_000;

/// How many bytes a character has in a JSON string.
fn json_length(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..'\u{20}' => 6,
        character => character.len_utf8(),
    }
}

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
    /// is cut off; a control character counts as the six bytes that it has in JSON, and a quote as two. If the holder has
    /// the lock already, the note of the first acquisition stays.
    pub fn note(mut self, note: &str) -> Self {
        let mut length = 0;
        let is_too_long = |(_, character): &(usize, char)| {
            length += json_length(*character);
            length > MAX_NOTE_BYTES
        };
        let cut = note.char_indices().find(is_too_long).map_or(note.len(), |(at, _)| at);
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
    /// In a directory, so many share a lock as its file has room for: some 170 with short names and without notes, see the
    /// [guide](crate::guide::sharing). Further ones wait.
    ///
    /// A call that changes the record acquires its lock exclusively, whatever these options say: `update`, `get_or_compute`
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

    /// A call that changes the record needs the lock for itself.
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
