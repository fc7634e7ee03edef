//! When leases are renewed, and what becomes of errors. The store below keeps locks without an end, and reports what is
//! asked of it, so that no clock decides.

use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use record_store::{
    Acquired, Claim, Error, ErrorKind, Json, Key, LockInfo, LockOptions, MemoryRecordStore, RawRecord,
    ReadOptions, RecordStore, RecordStoreExt, Result, WaitOptions, WriteOptions,
};

use crate::support::{PATIENCE, millis};
use crate::watchdog::watch_test;

/// A call of a store that acquires or renews a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Acquire(char, Option<Duration>),
    Renew(char),
}

/// A store in memory whose leases do not expire. It reports calls, and its calls fail as they are told.
#[derive(Clone, Debug)]
struct Scripted {
    store: MemoryRecordStore,
    calls: Sender<(Call, Instant, WaitOptions)>,
    /// How the next renewals of `k` and acquisitions of `b` fail, the last one first. Without an entry, they succeed.
    outcomes: std::sync::Arc<std::sync::Mutex<Vec<Option<ErrorKind>>>>,
}

impl Scripted {
    fn new(outcomes: &[Option<ErrorKind>]) -> (Self, Receiver<(Call, Instant, WaitOptions)>) {
        let (calls, reports) = channel();
        let outcomes = outcomes.iter().rev().copied().collect();
        let outcomes = std::sync::Arc::new(std::sync::Mutex::new(outcomes));
        (Self { store: MemoryRecordStore::new(), calls, outcomes }, reports)
    }

    fn next_outcome(&self, operation: &'static str) -> Result<()> {
        let outcome = self.outcomes.lock().unwrap().pop().flatten();
        outcome.map_or(Ok(()), |kind| Err(Error::new(kind, operation)))
    }
}

fn letter(key: &Key) -> char {
    key.as_str().chars().next().unwrap()
}

impl RecordStore for Scripted {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.store.read_raw(key, options)
    }

    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.store.write_raw(key, result, options)
    }

    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.store.exists_raw(key)
    }

    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let timeout = options.get_acquire_timeout();
        let call = Call::Acquire(letter(key), timeout);
        self.calls.send((call, Instant::now(), options.get_wait().clone())).unwrap();
        if letter(key) == 'b' {
            self.next_outcome("acquire_lock").inspect_err(|_| std::thread::sleep(timeout.unwrap()))?;
        }
        self.store.acquire_lock_raw(key, options.hold_timeout(None))
    }

    fn renew_raw(&self, key: &Key, claim: &Claim, _: Option<Duration>, options: WaitOptions) -> Result<()> {
        // The receiver of a keep-alive that is stopped may be gone.
        let _ = self.calls.send((Call::Renew(letter(key)), Instant::now(), options.clone()));
        if letter(key) == 'k' {
            self.next_outcome("renew")?;
        }
        self.store.renew_raw(key, claim, None, options)
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.store.release_lock_raw(key, claim, options)
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.store.lock_info_raw(key)
    }
}

/// The first lock is renewed each time that a third of its lease has passed, while the second one is waited for.
#[test]
fn lock_all_renews_at_a_third_of_the_lease() {
    let lease = millis(900);
    let third = Some(lease / 3);
    watch_test();
    let (store, reports) = Scripted::new(&[Some(ErrorKind::LockTimeout); 2]);
    let guards = store.lock_all(["a", "b"], LockOptions::new().hold_timeout(lease)).unwrap();
    let calls: Vec<_> = reports.try_iter().map(|(call, ..)| call).collect();
    let (wait, renew) = (Call::Acquire('b', third), Call::Renew('a'));
    assert_eq!(calls[0], Call::Acquire('a', None));
    // On a busy machine, the first lease may be renewed before the first wait, too.
    let first = calls.iter().position(|call| *call == wait).expect("a wait for a third of the lease");
    assert_eq!(calls[first..], [wait, renew, wait, renew, wait, renew, Call::Renew('b')]);
    guards.release().unwrap();
}

/// The lease of the keep-alive below.
const LEASE: Duration = Duration::from_millis(750);

/// A keep-alive while renewals fail.
struct Kept {
    start: Instant,
    /// The time and the limits of each renewal of the thread.
    renewals: Vec<(Instant, WaitOptions)>,
    /// The error that was reported, and when.
    loss: Option<(Error, Instant)>,
}

