//! Transactions as futures: the rules of the blocking form, and what a drop at any moment leaves behind.

use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use record_store::asynchronous::{AsyncRecordStore, AsyncTransaction};
use record_store::{
    Acquired, Claim, CommitMode, Error, ErrorKind, IsolationLevel, Json, Key, LockInfo, LockOptions,
    MemoryRecordStore, RawRecord, ReadOptions, RecordStore, RecordStoreExt, Result, TransactionState,
    WaitOptions, WriteOptions,
};
use tempfile::tempdir;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use super::cancel::poll_then_drop;
use super::operations::{AnyStore, with_each_store};
use super::{long_timeout, multi_threaded, open, single_threaded, wait_until};
use crate::support::{PATIENCE, as_named, millis, names_in};

type HookResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// The hooks that ran, in order.
#[derive(Clone, Default)]
struct HookLog(Arc<Mutex<Vec<String>>>);

impl HookLog {
    fn add(&self, what: &str, key: &Key) {
        self.0.lock().unwrap().push(format!("{what} {key}"));
    }

    fn has(&self, entry: &str) -> bool {
        self.0.lock().unwrap().iter().any(|ran| ran == entry)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// A hook that waits before it notes that it ran.
    fn hook(&self, what: &str) -> impl FnOnce(Key) -> HookFuture + Send + use<> {
        self.hook_after(what, yield_now(), || Ok(()))
    }

    /// A hook that does not wait.
    fn prompt_hook(&self, what: &str) -> impl FnOnce(Key) -> HookFuture + Send + use<> {
        self.hook_after(what, std::future::ready(()), || Ok(()))
    }

    fn hook_after<W, E>(
        &self,
        what: &str,
        wait: W,
        end: E,
    ) -> impl FnOnce(Key) -> HookFuture + Send + use<W, E>
    where
        W: Future<Output = ()> + Send + 'static,
        E: FnOnce() -> HookResult + Send + 'static,
    {
        let (log, what) = (self.clone(), what.to_owned());
        move |key| {
            Box::pin(async move {
                wait.await;
                log.add(&what, &key);
                end()
            })
        }
    }
}

type HookFuture = std::pin::Pin<Box<dyn Future<Output = HookResult> + Send>>;

fn add_hooks(transaction: &mut AsyncTransaction<'_>, log: &HookLog) {
    transaction.on_commit(log.hook("commit"));
    transaction.on_rollback(log.hook("rollback"));
}

async fn result_of(store: &AnyStore, key: &str) -> Option<i64> {
    store.read(key).await.unwrap().map(|record| record.result)
}

async fn serializable(store: &AnyStore, key: &str) -> AsyncTransaction<'static> {
    store.transaction(key).unwrap().isolation_level(IsolationLevel::Serializable).begin().await.unwrap()
}

#[test]
fn a_transaction_passes_through_its_states_in_order() {
    with_each_store(async |store| {
        let pending = store.transaction("key").unwrap();
        assert_eq!(pending.state(), TransactionState::Pending);
        let mut transaction = pending.begin().await.unwrap();
        assert_eq!((transaction.state(), transaction.key().as_str()), (TransactionState::Active, "key"));
        transaction.stage(&1).unwrap();
        assert_eq!(transaction.state(), TransactionState::Staged);
        assert!(!store.exists("key").await.unwrap());
        assert_eq!(transaction.finish().await.unwrap(), TransactionState::Committed);
        let again = store.transaction("key").unwrap().begin().await.unwrap();
        assert!(again.is_committed());
        assert_eq!(again.read::<i64>().await.unwrap().unwrap().result, 1);
        again.commit().await.unwrap();
        let off = store.transaction("other").unwrap().commit_mode(CommitMode::Off).begin().await.unwrap();
        assert_eq!(off.finish().await.unwrap(), TransactionState::RolledBack);
        assert!(store.transaction("").is_err_and(|error| error.kind() == ErrorKind::InvalidKey));
    });
}

