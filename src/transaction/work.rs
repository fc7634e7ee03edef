//! The work of a begun transaction: staging, commit and rollback. Written once, with `async`, for both forms.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem::{replace, take};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use serde::Serialize;

use super::backend::{Backend, HeldLock};
use super::end::{End, Step};
use super::settings::Settings;
use super::{BoxError, TransactionState};
use crate::compute::Call;
use crate::process::ProcessId;
use crate::store::calls::{caught, poll_once};
use crate::{Claim, Error, ErrorKind, Json, Key, LockToken, RawRecord, ReadOptions, Result, WriteOptions};

/// A begun transaction without the reference to its parent. Rolls back if it is dropped before it has ended.
///
/// The future of an end may be dropped at any await. So each step stays here until its outcome has arrived, and the
/// rollback that follows the drop finds what has begun.
pub(crate) struct Work<'s> {
    pub(super) backend: Arc<dyn Backend<'s> + 's>,
    /// In a forked child, the transaction and its hooks do nothing.
    process: ProcessId,
    pub(crate) key: Key,
    /// With a holder: another thread or task, with another default holder, may end the transaction.
    pub(crate) settings: Settings,
    pub(crate) state: TransactionState,
    /// Held from begin to end under [`IsolationLevel::Serializable`](crate::IsolationLevel::Serializable).
    lock: Option<Box<dyn HeldLock<'s> + 's>>,
    staged: Option<Arc<Json>>,
    /// The write, once it has begun.
    write: Option<Step<'s>>,
    on_commit: VecDeque<Step<'s>>,
    on_rollback: Vec<Step<'s>>,
    /// Finished children that commit or roll back with this transaction, in the order in which they finished.
    pub(super) children: Vec<Work<'s>>,
    /// The rollbacks of dropped children that continue in the background. They end before this transaction does.
    pub(super) abandoned: Vec<Step<'s>>,
    /// It was dropped, and its rollback continues in the background.
    is_in_background: bool,
}

impl<'s> Work<'s> {
    pub(super) fn new(
        backend: Arc<dyn Backend<'s> + 's>,
        key: Key,
        settings: Settings,
        lock: Option<Box<dyn HeldLock<'s> + 's>>,
    ) -> Self {
        let (process, state) = (ProcessId::current(), TransactionState::Active);
        let (staged, write, on_commit, on_rollback, abandoned, children) = Default::default();
        Self {
            backend,
            process,
            key,
            settings,
            state,
            lock,
            staged,
            write,
            on_commit,
            on_rollback,
            abandoned,
            children,
            is_in_background: false,
        }
    }

    pub(crate) fn token(&self) -> Option<LockToken> {
        self.lock.as_ref().map(|lock| lock.token())
    }

    /// The claim of the transaction: its token, or its holder without a lock.
    fn claim(&self, operation: &'static str) -> Result<Claim> {
        match &self.lock {
            Some(lock) => lock.claim(operation),
            None => Ok(Claim::Holder(self.settings.lock.resolve_holder())),
        }
    }

    pub(crate) async fn read(&self, options: ReadOptions) -> Result<Option<RawRecord>> {
        self.backend.read(&self.key, options.claim(self.claim("read")?)).await
    }

    pub(crate) fn stage<R: Serialize + ?Sized>(&mut self, result: &R) -> Result<()> {
        self.check_process("stage")?;
        if self.is_finished() {
            return Ok(());
        }
        self.staged = Some(Arc::new(Json::encode_result("stage", &self.key, result)?));
        self.state = TransactionState::Staged;
        Ok(())
    }

    pub(crate) fn on_commit(&mut self, hook: impl Future<Output = Result<(), BoxError>> + Send + 's) {
        self.on_commit.push_back(Step::hook("commit", &self.key, hook));
    }

    pub(crate) fn on_rollback(&mut self, hook: impl Future<Output = Result<(), BoxError>> + Send + 's) {
        self.on_rollback.push(Step::hook("rollback", &self.key, hook));
    }

