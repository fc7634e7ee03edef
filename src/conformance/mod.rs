//! The contract of [`RecordStore`] as a test suite for any store.
//!
//! One call runs every check, each on a new store:
//!
//! ```
//! # #[cfg(feature = "conformance")]
//! record_store::conformance::run(record_store::MemoryRecordStore::new);
//! ```
//!
//! A store that uses files needs a new directory for each check:
//!
//! ```no_run
//! # #[cfg(feature = "conformance")] {
//! use record_store::{FileSystemRecordStore, conformance};
//!
//! let root = tempfile::tempdir()?;
//! let number = std::cell::Cell::new(0);
//! conformance::run(|| {
//!     number.set(number.get() + 1);
//!     FileSystemRecordStore::open(root.path().join(number.get().to_string())).expect("a new store")
//! });
//! # }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! A [`Suite`] has the options: which checks it runs, what the store's leases are like, how a check can start another
//! process and stop one in the middle of a change. Checks that need what the caller did not provide are skipped, and
//! reported as skipped. [`by_turns`] runs the suite on two handles of one store.
//!
//! A store that does not implement every method ([`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported)) selects the
//! checks that apply to it:
//!
//! ```
//! # #[cfg(feature = "conformance")] {
//! use record_store::{MemoryRecordStore, conformance};
//!
//! let report = conformance::Suite::new(MemoryRecordStore::new)
//!     .select(|check| check.name().starts_with("records::"))
//!     .run();
//! assert!(!report.ran().is_empty() && report.skipped().is_empty());
//! # }
//! ```
//!
//! To run each check as a separate test, iterate over [`checks`].
//!
//! # Several processes
//!
//! The checks of the group `processes::` need another process: the lock of a killed process is free, a token of a bound
//! lock is worth nothing elsewhere, waiters of other processes are woken and served in order, a forked child is not its
//! parent. For that the caller says how another process opens the store of a check, and this process
//! calls [`serve`]. Here the program starts itself again:
//!
//! ```standalone_crate
//! # #[cfg(not(feature = "conformance"))]
//! # fn main() {}
//! # #[cfg(feature = "conformance")]
//! use record_store::{FileSystemRecordStore, conformance::{self, Suite}};
//!
//! # #[cfg(feature = "conformance")]
//! fn main() {
//!     if let Some(dir) = std::env::var_os("STORE_OF_THE_SUITE") {
//!         conformance::serve(&FileSystemRecordStore::open(dir).expect("the store of the check"));
//!     }
//!     let root = tempfile::tempdir().expect("a directory");
//!     let number = std::cell::Cell::new(0);
//!     let suite = Suite::new(|| {
//!         number.set(number.get() + 1);
//!         FileSystemRecordStore::open(root.path().join(number.get().to_string())).expect("a new store")
//!     });
//!     let suite = suite.other_process(|store| {
//!         let mut program = std::process::Command::new(std::env::current_exe().expect("this program"));
//!         program.env("STORE_OF_THE_SUITE", store.path());
//!         program
//!     });
//! #   let suite = suite.select(|check| check.name().starts_with("processes::records"));
//!     let report = suite.run();
//!     assert!(report.ran().iter().any(|check| check.name().starts_with("processes::")));
//! }
//! ```
//!
//! In a test binary, the other process is a test that does nothing unless it is asked to: see [`test_binary`].
//!
//! # Timing
//!
//! The checks acquire locks as the default holder and as named holders, wait on their own threads, and let
//! leases of about 150 ms expire. Lower time limits are exact: nothing may happen too early. Upper limits
//! have seconds of tolerance, so that a loaded machine does not fail a check. Where a store may not even be late by
//! that much ([`WAKE`], [`DEATH`]), a check makes several rounds, of which only some have to be in time.
//!
//! A store whose leases are less exact [says so](Suite::lease_granularity).
//!
//! # Failures
//!
//! Each check is named on standard error as it begins, and runs on a thread that has its name. It has a [limit](LIMIT)
//! of its own: one that hangs is a failure with its name, its thread is left behind, and the suite goes on. Every failure
//! says what is expected, which is the sentence of the contract, and what was observed.
//!
//! # Limitations
//!
//! The suite does not check power loss, and it kills a process only while that process waits or holds a lock, not in the
//! middle of an operation.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

use std::any::Any;
use std::fmt;
use std::sync::LazyLock;
use std::time::Duration;

use crate::RecordStore;
use subject::Subject;

pub use by_turns::{ByTurns, by_turns};
pub use serve::{serve, test_binary};
pub use suite::{Report, Suite};

/// Defines the checks of a group. The name of the function is the name of the check. A name in parentheses says what the
/// function takes in place of the store: see [`Body`].
macro_rules! checks {
    ($group:literal: $($body:ident $(($kind:ident))?: $sentence:literal,)*) => {
        pub(super) const CHECKS: &[crate::conformance::Check] = &[$(crate::conformance::Check {
            name: concat!($group, "::", stringify!($body)),
            sentence: $sentence,
            body: checks!(@body $body $($kind)?),
        }),*];
    };
    (@body $body:ident) => { crate::conformance::Body::OnStore($body) };
    (@body $body:ident subject) => { crate::conformance::Body::OnSubject($body) };
    (@body $body:ident processes) => { crate::conformance::Body::WithProcesses($body) };
    (@body $body:ident stalls) => { crate::conformance::Body::WithStalls($body) };
}

