//! The table of the wait queue, which every process of a store maps. It only orders and wakes waiters. No
//! content of the table makes a call hang or gives a lock to two holders.

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

/// The table has 256 counters and 256 slots of 64 bytes each, then 256 bits that mark the slots in use.
const SLOTS: usize = 16 * 1024;
const IN_USE: usize = 32 * 1024;
const SIZE: usize = IN_USE + 64;

/// The state of a slot whose waiter has been notified.
const NOTIFIED: u32 = 2;

const KEY: &str = "key";

/// Long enough to pass over several waiters that are notified and do not respond.
const GENEROUS_TIMEOUT: Duration = Duration::from_secs(5);

fn open_table(dir: &Path) -> File {
    File::options().read(true).write(true).open(dir.join(".store/events")).unwrap()
}

/// A slot of the wait queue, with arbitrary content.
#[derive(Clone, Debug)]
struct Slot {
    index: usize,
    state: u32,
    key: (u32, u64),
    ticket: u64,
    notified_at: u64,
    owner: Vec<u8>,
}

/// `own` is the name of the owner file of a live process.
fn slots(own: String) -> impl Strategy<Value = Vec<Slot>> {
    let own = own.into_bytes();
    let owner = prop_oneof![
        3 => Just(own),
        1 => Just(b"1-gone".to_vec()),
        1 => Just(b"../../etc/passwd".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..32),
    ];
    let key = prop_oneof![5 => Just(hashes_of(KEY)), 1 => any::<(u32, u64)>()];
    let time = prop_oneof![Just(0), Just(u64::MAX), Just(1_u64 << 40), any::<u64>()];
    // Low indexes are more likely, so that real waiters get slots behind these.
    let index = prop_oneof![0..4_usize, 0..256_usize];
    let ticket = prop_oneof![2 => Just(0), 1 => any::<u64>()];
    let slot = (index, 0..6_u32, key, ticket, time, owner).prop_map(
        |(index, state, key, ticket, notified_at, owner)| Slot {
            index,
            state,
            key,
            ticket,
            notified_at,
            owner,
        },
    );
    proptest::collection::vec(slot, 0..5)
}

impl Slot {
    fn write_to(&self, table: &File) {
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&self.state.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.key.0.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.key.1.to_ne_bytes());
        bytes[16..24].copy_from_slice(&self.ticket.to_ne_bytes());
        bytes[24..32].copy_from_slice(&self.notified_at.to_ne_bytes());
        bytes[32..32 + self.owner.len()].copy_from_slice(&self.owner);
        table.write_all_at(&bytes, (SLOTS + 64 * self.index) as u64).unwrap();
        let (mut in_use, word) = ([0; 8], (IN_USE + self.index / 64 * 8) as u64);
        table.read_exact_at(&mut in_use, word).unwrap();
        let in_use = u64::from_ne_bytes(in_use) | 1 << (self.index % 64);
        table.write_all_at(&in_use.to_ne_bytes(), word).unwrap();
    }
}

/// A slot without a real waiter delays other waiters, but not forever.
#[test]
fn arbitrary_slots_delay_waiters_but_not_forever() {
    let dir = in_memory();
    let store = open(dir.path());
    store.write(KEY, &1).unwrap();
    let own = names_in(&dir.path().join(".store/owners")).pop().unwrap();
    let table = open_table(dir.path());
    // Each failing case takes long, so shrinking is limited.
    TestRunner::new(ProptestConfig { max_shrink_iters: 8, ..cases(60) })
        .run(&slots(own), |slots| {
            table.write_all_at(&vec![0; SIZE], 0).unwrap();
            for slot in &slots {
                slot.write_to(&table);
            }
            let guard = store.lock(KEY, LockOptions::new().acquire_timeout(GENEROUS_TIMEOUT));
            let guard = guard.map_err(|error| TestCaseError::fail(error.to_string()))?;
            // Another holder waits until its timeout and leaves the queue.
            let other = as_named("other").acquire_timeout(millis(5));
            prop_assert!(store.acquire_lock(KEY, other).unwrap_err().is_timeout());
            guard.release().unwrap();
            prop_assert!(store.wait_for_lock(KEY, GENEROUS_TIMEOUT).unwrap());
            Ok(())
        })
        .unwrap();
}

