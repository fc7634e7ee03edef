//! Observers of waits: whom a call waits for, in each store.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use record_store::{
    Acquired, Claim, Json, Key, LockOptions, MemoryRecordStore, RawRecord, ReadOptions, RecordStore,
    RecordStoreExt, Result, WaitObserver, WaitOptions, WaitReport, WaitReports, WriteOptions,
};
use tempfile::tempdir;

use crate::support::{PATIENCE, as_named, latch_of, millis, named, open};

fn with_each_store(check: impl Fn(&dyn RecordStore)) {
    let dir = tempdir().unwrap();
    check(&open(dir.path()));
    check(&MemoryRecordStore::new());
    #[cfg(feature = "postgres")]
    if let Some(url) = crate::postgres::new_url() {
        check(&crate::postgres::open(&url));
    }
}

fn observer(after: Duration) -> (WaitObserver, Receiver<WaitReport>) {
    let (sender, reports) = channel();
    (WaitObserver::new(after, move |report| sender.send(report.clone()).unwrap()), reports)
}

#[test]
fn every_wait_reports_the_lock_that_is_in_the_way_once() {
    const AFTER: Duration = Duration::from_millis(50);
    with_each_store(|store| {
        store.acquire_lock("k", as_named("editor").hold_timeout(PATIENCE)).unwrap();
        let info = store.lock_info("k").unwrap().unwrap();
        let (observer, reports) = observer(AFTER);
        // Longer than the pause between two checks.
        let limit = millis(600);
        let lock = LockOptions::new().acquire_timeout(limit).observer(&observer);
        let read = ReadOptions::new().timeout(limit).observer(&observer);
        let wait = WaitOptions::new().timeout(limit).observer(&observer);
        assert!(store.acquire_lock("k", lock.clone()).unwrap_err().is_timeout());
        assert!(store.read_with::<u8>("k", read).unwrap_err().is_timeout());
        assert!(!store.wait_for_lock("k", wait).unwrap());
        assert!(store.get_or_compute::<u8>("k", lock, || Ok(1)).unwrap_err().is_timeout());
        for operation in ["acquire_lock", "read", "wait_for_lock", "read"] {
            let report = reports.try_recv().unwrap();
            assert_eq!((report.operation(), report.key().as_str()), (operation, "k"), "{store:?}");
            assert!(report.waited() >= AFTER && report.waited() < limit, "{store:?}: {report:?}");
            let lock = report.lock().unwrap();
            assert_eq!((lock.holder(), lock.token()), (info.holder(), info.token()));
            assert_eq!(lock.acquired_at(), info.acquired_at());
            assert!(lock.remaining().is_some_and(|left| left < PATIENCE), "{store:?}: {lock:?}");
        }
        assert!(reports.try_recv().is_err(), "{store:?}");
        store.release_lock("k", named("editor")).unwrap();
    });
}

/// A sleeper checks the lock every 250 ms anyway.
#[test]
fn a_sleeper_wakes_for_its_report() {
    let dir = tempdir().unwrap();
    for store in [&open(dir.path()) as &dyn RecordStore, &MemoryRecordStore::new()] {
        let _guard = store.lock("k", as_named("editor")).unwrap();
        let (observer, reports) = observer(millis(30));
        let wait = WaitOptions::new().timeout(millis(200)).observer(&observer);
        // On a busy machine, it may wake too late.
        let reported = (0..20).any(|_| {
            assert!(!store.wait_for_lock("k", wait.clone()).unwrap());
            reports.try_recv().is_ok()
        });
        assert!(reported, "{store:?}");
    }
}

#[test]
fn a_short_wait_reports_nothing() {
    with_each_store(|store| {
        let guard = store.lock("k", as_named("editor")).unwrap();
        let (late, reports) = observer(PATIENCE);
        let brief = LockOptions::new().acquire_timeout(millis(20)).observer(&late);
        assert!(store.lock("k", brief).unwrap_err().is_timeout());
        let (early, early_reports) = observer(Duration::ZERO);
        // One attempt is no wait.
        let once = LockOptions::new().acquire_timeout(Duration::ZERO).observer(&early);
        assert!(store.lock("k", once).unwrap_err().is_timeout());
        guard.release().unwrap();
        store.lock("k", LockOptions::new().observer(&early)).unwrap().release().unwrap();
        assert!(reports.try_recv().is_err() && early_reports.try_recv().is_err(), "{store:?}");
    });
}

