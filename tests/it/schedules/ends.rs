//! The ends of locks: a release, a break, a renewal that comes too late, and a blank lock file that nobody waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use record_store::{Acquired, Json, Key, LockInfo, RawRecord, RecordStore};

use super::*;

/// Leaves the blank lock file that a release leaves for a waiter.
pub(super) fn leave_blank(store: &FileSystemRecordStore, key: &str) {
    std::fs::write(store.path().join(format!("{key}.lock")), [0; 500]).unwrap();
}

fn lock_as_holder(store: &FileSystemRecordStore, key: &str) {
    store.acquire_lock(key, as_named("holder").hold_timeout(PATIENCE)).unwrap();
}

/// A waiter that gives up removes a blank lock file. It must not remove the lock that is written into it meanwhile.
#[test]
fn a_waiter_that_gives_up_removes_no_lock() {
    at_every_later_step(Operation::AcquireCancelled, leave_blank, |store, key, mut actor, step| {
        actor.advance(step);
        let guard = actor.run_beside(|| store.lock(key, as_named("next").acquire_timeout(PATIENCE)).unwrap());
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "cancelled", "{}", outcome.position);
        assert!(guard.is_held().unwrap(), "{}", outcome.position);
        guard.release().unwrap();
        outcome
    });
}

/// A break by token that is late does not break the lock of the next acquisition.
#[test]
fn a_break_by_token_breaks_no_later_lock() {
    at_every_later_step(Operation::BreakByToken, lock_as_holder, |store, key, mut actor, step| {
        actor.advance(step);
        let next = actor.run_beside(|| {
            let _ = store.release_lock(key, named("holder"));
            store.lock(key, as_named("holder").acquire_timeout(PATIENCE)).unwrap()
        });
        let outcome = actor.finish();
        assert!(matches!(&*outcome.answer, "yes" | "no"), "{}: {}", outcome.position, outcome.answer);
        assert!(next.is_held().unwrap(), "{}", outcome.position);
        next.release().unwrap();
        outcome
    });
}

/// After a lock was ended, nothing revives it.
fn against_end(
    operation: Operation,
    answers: [&str; 2],
    end: impl Fn(&FileSystemRecordStore, &str) -> bool + Sync,
) {
    at_every_later_step(operation, lock_as_holder, |store, key, mut actor, step| {
        actor.advance(step);
        let has_ended = actor.run_beside(|| end(store, key));
        let outcome = actor.finish();
        let position = &outcome.position;
        assert!(answers.contains(&&*outcome.answer), "{position}: {}", outcome.answer);
        // One of the two has ended it, but not both.
        let ends = matches!(operation, Operation::ReleaseByHolder | Operation::Break);
        let by_actor = ends && outcome.answer == answers[0];
        assert!(has_ended != by_actor, "{position}: {has_ended}, {}", outcome.answer);
        assert!(!store.is_locked(key).unwrap(), "{position}: the lock is back");
        assert!(!store.path().join(format!("{key}.lock")).exists(), "{position}: a file is left");
        outcome
    });
}

fn breaks(store: &FileSystemRecordStore, key: &str) -> bool {
    store.break_lock(key).unwrap()
}