#[test]
fn an_existing_record_is_overwritten_only_on_request() {
    with_each_store(async |store| {
        store.write("key", &1).await.unwrap();
        let log = HookLog::default();
        for (overwrite, result, hooks) in [(false, 1, &[][..]), (true, 2, &["commit key"])] {
            let pending = store.transaction("key").unwrap().overwrite(overwrite);
            let run = pending.run(async |transaction| {
                assert_eq!(transaction.is_committed(), !overwrite);
                add_hooks(transaction, &log);
                transaction.stage(&2)
            });
            run.await.unwrap();
            assert_eq!(result_of(&store, "key").await, Some(result));
            assert_eq!(log.take(), hooks);
        }
    });
}

#[test]
fn hooks_run_in_order_on_commit_and_in_reverse_on_rollback() {
    with_each_store(async |store| {
        let log = HookLog::default();
        for commits in [true, false] {
            let pending = store.transaction("key").unwrap().overwrite(true);
            let mut transaction = pending.begin().await.unwrap();
            for number in ["1", "2"] {
                transaction.on_commit(log.hook(number));
                transaction.on_rollback(log.hook(number));
            }
            transaction.stage(&1).unwrap();
            let ends = if commits { transaction.commit().await } else { transaction.rollback().await };
            ends.unwrap();
            let order = if commits { ["1 key", "2 key"] } else { ["2 key", "1 key"] };
            assert_eq!(log.take(), order);
        }
    });
}

#[test]
fn a_failed_commit_hook_rolls_back() {
    with_each_store(async |store| {
        let log = HookLog::default();
        for panics in [false, true] {
            let mut transaction = store.transaction("key").unwrap().begin().await.unwrap();
            add_hooks(&mut transaction, &log);
            let fails = move || if panics { panic!("on purpose") } else { Err("on purpose".into()) };
            transaction.on_commit(log.hook_after("fails", yield_now(), fails));
            transaction.on_commit(log.hook("never"));
            transaction.stage(&1).unwrap();
            let error = transaction.commit().await.unwrap_err();
            assert_eq!((error.kind(), error.operation()), (ErrorKind::Hook, "commit"), "{error}");
            assert!(std::error::Error::source(&error).unwrap().to_string().contains("on purpose"));
            assert_eq!(log.take(), ["commit key", "fails key", "rollback key"]);
            assert!(!store.exists("key").await.unwrap());
        }
    });
}

#[test]
fn every_rollback_hook_runs_and_the_first_failure_is_returned() {
    with_each_store(async |store| {
        let log = HookLog::default();
        let mut transaction = store.transaction("key").unwrap().begin().await.unwrap();
        transaction.on_rollback(log.hook("first"));
        transaction.on_rollback(log.hook_after("panics", yield_now(), || panic!("on purpose")));
        transaction.on_rollback(log.hook_after("fails", yield_now(), || Err("on purpose".into())));
        let error = transaction.rollback().await.unwrap_err();
        assert_eq!((error.kind(), error.operation()), (ErrorKind::Hook, "rollback"), "{error}");
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "on purpose");
        assert_eq!(log.take(), ["fails key", "panics key", "first key"]);
    });
}

/// A parent with two children that end together with it. The second child has a child of its own.
async fn family(store: &AnyStore, log: &HookLog) -> AsyncTransaction<'static> {
    let mut parent = serializable(store, "parent").await;
    add_hooks(&mut parent, log);
    parent.stage(&0).unwrap();
    for key in ["first", "second"] {
        let child = parent.child(key).unwrap();
        let run = child.run(async |child| {
            assert_eq!(child.isolation_level(), IsolationLevel::Serializable);
            add_hooks(child, log);
            if key == "second" {
                let grandchild = child.child("grandchild")?.run(async |grandchild| {
                    add_hooks(grandchild, log);
                    grandchild.stage(&2)
                });
                grandchild.await?;
            }
            child.stage(&1)
        });
        run.await.unwrap();
        assert!(store.is_locked(key).await.unwrap(), "the lock is held until the parent ends");
    }
    assert!(log.take().is_empty(), "a child ended before its parent");
    parent
}

