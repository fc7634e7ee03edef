//! Transactions.

use std::thread;

use super::support::{SHORT_WAIT, assert_error, join};
use crate::{
    CommitMode, ErrorKind, IsolationLevel, LockOptions, RecordStore, RecordStoreExt, TransactionState,
};

checks! { "transactions":
    a_transaction_writes_only_on_commit:
        "A transaction writes when it commits, and not before; a dropped transaction writes nothing.",
    a_serializable_transaction_holds_the_lock:
        "A serializable transaction holds the lock from begin to end.",
    children_commit_with_their_parent:
        "Lazy children commit with their parent; eager children commit at once.",
}

fn a_transaction_writes_only_on_commit(store: &dyn RecordStore) {
    let mut transaction = store.transaction("key").unwrap().begin().unwrap();
    assert_eq!(transaction.state(), TransactionState::Active);
    transaction.stage(&1).unwrap();
    assert_eq!(transaction.state(), TransactionState::Staged);
    assert!(!store.exists("key").unwrap(), "the transaction wrote before the commit");
    transaction.commit().unwrap();
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1);

    let again = store.transaction("key").unwrap().begin().unwrap();
    assert!(again.is_committed(), "the record exists");
    drop(again);
    let mut again = store.transaction("key").unwrap().overwrite(true).begin().unwrap();
    again.stage(&2).unwrap();
    drop(again);
    assert_eq!(store.read::<i64>("key").unwrap().unwrap().result, 1, "a dropped transaction wrote");
}

fn a_serializable_transaction_holds_the_lock(store: &dyn RecordStore) {
    let begin = || store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
    let mut transaction = begin().begin().unwrap();
    assert!(store.is_locked("key").unwrap(), "no lock was acquired");
    let concurrent = thread::scope(|scope| {
        let options = LockOptions::new().acquire_timeout(SHORT_WAIT);
        join(scope.spawn(|| begin().lock_options(options).begin().map(|other| other.state())))
    });
    assert_error(concurrent, ErrorKind::LockTimeout);
    transaction.stage(&1).unwrap();
    transaction.commit().unwrap();
    assert!(!store.is_locked("key").unwrap(), "the lock was not released");
    begin().begin().unwrap().rollback().unwrap();
    assert!(!store.is_locked("key").unwrap(), "the lock was not released");
}

fn children_commit_with_their_parent(store: &dyn RecordStore) {
    let mut parent = store.transaction("parent").unwrap().begin().unwrap();
    let child = parent.child("child").unwrap().run(|child| child.stage(&1));
    child.unwrap();
    let eager = parent.child("eager").unwrap().commit_mode(CommitMode::Eager).run(|child| child.stage(&1));
    eager.unwrap();
    assert!(!store.exists("child").unwrap(), "the lazy child committed before its parent");
    assert!(store.exists("eager").unwrap(), "the eager child did not commit at once");
    parent.stage(&2).unwrap();
    parent.commit().unwrap();
    assert!(store.exists("child").unwrap() && store.exists("parent").unwrap());
}
