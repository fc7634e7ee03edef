//! The rules of transactions: states, hooks, children and isolation levels.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use record_store::{
    CommitMode, Error, ErrorKind, IsolationLevel, Json, Key, LockOptions, MemoryRecordStore, RawRecord,
    ReadOptions, RecordStore, RecordStoreExt, Result, Transaction, TransactionState, WaitOptions,
    WriteOptions,
};

use crate::support::children::until_asleep;
use crate::support::{as_named, millis, open, tempdir};

/// The hooks that ran, in order.
#[derive(Clone, Default)]
struct HookLog(Arc<Mutex<Vec<String>>>);

type Hook = Box<dyn FnOnce(&Key) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send>;

impl HookLog {
    fn hook(&self, what: &str) -> Hook {
        let (log, what) = (self.clone(), what.to_owned());
        Box::new(move |key| {
            log.0.lock().unwrap().push(format!("{what} {key}"));
            Ok(())
        })
    }

    fn failing_hook(&self, what: &str) -> Hook {
        let hook = self.hook(what);
        Box::new(move |key| hook(key).and_then(|()| Err("on purpose".into())))
    }

    fn panicking_hook(&self, what: &str) -> Hook {
        let hook = self.hook(what);
        Box::new(move |key| {
            let _ = hook(key);
            panic!("on purpose")
        })
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn add_hooks(transaction: &mut Transaction<'_, '_>, log: &HookLog) {
    transaction.on_commit(log.hook("commit"));
    transaction.on_rollback(log.hook("rollback"));
}

fn result_of(store: &impl RecordStore, key: &str) -> Option<i64> {
    store.read(key).unwrap().map(|record| record.result)
}

#[test]
fn a_transaction_passes_through_its_states_in_order() {
    let store = MemoryRecordStore::new();
    let pending = store.transaction("key").unwrap();
    assert_eq!(pending.state(), TransactionState::Pending);
    let mut transaction = pending.begin().unwrap();
    assert_eq!(transaction.state(), TransactionState::Active);
    assert!(!transaction.is_committed());
    transaction.stage(&1).unwrap();
    assert_eq!(transaction.state(), TransactionState::Staged);
    assert!(!transaction.is_committed());
    assert_eq!(transaction.finish().unwrap(), TransactionState::Committed);
    let again = store.transaction("key").unwrap().begin().unwrap();
    assert_eq!(again.state(), TransactionState::Committed);
    let off = store.transaction("other").unwrap().commit_mode(CommitMode::Off).begin().unwrap();
    assert_eq!(off.finish().unwrap(), TransactionState::RolledBack);
}

#[test]
fn a_transaction_of_an_existing_record_is_already_committed() {
    let store = MemoryRecordStore::new();
    store.write("key", &1).unwrap();
    let log = HookLog::default();
    store
        .transaction("key")
        .unwrap()
        .run(|transaction| {
            assert!(transaction.is_committed());
            add_hooks(transaction, &log);
            transaction.stage(&2)?;
            assert_eq!(transaction.read::<i64>()?.unwrap().result, 1);
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(result_of(&store, "key"), Some(1));
    assert!(log.take().is_empty(), "hooks ran although nothing was committed");
}

#[test]
fn overwrite_replaces_an_existing_record() {
    let store = MemoryRecordStore::new();
    store.write("key", &1).unwrap();
    let log = HookLog::default();
    let again = store.transaction("key").unwrap().overwrite(true);
    again
        .run(|transaction| {
            assert_eq!(transaction.state(), TransactionState::Active);
            add_hooks(transaction, &log);
            transaction.stage(&2)
        })
        .unwrap();
    assert_eq!(result_of(&store, "key"), Some(2));
    assert_eq!(log.take(), ["commit key"]);
}

#[test]
fn hooks_run_in_order_on_commit_and_in_reverse_on_rollback() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    for commits in [true, false] {
        let mut transaction = store.transaction("key").unwrap().overwrite(true).begin().unwrap();
        for number in ["1", "2"] {
            transaction.on_commit(log.hook(number));
            transaction.on_rollback(log.hook(number));
        }
        transaction.stage(&1).unwrap();
        let ends = if commits { transaction.commit() } else { transaction.rollback() };
        ends.unwrap();
        let order = if commits { ["1 key", "2 key"] } else { ["2 key", "1 key"] };
        assert_eq!(log.take(), order);
    }
}

#[test]
fn the_record_is_written_after_the_commit_hooks() {
    let store = MemoryRecordStore::new();
    let inside = store.clone();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    transaction.on_commit(move |key| {
        assert!(!inside.exists(key)?);
        Ok(())
    });
    transaction.stage(&1).unwrap();
    transaction.commit().unwrap();
    assert_eq!(result_of(&store, "key"), Some(1));
}

#[test]
fn a_failed_commit_hook_rolls_back() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    for fails in [log.failing_hook("fails"), log.panicking_hook("fails")] {
        let mut transaction = store.transaction("key").unwrap().begin().unwrap();
        add_hooks(&mut transaction, &log);
        transaction.on_commit(fails);
        transaction.on_commit(log.hook("never"));
        transaction.stage(&1).unwrap();
        let error = transaction.commit().unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Hook, "commit"), "{error}");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("on purpose"));
        assert_eq!(log.take(), ["commit key", "fails key", "rollback key"]);
        assert!(!store.exists("key").unwrap());
    }
}