/// Keeps a lock alive until so many renewals were made, or an error is reported.
fn keep_alive(outcomes: &[Option<ErrorKind>], count: usize) -> Kept {
    watch_test();
    let (store, reports) = Scripted::new(&[]);
    let guard = store.lock("k", LockOptions::new().hold_timeout(LEASE)).unwrap();
    let (report, reported) = channel();
    let start = Instant::now();
    guard.keep_alive(move |error| report.send((error, Instant::now())).unwrap()).unwrap();
    // The call itself has renewed. The next renewal is that of the thread.
    store.outcomes.lock().unwrap().extend(outcomes.iter().rev());
    let (mut made, mut loss) = (Vec::new(), None);
    while made.len() <= count && loss.is_none() {
        assert!(start.elapsed() < PATIENCE, "neither renewed nor reported");
        loss = reported.recv_timeout(millis(5)).ok();
        made.extend(reports.try_iter().filter(|(call, ..)| *call == Call::Renew('k')));
    }
    drop(guard);
    let renewals = made.into_iter().skip(1).map(|(_, at, wait)| (at, wait)).collect();
    Kept { start, renewals, loss: loss.or_else(|| reported.try_recv().ok()) }
}

/// A disk may be full for a moment, and a process stopped in a latch.
#[test]
fn a_keep_alive_goes_on_through_errors_until_its_lease_ends() {
    for kind in [ErrorKind::Io, ErrorKind::LockTimeout] {
        // The second error comes later than the end of the first lease.
        let outcomes = [Some(kind), None, None, None, Some(kind), None];
        let mut stalled = 0;
        loop {
            let Kept { start, renewals, loss } = keep_alive(&outcomes, outcomes.len());
            let Some((error, at)) = loss else {
                assert!(renewals.len() >= outcomes.len(), "{kind:?}");
                assert!(renewals[4].0 - start >= LEASE, "{kind:?}");
                break;
            };
            // A machine that stalls for most of a lease loses it.
            let mut succeeded = renewals.iter().zip(outcomes).filter(|(_, outcome)| outcome.is_none());
            let last = succeeded.next_back().map_or(start, |((at, _), _)| *at);
            assert!(at - last >= LEASE, "{kind:?}: given up after {:?}: {error}", at - last);
            stalled += 1;
            assert!(stalled < 5, "{kind:?}: never renewed a second time within a lease");
        }
    }
}

#[test]
fn a_keep_alive_reports_the_last_error_once_when_its_lease_ends() {
    let Kept { start, renewals, loss } = keep_alive(&[Some(ErrorKind::Io); 100], usize::MAX);
    let (error, at) = loss.expect("a report");
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(at - start >= LEASE, "{:?}", at - start);
    assert!(!renewals.is_empty());
    for (at, wait) in &renewals {
        // A renewal is given up when the lease ends, which it does in this time at the latest.
        let left = LEASE.saturating_sub(LEASE / 3);
        let limit = wait.get_timeout().expect("a limit");
        assert!(limit <= left, "{limit:?} of {left:?} after {:?}", *at - start);
        assert!(wait.get_cancellation().is_some(), "the drop of the guard does not end a renewal");
    }
}

/// The end of the channel tells that the thread has ended. The lease is long, so no renewal of a thread is in between.
#[test]
fn a_keep_alive_ends_when_another_one_has_begun_and_not_before() {
    watch_test();
    let (store, _reports) = Scripted::new(&[]);
    let guard = store.lock("k", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
    let keep_alive = || {
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).map(|()| losses)
    };
    let first = keep_alive().unwrap();
    store.outcomes.lock().unwrap().push(Some(ErrorKind::Io));
    assert_eq!(keep_alive().unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(first.try_recv().unwrap_err(), TryRecvError::Empty, "the first one has ended");
    let second = keep_alive().unwrap();
    assert_eq!(first.try_recv().unwrap_err(), TryRecvError::Disconnected);
    assert_eq!(second.try_recv().unwrap_err(), TryRecvError::Empty);
    drop(guard);
    assert_eq!(second.try_recv().unwrap_err(), TryRecvError::Disconnected);
}

/// Others may have the lock already.
#[test]
fn a_keep_alive_reports_a_lost_lock_at_once() {
    let Kept { renewals, loss, .. } =
        keep_alive(&[Some(ErrorKind::LockLost), Some(ErrorKind::Io)], usize::MAX);
    assert!(loss.expect("a report").0.is_lock_lost());
    assert_eq!(renewals.len(), 1);
}
