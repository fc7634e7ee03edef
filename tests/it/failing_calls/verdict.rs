//! What must be true after a system call has failed.

use std::time::SystemTime;

use nix::errno::Errno;
use nix::libc;
use record_store::LockToken;

use super::faults::{Fault, is_sync, may_be_interrupted};
use super::operations::{Failure, LONG, NEW, OLD, Operation, Outcome};
use crate::support::trace::tamper::Call;

/// A key as another process sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) record: Option<String>,
    /// The live lock: holder, token, end.
    pub(super) lock: Option<(String, LockToken, Option<SystemTime>)>,
    /// The child still has its other lock.
    pub(super) kept: bool,
}

/// One try: which call, what was done to it, what came of it.
#[derive(Debug)]
pub(super) struct Try {
    pub(super) operation: Operation,
    pub(super) site: usize,
    pub(super) call: Call,
    pub(super) fault: Fault,
    pub(super) before: State,
    pub(super) after: State,
    pub(super) outcome: Outcome,
}

impl Try {
    pub(super) fn check(&self) {
        match &self.outcome.result {
            Err(Failure::Panic) => panic!("{self}: a panic"),
            Err(Failure::Error { kind, .. }) => {
                self.check_error(kind.as_deref());
                self.check_undone();
            }
            Ok(told) => {
                let refused = self.fault.errno().is_some_and(|errno| errno != Errno::EINTR);
                assert!(!(refused && self.must_be_told()), "{self}: called a success all the same");
                self.check_done(told);
            }
        }
        self.check_descriptors();
    }

    /// The error is the one that was met, or the one that there would have been anyway.
    fn check_error(&self, kind: Option<&str>) {
        let refused_anyway = self.operation.is_refused() && kind.is_none();
        match self.fault.errno().filter(|_| !may_be_interrupted(self.call) || !self.is_interruption()) {
            // What was interrupted or done in part is gone on with.
            None => assert!(refused_anyway, "{self}: given up"),
            Some(errno) => {
                let met = format!("{:?}", std::io::Error::from(errno).kind());
                // The standard library makes a directory, and if it is there looks whether it is one.
                let there = self.operation.is_open() && kind == Some("AlreadyExists");
                assert!(refused_anyway || kind == Some(&met) || there, "{self}: another error: {kind:?}");
            }
        }
    }

    fn is_interruption(&self) -> bool {
        self.fault.errno() == Some(Errno::EINTR)
    }

    /// An error changed nothing, but for two: where the directory could not be synced, the change is
    /// there, and a sweep that fails half-way has done the first half.
    fn check_undone(&self) {
        let Self { operation, before, after, .. } = self;
        if self.call.number == libc::SYS_fsync && operation.is_durable() {
            assert_eq!((&after.lock, after.kept), (&before.lock, before.kept), "{self}");
            assert_eq!(after.record.as_deref(), self.new_record(), "{self}");
        } else if *operation != Operation::Sweep {
            assert_eq!(after, before, "{self}: an error changed something");
        }
    }

    fn check_descriptors(&self) {
        let mut leaked: Vec<_> = self.outcome.leaked.iter().collect();
        // At most one of each may stay.
        for kind in ["/.store/owners/", "inotify"] {
            if let Some(at) = leaked.iter().position(|path| path.contains(kind)) {
                leaked.remove(at);
            }
        }
        assert!(leaked.is_empty(), "{self}: left open: {leaked:?}");
    }

    /// Whether there is no success without this call: a sync, or the lock by which others are kept
    /// out. To sweep what cannot be locked can be left to the next.
    fn must_be_told(&self) -> bool {
        let exclusive = self.call.arguments[1] & u64::from(libc::LOCK_EX.unsigned_abs()) != 0;
        let sweeps = self.operation.is_open() || self.operation == Operation::Sweep;
        is_sync(self.call.number) && self.operation.is_durable()
            || self.call.number == libc::SYS_flock && exclusive && !sweeps
    }

    fn new_record(&self) -> Option<&str> {
        use Operation::{Remove, WriteByToken, WriteNew, WriteOver, WriteRelaxed};
        match self.operation {
            WriteNew | WriteOver | WriteRelaxed | WriteByToken => Some(NEW),
            Remove => None,
            _ => self.before.record.as_deref(),
        }
    }

    /// What said that it was done was done, and what it told was true.
    fn check_done(&self, told: &str) {
        use Operation as O;
        let Self { before, after, .. } = self;
        assert_eq!(after.record.as_deref(), self.new_record(), "{self}");
        assert_eq!(after.kept, before.kept, "{self}: another lock was lost");
        match self.operation {
            O::Acquire
            | O::AcquireFirst
            | O::AcquireAfresh
            | O::AcquireBlank
            | O::AcquireLongKey
            | O::TakeExpired
            | O::TakeAbandoned => {
                assert_eq!(before.lock, None, "{self}");
                let (_, token, end) = after.lock.clone().unwrap_or_else(|| panic!("{self}: no lock"));
                assert_eq!(token.to_string(), told, "{self}");
                assert!(end.unwrap() > SystemTime::now() + LONG / 2, "{self}: {end:?}");
            }
            O::AcquireAgain | O::Renew => {
                let ((_, old, first), (_, token, second)) = (
                    before.lock.clone().unwrap_or_else(|| panic!("{self}: no lock before")),
                    after.lock.clone().unwrap_or_else(|| panic!("{self}: no lock")),
                );
                assert_eq!(token, old, "{self}");
                assert!(second.unwrap() > first.unwrap() + LONG / 2, "{self}: {second:?}");
            }
            O::Release | O::ReleaseAwaited | O::BreakLock => assert_eq!(after.lock, None, "{self}"),
            _ => assert_eq!(after.lock, before.lock, "{self}"),
        }
        let truth = match self.operation {
            O::Read => OLD,
            O::Remove | O::Exists | O::BreakLock | O::LockInfo | O::WaitFree => "true",
            O::RemoveAbsent | O::WaitHeld | O::WaitHeldFirst => "false",
            O::Keys => "1",
            O::Locks => "2",
            O::AcquireHeld | O::ReadHeld | O::WriteHeld => panic!("{self}: done under another's lock"),
            _ => return,
        };
        assert_eq!(told, truth, "{self}");
    }
}

impl std::fmt::Display for Try {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, site, call, fault, before, after, outcome } = self;
        write!(
            f,
            "{operation:?}: {fault:?} at call {site} (system call {}): {:?}, before: {before:?}, after: {after:?}",
            call.number, outcome.result
        )
    }
}
