//! The contract of [`RecordStore`] as a test suite for any store.
//!
//! One call runs every check, each on a fresh store:
//!
//! ```
//! # #[cfg(feature = "conformance")]
//! record_store::conformance::run(record_store::MemoryRecordStore::new);
//! ```
//!
//! A store with files needs a directory for each check:
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
//! A harness that wants a test for each check takes them from [`checks`]. A store that leaves
//! methods out ([`Error::Unsupported`](crate::Error::Unsupported)) can run those that concern it:
//!
//! ```
//! # #[cfg(feature = "conformance")] {
//! use record_store::{MemoryRecordStore, conformance};
//!
//! for check in conformance::checks().iter().filter(|check| check.name().starts_with("records::")) {
//!     println!("{}: {}", check.name(), check.sentence());
//!     check.run(&MemoryRecordStore::new());
//! }
//! # }
//! ```
//!
//! # What it relies on
//!
//! A check takes locks under the default holder and under named ones, waits on threads of its own,
//! and lets leases of some 150 ms run out. It asserts exactly that nothing comes too early, and
//! with seconds to spare that it comes at all, so a loaded machine does not fail it. Locks that a
//! faulty store might wait for without end have a lease of [`PATIENCE`], so that such a store fails
//! after a while; one that ignores leases too can hang.
//!
//! What the suite cannot see from within one process, it does not check: crashes, power loss, other
//! processes, forks.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used, reason = "a check fails by panicking")]

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::time::Duration;

use crate::RecordStore;

/// The table of a group's checks: the function is the name.
macro_rules! checks {
    ($group:literal: $($body:ident: $sentence:literal,)*) => {
        pub(super) const CHECKS: &[crate::conformance::Check] = &[$(crate::conformance::Check {
            name: concat!($group, "::", stringify!($body)),
            sentence: $sentence,
            body: $body,
        }),*];
    };
}

mod expiry;
mod fencing;
mod guards;
mod keys;
mod leases;
mod locks;
mod records;
mod several;
mod support;
mod swaps;
mod threads;
mod waiting;
mod watching;

/// The longest that a check waits for what should come at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// One sentence of the contract, and the code that sees whether a store keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    name: &'static str,
    sentence: &'static str,
    body: fn(&dyn RecordStore),
}

impl Check {
    /// The check's name, such as `records::a_read_returns_what_was_written`: its group and what it
    /// looks at.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The sentence of the contract.
    #[must_use]
    pub fn sentence(&self) -> &'static str {
        self.sentence
    }

    /// Runs the check on a store that must be empty and used by nobody else.
    ///
    /// # Panics
    ///
    /// If the store does not keep the sentence; the message has the check's name, the sentence and
    /// what was seen.
    pub fn run(&self, store: &dyn RecordStore) {
        if let Err(failure) = self.attempt(store) {
            panic!("{failure}");
        }
    }

    fn attempt(&self, store: &dyn RecordStore) -> Result<(), String> {
        // Nothing of the store is looked at after a panic.
        catch_unwind(AssertUnwindSafe(|| (self.body)(store))).map_err(|payload| {
            let seen = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a message");
            format!("{self}\n    {seen}")
        })
    }
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
            guards::CHECKS,
            threads::CHECKS,
            swaps::CHECKS,
            expiry::CHECKS,
            watching::CHECKS,
            several::CHECKS,
        ]
        .concat()
    });
    &CHECKS
}

/// Runs every check, each on a store of its own from `make`, and tells at the end which failed.
///
/// # Panics
///
/// If a check fails. The message has, for each that did, its name, the sentence of the contract
/// that the store does not keep, and what was seen.
pub fn run<S, F>(make: F)
where
    S: RecordStore,
    F: Fn() -> S,
{
    let failures: Vec<String> = checks().iter().filter_map(|check| check.attempt(&make()).err()).collect();
    assert!(
        failures.is_empty(),
        "{} of {} checks failed:\n{}",
        failures.len(),
        checks().len(),
        failures.join("\n"),
    );
}