/// The time of the notification is in the future: it comes from the clock of another time namespace, or
/// from no clock at all.
#[test]
fn a_slot_notified_in_the_future_is_not_waited_for_forever() {
    let dir = in_memory();
    let store = open(dir.path());
    store.write(KEY, &1).unwrap();
    let owner = names_in(&dir.path().join(".store/owners")).pop().unwrap().into_bytes();
    let slot =
        Slot { index: 0, state: NOTIFIED, key: hashes_of(KEY), ticket: 0, notified_at: u64::MAX, owner };
    slot.write_to(&open_table(dir.path()));
    let guard = store.lock(KEY, LockOptions::new().acquire_timeout(GENEROUS_TIMEOUT)).unwrap();
    guard.release().unwrap();
}

/// The table is filled with changing random bytes while threads wait for one lock.
#[test]
fn a_table_of_noise_admits_one_holder_at_a_time_and_blocks_nobody() {
    let dir = in_memory();
    drop(open(dir.path()));
    let table = open_table(dir.path());
    let mut dice = dice("a_table_of_noise_admits_one_holder_at_a_time_and_blocks_nobody");
    let (inside, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let acquired = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let work = || {
            let store = open(dir.path());
            while !stop.load(SeqCst) {
                let start = Instant::now();
                match store.lock(KEY, LockOptions::new().acquire_timeout(millis(500))) {
                    Ok(guard) => {
                        assert_eq!(inside.fetch_add(1, SeqCst), 0, "two holders have the lock");
                        std::thread::yield_now();
                        inside.fetch_sub(1, SeqCst);
                        acquired.fetch_add(1, SeqCst);
                        guard.release().unwrap();
                    }
                    Err(error) => assert!(error.is_timeout(), "{error:?}"),
                }
                assert!(start.elapsed() < GENEROUS_TIMEOUT, "the call hangs");
            }
            // Random slots with no live owner must not block anyone.
            store.lock(KEY, LockOptions::new().acquire_timeout(GENEROUS_TIMEOUT)).unwrap().release().unwrap();
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
                // Valid states and keys, so that the slots are not ignored.
                for slot in noise[SLOTS..IN_USE].chunks_exact_mut(64) {
                    slot[..4].copy_from_slice(&u32::try_from(dice.below(5)).unwrap().to_ne_bytes());
                    slot[4..8].copy_from_slice(&hashes_of(KEY).0.to_ne_bytes());
                    slot[8..16].copy_from_slice(&hashes_of(KEY).1.to_ne_bytes());
                }
            }
            table.write_all_at(&noise, 0).unwrap();
            std::thread::sleep(millis(3));
        }
        stop.store(true, SeqCst);
    });
    assert!(acquired.load(SeqCst) > 0);
}

/// The table contains random bytes before any process maps it, and may be too short or too long.
#[test]
fn a_table_of_any_size_is_usable() {
    let mut dice = dice("a_table_of_any_size_is_usable");
    for size in [0, 1, 4_095, 4_096, SIZE - 1, SIZE, SIZE + 1, 2 * SIZE] {
        let dir = in_memory();
        drop(open(dir.path()));
        let noise: Vec<u8> = (0..size).map(|_| dice.below(256).to_le_bytes()[0]).collect();
        std::fs::write(dir.path().join(".store/events"), noise).unwrap();
        let store = open(dir.path());
        let guard = store.lock(KEY, LockOptions::new().acquire_timeout(GENEROUS_TIMEOUT)).unwrap();
        let other = as_named("other").acquire_timeout(millis(5));
        assert!(store.acquire_lock(KEY, other).unwrap_err().is_timeout());
        guard.release().unwrap();
        let size =
            usize::try_from(std::fs::metadata(dir.path().join(".store/events")).unwrap().len()).unwrap();
        assert!(size >= SIZE);
    }
}
