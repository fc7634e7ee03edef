//! The checks after a system call has failed.

use std::time::SystemTime;

use nix::errno::Errno;
use nix::libc;
use record_store::LockToken;

use super::faults::{Fault, is_sync, may_be_interrupted};
use super::operations::{Failure, LONG_LEASE, NEW, OLD, Operation, Outcome};
use crate::support::trace::tamper::Call;

/// The state of a key, as another process sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct State {
    pub(super) record: Option<String>,
    /// The live lock.
    pub(super) lock: Option<Held>,
    /// The others that share it.
    pub(super) sharers: Vec<Held>,
    /// Whether the child still holds its other lock.
    pub(super) kept: bool,
}

/// A holder of the live lock: its name, token and expiry.
pub(super) type Held = (String, LockToken, Option<SystemTime>);

/// One injected fault: the call, the fault and the outcome.
#[derive(Debug)]
pub(super) struct Injection {
    pub(super) operation: Operation,
    pub(super) site: usize,
    pub(super) call: Call,
    pub(super) fault: Fault,
    pub(super) before: State,
    pub(super) after: State,
    pub(super) outcome: Outcome,
}

impl Injection {
    pub(super) fn check(&self) {
        match &self.outcome.result {
            Err(Failure::Panic) => panic!("{self}: a panic"),
            Err(Failure::Error { kind, outcome_unknown, .. }) => {
                self.check_error(kind.as_deref());
                self.check_unchanged();
                self.check_outcome_unknown(*outcome_unknown);
            }
            Ok(value) => {
                let refused = self.fault.errno().is_some_and(|errno| errno != Errno::EINTR);
                assert!(!(refused && self.is_required()), "{self}: success despite the failure");
                self.check_effect(value);
            }
        }
        self.check_descriptors();
    }

    /// The error must be the injected one, or the one that the operation returns without a fault.
    fn check_error(&self, kind: Option<&str>) {
        let refused_anyway = self.operation.is_refused() && kind.is_none();
        match self.fault.errno().filter(|_| !may_be_interrupted(self.call) || !self.is_interruption()) {
            // An interrupted or partial call must be continued.
            None => assert!(refused_anyway, "{self}: gave up"),
            Some(errno) => {
                let injected = format!("{:?}", std::io::Error::from(errno).kind());
                // After a failed mkdir the standard library checks whether the directory exists. If that
                // check fails too, it returns the error of the mkdir.
                let exists = self.operation.is_open() && kind == Some("AlreadyExists");
                assert!(refused_anyway || kind == Some(&injected) || exists, "{self}: wrong error: {kind:?}");
            }
        }
    }

    fn is_interruption(&self) -> bool {
        self.fault.errno() == Some(Errno::EINTR)
    }

    /// After an error nothing has changed. But a sweep that fails halfway has done its first half.
    fn check_unchanged(&self) {
        let Self { operation, before, after, .. } = self;
        if *operation != Operation::Sweep {
            assert_eq!(after, before, "{self}: an error changed something");
        }
    }

    /// The error says that the outcome is unknown exactly if a power loss may bring the change back.
    fn check_outcome_unknown(&self, outcome_unknown: bool) {
        // An open changes no record and no lock.
        if !self.operation.is_open() {
            assert_eq!(outcome_unknown, self.is_beyond_repair(), "{self}: is the outcome unknown?");
        }
    }

    /// Whether no such sync succeeds: the change was taken back, but that is perhaps not on the disk. An operation that only
    /// reads has made no change.
    fn is_beyond_repair(&self) -> bool {
        use Operation as O;
        is_sync(self.call.number)
            && !matches!(self.operation, O::Read | O::ReadAbsent | O::Exists | O::RemoveAbsent | O::WaitFree)
            && !self.acquires_bound_lock()
            && matches!(self.fault, Fault::Always(_))
    }