#[test]
fn another_lock_is_another_report() {
    with_each_store(|store| {
        let (observer, reports) = observer(Duration::ZERO);
        let mut seen = Vec::new();
        // The wait may see the key free between two locks: then it has to begin again.
        while seen != ["a", "b"] {
            store.acquire_lock("k", as_named("a")).unwrap();
            seen.clear();
            thread::scope(|scope| {
                let wait = WaitOptions::new().timeout(PATIENCE).observer(&observer);
                let waiter = scope.spawn(|| store.wait_for_lock("k", wait));
                let holder = |report: WaitReport| report.lock().unwrap().holder().name().to_owned();
                seen.push(holder(reports.recv_timeout(PATIENCE).unwrap()));
                store.release_lock("k", named("a")).unwrap();
                store.acquire_lock("k", as_named("b")).unwrap();
                while !waiter.is_finished() && seen.len() < 2 {
                    seen.extend(reports.recv_timeout(millis(5)).map(holder));
                }
                store.release_lock("k", named("b")).unwrap();
                assert!(waiter.join().unwrap().unwrap());
            });
            seen.extend(reports.try_iter().map(|report| report.to_string()));
        }
    });
}

#[test]
fn an_observer_may_use_the_store() {
    with_each_store(|store| {
        let guard = store.lock("k", as_named("editor")).unwrap();
        thread::scope(|scope| {
            let (sender, reports) = channel();
            // The observer outlives this scope, so it cannot borrow the store. It asks for an answer instead.
            let (answer, answers) = channel::<()>();
            let answers = Mutex::new(answers);
            let observer = WaitObserver::new(Duration::ZERO, move |_| {
                sender.send(()).unwrap();
                answers.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            });
            let options = LockOptions::new().acquire_timeout(PATIENCE).observer(&observer);
            let waiter = scope.spawn(|| store.lock("k", options).map(drop));
            reports.recv_timeout(PATIENCE).unwrap();
            assert!(store.is_locked("k").unwrap());
            store.write("other", &1).unwrap();
            answer.send(()).unwrap();
            guard.release().unwrap();
            waiter.join().unwrap().unwrap();
        });
    });
}

/// `lock_all` waits in slices, to renew what it has.
#[test]
fn the_steps_of_an_operation_are_one_wait() {
    with_each_store(|store| {
        let guard = store.lock("b", as_named("editor")).unwrap();
        let (observer, reports) = observer(millis(300));
        let options =
            LockOptions::new().hold_timeout(millis(600)).acquire_timeout(PATIENCE).observer(&observer);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| store.lock_all(["a", "b"], options).map(drop));
            let report = reports.recv_timeout(PATIENCE).unwrap();
            assert_eq!(report.key().as_str(), "b");
            assert!(report.waited() >= millis(300), "{report:?}");
            // Two more slices.
            assert!(reports.recv_timeout(millis(450)).is_err(), "{store:?}");
            guard.release().unwrap();
            waiter.join().unwrap().unwrap();
        });
    });
}

#[test]
fn a_process_that_is_stopped_inside_a_latch_is_reported() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    store.write("k", &1).unwrap();
    let latch = std::fs::File::options().write(true).open(dir.path().join(latch_of("k"))).unwrap();
    latch.lock().unwrap();
    let (observer, reports) = observer(millis(30));
    // Without a timeout, too: otherwise it blocks in the system.
    thread::scope(|scope| {
        // Left also by a panic.
        let latch = latch;
        let writer = scope.spawn(|| store.write_with("k", &2, WriteOptions::new().observer(&observer)));
        let report = reports.recv_timeout(PATIENCE).unwrap();
        assert_eq!((report.operation(), report.lock()), ("write", None));
        assert!(report.waited() >= millis(30));
        latch.unlock().unwrap();
        writer.join().unwrap().unwrap();
    });
    assert!(reports.try_recv().is_err());
}