mod by_turns;
mod cancellation;
mod changes;
mod eviction;
mod expiry;
mod fencing;
mod guards;
mod keys;
mod leases;
mod listing;
mod lock_all;
mod locks;
mod other_process;
mod processes;
mod protocol;
mod records;
mod serve;
mod sharing;
mod stalled;
mod store_changes;
mod subject;
mod suite;
mod support;
mod threads;
mod transactions;
mod versions;
mod waiting;
mod watching;

/// How long a check waits for something that should happen immediately.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A check that takes longer has failed, unless the suite has [another limit](Suite::limit).
pub const LIMIT: Duration = Duration::from_mins(2);

/// A waiter is woken this soon after the event for which it waits. A store that only looks from time to time takes longer.
pub const WAKE: Duration = Duration::from_millis(100);

/// The lock of a process that was killed is free this soon, if it is bound to the process.
pub const DEATH: Duration = Duration::from_secs(1);

/// One sentence of the contract, and the code that checks it.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    name: &'static str,
    sentence: &'static str,
    body: Body,
}

/// The code of a check, and what it needs.
#[derive(Clone, Copy, Debug)]
enum Body {
    OnStore(fn(&dyn RecordStore)),
    /// Also what the caller has said about the store.
    OnSubject(fn(&Subject)),
    WithProcesses(fn(&Subject)),
    WithStalls(fn(&Subject)),
}

/// A need of a check beside a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Need {
    /// Another process that opens the same store: see [`Suite::other_process`].
    OtherProcess,
    /// A way to stop a process in the middle of a change: see [`Suite::stall`].
    Stall,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherProcess => "another process (Suite::other_process)",
            Self::Stall => "a way to stop a process in the middle of a change (Suite::stall)",
        })
    }
}

impl Check {
    /// The name of the check, such as `records::a_read_returns_what_was_written`: its group and the expected
    /// behaviour.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The sentence of the contract that is checked.
    #[must_use]
    pub fn sentence(&self) -> &'static str {
        self.sentence
    }

    /// The need of the check beside a store. Without it, a [`Suite`] skips the check.
    #[must_use]
    pub fn needs(&self) -> Option<Need> {
        match self.body {
            Body::OnStore(_) | Body::OnSubject(_) => None,
            Body::WithProcesses(_) => Some(Need::OtherProcess),
            Body::WithStalls(_) => Some(Need::Stall),
        }
    }

    /// Runs the check. The store must be empty and must not be used elsewhere at the same time.
    ///
    /// # Panics
    ///
    /// If the store violates the sentence, or if the check does not end within [`LIMIT`]. The message contains the name
    /// of the check, the sentence and the observed behaviour. Also if the check [needs](Self::needs) more than a store:
    /// only a [`Suite`] can provide that.
    pub fn run(&self, store: impl RecordStore + 'static) {
        if let Err(failure) = self.attempt(Subject::new(store), LIMIT) {
            panic!("{failure}");
        }
    }

    fn call(&self, subject: &Subject) {
        match self.body {
            Body::OnStore(body) => body(subject.store()),
            Body::OnSubject(body) | Body::WithProcesses(body) | Body::WithStalls(body) => body(subject),
        }
    }

    /// The description of a failure.
    fn failure(&self, observed: &str) -> String {
        let Self { name, sentence, .. } = self;
        format!("{name}\n    expected: {sentence}\n    observed: {observed}")
    }
}

/// The message of a panic.
fn message(payload: &(dyn Any + Send)) -> &str {
    let message = payload.downcast_ref::<String>().map(String::as_str);
    message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.sentence)
    }
}

/// Every check, in the order in which [`run`] runs them.
#[must_use]
pub fn checks() -> &'static [Check] {
    static CHECKS: LazyLock<Vec<Check>> = LazyLock::new(|| {
        [
            records::CHECKS,
            keys::CHECKS,
            locks::CHECKS,
            leases::CHECKS,
            fencing::CHECKS,
            waiting::CHECKS,
            sharing::CHECKS,
            cancellation::CHECKS,
            guards::CHECKS,
            threads::CHECKS,
            changes::CHECKS,
            versions::CHECKS,
            expiry::CHECKS,
            watching::CHECKS,
            store_changes::CHECKS,
            lock_all::CHECKS,
            transactions::CHECKS,
            listing::CHECKS,
            eviction::CHECKS,
            stalled::CHECKS,
            processes::CHECKS,
        ]
        .concat()
    });
    &CHECKS
}

/// Runs every check that needs nothing but a store, each on a new one from `make`, and reports all failures at the end:
/// [`Suite::run`] without options.
///
/// # Panics
///
/// If a check fails. For each failed check, the message contains its name, the violated sentence of the
/// contract and the observed behaviour.
pub fn run<S, F>(make: F)
where
    S: RecordStore + 'static,
    F: Fn() -> S,
{
    Suite::new(make).run();
}