/// The keys that are locked when each hook runs, and after the end of the transaction, which the caller still has.
fn locks_in_hooks(store: &impl RecordStore, commits: bool) -> Vec<String> {
    let seen = Mutex::new(Vec::new());
    let see = |what: &str| {
        let keys = ["parent", "child", "existing"].into_iter();
        let locked: Vec<_> = keys.filter(|key| store.is_locked(*key).unwrap()).collect();
        seen.lock().unwrap().push(format!("{what}: {}", locked.join(" ")));
        Ok(())
    };
    store.write("existing", &1).unwrap();
    let level = IsolationLevel::Serializable;
    let mut parent = store.transaction("parent").unwrap().isolation_level(level).begin().unwrap();
    parent.on_commit(|key| see(&format!("commit {key}")));
    parent.on_rollback(|key| see(&format!("rollback {key}")));
    for key in ["child", "existing"] {
        let mut child = parent.child(key).unwrap().begin().unwrap();
        child.on_commit(|key| see(&format!("commit {key}")));
        child.on_rollback(|key| see(&format!("rollback {key}")));
        child.stage(&1).unwrap();
        child.finish().unwrap();
    }
    parent.stage(&1).unwrap();
    see("end of the work").unwrap();
    let ended = if commits { parent.commit() } else { parent.rollback() };
    ended.unwrap();
    see("end").unwrap();
    seen.into_inner().unwrap()
}

/// The hooks of a transaction run under its lock, and those of its parent after it was released: neither when the
/// hooks begin nor only when the parent is dropped.
fn check_locks_in_hooks(store: &impl RecordStore) {
    let all = "end of the work: parent child existing";
    // A transaction of an existing record is committed already: no hook of it runs.
    let rolled_back = ["rollback child: parent child", "rollback parent: parent", "end: "];
    assert_eq!(locks_in_hooks(store, false), [&[all][..], &rolled_back].concat());
    let committed = ["commit child: parent child existing", "commit parent: parent", "end: "];
    assert_eq!(locks_in_hooks(store, true), [&[all][..], &committed].concat());
}

#[test]
fn hooks_run_under_the_lock_which_is_released_right_after_them() {
    check_locks_in_hooks(&MemoryRecordStore::new());
    let dir = tempdir().unwrap();
    check_locks_in_hooks(&open(dir.path()));
}

#[test]
fn every_rollback_hook_runs_and_the_first_failure_is_returned() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    transaction.on_rollback(log.hook("first"));
    transaction.on_rollback(log.panicking_hook("panics"));
    transaction.on_rollback(log.failing_hook("fails"));
    let error = transaction.rollback().unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Hook, "rollback"), "{error}");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "on purpose");
    assert_eq!(log.take(), ["fails key", "panics key", "first key"]);
}

