//! Lock files. A file that cannot be understood is an error, and nobody acquires that lock. A file that
//! can be understood is believed, so a changed file may name another holder, token or time.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{
    FileSystemRecordStore, LockInfo, LockOptions, LockState, ReadOptions, RecordStoreExt, Result,
};
use tempfile::TempDir;

use super::{Tampered, cases, mutations};
use crate::support::{as_named, in_memory, named, open};

/// 2^53 - 1, the greatest token.
const MAX_TOKEN: u64 = (1 << 53) - 1;

struct HeldLock {
    dir: TempDir,
    store: FileSystemRecordStore,
    file: Tampered,
}

/// A store with one held lock.
fn held(options: LockOptions) -> HeldLock {
    let dir = in_memory();
    let store = open(dir.path());
    store.acquire_lock("key", options).unwrap();
    let file = Tampered::new(&dir.path().join("key.lock"));
    HeldLock { dir, store, file }
}

impl HeldLock {
    /// Reads the state of the lock through every method. No method panics, waits or changes the file, and
    /// all agree.
    fn inspect(&self, context: &str) -> Result<Option<LockInfo>> {
        let info = self.store.lock_info("key");
        match &info {
            Ok(Some(info)) => {
                assert_eq!(info.key().as_str(), "key", "{context}");
                assert_eq!(info.state(), LockState::Held, "{context}");
                assert!(info.token().get() <= MAX_TOKEN, "{context}");
                assert!(!info.holder().name().is_empty(), "{context}");
            }
            Ok(None) => {}
            Err(error) => assert!(error.is_corrupt() && error.path().is_some(), "{context}: {error:?}"),
        }
        let waited = self.store.wait_for_lock("key", Duration::ZERO);
        assert_eq!(waited.ok(), info.as_ref().ok().map(Option::is_none), "{context}");
        let read = self.store.read_with::<String>("key", ReadOptions::new().timeout(Duration::ZERO));
        assert_eq!(read.is_err_and(|error| error.is_corrupt()), info.is_err(), "{context}");
        let listed: Vec<_> = self.store.locks().unwrap().collect();
        assert!(listed.len() <= 1, "{context}");
        info
    }

    /// Tries to acquire the lock for another holder. After a success the lock is released, and the caller
    /// must create the file again.
    fn try_to_acquire(&self, context: &str) -> bool {
        match self.store.try_lock("key", as_named("other")) {
            Ok(Some(guard)) => {
                guard.release().unwrap_or_else(|error| panic!("{context}: {error:?}"));
                true
            }
            Ok(None) => false,
            Err(error) => {
                assert!(error.is_corrupt(), "{context}: {error:?}");
                false
            }
        }
    }
}

/// The number of concurrent workers. Corrupt files are re-read for a while, and workers sleep meanwhile.
const WORKERS: usize = 32;

/// Calls `check` for the lock file with each bit flipped in turn. Each worker uses a lock of its own.
fn with_each_bit_flipped(options: &LockOptions, check: impl Fn(&mut HeldLock, &str) + Sync) {
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (check, options) = (&check, options.clone());
            scope.spawn(move || {
                let mut lock = held(options);
                let original = lock.file.original.clone();
                for bit in (worker..original.len() * 8).step_by(WORKERS) {
                    let mut bytes = original.clone();
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    lock.file.set(&bytes);
                    check(&mut lock, &format!("byte {}: {}", bit / 8, String::from_utf8_lossy(&bytes)));
                }
            });
        }
    });
}

/// With one bit flipped, a lock without a lease is corrupt, or held by some holder: never free.
#[test]
fn every_flipped_bit_of_a_lock_without_a_lease_leaves_it_corrupt_or_held() {
    with_each_bit_flipped(&as_named("job"), |lock, context| {
        let info = lock.inspect(context);
        assert!(!matches!(info, Ok(None)), "{context}: free");
        assert!(!lock.try_to_acquire(context), "{context}: acquired");
        if !matches!(info, Ok(Some(info)) if info.is_held_by(&named("job"))) {
            // The original holder must not release a lock that is no longer its own.
            lock.store.release_lock("key", named("job")).unwrap_err();
        }
    });
}

/// With one bit flipped, a lock with a lease or an owner may expire or become stale too early. All
/// callers still agree on its state.
#[test]
fn every_flipped_bit_of_a_lock_with_a_lease_leaves_all_callers_in_agreement() {
    for options in [as_named("job"), LockOptions::new()] {
        with_each_bit_flipped(&options.hold_timeout(Duration::from_mins(20)), |lock, context| {
            let info = lock.inspect(context);
            let acquired = lock.try_to_acquire(context);
            assert_eq!(acquired, matches!(info, Ok(None)), "{context}");
            if acquired {
                let original = lock.file.original.clone();
                lock.recreate(&original);
            }
        });
    }
}

impl HeldLock {
    /// Creates the lock file again after the lock was acquired and released.
    fn recreate(&mut self, bytes: &[u8]) {
        let path = self.dir.path().join("key.lock");
        std::fs::write(&path, bytes).unwrap();
        self.file = Tampered::new(&path);
    }
}

/// For any content of a lock file, all methods agree on its state, a lock that is not free cannot be
/// acquired, and breaking the lock repairs everything.
#[test]
fn any_bytes_as_a_lock_leave_all_callers_in_agreement() {
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let options = as_named("job").hold_timeout(Duration::from_mins(20));
            let options = if worker % 2 == 0 { as_named("job") } else { options };
            scope.spawn(move || check_any_bytes(&held(options)));
        }
    });
}

fn check_any_bytes(lock: &HeldLock) {
    let mut runner = TestRunner::new(cases(20));
    let outcome = runner.run(&mutations(lock.file.original.clone()), |bytes| {
        std::fs::write(lock.dir.path().join("key.lock"), &bytes).unwrap();
        let context = String::from_utf8_lossy(&bytes).into_owned();
        let info = lock.inspect(&context);
        let acquired = lock.try_to_acquire(&context);
        prop_assert_eq!(acquired, matches!(info, Ok(None)), "{}", context);
        lock.store.sweep().unwrap();
        lock.store.break_lock("key").unwrap();
        prop_assert!(lock.try_to_acquire(&context), "{}", context);
        Ok(())
    });
    outcome.unwrap();
}