    fn check_process(&self, operation: &'static str) -> Result<()> {
        if self.process.is_here() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::WrongProcess, operation).with_key(&self.key))
    }

    fn is_finished(&self) -> bool {
        matches!(self.state, TransactionState::Committed | TransactionState::RolledBack)
    }

    pub(super) fn commit<'a>(&'a mut self, end: &'a End) -> Call<'a, Result<()>> {
        Box::pin(async move {
            self.check_process("commit")?;
            self.end_abandoned(end).await;
            if self.is_finished() {
                self.commit_children(end).await?;
            } else if let Err(error) = self.try_commit(end).await {
                // Report the cause of the rollback, not an error of a rollback hook.
                let _ = self.roll_back(end).await;
                return Err(error);
            } else {
                self.state = TransactionState::Committed;
            }
            self.release(end).await;
            Ok(())
        })
    }

    async fn try_commit(&mut self, end: &End) -> Result<()> {
        self.commit_children(end).await?;
        while let Some(hook) = self.on_commit.front_mut() {
            let outcome = hook.outcome(end).await;
            self.on_commit.pop_front();
            outcome.transpose()?;
        }
        let Some(staged) = self.staged.take() else { return Ok(()) };
        let options = self.claim("write").map(|claim| WriteOptions::new().claim(claim).wait(end.wait()));
        let write = options.map(|options| self.backend.write(&self.key, &staged, options));
        self.write = Some(Step::new(async move {
            let written = match write {
                Ok(write) => write.await,
                Err(error) => Err(error),
            };
            // The caller may have no other copy (I14).
            written.map_err(|error| error.with_unstored(Json::clone(&staged)))
        }));
        self.written(end).await
    }

    /// Waits for the write, if it has begun: its outcome decides what becomes of the transaction.
    async fn written(&mut self, end: &End) -> Result<()> {
        if self.write.is_none() {
            return Ok(());
        }
        let outcome = poll_fn(|context| {
            let Some(mut write) = self.write.take() else { return Poll::Ready(None) };
            // If it panics, it is gone, and the rollback does not poll it again.
            let polled = write.poll(context, end);
            if polled.is_pending() {
                self.write = Some(write);
            }
            polled
        });
        let outcome = outcome.await;
        // If nothing can wait for the outcome, the record may be written: no hook must undo what belongs to it.
        outcome.unwrap_or(Ok(()))?;
        self.state = TransactionState::Committed;
        Ok(())
    }

    async fn commit_children(&mut self, end: &End) -> Result<()> {
        for child in &mut self.children {
            child.commit(end).await?;
        }
        Ok(())
    }

    pub(super) fn roll_back<'a>(&'a mut self, end: &'a End) -> Call<'a, Result<()>> {
        Box::pin(async move {
            self.check_process("rollback")?;
            // A commit whose future was dropped may have begun to write. Nobody is left for its error or its panic.
            let _ = caught(self.written(end)).await;
            // Its hook, if one was waiting, ends here and not beside the hooks of the rollback.
            self.on_commit.clear();
            self.end_abandoned(end).await;
            let mut outcome = Ok(());
            for child in self.children.iter_mut().rev() {
                outcome = outcome.and(child.roll_back(end).await);
            }
            if self.state != TransactionState::Committed {
                self.state = TransactionState::RolledBack;
                while let Some(hook) = self.on_rollback.last_mut() {
                    let ran = hook.outcome(end).await;
                    self.on_rollback.pop();
                    outcome = outcome.and(ran.unwrap_or(Ok(())));
                }
            }
            self.release(end).await;
            outcome
        })
    }

    async fn end_abandoned(&mut self, end: &End) {
        while let Some(child) = self.abandoned.last_mut() {
            let _ = child.outcome(end).await;
            self.abandoned.pop();
        }
    }

    async fn release(&mut self, end: &End) {
        if let Some(lock) = self.lock.take() {
            lock.release(end).await;
        }
    }

    /// Whether neither a commit nor a rollback has anything left to do.
    fn is_over(&self) -> bool {
        let has_ended = match self.state {
            TransactionState::Committed => true,
            TransactionState::RolledBack => self.on_rollback.is_empty(),
            _ => false,
        };
        let has_waiting = self.write.is_some() || !self.abandoned.is_empty();
        has_ended && !has_waiting && self.lock.is_none() && self.children.iter().all(Work::is_over)
    }

    fn give_up_locks(&self) {
        self.lock.iter().for_each(|lock| lock.give_up());
        self.children.iter().for_each(Work::give_up_locks);
    }

    /// Rolls back without a caller, if the transaction has not ended. `Some`: that goes on in the background, and the step
    /// waits for it.
    pub(super) fn abandon(&mut self) -> Option<Step<'s>> {
        if self.is_over() || !self.process.is_here() {
            return None;
        }
        // A drop cannot report an error.
        let background = if self.is_in_background { None } else { self.backend.background() };
        let Some(continue_in_background) = background else {
            let _ = poll_once(self.roll_back(&End::dropped_at_last()));
            return None;
        };
        self.give_up_locks();
        let mut work = self.take();
        work.is_in_background = true;
        let mut rest: Call<'s, ()> = Box::pin(async move {
            let _ = work.roll_back(&End::dropped()).await;
        });
        // All that does not have to wait is done when the drop returns, as in the blocking form.
        if rest.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            return None;
        }
        let ended = continue_in_background(rest);
        Some(Step::new(async move {
            ended.await;
            Ok(())
        }))
    }

    /// Moves the work out. What it leaves has nothing to do.
    pub(super) fn take(&mut self) -> Self {
        Self {
            backend: Arc::clone(&self.backend),
            process: self.process,
            key: self.key.clone(),
            settings: self.settings.clone(),
            state: replace(&mut self.state, TransactionState::RolledBack),
            lock: self.lock.take(),
            staged: self.staged.take(),
            write: self.write.take(),
            on_commit: take(&mut self.on_commit),
            on_rollback: take(&mut self.on_rollback),
            abandoned: take(&mut self.abandoned),
            children: take(&mut self.children),
            is_in_background: false,
        }
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        drop(self.abandon());
    }
}
