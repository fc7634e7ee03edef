//! Telling a caller whom its call waits for.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Holder, Key, LockInfo, LockToken, WaitOptions, rfc3339};

/// Is told whom a call waits for, if that takes long: for a line on a terminal, a log or a metric.
///
/// Pass it to the options of a call that can wait. If the call still waits after the given time, the observer gets a
/// [`WaitReport`], and another one when another lock is in the way, but not before the same time has passed again: locks
/// may change hands a thousand times a second. A call that does not wait that long reports nothing, and the end of a wait
/// is the return of the call. The observer runs on the thread that waits: it must not block, because meanwhile the call
/// neither notices its turn nor its deadline.
///
/// ```
/// use std::sync::mpsc::channel;
/// use std::time::Duration;
/// use record_store::{Holder, LockOptions, MemoryRecordStore, RecordStoreExt, WaitObserver};
///
/// let store = MemoryRecordStore::new();
/// let _guard = store.lock("report", LockOptions::new().holder(Holder::named("editor")?))?;
///
/// let (sender, reports) = channel();
/// let observer = WaitObserver::new(Duration::ZERO, move |report| {
///     let _ = sender.send(report.to_string());
/// });
/// let options = LockOptions::new().acquire_timeout(Duration::from_millis(100)).observer(&observer);
/// assert!(store.lock("report", options).unwrap_err().is_timeout());
/// assert!(reports.recv().unwrap().starts_with("acquire_lock \"report\" waits for \"editor\", "));
/// assert!(reports.try_recv().is_err());
/// # Ok::<(), record_store::Error>(())
/// ```
///
/// Clones are the same observer, and equal; others are not.
///
/// # Limitations
///
/// The tasks of one [`asynchronous`](crate::guide::asynchronous) store that wait for the same lock wait in a queue of
/// their own. Only the first of them reports.
#[derive(Clone)]
pub struct WaitObserver(Arc<Shared>);

struct Shared {
    after: Duration,
    observe: Box<dyn Fn(&WaitReport) + Send + Sync>,
}

impl WaitObserver {
    /// Calls `observe` for calls that wait for longer than `after`.
    pub fn new(after: Duration, observe: impl Fn(&WaitReport) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Shared { after, observe: Box::new(observe) }))
    }

    /// How long a call waits before it reports.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.0.after
    }

    pub(crate) fn observe(&self, report: &WaitReport) {
        (self.0.observe)(report);
    }
}

impl PartialEq for WaitObserver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for WaitObserver {}

impl fmt::Debug for WaitObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitObserver").field("after", &self.0.after).finish_non_exhaustive()
    }
}

/// The reason why a call waits, at one moment. Its text is one line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitReport {
    operation: &'static str,
    key: Key,
    waited: Duration,
    lock: Option<LockInfo>,
}

impl WaitReport {
    /// A report of a call that has waited for so long. Stores create these.
    #[must_use]
    pub fn new(operation: &'static str, key: Key, waited: Duration) -> Self {
        Self { operation, key, waited, lock: None }
    }

    /// Sets the lock that is in the way.
    #[must_use]
    pub fn with_lock(mut self, lock: LockInfo) -> Self {
        self.lock = Some(lock);
        self
    }

    /// The operation that waits, as [`Error::operation`](crate::Error::operation) names it.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How long the call has waited.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// The lock that is in the way: its holder, and since when. `None`: a process is in the middle of an operation on
    /// the key. That takes microseconds, unless the process is stopped or its disk is.
    #[must_use]
    pub fn lock(&self) -> Option<&LockInfo> {
        self.lock.as_ref()
    }
}

impl fmt::Display for WaitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} waits for ", self.operation, self.key.as_str())?;
        match &self.lock {
            Some(lock) => {
                let since = rfc3339::format(lock.acquired_at());
                write!(f, "{:?}, who has the lock since {since}", lock.holder().name())
            }
            None => f.write_str("a process in the middle of an operation on this key"),
        }
    }
}

/// An observer in the options of a call.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    observer: WaitObserver,
    /// `Some`: these are the options of one step of this call.
    call: Option<Arc<Call>>,
}

/// One call, which may consist of several steps that wait.
#[derive(Debug)]
struct Call {
    start: Instant,
    /// The last report, and its time.
    reported: Mutex<Option<(Obstacle, Instant)>>,
}

