//! Lock files. What cannot be understood is an error, and nobody gets that lock; what can be
//! understood is believed, so a changed file may tell another holder, token or time.

use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{FileSystemRecordStore, LockInfo, LockOptions, LockState, RecordStoreExt, Result};
use tempfile::TempDir;

use super::{Vandalised, cases, changed};
use crate::support::{as_named, in_memory, named, open};

/// 2^53 - 1, the greatest token.
const MAX_TOKEN: u64 = (1 << 53) - 1;

struct Scene {
    dir: TempDir,
    store: FileSystemRecordStore,
    lock: Vandalised,
}

/// A store with a lock that is held.
fn held(options: &LockOptions) -> Scene {
    let dir = in_memory();
    let store = open(dir.path());
    store.acquire_lock("key", options).unwrap();
    let lock = Vandalised::new(&dir.path().join("key.lock"));
    Scene { dir, store, lock }
}

impl Scene {
    /// Looks at the lock in every way there is. None of them panics, waits or changes the file, and
    /// all agree.
    fn look(&self, how: &str) -> Result<Option<LockInfo>> {
        let info = self.store.lock_info("key");
        match &info {
            Ok(Some(info)) => {
                assert_eq!(info.key().as_str(), "key", "{how}");
                assert_eq!(info.state(), LockState::Held, "{how}");
                assert!(info.token().get() <= MAX_TOKEN, "{how}");
                assert!(!info.holder().name().is_empty(), "{how}");
            }
            Ok(None) => {}
            Err(error) => assert!(error.is_corrupt() && error.path().is_some(), "{how}: {error:?}"),
        }
        let waited = self.store.wait_for_lock("key", Some(Duration::ZERO));
        assert_eq!(waited.ok(), info.as_ref().ok().map(Option::is_none), "{how}");
        let read = self.store.try_read::<String>("key", Duration::ZERO);
        assert_eq!(read.is_err_and(|error| error.is_corrupt()), info.is_err(), "{how}");
        let listed: Vec<_> = self.store.locks().unwrap().collect();
        assert!(listed.len() <= 1, "{how}");
        info
    }

    /// Another holder tries. Whoever gets the lock gives it back, and the file is made anew.
    fn try_to_take(&self, how: &str) -> bool {
        match self.store.try_lock("key", as_named("other")) {
            Ok(Some(guard)) => {
                guard.release().unwrap_or_else(|error| panic!("{how}: {error:?}"));
                true
            }
            Ok(None) => false,
            Err(error) => {
                assert!(error.is_corrupt(), "{how}: {error:?}");
                false
            }
        }
    }
}

/// How many look at once. What looks corrupt is looked at again for a while, which is spent asleep.
const AT_ONCE: usize = 32;

/// Looks at the lock with each of its bits flipped in turn, and each look at a lock of its own.
fn with_each_bit_flipped(options: &LockOptions, look: impl Fn(&mut Scene, &str) + Sync) {
    std::thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let look = &look;
            scope.spawn(move || {
                let mut scene = held(options);
                let sound = scene.lock.sound.clone();
                for bit in (worker..sound.len() * 8).step_by(AT_ONCE) {
                    let mut bytes = sound.clone();
                    bytes[bit / 8] ^= 1 << (bit % 8);
                    scene.lock.set(&bytes);
                    look(&mut scene, &format!("byte {}: {}", bit / 8, String::from_utf8_lossy(&bytes)));
                }
            });
        }
    });
}

/// With one bit wrong, a lock without a term is unsound, or held by someone: never free.
#[test]
fn every_flipped_bit_of_a_lock_without_a_term() {
    with_each_bit_flipped(&as_named("job"), |scene, how| {
        let seen = scene.look(how);
        assert!(!matches!(seen, Ok(None)), "{how}: free");
        assert!(!scene.try_to_take(how), "{how}: taken");
        if !matches!(seen, Ok(Some(info)) if info.is_held_by(&named("job"))) {
            // Not even the holder changes what is not its own any more.
            scene.store.release_lock("key", named("job")).unwrap_err();
        }
    });
}

/// With one bit wrong, a lock with a term or an owner may be over before its time. What it says
/// still decides alike for all.
#[test]
fn every_flipped_bit_of_a_lock_with_a_term() {
    for options in [as_named("job"), LockOptions::new()] {
        with_each_bit_flipped(&options.hold_timeout(Duration::from_mins(20)), |scene, how| {
            let seen = scene.look(how);
            let taken = scene.try_to_take(how);
            assert_eq!(taken, matches!(seen, Ok(None)), "{how}");
            if taken {
                let sound = scene.lock.sound.clone();
                scene.put_back(&sound);
            }
        });
    }
}

impl Scene {
    /// Makes the lock file anew, after it was taken and given back.
    fn put_back(&mut self, bytes: &[u8]) {
        let path = self.dir.path().join("key.lock");
        std::fs::write(&path, bytes).unwrap();
        self.lock = Vandalised::new(&path);
    }
}

/// Whatever a lock file says: looks agree, a lock that is not free is not had, and breaking it sets
/// everything right.
#[test]
fn any_bytes() {
    std::thread::scope(|scope| {
        for worker in 0..AT_ONCE {
            let options = as_named("job").hold_timeout(Duration::from_mins(20));
            let options = if worker % 2 == 0 { as_named("job") } else { options };
            scope.spawn(move || see_any_bytes(&held(&options)));
        }
    });
}

fn see_any_bytes(scene: &Scene) {
    let mut runner = TestRunner::new(cases(20));
    let outcome = runner.run(&changed(scene.lock.sound.clone()), |bytes| {
        std::fs::write(scene.dir.path().join("key.lock"), &bytes).unwrap();
        let how = String::from_utf8_lossy(&bytes).into_owned();
        let seen = scene.look(&how);
        let taken = scene.try_to_take(&how);
        prop_assert_eq!(taken, matches!(seen, Ok(None)), "{}", how);
        scene.store.sweep().unwrap();
        scene.store.break_lock("key").unwrap();
        prop_assert!(scene.try_to_take(&how), "{}", how);
        Ok(())
    });
    outcome.unwrap();
}
