//! Transactions, rule by rule.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use record_store::{
    Claim, CommitMode, Error, IsolationLevel, Json, Key, LockOptions, MemoryRecordStore, RecordStore,
    RecordStoreExt, Result, Transaction, TransactionState, WriteOptions,
};
use serde_json::value::RawValue;
use tempfile::tempdir;

use crate::support::children::until_asleep;
use crate::support::{as_named, millis, open};

/// What happened, in order.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<String>>>);

type Hook = Box<dyn FnOnce(&Key) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send>;

impl Diary {
    fn note(&self, what: &str) -> Hook {
        let (diary, what) = (self.clone(), what.to_owned());
        Box::new(move |key| {
            diary.0.lock().unwrap().push(format!("{what} {key}"));
            Ok(())
        })
    }

    fn fail(&self, what: &str) -> Hook {
        let note = self.note(what);
        Box::new(move |key| note(key).and_then(|()| Err("on purpose".into())))
    }

    fn panic(&self, what: &str) -> Hook {
        let note = self.note(what);
        Box::new(move |key| {
            let _ = note(key);
            panic!("on purpose")
        })
    }

    fn read(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn hooks<S: RecordStore>(transaction: &mut Transaction<'_, '_, S>, diary: &Diary) {
    transaction.on_commit(diary.note("commit"));
    transaction.on_rollback(diary.note("rollback"));
}

fn result_of(store: &impl RecordStore, key: &str) -> Option<i64> {
    store.read(key).unwrap().map(|record| record.result)
}

#[test]
fn the_states_in_their_order() {
    let store = MemoryRecordStore::new();
    let pending = store.transaction("key").unwrap();
    assert_eq!(pending.state(), TransactionState::Pending);
    let mut transaction = pending.begin().unwrap();
    assert_eq!(transaction.state(), TransactionState::Active);
    transaction.stage(&1).unwrap();
    assert_eq!(transaction.state(), TransactionState::Staged);
    assert_eq!(transaction.finish().unwrap(), TransactionState::Committed);
    let again = store.transaction("key").unwrap().begin().unwrap();
    assert_eq!(again.state(), TransactionState::Committed);
    let off = store.transaction("other").unwrap().commit_mode(CommitMode::Off).begin().unwrap();
    assert_eq!(off.finish().unwrap(), TransactionState::RolledBack);
}

#[test]
fn an_existing_record_is_committed_already() {
    let store = MemoryRecordStore::new();
    store.write("key", &1).unwrap();
    let diary = Diary::default();
    store
        .transaction("key")
        .unwrap()
        .run(|transaction| {
            assert!(transaction.is_committed());
            hooks(transaction, &diary);
            transaction.stage(&2)?;
            assert_eq!(transaction.read::<i64>()?.unwrap().result, 1);
            Ok::<_, Error>(())
        })
        .unwrap();
    assert_eq!(result_of(&store, "key"), Some(1));
    assert!(diary.read().is_empty(), "hooks ran where there was nothing to do");
}

#[test]
fn overwrite_does_the_work_again() {
    let store = MemoryRecordStore::new();
    store.write("key", &1).unwrap();
    let diary = Diary::default();
    let again = store.transaction("key").unwrap().overwrite(true);
    again
        .run(|transaction| {
            assert_eq!(transaction.state(), TransactionState::Active);
            hooks(transaction, &diary);
            transaction.stage(&2)
        })
        .unwrap();
    assert_eq!(result_of(&store, "key"), Some(2));
    assert_eq!(diary.read(), ["commit key"]);
}

#[test]
fn hooks_run_in_order_at_the_commit_and_backwards_at_the_rollback() {
    let store = MemoryRecordStore::new();
    let diary = Diary::default();
    for commits in [true, false] {
        let mut transaction = store.transaction("key").unwrap().overwrite(true).begin().unwrap();
        for number in ["1", "2"] {
            transaction.on_commit(diary.note(number));
            transaction.on_rollback(diary.note(number));
        }
        transaction.stage(&1).unwrap();
        let ends = if commits { transaction.commit() } else { transaction.rollback() };
        ends.unwrap();
        let order = if commits { ["1 key", "2 key"] } else { ["2 key", "1 key"] };
        assert_eq!(diary.read(), order);
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
    let diary = Diary::default();
    for fails in [diary.fail("fails"), diary.panic("fails")] {
        let mut transaction = store.transaction("key").unwrap().begin().unwrap();
        hooks(&mut transaction, &diary);
        transaction.on_commit(fails);
        transaction.on_commit(diary.note("never"));
        transaction.stage(&1).unwrap();
        let error = transaction.commit().unwrap_err();
        assert!(matches!(&error, Error::Hook { operation: "commit", .. }), "{error}");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("on purpose"));
        assert_eq!(diary.read(), ["commit key", "fails key", "rollback key"]);
        assert!(!store.exists("key").unwrap());
    }
}

#[test]
fn every_rollback_hook_runs_and_the_first_failure_is_told() {
    let store = MemoryRecordStore::new();
    let diary = Diary::default();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    transaction.on_rollback(diary.note("first"));
    transaction.on_rollback(diary.panic("panics"));
    transaction.on_rollback(diary.fail("fails"));
    let error = transaction.rollback().unwrap_err();
    assert!(
        matches!(&error, Error::Hook { operation: "rollback", source, .. } if source.to_string() == "on purpose")
    );
    assert_eq!(diary.read(), ["fails key", "panics key", "first key"]);
}

#[test]
fn a_dropped_transaction_rolls_back_on_panic_too() {
    let store = MemoryRecordStore::new();
    let diary = Diary::default();
    let serializable = || store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
    {
        let mut transaction = serializable().begin().unwrap();
        hooks(&mut transaction, &diary);
        transaction.stage(&1).unwrap();
    }
    assert_eq!(diary.read(), ["rollback key"]);
    let panics = || {
        serializable().run(|transaction| -> Result<()> {
            hooks(transaction, &diary);
            // A second panic in the middle of the first would end the process.
            transaction.on_rollback(diary.panic("panics"));
            panic!("in the middle")
        })
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert_eq!(diary.read(), ["panics key", "rollback key"]);
    let fails = serializable().run(|transaction| {
        hooks(transaction, &diary);
        transaction.stage(&1)?;
        Err::<(), _>(Error::Unsupported { method: "this" })
    });
    assert!(matches!(fails, Err(Error::Unsupported { .. })));
    assert_eq!(diary.read(), ["rollback key"]);
    assert!(!store.exists("key").unwrap());
    assert!(!store.is_locked("key").unwrap());
}

/// A parent with two children that are left to it, the second of which has one as well.
fn family<'s>(store: &'s MemoryRecordStore, diary: &Diary) -> Transaction<'s, 's, MemoryRecordStore> {
    let mut parent = store.transaction("parent").unwrap().begin().unwrap();
    hooks(&mut parent, diary);
    parent.stage(&0).unwrap();
    for key in ["first", "second"] {
        let child = parent.child(key).unwrap();
        child
            .run(|child| {
                hooks(child, diary);
                if key == "second" {
                    child.child("grandchild")?.run(|grandchild| {
                        hooks(grandchild, diary);
                        grandchild.stage(&2)
                    })?;
                }
                child.stage(&1)
            })
            .unwrap();
    }
    assert!(diary.read().is_empty(), "a child ended before its parent");
    parent
}

#[test]
fn children_end_before_their_parent() {
    let store = MemoryRecordStore::new();
    let diary = Diary::default();
    family(&store, &diary).rollback().unwrap();
    assert_eq!(diary.read(), ["rollback grandchild", "rollback second", "rollback first", "rollback parent"]);
    drop(family(&store, &diary));
    assert_eq!(diary.read().len(), 4);
    assert_eq!(store.keys().unwrap().count(), 0);
    family(&store, &diary).commit().unwrap();
    assert_eq!(diary.read(), ["commit first", "commit grandchild", "commit second", "commit parent"]);
    assert_eq!(store.keys().unwrap().count(), 4);
}

#[test]
fn an_eager_child_stays_when_its_parent_rolls_back() {
    let store = MemoryRecordStore::new();
    let diary = Diary::default();
    let mut parent = store.transaction("parent").unwrap().begin().unwrap();
    let eager = parent.child("eager").unwrap().commit_mode(CommitMode::Eager);
    eager
        .run(|child| {
            hooks(child, &diary);
            child.stage(&1)
        })
        .unwrap();
    assert_eq!(diary.read(), ["commit eager"]);
    parent.rollback().unwrap();
    assert!(diary.read().is_empty());
    assert_eq!(result_of(&store, "eager"), Some(1));
}

#[test]
fn off_commits_only_when_told_to_or_with_its_parent() {
    let store = MemoryRecordStore::new();
    let off = |key: &str| store.transaction(key).unwrap().commit_mode(CommitMode::Off);
    off("alone").run(|alone| alone.stage(&1)).unwrap();
    assert!(!store.exists("alone").unwrap());
    let mut told = off("told").begin().unwrap();
    told.stage(&1).unwrap();
    told.commit().unwrap();
    assert!(store.exists("told").unwrap());
    let mut parent = off("parent").begin().unwrap();
    parent.child("child").unwrap().run(|child| child.stage(&1)).unwrap();
    parent.stage(&1).unwrap();
    parent.commit().unwrap();
    assert!(store.exists("child").unwrap() && store.exists("parent").unwrap());
}

#[test]
fn a_child_that_fails_rolls_its_parent_back() {
    let store = MemoryRecordStore::new();
    let diary = Diary::default();
    let mut parent = family(&store, &diary);
    let mut last = parent.child("last").unwrap().begin().unwrap();
    last.on_commit(diary.fail("fails"));
    last.finish().unwrap();
    assert!(matches!(parent.commit(), Err(Error::Hook { key, .. }) if key.as_str() == "last"));
    let diary = diary.read();
    assert_eq!(diary.last().unwrap(), "rollback parent");
    // What was committed before is committed.
    assert!(store.exists("first").unwrap() && !store.exists("parent").unwrap());
}

#[test]
fn a_child_takes_after_its_parent() {
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
fn nothing_staged_is_nothing_written() {
    let store = MemoryRecordStore::new();
    store.transaction("key").unwrap().begin().unwrap().commit().unwrap();
    assert!(!store.exists("key").unwrap());
}

#[test]
fn serializable_is_one_at_a_time_and_fenced() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let serializable = |options: LockOptions| {
        store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable).lock_options(options)
    };
    let mut late = serializable(as_named("late").hold_timeout(millis(50))).begin().unwrap();
    late.stage(&1).unwrap();
    assert!(store.wait_for_lock("key", None).unwrap());
    assert!(late.commit().unwrap_err().is_lock_lost());
    assert!(!store.exists("key").unwrap());
    // Who comes second finds the work done.
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
fn read_committed_takes_no_lock_and_respects_others() {
    let store = MemoryRecordStore::new();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    assert!(!store.is_locked("key").unwrap());
    transaction.stage(&1).unwrap();
    let _guard = store.lock("key", as_named("other")).unwrap();
    assert!(matches!(transaction.commit(), Err(Error::Locked { .. })));
    assert!(!store.exists("key").unwrap());
}

#[test]
fn what_cannot_be_staged_is_told_at_once() {
    let store = MemoryRecordStore::new();
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    transaction.stage(&1.5).unwrap();
    assert!(matches!(transaction.stage(&f64::NAN), Err(Error::Encode { operation: "stage", .. })));
    transaction.commit().unwrap();
    assert!(store.read::<f64>("key").unwrap().unwrap().result.eq(&1.5));
}

/// A store without locks.
#[derive(Debug)]
struct Plain;

impl RecordStore for Plain {
    fn read_json(&self, _: &Key, _: &Claim, _: Option<std::time::Duration>) -> Result<Option<Json>> {
        Ok(None)
    }

    fn write_json(&self, _: &Key, _: &RawValue, _: &Claim, _: &WriteOptions) -> Result<()> {
        Ok(())
    }

    fn record_exists(&self, _: &Key) -> Result<bool> {
        Ok(false)
    }
}

#[test]
fn an_unsupported_level_is_an_error_at_the_beginning() {
    for level in [IsolationLevel::ReadCommitted, IsolationLevel::Serializable] {
        let error = Plain.transaction("key").unwrap().isolation_level(level).begin().unwrap_err();
        assert!(matches!(error, Error::UnsupportedIsolationLevel { level: named, .. } if named == level));
        assert!(error.to_string().contains("\"key\""), "{error}");
    }
}