/// The lock or the process that a call waits for, to compare it with the last one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    pub(crate) key: Key,
    /// `None`: a process in the middle of an operation.
    pub(crate) holder: Option<Holder>,
    /// `None`: unknown.
    pub(crate) token: Option<LockToken>,
}

impl Obstacle {
    pub(crate) fn process(key: &Key) -> Self {
        Self { key: key.clone(), holder: None, token: None }
    }

    pub(crate) fn lock(key: &Key, holder: &Holder, token: Option<LockToken>) -> Self {
        Self { key: key.clone(), holder: Some(holder.clone()), token }
    }
}

impl Observed {
    pub(crate) fn new(observer: &WaitObserver) -> Self {
        Self { observer: observer.clone(), call: None }
    }

    pub(crate) fn observer(&self) -> &WaitObserver {
        &self.observer
    }

    /// This, for a step of a call that began at `start`, unless it belongs to a call already.
    pub(crate) fn of_call(&self, start: Instant) -> Self {
        let new = || Arc::new(Call { start, reported: Mutex::new(None) });
        Self { observer: self.observer.clone(), call: Some(self.call.clone().unwrap_or_else(new)) }
    }
}

impl PartialEq for Observed {
    fn eq(&self, other: &Self) -> bool {
        self.observer == other.observer
    }
}

impl Eq for Observed {}

/// The reports of one call to its observer. For implementers of stores.
///
/// A call may consist of several waits in a store: [`lock_all`](crate::RecordStoreExt::lock_all) acquires one lock after
/// the other, and renews in between. The options that the store gets know the whole call, so the observer learns once
/// whom it waits for, and since when.
///
/// ```
/// use std::time::{Duration, Instant};
/// use record_store::{Acquired, Key, LockOptions, MemoryRecordStore, RecordStore, Result, WaitReports};
///
/// /// Acquires a lock of a store that can only be asked again and again.
/// fn acquire(store: &MemoryRecordStore, key: &Key, options: LockOptions) -> Result<Acquired> {
///     let start = Instant::now();
///     let reports = WaitReports::new(options.get_wait(), start);
///     let timeout = options.get_acquire_timeout();
///     loop {
///         match store.acquire_lock_raw(key, options.clone().acquire_timeout(Duration::ZERO)) {
///             Err(error) if error.is_timeout() && timeout.is_none_or(|timeout| start.elapsed() < timeout) => {}
///             outcome => return outcome,
///         }
///         if let (Some(reports), Some(lock)) = (&reports, store.lock_info_raw(key)?) {
///             reports.report_if_due("acquire_lock", key, Some(lock));
///         }
///         std::thread::sleep(Duration::from_millis(10));
///     }
/// }
/// # let key = Key::new("report")?;
/// # acquire(&MemoryRecordStore::new(), &key, LockOptions::new())?;
/// # Ok::<(), record_store::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct WaitReports {
    observer: WaitObserver,
    call: Arc<Call>,
}

impl WaitReports {
    /// Those of a call, or of a step of one, that begins at `start`. `None`: nobody observes it.
    #[must_use]
    pub fn new(options: &WaitOptions, start: Instant) -> Option<Self> {
        let Observed { observer, call } = options.observed()?.of_call(start);
        Some(Self { observer, call: call? })
    }