const FAMILY: [&str; 4] = ["first", "grandchild", "second", "parent"];

async fn assert_no_lock(store: &AnyStore) {
    for key in FAMILY {
        assert!(!store.is_locked(key).await.unwrap(), "{key}");
    }
}

#[test]
fn children_end_before_their_parent() {
    with_each_store(async |store| {
        let log = HookLog::default();
        family(&store, &log).await.rollback().await.unwrap();
        let rolled_back = ["grandchild", "second", "first", "parent"].map(|key| format!("rollback {key}"));
        assert_eq!(log.take(), rolled_back);
        assert_no_lock(&store).await;
        drop(family(&store, &log).await);
        // The same holder acquires the locks when the rollback has ended.
        for key in FAMILY {
            store.lock(key, long_timeout()).await.unwrap().release().await.unwrap();
        }
        assert_eq!(log.take(), rolled_back);
        assert!(store.keys().await.unwrap().next().await.is_none());
        family(&store, &log).await.commit().await.unwrap();
        assert_eq!(log.take(), FAMILY.map(|key| format!("commit {key}")));
        assert_no_lock(&store).await;
        for key in FAMILY {
            assert!(store.exists(key).await.unwrap());
        }
    });
}

#[test]
fn a_child_that_fails_rolls_back_its_parent() {
    with_each_store(async |store| {
        let log = HookLog::default();
        let mut parent = family(&store, &log).await;
        let mut last = parent.child("last").unwrap().begin().await.unwrap();
        last.on_commit(log.hook_after("fails", yield_now(), || Err("on purpose".into())));
        last.finish().await.unwrap();
        let error = parent.commit().await.unwrap_err();
        assert_eq!((error.kind(), error.key().map(Key::as_str)), (ErrorKind::Hook, Some("last")));
        assert_eq!(log.take().last().unwrap(), "rollback parent");
        assert!(store.exists("first").await.unwrap() && !store.exists("parent").await.unwrap());
        assert_no_lock(&store).await;
    });
}

#[test]
fn the_commit_mode_decides_when_a_transaction_commits() {
    with_each_store(async |store| {
        let log = HookLog::default();
        let mut parent = store.transaction("parent").unwrap().begin().await.unwrap();
        let eager = parent.child("eager").unwrap().commit_mode(CommitMode::Eager);
        let run = eager.run(async |child| {
            add_hooks(child, &log);
            child.stage(&1)
        });
        run.await.unwrap();
        assert_eq!(log.take(), ["commit eager"]);
        parent.rollback().await.unwrap();
        assert!(log.take().is_empty() && store.exists("eager").await.unwrap());

        let off = |key: &str| store.transaction(key).unwrap().commit_mode(CommitMode::Off);
        off("alone").run(async |alone| alone.stage(&1)).await.unwrap();
        assert!(!store.exists("alone").await.unwrap());
        let mut parent = off("parent").begin().await.unwrap();
        parent.child("child").unwrap().run(async |child| child.stage(&1)).await.unwrap();
        parent.commit().await.unwrap();
        assert!(store.exists("child").await.unwrap());
        assert!(!store.exists("parent").await.unwrap(), "a commit without a staged result wrote");
    });
}

