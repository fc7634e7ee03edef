//! The settings of a transaction.

use super::CommitMode;
use crate::{IsolationLevel, LockOptions, WaitOptions};

/// The settings that a child inherits.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) level: IsolationLevel,
    pub(crate) mode: CommitMode,
    pub(crate) lock: LockOptions,
    pub(crate) end_wait: WaitOptions,
}
