//! The child's side: it prepares the state, runs the operation that receives the fault, and reports
//! the outcome.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{
    Durability, Error, ErrorKind, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode,
    ReadOptions, RecordStoreExt, Result, WaitOptions, WriteOptions,
};
use serde::{Deserialize, Serialize};

use crate::support::children::Stage;
use crate::support::trace::perform;
use crate::support::{as_named, enqueue_dead_waiter, millis, named, open_with};

pub(super) const OLD: &str = "old";
pub(super) const NEW: &str = "new";

/// The format files of the earlier version and of this one.
pub(super) const VERSION_1: &str = "{\"version\":1}\n";
pub(super) const VERSION_2: &str = "{\"version\":2}\n";

/// The child holds the lock of this key all the time.
pub(super) const KEPT: &str = "kept";

/// The lease before a renewal, and the lease after it.
const SHORT_LEASE: Duration = Duration::from_mins(20);
pub(super) const LONG_LEASE: Duration = Duration::from_hours(2);

/// The timeout of a wait for a lock that does not become free.
const WAIT_TIMEOUT: Duration = Duration::from_millis(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Operation {
    OpenNew,
    OpenExisting,
    /// Upgrades a store of format version 1.
    OpenVersion1,
    OpenToRead,
    WriteNew,
    WriteOver,
    WriteRelaxed,
    WriteByToken,
    WriteHeld,
    Read,
    ReadAbsent,
    ReadHeld,
    Remove,
    RemoveAbsent,
    Exists,
    Acquire,
    AcquireFirst,
    AcquireAfresh,
    AcquireBlank,
    AcquireLongKey,
    AcquireAgain,
    AcquireHeld,
    TakeExpired,
    TakeAbandoned,
    Renew,
    Release,
    ReleaseAwaited,
    /// Shares the lock with another holder, and leaves it to that one.
    Join,
    JoinNamed,
    LeaveNamed,
    BreakLock,
    LockInfo,
    WaitFree,
    WaitHeld,
    WaitHeldFirst,
    Keys,
    Locks,
    Sweep,
}

impl Operation {
    /// The parent holds the lock during the operation.
    pub(super) fn needs_held(self) -> bool {
        use Operation::{AcquireHeld, LockInfo, Locks, ReadHeld, WaitHeld, WaitHeldFirst, WriteHeld};
        matches!(self, WriteHeld | ReadHeld | AcquireHeld | LockInfo | WaitHeld | WaitHeldFirst | Locks)
    }

    /// The operation fails even without a fault.
    pub(super) fn is_refused(self) -> bool {
        matches!(self, Operation::AcquireHeld | Operation::ReadHeld | Operation::WriteHeld)
    }

    pub(super) fn is_open(self) -> bool {
        matches!(self, Operation::OpenNew | Operation::OpenExisting | Operation::OpenVersion1)
    }

    /// The operation sleeps, so its sequence of system calls varies.
    pub(super) fn may_wait(self) -> bool {
        self.needs_held() && !matches!(self, Operation::LockInfo | Operation::Locks | Operation::WriteHeld)
    }

    /// The operation includes work that a process does only once, so each run needs a new process.
    pub(super) fn needs_fresh_process(self) -> bool {
        matches!(self, Operation::AcquireFirst | Operation::WaitHeldFirst)
    }

    /// The operation makes a change that, on success, survives power loss.
    pub(super) fn is_durable(self) -> bool {
        use Operation::{OpenNew, OpenVersion1, Remove, RemoveAbsent, WriteByToken, WriteNew, WriteOver};
        matches!(self, OpenNew | OpenVersion1 | WriteNew | WriteOver | WriteByToken | Remove | RemoveAbsent)
    }

    pub(super) fn key(self) -> String {
        match self {
            // As JSON, this is too long for a lock file that is created by one write.
            Operation::AcquireLongKey => "\0".repeat(3_000),
            _ => "k".into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Case {
    /// The directory of the store that the operation uses or creates.
    pub(super) dir: PathBuf,
    pub(super) operation: Operation,
}

/// The result of an operation, and what it left open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) result: std::result::Result<String, Failure>,
    /// Paths of the descriptors that it opened and did not close.
    pub(super) leaked: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    Error {
        /// The text with all causes.
        text: String,
        /// The kind of the I/O error, if it was one.
        kind: Option<String>,
        outcome_unknown: bool,
    },
    Panic,
}

/// Runs one case after another, and after each one an ordinary unit of work.
pub(super) fn operate(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let full = open_with(&dir, Durability::Full);
    let relaxed = open_with(&dir, Durability::Relaxed);
    loop {
        let case: Case = serde_json::from_str(&stage.receive()).unwrap();
        let (operation, key) = (case.operation, case.operation.key());
        prepare(&relaxed, &case, &key);
        let store = if operation == Operation::WriteRelaxed { &relaxed } else { &full };
        let before = descriptors();
        let done = perform(stage, "", || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(store, &case, &key)))
        });
        let result = match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(Failure::Error {
                text: with_causes(&error),
                kind: kind_of(&error),
                outcome_unknown: error.is_outcome_unknown(),
            }),
            Err(_) => Err(Failure::Panic),
        };
        let outcome = Outcome { result, leaked: opened_since(&before) };
        stage.send(&serde_json::to_string(&outcome).unwrap());
        stage.expect("work");
        let done = match operation {
            Operation::OpenNew | Operation::OpenVersion1 => {
                FileSystemRecordStore::open(case.dir).and_then(|store| work(&store, "first", "child"))
            }
            _ => work(&full, &key, "child"),
        };
        stage.send(&done.map_or_else(|error| with_causes(&error), |()| "done".into()));
    }
}