#[test]
fn serializable_transactions_are_exclusive_and_fenced() {
    with_each_store(async |store| {
        let pending = |options: LockOptions| {
            let pending = store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
            pending.lock_options(options)
        };
        let mut first = pending(as_named("first")).begin().await.unwrap();
        assert_eq!(store.lock_info("key").await.unwrap().map(|info| info.token()), first.token());
        let short = as_named("second").acquire_timeout(millis(20));
        assert!(pending(short).begin().await.unwrap_err().is_timeout());
        let second = tokio::spawn({
            let second = pending(as_named("second").acquire_timeout(PATIENCE));
            async move { second.run(async |second| Ok::<_, Error>(second.is_committed())).await }
        });
        first.stage(&1).unwrap();
        first.commit().await.unwrap();
        assert!(second.await.unwrap().unwrap(), "the second transaction did not wait for the first one");

        store.remove("key").await.unwrap();
        let mut late = pending(LockOptions::new()).begin().await.unwrap();
        late.stage(&1).unwrap();
        assert!(store.break_lock("key").await.unwrap());
        assert!(late.read::<i64>().await.unwrap_err().is_lock_lost());
        let error = late.commit().await.unwrap_err();
        assert!(error.is_lock_lost());
        assert_eq!(error.unstored().map(Json::as_str), Some("1"));
        assert!(!store.exists("key").await.unwrap());

        let mut unlocked = store.transaction("key").unwrap().begin().await.unwrap();
        assert_eq!((store.is_locked("key").await.unwrap(), unlocked.token()), (false, None));
        unlocked.stage(&1).unwrap();
        let guard = store.lock("key", as_named("other")).await.unwrap();
        let once = ReadOptions::new().timeout(std::time::Duration::ZERO);
        assert!(unlocked.read_with::<i64>(once).await.unwrap_err().is_timeout());
        assert_eq!(unlocked.commit().await.unwrap_err().kind(), ErrorKind::Locked);
        guard.release().await.unwrap();
    });
}

#[test]
fn what_cannot_be_stored_or_isolated_is_an_error_at_once() {
    single_threaded().block_on(async {
        let store = AsyncRecordStore::new(MemoryRecordStore::new());
        let mut transaction = store.transaction("key").unwrap().begin().await.unwrap();
        transaction.stage(&1.5).unwrap();
        assert_eq!(transaction.stage(&f64::NAN).unwrap_err().kind(), ErrorKind::Encode);
        transaction.commit().await.unwrap();
        assert!(store.read::<f64>("key").await.unwrap().unwrap().result.eq(&1.5));
        let plain = AsyncRecordStore::new(crate::transactions::Plain);
        let error = plain.transaction("key").unwrap().begin().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedIsolationLevel);
    });
}

#[test]
fn a_drop_runs_what_does_not_wait_and_the_rest_continues() {
    with_each_store(async |store| {
        let (log, gate) = (HookLog::default(), Arc::new(Semaphore::new(0)));
        let mut transaction = serializable(&store, "key").await;
        transaction.on_rollback(log.prompt_hook("fourth"));
        let (closed, waits) = (Arc::clone(&gate), log.clone());
        transaction.on_rollback(async move |key| {
            waits.add("second", &key);
            assert!(closed.acquire().await.is_err());
            waits.add("third", &key);
            Ok(())
        });
        transaction.on_rollback(log.prompt_hook("first"));
        transaction.stage(&1).unwrap();
        drop(transaction);
        assert_eq!(log.take(), ["first key", "second key"]);
        assert!(store.is_locked("key").await.unwrap(), "the lock was released before the hooks had run");
        let next = tokio::spawn({
            let (store, log) = (store.clone(), log.clone());
            async move {
                let guard = store.lock("key", long_timeout()).await.unwrap();
                guard.release().await.unwrap();
                log.take()
            }
        });
        gate.close();
        assert_eq!(next.await.unwrap(), ["third key", "fourth key"]);
        assert!(!store.exists("key").await.unwrap());
    });
}

