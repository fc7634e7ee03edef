//! The child's side: what it makes ready, the operation that is interfered with, and what it tells
//! of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use record_store::{
    Durability, Error, FileSystemOptions, FileSystemRecordStore, LockOptions, OpenMode, RecordStoreExt,
    Result,
};
use serde::{Deserialize, Serialize};

use crate::support::children::Stage;
use crate::support::trace::perform;
use crate::support::{as_named, millis, named, open_with, stand_in_line};

pub(super) const OLD: &str = "old";
pub(super) const NEW: &str = "new";

/// The child has the lock of this key all the time.
pub(super) const KEPT: &str = "kept";

/// The lease before a lock is renewed, and the one after.
pub(super) const SHORT: Duration = Duration::from_mins(20);
pub(super) const LONG: Duration = Duration::from_hours(2);

/// How long one waits for a lock that is not going to be free.
const IN_VAIN: Duration = Duration::from_millis(8);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Operation {
    OpenNew,
    OpenExisting,
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
    /// The parent has the lock meanwhile.
    pub(super) fn needs_held(self) -> bool {
        use Operation::{AcquireHeld, LockInfo, Locks, ReadHeld, WaitHeld, WaitHeldFirst, WriteHeld};
        matches!(self, WriteHeld | ReadHeld | AcquireHeld | LockInfo | WaitHeld | WaitHeldFirst | Locks)
    }

    /// Does not do it even where nothing fails.
    pub(super) fn is_refused(self) -> bool {
        matches!(self, Operation::AcquireHeld | Operation::ReadHeld | Operation::WriteHeld)
    }

    pub(super) fn is_open(self) -> bool {
        matches!(self, Operation::OpenNew | Operation::OpenExisting)
    }

    /// Sleeps for a time, so that its calls are never quite the same.
    pub(super) fn may_wait(self) -> bool {
        self.needs_held() && !matches!(self, Operation::LockInfo | Operation::Locks | Operation::WriteHeld)
    }

    /// Does something that a process does only once, so every try needs a process of its own.
    pub(super) fn needs_fresh_process(self) -> bool {
        matches!(self, Operation::AcquireFirst | Operation::WaitHeldFirst)
    }

    /// Does something whose success means that it survives power loss.
    pub(super) fn is_durable(self) -> bool {
        use Operation::{OpenNew, Remove, RemoveAbsent, WriteByToken, WriteNew, WriteOver};
        matches!(self, OpenNew | WriteNew | WriteOver | WriteByToken | Remove | RemoveAbsent)
    }

    pub(super) fn key(self) -> String {
        match self {
            // In JSON this is more than one write may create.
            Operation::AcquireLongKey => "\0".repeat(3_000),
            _ => "k".into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct Case {
    /// The store; in it, or beside it for a new store, the operation is done.
    pub(super) dir: PathBuf,
    pub(super) operation: Operation,
}

/// What the operation told, and what it left open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Outcome {
    pub(super) result: std::result::Result<String, Failure>,
    /// Descriptors that it opened and did not close, by what they are open on.
    pub(super) leaked: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    /// In full, and the kind of what the system said, if that is what failed.
    Error {
        text: String,
        kind: Option<String>,
    },
    Panic,
}

/// A child does one case after another, and after each an ordinary piece of work.
pub(super) fn operate(stage: &Stage) {
    let dir: PathBuf = stage.argument();
    let full = open_with(&dir, Durability::Full);
    let relaxed = open_with(&dir, Durability::Relaxed);
    loop {
        let case: Case = serde_json::from_str(&stage.hear()).unwrap();
        let (operation, key) = (case.operation, case.operation.key());
        make_ready(&relaxed, &case, &key);
        let store = if operation == Operation::WriteRelaxed { &relaxed } else { &full };
        let before = descriptors();
        let done = perform(stage, "", || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(store, &case, &key)))
        });
        let result = match done {
            Ok(Ok(told)) => Ok(told),
            Ok(Err(error)) => Err(Failure::Error { text: with_causes(&error), kind: kind_of(&error) }),
            Err(_) => Err(Failure::Panic),
        };
        let outcome = Outcome { result, leaked: opened_since(&before) };
        stage.tell(&serde_json::to_string(&outcome).unwrap());
        stage.expect("work");
        let done = match operation {
            Operation::OpenNew => {
                FileSystemRecordStore::open(case.dir).and_then(|store| work(&store, "first", "child"))
            }
            _ => work(&full, &key, "child"),
        };
        stage.tell(&done.map_or_else(|error| with_causes(&error), |()| "done".into()));
    }
}

/// Locks, writes, reads and releases. Whatever failed before, this works.
pub(super) fn work(store: &FileSystemRecordStore, key: &str, value: &str) -> Result<()> {
    let guard = store.lock(key, LockOptions::new().acquire_timeout(Duration::from_secs(5)))?;
    guard.write(value)?;
    assert_eq!(guard.read::<String>()?.unwrap().result, value);
    guard.release()
}