    /// The log is told nothing of a lock that is bound to the process. The last release is synced before anything changes.
    fn acquires_bound_lock(&self) -> bool {
        use Operation as O;
        matches!(
            self.operation,
            O::Acquire
                | O::AcquireFirst
                | O::AcquireAfresh
                | O::AcquireBlank
                | O::AcquireLongKey
                | O::TakeExpired
                | O::TakeAbandoned
        )
    }

    fn check_descriptors(&self) {
        let mut leaked: Vec<_> = self.outcome.leaked.iter().collect();
        // At most one of each may stay open.
        for kind in ["/.store/owners/", "/.store/log/", "inotify"] {
            if let Some(at) = leaked.iter().position(|path| path.contains(kind)) {
                leaked.remove(at);
            }
        }
        assert!(leaked.is_empty(), "{self}: left open: {leaked:?}");
    }

    /// Whether the operation cannot succeed without this call: a sync, or the exclusive lock that keeps
    /// other processes out. A sweep may skip entries that it cannot lock.
    fn is_required(&self) -> bool {
        let exclusive = self.call.arguments[1] & u64::from(libc::LOCK_EX.unsigned_abs()) != 0;
        let sweeps = self.operation.is_open() || self.operation == Operation::Sweep;
        // The changes that are told to the log, those of named locks too, are synced with `fdatasync`.
        let is_of_log = self.call.number == libc::SYS_fdatasync && !sweeps;
        is_of_log
            // The record that the relaxed write replaces was written by hand, so it syncs the directory, too.
            || is_sync(self.call.number)
                && (self.operation.is_durable() || self.operation == Operation::WriteRelaxed)
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

    /// A successful operation has had its effect, and the returned value is correct.
    fn check_effect(&self, value: &str) {
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
                assert_eq!(token.to_string(), value, "{self}");
                assert!(end.unwrap() > SystemTime::now() + LONG_LEASE / 2, "{self}: {end:?}");
            }
            O::AcquireAgain | O::Renew => {
                let ((_, old, first), (_, token, second)) = (
                    before.lock.clone().unwrap_or_else(|| panic!("{self}: no lock before")),
                    after.lock.clone().unwrap_or_else(|| panic!("{self}: no lock")),
                );
                assert_eq!(token, old, "{self}");
                assert!(second.unwrap() > first.unwrap() + LONG_LEASE / 2, "{self}: {second:?}");
            }
            O::Join | O::JoinNamed => {
                assert_eq!(after.lock, before.lock, "{self}: the other holder");
                let [(_, token, end)] = &after.sharers[..] else { panic!("{self}: not shared") };
                assert_eq!(token.to_string(), value, "{self}");
                assert!(end.unwrap() > SystemTime::now() + LONG_LEASE / 2, "{self}: {end:?}");
            }
            O::LeaveNamed => {
                assert_eq!(after.lock, before.lock, "{self}: the other holder");
                assert_eq!((before.sharers.len(), &after.sharers), (1, &Vec::new()), "{self}: not released");
            }
            O::Release | O::ReleaseAwaited | O::BreakLock => assert_eq!(after.lock, None, "{self}"),
            _ => assert_eq!(after.lock, before.lock, "{self}"),
        }
        let expected = match self.operation {
            O::Read => OLD,
            O::Remove | O::Exists | O::BreakLock | O::LockInfo | O::WaitFree => "true",
            O::RemoveAbsent | O::WaitHeld | O::WaitHeldFirst => "false",
            O::Keys => "1",
            O::Locks => "2",
            O::AcquireHeld | O::ReadHeld | O::WriteHeld => {
                panic!("{self}: success under another holder's lock")
            }
            _ => return,
        };
        assert_eq!(value, expected, "{self}");
    }
}

impl std::fmt::Display for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { operation, site, call, fault, before, after, outcome } = self;
        write!(
            f,
            "{operation:?}: {fault:?} at call {site} (system call {}): {:?}, before: {before:?}, after: {after:?}",
            call.number, outcome.result
        )
    }
}