#[test]
fn the_same_holder_cannot_acquire_the_lock_before_the_end_of_a_dropped_transaction() {
    with_each_store(async |store| {
        let gate = Arc::new(Semaphore::new(0));
        let mut transaction = serializable(&store, "key").await;
        let token = transaction.token().unwrap();
        let closed = Arc::clone(&gate);
        transaction.on_rollback(async move |_| closed.acquire().await.map(drop).or(Ok(())));
        drop(transaction);
        let mut next = pin!(store.lock("key", long_timeout()));
        assert!(next.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(store.lock_info("key").await.unwrap().is_some_and(|info| info.token() == token));
        gate.close();
        let guard = next.await.unwrap();
        assert!(guard.token() > token, "it got the lock of the dropped transaction");
        guard.release().await.unwrap();
    });
}

#[test]
fn a_dropped_child_is_rolled_back_before_its_parent_ends() {
    with_each_store(async |store| {
        for commits in [false, true] {
            let (log, gate) = (HookLog::default(), Arc::new(Semaphore::new(0)));
            let mut parent = serializable(&store, "parent").await;
            let mut child = parent.child("child").unwrap().begin().await.unwrap();
            let (closed, waits) = (Arc::clone(&gate), log.clone());
            child.on_rollback(async move |key| {
                assert!(closed.acquire().await.is_err());
                waits.add("rollback", &key);
                Ok(())
            });
            drop(child);
            parent.on_commit(log.prompt_hook("commit"));
            parent.on_rollback(log.prompt_hook("rollback"));
            let mut end =
                Box::pin(
                    async move { if commits { parent.commit().await } else { parent.rollback().await } },
                );
            assert!(end.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            assert!(log.take().is_empty(), "a hook of the parent ran before that of its child");
            gate.close();
            end.await.unwrap();
            let last = if commits { "commit parent" } else { "rollback parent" };
            assert_eq!(log.take(), ["rollback child", last]);
        }
    });
}

#[test]
fn a_transaction_that_panics_or_fails_rolls_back() {
    with_each_store(async |store| {
        let log = HookLog::default();
        let task = tokio::spawn({
            let (store, log) = (store.clone(), log.clone());
            async move {
                let pending = store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
                let run = pending.run(async |transaction| -> Result<()> {
                    add_hooks(transaction, &log);
                    // A panic while another one unwinds would abort the process.
                    transaction
                        .on_rollback(log.hook_after("panics", std::future::ready(()), || panic!("too")));
                    yield_now().await;
                    panic!("on purpose")
                });
                run.await
            }
        });
        assert!(task.await.unwrap_err().is_panic());
        wait_until("the rollback to end", async || !store.is_locked("key").await.unwrap()).await;
        assert_eq!(log.take(), ["panics key", "rollback key"]);
        let pending = store.transaction("key").unwrap().isolation_level(IsolationLevel::Serializable);
        let fails = pending.run(async |transaction| {
            add_hooks(transaction, &log);
            transaction.stage(&1)?;
            Err::<(), _>(Error::new(ErrorKind::Other, "").with_detail("failed on purpose"))
        });
        assert_eq!(fails.await.unwrap_err().detail(), Some("failed on purpose"));
        assert_eq!(log.take(), ["rollback key"]);
        assert!(!store.exists("key").await.unwrap() && !store.is_locked("key").await.unwrap());
    });
}

/// A transaction with a child, whose hooks wait. `log` says which hooks have been registered and which have run.
async fn parent_and_child(store: AnyStore, level: IsolationLevel, log: HookLog) -> Result<()> {
    let pending = store.transaction("parent")?.isolation_level(level);
    let run = pending.run(async |parent| {
        add_hooks(parent, &log);
        log.add("began", parent.key());
        let child = parent.child("child")?.run(async |child| {
            add_hooks(child, &log);
            log.add("began", child.key());
            yield_now().await;
            child.stage(&1)
        });
        child.await?;
        yield_now().await;
        assert!(parent.read::<i64>().await?.is_none());
        parent.stage(&2)
    });
    run.await
}

/// Checks what a dropped transaction of this key has left, once it has ended: either the record and the commit hook, or the
/// rollback hook.
async fn assert_has_ended_once(store: &AnyStore, log: &HookLog, key: &str) {
    let (began, rollback) = (format!("began {key}"), format!("rollback {key}"));
    let has_ended = async || store.exists(key).await.unwrap() || log.has(&rollback) || !log.has(&began);
    wait_until("the transaction to end", has_ended).await;
    // The same holder waits for the releases in the background.
    store.lock(key, long_timeout()).await.unwrap().release().await.unwrap();
    let is_committed = store.exists(key).await.unwrap();
    let ran = log.0.lock().unwrap().clone();
    let count = |entry: &str| ran.iter().filter(|ran| **ran == format!("{entry} {key}")).count();
    assert!(count("commit") <= 1 && count("rollback") <= 1, "{ran:?}");
    if is_committed {
        assert_eq!((count("commit"), count("rollback")), (1, 0), "{key}: {ran:?}");
    } else {
        assert_eq!(count("rollback"), count("began"), "{key}: {ran:?}");
    }
}

#[test]
fn a_transaction_can_be_dropped_at_every_await() {
    with_each_store(async |store| {
        for level in [IsolationLevel::ReadCommitted, IsolationLevel::Serializable] {
            let mut outcomes = std::collections::BTreeSet::new();
            for times in 0..100 {
                let log = HookLog::default();
                let run = parent_and_child(store.clone(), level, log.clone());
                // A task of its own, so that the drop has a runtime and a holder.
                let dropped = tokio::spawn(async move { poll_then_drop(times, run).await });
                let done = dropped.await.unwrap();
                for key in ["parent", "child"] {
                    assert_has_ended_once(&store, &log, key).await;
                }
                let position =
                    |key| log.0.lock().unwrap().iter().position(|ran| *ran == format!("rollback {key}"));
                if let (Some(child), Some(parent)) = (position("child"), position("parent")) {
                    assert!(child < parent, "the parent was rolled back before its child");
                }
                let exists = [store.exists("parent").await.unwrap(), store.exists("child").await.unwrap()];
                assert!(exists[1] || !exists[0], "the parent committed without its child");
                outcomes.insert(exists);
                for key in ["parent", "child"] {
                    store.remove(key).await.unwrap();
                }
                if let Some(done) = done {
                    done.unwrap();
                    break;
                }
                assert!(times < 99, "the transaction never ends");
            }
            assert!(outcomes.contains(&[false; 2]) && outcomes.contains(&[true; 2]), "{outcomes:?}");
            // No write of a dropped transaction came later.
            assert!(store.keys().await.unwrap().next().await.is_none());
        }
    });
}

#[test]
fn a_dropped_commit_or_rollback_leaves_no_lock_file() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            for commits in [true, false] {
                for times in 0..40 {
                    let pending = store.transaction("k").unwrap();
                    let pending = pending.isolation_level(IsolationLevel::Serializable).overwrite(true);
                    let mut transaction = pending.begin().await.unwrap();
                    let log = HookLog::default();
                    add_hooks(&mut transaction, &log);
                    transaction.stage(&times).unwrap();
                    let end = async {
                        if commits { transaction.commit().await } else { transaction.rollback().await }
                    };
                    let done = poll_then_drop(times, end).await.is_some();
                    let guard = store.lock("k", long_timeout()).await.unwrap();
                    let result = guard.read::<u32>().await.unwrap().map(|record| record.result);
                    let (is_written, rolled_back) = (result == Some(times), log.has("rollback k"));
                    assert_ne!(is_written, rolled_back, "{times}: {:?}", log.take());
                    assert_eq!(commits && done, is_written && done);
                    guard.remove().await.unwrap();
                    guard.release().await.unwrap();
                    if done {
                        break;
                    }
                }
            }
            let no_lock_file = async || !names_in(dir.path()).iter().any(|name| name.contains(".lock"));
            wait_until("all lock files to be removed", no_lock_file).await;
        });
    }
}