#[test]
fn a_panic_of_an_observer_leaves_the_queue() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let guard = store.lock("k", as_named("editor")).unwrap();
    let observer = WaitObserver::new(Duration::ZERO, |_| std::panic::resume_unwind(Box::new("no")));
    let wait = || store.lock("k", LockOptions::new().observer(&observer)).map(drop);
    assert!(thread::scope(|scope| scope.spawn(wait).join()).is_err());
    guard.release().unwrap();
    let start = Instant::now();
    store.lock("k", LockOptions::new().acquire_timeout(PATIENCE)).unwrap().release().unwrap();
    assert!(start.elapsed() < PATIENCE / 2);
}

#[cfg(feature = "tokio")]
#[test]
fn a_future_reports_too() {
    use std::sync::Arc;

    use record_store::ErrorKind;
    use record_store::asynchronous::AsyncRecordStore;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempdir().unwrap();
    #[allow(unused_mut, reason = "only with the feature `postgres`")]
    let mut stores: Vec<Arc<dyn RecordStore>> =
        vec![Arc::new(open(dir.path())), Arc::new(MemoryRecordStore::new())];
    #[cfg(feature = "postgres")]
    if let Some(url) = crate::postgres::new_url() {
        stores.push(Arc::new(crate::postgres::open(&url)));
    }
    for store in stores {
        store.acquire_lock("k", as_named("editor")).unwrap();
        let (observer, reports) = observer(millis(50));
        let options = LockOptions::new().acquire_timeout(millis(400)).observer(&observer);
        let locked = runtime.block_on(AsyncRecordStore::new(Arc::clone(&store)).lock("k", options));
        assert_eq!(locked.map(drop).unwrap_err().kind(), ErrorKind::LockTimeout);
        let report = reports.try_recv().unwrap();
        assert!(report.waited() >= millis(50) && report.lock().is_some(), "{report:?}");
        assert!(reports.try_recv().is_err());
    }
}

/// A store that is written outside of the crate, and that cannot wait but only ask again.
#[derive(Debug)]
struct Polling(MemoryRecordStore);

impl RecordStore for Polling {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.0.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.0.write_raw(key, result, options)
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.0.exists_raw(key)
    }
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        let (start, timeout) = (Instant::now(), options.get_acquire_timeout());
        let reports = WaitReports::new(options.get_wait(), start);
        loop {
            let attempt = self.0.acquire_lock_raw(key, options.clone().acquire_timeout(Duration::ZERO));
            if attempt.is_ok() || timeout.is_some_and(|timeout| start.elapsed() >= timeout) {
                return attempt;
            }
            if let (Some(reports), Some(lock)) = (&reports, self.0.lock_info_raw(key)?) {
                reports.report_if_due("acquire_lock", key, Some(lock));
            }
            thread::sleep(millis(5));
        }
    }
    fn renew_raw(&self, key: &Key, claim: &Claim, hold: Option<Duration>, wait: WaitOptions) -> Result<()> {
        self.0.renew_raw(key, claim, hold, wait)
    }
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.0.release_lock_raw(key, claim, options)
    }
}

/// Each slice of the wait is shorter than the time after which the observer is told.
#[test]
fn a_store_of_another_crate_reports_for_all_steps_of_a_call() {
    let store = Polling(MemoryRecordStore::new());
    let guard = store.lock("b", as_named("editor")).unwrap();
    let (observer, reports) = observer(millis(300));
    let options = LockOptions::new().hold_timeout(millis(600)).acquire_timeout(PATIENCE).observer(&observer);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| store.lock_all(["a", "b"], options).map(drop));
        let report = reports.recv_timeout(PATIENCE).unwrap();
        assert_eq!((report.operation(), report.key().as_str()), ("acquire_lock", "b"));
        assert_eq!(report.lock().unwrap().holder(), guard.holder());
        assert!(report.waited() >= millis(300), "{report:?}");
        thread::sleep(millis(450));
        assert!(reports.try_recv().is_err(), "the same lock was reported again");
        guard.release().unwrap();
        waiter.join().unwrap().unwrap();
    });
}