/// Locks, writes, reads and releases. This must work whatever failed before.
pub(super) fn work(store: &FileSystemRecordStore, key: &str, value: &str) -> Result<()> {
    let guard = store.lock(key, LockOptions::new().acquire_timeout(Duration::from_secs(5)))?;
    guard.write(value)?;
    assert_eq!(guard.read::<String>()?.unwrap().result, value);
    guard.release()
}

fn prepare(store: &FileSystemRecordStore, case: &Case, key: &str) {
    use Operation as O;
    let acquire = |options: LockOptions| store.acquire_lock(key, options).unwrap();
    if case.operation != O::AcquireFirst {
        store.acquire_lock(KEPT, LockOptions::new()).unwrap();
    }
    match case.operation {
        O::WriteOver | O::WriteRelaxed | O::WriteHeld | O::Read | O::ReadHeld | O::Remove | O::Exists => {
            // Not written through the store: the parent may already hold the lock.
            std::fs::write(record_path(&case.dir, key), format!(r#"{{"key":"{key}","result":"{OLD}"}}"#))
                .unwrap();
        }
        O::WriteByToken | O::AcquireAgain | O::Renew | O::Release | O::ReleaseAwaited | O::BreakLock => {
            acquire(as_named("job").hold_timeout(SHORT_LEASE));
        }
        O::Join | O::JoinNamed | O::LeaveNamed => {
            acquire(as_named("sharer").hold_timeout(SHORT_LEASE).shared());
            if case.operation == O::LeaveNamed {
                acquire(as_named("job").hold_timeout(SHORT_LEASE).shared());
            }
            if case.operation == O::Join {
                // Otherwise it syncs twice: what was there before, and its own change.
                assert!(store.checkpoint().unwrap());
            }
        }
        O::TakeExpired | O::Sweep => {
            acquire(as_named("gone").hold_timeout(millis(1)));
            assert!(store.wait_for_lock(key, WaitOptions::new()).unwrap());
        }
        O::TakeAbandoned => {
            acquire(LockOptions::new());
            make_abandoned(&case.dir, key);
        }
        O::AcquireAfresh => remove_owner_file(&case.dir),
        // A release leaves such a file for a waiter.
        O::AcquireBlank => std::fs::write(case.dir.join(format!("{key}.lock")), [0; 512]).unwrap(),
        _ => {}
    }
    if case.operation == O::ReleaseAwaited {
        enqueue_dead_waiter(&case.dir, key);
    }
    let private = case.dir.join(".store");
    if case.operation == O::OpenVersion1 {
        for part in ["latches", "owners", "tmp"] {
            std::fs::create_dir_all(private.join(part)).unwrap();
        }
        std::fs::write(private.join("format.json"), VERSION_1).unwrap();
        std::fs::write(private.join("owners/1-deaddeaddeaddead"), "").unwrap();
        std::fs::write(private.join("tmp/1-deaddeaddeaddead.0"), "half").unwrap();
    }
    if matches!(case.operation, O::Sweep | O::OpenExisting) {
        // Leftovers of a dead process.
        std::fs::write(private.join("owners/1-deaddeaddeaddead"), "").unwrap();
        std::fs::write(private.join("staged/1-deaddeaddeaddead.0"), "half").unwrap();
    }
}

fn record_path(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.json"))
}

/// Changes the owner of the key's lock to a process that has ended.
fn make_abandoned(dir: &Path, key: &str) {
    let path = dir.join(format!("{key}.lock"));
    let mut lock: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    lock["owner"] = "1-gone".into();
    std::fs::write(path, lock.to_string()).unwrap();
}

/// Removes this process's owner file, so that the process must create another one.
fn remove_owner_file(dir: &Path) {
    let own = format!("{}-", std::process::id());
    let owners = dir.join(".store/owners");
    for name in crate::support::names_in(&owners).iter().filter(|name| name.starts_with(&own)) {
        std::fs::remove_file(owners.join(name)).unwrap();
    }
}

/// Runs the operation itself. Returns its value as text.
fn run(store: &FileSystemRecordStore, case: &Case, key: &str) -> Result<String> {
    use Operation as O;
    let value = |record: record_store::TransactionRecord<String>| record.result;
    let job = || named("job");
    let free = LockOptions::new();
    match case.operation {
        O::OpenNew | O::OpenExisting | O::OpenVersion1 => {
            FileSystemRecordStore::open(&case.dir).map(|_| String::new())
        }
        O::OpenToRead => {
            FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&case.dir).map(|_| String::new())
        }
        O::WriteNew | O::WriteOver | O::WriteRelaxed | O::WriteHeld => {
            store.write(key, NEW).map(|()| String::new())
        }
        O::WriteByToken => {
            let token = store.lock_info(key)?.map(|info| info.token());
            store.write_with(key, NEW, WriteOptions::new().claim(token.unwrap())).map(|()| String::new())
        }
        O::Read | O::ReadAbsent | O::ReadHeld => {
            Ok(store.read_with(key, ReadOptions::new().timeout(WAIT_TIMEOUT))?.map(value).unwrap_or_default())
        }
        O::Remove | O::RemoveAbsent => store.remove(key).map(|removed| removed.to_string()),
        O::Exists => store.exists(key).map(|exists| exists.to_string()),
        O::Acquire | O::AcquireFirst | O::AcquireAfresh | O::AcquireBlank | O::AcquireLongKey => {
            acquire(store, key, free.hold_timeout(LONG_LEASE))
        }
        O::TakeExpired | O::TakeAbandoned => acquire(store, key, free.hold_timeout(LONG_LEASE)),
        O::AcquireAgain => acquire(store, key, free.holder(job()).hold_timeout(LONG_LEASE)),
        O::AcquireHeld => acquire(store, key, free.acquire_timeout(WAIT_TIMEOUT)),
        O::Renew => store.renew(key, job(), LONG_LEASE).map(|()| String::new()),
        O::Join => acquire(store, key, free.hold_timeout(LONG_LEASE).shared()),
        O::JoinNamed => acquire(store, key, free.holder(job()).hold_timeout(LONG_LEASE).shared()),
        O::Release | O::ReleaseAwaited | O::LeaveNamed => {
            store.release_lock(key, job()).map(|()| String::new())
        }
        O::BreakLock => store.break_lock(key).map(|broken| broken.to_string()),
        O::LockInfo => Ok(store.lock_info(key)?.is_some().to_string()),
        O::WaitFree | O::WaitHeld | O::WaitHeldFirst => {
            store.wait_for_lock(key, WAIT_TIMEOUT).map(|free| free.to_string())
        }
        O::Keys => Ok(store.keys()?.collect::<Result<Vec<_>>>()?.len().to_string()),
        O::Locks => Ok(store.locks()?.collect::<Result<Vec<_>>>()?.len().to_string()),
        O::Sweep => store.sweep().map(|_| String::new()),
    }
}

fn acquire(store: &FileSystemRecordStore, key: &str, options: LockOptions) -> Result<String> {
    store.acquire_lock(key, options).map(|token| token.to_string())
}

fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn kind_of(error: &Error) -> Option<String> {
    if error.kind() != ErrorKind::Io {
        return None;
    }
    Some(format!("{:?}", error.io_kind().expect("the cause of an I/O error")))
}

/// The paths that this process has open.
fn descriptors() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        // The descriptor that was used for the listing is closed by now.
        std::fs::read_link(entry.unwrap().path()).ok()
    });
    open.map(|path| path.to_string_lossy().into_owned()).filter(|path| !path.starts_with("/proc/")).collect()
}

/// The paths that are open now and were not before. The thread that watches for the death of owners may
/// have a file open for a moment, and so may the one that empties the log. So this retries.
fn opened_since(before: &[String]) -> Vec<String> {
    let mut new = Vec::new();
    for _ in 0..1_000 {
        new = descriptors();
        for known in before {
            if let Some(at) = new.iter().position(|path| path == known) {
                new.swap_remove(at);
            }
        }
        if new.is_empty() {
            break;
        }
        let of_log = new.iter().filter(|path| path.contains("/.store/log/")).count();
        if of_log <= 1 && new.iter().all(|path| stays_by_design(path)) {
            break;
        }
        std::thread::sleep(millis(1));
    }
    new
}

/// One owner file per store and one inotify instance stay open for the life of the process, and a segment of the log for
/// that of a handle whose changes are relaxed.
pub(super) fn stays_by_design(path: &str) -> bool {
    let is_segment = path.contains("/.store/log/") && path.ends_with(|end: char| end.is_ascii_digit());
    is_segment || path.contains("/.store/owners/") || path == "anon_inode:inotify"
}