/// A store whose writes wait until the test says whether they succeed.
#[derive(Debug)]
struct Gated {
    store: MemoryRecordStore,
    began: Sender<()>,
    succeeds: Mutex<Receiver<bool>>,
}

impl Gated {
    fn new() -> (Self, Receiver<()>, Sender<bool>) {
        let ((began, has_begun), (succeed, succeeds)) = (channel(), channel());
        (Self { store: MemoryRecordStore::new(), began, succeeds: Mutex::new(succeeds) }, has_begun, succeed)
    }
}

impl RecordStore for Gated {
    fn read_raw(&self, key: &Key, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.store.read_raw(key, options)
    }
    fn write_raw(&self, key: &Key, result: &Json, options: WriteOptions) -> Result<()> {
        self.began.send(()).unwrap();
        if self.succeeds.lock().unwrap().recv_timeout(PATIENCE).unwrap() {
            return self.store.write_raw(key, result, options);
        }
        Err(Error::new(ErrorKind::Io, "write").with_key(key))
    }
    fn exists_raw(&self, key: &Key) -> Result<bool> {
        self.store.exists_raw(key)
    }
    fn supports_isolation_level_raw(&self, _: IsolationLevel) -> bool {
        true
    }
    fn acquire_lock_raw(&self, key: &Key, options: LockOptions) -> Result<Acquired> {
        self.store.acquire_lock_raw(key, options)
    }
    fn release_lock_raw(&self, key: &Key, claim: &Claim, options: WaitOptions) -> Result<()> {
        self.store.release_lock_raw(key, claim, options)
    }
    fn lock_info_raw(&self, key: &Key) -> Result<Option<LockInfo>> {
        self.store.lock_info_raw(key)
    }
}