    /// Reports the lock that is in the way or, without one, that a process is in the middle of an operation on the key,
    /// if the call has waited for [that long](WaitObserver::after). Returns when this is to be called again at the
    /// latest. `None`: this lock has been reported, and there is nothing to report before another one is in the way.
    ///
    /// The caller holds no mutex: the observer may use the store.
    #[expect(
        clippy::must_use_candidate,
        reason = "a call that asks again after short pauses does not need it"
    )]
    pub fn report_if_due(
        &self,
        operation: &'static str,
        key: &Key,
        lock: Option<LockInfo>,
    ) -> Option<Instant> {
        let obstacle = match &lock {
            Some(lock) => Obstacle::lock(key, lock.holder(), Some(lock.token())),
            None => Obstacle::process(key),
        };
        let at = self.due_at(&obstacle)?;
        if at > Instant::now() {
            return Some(at);
        }
        self.report(operation, obstacle, lock);
        None
    }

    /// When the obstacle has to be reported. `None`: it was reported last.
    pub(crate) fn due_at(&self, obstacle: &Obstacle) -> Option<Instant> {
        let since = match &*self.reported() {
            Some((reported, _)) if reported == obstacle => return None,
            Some((_, at)) => *at,
            None => self.call.start,
        };
        since.checked_add(self.observer.after())
    }

    /// Reports the obstacle. The caller holds no mutex.
    pub(crate) fn report(&self, operation: &'static str, obstacle: Obstacle, lock: Option<LockInfo>) {
        let report = WaitReport::new(operation, obstacle.key.clone(), self.call.start.elapsed());
        *self.reported() = Some((obstacle, Instant::now()));
        self.observer.observe(&lock.into_iter().fold(report, WaitReport::with_lock));
    }

    /// Reports that the call waits for a process in the middle of an operation, if it is time.
    pub(crate) fn report_process(&self, operation: &'static str, key: &Key) {
        let obstacle = Obstacle::process(key);
        if self.due_at(&obstacle).is_some_and(|at| at <= Instant::now()) {
            self.report(operation, obstacle, None);
        }
    }

    fn reported(&self) -> MutexGuard<'_, Option<(Obstacle, Instant)>> {
        self.call.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn the_steps_of_a_call_report_an_obstacle_once() {
        let (sender, reports) = channel();
        let observer = WaitObserver::new(Duration::ZERO, move |report| sender.send(report.clone()).unwrap());
        let options = WaitOptions::new().observer(&observer).of_call(Instant::now());
        let key = Key::new("k").unwrap();
        let holders = ["a", "b"].map(|name| Holder::named(name).unwrap());
        let report = |reports: &WaitReports, holder: &Holder, token| {
            let obstacle = || Obstacle::lock(&key, holder, Some(LockToken::new(token)));
            if reports.due_at(&obstacle()).is_some() {
                reports.report("read", obstacle(), None);
            }
        };
        for (holder, token) in [(0, 1), (0, 1), (0, 2), (1, 3), (1, 3), (0, 4)] {
            let step = WaitReports::new(&options, Instant::now()).unwrap();
            report(&step, &holders[holder], token);
        }
        assert_eq!(reports.try_iter().count(), 4);
        // Another call with the same options.
        report(
            &WaitReports::new(&WaitOptions::new().observer(&observer), Instant::now()).unwrap(),
            &holders[0],
            4,
        );
        assert_eq!(reports.try_iter().count(), 1);
    }

    #[test]
    fn reports_are_as_far_apart_as_the_first_from_the_start() {
        let observer = WaitObserver::new(Duration::from_secs(5), |_| ());
        let start = Instant::now();
        let reports = WaitReports::new(&WaitOptions::new().observer(&observer), start).unwrap();
        let (key, holder) = (Key::new("k").unwrap(), Holder::named("a").unwrap());
        let obstacle = |token| Obstacle::lock(&key, &holder, Some(LockToken::new(token)));
        assert_eq!(reports.due_at(&obstacle(1)), Some(start + Duration::from_secs(5)));
        let reported = Instant::now();
        reports.report("read", obstacle(1), None);
        assert_eq!(reports.due_at(&obstacle(1)), None);
        assert!(reports.due_at(&obstacle(2)).unwrap() >= reported + Duration::from_secs(5));
    }

    #[test]
    fn nothing_is_due_before_the_time_or_beyond_the_clock() {
        let start = Instant::now();
        let due = |after| {
            let options = WaitOptions::new().observer(&WaitObserver::new(after, |_| ()));
            let key = Key::new("k").unwrap();
            WaitReports::new(&options, start).unwrap().due_at(&Obstacle::process(&key))
        };
        assert_eq!(due(Duration::from_secs(5)), Some(start + Duration::from_secs(5)));
        assert_eq!(due(Duration::MAX), None);
        assert!(WaitReports::new(&WaitOptions::new(), start).is_none());
    }

    #[test]
    fn the_text_is_one_line_whatever_the_names_are() {
        let key = Key::new("a\nb").unwrap();
        let report = WaitReport::new("read", key.clone(), Duration::from_secs(1));
        let process = "read \"a\\nb\" waits for a process in the middle of an operation on this key";
        assert_eq!(report.to_string(), process);
        let holder = Holder::named("x\u{1b}[2J").unwrap();
        let lock = LockInfo::new(key, holder, LockToken::new(1), SystemTime::UNIX_EPOCH);
        let since = "1970-01-01T00:00:00.000000000Z";
        let text = format!("read \"a\\nb\" waits for \"x\\u{{1b}}[2J\", who has the lock since {since}");
        assert_eq!(report.with_lock(lock).to_string(), text);
    }
}
