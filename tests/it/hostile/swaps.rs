//! Records, locks and latches are replaced by foreign files while threads and processes work with them.
//! No file outside the store is read or written, and no call hangs or panics.
#![allow(clippy::disallowed_methods, reason = "these tests rename files in violation of the protocol")]

use std::fs::{File, FileTimes};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use record_store::{FileSystemRecordStore, LockOptions, ReadOptions, RecordStoreExt, Result};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use tempfile::TempDir;

use super::dice;
use crate::support::children::{Child, Stage, until_asleep};
use crate::support::dice::Dice;
use crate::support::{PATIENCE, as_named, in_memory, latch_of, millis, open, storm};

const KEYS: usize = 3;

/// Calls per thread and process.
const CALLS: u64 = 6_000;

/// The time limit of any call. The timeouts that the calls are given are far shorter.
const BOUND: Duration = Duration::from_secs(20);

/// The content of every file outside the store. No reader may ever see it.
const CANARY: &str = "canary";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Link,
    DanglingLink,
    Fifo,
    Directory,
    HardLink,
}

struct Setup {
    root: TempDir,
    /// Path, content, access time and modification time of the files that must not change.
    canaries: Vec<(PathBuf, String, SystemTime, SystemTime)>,
}

impl Setup {
    /// Outside the store there are a valid record and a valid lock for each key, which would be believed
    /// if they were read, and an invalid file as the target of hard links.
    fn new() -> Self {
        let root = in_memory();
        for dir in ["outside", "pool"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        drop(open(&root.path().join("store")));
        let decoy = open(&root.path().join("decoy"));
        let mut setup = Self { root, canaries: Vec::new() };
        for number in 0..KEYS {
            let key = key(number);
            decoy.write(&key, CANARY).unwrap();
            decoy.acquire_lock(&key, as_named(CANARY)).unwrap();
            for name in [format!("{key}.json"), format!("{key}.lock")] {
                let text = std::fs::read_to_string(setup.root.path().join("decoy").join(&name)).unwrap();
                setup.add(&name, text);
            }
        }
        setup.add("latch", "00000000000000000001\n".into());
        setup.add("hard", format!("{CANARY}, and no record"));
        setup
    }

    fn add(&mut self, name: &str, text: String) {
        let path = self.outside(name);
        std::fs::write(&path, &text).unwrap();
        // An old access time, so that the next read changes it.
        let (read, written) =
            (SystemTime::UNIX_EPOCH + millis(1_000), SystemTime::UNIX_EPOCH + millis(2_000));
        let times = FileTimes::new().set_accessed(read).set_modified(written);
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        self.canaries.push((path, text, read, written));
    }

    fn outside(&self, name: &str) -> PathBuf {
        self.root.path().join("outside").join(name)
    }

    fn store(&self) -> PathBuf {
        self.root.path().join("store")
    }

    fn check_canaries(&self) {
        for (path, text, read, written) in &self.canaries {
            let meta = std::fs::metadata(path).unwrap();
            assert_eq!(meta.modified().unwrap(), *written, "{} was written", path.display());
            // A hard link is the file itself, so reading it is allowed.
            if !path.ends_with("hard") {
                assert_eq!(meta.accessed().unwrap(), *read, "{} was read", path.display());
            }
            assert_eq!(std::fs::read_to_string(path).unwrap(), *text, "{}", path.display());
        }
        let names = crate::support::names_in(&self.root.path().join("outside"));
        assert_eq!(names.len(), self.canaries.len(), "something was created outside: {names:?}");
    }

    /// Creates a file of this kind at `at`, as a replacement for `name`.
    fn make(&self, kind: Kind, name: &str, at: &Path) {
        let target = if name.contains("latches") { "latch" } else { name };
        match kind {
            Kind::Link => symlink(self.outside(target), at).unwrap(),
            Kind::DanglingLink => symlink(self.outside("nothing"), at).unwrap(),
            Kind::Fifo => {
                mknodat(CWD, at, FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
            }
            Kind::Directory => std::fs::create_dir(at).unwrap(),
            Kind::HardLink => std::fs::hard_link(self.outside("hard"), at).unwrap(),
        }
    }

    /// Replaces a file of the store by a foreign one for a moment. Afterwards the file is restored,
    /// or nothing is left in its place.
    fn swap(&self, dice: &mut Dice, number: usize) {
        let key = key(dice.index(KEYS));
        let kinds = [Kind::Link, Kind::DanglingLink, Kind::Fifo, Kind::Directory, Kind::HardLink];
        let name = match dice.below(5) {
            0 | 1 => format!("{key}.json"),
            2 | 3 => format!("{key}.lock"),
            _ => latch_of(&key),
        };
        let (target, spare) = (self.store().join(&name), self.root.path().join(format!("pool/{number}")));
        self.make(kinds[dice.index(kinds.len())], &name, &spare);
        let was_there = exchange(&spare, &target);
        if dice.once_in(2) {
            std::thread::sleep(dice.time(millis(3)));
        }
        if was_there && dice.once_in(2) {
            exchange(&spare, &target);
        } else {
            let _ = std::fs::rename(&target, self.root.path().join(format!("pool/{number}-old")));
        }
    }
}

/// Exchanges two files. If the second one is missing, the first one moves there and the result is `false`.
fn exchange(one: &Path, other: &Path) -> bool {
    let exchanged = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok();
    if !exchanged {
        let _ = renameat_with(CWD, one, CWD, other, RenameFlags::NOREPLACE);
    }
    exchanged
}

fn key(number: usize) -> String {
    format!("key-{number}")
}

#[test]
fn swapped_files_lead_no_call_outside_the_store() {
    let setup = Setup::new();
    let mut dice = dice("swapped_files_lead_no_call_outside_the_store");
    let mut children: Vec<_> = (0..2_u64)
        .map(|number| Child::start("swapped", &(setup.store(), dice.below(u64::MAX) ^ number)))
        .collect();
    let (working, calls) = (AtomicUsize::new(3), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in [(); 3].map(|()| dice.below(u64::MAX)) {
            let (working, calls, dir) = (&working, &calls, setup.store());
            scope.spawn(move || {
                // Counted down after a panic too; otherwise the main thread would wait forever.
                let _count_down = CountDown(working);
                let count = || {
                    calls.fetch_add(1, SeqCst);
                };
                work(&dir, Dice::new(seed), count);
            });
        }
        let (mut swaps, mut last) = (0, (Instant::now(), 0));
        while working.load(SeqCst) > 0 || swaps < 500 {
            setup.swap(&mut dice, swaps);
            swaps += 1;
            if last.1 != calls.load(SeqCst) {
                last = (Instant::now(), calls.load(SeqCst));
            }
            // All threads hang, and a hung thread cannot be ended in any other way.
            if working.load(SeqCst) > 0 && last.0.elapsed() > BOUND {
                eprintln!("a call does not return");
                std::process::abort();
            }
        }
        eprintln!("{swaps} swaps");
    });
    for child in &mut children {
        let summary = child.receive();
        eprintln!("{summary}");
    }
    setup.check_canaries();
}

struct CountDown<'a>(&'a AtomicUsize);