/// A transaction that commits a write. Its hooks do not wait.
async fn write_once(store: AsyncRecordStore<Gated>, log: HookLog) -> Result<()> {
    let pending = store.transaction("key")?.isolation_level(IsolationLevel::Serializable);
    let run = pending.run(async |transaction| {
        transaction.on_rollback(log.prompt_hook("rollback"));
        transaction.stage(&1)
    });
    run.await
}

#[test]
fn a_write_that_has_begun_decides_what_becomes_of_a_dropped_transaction() {
    for succeeds in [true, false] {
        let (gated, has_begun, succeed) = Gated::new();
        let store = AsyncRecordStore::new(gated);
        let log = HookLog::default();
        multi_threaded().block_on(async {
            let task = tokio::spawn(write_once(store.clone(), log.clone()));
            has_begun.recv_timeout(PATIENCE).unwrap();
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
            assert!(log.take().is_empty(), "a hook ran although the record may be written");
            assert!(store.is_locked("key").await.unwrap(), "the lock was released before the write");
            succeed.send(succeeds).unwrap();
            wait_until("the lock to be released", async || !store.is_locked("key").await.unwrap()).await;
            assert_eq!(store.exists("key").await.unwrap(), succeeds);
            assert_eq!(log.take().len(), usize::from(!succeeds));
            assert!(has_begun.try_recv().is_err(), "it was written twice");
        });
    }
}

#[test]
fn a_write_that_panics_rolls_back() {
    for is_dropped in [false, true] {
        let (gated, has_begun, succeed) = Gated::new();
        let store = AsyncRecordStore::new(gated);
        let log = HookLog::default();
        multi_threaded().block_on(async {
            let task = tokio::spawn(write_once(store.clone(), log.clone()));
            has_begun.recv_timeout(PATIENCE).unwrap();
            let mut task = Some(task);
            if let Some(task) = task.take_if(|_| is_dropped) {
                task.abort();
                assert!(task.await.unwrap_err().is_cancelled());
            }
            // Without a sender, the write panics.
            drop(succeed);
            if let Some(task) = task {
                assert!(task.await.unwrap_err().is_panic());
            }
            wait_until("the lock to be released", async || !store.is_locked("key").await.unwrap()).await;
            assert_eq!(log.take(), ["rollback key"]);
        });
    }
}

#[test]
fn outside_of_a_runtime_a_write_that_has_begun_is_not_undone() {
    let (gated, has_begun, succeed) = Gated::new();
    let store = AsyncRecordStore::new(gated);
    let log = HookLog::default();
    let runtime = multi_threaded();
    let mut run = Box::pin(write_once(store.clone(), log.clone()));
    loop {
        let _entered = runtime.enter();
        let polled = run.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        if has_begun.recv_timeout(millis(1)).is_ok() {
            break;
        }
    }
    let write_waits = std::thread::spawn(move || drop(run));
    write_waits.join().unwrap();
    assert!(log.take().is_empty());
    assert!(!store.inner().is_locked("key").unwrap());
    succeed.send(true).unwrap();
}

