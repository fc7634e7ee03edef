//! The messages between a check and its other processes: each message is a line of standard input or output.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Claim, Error, Holder, LockToken};

/// The beginning of a message. Other lines of the other process are its own, for example those of a test runner.
pub(super) const MARK: &str = "conformance> ";

/// On what ground an operation is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Who {
    /// The default holder of the thread that carries out the requests.
    Current,
    Named(String),
    Bound(String),
    Token(u64),
    Delegated(u64),
}

impl Who {
    pub(super) fn named(name: &str) -> Self {
        Self::Named(name.to_owned())
    }

    pub(super) fn claim(&self) -> Claim {
        match self {
            Self::Token(token) => Claim::Token(LockToken::new(*token)),
            Self::Delegated(token) => Claim::Delegated(LockToken::new(*token)),
            holder => Claim::Holder(holder.holder()),
        }
    }

    pub(super) fn holder(&self) -> Holder {
        match self {
            Self::Named(name) => Holder::named(name.clone()).expect("a valid name"),
            Self::Bound(name) => Holder::bound(name.clone()).expect("a valid name"),
            _ => Holder::current(),
        }
    }
}

/// An operation for the other process. Without a timeout, it waits for as long as it has to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Request {
    Read {
        key: String,
        who: Who,
        timeout: Option<Duration>,
    },
    Write {
        key: String,
        who: Who,
        result: u64,
    },
    Remove {
        key: String,
        who: Who,
    },
    Version {
        key: String,
    },
    WaitForChange {
        key: String,
        seen: Option<u64>,
        timeout: Option<Duration>,
    },
    Acquire {
        key: String,
        who: Who,
        hold: Option<Duration>,
        timeout: Option<Duration>,
    },
    Renew {
        key: String,
        who: Who,
    },
    Release {
        key: String,
        who: Who,
    },
    IsLocked {
        key: String,
    },
    WaitForLock {
        key: String,
        timeout: Option<Duration>,
    },
    /// Increments the number of a record under its lock, and that of another one by swaps.
    Count {
        locked: String,
        swapped: String,
        rounds: u32,
    },
    /// Forks. The child carries out the request with the store of its parent, and ends.
    InForkedChild(Box<Request>),
}

impl Request {
    /// One attempt to acquire the lock, without a lease.
    pub(super) fn try_acquire(key: &str, who: Who) -> Self {
        Self::Acquire { key: key.to_owned(), who, hold: None, timeout: Some(Duration::ZERO) }
    }

    pub(super) fn write(key: &str, who: Who, result: u64) -> Self {
        Self::Write { key: key.to_owned(), who, result }
    }

    pub(super) fn release(key: &str, who: Who) -> Self {
        Self::Release { key: key.to_owned(), who }
    }

    /// A read that does not wait.
    pub(super) fn read(key: &str, who: Who) -> Self {
        Self::Read { key: key.to_owned(), who, timeout: Some(Duration::ZERO) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    /// The other process has opened the store, and waits for requests.
    Ready,
    Done,
    Flag(bool),
    /// A result, a token or a version.
    Number(Option<u64>),
    /// The kind of an error as `Debug` shows it, and its text.
    Failed(String, String),
}

impl Answer {
    pub(super) fn of<T>(outcome: Result<T, Error>, answer: impl FnOnce(T) -> Self) -> Self {
        match outcome {
            Ok(value) => answer(value),
            Err(error) => Self::Failed(format!("{:?}", error.kind()), error.to_string()),
        }
    }
}
