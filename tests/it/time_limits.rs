//! A time limit is kept to milliseconds: no sleep of a call with a limit is longer than what is left of it. The
//! sleeps that a call asks the kernel for show that without a clock.

use std::path::PathBuf;
use std::time::Duration;

use nix::libc;
use record_store::{
    ChangesOptions, FileSystemOptions, FileSystemRecordStore, Key, LockOptions, OpenMode, ReadOptions,
    RecordChange, RecordStore, RecordStoreExt, RecordVersion, RemoveOptions, WaitOptions, WriteOptions,
};
use tempfile::tempdir;

use crate::support::children::{Child, Role, Stage};
use crate::support::trace::tamper::Call;
use crate::support::trace::{Traced, perform};
use crate::support::{as_named, latch_of, named, open};

pub(crate) const ROLES: &[Role] = &[("wait within a limit", wait_within_limit)];

/// Longer than a wait without reports of deaths, and much shorter than the time between two checks of the files.
const LIMIT: Duration = Duration::from_millis(20);

/// Shorter than the time between two checks of the files.
const LIFE: Duration = Duration::from_millis(200);

/// Calls that find the lock of `held` held, and `stuck` in a latch that another process is in. Each returns after
/// the limit, and says how long it waited.
type Wait = (&'static str, fn(&FileSystemRecordStore) -> Option<Duration>);

const EXPIRING: &str = "watch of a record that expires";
const CHANGES: &str = "changes";
const EXPIRING_CHANGES: &str = "changes of a record that expires";

const WAITS: [Wait; 9] = [
    ("acquire_lock", |store| {
        store.acquire_lock("held", LockOptions::new().acquire_timeout(LIMIT)).unwrap_err().waited()
    }),
    ("read", |store| {
        let options = ReadOptions::new().claim(named("reader")).timeout(LIMIT);
        store.read_with::<u8>("held", options).unwrap_err().waited()
    }),
    ("wait_for_lock", |store| {
        assert!(!store.wait_for_lock("held", LIMIT).unwrap());
        None
    }),
    ("watch", |store| {
        assert!(store.watch("held").unwrap().next(LIMIT).unwrap().is_none());
        None
    }),
    (CHANGES, |store| {
        assert!(store.changes(ChangesOptions::new()).unwrap().next(LIMIT).unwrap().is_none());
        None
    }),
    ("write", |store| {
        store.write_with("stuck", &1, WriteOptions::new().timeout(LIMIT)).unwrap_err().waited()
    }),
    ("remove", |store| store.remove_with("stuck", RemoveOptions::new().timeout(LIMIT)).unwrap_err().waited()),
    // It has no limit, but the record expires, which nobody tells the watch.
    (EXPIRING, |store| {
        store.write_with("expiring", &1, WriteOptions::new().time_to_live(LIFE)).unwrap();
        let key = Key::new("expiring").unwrap();
        let seen = store.version_raw(&key).unwrap();
        if !seen.is_absent() {
            let changed = store.wait_for_change_raw(&key, seen, WaitOptions::new()).unwrap();
            assert_eq!(changed, Some(RecordVersion::ABSENT));
        }
        None
    }),
    (EXPIRING_CHANGES, |store| {
        store.remove("expiring").unwrap();
        let mut changes = store.changes(ChangesOptions::new()).unwrap();
        store.write_with("expiring", &1, WriteOptions::new().time_to_live(LIFE)).unwrap();
        while changes.next(WaitOptions::new()).unwrap().unwrap().change != RecordChange::Removed {}
        None
    }),
];

/// Those that also work in a store that is opened read-only.
const READING: std::ops::RangeInclusive<usize> = 1..=4;

fn wait_within_limit(stage: &Stage) {
    let (dir, reads_only, number): (PathBuf, bool, usize) = stage.argument();
    let store = open(&dir);
    let reader = FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&dir).unwrap();
    let store = if reads_only { reader } else { store };
    let waited = perform(stage, "", || WAITS[number].1(&store));
    assert!(waited.is_none_or(|waited| waited >= LIMIT), "{waited:?}");
    stage.send("done");
}

/// The time that a call of the kernel sleeps at most. `None`: it does not sleep.
fn sleep_of(traced: &Traced, call: Call) -> Option<Duration> {
    let time = match call.number {
        // A wait for another thread of the process, for example for one that is starting, is a private one.
        libc::SYS_futex if call.arguments[1] == u64::from(libc::FUTEX_WAIT.unsigned_abs()) => {
            call.arguments[3]
        }
        libc::SYS_nanosleep => call.arguments[0],
        libc::SYS_clock_nanosleep => {
            assert_eq!(call.arguments[1], 0, "not a relative time");
            call.arguments[2]
        }
        libc::SYS_ppoll => call.arguments[2],
        // Nothing ends this wait.
        libc::SYS_flock if call.arguments[1] & u64::from(libc::LOCK_NB.unsigned_abs()) == 0 => {
            let is_unlock = call.arguments[1] == u64::from(libc::LOCK_UN.unsigned_abs());
            return (!is_unlock).then_some(Duration::MAX);
        }
        _ => return None,
    };
    if time == 0 {
        return Some(Duration::MAX);
    }
    let mut words = [0; 16];
    traced.read(time, &mut words);
    let (seconds, nanos) = words.split_at(8);
    let word = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
    Some(Duration::new(word(seconds), u32::try_from(word(nanos)).unwrap()))
}

#[test]
fn no_sleep_of_a_call_with_a_limit_is_longer_than_the_limit() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let _held = store.lock("held", as_named("holder")).unwrap();
    store.lock("stuck", LockOptions::new()).unwrap().release().unwrap();
    let latch = std::fs::File::open(dir.path().join(latch_of("stuck"))).unwrap();
    latch.lock().unwrap();
    for reads_only in [false, true] {
        for (number, (operation, _)) in WAITS.iter().enumerate() {
            if reads_only && !READING.contains(&number) {
                continue;
            }
            // There it sleeps as a thread does that waits for another one.
            if cfg!(record_store_elsewhere) && [CHANGES, EXPIRING_CHANGES].contains(operation) {
                continue;
            }
            // On a busy machine the time may be over before the first sleep.
            let mut sleeps = Vec::new();
            for _ in 0..20 {
                let child = Child::start("wait within a limit", &(dir.path(), reads_only, number));
                let Some((mut traced, _)) = Traced::attach(child) else { return };
                while let Some(call) = traced.next_call() {
                    sleeps.extend(sleep_of(&traced, call));
                    traced.execute();
                }
                traced.release().expect("done");
                if !sleeps.is_empty() {
                    break;
                }
            }
            // A latch is waited for longer, because it is held only for microseconds: but with short pauses.
            let limit = if [EXPIRING, EXPIRING_CHANGES].contains(operation) { LIFE } else { LIMIT };
            let is_kept = !sleeps.is_empty() && sleeps.iter().all(|sleep| *sleep <= limit);
            assert!(is_kept, "{operation}, {reads_only}: {sleeps:?}");
        }
    }
}