fn make_ready(store: &FileSystemRecordStore, case: &Case, key: &str) {
    use Operation as O;
    let token_of = |options: LockOptions| store.acquire_lock(key, &options).unwrap();
    if case.operation != O::AcquireFirst {
        store.acquire_lock(KEPT, &LockOptions::new()).unwrap();
    }
    match case.operation {
        O::WriteOver | O::WriteRelaxed | O::WriteHeld | O::Read | O::ReadHeld | O::Remove | O::Exists => {
            // The parent may have the lock already: that is not what is tried here.
            std::fs::write(record_path(&case.dir, key), format!(r#"{{"key":"{key}","result":"{OLD}"}}"#))
                .unwrap();
        }
        O::WriteByToken | O::AcquireAgain | O::Renew | O::Release | O::ReleaseAwaited | O::BreakLock => {
            token_of(as_named("job").hold_timeout(SHORT));
        }
        O::TakeExpired | O::Sweep => {
            token_of(as_named("gone").hold_timeout(millis(1)));
            assert!(store.wait_for_lock(key, None).unwrap());
        }
        O::TakeAbandoned => {
            token_of(LockOptions::new());
            abandon(&case.dir, key);
        }
        O::AcquireAfresh => clear_owner(&case.dir),
        // As it was left for one who waited.
        O::AcquireBlank => std::fs::write(case.dir.join(format!("{key}.lock")), [0; 1_000]).unwrap(),
        _ => {}
    }
    if case.operation == O::ReleaseAwaited {
        stand_in_line(&case.dir, key);
    }
    if matches!(case.operation, O::Sweep | O::OpenExisting) {
        // What a dead process leaves behind.
        let private = case.dir.join(".store");
        std::fs::write(private.join("owners/1-dead"), "").unwrap();
        std::fs::write(private.join("tmp/1-dead.half"), "half").unwrap();
    }
}

fn record_path(dir: &Path, key: &str) -> PathBuf {
    dir.join(format!("{key}.json"))
}

/// Makes the key's lock that of a process that is gone.
fn abandon(dir: &Path, key: &str) {
    let path = dir.join(format!("{key}.lock"));
    let mut lock: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    lock["owner"] = "1-gone".into();
    std::fs::write(path, lock.to_string()).unwrap();
}

/// Removes this process's owner file, so that it has to make another.
fn clear_owner(dir: &Path) {
    let own = format!("{}-", std::process::id());
    let owners = dir.join(".store/owners");
    for name in crate::support::names_in(&owners).iter().filter(|name| name.starts_with(&own)) {
        std::fs::remove_file(owners.join(name)).unwrap();
    }
}

/// The operation itself. What it tells is what is right to tell.
fn run(store: &FileSystemRecordStore, case: &Case, key: &str) -> Result<String> {
    use Operation as O;
    let value = |record: record_store::TransactionRecord<String>| record.result;
    let job = || named("job");
    let free = LockOptions::new();
    match case.operation {
        O::OpenNew | O::OpenExisting => FileSystemRecordStore::open(&case.dir).map(|_| String::new()),
        O::OpenToRead => {
            FileSystemOptions::new().mode(OpenMode::ReadOnly).open(&case.dir).map(|_| String::new())
        }
        O::WriteNew | O::WriteOver | O::WriteRelaxed | O::WriteHeld => {
            store.write(key, NEW).map(|()| String::new())
        }
        O::WriteByToken => {
            let token = store.lock_info(key)?.map(|info| info.token());
            store.write_as(key, NEW, token.unwrap()).map(|()| String::new())
        }
        O::Read | O::ReadAbsent | O::ReadHeld => {
            Ok(store.try_read(key, IN_VAIN)?.map(value).unwrap_or_default())
        }
        O::Remove | O::RemoveAbsent => store.remove(key).map(|removed| removed.to_string()),
        O::Exists => store.exists(key).map(|exists| exists.to_string()),
        O::Acquire | O::AcquireFirst | O::AcquireAfresh | O::AcquireBlank | O::AcquireLongKey => {
            take(store, key, &free.hold_timeout(LONG))
        }
        O::TakeExpired | O::TakeAbandoned => take(store, key, &free.hold_timeout(LONG)),
        O::AcquireAgain => take(store, key, &free.holder(job()).hold_timeout(LONG)),
        O::AcquireHeld => take(store, key, &free.acquire_timeout(IN_VAIN)),
        O::Renew => store.renew(key, job(), Some(LONG)).map(|()| String::new()),
        O::Release | O::ReleaseAwaited => store.release_lock(key, job()).map(|()| String::new()),
        O::BreakLock => store.break_lock(key).map(|broken| broken.to_string()),
        O::LockInfo => Ok(store.lock_info(key)?.is_some().to_string()),
        O::WaitFree | O::WaitHeld | O::WaitHeldFirst => {
            store.wait_for_lock(key, Some(IN_VAIN)).map(|free| free.to_string())
        }
        O::Keys => Ok(store.keys()?.collect::<Result<Vec<_>>>()?.len().to_string()),
        O::Locks => Ok(store.locks()?.collect::<Result<Vec<_>>>()?.len().to_string()),
        O::Sweep => store.sweep().map(|_| String::new()),
    }
}

fn take(store: &FileSystemRecordStore, key: &str, options: &LockOptions) -> Result<String> {
    store.acquire_lock(key, options).map(|token| token.to_string())
}

fn with_causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn kind_of(error: &Error) -> Option<String> {
    if let Error::Io { source, .. } = error { Some(format!("{:?}", source.kind())) } else { None }
}

/// What this process has open.
fn descriptors() -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        // The one by which they are listed is gone when it is looked at.
        std::fs::read_link(entry.unwrap().path()).ok()
    });
    open.map(|path| path.to_string_lossy().into_owned()).filter(|path| !path.starts_with("/proc/")).collect()
}

/// What stays open that was not. The thread that hears of deaths may have a file open for a moment.
fn opened_since(before: &[String]) -> Vec<String> {
    let mut new = Vec::new();
    for _ in 0..20 {
        new = descriptors();
        for known in before {
            if let Some(at) = new.iter().position(|path| path == known) {
                new.swap_remove(at);
            }
        }
        if new.is_empty() {
            break;
        }
        if new.iter().all(|path| stays_by_design(path)) {
            break;
        }
        std::thread::sleep(millis(1));
    }
    new
}

/// One owner file a store and one inotify instance stay open as long as the process lives.
pub(super) fn stays_by_design(path: &str) -> bool {
    path.contains("/.store/owners/") || path == "anon_inode:inotify"
}
