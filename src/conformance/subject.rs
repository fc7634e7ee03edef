//! The subject of a check: a store, and what its caller has said about it.

use std::any::Any;
use std::fmt;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::other_process::OtherProcess;
use crate::{Key, RecordStore};

/// Stops everything that changes a key, until its value is dropped.
pub(super) type Stall = Box<dyn Fn(&Key) -> Box<dyn Any> + Send>;

pub(super) struct Subject {
    store: Arc<dyn RecordStore>,
    granularity: Duration,
    other_process: Option<Mutex<Command>>,
    stall: Option<Mutex<Stall>>,
}

impl Subject {
    pub(super) fn new(store: impl RecordStore + 'static) -> Self {
        Self::shared(Arc::new(store))
    }

    pub(super) fn shared(store: Arc<dyn RecordStore>) -> Self {
        Self { store, granularity: Duration::ZERO, other_process: None, stall: None }
    }

    pub(super) fn with_granularity(mut self, granularity: Duration) -> Self {
        self.granularity = granularity;
        self
    }

    pub(super) fn with_other_process(mut self, command: Option<Command>) -> Self {
        self.other_process = command.map(Mutex::new);
        self
    }

    pub(super) fn with_stall(mut self, stall: Option<Stall>) -> Self {
        self.stall = stall.map(Mutex::new);
        self
    }

    pub(super) fn store(&self) -> &dyn RecordStore {
        &*self.store
    }

    /// A lease may end this much later than its hold timeout says. Zero: it ends on time.
    pub(super) fn granularity(&self) -> Duration {
        self.granularity
    }

    /// Another process that has the store open.
    pub(super) fn other(&self) -> OtherProcess {
        let command = self.other_process.as_ref().expect("this check needs another process: use a `Suite`");
        OtherProcess::start(&mut command.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops everything that changes the key, until the value is dropped.
    pub(super) fn stall(&self, key: &str) -> Box<dyn Any> {
        let stall = self.stall.as_ref().expect("this check needs a way to stop a change: use a `Suite`");
        let stall = stall.lock().unwrap_or_else(PoisonError::into_inner);
        stall(&Key::new(key).expect("a key"))
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("store", &self.store).finish_non_exhaustive()
    }
}