#[test]
fn a_dropped_transaction_rolls_back_also_on_panic() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    let serializable = || store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
    {
        let mut transaction = serializable().begin().unwrap();
        add_hooks(&mut transaction, &log);
        transaction.stage(&1).unwrap();
    }
    assert_eq!(log.take(), ["rollback key"]);
    let panics = || {
        serializable().run(|transaction| -> Result<()> {
            add_hooks(transaction, &log);
            // A panic while another one unwinds would abort the process.
            transaction.on_rollback(log.panicking_hook("panics"));
            panic!("on purpose")
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert_eq!(log.take(), ["panics key", "rollback key"]);
    let fails = serializable().run(|transaction| {
        add_hooks(transaction, &log);
        transaction.stage(&1)?;
        Err::<(), _>(Error::new(ErrorKind::Other, "").with_detail("failed on purpose"))
    });
    assert_eq!(fails.unwrap_err().detail(), Some("failed on purpose"));
    assert_eq!(log.take(), ["rollback key"]);
    assert!(!store.exists("key").unwrap());
    assert!(!store.is_locked("key").unwrap());
}

/// A parent with two children that end together with it. The second child has a child of its own.
fn family<'s>(store: &'s MemoryRecordStore, log: &HookLog) -> Transaction<'s, 's> {
    let mut parent = store.transaction("parent").unwrap().begin().unwrap();
    add_hooks(&mut parent, log);
    parent.stage(&0).unwrap();
    for key in ["first", "second"] {
        let child = parent.child(key).unwrap();
        child
            .run(|child| {
                add_hooks(child, log);
                if key == "second" {
                    child.child("grandchild")?.run(|grandchild| {
                        add_hooks(grandchild, log);
                        grandchild.stage(&2)
                    })?;
                }
                child.stage(&1)
            })
            .unwrap();
    }
    assert!(log.take().is_empty(), "a child ended before its parent");
    parent
}

#[test]
fn children_end_before_their_parent() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    family(&store, &log).rollback().unwrap();
    assert_eq!(log.take(), ["rollback grandchild", "rollback second", "rollback first", "rollback parent"]);
    drop(family(&store, &log));
    assert_eq!(log.take().len(), 4);
    assert_eq!(store.keys().unwrap().count(), 0);
    family(&store, &log).commit().unwrap();
    assert_eq!(log.take(), ["commit first", "commit grandchild", "commit second", "commit parent"]);
    assert_eq!(store.keys().unwrap().count(), 4);
}

#[test]
fn an_eager_child_stays_committed_when_its_parent_rolls_back() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    let mut parent = store.transaction("parent").unwrap().begin().unwrap();
    let eager = parent.child("eager").unwrap().commit_mode(CommitMode::Eager);
    eager
        .run(|child| {
            add_hooks(child, &log);
            child.stage(&1)
        })
        .unwrap();
    assert_eq!(log.take(), ["commit eager"]);
    parent.rollback().unwrap();
    assert!(log.take().is_empty());
    assert_eq!(result_of(&store, "eager"), Some(1));
}

#[test]
fn commit_mode_off_commits_only_explicitly_or_with_the_parent() {
    let store = MemoryRecordStore::new();
    let off = |key: &str| store.transaction(key).unwrap().commit_mode(CommitMode::Off);
    off("alone").run(|alone| alone.stage(&1)).unwrap();
    assert!(!store.exists("alone").unwrap());
    let mut explicit = off("explicit").begin().unwrap();
    explicit.stage(&1).unwrap();
    explicit.commit().unwrap();
    assert!(store.exists("explicit").unwrap());
    let mut parent = off("parent").begin().unwrap();
    parent.child("child").unwrap().run(|child| child.stage(&1)).unwrap();
    parent.stage(&1).unwrap();
    parent.commit().unwrap();
    assert!(store.exists("child").unwrap() && store.exists("parent").unwrap());
}

#[test]
fn a_child_that_fails_rolls_back_its_parent() {
    let store = MemoryRecordStore::new();
    let log = HookLog::default();
    let mut parent = family(&store, &log);
    let mut last = parent.child("last").unwrap().begin().unwrap();
    last.on_commit(log.failing_hook("fails"));
    last.finish().unwrap();
    let error = parent.commit().unwrap_err();
    assert_eq!((error.kind(), error.key().map(Key::as_str)), (ErrorKind::Hook, Some("last")));
    let hooks_run = log.take();
    assert_eq!(hooks_run.last().unwrap(), "rollback parent");
    // A child that was committed earlier stays committed.
    assert!(store.exists("first").unwrap() && !store.exists("parent").unwrap());
}