impl Drop for CountDown<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

pub(super) fn work_on(stage: &Stage) {
    let (dir, seed): (PathBuf, u64) = stage.argument();
    stage.send(&work(&dir, Dice::new(seed), || ()));
}

/// Makes random calls, as users do, and calls `after_each` after each one. Returns how many succeeded.
fn work(dir: &Path, mut dice: Dice, after_each: impl Fn()) -> String {
    let store = open(dir);
    let (mut done, mut refused) = (0, 0);
    for number in 0..storm(CALLS) {
        let key = key(dice.index(KEYS));
        let start = Instant::now();
        let which = dice.index(12);
        match call(&store, &key, number, which) {
            Ok(()) => done += 1,
            Err(error) => {
                refused += 1;
                let text = format!("{error}: {error:?}");
                assert!(!text.contains(CANARY), "{text}");
            }
        }
        after_each();
        assert!(start.elapsed() < BOUND, "call {which} took {:?}", start.elapsed());
    }
    assert!(done > 0, "no call succeeded");
    format!("{done} calls succeeded, {refused} were refused")
}

fn call(store: &FileSystemRecordStore, key: &str, number: u64, which: usize) -> Result<()> {
    let value = format!("{key}:{number}");
    let check = |record: Option<record_store::TransactionRecord<String>>| {
        if let Some(record) = record {
            assert!(record.result.starts_with(&format!("{key}:")), "{key}: {record:?}");
        }
    };
    let options = LockOptions::new().acquire_timeout(millis(20)).hold_timeout(millis(200));
    match which {
        0 | 1 => store.read_with(key, ReadOptions::new().timeout(millis(20))).map(check),
        2 | 3 => store.write(key, &value),
        4..=6 => {
            let guard = store.lock(key, options)?;
            guard.write(&value)?;
            check(guard.read()?);
            guard.renew()?;
            guard.release()
        }
        7 => store.remove(key).map(drop),
        8 => store.exists(key).map(drop),
        9 => store.wait_for_lock(key, millis(20)).map(drop),
        10 => store.lock_info(key).map(|info| {
            assert!(info.is_none_or(|info| info.holder().name() != CANARY));
        }),
        _ => {
            for key in store.keys()?.flatten() {
                assert!(key.as_str().starts_with("key-"), "{key:?}");
            }
            assert!(store.locks()?.flatten().all(|lock| lock.holder().name() != CANARY));
            store.sweep().map(drop)
        }
    }
}

/// A write in place changes the file under each of its names, for instance in a backup made of hard links
/// or in a foreign file.
#[test]
fn a_lock_file_with_another_name_is_not_written() {
    let root = in_memory();
    let store = open(&root.path().join("store"));
    let backup = root.path().join("backup");
    let guard = store.lock("key", as_named("first")).unwrap();
    std::fs::hard_link(root.path().join("store/key.lock"), &backup).unwrap();
    let before = std::fs::read_to_string(&backup).unwrap();
    std::thread::scope(|scope| {
        let (sender, id) = std::sync::mpsc::channel();
        let store = &store;
        scope.spawn(move || {
            sender.send(rustix::thread::gettid().as_raw_pid()).unwrap();
            let options = as_named("second").acquire_timeout(PATIENCE);
            store.lock("key", options).unwrap().release().unwrap();
        });
        until_asleep(std::process::id(), id.recv().unwrap());
        guard.release().unwrap();
    });
    assert_eq!(std::fs::read_to_string(&backup).unwrap(), before);
}

/// Without this, the comparison of access times would prove nothing.
#[test]
fn a_read_of_a_canary_is_detected() {
    let setup = Setup::new();
    let path = setup.outside("latch");
    std::fs::read(&path).unwrap();
    let read = std::fs::metadata(&path).unwrap().atime();
    if read == 1 {
        eprintln!("SKIPPED: this file system does not record access times");
        return;
    }
    assert!(read > 2);
}