fn releases(store: &FileSystemRecordStore, key: &str) -> bool {
    match store.release_lock(key, named("holder")) {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::NotLocked => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_renewal_does_not_revive_a_lock_that_was_broken() {
    against_end(Operation::RenewByHolder, ["done", "not locked"], breaks);
}

#[test]
fn a_renewal_does_not_revive_a_lock_that_was_released() {
    against_end(Operation::RenewByHolder, ["done", "not locked"], releases);
}

#[test]
fn a_lock_is_released_once() {
    against_end(Operation::ReleaseByHolder, ["done", "not locked"], releases);
}

#[test]
fn a_lock_is_released_or_broken() {
    against_end(Operation::ReleaseByHolder, ["done", "not locked"], breaks);
}

#[test]
fn a_lock_is_broken_once() {
    against_end(Operation::Break, ["yes", "no"], breaks);
}

/// A break hits the lock of an acquisition, or comes before it.
#[test]
fn an_acquisition_has_the_lock_unless_it_was_broken() {
    for before in [prepare_nothing, leave_blank, leave_expired] {
        at_every_later_step(Operation::Acquire, before, |store, key, mut actor, step| {
            actor.advance(step);
            let is_acquired = store.is_locked(key).unwrap();
            let is_broken = actor.run_beside(|| store.break_lock(key).unwrap());
            let helped = actor.helped;
            let outcome = actor.finish();
            assert_eq!(outcome.answer, "done", "{}", outcome.position);
            assert!(is_broken || !is_acquired, "{}", outcome.position);
            if !helped {
                assert_eq!(store.is_locked(key).unwrap(), !is_acquired, "{}", outcome.position);
            }
            outcome
        });
    }
}

/// Two renewals of one lock.
#[test]
fn of_two_renewals_none_loses_the_lock() {
    at_every_later_step(Operation::RenewByHolder, lock_as_holder, |store, key, mut actor, step| {
        actor.advance(step);
        let token = store.lock_info(key).unwrap().unwrap().token();
        actor.run_beside(|| store.renew(key, token, PATIENCE).unwrap());
        let outcome = actor.finish();
        assert_eq!(outcome.answer, "done", "{}", outcome.position);
        let info = store.lock_info(key).unwrap().expect("the lock");
        assert_eq!(info.token(), token, "{}", outcome.position);
        store.release_lock(key, token).unwrap();
        outcome
    });
}

/// The lease that a keep-alive believes in. It renews after a third of it.
const KEPT: Duration = Duration::from_millis(30);

/// A store whose locks really have a long lease, so that a stop loses none. The first renewal of a keep-alive's
/// thread is traced.
#[derive(Clone)]
struct Kept {
    store: FileSystemRecordStore,
    stage: Stage,
    renewals: Arc<AtomicU32>,
    is_renewing: Arc<AtomicBool>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Kept").field(&self.store).finish()
    }
}

impl RecordStore for Kept {
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
        self.store.acquire_lock_raw(key, options.hold_timeout(PATIENCE))
    }

    fn renew_raw(&self, key: &Key, claim: &Claim, _: Option<Duration>, options: WaitOptions) -> Result<()> {
        let options = options.timeout(None);
        let renew = || self.store.renew_raw(key, claim, Some(PATIENCE), options);
        // The first one is that of the call itself.
        if self.renewals.fetch_add(1, Ordering::SeqCst) != 1 {
            return renew();
        }
        perform(&self.stage, "", || {
            self.is_renewing.store(true, Ordering::SeqCst);
            renew()
        })
    }

    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.store.release_lock_raw(key, claim, options)
    }

    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.store.lock_info_raw(key)
    }
}

pub(super) fn keep_alive_and_drop(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let store = Kept {
        store: open_with(&dir, Durability::Relaxed),
        stage: stage.clone(),
        renewals: Arc::default(),
        is_renewing: Arc::default(),
    };
    let guard = store.lock("k", as_named("holder").hold_timeout(KEPT)).unwrap();
    let (lost, losses) = channel();
    guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
    // Until then, the thread reads what the parent sends.
    while !store.is_renewing.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    stage.expect("drop");
    drop(guard);
    stage.send("dropped");
    // The thread drops the sender when it ends.
    stage.send(&losses.recv().map_or_else(|_| "no loss".into(), |error| format!("{error:?}")));
}

/// A guard is dropped while its keep-alive renews: the lock is released when the drop returns, and not reported as lost.
#[test]
fn a_renewal_in_the_background_does_not_outlast_the_guard() {
    let dir = tempdir().unwrap();
    let store = open_with(dir.path(), Durability::Relaxed);
    for step in 1.. {
        let Some((mut traced, _)) = Traced::attach(Child::start("keep alive and drop", &dir.path())) else {
            return;
        };
        let completed = traced.advance(step) == At::End;
        let position = format!("step {step}, {}", traced.describe());
        abort_if_hung(&position, || {
            traced.child().send("drop");
            traced.child().until_asleep();
            let mut child = traced.release();
            child.expect("dropped");
            assert!(!store.is_locked("k").unwrap(), "{position}");
            assert_eq!(child.receive(), "no loss", "{position}");
            child.finish();
        });
        if completed {
            assert!(step > 5, "completed after {step} steps");
            return;
        }
    }
}
