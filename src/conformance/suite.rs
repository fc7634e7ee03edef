//! A run of the suite.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::subject::{Stall, Subject};
use super::{Check, LIMIT, Need, PATIENCE, checks, message};
use crate::{Key, RecordStore};

type Starts<'a, S> = Box<dyn Fn(&S) -> Command + 'a>;
type Stalls<S> = Arc<dyn Fn(&S, &Key) -> Box<dyn std::any::Any> + Send + Sync>;

/// The suite for one kind of store, with its options.
///
/// ```
/// # #[cfg(feature = "conformance")] {
/// use record_store::{MemoryRecordStore, conformance::Suite};
///
/// let report = Suite::new(MemoryRecordStore::new).select(|check| check.name().starts_with("keys::")).run();
/// println!("{} checks passed", report.ran().len());
/// # }
/// ```
#[must_use = "call `run`"]
pub struct Suite<'a, S> {
    make: Box<dyn Fn() -> S + 'a>,
    other_process: Option<Starts<'a, S>>,
    stall: Option<Stalls<S>>,
    granularity: Duration,
    limit: Duration,
    selects: Box<dyn Fn(&Check) -> bool + 'a>,
}

impl<S> fmt::Debug for Suite<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite")
            .field("granularity", &self.granularity)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

/// The result of a [`Suite`]. All checks that ran have passed.
#[derive(Clone, Debug)]
pub struct Report {
    ran: Vec<Check>,
    skipped: Vec<Check>,
}

impl Report {
    /// The checks that ran.
    #[must_use]
    pub fn ran(&self) -> &[Check] {
        &self.ran
    }

    /// The selected checks that were skipped, because they [need](Check::needs) what the suite does not have.
    #[must_use]
    pub fn skipped(&self) -> &[Check] {
        &self.skipped
    }
}

impl<'a, S: RecordStore + 'static> Suite<'a, S> {
    /// A suite whose checks each run on a new, empty store from `make`.
    pub fn new(make: impl Fn() -> S + 'a) -> Self {
        Self {
            make: Box::new(make),
            other_process: None,
            stall: None,
            granularity: Duration::ZERO,
            limit: LIMIT,
            selects: Box::new(|_| true),
        }
    }

    /// Runs only the checks for which `selects` returns `true`.
    pub fn select(mut self, selects: impl Fn(&Check) -> bool + 'a) -> Self {
        self.selects = Box::new(selects);
        self
    }

    /// How a check starts another process: `command` returns a program that opens the same store and calls
    /// [`serve`](super::serve). The check starts it as often as it needs, and kills it at its end or before.
    ///
    /// The program's standard input and output belong to the suite. See the [module](super) for an example.
    pub fn other_process(mut self, command: impl Fn(&S) -> Command + 'a) -> Self {
        self.other_process = Some(Box::new(command));
        self
    }

    /// How a check stops everything that changes a key, as a process does that is stopped in the middle of a change:
    /// `stall` returns when that is so, and it is so until the value that it returns is dropped. For example it locks what
    /// each change of the store has to lock. Reads may go on.
    pub fn stall<T: 'static>(mut self, stall: impl Fn(&S, &Key) -> T + Send + Sync + 'static) -> Self {
        self.stall = Some(Arc::new(move |store, key| Box::new(stall(store, key))));
        self
    }

    /// Declares that a lease, and the time to live of a record, may end this much late, but never early. For example an
    /// engine that counts whole seconds rounds a hold timeout up and has a granularity of a second. Such an engine may also
    /// forget an expired lock. Zero, the default: a lease ends on time, and [`locks`](crate::RecordStoreExt::locks) lists
    /// the expired lock.
    ///
    /// # Panics
    ///
    /// If it is more than 2.5 seconds, a quarter of [`PATIENCE`].
    pub fn lease_granularity(mut self, granularity: Duration) -> Self {
        assert!(granularity <= PATIENCE / 4, "the checks have no time for leases that are so inexact");
        self.granularity = granularity;
        self
    }

    /// The limit of each check, in place of [`LIMIT`].
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs every selected check, and reports all failures at the end. Standard error has the name of each check as it
    /// begins, and of each one that is skipped.
    ///
    /// # Panics
    ///
    /// If a check fails. For each failed check, the message contains its name, the violated sentence of the
    /// contract and the observed behaviour.
    #[allow(clippy::must_use_candidate, reason = "a failure panics")]
    pub fn run(self) -> Report {
        let mut report = Report { ran: Vec::new(), skipped: Vec::new() };
        let mut failures = Vec::new();
        for check in checks().iter().filter(|check| (self.selects)(check)) {
            if let Some(need) = check.needs().filter(|need| !self.provides(*need)) {
                eprintln!("{} is skipped: it needs {need}", check.name());
                report.skipped.push(*check);
                continue;
            }
            eprintln!("{}", check.name());
            report.ran.push(*check);
            failures.extend(check.attempt(self.subject(), self.limit).err());
        }
        assert!(
            failures.is_empty(),
            "{} of {} checks failed:\n{}",
            failures.len(),
            report.ran.len(),
            failures.join("\n"),
        );
        report
    }

    fn provides(&self, need: Need) -> bool {
        match need {
            Need::OtherProcess => self.other_process.is_some(),
            Need::Stall => self.stall.is_some(),
        }
    }

    fn subject(&self) -> Subject {
        let store = Arc::new((self.make)());
        let command = self.other_process.as_ref().map(|command| command(&store));
        let stall = self.stall.as_ref().map(|stall| {
            let (stall, store) = (Arc::clone(stall), Arc::clone(&store));
            Box::new(move |key: &Key| stall(&store, key)) as Stall
        });
        Subject::shared(store)
            .with_granularity(self.granularity)
            .with_other_process(command)
            .with_stall(stall)
    }
}

impl Check {
    /// Runs the check on a thread of its own, which is left behind if the check hangs.
    pub(super) fn attempt(&self, subject: Subject, limit: Duration) -> Result<(), String> {
        let check = *self;
        let (sender, outcome) = mpsc::channel();
        let work = move || {
            // Unwind safety does not matter: the store is not used after a panic.
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                check.call(&subject);
                drop(subject);
            }));
            let _ = sender.send(outcome);
        };
        let thread = thread::Builder::new().name(self.name.to_owned()).spawn(work);
        thread.expect("a thread for the check");
        match outcome.recv_timeout(limit) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(payload)) => Err(self.failure(message(&*payload))),
            Err(_) => Err(self.failure(&format!("the check has not ended within {limit:?}: a call hangs"))),
        }
    }
}
