//! Keep-alive: a background thread renews the lease while the guard lives, and reports a lost lock.

use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

use record_store::{
    ErrorKind, FileSystemRecordStore, LockOptions, MemoryRecordStore, RecordStore, RecordStoreExt,
};

use crate::support::children::{Role, Stage};
use crate::support::{PATIENCE, as_named, millis, open, tempdir};

pub(crate) const ROLES: &[Role] = &[("keep alive again", keep_alive_again)];

fn with_each_store(check: impl Fn(&dyn Fn() -> Box<dyn Checks>)) {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    check(&|| Box::new(store.clone()));
    let store = MemoryRecordStore::new();
    check(&|| Box::new(store.clone()));
}

/// The checks, for both types of stores.
trait Checks {
    fn lock_outlives_its_lease(&self);
    fn renewal_ends_with_the_guard(&self);
    fn loss_is_reported(&self);
    fn lease_is_optional(&self);
}

impl<S: RecordStore + Clone + 'static> Checks for S {
    fn lock_outlives_its_lease(&self) {
        // Long enough for a thread of a busy machine to be late.
        let lease = Duration::from_secs(2);
        let guard = self.lock("kept", LockOptions::new().hold_timeout(lease)).unwrap();
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
        let start = Instant::now();
        while start.elapsed() < lease * 3 / 2 {
            std::thread::sleep(millis(50));
            assert!(guard.is_held().unwrap(), "lost: {:?}", losses.try_recv());
        }
        assert!(guard.remaining().unwrap().unwrap() <= lease);
        guard.write("done").unwrap();
        guard.release().unwrap();
        assert!(losses.recv().is_err(), "a release was reported as a loss");
    }

    fn renewal_ends_with_the_guard(&self) {
        // One guard ends while its thread sleeps, the others while it may be renewing.
        for lease in [PATIENCE, millis(30), millis(20), millis(10)] {
            let guard = self.lock("ended", LockOptions::new().hold_timeout(lease)).unwrap();
            let (lost, losses) = channel();
            let kept = guard.keep_alive(move |error| lost.send(error).unwrap());
            std::thread::sleep(if lease == PATIENCE { Duration::ZERO } else { lease });
            drop(guard);
            // The thread has dropped the sender, so it has ended. Before that, it reports at most that it was too slow
            // to renew.
            let errors: Vec<_> = losses.try_iter().chain(kept.err()).collect();
            assert!(errors.iter().all(|error| error.is_lock_lost() && lease < PATIENCE), "{errors:?}");
            assert_eq!(losses.try_recv().unwrap_err(), TryRecvError::Disconnected, "{lease:?}");
            assert!(!self.is_locked("ended").unwrap());
            let successor = self.lock("ended", as_named("successor")).unwrap();
            assert_eq!(self.lock_info("ended").unwrap().unwrap().token(), successor.token());
        }
    }

    fn loss_is_reported(&self) {
        let guard = self.lock("lost", LockOptions::new().hold_timeout(millis(300))).unwrap();
        assert!(guard.is_held().unwrap());
        let (lost, losses) = channel();
        guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
        assert!(self.break_lock("lost").unwrap());
        assert!(!guard.is_held().unwrap());
        let error = losses.recv_timeout(PATIENCE).unwrap();
        assert!(error.is_lock_lost(), "{error}");
        assert!(guard.keep_alive(|_| ()).unwrap_err().is_lock_lost());
        assert!(guard.write("late").unwrap_err().is_lock_lost());
    }

    fn lease_is_optional(&self) {
        let guard = self.lock("forever", LockOptions::new()).unwrap();
        guard.keep_alive(|error| panic!("{error}")).unwrap();
        assert_eq!(guard.remaining().unwrap(), None::<Duration>);
    }
}

#[test]
fn a_lock_with_keep_alive_outlives_its_lease() {
    with_each_store(|store| store().lock_outlives_its_lease());
}

#[test]
fn keep_alive_ends_with_the_guard() {
    with_each_store(|store| store().renewal_ends_with_the_guard());
}

#[test]
fn a_lost_lock_is_reported() {
    with_each_store(|store| store().loss_is_reported());
}

#[test]
fn keep_alive_accepts_a_lock_without_a_lease() {
    with_each_store(|store| store().lease_is_optional());
}

#[test]
fn keep_alive_works_on_a_shared_dyn_store() {
    let dir = tempdir().unwrap();
    let store: Arc<dyn RecordStore> = Arc::new(FileSystemRecordStore::open(dir.path()).unwrap());
    let guard = store.lock("k", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
    guard.keep_alive(|_| ()).unwrap();
    guard.release().unwrap();
}

/// A store that cannot be cloned.
#[test]
fn owned_guards_of_any_store_are_kept_alive() {
    let dir = tempdir().unwrap();
    let store: Arc<dyn RecordStore> = Arc::new(FileSystemRecordStore::open(dir.path()).unwrap());
    let lease = || LockOptions::new().hold_timeout(Duration::from_secs(2));
    let one = store.lock_owned("one", lease()).unwrap();
    let several = store.lock_all_owned(["b", "a"], lease()).unwrap();
    assert!(store.try_lock_owned("one", as_named("other")).unwrap().is_none());
    let (lost, losses) = channel();
    let lost_too = lost.clone();
    one.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
    several.keep_alive(move |error| lost_too.send(error).unwrap()).unwrap();
    let (one, several) = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(3));
        one.write("done").unwrap();
        several.get("a").unwrap().write("done").unwrap();
        (one, several)
    })
    .join()
    .unwrap();
    assert!(losses.try_recv().is_err(), "a lock was lost");
    assert!(store.break_lock("b").unwrap());
    assert_eq!(losses.recv_timeout(PATIENCE).unwrap().key().unwrap().as_str(), "b");
    one.release().unwrap();
    let mut guards = several.into_iter();
    let (a, b) = (guards.next().unwrap(), guards.next().unwrap());
    assert_eq!((a.key().as_str(), b.key().as_str()), ("a", "b"));
    a.release_with(PATIENCE).unwrap();
    assert!(b.release().unwrap_err().is_lock_lost());
    assert!(losses.recv().is_err(), "a release was reported as a loss");
    assert!(store.locks().unwrap().next().is_none());
    let guard = store.try_lock_owned("one", as_named("other")).unwrap().expect("a free lock");
    drop(guard);
    assert!(!store.is_locked("one").unwrap());
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_keep_alive_goes_on_if_there_is_no_thread_for_another_one() {
    use crate::support::children::Child;
    use crate::support::trace::Traced;
    use nix::{errno::Errno, libc};

    let Some((mut traced, _)) = Traced::attach(Child::start("keep alive again", &())) else { return };
    while let Some(call) = traced.next_call() {
        match call.number {
            libc::SYS_clone3 | libc::SYS_clone => traced.fail(Errno::EAGAIN),
            _ => traced.execute(),
        }
    }
    let mut child = traced.release();
    child.expect("still kept");
    child.finish();
}

fn keep_alive_again(stage: &Stage) {
    let store = MemoryRecordStore::new();
    let guard = store.lock("k", LockOptions::new().hold_timeout(PATIENCE)).unwrap();
    let (lost, losses) = channel();
    guard.keep_alive(move |error| lost.send(error).unwrap()).unwrap();
    let again = crate::support::trace::perform(stage, "", || guard.keep_alive(|_| ()));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::Thread);
    assert_eq!(losses.try_recv().unwrap_err(), TryRecvError::Empty, "the first one has ended");
    stage.send("still kept");
}