#[test]
fn outside_of_a_runtime_each_rollback_hook_is_polled_once() {
    let store = AsyncRecordStore::new(MemoryRecordStore::new());
    for shuts_down in [false, true] {
        let log = HookLog::default();
        let begin = {
            let (store, log) = (store.clone(), log.clone());
            async move {
                let level = IsolationLevel::Serializable;
                let pending = store.transaction("key").unwrap().isolation_level(level);
                let mut transaction = pending.begin().await.unwrap();
                transaction.on_rollback(log.prompt_hook("last"));
                transaction.on_rollback(log.hook_after("never", std::future::pending(), || Ok(())));
                transaction.on_rollback(log.prompt_hook("first"));
                transaction.stage(&1).unwrap();
                transaction
            }
        };
        let runtime = multi_threaded();
        if shuts_down {
            let (sender, started) = channel();
            runtime.spawn(async move {
                let _transaction = begin.await;
                sender.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            started.recv_timeout(PATIENCE).unwrap();
            drop(runtime);
        } else {
            let transaction = runtime.block_on(begin);
            drop(runtime);
            drop(transaction);
        }
        assert_eq!(log.take(), ["first key", "last key"]);
        assert!(!store.inner().is_locked("key").unwrap() && !store.inner().exists("key").unwrap());
    }
}

/// The latch of the key is held, as by a process that is stopped in the middle of an operation.
#[test]
fn an_end_returns_by_its_timeout() {
    let dir = tempdir().unwrap();
    let store = open(dir.path());
    let timeout = millis(50);
    for runtime in [single_threaded(), multi_threaded()] {
        runtime.block_on(async {
            for commits in [true, false] {
                let log = HookLog::default();
                let pending = store.transaction("k").unwrap().lock_options(as_named("me"));
                let pending = pending.isolation_level(IsolationLevel::Serializable).end_wait(timeout);
                let mut transaction = pending.begin().await.unwrap();
                add_hooks(&mut transaction, &log);
                transaction.stage(&1).unwrap();
                let latch = std::fs::File::open(dir.path().join(crate::support::latch_of("k"))).unwrap();
                latch.lock().unwrap();
                let start = std::time::Instant::now();
                if commits {
                    let error = transaction.commit().await.unwrap_err();
                    assert!(error.is_timeout() && error.unstored().is_some(), "{error}");
                } else {
                    transaction.rollback().await.unwrap();
                }
                assert!(
                    start.elapsed() >= timeout && start.elapsed() < PATIENCE / 2,
                    "{:?}",
                    start.elapsed()
                );
                assert_eq!(log.take().last().unwrap(), "rollback k");
                drop(latch);
                // The next guard of the holder makes up for the release that failed.
                store.lock("k", as_named("me")).await.unwrap().release().await.unwrap();
                assert!(!store.is_locked("k").await.unwrap() && !store.exists("k").await.unwrap());
            }
        });
    }
}

#[test]
fn a_transaction_can_be_shared_and_moved_between_threads() {
    fn is_send_and_sync<T: Send + Sync>(value: T) -> T {
        value
    }
    multi_threaded().block_on(async {
        let store = AsyncRecordStore::new(MemoryRecordStore::new());
        let transaction = is_send_and_sync(store.transaction("key").unwrap().begin().await.unwrap());
        let shared = Arc::new(transaction);
        let reader = Arc::clone(&shared);
        let read = tokio::spawn(async move { reader.read::<i64>().await });
        assert!(read.await.unwrap().unwrap().is_none());
        let transaction = Arc::into_inner(shared).unwrap();
        tokio::spawn(transaction.commit()).await.unwrap().unwrap();
    });
}
