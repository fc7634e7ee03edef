//! A begun transaction, in both forms.

use std::fmt;

use super::end::End;
use super::work::Work;
use super::{CommitMode, TransactionState};
use crate::{Error, Result};

/// The methods of a begun transaction that both forms have.
macro_rules! transaction_methods {
    () => {
        /// The key.
        #[must_use]
        pub fn key(&self) -> &$crate::Key {
            &self.begun.work.key
        }

        /// The state.
        #[must_use]
        pub fn state(&self) -> $crate::TransactionState {
            self.begun.work.state
        }

        /// Whether the record already existed when the transaction began, so that no work is left.
        #[must_use]
        pub fn is_committed(&self) -> bool {
            self.state() == $crate::TransactionState::Committed
        }

        /// The isolation level.
        #[must_use]
        pub fn isolation_level(&self) -> $crate::IsolationLevel {
            self.begun.work.settings.level
        }

        /// The token of the lock, under [`IsolationLevel::Serializable`](crate::IsolationLevel::Serializable).
        #[must_use]
        pub fn token(&self) -> Option<$crate::LockToken> {
            self.begun.work.token()
        }

        /// Stages the result that [`commit`](Self::commit) writes. Replaces a result that was staged before. Does
        /// nothing if the transaction is already committed.
        ///
        /// # Errors
        ///
        /// [`ErrorKind::Encode`](crate::ErrorKind::Encode) if JSON cannot represent the result. A result that was staged
        /// before stays staged.
        pub fn stage<R: serde::Serialize + ?Sized>(&mut self, result: &R) -> $crate::Result<()> {
            self.begun.work.stage(result)
        }
    };
}
pub(crate) use transaction_methods;

/// What both forms of a begun transaction have.
pub(crate) struct Begun<'p, 's> {
    pub(crate) work: Work<'s>,
    /// Takes over this transaction's work if it commits with its parent.
    pub(super) parent: Option<&'p mut Work<'s>>,
}

impl Begun<'_, '_> {
    pub(crate) async fn commit(mut self) -> Result<()> {
        commit(&mut self.work).await
    }

    pub(crate) async fn roll_back(mut self) -> Result<()> {
        roll_back(&mut self.work).await
    }

    /// Ends according to the commit mode, or leaves the end to the parent.
    pub(crate) async fn finish(mut self) -> Result<TransactionState> {
        let Self { work, parent } = &mut self;
        match (work.settings.mode, parent) {
            (CommitMode::Lazy | CommitMode::Off, Some(parent)) => {
                let state = work.state;
                parent.children.push(work.take());
                return Ok(state);
            }
            (CommitMode::Eager, _) | (CommitMode::Lazy, None) => commit(work).await?,
            (CommitMode::Off, None) => roll_back(work).await?,
        }
        Ok(work.state)
    }

    /// Ends with the outcome of the work: finishes, or rolls back after an error.
    pub(crate) async fn end<T, E: From<Error>>(self, outcome: Result<T, E>) -> Result<T, E> {
        match outcome {
            Ok(outcome) => self.finish().await.map(|_| outcome).map_err(E::from),
            Err(error) => {
                // The cause of the rollback is reported, and not an error of a rollback hook.
                let _ = self.roll_back().await;
                Err(error)
            }
        }
    }
}

impl Drop for Begun<'_, '_> {
    fn drop(&mut self) {
        let rest = self.work.abandon();
        if let Some(parent) = &mut self.parent {
            parent.abandoned.extend(rest);
        }
    }
}

async fn commit(work: &mut Work<'_>) -> Result<()> {
    let end = End::called(&work.settings.end_wait);
    let committed = work.commit(&end).await;
    if committed.is_err() {
        // The children that are left, if the record existed already. Otherwise this does nothing.
        let _ = work.roll_back(&end).await;
    }
    committed
}

async fn roll_back(work: &mut Work<'_>) -> Result<()> {
    let end = End::called(&work.settings.end_wait);
    work.roll_back(&end).await
}

impl fmt::Debug for Begun<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction")
            .field("key", &self.work.key)
            .field("state", &self.work.state)
            .field("isolation_level", &self.work.settings.level)
            .field("commit_mode", &self.work.settings.mode)
            .finish_non_exhaustive()
    }
}
