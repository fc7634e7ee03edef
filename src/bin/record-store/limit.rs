//! The limit of the waits of one command.

use std::time::{Duration, Instant};

use record_store::Error;

/// How long a command may wait, all its waits together.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    /// `None`: forever.
    wait: Option<Duration>,
    start: Instant,
}

impl Limit {
    pub(crate) fn new(wait: Option<Duration>) -> Self {
        Self { wait, start: Instant::now() }
    }

    pub(crate) fn left(self) -> Option<Duration> {
        self.wait.map(|wait| wait.saturating_sub(self.start.elapsed()))
    }

    /// The error with the time of all waits: it knows only the last one.
    pub(crate) fn with_waited(self, error: Error) -> Error {
        if error.is_timeout() { error.with_waited(self.start.elapsed()) } else { error }
    }
}
