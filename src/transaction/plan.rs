//! A transaction that has not begun, in both forms: its settings, and its begin.

use std::sync::Arc;

use super::backend::Backend;
use super::begun::Begun;
use super::settings::Settings;
use super::work::Work;
use super::{CommitMode, TransactionState};
use crate::{Error, ErrorKind, IsolationLevel, Key, LockOptions, Result, WaitOptions};

/// The methods of a pending transaction that both forms have.
macro_rules! pending_methods {
    () => {
        /// Sets the isolation level. [`ReadCommitted`](crate::IsolationLevel::ReadCommitted), the default, acquires no
        /// lock: of two concurrent transactions, the later commit wins.
        /// [`Serializable`](crate::IsolationLevel::Serializable) holds the lock from begin to end.
        pub fn isolation_level(mut self, level: $crate::IsolationLevel) -> Self {
            self.plan.settings.level = level;
            self
        }

        /// Sets when the transaction commits. The default is [`Lazy`](crate::CommitMode::Lazy).
        pub fn commit_mode(mut self, mode: $crate::CommitMode) -> Self {
            self.plan.settings.mode = mode;
            self
        }

        /// Whether to do the work and overwrite the record if it already exists. The default is `false`.
        pub fn overwrite(mut self, overwrite: bool) -> Self {
            self.plan.overwrite = overwrite;
            self
        }

        /// Sets how the lock is acquired, by which holder and waiting how long. A transaction without a lock also writes
        /// its record as this holder. The lock is exclusive in any case.
        pub fn lock_options(mut self, options: $crate::LockOptions) -> Self {
            self.plan.settings.lock = options.exclusive();
            self
        }

        /// Sets how long the end of the transaction may wait, in a commit and in a rollback: for a process that is stopped
        /// in the middle of an operation on the key. The default waits forever.
        ///
        /// It limits the writes and the releases of the transaction and of the children that end with it, all together. It
        /// does not interrupt a hook, but the time that hooks take counts. A write that does not succeed in time fails with
        /// [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) or
        /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), and the transaction rolls back. A release that does not
        /// succeed in time is not reported: the lock stays until its lease expires, the process ends, or the next guard of
        /// the holder releases it. Each release is attempted at least once, also if the end is cancelled.
        pub fn end_wait(mut self, options: impl Into<$crate::WaitOptions>) -> Self {
            self.plan.settings.end_wait = options.into();
            self
        }

        /// Always [`TransactionState::Pending`](crate::TransactionState::Pending).
        #[must_use]
        pub fn state(&self) -> $crate::TransactionState {
            $crate::TransactionState::Pending
        }
    };
}
pub(crate) use pending_methods;

/// What both forms of a pending transaction have.
pub(crate) struct Plan<'p, 's> {
    backend: Arc<dyn Backend<'s> + 's>,
    parent: Option<&'p mut Work<'s>>,
    key: Key,
    pub(crate) overwrite: bool,
    pub(crate) settings: Settings,
}

impl<'p, 's> Plan<'p, 's> {
    pub(crate) fn new(backend: impl Backend<'s> + 's, key: Key) -> Self {
        let (level, mode) = (IsolationLevel::ReadCommitted, CommitMode::default());
        let settings = Settings { level, mode, lock: LockOptions::new(), end_wait: WaitOptions::new() };
        Self { backend: Arc::new(backend), parent: None, key, overwrite: false, settings }
    }

    /// A child of this transaction.
    pub(crate) fn within(parent: &'p mut Work<'s>, key: Key) -> Self {
        let (backend, settings) = (Arc::clone(&parent.backend), parent.settings.clone());
        Self { backend, parent: Some(parent), key, overwrite: false, settings }
    }

    /// See [`PendingTransaction::begin`](crate::PendingTransaction::begin).
    pub(crate) async fn begin(self) -> Result<Begun<'p, 's>> {
        let Self { backend, parent, key, overwrite, mut settings } = self;
        if !backend.supports_isolation_level(settings.level) {
            let error = Error::new(ErrorKind::UnsupportedIsolationLevel, "begin").with_key(&key);
            return Err(error.with_detail(format!("{:?}", settings.level)));
        }
        let holder = settings.lock.get_holder().cloned().unwrap_or_else(|| backend.default_holder());
        settings.lock = settings.lock.holder(holder);
        let lock = match settings.level {
            IsolationLevel::ReadCommitted => None,
            IsolationLevel::Serializable => Some(backend.lock(key.clone(), settings.lock.clone()).await?),
        };
        let is_done = !overwrite && backend.exists(&key).await?;
        let mut work = Work::new(backend, key, settings, lock);
        if is_done {
            work.state = TransactionState::Committed;
        }
        Ok(Begun { work, parent })
    }
}
