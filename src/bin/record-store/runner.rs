//! The common parts of `run` and `lock`: the limits of their waits, the lock of their command, and its end.

use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use record_store::{Error, FileSystemRecordStore, OwnedLockGuard, RecordStore};

use crate::command::{Ended, Event};
use crate::failure::{Failure, HOLD_EXCEEDED, signal_code};
use crate::limit::Limit;
use crate::signals::Signals;
use crate::store::Store;

/// One use of `run` or `lock`.
pub(crate) struct Runner {
    pub(crate) limit: Limit,
    pub(crate) signals: Signals,
    pub(crate) sender: Sender<Event>,
    pub(crate) events: Receiver<Event>,
}

/// A lock, in the store that the result is written to.
pub(crate) struct Held {
    pub(crate) guard: OwnedLockGuard<dyn RecordStore>,
    pub(crate) store: Store,
    /// The command inherits the owner file, so that it keeps the lock if this process is killed. `None`: at a server,
    /// a lock ends with the connection of this process.
    owner: Option<OwnedFd>,
}

impl Held {
    pub(crate) fn new(guard: OwnedLockGuard<dyn RecordStore>, store: &Store) -> Result<Self, Error> {
        let owner = store.files().map(FileSystemRecordStore::share_owner).transpose()?;
        Ok(Self { guard, store: store.clone(), owner })
    }

    /// The owner file, for the command.
    pub(crate) fn take_owner(&mut self) -> Option<OwnedFd> {
        self.owner.take()
    }
}

impl Runner {
    pub(crate) fn new(wait: Option<Duration>) -> Result<Self, Failure> {
        let (sender, events) = channel();
        let signals = Signals::watch(sender.clone())
            .map_err(|error| Failure::io("cannot watch for signals", &error))?;
        Ok(Self { limit: Limit::new(wait), signals, sender, events })
    }

    /// A signal that arrived while signals were deferred.
    pub(crate) fn deferred_signal(&self) -> Option<i32> {
        self.events.try_iter().find_map(|event| match event {
            Event::Signal(signal) => Some(signal),
            _ => None,
        })
    }
}

impl Ended {
    /// The failure of a command that did not succeed, and the signal that ended it. `says_why`: the command has itself
    /// said why, and nothing is lost.
    pub(crate) fn failure(self, says_why: bool, hold: Option<Duration>) -> (Option<Failure>, Option<i32>) {
        let (failure, signal) = match self {
            Ended::Exited(status) if status.success() => return (None, None),
            Ended::Exited(status) if says_why => (Failure::silent(exit_code(status)), None),
            Ended::Exited(status) => {
                (Failure::new(exit_code(status), format!("the command failed ({status})")), None)
            }
            Ended::HoldExceeded => {
                let message = format!("the command was terminated after {:?}", hold.unwrap_or_default());
                (Failure::new(HOLD_EXCEEDED, message).advise("give it more time with --hold"), None)
            }
            Ended::Signalled(signal) if says_why => (Failure::signal(signal), Some(signal)),
            Ended::Signalled(signal) => {
                let message = format!("the command was terminated because of signal {signal}");
                (Failure::new(signal_code(signal), message), Some(signal))
            }
            Ended::Failed(failure) => (failure, None),
        };
        (Some(failure), signal)
    }
}

/// The exit code of a failed command, as a shell shows it.
fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => signal_code(signal),
        (None, None) => u8::MAX,
    }
}