#[test]
fn a_child_inherits_the_isolation_level_of_its_parent() {
    let store = MemoryRecordStore::new();
    let mut parent =
        store.transaction("parent").unwrap().isolation_level(IsolationLevel::Serializable).begin().unwrap();
    let child = parent.child("child").unwrap().begin().unwrap();
    assert_eq!(child.isolation_level(), IsolationLevel::Serializable);
    child.finish().unwrap();
    assert!(store.is_locked("child").unwrap(), "its lock is held until its parent ends");
    parent.commit().unwrap();
    assert!(!store.is_locked("child").unwrap() && !store.is_locked("parent").unwrap());
}

#[test]
fn a_commit_without_a_staged_result_writes_nothing() {
    let store = MemoryRecordStore::new();
    store.transaction("key").unwrap().begin().unwrap().commit().unwrap();
    assert!(!store.exists("key").unwrap());
}

#[test]
fn serializable_transactions_are_exclusive_and_fenced() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let serializable = |options: LockOptions| {
        store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable).lock_options(options)
    };
    let mut late = serializable(as_named("late").hold_timeout(millis(50))).begin().unwrap();
    late.stage(&1).unwrap();
    assert!(store.wait_for_lock("key", WaitOptions::new()).unwrap());
    assert!(late.commit().unwrap_err().is_lock_lost());
    assert!(!store.exists("key").unwrap());
    // The second transaction finds the record already committed.
    std::thread::scope(|scope| {
        let mut first = serializable(LockOptions::new()).begin().unwrap();
        let (tid, started) = std::sync::mpsc::channel();
        let second = scope.spawn(move || {
            tid.send(rustix::thread::gettid().as_raw_pid()).unwrap();
            serializable(LockOptions::new()).run(|second| Ok::<_, Error>(second.is_committed())).unwrap()
        });
        until_asleep(std::process::id(), started.recv().unwrap());
        first.stage(&1).unwrap();
        first.commit().unwrap();
        assert!(second.join().unwrap());
    });
}

#[test]
fn read_committed_acquires_no_lock_and_respects_locks_of_others() {
    let store = MemoryRecordStore::new();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    assert!(!store.is_locked("key").unwrap());
    transaction.stage(&1).unwrap();
    let _guard = store.lock("key", as_named("other")).unwrap();
    assert_eq!(transaction.commit().unwrap_err().kind(), ErrorKind::Locked);
    assert!(!store.exists("key").unwrap());
}

#[test]
fn staging_a_result_that_cannot_be_encoded_fails_at_once() {
    let store = MemoryRecordStore::new();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    transaction.stage(&1.5).unwrap();
    let error = transaction.stage(&f64::NAN).unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Encode, "stage"));
    transaction.commit().unwrap();
    assert!(store.read::<f64>("key").unwrap().unwrap().result.eq(&1.5));
}

/// A store without locks.
#[derive(Debug)]
pub(crate) struct Plain;

impl RecordStore for Plain {
    fn read_raw(&self, _: &Key, _: ReadOptions) -> Result<Option<RawRecord>> {
        Ok(None)
    }

    fn write_raw(&self, _: &Key, _: &Json, _: WriteOptions) -> Result<()> {
        Ok(())
    }

    fn exists_raw(&self, _: &Key) -> Result<bool> {
        Ok(false)
    }
}

#[test]
fn an_unsupported_isolation_level_is_an_error_at_begin() {
    for level in [IsolationLevel::ReadCommitted, IsolationLevel::Serializable] {
        let error = Plain.transaction("key").unwrap().isolation_level(level).begin().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedIsolationLevel);
        assert_eq!((error.operation(), error.detail()), ("begin", Some(format!("{level:?}").as_str())));
        assert!(error.to_string().contains("\"key\""), "{error}");
    }
}
