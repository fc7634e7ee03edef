//! The table that is mapped by every process of a store. It only says whose turn it is and wakes
//! sleepers: whatever it holds, nobody hangs and no two have the lock.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use record_store::{LockOptions, RecordStoreExt};

use super::{cases, dice};
use crate::support::{as_named, hashes_of, in_memory, millis, names_in, open, storm};

/// 256 counters and 256 places of 64 bytes each, and 256 bits that say which places are taken.
const PLACES: usize = 16 * 1024;
const TAKEN: usize = 32 * 1024;
const SIZE: usize = TAKEN + 64;

/// The state of a place whose turn it is.
const CALLED: u32 = 2;

const KEY: &str = "key";

/// Enough for several others to be called and not to come.
const PATIENT: Duration = Duration::from_secs(5);

fn table_of(dir: &Path) -> File {
    File::options().read(true).write(true).open(dir.join(".store/events")).unwrap()
}

/// A place in the line, as any bytes might describe one.
#[derive(Clone, Debug)]
struct Place {
    at: usize,
    state: u32,
    key: (u32, u64),
    ticket: u64,
    called_at: u64,
    owner: Vec<u8>,
}

/// `own` is the name of a live process's owner file.
fn places(own: String) -> impl Strategy<Value = Vec<Place>> {
    let own = own.into_bytes();
    let owner = prop_oneof![
        3 => Just(own),
        1 => Just(b"1-gone".to_vec()),
        1 => Just(b"../../etc/passwd".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..32),
    ];
    let key = prop_oneof![5 => Just(hashes_of(KEY)), 1 => any::<(u32, u64)>()];
    let time = prop_oneof![Just(0), Just(u64::MAX), Just(1_u64 << 40), any::<u64>()];
    // Early ones, before any that comes later.
    let at = prop_oneof![0..4_usize, 0..256_usize];
    let ticket = prop_oneof![2 => Just(0), 1 => any::<u64>()];
    let place =
        (at, 0..6_u32, key, ticket, time, owner).prop_map(|(at, state, key, ticket, called_at, owner)| {
            Place { at, state, key, ticket, called_at, owner }
        });
    proptest::collection::vec(place, 0..5)
}

impl Place {
    fn write_to(&self, table: &File) {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&self.state.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.key.0.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.key.1.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.ticket.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.called_at.to_ne_bytes());
        bytes[32..32 + self.owner.len()].copy_from_slice(&self.owner);
        table.write_all_at(&bytes, (PLACES + 64 * self.at) as u64).unwrap();
        let (mut taken, word) = ([0; 8], (TAKEN + self.at / 64 * 8) as u64);
        table.read_exact_at(&mut taken, word).unwrap();
        let taken = u64::from_ne_bytes(taken) | 1 << (self.at % 64);
        table.write_all_at(&taken.to_ne_bytes(), word).unwrap();
    }
}

/// Who stands in the line for no reason delays the others, but not for ever.
#[test]
fn any_line() {
    let dir = in_memory();
    let store = open(dir.path());
    let own = names_in(&dir.path().join(".store/owners")).pop().unwrap();
    let table = table_of(dir.path());
    // Each failure takes long: there is little to be gained by a smaller one.
    TestRunner::new(ProptestConfig { max_shrink_iters: 8, ..cases(60) })
        .run(&places(own), |places| {
            table.write_all_at(&vec![0; SIZE], 0).unwrap();
            for place in &places {
                place.write_to(&table);
            }
            let guard = store.lock(KEY, LockOptions::new().acquire_timeout(PATIENT));
            let guard = guard.map_err(|error| TestCaseError::fail(error.to_string()))?;
            // Another one waits, is called when the time is up, and leaves.
            let other = as_named("other").acquire_timeout(millis(5));
            prop_assert!(store.acquire_lock(KEY, &other).unwrap_err().is_timeout());
            guard.release().unwrap();
            prop_assert!(store.wait_for_lock(KEY, Some(PATIENT)).unwrap());
            Ok(())
        })
        .unwrap();
}

/// A call from the future: by a clock of another time namespace, or none at all.
#[test]
fn a_place_that_was_called_in_the_future() {
    let dir = in_memory();
    let store = open(dir.path());
    let owner = names_in(&dir.path().join(".store/owners")).pop().unwrap().into_bytes();
    let place = Place { at: 0, state: CALLED, key: hashes_of(KEY), ticket: 0, called_at: u64::MAX, owner };
    place.write_to(&table_of(dir.path()));
    let guard = store.lock(KEY, LockOptions::new().acquire_timeout(PATIENT)).unwrap();
    guard.release().unwrap();
}

/// A table full of noise, changing while threads wait for one lock.
#[test]
fn noise_while_threads_wait() {
    let dir = in_memory();
    drop(open(dir.path()));
    let table = table_of(dir.path());
    let mut dice = dice("noise_while_threads_wait");
    let (inside, over) = (AtomicU32::new(0), AtomicBool::new(false));
    let turns = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let work = || {
            let store = open(dir.path());
            while !over.load(SeqCst) {
                let start = Instant::now();
                match store.lock(KEY, LockOptions::new().acquire_timeout(millis(500))) {
                    Ok(guard) => {
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "two have the lock");
                        std::thread::yield_now();
                        inside.fetch_sub(1, SeqCst);
                        turns.fetch_add(1, SeqCst);
                        guard.release().unwrap();
                    }
                    Err(error) => assert!(error.is_timeout(), "{error:?}"),
                }
                assert!(start.elapsed() < PATIENT, "hangs");
            }
            // Noise that names nobody stands in nobody's way.
            store.lock(KEY, LockOptions::new().acquire_timeout(PATIENT)).unwrap().release().unwrap();
        };
        for _ in 0..4 {
            scope.spawn(work);
        }
        for round in 0..storm(300) {
            let mut noise = vec![0; SIZE];
            for word in noise.as_chunks_mut().0 {
                *word = dice.below(u64::MAX).to_ne_bytes();
            }
            if round % 2 == 0 {
                // States and keys that mean something, so that the noise is listened to.
                for place in noise[PLACES..TAKEN].chunks_exact_mut(64) {
                    place[..4].copy_from_slice(&u32::try_from(dice.below(5)).unwrap().to_ne_bytes());
                    place[4..8].copy_from_slice(&hashes_of(KEY).0.to_ne_bytes());
                    place[8..16].copy_from_slice(&hashes_of(KEY).1.to_ne_bytes());
                }
            }
            table.write_all_at(&noise, 0).unwrap();
            std::thread::sleep(millis(3));
        }
        over.store(true, SeqCst);
    });
    assert!(turns.load(SeqCst) > 0);
}

/// Noise that is there before anyone maps it, of every size.
#[test]
fn a_table_of_any_size() {
    let mut dice = dice("a_table_of_any_size");
    for size in [0, 1, 4_095, 4_096, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE] {
        let dir = in_memory();
        drop(open(dir.path()));
        let noise: Vec<u8> = (0..size).map(|_| dice.below(256).to_le_bytes()[0]).collect();
        std::fs::write(dir.path().join(".store/events"), noise).unwrap();
        let store = open(dir.path());
        let guard = store.lock(KEY, LockOptions::new().acquire_timeout(PATIENT)).unwrap();
        let other = as_named("other").acquire_timeout(millis(5));
        assert!(store.acquire_lock(KEY, &other).unwrap_err().is_timeout());
        guard.release().unwrap();
        let size =
            usize::try_from(std::fs::metadata(dir.path().join(".store/events")).unwrap().len()).unwrap();
        assert!(size >= SIZE);
    }
}
